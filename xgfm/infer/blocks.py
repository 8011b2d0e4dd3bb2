"""The Dask call: a kernel over the blocks of a window plan.

In: a Dask array ``(time, band, y, x)`` in any chunking. Out: a lazy Dask array ``(group, layer, y, x)``, where a group
is the frames that the model takes at once. One task per block does the work; what else is in the graph moves pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import dask.array as da
import numpy as np
from dask.array.overlap import overlap

from xgfm.windows import Block, WindowPlan


class BlockFunction(Protocol):
    """A kernel with its settings, small enough to travel in the graph."""

    def __call__(self, block: np.ndarray, place: Block, first_frame: int) -> np.ndarray:
        """Return ``(layer, y, x)`` for a block ``(frame, band, y, x)`` that reads beyond its own pixels."""


def _one(block: np.ndarray, *, kernel: BlockFunction, plan: WindowPlan, block_id: tuple[int, ...]) -> np.ndarray:
    first_frame = block_id[0] * block.shape[0]
    return kernel(block, plan.block(block_id[2], block_id[3]), first_frame)[None]


def map_windows(
    data: da.Array, plan: WindowPlan, kernel: BlockFunction, *, frames: int, layers: int, dtype: str, scale: int = 1
) -> da.Array:
    """Apply a kernel to every block of a plan, lazily.

    Parameters
    ----------
    data
        ``(time, band, y, x)``; rechunked to the plan's blocks.
    plan
        In cells of the output.
    kernel
        What is done with one block.
    frames
        Time steps of a group.
    layers
        Length of the answer's second axis.
    dtype
        Of the answer.
    scale
        Pixels of a cell.

    Returns
    -------
    dask.array.Array
        ``(group, layer, y, x)``, chunked like the plan.
    """
    rows, columns = (tuple(n * scale for n in c) for c in (plan.row_chunks, plan.column_chunks))
    groups = data.shape[0] // frames
    data = data.rechunk({0: (frames,) * groups, 1: -1, 2: rows, 3: columns})
    depth = {0: 0, 1: 0, 2: plan.halo * scale if len(rows) > 1 else 0, 3: plan.halo * scale if len(columns) > 1 else 0}
    spread = overlap(data, depth=depth, boundary="none", allow_rechunk=False)
    out: da.Array = da.map_blocks(
        _one,
        spread,
        kernel=kernel,
        plan=plan,
        dtype=dtype,
        meta=np.empty((0, 0, 0, 0), dtype),
        chunks=((1,) * groups, (layers,), plan.row_chunks, plan.column_chunks),
    )
    return out


def chunks_like(data: da.Array, cells: Sequence[int], scale: int = 1, default: int = 1024) -> tuple[int, int]:
    """Return the rows and columns that a result's chunks should have: the input's, in cells, where they are sensible.

    Uniform chunks are what Zarr can store. The largest chunk of each axis is taken, no smaller than 256 pixels and
    no larger than ``default`` twice, whatever the input had.
    """
    found = (int(max(c)) for c in data.chunks[-2:])
    wanted = (min(max(n, 256), 2 * default) for n in found)
    rows, columns = (max(1, min(n // scale, size)) for n, size in zip(wanted, cells, strict=True))
    return rows, columns
