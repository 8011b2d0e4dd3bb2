"""Maps of years or seasons as one Dataset along time, each with the period that it stands for.

In: maps of one grid and one legend, as `predict` returns them or as they were reopened. Out: a Dataset
``(time, y, x)`` with bounds of time. Everything stays lazy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from xgfm import cf
from xgfm.climate.inputs import Legend, class_map
from xgfm.cube.periods import Period, TimeWindow, named_periods, time_coordinates
from xgfm.errors import CubeError, FramesError, GridError, LabelError
from xgfm.grid import crs_name, with_grid
from xgfm.store.layout import as_dataset, choose_variable

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

Array = np.ndarray[Any, Any]
Map = xr.Dataset | xr.DataArray


@dataclass(frozen=True)
class Classified:
    """A map of classes, its legend and its grid."""

    codes: xr.DataArray
    """``(..., y, x)`` uint8, 255 without a class; lazy as it came."""
    legend: Legend
    box: GeoBox


def stack_maps(maps: Sequence[Map] | Mapping[TimeWindow, Map], times: Sequence[TimeWindow] | None = None) -> xr.Dataset:
    """Stack maps of years or seasons along time, with the bounds of each.

    Parameters
    ----------
    maps : sequence or mapping
        Maps ``(y, x)``, or with a ``time`` of one step, as `predict` returns them or as they were reopened; in a
        mapping by their times. All on one grid and with one legend.
    times : sequence, optional
        The period of each: ``2024``, ``"2024-07"``, ``"2024-04/2024-10"``, ``("2024-04-15", "2024-10-15")`` or a date.
        Ends count. Without them the map's own: its bounds of time, the windows of its ``frames``, its ``dates``, or its
        ``time``.

    Returns
    -------
    Dataset
        ``(time, y, x)``, ``probability (time, class, y, x)``, in order of time, lazy: the variables that all maps have.
        ``time`` is the middle of each period and ``time_bnds`` its two ends. The attribute ``frames`` lists those of
        all maps, other attributes that differ are lists in order of time.

    Raises
    ------
    CubeError
        For no maps, other dims, or a map that does not say its time.
    FramesError
        For times that cannot be read, that are not one for each map, or that are the same for two.
    GridError
        For maps on different grids.
    LabelError
        For maps of different legends.

    Examples
    --------
    >>> xgfm.stack_maps([result_2023, result_2024], times=[2023, 2024])  # doctest: +SKIP
    """
    if isinstance(maps, str | PathLike | xr.Dataset | xr.DataArray):
        raise CubeError(f"maps= is one {type(maps).__name__}; give several opened maps: [map_2023, map_2024]")
    if isinstance(maps, Mapping):
        if times is not None:
            raise FramesError("maps= has its times as keys; leave times= out")
        maps, times = list(maps.values()), list(maps)
    flat = [_single(as_dataset(result), number) for number, result in enumerate(maps)]
    if not flat:
        raise CubeError("there is no map to stack; give maps= at least one")
    if times is not None and len(times) != len(flat):
        raise FramesError(f"times= has {len(times)} periods for {len(flat)} maps; give one for each")
    found = [_own_period(m, n) for n, m in enumerate(flat)] if times is None else [period_of(t) for t in times]
    order = sorted(range(len(flat)), key=lambda k: (found[k].start, found[k].stop))
    periods = [found[k] for k in order]
    twice = [a.bounds for a, b in pairwise(periods) if a == b]
    if twice:
        raise FramesError(f"two maps are of the period {twice[0]}; give each its own with times=")
    alike = _alike([flat[k] for k in order])
    stacked = xr.concat(
        alike, "time", data_vars="all", coords="minimal", compat="override", join="override", combine_attrs="override"
    )
    stacked = stacked.transpose("time", ...).assign_coords(time_coordinates(periods))
    stacked.attrs = _joined_attrs([m.attrs for m in alike])
    for name in stacked.data_vars:
        stacked[name].encoding = {**cf.fill_encoding(stacked[name].dtype), "grid_mapping": cf.GRID_MAPPING}
    return stacked


def classified(result: Map, variable: str | None = None) -> Classified:
    """Read the map of classes; one that was opened with masking gets its codes back. Lazy.

    Parameters
    ----------
    result : Dataset or DataArray
        With ``flag_values`` and ``flag_meanings`` on its map of classes.
    variable : str, optional
        The map, where there are several.

    Raises
    ------
    LabelError
        Where the map has no legend, or no class codes.
    GridError
        Without a CRS.
    """
    dataset = as_dataset(result)
    name = choose_variable(dataset, variable)
    read = class_map(name, dataset[[name]])
    return Classified(_codes(dataset[name]), read.legend, read.box)


def check_same(one: Classified, other: Classified) -> None:
    """Refuse two maps that do not share grid and legend."""
    legends = [dict(zip(m.legend.values, m.legend.names, strict=True)) for m in (one, other)]
    if legends[0] != legends[1]:
        raise LabelError(
            f"the maps have different legends, {legends[0]} and {legends[1]}; use maps of one task, or give both the "
            "same classes first"
        )
    first, second = one.box, other.box
    here = np.array((first.transform * (0, 0), first.transform * first.shape.xy))
    there = np.array((second.transform * (0, 0), second.transform * second.shape.xy))
    if first.crs != second.crs or first.shape != second.shape or np.abs(here - there).max() > 1e-3 * first.transform.a:
        raise GridError(
            f"the maps lie on different grids ({_said(first)}) and ({_said(second)}); bring one to the grid of the "
            "other: after.odc.reproject(before.odc.geobox, resampling='nearest')"
        )


def period_of(time: TimeWindow) -> Period:
    """Read the period of a map; see `stack_maps`."""
    if isinstance(time, str) and "/" in time:
        time = tuple(time.split("/"))
    if isinstance(time, np.datetime64 | pd.Timestamp):
        time = str(pd.Timestamp(time).date())
    return named_periods([time])[0]


def _codes(array: xr.DataArray) -> xr.DataArray:
    """Return codes as uint8: NaN and the map's own fill value become 255."""
    fill = array.attrs.get("_FillValue", array.encoding.get("_FillValue"))
    if array.dtype == np.uint8 and fill in (None, cf.NODATA):
        return array
    filled = array.fillna(cf.NODATA) if array.dtype.kind == "f" else array
    if fill is not None and array.dtype.kind != "f":
        filled = filled.where(filled != fill, cf.NODATA)
    codes = filled.astype("uint8", keep_attrs=True).assign_attrs(array.attrs)
    codes.attrs.pop("_FillValue", None)
    codes.encoding = {**cf.fill_encoding(codes.dtype), "grid_mapping": cf.GRID_MAPPING}
    return codes


def _single(dataset: xr.Dataset, number: int) -> xr.Dataset:
    """Return a map without its dimension of time; ``time`` and its bounds stay as coordinates of one value."""
    dataset = dataset.set_coords([n for n in ("time_bnds",) if n in dataset.data_vars])
    if dataset.sizes.get("time", 1) != 1:
        raise CubeError(
            f"map {number} has {dataset.sizes['time']} times; give them one by one: "
            "[result.isel(time=k) for k in range(result.sizes['time'])]"
        )
    return dataset.isel(time=0) if "time" in dataset.dims else dataset


def _own_period(dataset: xr.Dataset, number: int) -> Period:
    if "time_bnds" in dataset.coords:
        start, stop = (pd.Timestamp(t) for t in dataset["time_bnds"].values)
        return Period(start, stop)
    if frames := cf.frames_of(dataset.attrs):
        windows = [period_of(frame.get("window") or (min(frame["dates"]), max(frame["dates"]))) for frame in frames]
        return Period(min(w.start for w in windows), max(w.stop for w in windows))
    dates = dataset.attrs.get("dates")
    if dates is not None and len(dates):
        days = sorted([dates] if isinstance(dates, str) else [str(d) for d in dates])
        return period_of((days[0][:10], days[-1][:10]))
    if "time" in dataset.coords and not np.isnat(dataset["time"].values):
        return period_of(dataset["time"].values[()])
    raise CubeError(
        f"map {number} says no time in its coordinates, nor in its attributes frames and dates; give times= a period "
        "for each map, such as times=[2023, 2024]"
    )


def _alike(maps: list[xr.Dataset]) -> list[xr.Dataset]:
    """Return maps with the same variables, codes and grid, so that they can be put together without a look."""
    read = [classified(m) for m in maps]
    for other in read[1:]:
        check_same(read[0], other)
    name, box = read[0].codes.name, read[0].box
    renamed = [m.rename({one.codes.name: name}).assign({name: one.codes}) for m, one in zip(maps, read, strict=True)]
    shared = [n for n in renamed[0].data_vars if all(n in m.data_vars for m in renamed)]
    return [with_grid(m[shared].drop_vars(_of_one_date(m[shared])), box) for m in renamed]


def _of_one_date(dataset: xr.Dataset) -> list[Any]:
    """Return coordinates that were said of one date: its time, its sensor, its item."""
    alone = {n for n, c in dataset.coords.items() if c.ndim == 0 and n != cf.GRID_MAPPING}
    return [n for n in dataset.coords if n in alone or n == "time_bnds"]


def _joined_attrs(attrs: list[dict[Any, Any]]) -> dict[str, Any]:
    """Keep what is said of every map alike, list what differs, and put all frames and dates one after the other."""
    out: dict[str, Any] = {}
    for name in dict.fromkeys(n for one in attrs for n in one):
        values = [one.get(name) for one in attrs]
        if name == "frames":
            out[name] = json.dumps([frame for one in attrs for frame in cf.frames_of(one)])
        elif name == "dates":
            out[name] = [str(d) for v in values if v is not None for d in ([v] if isinstance(v, str) else v)]
        elif all(_same(v, values[0]) for v in values):
            out[name] = values[0]
        else:
            out[name] = ["" if v is None else v if isinstance(v, str) else json.dumps(v) for v in values]
    return out


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(np.array_equal(one, other))


def _said(box: GeoBox) -> str:
    crs = "no CRS" if box.crs is None else crs_name(box.crs)
    return f"{crs}, {box.shape[0]} x {box.shape[1]} pixels from {box.transform.c:g}, {box.transform.f:g}"
