"""The Dask call, with a kernel that writes down which window each pixel came from."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from itertools import pairwise

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xgfm.infer.blocks import map_windows
from xgfm.windows import AxisPlan, Block


@dataclass(frozen=True)
class Trace:
    """Writes the window's start, and the sum of all that the window sees, into the window's inner part."""

    window: int
    frames: int = 3

    def __call__(self, block: np.ndarray, place: Block, first_frame: int) -> np.ndarray:
        rows, columns = place.rows, place.columns
        assert block.shape[2:] == (rows.read_stop - rows.read_start, columns.read_stop - columns.read_start)
        groups = np.arange(0, len(block), self.frames)
        out = np.full((len(groups), 4, rows.stop - rows.start, columns.stop - columns.start), -1, "int64")
        for r, c in place.windows():
            top, left = r.start - rows.read_start, c.start - columns.read_start
            assert top >= 0
            assert left >= 0
            seen = block[:, :, top : top + self.window, left : left + self.window]
            inner = (
                slice(r.inner_start - rows.start, r.inner_stop - rows.start),
                slice(c.inner_start - columns.start, c.inner_stop - columns.start),
            )
            sums = np.add.reduceat(seen.sum((1, 2, 3), dtype="int64"), groups)
            for layer, value in enumerate((r.start, c.start, sums[:, None, None], first_frame + groups[:, None, None])):
                out[(slice(None), layer, *inner)] = value
        return out


@st.composite
def chunkings(draw: st.DrawFn, size: int) -> tuple[int, ...]:
    cuts = draw(st.lists(st.integers(1, size - 1), max_size=5, unique=True)) if size > 1 else []
    uniform = draw(st.one_of(st.none(), st.integers(1, size)))
    if uniform is not None:
        return (uniform,) * (size // uniform) + ((size % uniform,) if size % uniform else ())
    return tuple(b - a for a, b in pairwise([0, *sorted(cuts), size]))


@settings(deadline=None, max_examples=25)
@given(data=st.data(), rows=st.integers(1, 1500), columns=st.integers(1, 500), frames=st.sampled_from([1, 3]))
def test_every_pixel_has_its_window_in_any_chunking(data: st.DataObject, rows: int, columns: int, frames: int) -> None:
    window = data.draw(st.sampled_from([60, 101]))
    halo = data.draw(st.integers(0, 15))
    origin = data.draw(st.tuples(st.integers(-9999, 9999), st.integers(-9999, 9999)))
    times = 6 if frames == 1 else data.draw(st.sampled_from([3, 6]))
    values = np.arange(times * 2 * rows * columns, dtype="int32").reshape(times, 2, rows, columns) % 9973
    chunks = tuple(data.draw(chunkings(n)) for n in (times, 2, rows, columns))
    out = map_windows(
        da.from_array(values, chunks=chunks),
        origin,
        Trace(window, frames),
        window=window,
        halo=halo,
        frames=frames,
        layers=4,
        dtype="int64",
    )
    assert out.shape == (times // frames, 4, rows, columns)
    for axis in (2, 3):  # what Zarr can store
        assert len(set(out.chunks[axis][:-1])) <= 1
        assert out.chunks[axis][-1] <= out.chunks[axis][0]
    seen = out.compute(scheduler="sync")
    total = np.pad(
        values.reshape(-1, frames * 2, rows, columns).sum(1, dtype="int64").cumsum(1).cumsum(2),
        ((0, 0), (1, 0), (1, 0)),
    )
    for r in AxisPlan(rows, origin[0], window, halo).windows():
        for c in AxisPlan(columns, origin[1], window, halo).windows():
            inner = seen[:, :, r.inner_start : r.inner_stop, c.inner_start : c.inner_stop]
            bottom, right = min(r.start + window, rows), min(c.start + window, columns)
            sums = (
                total[:, bottom, right]
                - total[:, r.start, right]
                - total[:, bottom, c.start]
                + total[:, r.start, c.start]
            )
            assert (inner[:, 0] == r.start).all()
            assert (inner[:, 1] == c.start).all()
            assert (inner[:, 2] == sums[:, None, None]).all()
            assert (inner[:, 3] == np.arange(0, times, frames)[:, None, None]).all()


def tile_of(count: int) -> da.Array:
    """Return count x count chunks of 1024 pixels, by band and by date, as a STAC loader makes them."""
    size = 1024 * count
    return da.zeros((3, 6, size, size), dtype="int16", chunks=(1, 1, 1024, 1024))


def mapped(data: da.Array) -> da.Array:
    return map_windows(data, (7, 11), Trace(224), window=224, halo=16, frames=3, layers=1, dtype="uint8")


def test_a_graph_stays_small() -> None:
    out = mapped(tile_of(160))  # 25,600 chunks
    assert len(pickle.dumps(out.__dask_graph__())) < 3_000_000
    assert out.numblocks[2:] == (160, 160)


@pytest.mark.parametrize("count", [4, 10])
def test_tasks_per_chunk_are_few(count: int) -> None:
    (optimised,) = dask.optimize(mapped(tile_of(count)))
    tasks = len(dict(optimised.__dask_graph__())) / count**2
    assert tasks <= 36, tasks  # 18 of them read


def test_the_inputs_chunks_are_kept() -> None:
    assert mapped(tile_of(3)).chunks[2:] == ((1024,) * 3,) * 2
