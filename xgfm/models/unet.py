"""A U-Net: the model that a foundation model is compared with, and one for sensors that no foundation model has seen.

In: normalised images ``(B, C, T, H, W)`` of any size. Out: logits ``(B, K, H, W)``. Frames join the bands.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xgfm.errors import TaskError
from xgfm.models.decoders import ConvUnit
from xgfm.models.fields import listed, require_number, require_whole
from xgfm.models.prithvi import require_images


class UNet(nn.Module):
    """U-Net of Ronneberger et al. 2015 with batch norm, "same" convolutions and nearest-neighbour upsampling.

    Parameters
    ----------
    planes
        Bands times frames of an image.
    outputs
        Classes, or 1 for a regression.
    widths
        Channels of each level, from the image's own size downwards; each level halves rows and columns.
    dropout
        Share of the deepest level's channels that is dropped in training.

    Raises
    ------
    TaskError
        Fewer than two levels or more than eight, or sizes that are no whole numbers.
    """

    def __init__(
        self, planes: int, outputs: int, *, widths: Sequence[int] = (32, 64, 128, 256), dropout: float = 0.0
    ) -> None:
        super().__init__()
        widths = listed("widths", widths)
        if not 2 <= len(widths) <= 8:
            raise TaskError(f"widths is {widths}; a U-Net has 2 to 8 levels")
        for width in widths:
            require_whole("widths", width, 1, 4096)
        require_number("dropout", dropout)
        self.planes = planes
        self.down = nn.ModuleList(_twice(before, after) for before, after in pairwise([planes, *widths]))
        self.up = nn.ModuleList(_twice(deep + skip, skip) for skip, deep in reversed(list(pairwise(widths))))
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(widths[0], outputs, 1)

    def forward(self, x: Tensor, time: Tensor | None = None, location: Tensor | None = None) -> Tensor:  # noqa: ARG002 - the signature of every task
        """Predict a map ``(B, K, H, W)`` of images ``(B, C, T, H, W)``; dates and places are not used."""
        require_images(x)
        if x.shape[1] * x.shape[2] != self.planes:
            raise TaskError(
                f"images have {x.shape[1]} bands x {x.shape[2]} frames; this U-Net takes {self.planes} planes"
            )
        scale = 2 ** len(self.up)
        logits = self._decode(*self._encode(repeat_edges(x.flatten(1, 2), scale, scale)))
        return logits[..., : x.shape[-2], : x.shape[-1]]

    def _encode(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the deepest map, and those of the levels above, deepest first."""
        skips: list[Tensor] = []
        for level in self.down[:-1]:
            x = level(x)
            skips.insert(0, x)
            x = F.max_pool2d(x, 2)
        return self.dropout(self.down[-1](x)), skips

    def _decode(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        for level, skip in zip(self.up, skips, strict=True):
            x = level(torch.cat([skip, F.interpolate(x, scale_factor=2.0, mode="nearest")], dim=1))
        return cast(Tensor, self.head(x))


def _twice(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(ConvUnit(before, after, 3), ConvUnit(after, after, 3))


def repeat_edges(x: Tensor, rows: int, columns: int) -> Tensor:
    """Repeat the last row and column of ``(B, C, H, W)`` until both are whole multiples: fits images of any size."""
    return F.pad(x, (0, -x.shape[-1] % columns, 0, -x.shape[-2] % rows), mode="replicate")
