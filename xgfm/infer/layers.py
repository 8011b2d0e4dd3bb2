"""What a map is made of: logits to classes, probabilities, how sure the model is and how far from what it knows.

In: what a model said of some windows. Out: planes, missing where a pixel is. Nothing is lazy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

NO_CLASS = 255
OUT_OF_DOMAIN = "out_of_domain"
LAYERS = ("class", "probability", "confidence", "entropy", "logits", OUT_OF_DOMAIN)
"""What ``return_=`` can ask of a segmentation; the order in which they are kept."""


def layer_count(layers: tuple[str, ...], classes: int) -> int:
    """Return how many planes some layers take."""
    return len(missing(layers, classes))


def missing(layers: tuple[str, ...], classes: int) -> list[float]:
    """Return what stands for a missing pixel in each plane: 255 for the class, NaN for the others."""
    fills = {"class": [float(NO_CLASS)], "probability": [np.nan] * classes, "logits": [np.nan] * classes}
    return [fill for name in layers for fill in fills.get(name, [np.nan])]


def map_layers(
    logits: torch.Tensor,
    valid: torch.Tensor,
    layers: tuple[str, ...],
    temperature: float = 1.0,
    out_of_domain: torch.Tensor | None = None,
) -> torch.Tensor:
    """Turn logits into the layers of a map.

    Parameters
    ----------
    logits
        ``(B, class, H, W)``.
    valid
        ``(B, H, W)``; pixels that are not are nodata in every layer.
    layers
        Of ``"class"``, ``"probability"`` (a plane per class), ``"confidence"`` (the largest of them), ``"entropy"``
        (Shannon's, in nats), ``"logits"`` (a plane per class, as the model gave them), ``"out_of_domain"``, in the
        order wanted; or ``"value"`` of a regression, whose one plane ``logits`` is then.
    temperature
        Of the task: logits are divided by it before they become probabilities.
    out_of_domain
        ``(B, 1, H, W)``, where that layer is wanted: shares from `Domain.share`.

    Returns
    -------
    torch.Tensor
        ``(B, plane, H, W)``: uint8 for the class alone, else float32; `missing` where nodata.
    """
    if layers == ("class",):
        # max is three times faster than argmax along an axis that is not the last
        return torch.where(valid, logits.max(1).indices, NO_CLASS).to(torch.uint8)[:, None]
    logits = logits.float()
    probability = (logits / temperature).softmax(1)  # a division by 1 changes no bit
    made: dict[str, Callable[[], Any]] = {
        "class": lambda: logits.max(1, keepdim=True).indices.float(),
        "probability": lambda: probability,
        "confidence": lambda: probability.amax(1, keepdim=True),
        "entropy": lambda: torch.special.entr(probability).sum(1, keepdim=True),
        "logits": lambda: logits,
        "value": lambda: logits,
        OUT_OF_DOMAIN: lambda: out_of_domain,
    }
    stacked = torch.cat([made[name]() for name in layers], dim=1)
    fill = torch.tensor(missing(layers, logits.shape[1]), device=logits.device)[:, None, None]
    return torch.where(valid[:, None], stacked, fill)
