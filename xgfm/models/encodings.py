"""Sine and cosine tables: positions of tokens, dates and places.

In: a grid of tokens, or plain numbers (year and day, latitude and longitude). Out: float32 tables to add to tokens.
Tables of positions are made when a size is first met and kept; nothing is read from weights files.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xgfm.errors import TaskError

Grid = tuple[int, int, int]
"""Tokens along (frames, rows, columns)."""


def sincos(positions: Tensor, width: int) -> Tensor:
    """Return ``width`` sines then cosines of each position, in the positions' own precision.

    Parameters
    ----------
    positions
        Any shape, float32 or float64.
    width
        Even number of channels: the first half are sines, the second half cosines.

    Returns
    -------
    Tensor
        ``(*positions.shape, width)``.
    """
    angles = positions[..., None] * _frequencies(width // 2, positions.dtype).to(positions.device)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


@lru_cache(maxsize=32)
def _frequencies(count: int, dtype: torch.dtype) -> Tensor:
    # On the CPU for every device: the power is rounded differently elsewhere, and the sine of a year shows it.
    with torch.inference_mode(False):
        exponents: Tensor = torch.arange(count, dtype=dtype, device="cpu") / count
        return 1.0 / 10000**exponents


@lru_cache(maxsize=16)
def position_table(width: int, built: tuple[int, int], grid: Grid, device: torch.device) -> Tensor:
    """Return the fixed position table of a grid, with a zero row for the cls token in front.

    The time part is computed for the frames there are; the spatial part is computed at the size the model was built
    for and resized (bicubic, corners aligned) to the grid, one time slice at a time.

    Parameters
    ----------
    width
        Channels of a token, a multiple of 16.
    built
        Rows and columns of tokens that the model was built for.
    grid
        Frames, rows and columns of tokens wanted.
    device
        Where the table is kept.

    Returns
    -------
    Tensor
        ``(1, 1 + frames * rows * columns, width)`` float32, columns fastest.
    """
    with torch.inference_mode(False), torch.no_grad():
        table = _position_grid(width, (grid[0], *built))
        if built != grid[1:]:
            images = table.permute(0, 3, 1, 2)
            images = F.interpolate(images, size=grid[1:], mode="bicubic", align_corners=True)
            table = images.permute(0, 2, 3, 1)
        rows = table.reshape(1, -1, width)
        return torch.cat([torch.zeros(1, 1, width), rows], dim=1).to(device)


def _position_grid(width: int, grid: Grid) -> Tensor:
    if width % 16:
        raise TaskError(f"embed_dim is {width}; the position table needs a multiple of 16")
    t, y, x = (torch.arange(n, dtype=torch.float64, device="cpu") for n in grid)
    space, time = width // 16 * 6, width // 16 * 4
    parts = [
        sincos(x, space).expand(*grid, space),
        sincos(y, space)[:, None].expand(*grid, space),
        sincos(t, time)[:, None, None].expand(*grid, time),
    ]
    return torch.cat(parts, dim=-1).float()  # (T, H, W, D)


class CoordinateEncoding(nn.Module):
    """Encoding of pairs of numbers: (year, day of year) of each frame, or (latitude, longitude) of each sample.

    The first half of the channels encodes the first number, the second half the second, times one scalar.
    """

    scale: Tensor

    def __init__(self, width: int, *, learned: bool) -> None:
        super().__init__()
        self.width = width
        if learned:
            self.scale = nn.Parameter(torch.full((1,), 0.1))
        else:
            self.register_buffer("scale", torch.ones(1))

    def forward(self, pairs: Tensor) -> Tensor:
        """Encode ``(..., 2)`` plain numbers as ``(..., width)`` float32.

        Raises
        ------
        TaskError
            For half precision, which cannot hold a year.
        """
        if pairs.dtype in (torch.float16, torch.bfloat16):
            raise TaskError(f"time and location are {pairs.dtype}, which cannot hold a year; give them as float32")
        halves = sincos(pairs.float(), self.width // 2)  # (..., 2, width / 2)
        return halves.flatten(-2) * self.scale.float()
