"""Input habits of single published fine-tunes, kept out of the general path.

In: images as every task takes them. Out: logits as every task gives them. Each module wraps one model; the names of the
wrapped model's parameters stay those of the published file (`published_part`).
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F


class Quirk(nn.Module):
    """Base of the wrappers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class PlanesDateByDate(Quirk):
    """The v1 crop fine-tune: its 18 planes come date by date, and the model reads them as if band by band.

    So slot (band b, frame t) of the model holds plane ``T * b + t`` of the list (date 1 bands 1-6, date 2 bands 1-6,
    ...). The published weights were trained on this mixed order and must be fed the same.
    """

    def forward(self, x: Tensor, time: Tensor | None = None, location: Tensor | None = None) -> Tensor:
        """Predict from ``(B, C, T, H, W)`` in the true order, each band normalised with its own statistics."""
        mixed = x.transpose(1, 2).reshape(x.shape)
        return cast(Tensor, self.model(mixed, time, location))


class Resized(Quirk):
    """The v2 flood fine-tune: windows of 256 pixels are enlarged to 448 for the model and its classes brought back.

    Logits come back by nearest neighbour, which gives the same classes as bringing back the classes.
    """

    def __init__(self, model: nn.Module, *, window: int, resized: int) -> None:
        super().__init__(model)
        self.factor = resized / window

    def forward(self, x: Tensor, time: Tensor | None = None, location: Tensor | None = None) -> Tensor:
        """Predict from ``(B, C, T, H, W)``."""
        size = [round(n * self.factor) for n in x.shape[-2:]]
        larger = F.interpolate(x.flatten(1, 2), size=size, mode="bilinear", align_corners=False)
        logits = self.model(larger.reshape(*x.shape[:3], *size), time, location)
        return F.interpolate(logits, size=x.shape[-2:], mode="nearest")


def published_part(module: nn.Module) -> nn.Module:
    """Return the module whose state dict has the names of the published file."""
    return module.model if isinstance(module, Quirk) else module
