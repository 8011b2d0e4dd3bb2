"""Which chips are read together, and how they come out of cubes.

In: the plan of `plan_chips`, cubes and their labels. Out: chips in an order in which neighbours stand together, and the
pixels of some of them, cut out of as few parts of the cubes as can be. They are lazy until Dask computes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from dask.delayed import delayed
from numpy.typing import NDArray

from xgfm.cube.composite import composite
from xgfm.errors import CubeError, FramesError, LabelError, TrainError
from xgfm.grid import crs_name, geobox_of
from xgfm.train.chips.store import SPLITS

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

_PLANNED = ("source", "row", "column", "step", "x", "y", "group", "split")

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
                f"labels lie on {tuple(other.shape)} pixels of {_named(other)} from {its[[2, 5]].tolist()}, the "
                f"cube on {tuple(one.shape)} of {_named(one)} from {mine[[2, 5]].tolist()}; make them with "
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

    @property
    def steps(self) -> int:
        """Dates of the labels; 1 where they have none."""
        return len(self.dates) or 1

    def times(self, step: int) -> NDArray[np.datetime64]:
        """Return the dates of a chip."""
        times: NDArray[np.datetime64] = self.cube["time"].values
        return times[[self.dates[step]]] if self.dates else times

    def part(self, step: int, rows: slice, columns: slice) -> tuple[Any, Any]:
        """Return pixels ``(T, C, y, x)`` and labels ``(y, x)``, lazy where the cube is."""
        cube = self.cube.isel(time=[self.dates[step]]) if self.dates else self.cube
        labels = self.labels.isel(time=step) if self.dates else self.labels
        return cube.isel(y=rows, x=columns).data, labels.isel(y=rows, x=columns).data


def _named(box: GeoBox) -> str:
    return "no CRS" if box.crs is None else crs_name(box.crs)


def _dates(cube: xr.DataArray, labels: xr.DataArray, frames: int | None) -> tuple[int, ...]:
    if frames not in (None, 1):
        raise FramesError(f"frames={frames}, but these labels have a date each; leave frames= out, or drop their time")
    found = pd.DatetimeIndex(cube["time"].values).get_indexer(pd.DatetimeIndex(labels["time"].values))
    if (found < 0).any():
        missing = [str(t)[:19] for t in labels["time"].values[found < 0][:3]]
        raise LabelError(f"the cube has no date {missing} of the labels; make them with labels(source, cube, ...)")
    return tuple(found.tolist())


def check_plan(plan: pd.DataFrame, sources: list[Source], size: int) -> None:
    """Refuse a plan that is not of these cubes.

    Raises
    ------
    TrainError
        Columns that are missing, no chip, splits or label arrays that there are none of, chips beyond an edge.
    """
    if missing := [name for name in _PLANNED if name not in plan.columns]:
        raise TrainError(f"the plan has no columns {missing}; make it with plan_chips(labels, size={size})")
    if unknown := sorted(set(plan["split"]) - {*SPLITS, "none"}):
        raise TrainError(f"the plan has splits {unknown}; expected some of {[*SPLITS, 'none']}")
    if not (plan["split"] != "none").any():
        raise TrainError("the plan has no chip of any split; make it with other shares= or a smaller buffer=")
    if not plan["source"].between(0, len(sources) - 1).all():
        raise TrainError(f"the plan is of {int(plan['source'].max()) + 1} cubes, and {len(sources)} were given")
    for number, source in enumerate(sources):
        mine, sizes = plan[plan["source"] == number], source.cube.sizes
        for column, most in (("row", sizes["y"] - size), ("column", sizes["x"] - size), ("step", source.steps - 1)):
            if not mine[column].between(0, most).all():
                raise TrainError(
                    f"the plan has chips of {size} pixels at {column} {int(mine[column].min())} to "
                    f"{int(mine[column].max())} of cube {number}, where 0 to {most} are possible; make it from these "
                    "labels, with plan_chips"
                )


def ordered(plan: pd.DataFrame, sources: list[Source], size: int) -> pd.DataFrame:
    """Return the plan with neighbours next to each other, without the chips of a buffer."""
    table = plan[plan["split"] != "none"].copy()
    cell = np.array([max(min(_chunk(source.cube), _CELL), size) for source in sources])[table["source"]]
    table["down"], table["along"] = table["row"] // cell, table["column"] // cell
    return table.sort_values(["source", "step", "down", "along", "row", "column"]).reset_index(drop=True)


def _chunk(cube: xr.DataArray) -> int:
    return max((max(sizes) for dim, sizes in cube.chunksizes.items() if dim in ("y", "x")), default=_CELL)


def cut(rows: pd.DataFrame, sources: list[Source], size: int) -> Any:
    """Return the images ``(n, T, C, H, W)`` and labels ``(n, H, W)`` of some chips, as a Dask delayed value.

    Each part of a cube is let go when its chips are cut out.
    """
    parts = []
    for _, near in rows.groupby(["source", "step", "down", "along"], sort=False):
        source, step = (int(near[name].iloc[0]) for name in ("source", "step"))
        top, left = int(near["row"].min()), int(near["column"].min())
        bottom, right = int(near["row"].max()) + size, int(near["column"].max()) + size
        corners = list(zip((near["row"] - top).tolist(), (near["column"] - left).tolist(), strict=True))
        pixels, labels = sources[source].part(step, slice(top, bottom), slice(left, right))
        parts.append(delayed(_cut, pure=False)(pixels, labels, corners, size))
    return delayed(joined, pure=False)(parts)


def _cut(
    pixels: NDArray[Any], labels: NDArray[Any], corners: list[tuple[int, int]], size: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    windows = [np.s_[..., row : row + size, column : column + size] for row, column in corners]
    return np.stack([pixels[window] for window in windows]), np.stack([labels[window] for window in windows])


def joined(parts: list[tuple[NDArray[Any], NDArray[Any]]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Put images and labels of parts one after the other."""
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels)
