"""Pictures: a map with its legend, beside the true-colour frames it was made from.

In: a result of `predict`, and the cube if its frames are wanted. Out: a matplotlib ``Figure``. This computes, but no
more than some `PIXELS` rows and columns: larger rasters are strided first.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xgfm.cf import NODATA, frames_of
from xgfm.errors import BandError, CubeError, MissingExtraError
from xgfm.grid import geobox_of
from xgfm.store.layout import as_dataset, choose_variable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PIXELS = 1500
"""Most rows or columns that are computed for a picture."""
PANELS = 12
"""Most panels of one figure."""
COLUMNS = 4
"""Most panels side by side."""
EMPTY = "#d4d4d4"
"""Colour of pixels without data."""
STRETCH = (2.0, 98.0)
"""Percentiles of a band, over all frames, that are drawn dark and bright."""
BRIGHTEST = 4.0
"""The bright end is at most so many times as far from the dark end as the median is; clear land stays below."""
TITLE = 36
"""Letters in a line of a title."""
RGB = ("red", "green", "blue")


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture of a figure."""

    values: np.ndarray[Any, Any]
    """(y, x, 3) colours from 0 to 1, or (y, x) floats, NaN without data."""
    extent: tuple[float, float, float, float]
    """Left, right, bottom, top in the units of the CRS."""
    title: str


def plot(
    result: xr.Dataset | xr.DataArray,
    frames: xr.DataArray | None = None,
    *,
    variable: str | None = None,
    pixels: int = PIXELS,
) -> Figure:
    """Draw a result with its legend, beside the true-colour frames where a cube is given.

    Parameters
    ----------
    result : Dataset or DataArray
        What `predict` returned, or a store of it reopened. Dims ``(y, x)`` or ``(time, y, x)``. Computed here. A cube
        is drawn by `plot_cube`.
    frames : DataArray, optional
        Cube ``(time, band, y, x)`` with bands red, green and blue: one picture for each step, all stretched alike.
    variable : str, optional
        Which one; by default the class map, or the only one there is.
    pixels : int
        Most rows or columns that are computed; a larger raster is strided.

    Returns
    -------
    Figure
        A notebook shows it as the last value of a cell; elsewhere, ``figure.savefig("map.png")``.

    Raises
    ------
    CubeError
        Where the result has other dims, or there would be more than 12 pictures.
    MissingExtraError
        Where matplotlib is not installed.
    """
    if isinstance(result, xr.DataArray) and "band" in result.dims:
        return plot_cube(result, pixels=pixels)
    dataset = as_dataset(result)
    layer = dataset[choose_variable(dataset, variable)]
    maps = _strided(_series(layer), pixels)
    if frames is None:
        maps, panels = maps.compute(), []
    else:
        maps, colours = _together(maps, _strided(_colour_bands(frames), pixels))
        panels = _true_colour(colours)
    panels += _classes(maps, dataset.attrs) if _is_classes(layer) else _values(maps, dataset.attrs)
    figure, axes = _draw(panels, layer)
    if _is_classes(layer):
        _legend(figure, maps)
    else:
        figure.colorbar(axes[-1].images[0], ax=axes, label=_units(layer), shrink=0.8)
    figure.draw_without_rendering()  # the layout needs a second pass to find room for everything; saving is the second
    return figure


def plot_cube(cube: xr.DataArray, *, pixels: int = PIXELS) -> Figure:
    """Draw the true-colour frames of a cube, all stretched alike.

    Parameters
    ----------
    cube : DataArray
        Dims ``(time, band, y, x)``, with bands red, green and blue. Computed here.
    pixels : int
        Most rows or columns that are computed; a larger raster is strided.

    Returns
    -------
    Figure
    """
    colours = _strided(_colour_bands(cube), pixels).compute()
    return _draw(_true_colour(colours), colours)[0]


# ---- what is computed


def _together(*arrays: xr.DataArray) -> list[xr.DataArray]:
    """Compute in one go, so that what the arrays share is read once."""
    from dask.base import compute

    return list(compute(*arrays))


def _strided(array: xr.DataArray, pixels: int) -> xr.DataArray:
    """Every n-th pixel, from the middle of the first n, so that the picture stays where it is."""
    step = math.ceil(max(array.sizes["y"], array.sizes["x"]) / pixels)
    kept = {d: slice((step - 1) // 2, None, step) for d in ("y", "x") if array.sizes[d] > step}
    return array.isel(kept)


def _series(layer: xr.DataArray) -> xr.DataArray:
    """A map or a series of maps as ``(time, y, x)``."""
    if layer.dims == ("y", "x"):
        return layer.expand_dims("time")
    if layer.dims != ("time", "y", "x"):
        raise CubeError(
            f"{layer.name!r} has dims {layer.dims}; a map has (y, x) or (time, y, x), choose with result.isel"
        )
    return layer


def _colour_bands(cube: xr.DataArray) -> xr.DataArray:
    if set(cube.dims) != {"time", "band", "y", "x"} or "band" not in cube.coords:
        raise CubeError(f"frames have dims {cube.dims}; expected a cube (time, band, y, x) with named bands")
    missing = [b for b in RGB if b not in cube.coords["band"].values]
    if missing:
        raise BandError(
            f"true colour needs bands {list(RGB)}; the cube has {cube.band.values.tolist()}, missing {missing}"
        )
    return cube.sel(band=list(RGB)).transpose("time", "band", "y", "x")


# ---- panels


def _true_colour(colours: xr.DataArray) -> list[Panel]:
    """Colours of computed bands (time, band, y, x), with one stretch for all frames."""
    nodata = colours.attrs.get("nodata", -9999 if colours.dtype.kind == "i" else math.nan)
    missing = (colours.isnull() | (colours == nodata)).any("band").values
    values = np.where(missing[:, None], np.nan, colours.values.astype("float32"))
    seen = np.moveaxis(values, 1, -1)[~missing]
    low, high = _stretch(seen)
    stretched = (np.moveaxis(values, 1, -1) - low) / np.maximum(high - low, 1e-12)
    drawn = np.where(missing[..., None], _rgb(EMPTY), np.clip(stretched, 0, 1))
    extent = _extent(colours)
    return [Panel(frame, extent, title) for frame, title in zip(drawn, _frame_titles(colours), strict=True)]


def _stretch(seen: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
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


def _is_classes(layer: xr.DataArray) -> bool:
    return "flag_values" in layer.attrs


def _classes(maps: xr.DataArray, facts: Mapping[str, Any]) -> list[Panel]:
    """Colours of computed class numbers (time, y, x); decoded ones are floats with NaN."""
    table = np.tile(np.array(_rgb(EMPTY)), (NODATA + 1, 1))
    for number, _, color in _flags(maps):
        table[number] = _rgb(color)
    drawn = table[maps.fillna(NODATA).values.astype("uint8")]
    return [Panel(v, _extent(maps), t) for v, t in zip(drawn, _map_titles(maps, facts), strict=True)]


def _values(maps: xr.DataArray, facts: Mapping[str, Any]) -> list[Panel]:
    return [
        Panel(v, _extent(maps), t) for v, t in zip(maps.values.astype("float32"), _map_titles(maps, facts), strict=True)
    ]


def _map_titles(maps: xr.DataArray, facts: Mapping[str, Any]) -> list[str]:
    """Name of the map, and below it the date, or the period of the frames that it was made of."""
    name = textwrap.fill(str(maps.attrs.get("long_name", maps.name)), TITLE)
    if "time" in maps.coords:
        return [f"{name}\n{str(t)[:10]}" for t in maps.time.values.reshape(-1)]
    windows = [str(d) for fact in frames_of(facts) for d in fact.get("window", [])]
    return [f"{name}\n{_period(windows or facts.get('dates', []))}".rstrip()] * maps.sizes["time"]


def _period(dates: Sequence[str]) -> str:
    days = sorted({d[:10] for d in dates})
    return " to ".join(dict.fromkeys([days[0], days[-1]])) if days else ""


def _flags(layer: xr.DataArray) -> list[tuple[int, str, str]]:
    """Number, readable name and colour of each class."""
    attrs = layer.attrs
    names = attrs.get("class_names") or [w.replace("_", " ") for w in attrs["flag_meanings"].split()]
    colors = attrs["flag_colors"].split()
    return [(int(v), str(n), c) for v, n, c in zip(np.atleast_1d(attrs["flag_values"]), names, colors, strict=True)]


def _units(layer: xr.DataArray) -> str:
    units = str(layer.attrs.get("units", "1"))
    return "" if units == "1" else units


def _rgb(color: str) -> tuple[float, float, float]:
    return tuple(int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))  # type: ignore[return-value]


def _extent(array: xr.DataArray) -> tuple[float, float, float, float]:
    box = geobox_of(array).boundingbox
    return box.left, box.right, box.bottom, box.top


# ---- the figure


def _draw(panels: list[Panel], layer: xr.DataArray) -> tuple[Figure, list[Axes]]:
    """Lay panels out, each with its title, on axes in kilometres or degrees."""
    if not 1 <= len(panels) <= PANELS:
        raise CubeError(f"{len(panels)} pictures; a figure holds 1 to {PANELS}, choose with .isel(time=slice(0, 4))")
    plt = _pyplot()
    crs = geobox_of(layer).crs
    geographic = crs is not None and crs.geographic
    left, right, bottom, top = panels[-1].extent
    aspect = 1 / math.cos(math.radians((bottom + top) / 2)) if geographic else 1.0
    columns = min(len(panels), COLUMNS)
    rows = math.ceil(len(panels) / columns)
    height = min(max(3.4 * aspect * (top - bottom) / (right - left), 1.5), 8.0)
    words = 0.7 + 0.22 * max(1 + panel.title.count("\n") for panel in panels)
    figure, grid = plt.subplots(
        rows, columns, figsize=(3.4 * columns + 2.2, (height + words) * rows), sharex=True, sharey=True,
        squeeze=False, layout="compressed",
    )  # fmt: skip
    # Closed, it is shown once by a notebook, as the value of its cell, and pyplot does not hold on to it.
    plt.close(figure)
    for axis in grid.flat[len(panels) :]:
        axis.remove()
    axes = list(grid.flat[: len(panels)])
    scale = 1.0 if geographic else 1e-3
    limits = _limits([p.values for p in panels])
    for panel, axis in zip(panels, axes, strict=True):
        extent = tuple(scale * edge for edge in panel.extent)
        axis.imshow(panel.values, extent=extent, interpolation="nearest", cmap=_colormap(), **limits)
        axis.set_aspect(aspect)
        axis.set_title(panel.title, fontsize="medium")
        _name_axes(axis, geographic=geographic)
    if layer.attrs.get("comment"):
        figure.supxlabel(layer.attrs["comment"], fontsize="small", color="0.4")
    return figure, axes


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "drawing") from error
    return plt


def _limits(pictures: Sequence[np.ndarray[Any, Any]]) -> dict[str, float]:
    """One range of colours for all panels of numbers."""
    numbers = [p[np.isfinite(p)] for p in pictures if p.ndim == 2]
    if not sum(n.size for n in numbers):
        return {}
    low, high = np.percentile(np.concatenate(numbers), STRETCH)
    return {"vmin": float(low), "vmax": float(high)}


def _colormap() -> Any:
    import matplotlib

    return matplotlib.colormaps["viridis"].with_extremes(bad=EMPTY)


def _name_axes(axis: Axes, *, geographic: bool) -> None:
    axis.locator_params(axis="x", nbins=2 if geographic else 4)
    axis.locator_params(axis="y", nbins=4)
    axis.ticklabel_format(useOffset=False, style="plain")
    axis.tick_params(labelsize="small")
    axis.set_xlabel("longitude (°)" if geographic else "easting (km)", fontsize="small")
    axis.set_ylabel("latitude (°)" if geographic else "northing (km)", fontsize="small")
    axis.label_outer()


def _legend(figure: Figure, maps: xr.DataArray) -> None:
    """Every class of the task, in its order, and nodata where there is any; outside of the pictures."""
    from matplotlib.patches import Patch

    entries = [(name, color) for _, name, color in _flags(maps)]
    if bool((maps.fillna(NODATA) == NODATA).any()):
        entries.append(("no data", EMPTY))
    handles = [Patch(facecolor=color, edgecolor="0.3", linewidth=0.5, label=name) for name, color in entries]
    figure.legend(
        handles=handles, loc="outside right upper", frameon=False, fontsize="small", ncols=1 + len(entries) // 24
    )
