"""The fine-tunes of Prithvi EO 1.0: their neck, their heads, and the model of both.

In: normalised images ``(B, C, T, H, W)``, whole patches. Out: logits ``(B, K, H, W)``.
Names of parameters are those of the published files.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from xgfm.models.decoders import ChannelNorm
from xgfm.models.encodings import Grid
from xgfm.models.prithvi import PrithviEncoder


def _double_twice(channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(channels, out_channels, 2, 2),
        ChannelNorm(out_channels),
        nn.GELU(),
        nn.ConvTranspose2d(out_channels, out_channels, 2, 2),
    )


class ConvTransformerNeck(nn.Module):
    """Tokens to one map of 16 times the token grid. Frames join the channels: channel = d * T + frame."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.fpn1 = _double_twice(channels, out_channels)
        self.fpn2 = _double_twice(out_channels, out_channels)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Turn ``(B, 1 + N, D)``, cls first, into ``(B, out_channels, 16 rows, 16 columns)``."""
        return cast(Tensor, self.fpn2(self.fpn1(self.image(tokens, grid))))

    @staticmethod
    def image(tokens: Tensor, grid: Grid) -> Tensor:
        """Turn ``(B, 1 + N, D)`` into ``(B, D * T, rows, columns)``, frames fast in the channels."""
        frames, rows, columns = grid
        channels = tokens[:, 1:].transpose(1, 2)  # (B, D, N), frames slowest in N
        return channels.reshape(len(tokens), channels.shape[1] * frames, rows, columns)


class ConvUnit(nn.Module):
    """3 x 3 convolution without bias, batch norm, ReLU."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``(B, C, rows, columns)``."""
        return F.relu(self.bn(self.conv(x)))


class FCNHead(nn.Module):
    """Convolutions, dropout, 1 x 1 convolution to the classes."""

    def __init__(self, channels: int, classes: int, *, width: int, convs: int, dropout: float = 0.1) -> None:
        super().__init__()
        inputs = [channels, *[width] * (convs - 1)]
        self.convs = nn.Sequential(*(ConvUnit(c, width) for c in inputs))
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits at the size of the map."""
        return cast(Tensor, self.conv_seg(self.dropout(self.convs(x))))


class MmsegModel(nn.Module):
    """Encoder, neck, decode head, and the auxiliary head of training.

    Parameters
    ----------
    encoder
        Its normalised tokens are used.
    frames
        Token frames of an image.
    classes
        Number of classes.
    neck_channels
        Width of the neck's output.
    head_channels
        Width of both heads.
    """

    def __init__(
        self, encoder: PrithviEncoder, frames: int, classes: int, *, neck_channels: int, head_channels: int = 256
    ) -> None:
        super().__init__()
        self.backbone = encoder
        self.neck = ConvTransformerNeck(frames * encoder.width, neck_channels)
        self.decode_head = FCNHead(neck_channels, classes, width=head_channels, convs=1)
        self.auxiliary_head = FCNHead(neck_channels, classes, width=head_channels, convs=2)

    def forward(self, x: Tensor, time: Tensor | None = None, location: Tensor | None = None) -> Tensor:
        """Return the decode head's logits ``(B, K, H, W)`` for ``(B, C, T, H, W)``.

        ``time`` and ``location`` are for encoders that know them; the published ones do not.
        """
        return self._at_size_of(x, self.decode_head(self.neck_map(x, time, location)))

    def with_auxiliary(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of both heads, for training: the auxiliary loss has weight 1."""
        shared = self.neck_map(x)
        return self._at_size_of(x, self.decode_head(shared)), self._at_size_of(x, self.auxiliary_head(shared))

    def neck_map(self, x: Tensor, time: Tensor | None = None, location: Tensor | None = None) -> Tensor:
        """Return the map that both heads take."""
        return cast(Tensor, self.neck(self.backbone(x, time, location), self.backbone.grid(x)))

    @staticmethod
    def _at_size_of(x: Tensor, logits: Tensor) -> Tensor:
        if logits.shape[-2:] == x.shape[-2:]:
            return logits
        return F.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)
