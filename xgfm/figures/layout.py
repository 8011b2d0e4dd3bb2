"""Pictures side by side, each with its title, on axes in kilometres or degrees, with a legend and a scale bar.

In: panels, and the map that they show. Out: a matplotlib ``Figure``. Nothing is lazy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xgfm.cf import NODATA, flags_of
from xgfm.errors import CubeError
from xgfm.figures.panels import STRETCH, Panel
from xgfm.figures.scale import draw_scale
from xgfm.grid import geobox_of
from xgfm.notebook import subplots
from xgfm.palette import EMPTY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = 12
"""Most panels of one figure."""
COLUMNS = 4
"""Most panels side by side."""
SHARES = ("probability", "confidence", "out_of_domain")
"""Variables that are drawn from 0 to 1, so that two maps of them can be compared."""
_ALONE, _BESIDE = 5.4, 3.4
"""Inches across a panel that stands alone, or beside others."""


def draw(panels: list[Panel], layer: xr.DataArray) -> tuple[Figure, list[Any]]:
    """Lay panels out, and draw a scale bar on the last one.

    Parameters
    ----------
    panels : list of Panel
        All of one extent.
    layer : DataArray
        What the figure shows, with its grid.

    Raises
    ------
    CubeError
        Where there are too many.
    """
    if not 1 <= len(panels) <= PANELS:
        raise CubeError(f"{len(panels)} pictures; a figure holds 1 to {PANELS}, choose with .isel(time=slice(0, 4))")
    crs = geobox_of(layer).crs
    geographic = crs is not None and crs.geographic
    left, right, bottom, top = panels[-1].extent
    aspect = 1 / math.cos(math.radians((bottom + top) / 2)) if geographic else 1.0
    figure, axes = _axes(panels, aspect * (top - bottom) / (right - left))
    scale = 1.0 if geographic else 1e-3
    limits = _limits(panels, layer)
    for panel, axis in zip(panels, axes, strict=True):
        extent = tuple(scale * edge for edge in panel.extent)
        axis.imshow(panel.values, extent=extent, interpolation="nearest", cmap=_colormap(), **limits)
        axis.set_aspect(aspect)
        axis.set_title(panel.title, fontsize="medium")
        _name_axes(axis, geographic=geographic)
    for axis in axes[-rows_and_columns(len(panels))[1] :]:  # the lowest of each column, where the last row is not full
        axis.xaxis.set_tick_params(labelbottom=True)
        axis.set_xlabel(_axis_names(geographic)[0], fontsize="small")
    draw_scale(axes[-1], layer)
    if layer.attrs.get("comment"):
        figure.supxlabel(layer.attrs["comment"], fontsize="small", color="0.4")
    return figure, axes


def rows_and_columns(count: int) -> tuple[int, int]:
    """Return how some pictures are laid out: of three and four columns, those that leave fewer places empty."""
    columns = min(count, COLUMNS) if count <= COLUMNS else min((COLUMNS, COLUMNS - 1), key=lambda n: -count % n)
    return math.ceil(count / columns), columns


def _axes(panels: list[Panel], steepness: float) -> tuple[Figure, list[Any]]:
    """Make the axes of panels that are so many times as high as wide."""
    rows, columns = rows_and_columns(len(panels))
    width = _ALONE if len(panels) == 1 else _BESIDE
    height = min(max(width * steepness, 1.5), 8.0)
    words = 0.7 + 0.22 * max(1 + panel.title.count("\n") for panel in panels)
    figure, grid = subplots(
        rows, columns, figsize=(width * columns + 2.2, (height + words) * rows), sharex=True, sharey=True,
        squeeze=False, layout="compressed",
    )  # fmt: skip
    for axis in grid.flat[len(panels) :]:
        axis.remove()
    return figure, list(grid.flat[: len(panels)])


def _limits(panels: Sequence[Panel], layer: xr.DataArray) -> dict[str, float]:
    """One range of colours for all panels of numbers."""
    numbers = [p.values[np.isfinite(p.values)] for p in panels if p.values.ndim == 2]
    if layer.name in SHARES:
        return {"vmin": 0.0, "vmax": 1.0}
    if not sum(n.size for n in numbers):
        return {}
    low, high = np.percentile(np.concatenate(numbers), STRETCH)
    return {"vmin": float(low), "vmax": float(high)}


def _colormap() -> Any:
    import matplotlib

    return matplotlib.colormaps["viridis"].with_extremes(bad=EMPTY)


def _name_axes(axis: Any, *, geographic: bool) -> None:
    axis.locator_params(axis="x", nbins=2 if geographic else 4)
    axis.locator_params(axis="y", nbins=4)
    axis.ticklabel_format(useOffset=False, style="plain")
    axis.tick_params(labelsize="small")
    axis.set_ylabel(_axis_names(geographic)[1], fontsize="small")
    axis.label_outer()


def _axis_names(geographic: bool) -> tuple[str, str]:
    return ("longitude (°)", "latitude (°)") if geographic else ("easting (km)", "northing (km)")


def add_legend(figure: Figure, maps: xr.DataArray) -> None:
    """Name every class of the task, in its order, and nodata where there is any; outside of the pictures."""
    from matplotlib.patches import Patch

    entries = [(flag.name, flag.color) for flag in flags_of(maps)]
    if bool((maps.fillna(NODATA) == NODATA).any()):
        entries.append(("no data", EMPTY))
    handles = [Patch(facecolor=color, edgecolor="0.3", linewidth=0.5, label=name) for name, color in entries]
    figure.legend(
        handles=handles, loc="outside right upper", frameon=False, fontsize="small", ncols=1 + len(entries) // 24
    )


def add_bar(figure: Figure, axes: list[Any], layer: xr.DataArray) -> None:
    """Draw the bar of colours of a map of numbers, with its units."""
    units = str(layer.attrs.get("units", "1"))
    figure.colorbar(axes[-1].images[0], ax=axes, label="" if units == "1" else units, shrink=0.8)
