"""What the classes of a map look like through the season: their NDVI, date by date.

In: a cube with all its dates, and a map of the same ground. Out: a matplotlib ``Figure``. This computes, but no more
than some `PIXELS` rows and columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xgfm.cf import flags_of
from xgfm.errors import BandError, CubeError, GridError
from xgfm.figures.layout import rows_and_columns
from xgfm.figures.levels import strided
from xgfm.figures.panels import is_classes
from xgfm.grid import geobox_of
from xgfm.notebook import subplots
from xgfm.store.layout import as_dataset, choose_variable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS = 512
"""Most rows or columns that are computed."""
LEAST = 5
"""Fewest clear pixels of a class that a date is drawn of."""
CLASSES = 24
"""Most classes of a figure."""
BANDS = ("red", "nir08")

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Profile:
    """NDVI of one class through time."""

    name: str
    color: str
    pixels: int
    """Of the class."""
    time: Array
    """``(date,)`` with at least `LEAST` clear pixels, in order."""
    quartiles: Array
    """``(3, date)``: lower quartile, median, upper quartile."""


def plot_profiles(
    cube: xr.DataArray,
    result: xr.Dataset | xr.DataArray,
    *,
    variable: str | None = None,
    pixels: int = PIXELS,
) -> Figure:
    """Draw the NDVI of each class through the season: a picture for each, with the others behind it in grey.

    Parameters
    ----------
    cube : DataArray
        Dims ``(time, band, y, x)``, masked, with bands red and nir08. Computed here.
    result : Dataset or DataArray
        A map of classes, or labels, ``(y, x)`` on the cube's grid.
    variable : str, optional
        Which one; by default the class map, or the only one there is.
    pixels : int
        Most rows or columns that are computed; of larger cubes every n-th.

    Returns
    -------
    Figure
        A line is the median over the pixels of a class, the band holds the middle half of them. Dates with fewer than
        5 clear pixels of a class are left out. Of more than 24 classes, those of most pixels are drawn, and the
        figure says so.

    Raises
    ------
    CubeError, BandError, GridError
        For other dims or bands, another grid, or a map without a pixel of any class.
    MissingExtraError
        Where matplotlib is not installed.
    """
    found = profiles(cube, result, variable=variable, pixels=pixels)
    drawn = sorted(found, key=lambda p: -p.pixels)[:CLASSES]
    shown = [p for p in found if p in drawn]
    rows, columns = rows_and_columns(len(shown))
    figure, axes = subplots(
        rows, columns, figsize=(2.7 * columns + 0.8, 1.9 * rows + 0.7), sharex=True, sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis in axes.flat[len(shown) :]:
        axis.remove()
    for axis, own in zip(axes.flat, shown, strict=False):
        _draw(axis, own, shown)
    lowest = min((float(p.quartiles.min()) for p in shown if p.quartiles.size), default=0.0)
    axes[0, 0].set_ylim(min(lowest, 0.0) - 0.05, 1)
    _name_dates(axes, len(shown))
    figure.supylabel("NDVI", fontsize="medium")
    if len(shown) < len(found):
        figure.suptitle(f"the {len(shown)} of {len(found)} classes with most pixels", fontsize="medium")
    return figure


def profiles(
    cube: xr.DataArray, result: xr.Dataset | xr.DataArray, *, variable: str | None = None, pixels: int = PIXELS
) -> list[Profile]:
    """Return what `plot_profiles` draws: the profile of each class that has a pixel, in the order of the classes."""
    layer = _map_of(cube, result, variable)
    colors = _bands(cube)
    index, classes = _computed(strided(colors, pixels), strided(layer, pixels))
    order = np.argsort(cube.time.values, kind="stable")
    times, index = cube.time.values[order], index[order]
    made = [_profile(flag.name, flag.color, times, index[:, classes == flag.number]) for flag in flags_of(layer)]
    kept = [profile for profile in made if profile.pixels]
    if not kept:
        raise CubeError(f"{layer.name!r} has no pixel of any class here; give a map that is not all nodata")
    return kept


def _map_of(cube: xr.DataArray, result: xr.Dataset | xr.DataArray, variable: str | None) -> xr.DataArray:
    """Return the map of classes, which lies on the cube's grid."""
    dataset = as_dataset(result)
    layer = dataset[choose_variable(dataset, variable)]
    if not is_classes(layer):
        raise CubeError(f"{layer.name!r} has no flag_values, so it is no map of classes; name one with variable=")
    if layer.dims != ("y", "x"):
        raise CubeError(f"{layer.name!r} has dims {layer.dims}; profiles need one map (y, x), choose with result.isel")
    boxes = [geobox_of(cube), geobox_of(layer)]
    numbers = [[*box.shape, *(edge / box.resolution.x for edge in box.boundingbox.bbox)] for box in boxes]
    if boxes[0].crs != boxes[1].crs or not np.allclose(numbers[0], numbers[1], rtol=0, atol=0.01):
        raise GridError(
            f"the map lies on {boxes[1].shape} pixels of {boxes[1].crs} at {boxes[1].boundingbox.bbox}, the cube on "
            f"{boxes[0].shape} of {boxes[0].crs} at {boxes[0].boundingbox.bbox}; give the map of this cube, or cut both"
            " alike with .sel(y=, x=)"
        )
    return layer


def _bands(cube: xr.DataArray) -> xr.DataArray:
    if set(cube.dims) != {"time", "band", "y", "x"} or "band" not in cube.coords:
        raise CubeError(f"the cube has dims {cube.dims}; expected (time, band, y, x) with named bands")
    missing = [band for band in BANDS if band not in cube.coords["band"].values]
    if missing:
        raise BandError(f"NDVI needs bands {list(BANDS)}; the cube has {cube.band.values.tolist()}, missing {missing}")
    return cube.sel(band=list(BANDS)).transpose("time", "band", "y", "x")


def _computed(bands: xr.DataArray, layer: xr.DataArray) -> tuple[Array, Array]:
    """Return NDVI ``(time, y, x)``, NaN where it is not known, and classes ``(y, x)``; what both share is read once."""
    from dask.base import compute

    seen, classes = compute(bands, layer)
    nodata = seen.attrs.get("nodata", -9999 if seen.dtype.kind == "i" else math.nan)
    values = seen.values.astype("float32")
    values[(seen.values == nodata) | ~np.isfinite(values)] = np.nan
    red, nir = values[:, 0], values[:, 1]
    total = nir + red
    ndvi = np.divide(nir - red, total, out=np.full(total.shape, np.nan, "float32"), where=total > 0)
    return ndvi, np.nan_to_num(classes.values, nan=-1)


def _profile(name: str, color: str, times: Array, values: Array) -> Profile:
    """Return the profile of the pixels ``(time, pixel)`` of one class."""
    enough = np.isfinite(values).sum(1) >= LEAST
    quartiles = np.nanpercentile(values[enough], (25, 50, 75), axis=1) if enough.any() else np.empty((3, 0))
    return Profile(name, color, values.shape[1], times[enough], quartiles)


def _draw(axis: Any, own: Profile, all_: list[Profile]) -> None:
    from matplotlib.patheffects import withStroke

    for other in all_:
        if other is not own:
            axis.plot(other.time, other.quartiles[1], color="0.85", linewidth=0.8, zorder=1)
    low, middle, high = own.quartiles
    axis.fill_between(own.time, low, high, color=own.color, alpha=0.5, linewidth=0, zorder=2)
    # Colours of legends are often too light for a line on white: it gets a dark rim.
    rim = [withStroke(linewidth=3.4, foreground="0.25")]
    axis.plot(own.time, middle, "o-", color=own.color, markersize=3, linewidth=1.9, path_effects=rim, zorder=3)
    axis.set_title(f"{own.name}\n{own.pixels:,} pixels", fontsize="small")
    axis.tick_params(labelsize="small")
    axis.spines[["top", "right"]].set_visible(False)


def _name_dates(axes: Array, count: int) -> None:
    """Months below the lowest picture of each column."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    columns = axes.shape[1]
    for number, axis in enumerate(axes.flat[:count]):
        locator = AutoDateLocator(minticks=3, maxticks=6)  # type: ignore[no-untyped-call]
        axis.xaxis.set_major_locator(locator)
        axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
        axis.tick_params(axis="x", labelbottom=number + columns >= count)
