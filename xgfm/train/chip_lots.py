"""Which chips are read together, and how they come out of cubes.

In: the plan of `plan_chips`, cubes and their labels. Out: lots, each of which becomes one shard: neighbouring chips,
whose pixels are cut out of as few parts of the cubes as can be. A lot is lazy until Dask computes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from dask.delayed import delayed
from numpy.typing import NDArray

from xgfm.cube.composite import composite
from xgfm.errors import CubeError, FramesError, LabelError
from xgfm.grid import geobox_of

_LOT_BYTES = 64 << 20
_LOT_CHIPS = 64
_CELL = 2048
"""Pixels: the most that a side of a part of a cube is, unless a chip is larger."""


@dataclass(frozen=True)
class Source:
    """A cube and its labels on one grid."""

    cube: xr.DataArray
    """``(time, band, y, x)``: the frames of every chip, or all dates of which each chip is one."""
    labels: xr.DataArray
    dates: tuple[int, ...]
    """Step of the cube for each step of the labels; empty where labels have no time."""

    @classmethod
    def of(cls, cube: xr.DataArray, labels: xr.DataArray, frames: int | None) -> Source:
        """Check that cube and labels fit each other, and make frames of the cube's dates."""
        if not isinstance(cube, xr.DataArray) or cube.dims != ("time", "band", "y", "x"):
            raise CubeError(f"a cube has dims (time, band, y, x); got {getattr(cube, 'dims', type(cube).__name__)}")
        one, other = geobox_of(cube), geobox_of(labels)
        same = one.crs == other.crs and one.shape == other.shape
        mine, its = (np.array(box.transform[:6], float) for box in (one, other))
        if not (same and np.allclose(mine, its, rtol=0, atol=1e-3 * abs(one.resolution.x))):
            raise LabelError(
                f"labels lie on {tuple(other.shape)} pixels of {other.crs} from {its[[2, 5]].tolist()}, the cube "
                f"on {tuple(one.shape)} of {one.crs} from {mine[[2, 5]].tolist()}; make them with "
                "labels(source, cube)"
            )
        if "time" in labels.dims:
            return cls(cube, labels, _dates(cube, labels, frames))
        there, wanted = cube.sizes["time"], cube.sizes["time"] if frames is None else frames
        if there < wanted:
            raise FramesError(f"frames={wanted}, the cube has {there} dates; open a longer series with datetime=")
        return cls(composite(cube, wanted) if there > wanted else cube, labels, ())

    @property
    def frames(self) -> int:
        """Dates of a chip."""
        return 1 if self.dates else self.cube.sizes["time"]

    def times(self, step: int) -> NDArray[np.datetime64]:
        """Return the dates of a chip."""
        times: NDArray[np.datetime64] = self.cube["time"].values
        return times[[self.dates[step]]] if self.dates else times

    def part(self, step: int, rows: slice, columns: slice) -> tuple[Any, Any]:
        """Return pixels ``(T, C, y, x)`` and labels ``(y, x)``, lazy where the cube is."""
        cube = self.cube.isel(time=[self.dates[step]]) if self.dates else self.cube
        labels = self.labels.isel(time=step) if self.dates else self.labels
        return cube.isel(y=rows, x=columns).data, labels.isel(y=rows, x=columns).data


def _dates(cube: xr.DataArray, labels: xr.DataArray, frames: int | None) -> tuple[int, ...]:
    if frames not in (None, 1):
        raise FramesError(f"frames={frames}, but these labels have a date each; leave frames= out, or drop their time")
    found = pd.DatetimeIndex(cube["time"].values).get_indexer(pd.DatetimeIndex(labels["time"].values))
    if (found < 0).any():
        missing = [str(t)[:19] for t in labels["time"].values[found < 0][:3]]
        raise LabelError(f"the cube has no date {missing} of the labels; make them with labels(source, cube, ...)")
    return tuple(found.tolist())


def ordered(plan: pd.DataFrame, sources: list[Source], size: int) -> pd.DataFrame:
    """Return the plan with neighbours next to each other, without the chips of a buffer."""
    table = plan[plan["split"] != "none"].copy()
    cell = np.array([max(min(_chunk(source.cube), _CELL), size) for source in sources])[table["source"]]
    table["down"], table["along"] = table["row"] // cell, table["column"] // cell
    return table.sort_values(["source", "step", "down", "along", "row", "column"]).reset_index(drop=True)


def _chunk(cube: xr.DataArray) -> int:
    return max((max(sizes) for dim, sizes in cube.chunksizes.items() if dim in ("y", "x")), default=_CELL)


def lot_size(source: Source, size: int) -> int:
    """Return how many chips a shard holds."""
    chip = source.frames * source.cube.sizes["band"] * size * size * source.cube.dtype.itemsize
    return int(np.clip(_LOT_BYTES // chip, 1, _LOT_CHIPS))


def lot_of(table: pd.DataFrame, sources: list[Source], size: int) -> Any:
    """Return the images ``(n, T, C, H, W)`` and labels ``(n, H, W)`` of some chips, as a Dask delayed value."""
    pieces = []
    for _, rows in table.groupby(["source", "step", "down", "along"], sort=False):
        source, step = (int(rows[name].iloc[0]) for name in ("source", "step"))
        top, left = int(rows["row"].min()), int(rows["column"].min())
        bottom, right = int(rows["row"].max()) + size, int(rows["column"].max()) + size
        corners = list(zip((rows["row"] - top).tolist(), (rows["column"] - left).tolist(), strict=True))
        pieces.append((*sources[source].part(step, slice(top, bottom), slice(left, right)), corners))
    return delayed(_cut, pure=False)(pieces, size)


def _cut(pieces: list[tuple[Any, Any, list[tuple[int, int]]]], size: int) -> tuple[NDArray[Any], NDArray[Any]]:
    images, labels = [], []
    for pixels, label, corners in pieces:
        for row, column in corners:
            window = np.s_[..., row : row + size, column : column + size]
            images.append(np.asarray(pixels)[window])
            labels.append(np.asarray(label)[window])
    return np.stack(images), np.stack(labels)
