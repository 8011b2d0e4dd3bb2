"""The scale bar of a map: a round length, as long as it is on the ground.

In: a grid and the axes that it is drawn on. Out: a bar in a corner, or none where no length is true of the whole map.
Nothing is lazy.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from xgfm.grid import geobox_of

if TYPE_CHECKING:
    import xarray as xr
    from odc.geo.geobox import GeoBox

SHARE = 0.3
"""Of the map's width, that the bar takes at most."""
_SPREAD = 0.1
"""How much the width on the ground may differ between the map's top, middle and bottom."""
_STEPS = 33
"""Points of a row that distances are summed between."""


def draw_scale(axis: Any, layer: xr.DataArray) -> None:
    """Draw a scale bar in the lower left corner of a map that is drawn already.

    Parameters
    ----------
    axis : matplotlib.axes.Axes
        Whose limits are the map's.
    layer : DataArray
        That carries the map's grid.
    """
    from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar  # type: ignore[import-untyped]

    widths = ground_widths(geobox_of(layer))
    middle = float(widths[1])
    if not np.isfinite(widths).all() or np.ptp(widths) > _SPREAD * middle:
        return
    length = round_length(SHARE * middle)
    left, right = axis.get_xlim()
    bottom, top = axis.get_ylim()
    bar = AnchoredSizeBar(
        axis.transData, length / middle * (right - left), label_of(length), "lower left",
        pad=0.4, borderpad=0.4, sep=3, size_vertical=0.007 * (top - bottom), fontproperties={"size": "x-small"},
    )  # fmt: skip
    bar.patch.set(alpha=0.75, linewidth=0)
    axis.add_artist(bar)


def ground_widths(box: GeoBox) -> np.ndarray:
    """Return the geodesic length, on WGS84, of the top, the middle and the bottom line of a grid, in metres."""
    from pyproj import Geod, Transformer

    edges = box.boundingbox
    to_degrees = Transformer.from_crs(str(box.crs), "EPSG:4326", always_xy=True)
    x = np.linspace(edges.left, edges.right, _STEPS)
    lines = []
    for height in (edges.top, (edges.top + edges.bottom) / 2, edges.bottom):
        longitude, latitude = to_degrees.transform(x, np.full(_STEPS, height))
        lines.append(Geod(ellps="WGS84").line_length(longitude, latitude))
    return np.array(lines)


def round_length(most: float) -> float:
    """Return the largest of 1, 2 and 5 times a power of ten that is not over a length in metres."""
    power = 10.0 ** math.floor(math.log10(most))
    # The logarithm may round up to the next power; half of it is among the lengths too.
    return max(step * power for step in (0.5, 1, 2, 5) if step * power <= most)


def label_of(length: float) -> str:
    """Return a length in metres as a map says it."""
    return f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
