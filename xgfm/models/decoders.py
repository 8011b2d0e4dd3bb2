"""Decoders: feature maps of several sizes to one map at, or near, the size of the image.

In: a list of ``(B, C_i, rows_i, columns_i)``, largest first. Out: ``(B, out_channels, rows, columns)``.
Names of parameters are those of the published fine-tunes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xgfm.errors import TaskError
from xgfm.models.fields import require_whole
from xgfm.models.heads import MOST_DOUBLINGS
from xgfm.models.necks import apply_pyramid, learned_pyramid


class Decoder(nn.Module, ABC):
    """Base of the decoders."""

    out_channels: int
    """Channels of the output."""
    has_head = True
    """False where the decoder's output are the logits."""

    @abstractmethod
    def forward(self, features: list[Tensor]) -> Tensor:
        """Decode feature maps, largest first."""


class ConvUnit(nn.Module):
    """Convolution without bias, batch norm, ReLU; the size of the map is kept."""

    def __init__(self, channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``(B, C, rows, columns)``."""
        return F.relu(self.norm(self.conv(x)))


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of a map."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(B, C, rows, columns)`` over C."""
        return cast(Tensor, self.ln(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


def resize(x: Tensor, like: Tensor) -> Tensor:
    """Resize to another map's rows and columns: bilinear, corners aligned."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=True)


class UperNetDecoder(Decoder):
    """UperNet: pyramid pooling on the deepest map, then a feature pyramid from the deepest to the largest.

    Parameters
    ----------
    channels_in
        Channels of each feature map.
    channels
        Width of the decoder.
    pool_sizes
        Sizes of the pooled maps.
    scale_modules
        Make the pyramid here from four maps of one size, as some published fine-tunes do instead of by a neck.
    """

    def __init__(
        self,
        channels_in: Sequence[int],
        *,
        channels: int = 256,
        pool_sizes: Sequence[int] = (1, 2, 3, 6),
        scale_modules: bool = False,
    ) -> None:
        super().__init__()
        self.scale_modules = scale_modules
        if scale_modules:
            self.fpn1, self.fpn2, channels_in = learned_pyramid(channels_in)
        *shallow, deepest = channels_in
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), ConvUnit(deepest, channels, 1)) for size in pool_sizes
        )
        self.bottleneck = ConvUnit(deepest + len(pool_sizes) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvUnit(width, channels, 1) for width in shallow)
        self.fpn_convs = nn.ModuleList(ConvUnit(channels, channels, 3) for _ in shallow)
        self.fpn_bottleneck = ConvUnit(len(channels_in) * channels, channels, 3)
        self.out_channels = channels

    def forward(self, features: list[Tensor]) -> Tensor:
        """Decode feature maps, largest first, to the size of the largest."""
        if self.scale_modules:
            features = apply_pyramid(features, self.fpn1, self.fpn2)
        *shallow, deepest = features
        levels = [lateral(f) for lateral, f in zip(self.lateral_convs, shallow, strict=True)]
        levels.append(self._pool(deepest))
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + resize(levels[i], levels[i - 1])
        levels[:-1] = [conv(level) for conv, level in zip(self.fpn_convs, levels[:-1], strict=True)]
        largest, *others = levels
        return cast(Tensor, self.fpn_bottleneck(torch.cat([largest, *(resize(o, largest) for o in others)], dim=1)))

    def _pool(self, x: Tensor) -> Tensor:
        pooled = [resize(module(x), x) for module in self.psp_modules]
        return cast(Tensor, self.bottleneck(torch.cat([x, *pooled], dim=1)))


def _conv_norm_relu(channels: int, out_channels: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


class UNetBlock(nn.Module):
    """Enlarge, join the shallower map, convolve twice."""

    def __init__(self, channels: int, skip: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = _conv_norm_relu(channels + skip, out_channels)
        self.conv2 = _conv_norm_relu(out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor | None, size: Sequence[int]) -> Tensor:
        """Enlarge ``x`` to ``size`` (nearest) and convolve it together with ``skip``."""
        x = F.interpolate(x, size=tuple(size), mode="nearest")
        joined = x if skip is None else torch.cat([x, skip], dim=1)
        return cast(Tensor, self.conv2(self.conv1(joined)))


class UNetBlocks(nn.Module):
    """The blocks, under the name that published files give them."""

    def __init__(self, channels_in: Sequence[int], channels: Sequence[int]) -> None:
        super().__init__()
        *skips, deepest = channels_in
        inputs = [deepest, *channels[:-1]]
        joined = [*reversed(skips), 0]
        self.blocks = nn.ModuleList(
            UNetBlock(width, skip, out) for width, skip, out in zip(inputs, joined, channels, strict=True)
        )


class UNetDecoder(Decoder):
    """UNet: from the deepest map up, joining the shallower ones; the last block has none to join.

    Parameters
    ----------
    channels_in
        Channels of each feature map.
    channels
        Width of each block, as many as there are maps.
    last_enlarges
        Whether the last block doubles the size. The library that the published fine-tunes were trained with changed
        this between its versions 0.4 (True) and 0.5 (False); weights load equally in both and give other results.
    """

    def __init__(
        self, channels_in: Sequence[int], *, channels: Sequence[int] = (512, 256, 128, 64), last_enlarges: bool
    ) -> None:
        super().__init__()
        if len(channels) != len(channels_in):
            raise TaskError(f"channels {list(channels)} must be one width for each of {len(channels_in)} feature maps")
        self.last_enlarges = last_enlarges
        self.decoder = UNetBlocks(channels_in, channels)
        self.out_channels = channels[-1]

    def forward(self, features: list[Tensor]) -> Tensor:
        """Decode feature maps, largest first, to the size of the largest or to twice that."""
        *skips, x = features
        *joining, last = self.decoder.blocks
        for block, skip in zip(joining, reversed(skips), strict=True):
            x = block(x, skip, skip.shape[-2:])
        enlarge = 2 if self.last_enlarges else 1
        return cast(Tensor, last(x, None, [n * enlarge for n in x.shape[-2:]]))


class FCNDecoder(Decoder):
    """Steps of doubling and convolving the last feature map."""

    def __init__(self, channels_in: Sequence[int], *, channels: int = 256, num_convs: int = 4) -> None:
        super().__init__()
        require_whole("num_convs", num_convs, 1, MOST_DOUBLINGS)
        inputs = [channels_in[-1], *[channels] * (num_convs - 1)]
        self.convs = nn.Sequential(
            *(
                nn.Sequential(
                    nn.ConvTranspose2d(width, channels, 2, 2),
                    nn.Conv2d(channels, channels, 3, padding=1),
                    ChannelNorm(channels),
                    nn.GELU(),
                )
                for width in inputs
            )
        )
        self.out_channels = channels

    def forward(self, features: list[Tensor]) -> Tensor:
        """Decode the last feature map to 2 ** num_convs times its size."""
        return cast(Tensor, self.convs(features[-1]))


class LinearDecoder(Decoder):
    """One transposed convolution straight to the logits, each token a square of them.

    Computed as a matrix product, since the squares do not overlap: half the time of torch's transposed convolution.
    """

    has_head = False

    def __init__(self, channels_in: Sequence[int], *, classes: int, upsampling_size: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(channels_in[-1], classes, upsampling_size, upsampling_size)
        self.out_channels = classes

    def forward(self, features: list[Tensor]) -> Tensor:
        """Decode the last feature map to ``upsampling_size`` times its size."""
        x, side, bias = features[-1], self.conv.kernel_size[0], cast(Tensor, self.conv.bias)
        tokens = x.movedim(1, -1).contiguous()
        squares = F.linear(tokens, self.conv.weight.flatten(1).T, bias.repeat_interleave(side * side))
        return F.pixel_shuffle(squares.movedim(-1, 1), side)


DECODERS: dict[str, type[Decoder]] = {
    decoder.__name__: decoder for decoder in (UperNetDecoder, UNetDecoder, FCNDecoder, LinearDecoder)
}
