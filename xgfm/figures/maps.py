"""Pictures: a map with its legend, beside the true-colour frames it was made from.

In: a result of `predict`, and the cube if its frames are wanted. Out: a matplotlib ``Figure``. This computes, but no
more than some `PIXELS` rows and columns: of larger rasters an overview is read, or every n-th pixel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import xarray as xr

from xgfm.figures.layout import add_bar, add_legend, draw
from xgfm.figures.levels import strided, thinned
from xgfm.figures.panels import color_bands, frame_panels, is_classes, map_panels, require_map, series_of
from xgfm.store.layout import as_dataset, choose_variable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS = 1500
"""Most rows or columns that are computed for a picture."""


def plot(
    result: xr.Dataset | xr.DataArray,
    frames: xr.DataArray | None = None,
    *,
    variable: str | None = None,
    pixels: int = PIXELS,
) -> Figure:
    """Draw a result with its legend and a scale bar, beside the true-colour frames where a cube is given.

    Parameters
    ----------
    result : Dataset or DataArray
        What `predict` returned, or a store of it reopened. Dims ``(y, x)``, ``(time, y, x)`` or ``(class, y, x)``.
        Computed here. A cube is drawn by `plot_cube`.
    frames : DataArray, optional
        Cube ``(time, band, y, x)`` with bands red, green and blue: one picture for each step, all stretched alike.
    variable : str, optional
        Which one; by default the class map, or the only one there is. ``"probability"`` has a picture for each class.
    pixels : int
        Most rows or columns that are computed. Of a larger raster that was opened from a store an overview is read,
        where the store has them; every n-th pixel is of anything else.

    Returns
    -------
    Figure
        A notebook shows it once. In a script, ``plt.show()`` shows it, and ``figure.savefig("map.png")`` keeps it.

    Raises
    ------
    CubeError
        Where the result is a path, or has other dims, or there would be more than 12 pictures.
    MissingExtraError
        Where matplotlib is not installed.
    """
    if isinstance(result, xr.DataArray) and "band" in result.dims:
        return plot_cube(result, pixels=pixels)
    dataset = as_dataset(result)
    layer = dataset[choose_variable(dataset, variable)]
    require_map(layer)
    maps = series_of(thinned(layer, pixels))
    if frames is None:
        maps, panels = maps.compute(), []
    else:
        maps, colors = _together(maps, strided(color_bands(frames), pixels))
        panels = frame_panels(colors)
    figure, axes = draw(panels + map_panels(maps, dataset.attrs), layer)
    if is_classes(layer):
        add_legend(figure, maps)
    else:
        add_bar(figure, axes, layer)
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
    colors = strided(color_bands(cube), pixels).compute()
    return draw(frame_panels(colors), colors)[0]


def _together(*arrays: xr.DataArray) -> list[xr.DataArray]:
    """Compute in one go, so that what the arrays share is read once."""
    from dask.base import compute

    return list(compute(*arrays))
