"""The Dask call: a kernel over the blocks of a window plan.

In: a Dask array ``(time, band, y, x)`` in any chunking. Out: a lazy Dask array ``(group, layer, y, x)``, where a group
is the frames that the model takes at once. Every layer of the graph but the input's own is described, not listed, so a
graph of many chunks stays small until it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

import dask.array as da
import numpy as np
from dask.array.overlap import overlap

from xgfm.infer.surroundings import with_surroundings
from xgfm.windows import AxisPlan, Block, WindowPlan

_TOO_LARGE = 2048
"""Rows or columns above which a chunk is split: a block is worked on whole."""
_BLOCK = 1024
"""Rows and columns that a block gets where the input's chunks do not serve."""


class BlockFunction(Protocol):
    """A kernel with its settings, small enough to travel in the graph."""

    def __call__(self, block: np.ndarray, place: Block, first_frame: int) -> np.ndarray:
        """Return ``(group, layer, y, x)`` for the frames of some groups, ``(frame, band, y, x)``."""


def map_windows(
    data: da.Array,
    origin: Sequence[int],
    kernel: BlockFunction,
    *,
    window: int,
    halo: int,
    frames: int,
    layers: int,
    dtype: str,
    scale: int = 1,
    blend: bool = False,
) -> da.Array:
    """Apply a kernel to the windows of a raster, block by block, lazily.

    Parameters
    ----------
    data
        ``(time, band, y, x)``.
    origin
        Row and column of its first pixel on the lattice counted from the CRS origin.
    kernel
        What is done with one block, which holds whole groups of frames.
    window, halo
        Pixels that the model sees at once, and pixels at each edge whose output is thrown away.
    frames
        Time steps of a group.
    layers
        Length of the answer's second axis.
    dtype
        Of the answer.
    scale
        Pixels of a cell of the answer, along y and x.
    blend
        Whether a pixel takes something from every window that reaches it.

    Returns
    -------
    dask.array.Array
        ``(group, layer, y, x)`` in chunks that Zarr can store, like the input's where those serve.
    """
    wanted = output_chunks(data, scale)
    data = _whole_groups(data, frames)
    axes = [AxisPlan(n, o, window, halo, blend) for n, o in zip(data.shape[2:], origin, strict=True)]
    data = data.rechunk({2 + i: _block_chunks(data.chunks[2 + i], axis) for i, axis in enumerate(axes)})
    cuts = [tuple(accumulate(chunks, initial=0)) for chunks in data.chunks[2:]]
    windows = WindowPlan.of(axes, cuts)
    out: da.Array = da.map_blocks(
        _one,
        with_surroundings(data, windows),
        kernel=kernel,
        plan=windows,
        first=tuple(accumulate(data.chunks[0], initial=0)),
        dtype=dtype,
        meta=np.empty((0, 0, 0, 0), dtype),
        chunks=(
            tuple(n // frames for n in data.chunks[0]),
            (layers,),
            *(tuple(n // scale for n in np.diff(edges).tolist()) for edges in windows.edges),
        ),
    )
    if scale == 1 and data.chunks[2:] == wanted:
        out = _settle(out, windows)
    settled: da.Array = out.rechunk({2: wanted[0], 3: wanted[1]})
    return settled


def output_chunks(data: da.Array, scale: int = 1) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return chunks of rows and columns of an answer: uniform, as Zarr asks, and like the input's where those are."""
    found: list[tuple[int, ...]] = []
    for axis in (2, 3):
        chunks, size = data.chunks[axis], data.shape[axis] // scale
        first = chunks[0] // scale if 256 <= chunks[0] <= _TOO_LARGE else _BLOCK // scale
        whole, rest = divmod(size, min(first, size))
        found.append((min(first, size),) * whole + ((rest,) if rest else ()))
    return found[0], found[1]


def _whole_groups(data: da.Array, frames: int) -> da.Array:
    """Bring every band, and all frames of a group, into one chunk, without touching the others."""
    if all(n % frames == 0 for n in data.chunks[0]):
        kept, joined = "t", {}
    elif data.shape[0] == frames:
        kept, joined = "g", {"g": frames}
    else:
        return _whole_groups(data.rechunk({0: frames}), frames)
    if data.numblocks[1] == 1 and kept == "t":
        return data
    bands = data.shape[1]
    whole: da.Array = da.blockwise(
        _joined, f"{kept}cyx", data, "tbyx", new_axes={**joined, "c": bands}, concatenate=True, dtype=data.dtype
    )
    return whole


def _joined(block: np.ndarray) -> np.ndarray:
    return block


def _block_chunks(chunks: tuple[int, ...], axis: AxisPlan) -> tuple[int, ...]:
    """Return the input's chunks where blocks can be made of them, else chunks that they can be made of."""
    least, last = axis.least, axis.least_last
    if (
        max(chunks) <= _TOO_LARGE
        and min(chunks[:-1], default=least) >= least
        and (chunks[-1] >= last or not chunks[:-1])
    ):
        return chunks
    block = max(_BLOCK // chunks[0] * chunks[0], least)
    whole, rest = divmod(axis.size, block)
    if whole and rest < last:
        return (block,) * (whole - 1) + (block + rest,)
    return (block,) * whole + ((rest,) if rest else ())


def _one(
    block: np.ndarray,
    *,
    kernel: BlockFunction,
    plan: WindowPlan,
    first: tuple[int, ...],
    block_id: tuple[int, ...],
) -> np.ndarray:
    return kernel(block, plan.block(block_id[2], block_id[3]), first[block_id[0]])


def _settle(out: da.Array, windows: WindowPlan) -> da.Array:
    """Move the borders of the answer's chunks from where windows meet to where the input's chunks do.

    A block begins up to a stride before its chunk: what it has too much belongs to the chunk before.
    """
    shifts = [[c - e for c, e in zip(*both, strict=True)] for both in zip(windows.cuts, windows.edges, strict=True)]
    depth = {2 + i: (0, max(s)) for i, s in enumerate(shifts)}
    moved: da.Array = da.map_blocks(
        _shifted,
        overlap(out, depth={0: 0, 1: 0, **depth}, boundary="none", allow_rechunk=False),
        plan=windows,
        dtype=out.dtype,
        meta=np.empty((0, 0, 0, 0), out.dtype),
        chunks=(*out.chunks[:2], *(tuple(np.diff(cuts).tolist()) for cuts in windows.cuts)),
    )
    return moved


def _shifted(block: np.ndarray, *, plan: WindowPlan, block_id: tuple[int, ...]) -> np.ndarray:
    rows, columns = (
        slice(cuts[i] - edges[i], cuts[i + 1] - edges[i])
        for cuts, edges, i in zip(plan.cuts, plan.edges, block_id[2:], strict=True)
    )
    return block[:, :, rows, columns]
