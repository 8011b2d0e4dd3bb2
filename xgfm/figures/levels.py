"""The pixels that a picture is made from: those of an overview where a store has them, else every n-th.

In: a map of any size, most often a lazy one. Out: the same with few rows and columns, still lazy, and where its pixels
lie. Overviews are used only for what is an untouched part of a stored array: of anything computed they know nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import xarray as xr
from affine import Affine

from xgfm.figures.origin import Origin, origin_of
from xgfm.grid import geobox_of, with_grid

if TYPE_CHECKING:
    import zarr
    from odc.geo.geobox import GeoBox


def thinned(layer: xr.DataArray, pixels: int) -> xr.DataArray:
    """Return a map with at most so many rows and columns.

    Parameters
    ----------
    layer : DataArray
        Dims ``(..., y, x)``.
    pixels : int
        Most rows or columns.

    Returns
    -------
    DataArray
        Lazy where it was. The finest overview that is small enough, cut to the cells that the map touches; the most
        frequent class, or the mean, of each cell. Without overviews every n-th pixel, from the middle of the first n,
        so that the picture stays where it is.
    """
    if max(layer.sizes["y"], layer.sizes["x"]) <= pixels:
        return layer
    coarse = _overview(layer, pixels)
    return strided(layer if coarse is None else coarse, pixels)


def strided(layer: xr.DataArray, pixels: int) -> xr.DataArray:
    """Return every n-th row and column, from the middle of the first n."""
    step = math.ceil(max(layer.sizes["y"], layer.sizes["x"]) / pixels)
    kept = {d: slice((step - 1) // 2, None, step) for d in ("y", "x") if layer.sizes[d] > step}
    return layer.isel(kept)


def _overview(layer: xr.DataArray, pixels: int) -> xr.DataArray | None:
    """Return the part of an overview that shows a map; None where there is none for it."""
    origin = origin_of(layer)
    if origin is None or layer.dims[-2:] != ("y", "x"):
        return None
    folder, _, name = origin.array.path.rpartition("/")
    levels = _levels(origin.array, folder)
    box = geobox_of(layer)
    if len(levels) < 2 or not _where_it_was(origin, levels[0], box):
        return None
    group = f"{folder}/{_choose(levels, box, pixels)}".strip("/")
    level: xr.Dataset = xr.open_zarr(
        origin.array.store, group=group, mask_and_scale=False, decode_coords="all", consolidated=False, chunks=None
    )
    steps = [
        first if dim not in layer.dims else slice(first, last + 1)
        for dim, first, last in zip(level[name].dims, origin.first, origin.last, strict=True)
    ][:-2]
    cut = _cut(level[name], box).isel(dict(zip(level[name].dims, steps, strict=False)))
    leading = {dim: layer.coords[dim].values for dim in layer.dims[:-2] if dim in layer.coords}
    return cut.assign_coords(leading).assign_attrs(layer.attrs).rename(layer.name)


def _levels(array: zarr.Array[Any], folder: str) -> list[Mapping[str, Any]]:
    """Return what the group of an array lists as its levels, the array's own first."""
    import zarr

    group = zarr.open_group(array.store, path=folder, mode="r", use_consolidated=False)
    found: Any = group.attrs.get("multiscales", {})
    return list(found.get("layout", ())) if isinstance(found, Mapping) else []


def _where_it_was(origin: Origin, base: Mapping[str, Any], box: GeoBox) -> bool:
    """Tell whether the coordinates of a map are those of the pixels that it is made of."""
    width, _, left, _, height, top = base["spatial:transform"]
    (row, column), (below, beside) = origin.first[-2:], (place + 1 for place in origin.last[-2:])
    should = (left + column * width, top + below * height, left + beside * width, top + row * height)
    tolerance = 1e-3 * abs(width)
    return all(abs(a - b) < tolerance for a, b in zip(should, box.boundingbox.bbox, strict=True))


def _choose(levels: list[Mapping[str, Any]], box: GeoBox, pixels: int) -> str:
    """Return the name of the finest level that shows the box in so many cells, else of the coarsest one."""
    for level in levels[1:]:
        rows, columns = _cells(Affine(*level["spatial:transform"]), box)
        if max(rows.stop - rows.start, columns.stop - columns.start) <= pixels:
            break
    return str(level["asset"])


def _cells(transform: Affine, box: GeoBox) -> tuple[slice, slice]:
    """Return the rows and columns of a grid that touch a box."""
    edges = box.boundingbox
    corners = [~transform * point for point in ((edges.left, edges.top), (edges.right, edges.bottom))]
    (left, top), (right, bottom) = ((round(x, 6), round(y, 6)) for x, y in corners)
    return slice(math.floor(top), math.ceil(bottom)), slice(math.floor(left), math.ceil(right))


def _cut(level: xr.DataArray, box: GeoBox) -> xr.DataArray:
    """Return the cells of a level that touch a box."""
    whole = geobox_of(level)
    rows, columns = _cells(whole.affine, box)
    return with_grid(level.isel(y=rows, x=columns), whole[rows, columns])
