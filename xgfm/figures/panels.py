"""What stands in each picture of a figure: colours or numbers, where they lie, and a title.

In: computed maps or bands. Out: a list of `Panel`. Nothing is lazy.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from xgfm.cf import CLASS_DIM, NODATA, flags_of, frames_of
from xgfm.errors import BandError, CubeError
from xgfm.grid import geobox_of
from xgfm.palette import EMPTY

STRETCH = (2.0, 98.0)
"""Percentiles of a band, over all frames, that are drawn dark and bright."""
BRIGHTEST = 4.0
"""The bright end is at most so many times as far from the dark end as the median is; clear land stays below."""
TITLE = 36
"""Letters in a line of a title."""
RGB = ("red", "green", "blue")

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture of a figure."""

    values: Array
    """(y, x, 3) colours from 0 to 1, or (y, x) floats, NaN without data."""
    extent: tuple[float, float, float, float]
    """Left, right, bottom, top in the units of the CRS."""
    title: str


# ---- maps


def require_map(layer: xr.DataArray) -> None:
    """Refuse what has no pixels ``(y, x)`` to draw.

    Raises
    ------
    CubeError
        For other dims; it says what draws them.
    """
    if {"y", "x"} <= set(layer.dims):
        return
    if {"lat", "lon"} <= set(layer.dims):
        steps = {str(dim): 0 for dim in layer.dims if dim not in ("lat", "lon")}
        one = f".isel({steps})" if steps else ""
        raise CubeError(
            f"{layer.name!r} has dims {layer.dims}: it lies on a climate grid, and pictures are of maps (y, x); "
            f"draw it with xarray, result[{layer.name!r}]{one}.plot()"
        )
    raise CubeError(f"{layer.name!r} has dims {layer.dims}; a map has y and x, name another one with variable=")


def series_of(layer: xr.DataArray) -> xr.DataArray:
    """Return a map, or several of them, as ``(step, y, x)``, where steps are called time or class where they are that.

    Raises
    ------
    CubeError
        For other dims.
    """
    if layer.dims == ("y", "x"):
        return layer.expand_dims("step")
    if layer.dims[1:] == ("y", "x") and layer.dims[0] in ("time", CLASS_DIM):
        return layer
    raise CubeError(
        f"{layer.name!r} has dims {layer.dims}; a map has (y, x), (time, y, x) or (class, y, x), choose with "
        "result.isel"
    )


def is_classes(layer: xr.DataArray) -> bool:
    """Tell whether a map is one of classes."""
    return "flag_values" in layer.attrs


def map_panels(maps: xr.DataArray, facts: Mapping[str, Any]) -> list[Panel]:
    """Return the pictures of computed maps ``(step, y, x)``.

    Parameters
    ----------
    maps : DataArray
        Of class numbers, 255 or NaN without data, or of numbers.
    facts : mapping
        Attributes of the Dataset that they are from: they say of which dates it was made.
    """
    drawn = colored(maps) if is_classes(maps) else maps.values.astype("float32")
    extent = extent_of(maps)
    return [Panel(v, extent, t) for v, t in zip(drawn, _map_titles(maps, facts), strict=True)]


def colored(maps: xr.DataArray) -> Array:
    """Return the colours ``(..., y, x, 3)`` of class numbers; decoded ones are floats with NaN."""
    table = np.tile(np.array(rgb(EMPTY)), (NODATA + 1, 1))
    for flag in flags_of(maps):
        table[flag.number] = rgb(flag.color)
    colors: Array = table[maps.fillna(NODATA).values.astype("uint8")]
    return colors


def _map_titles(maps: xr.DataArray, facts: Mapping[str, Any]) -> list[str]:
    """Name of the map, and below it the class, the date, or the period of the frames that it was made of."""
    name = textwrap.fill(str(maps.attrs.get("long_name", maps.name)), TITLE)
    if CLASS_DIM in maps.dims:
        return [f"{name}\n{one}" for one in _class_names(maps.coords[CLASS_DIM])]
    if "time" in maps.coords:
        return [f"{name}\n{str(t)[:10]}" for t in maps.time.values.reshape(-1)]
    windows = [str(d) for fact in frames_of(facts) for d in fact.get("window", [])]
    return [f"{name}\n{_period(windows or facts.get('dates', []))}".rstrip()] * len(maps)


def _class_names(classes: xr.DataArray) -> list[str]:
    if not is_classes(classes):
        return [str(value) for value in classes.values]
    names = {flag.number: flag.name for flag in flags_of(classes)}
    return [names.get(int(number), str(number)) for number in classes.values]


# ---- frames


def color_bands(cube: xr.DataArray) -> xr.DataArray:
    """Return the bands of a cube that make true colour, ``(time, band, y, x)``. Lazy.

    Raises
    ------
    CubeError, BandError
        For other dims, or where one of them is missing.
    """
    if set(cube.dims) != {"time", "band", "y", "x"} or "band" not in cube.coords:
        raise CubeError(f"frames have dims {cube.dims}; expected a cube (time, band, y, x) with named bands")
    missing = [b for b in RGB if b not in cube.coords["band"].values]
    if missing:
        raise BandError(
            f"true colour needs bands {list(RGB)}; the cube has {cube.band.values.tolist()}, missing {missing}"
        )
    return cube.sel(band=list(RGB)).transpose("time", "band", "y", "x")


def frame_panels(colors: xr.DataArray) -> list[Panel]:
    """Return the pictures of computed bands (time, band, y, x), with one stretch for all frames."""
    nodata = colors.attrs.get("nodata", -9999 if colors.dtype.kind == "i" else math.nan)
    missing = (colors.isnull() | (colors == nodata)).any("band").values
    values = np.where(missing[:, None], np.nan, colors.values.astype("float32"))
    low, high = _stretch(np.moveaxis(values, 1, -1)[~missing])
    stretched = (np.moveaxis(values, 1, -1) - low) / np.maximum(high - low, 1e-12)
    drawn = np.where(missing[..., None], rgb(EMPTY), np.clip(stretched, 0, 1))
    extent = extent_of(colors)
    return [Panel(frame, extent, title) for frame, title in zip(drawn, _frame_titles(colors), strict=True)]


def _stretch(seen: Array) -> tuple[Array, Array]:
    """Dark and bright end of each band of (pixel, band), where clouds, if any, do not darken the land."""
    if not seen.size:
        return np.zeros(3), np.ones(3)
    low, middle, high = np.percentile(seen, (STRETCH[0], 50, STRETCH[1]), axis=0)
    return low, np.minimum(high, low + BRIGHTEST * (middle - low))


def _frame_titles(cube: xr.DataArray) -> list[str]:
    """The window that each frame stands for, or its date."""
    facts = frames_of(cube.attrs)
    if len(facts) == cube.sizes["time"]:
        return [_period([str(d) for d in fact["window"]]) for fact in facts]
    return [str(t)[:10] for t in cube.time.values]


def _period(dates: Sequence[str]) -> str:
    days = sorted({d[:10] for d in dates})
    return " to ".join(dict.fromkeys([days[0], days[-1]])) if days else ""


# ---- both


def rgb(color: str) -> tuple[float, float, float]:
    """Return ``#rrggbb`` as numbers from 0 to 1."""
    return tuple(int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))  # type: ignore[return-value]


def extent_of(array: xr.DataArray) -> tuple[float, float, float, float]:
    """Return left, right, bottom and top of a map in the units of its CRS."""
    box = geobox_of(array).boundingbox
    return box.left, box.right, box.bottom, box.top
