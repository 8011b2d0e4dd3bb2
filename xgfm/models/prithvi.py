"""The Prithvi encoder, EO 1.0 and 2.0: a vision transformer over patches of frames x rows x columns.

In: normalised images ``(B, C, T, H, W)`` and, for the TL models, dates and places. Out: tokens, cls token first.
Names of parameters are those of the published files; position tables are computed, not stored.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xgfm.errors import TaskError
from xgfm.models.encodings import CoordinateEncoding, Grid, position_table
from xgfm.models.spec import ModelSpec


class PatchProjection(nn.Module):
    """Weight and bias of the patch embedding, in the shape of a 3-D convolution."""

    def __init__(self, bands: int, width: int, patch_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, bands, *patch_size))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.xavier_uniform_(self.weight.view(width, -1))


class PatchEmbed(nn.Module):
    """Patches to tokens, as a reshape and one matrix product.

    Not as ``Conv3d``: some CPUs' bfloat16 kernels return wrong numbers for this shape, silently.
    """

    def __init__(self, bands: int, width: int, patch_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = PatchProjection(bands, width, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Turn images ``(B, C, T, H, W)`` into tokens ``(B, N, D)``, columns fastest, frames slowest."""
        batch, bands = x.shape[:2]
        (t, h, w), (pt, ph, pw) = patch_grid(x, self.patch_size), self.patch_size
        x = x[:, :, : t * pt, : h * ph, : w * pw].reshape(batch, bands, t, pt, h, ph, w, pw)
        patches = x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch, t * h * w, bands * pt * ph * pw)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


def patch_grid(x: Tensor, patch_size: tuple[int, int, int]) -> Grid:
    """Return how many whole patches ``(frames, rows, columns)`` an image ``(B, C, T, H, W)`` holds.

    Raises
    ------
    TaskError
        When it holds none. A border that fills no patch is dropped with a warning.
    """
    require_images(x)
    size = tuple(x.shape[-3:])
    grid = cast(Grid, tuple(n // p for n, p in zip(size, patch_size, strict=True)))
    if 0 in grid:
        raise TaskError(f"image of (frames, rows, columns) {size} is smaller than one patch {patch_size}")
    if any(n % p for n, p in zip(size, patch_size, strict=True)):
        warnings.warn(
            f"image of (frames, rows, columns) {size} is no whole number of patches {patch_size}; "
            "the border is dropped: pad the image to a multiple of the patch",
            stacklevel=3,
        )
    return grid


def require_images(x: Tensor) -> None:
    """Refuse what is not a batch of images ``(B, C, T, H, W)``."""
    if x.ndim != 5:
        raise TaskError(
            f"images have shape {tuple(x.shape)}; (batch, band, frame, row, column) is needed, frame even if 1"
        )


class Attention(nn.Module):
    """Multi-head self-attention with one packed projection (query, key, value)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise TaskError(f"embed_dim {width} is no multiple of num_heads {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within ``(B, N, D)``."""
        batch, count, width = x.shape
        qkv = self.qkv(x).reshape(batch, count, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, D / heads)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return cast(Tensor, self.proj(mixed.transpose(1, 2).reshape(batch, count, width)))


class Mlp(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token ``(B, N, D)`` by itself."""
        return cast(Tensor, self.fc2(F.gelu(self.fc1(x))))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Attend, then transform, each on the normalised tokens ``(B, N, D)`` and added to them."""
        x = x + self.attn(self.norm1(x))
        return cast(Tensor, x + self.mlp(self.norm2(x)))


def init_transformer(module: nn.Module) -> None:
    """Initialise linear layers as in pre-training: Xavier uniform, bias 0."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
            nn.init.zeros_(child.bias)


def random_token(width: int) -> nn.Parameter:
    """Return a cls or mask token ``(1, 1, width)``, initialised as in pre-training: normal, std 0.02."""
    token = torch.empty(1, 1, width)
    if not token.is_meta:  # where there is nothing to draw, torch would import its compiler to do so: 0.8 s
        token.normal_(std=0.02)
    return nn.Parameter(token)


class PrithviEncoder(nn.Module):
    """Encoder of every published Prithvi, and of any model of that shape.

    Parameters
    ----------
    spec
        Sizes, bands, encodings and the LayerNorm epsilon.
    image_size
        Rows and columns in pixels that the position table was built for, where that is not ``spec.image_size`` square.
    """

    def __init__(self, spec: ModelSpec, *, image_size: tuple[int, int] | None = None) -> None:
        super().__init__()
        if min(spec.embed_dim, spec.depth, spec.num_heads) < 1:
            raise TaskError(f"model {spec.name!r} gives no sizes to build; set embed_dim, depth and num_heads")
        width, (_, ph, pw) = spec.embed_dim, spec.patch_size
        rows, columns = image_size or (spec.image_size, spec.image_size)
        self.width = width
        self.patch_size = spec.patch_size
        self.built = (rows // ph, columns // pw)
        self.cls_token = random_token(width)
        self.patch_embed = PatchEmbed(len(spec.bands), width, spec.patch_size)
        self.temporal_embed_enc, self.location_embed_enc = coordinate_encodings(spec, width)
        self.blocks = nn.ModuleList(
            Block(width, spec.num_heads, spec.mlp_ratio, spec.norm_eps) for _ in range(spec.depth)
        )
        self.norm = nn.LayerNorm(width, eps=spec.norm_eps)
        init_transformer(self.blocks)

    def grid(self, x: Tensor) -> Grid:
        """Return the token grid ``(frames, rows, columns)`` of an image ``(B, C, T, H, W)``."""
        return patch_grid(x, self.patch_size)

    def embed(self, x: Tensor, time: Tensor | None = None, location: Tensor | None = None) -> Tensor:
        """Return the tokens ``(B, N, D)`` of ``(B, C, T, H, W)`` with position, time and place added, without cls."""
        grid, tokens = self.grid(x), self.patch_embed(x)
        table = position_table(self.width, self.built, grid, x.device)[:, 1:]
        table = table + coordinate_terms(grid, time, location, self.temporal_embed_enc, self.location_embed_enc)
        return cast(Tensor, tokens + table.to(self.cls_token.dtype))

    def prepend_cls(self, tokens: Tensor) -> Tensor:
        """Put the cls token in front of ``(B, N, D)``; its position row is zero."""
        return torch.cat([self.cls_token.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)

    def run_blocks(self, tokens: Tensor) -> Iterator[Tensor]:
        """Yield the output of each block ``(B, 1 + N, D)``; the last one is normalised, the others are raw."""
        last = len(self.blocks) - 1
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            yield self.norm(tokens) if index == last else tokens

    def forward(self, x: Tensor, time: Tensor | None = None, location: Tensor | None = None) -> Tensor:
        """Encode images.

        Parameters
        ----------
        x
            ``(B, C, T, H, W)``, normalised with the spec's statistics.
        time
            ``(B, T, 2)`` year and 0-based day of year, float32; models without a time encoding ignore it.
        location
            ``(B, 2)`` latitude and longitude in degrees, float32; models without a place encoding ignore it.

        Returns
        -------
        Tensor
            ``(B, 1 + N, D)`` normalised tokens, cls first, then frames slowest and columns fastest.
        """
        return self.forward_features(x, time, location, layers=[len(self.blocks) - 1])[0]

    def forward_features(
        self,
        x: Tensor,
        time: Tensor | None = None,
        location: Tensor | None = None,
        *,
        layers: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Return the outputs of chosen blocks.

        Parameters
        ----------
        x, time, location
            As in `forward`.
        layers
            Indices of blocks from 0 in rising order; every block if None. Only these are kept in memory.

        Returns
        -------
        list of Tensor
            One ``(B, 1 + N, D)`` for each; only the last block's has the final norm.
        """
        wanted = range(len(self.blocks)) if layers is None else layers
        outputs = self.run_blocks(self.prepend_cls(self.embed(x, time, location)))
        return [output for index, output in enumerate(islice(outputs, max(wanted) + 1)) if index in wanted]


def coordinate_encodings(spec: ModelSpec, width: int) -> tuple[CoordinateEncoding | None, CoordinateEncoding | None]:
    """Return the time and the place encoding that a spec asks for, None for each it does not."""
    time, location = (
        CoordinateEncoding(width, learned=spec.coords_scale_learned) if name in spec.coords else None
        for name in ("time", "location")
    )
    if time is not None and spec.patch_size[0] != 1:
        raise TaskError(
            f"model {spec.name!r} has a time encoding but patches of {spec.patch_size[0]} frames; it needs 1"
        )
    return time, location


def coordinate_terms(
    grid: Grid,
    time: Tensor | None,
    location: Tensor | None,
    time_encoding: CoordinateEncoding | None,
    location_encoding: CoordinateEncoding | None,
) -> Tensor | float:
    """Return what dates and places add to the tokens, ``(B, N or 1, D)`` float32, or 0 where nothing was given."""
    terms: Tensor | float = 0.0
    if time is not None and time_encoding is not None:
        if time.shape[1:] != (grid[0], 2):
            raise TaskError(
                f"time has shape {tuple(time.shape)}; (B, {grid[0]}, 2) is needed: year and day of each frame"
            )
        terms = time_encoding(time).repeat_interleave(grid[1] * grid[2], dim=1)
    if location is not None and location_encoding is not None:
        if location.shape[1:] != (2,):
            raise TaskError(f"location has shape {tuple(location.shape)}; (B, 2) is needed: latitude, longitude")
        terms = terms + location_encoding(location)[:, None]
    return terms
