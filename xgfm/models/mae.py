"""The masked autoencoder that Prithvi was pre-trained as: hide most tokens, reconstruct their pixels.

In: normalised images ``(B, C, T, H, W)``. Out: a `Reconstruction`: loss, predicted pixels, which tokens
were hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xgfm.errors import TaskError
from xgfm.models.encodings import Grid, position_table
from xgfm.models.prithvi import (
    Block,
    PrithviEncoder,
    coordinate_encodings,
    coordinate_terms,
    init_transformer,
    random_token,
)
from xgfm.models.spec import ModelSpec


@dataclass(frozen=True)
class Reconstruction:
    """What one pass of the autoencoder gives."""

    loss: Tensor
    """Scalar: mean squared error over the hidden tokens; NaN when nothing was hidden."""
    prediction: Tensor
    """``(B, N, P)`` normalised pixels of each token, in the order (frame, row, column, band) within the patch."""
    mask: Tensor
    """``(B, N)``: 1 where the token was hidden, 0 where the model saw it."""
    ids_restore: Tensor
    """``(B, N)`` rank of each token in the shuffled order; the first ones were kept."""
    latent: Tensor
    """``(B, 1 + kept, D)`` encoder output, cls first."""
    grid: Grid
    """Tokens along (frames, rows, columns)."""


class MAEDecoder(nn.Module):
    """Light transformer that predicts the pixels of every token."""

    def __init__(self, spec: ModelSpec, built: tuple[int, int]) -> None:
        super().__init__()
        width, (pt, ph, pw) = spec.decoder_embed_dim, spec.patch_size
        self.width = width
        self.built = built
        self.mask_token = random_token(width)
        self.decoder_embed = nn.Linear(spec.embed_dim, width)
        self.temporal_embed_dec, self.location_embed_dec = coordinate_encodings(spec, width)
        self.decoder_blocks = nn.ModuleList(
            Block(width, spec.decoder_num_heads, spec.mlp_ratio, spec.norm_eps) for _ in range(spec.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(width, eps=spec.norm_eps)
        self.decoder_pred = nn.Linear(width, pt * ph * pw * len(spec.bands))
        init_transformer(self)

    def forward(
        self,
        latent: Tensor,
        ids_restore: Tensor,
        grid: Grid,
        time: Tensor | None = None,
        location: Tensor | None = None,
    ) -> Tensor:
        """Predict the pixels ``(B, N, P)`` of every token from the kept ones ``(B, 1 + kept, D)``."""
        tokens = self.decoder_embed(latent)
        kept = tokens[:, 1:]
        hidden = self.mask_token.to(kept.dtype).expand(len(kept), ids_restore.shape[1] - kept.shape[1], -1)
        index = ids_restore[..., None].expand(-1, -1, self.width)
        restored = torch.cat([kept, hidden], dim=1).gather(1, index)
        table = position_table(self.width, self.built, grid, latent.device)[:, 1:]
        table = table + coordinate_terms(grid, time, location, self.temporal_embed_dec, self.location_embed_dec)
        tokens = torch.cat([tokens[:, :1], restored + table.to(self.mask_token.dtype)], dim=1)
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return cast(Tensor, self.decoder_pred(self.decoder_norm(tokens))[:, 1:])


class PrithviMAE(nn.Module):
    """Encoder and decoder of masked pre-training.

    Parameters
    ----------
    spec
        Sizes, encodings, default mask ratio and the kind of target.
    image_size
        As in `PrithviEncoder`.
    """

    def __init__(self, spec: ModelSpec, *, image_size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.patch_size = spec.patch_size
        self.mask_ratio = spec.mask_ratio
        self.norm_pix_loss = spec.norm_pix_loss
        self.encoder = PrithviEncoder(spec, image_size=image_size)
        self.decoder = MAEDecoder(spec, self.encoder.built)

    def forward(
        self,
        x: Tensor,
        time: Tensor | None = None,
        location: Tensor | None = None,
        *,
        mask_ratio: float | None = None,
        noise: Tensor | None = None,
    ) -> Reconstruction:
        """Hide tokens, encode the rest, reconstruct all.

        Parameters
        ----------
        x
            ``(B, C, T, H, W)``, normalised.
        time, location
            As in `PrithviEncoder.forward`.
        mask_ratio
            Share of tokens to hide, from 0 to less than 1; the spec's if None.
        noise
            ``(B, N)``, drawn from the global generator if None. The tokens of smallest noise are kept.

        Returns
        -------
        Reconstruction
        """
        grid = self.encoder.grid(x)
        tokens = self.encoder.embed(x, time, location)
        if noise is None:
            noise = torch.rand(tokens.shape[:2], device=x.device)
        kept, mask, ids_restore = random_masking(noise, self.mask_ratio if mask_ratio is None else mask_ratio)
        visible = tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))
        *_, latent = self.encoder.run_blocks(self.encoder.prepend_cls(visible))
        prediction = self.decoder(latent, ids_restore, grid, time, location)
        loss = reconstruction_loss(self.patchify(x), prediction, mask, normalise_target=self.norm_pix_loss)
        return Reconstruction(loss, prediction, mask, ids_restore, latent, grid)

    def patchify(self, x: Tensor) -> Tensor:
        """Turn images ``(B, C, T, H, W)`` into the pixels of each token ``(B, N, P)``, band fastest."""
        (t, h, w), (pt, ph, pw) = self.encoder.grid(x), self.patch_size
        x = x[:, :, : t * pt, : h * ph, : w * pw]
        patches = x.reshape(*x.shape[:2], t, pt, h, ph, w, pw).permute(0, 2, 4, 6, 3, 5, 7, 1)
        return patches.flatten(4).flatten(1, 3)

    def unpatchify(self, patches: Tensor, grid: Grid) -> Tensor:
        """Turn the pixels of each token ``(B, N, P)`` back into images ``(B, C, T, H, W)``."""
        (t, h, w), (pt, ph, pw) = grid, self.patch_size
        pixels = patches.reshape(len(patches), t, h, w, pt, ph, pw, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
        return pixels.reshape(len(patches), -1, t * pt, h * ph, w * pw)

    def mask_image(self, mask: Tensor, grid: Grid) -> Tensor:
        """Turn a mask of tokens ``(B, N)`` into one of pixels ``(B, T, H, W)``."""
        mask = mask.reshape(len(mask), *grid)
        for axis, repeats in enumerate(self.patch_size, start=1):
            mask = mask.repeat_interleave(repeats, dim=axis)
        return mask


def random_masking(noise: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the tokens to keep: those of smallest noise, in rising order of noise.

    Parameters
    ----------
    noise
        ``(B, N)``.
    mask_ratio
        Share to hide. ``int(N * (1 - mask_ratio))`` are kept, with Python's own rounding, as in pre-training.

    Returns
    -------
    kept, mask, ids_restore
        Indices ``(B, kept)``; 1 for hidden tokens ``(B, N)``; rank of each token ``(B, N)``.
    """
    if not 0 <= mask_ratio < 1:
        raise TaskError(f"mask_ratio is {mask_ratio}; it must be at least 0 and less than 1")
    count = noise.shape[1]
    keep = int(count * (1 - mask_ratio))
    shuffled = noise.argsort(dim=1)
    ids_restore = shuffled.argsort(dim=1)
    return shuffled[:, :keep], (ids_restore >= keep).to(noise.dtype), ids_restore


def reconstruction_loss(target: Tensor, prediction: Tensor, mask: Tensor, *, normalise_target: bool) -> Tensor:
    """Return the mean squared error over the hidden tokens; each target token is standardised where asked."""
    if normalise_target:
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        target = (target - mean) / (variance + 1e-6).sqrt()
    error = F.mse_loss(prediction, target, reduction="none").mean(dim=-1)
    return (error * mask).sum() / mask.sum()
