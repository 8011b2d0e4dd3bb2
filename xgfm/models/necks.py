"""Necks: token sequences of several encoder blocks to the feature maps that a decoder takes.

In: a list of tensors, one per chosen block, and the true token grid (never a square root of the token count).
Out: a list of tensors. Channels are counted when the neck is built, so a decoder knows its widths beforehand.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xgfm.errors import TaskError
from xgfm.models.encodings import Grid


class Neck(nn.Module, ABC):
    """Base of the necks.

    Parameters
    ----------
    channels
        Channels of each input.
    frames
        Token frames of the images.
    """

    channels: list[int]
    """Channels of each output."""

    def __init__(self, channels: Sequence[int], frames: int) -> None:
        super().__init__()
        self.channels = list(channels)
        self.frames = frames

    @abstractmethod
    def forward(self, features: list[Tensor], grid: Grid) -> list[Tensor]:
        """Transform the features of images whose token grid is (frames, rows, columns)."""


class SelectIndices(Neck):
    """Choose encoder blocks by index from 0. The encoder keeps only these, so there is nothing left to do here."""

    def __init__(self, channels: Sequence[int], frames: int, *, indices: Sequence[int]) -> None:
        super().__init__(channels, frames)
        depth = len(self.channels)
        if list(indices) != sorted(set(indices)) or not indices or indices[0] < 0 or indices[-1] >= depth:
            raise TaskError(f"indices {list(indices)} must rise, without repeats, within the encoder's {depth} blocks")
        self.indices = list(indices)
        self.channels = [self.channels[index] for index in indices]

    def forward(self, features: list[Tensor], grid: Grid) -> list[Tensor]:  # noqa: ARG002
        """Return the features as they are."""
        return features


class ReshapeTokensToImage(Neck):
    """Tokens to images: the cls token is dropped and frames join the channels, channel = frame * D + d."""

    def __init__(self, channels: Sequence[int], frames: int) -> None:
        super().__init__(channels, frames)
        self.channels = [frames * width for width in channels]

    def forward(self, features: list[Tensor], grid: Grid) -> list[Tensor]:
        """Turn ``(B, 1 + N, D)`` into ``(B, T * D, rows, columns)``."""
        if grid[0] != self.frames:
            raise TaskError(f"images have {grid[0]} token frames; the task was built for {self.frames}")
        return [tokens_to_image(tokens, grid) for tokens in features]


def tokens_to_image(tokens: Tensor, grid: Grid) -> Tensor:
    """Turn tokens ``(B, 1 + N, D)`` into an image ``(B, T * D, rows, columns)``, frames slow in the channels."""
    frames, rows, columns = grid
    images = tokens[:, 1:].reshape(len(tokens), frames, rows, columns, -1)
    return images.permute(0, 1, 4, 2, 3).flatten(1, 2)


def learned_pyramid(channels: Sequence[int]) -> tuple[nn.Sequential, nn.Sequential, list[int]]:
    """Return the modules that enlarge the first level by 4 and the second by 2, and the channels of the four levels."""
    if len(channels) != 4:
        raise TaskError(f"the learned pyramid takes four feature maps, not {len(channels)}: choose four block indices")
    first, second = channels[0], channels[1]
    fpn1 = nn.Sequential(
        nn.ConvTranspose2d(first, first // 2, 2, 2),
        nn.BatchNorm2d(first // 2),
        nn.GELU(),
        nn.ConvTranspose2d(first // 2, first // 4, 2, 2),
    )
    fpn2 = nn.Sequential(nn.ConvTranspose2d(second, second // 2, 2, 2))
    return fpn1, fpn2, [first // 4, second // 2, channels[2], channels[3]]


def apply_pyramid(features: list[Tensor], fpn1: nn.Module, fpn2: nn.Module) -> list[Tensor]:
    """Scale four maps of one size to 4, 2, 1 and 1/2 times that size."""
    return [fpn1(features[0]), fpn2(features[1]), features[2], F.max_pool2d(features[3], 2, 2)]


class LearnedInterpolateToPyramidal(Neck):
    """Four maps of one size to a pyramid of 4, 2, 1 and 1/2 times that size, by transposed convolutions."""

    def __init__(self, channels: Sequence[int], frames: int) -> None:
        super().__init__(channels, frames)
        self.fpn1, self.fpn2, self.channels = learned_pyramid(channels)

    def forward(self, features: list[Tensor], grid: Grid) -> list[Tensor]:  # noqa: ARG002
        """Scale the maps."""
        return apply_pyramid(features, self.fpn1, self.fpn2)


class InterpolateToPyramidal(Neck):
    """Level i of n is enlarged by 2 ** (n - i), nearest neighbour; so the last is doubled."""

    def forward(self, features: list[Tensor], grid: Grid) -> list[Tensor]:  # noqa: ARG002
        """Scale the maps."""
        count = len(features)
        return [F.interpolate(f, scale_factor=2.0 ** (count - i), mode="nearest") for i, f in enumerate(features)]


class MaxpoolToPyramidal(Neck):
    """Level i is max-pooled by 2 ** i."""

    def forward(self, features: list[Tensor], grid: Grid) -> list[Tensor]:  # noqa: ARG002
        """Scale the maps."""
        return [F.max_pool2d(f, 2**i, 2**i) if i else f for i, f in enumerate(features)]


class AggregateTokens(Neck):
    """One vector per image from the tokens of one block; mean, max and min are over all tokens, cls included."""

    def __init__(
        self,
        channels: Sequence[int],
        frames: int,
        *,
        pooling: Literal["mean", "max", "min", "CLS"] = "mean",
        index: int = -1,
    ) -> None:
        super().__init__(channels, frames)
        if pooling not in ("mean", "max", "min", "CLS"):
            raise TaskError(f"pooling is {pooling!r}; it can be 'mean', 'max', 'min' or 'CLS'")
        self.pooling = pooling
        self.index = index
        self.channels = [self.channels[index]]

    def forward(self, features: list[Tensor], grid: Grid) -> list[Tensor]:  # noqa: ARG002
        """Turn ``(B, 1 + N, D)`` into ``(B, D)``."""
        tokens = features[self.index]
        if self.pooling == "CLS":
            return [tokens[:, 0]]
        if self.pooling == "mean":
            return [tokens.mean(dim=1)]
        return [torch.amax(tokens, dim=1) if self.pooling == "max" else torch.amin(tokens, dim=1)]


NECKS: dict[str, type[Neck]] = {
    neck.__name__: neck
    for neck in (
        SelectIndices,
        ReshapeTokensToImage,
        LearnedInterpolateToPyramidal,
        InterpolateToPyramidal,
        MaxpoolToPyramidal,
        AggregateTokens,
    )
}
