"""From cubes and labels to chips on disk.

In: lazy cubes, their label arrays and a plan of chips. Out: one Zarr store of training samples, see
`xgfm.train.chips.store`. Dask reads neighbouring chips together; nothing is read before everything is checked.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from xgfm.errors import LabelError, TrainError
from xgfm.grid import geobox_of, pixel_size_m
from xgfm.infer.check import units_of
from xgfm.jobs.region import DEGREES, transformer
from xgfm.train.chips.lots import Source, check_plan, cut, ordered
from xgfm.train.chips.records import identity, lineage
from xgfm.train.chips.store import ChipFacts, Chips, Sample, open_chips
from xgfm.train.chips.writing import MAX_FAILED, Draft, write
from xgfm.train.sampling.counts import common_classes
from xgfm.train.sampling.plan import plan_chips

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["ChipFacts", "Chips", "Sample", "open_chips", "write_chips"]


def write_chips(
    cube: xr.DataArray | Sequence[xr.DataArray],
    labels: xr.DataArray | Sequence[xr.DataArray],
    store: str | os.PathLike[str],
    plan: pd.DataFrame | None = None,
    *,
    size: int = 224,
    frames: int | None = None,
    client: Client | None = None,
    attempts: int = 3,
    max_failed: float = MAX_FAILED,
    **sampling: Any,
) -> Chips:
    """Cut labelled chips out of cubes and write them, once.

    Parameters
    ----------
    cube : DataArray or sequence of DataArray
        ``(time, band, y, x)``, lazy or not; of the same bands, units and pixel size.
    labels : DataArray or sequence of DataArray
        Of each cube, on its grid: what `xgfm.labels` gives. With a ``time``, every date is a chip of one frame.
    store : path or URL
        Of a Zarr store. One that an earlier call began is finished; a finished one is opened.
    plan : DataFrame, optional
        What `plan_chips` gave; by default it is made of ``size`` and ``sampling``.
    size : int
        Rows and columns of a chip; of a given plan, its own.
    frames : int, optional
        Frames of a chip. A longer cube is composited; by default all its dates are frames.
    client : Client, optional
        Dask client whose workers read; by default the threads of this process.
    attempts : int
        Times that neighbouring chips are read before they are read one by one, and those that fail are left out.
    max_failed : float
        Greatest share of the chips that may be left out so; they are listed in ``facts.failed``.
    **sampling
        Of `plan_chips`: ``split=``, ``shares=``, ``block=``, ``buffer=``, ``balance=``, ``chips=``, ``seed=``, ...

    Returns
    -------
    Chips

    Raises
    ------
    LabelError
        Labels that do not lie on their cube, have no date of it, or leave a split without a class.
    CubeError, FramesError, UnitsError
        Cubes that differ, or have too few dates; before any pixel is read.
    TrainError
        Cubes that are not alike, a plan of other cubes, a store that holds other chips.
    ReadError
        More chips than ``max_failed`` cannot be read.
    WriteError
        The disk is full, or the store cannot be written.
    """
    cubes, arrays = ([one] if isinstance(one, xr.DataArray) else list(one) for one in (cube, labels))
    if len(cubes) != len(arrays) or not cubes:
        raise LabelError(f"{len(cubes)} cubes and {len(arrays)} label arrays; give one of each for every place")
    if plan is not None and sampling:
        raise TrainError(f"{sorted(sampling)} are options of a plan, and plan= is given; leave one of them out")
    sources = [Source.of(c, a, frames) for c, a in zip(cubes, arrays, strict=True)]
    _check_alike(sources)
    plan = plan_chips(arrays, size=size, **sampling) if plan is None else plan
    size = int(plan.attrs.get("size", size))
    check_plan(plan, sources, size)
    draft = _draft(sources, ordered(plan, sources, size), size)
    return write(draft, os.fspath(store), client=client, attempts=attempts, max_failed=max_failed)


def _check_alike(sources: list[Source]) -> None:
    first, expected = sources[0], "u1" if common_classes([source.labels for source in sources]) else "f4"
    for number, source in enumerate(sources):
        for what, mine, its in (
            ("bands", first.cube["band"].values.tolist(), source.cube["band"].values.tolist()),
            ("dtype", str(first.cube.dtype), str(source.cube.dtype)),
            ("frames", first.frames, source.frames),
            ("units", units_of(first.cube), units_of(source.cube)),
            ("label units", _units(first), _units(source)),
        ):
            if mine != its:
                raise TrainError(f"cube {number} has {what} {its}, cube 0 has {mine}; chips of one store are alike")
        if source.labels.dtype != np.dtype(expected):
            raise LabelError(
                f"labels {number} are {source.labels.dtype}; expected {np.dtype(expected)}, as labels(source, cube) "
                "makes them"
            )
        if not 0.95 < _metres(source) / _metres(first) < 1.05:
            raise TrainError(
                f"cube {number} has pixels of {_metres(source)} m, cube 0 of {_metres(first)} m; open the cubes of one "
                "store with the same resolution="
            )


def _metres(source: Source) -> float:
    return float(f"{pixel_size_m(geobox_of(source.cube)):.3g}")  # projections stretch the ground a little


def _units(source: Source) -> str:
    return str(source.labels.attrs.get("units", "1"))


def _draft(sources: list[Source], table: pd.DataFrame, size: int) -> Draft:
    first = sources[0]
    units = units_of(first.cube)
    lon, lat = _lonlat(table, sources)
    dates = [sources[source].times(step) for source, step in zip(table["source"], table["step"], strict=True)]
    return Draft(
        bands=tuple(first.cube["band"].values.tolist()),
        frames=first.frames,
        size=size,
        dtype=first.cube.dtype,
        nodata=units.nodata,
        reflectance_scale=units.reflectance_scale,
        pixel_size=_metres(first),
        classes=common_classes([source.labels for source in sources]),
        units=_units(first),
        lineage=tuple(lineage(source) for source in sources),
        table=table.assign(lon=lon, lat=lat),
        dates=np.stack(dates),
        identity=identity(table, sources, size),
        read=lambda rows: cut(rows, sources, size),
    )


def _lonlat(table: pd.DataFrame, sources: list[Source]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    lon, lat = np.empty(len(table)), np.empty(len(table))
    for number, source in enumerate(sources):
        mine = (table["source"] == number).to_numpy()
        there = transformer(geobox_of(source.cube).crs, DEGREES)
        lon[mine], lat[mine] = there.transform(table.loc[mine, "x"].to_numpy(), table.loc[mine, "y"].to_numpy())
    return lon, lat
