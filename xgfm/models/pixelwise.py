"""Encoder, necks, decoder and head as one module: the published fine-tunes of Prithvi EO 2.0 and new tasks.

In: normalised images ``(B, C, T, H, W)`` of any size. Out: logits ``(B, K, H, W)``. Images are padded by reflection to
an even number of patches and the logits cropped back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from xgfm.errors import TaskError
from xgfm.models.decoders import Decoder
from xgfm.models.necks import Neck, SelectIndices
from xgfm.models.prithvi import PrithviEncoder, require_images


class PixelwiseModel(nn.Module):
    """A map for every pixel from a Prithvi encoder.

    Parameters
    ----------
    encoder
        Gives the tokens of its blocks.
    necks
        Applied in turn; block indices are chosen by a `SelectIndices`, all blocks without one.
    decoder
        Takes the necks' feature maps.
    head
        Takes the decoder's map; None where that is the logits.
    """

    def __init__(
        self, encoder: PrithviEncoder, necks: Sequence[Neck], decoder: Decoder, head: nn.Module | None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.neck = nn.ModuleList(necks)
        self.decoder = decoder
        self.head = head if head is not None else nn.Identity()
        self.layers = next((neck.indices for neck in necks if isinstance(neck, SelectIndices)), None)

    def forward(self, x: Tensor, time: Tensor | None = None, location: Tensor | None = None) -> Tensor:
        """Predict a map.

        Parameters
        ----------
        x
            ``(B, C, T, H, W)``, normalised.
        time, location
            Year and 0-based day ``(B, T, 2)``, latitude and longitude ``(B, 2)``; see `PrithviEncoder.forward`.

        Returns
        -------
        Tensor
            ``(B, K, H, W)`` logits, or values for K = 1.
        """
        padded = pad_to_even_grid(x, self.encoder.patch_size)
        logits = self.head(self.decoder(self.feature_maps(padded, time, location)))
        if logits.shape[-2:] != padded.shape[-2:]:
            logits = F.interpolate(logits, size=padded.shape[-2:], mode="bilinear", align_corners=False)
        return cast(Tensor, logits[..., : x.shape[-2], : x.shape[-1]])

    def feature_maps(self, x: Tensor, time: Tensor | None = None, location: Tensor | None = None) -> list[Tensor]:
        """Return what the necks give to the decoder for an image of whole patches."""
        features = self.encoder.forward_features(x, time, location, layers=self.layers)
        grid = self.encoder.grid(x)
        for neck in self.neck:
            features = neck(features, grid)
        return features


def pad_to_even_grid(x: Tensor, patch_size: tuple[int, int, int]) -> Tensor:
    """Pad ``(B, C, T, H, W)`` by reflection, below and on the right, to an even number of patches."""
    require_images(x)
    (height, width), (_, ph, pw) = x.shape[-2:], patch_size
    below, right = -height % (2 * ph), -width % (2 * pw)
    if below >= height or right >= width:
        raise TaskError(
            f"image of {height} x {width} pixels is too small to be padded by reflection to multiples of "
            f"{2 * ph} x {2 * pw}; give at least {ph + 1} x {pw + 1}"
        )
    if not (below or right):
        return x
    padded = F.pad(x.flatten(1, 2), (0, right, 0, below), mode="reflect")  # (B, C * T, H, W)
    return padded.reshape(*x.shape[:3], height + below, width + right)
