"""Heads: a decoder's map to logits of classes or to one number per pixel.

In: ``(B, C, rows, columns)``. Out: ``(B, K, rows, columns)``, K = number of classes, or 1 for a regression.
Indices of the layers are those of the published fine-tunes, so an empty stage is an identity that keeps its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from xgfm.models.fields import require_whole

MOST_DOUBLINGS = 16
"""Of a map's size: no image needs more, and each is a layer to build."""


class SegmentationHead(nn.Module):
    """Convolutions with ReLU, dropout, 1 x 1 convolution to the classes."""

    def __init__(self, channels: int, classes: int, *, channel_list: Sequence[int] = (), dropout: float = 0.0) -> None:
        super().__init__()
        widths = [channels, *channel_list]
        stack = [nn.Sequential(nn.Conv2d(width, out, 3, padding=1), nn.ReLU()) for width, out in pairwise(widths)]
        self.head = nn.Sequential(nn.Sequential(*stack), nn.Dropout(dropout), nn.Conv2d(widths[-1], classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of the classes."""
        return cast(Tensor, self.head(x))


class ShuffleUpscale(nn.Module):
    """Double the size by moving channels into space, then batch norm and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of twice the rows and columns."""
        return F.relu(self.bn(F.pixel_shuffle(self.conv(x), 2)))


class RegressionHead(nn.Module):
    """Upscaling steps, convolutions with batch norm and ReLU, dropout, 1 x 1 convolution to one channel."""

    def __init__(
        self,
        channels: int,
        *,
        learned_upscale_layers: int = 0,
        channel_list: Sequence[int] = (),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require_whole("learned_upscale_layers", learned_upscale_layers, 0, MOST_DOUBLINGS)
        widths = [channels, *channel_list]
        stack = [
            nn.Sequential(nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU())
            for width, out in pairwise(widths)
        ]
        self.head = nn.Sequential(
            nn.Sequential(*(ShuffleUpscale(channels) for _ in range(learned_upscale_layers))),
            nn.Sequential(*stack),
            nn.Dropout2d(dropout),
            nn.Conv2d(widths[-1], 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return one channel."""
        return cast(Tensor, self.head(x))
