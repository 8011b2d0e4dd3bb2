"""The pixels that a picture is made from: those of an overview where a store has them, else every n-th.

In: a map of any size, most often a lazy one. Out: the same with few rows and columns, still lazy, and where its pixels
lie. Overviews are used only for what is an untouched part of a stored array: of anything computed they know nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import xarray as xr

from xgfm.grid import geobox_of, with_grid

if TYPE_CHECKING:
    import zarr
    from odc.geo.geobox import GeoBox

_PASSED = ("original-", "open_dataset-", "xarray-", "getitem-")
"""Beginnings of the names of Dask's layers that leave pixels as they are: opening, chunking and slicing."""


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
    array = stored_array(layer)
    if array is None:
        return None
    folder, _, name = array.path.rpartition("/")
    listed = _levels(array, folder)
    box = geobox_of(layer)
    chosen = _choose(listed, box, pixels)
    if chosen is None:
        return None
    group = f"{folder}/{chosen}".strip("/")
    level: xr.Dataset = xr.open_zarr(
        array.store, group=group, mask_and_scale=False, decode_coords="all", consolidated=False, chunks=None
    )
    cut = _cut(level[name], box)
    return None if cut is None else _same_steps(cut, layer)


def _levels(array: zarr.Array[Any], folder: str) -> list[Mapping[str, Any]]:
    """Return what the group of an array lists as its levels, the array's own first."""
    import zarr

    group = zarr.open_group(array.store, path=folder, mode="r", use_consolidated=False)
    found: Any = group.attrs.get("multiscales", {})
    return list(found.get("layout", ())) if isinstance(found, Mapping) else []


def _choose(levels: list[Mapping[str, Any]], box: GeoBox, pixels: int) -> str | None:
    """Return the name of the finest level that shows the box in so many pixels, else of the coarsest one."""
    width = abs(box.affine.a)
    if len(levels) < 2 or not math.isclose(width, abs(levels[0]["spatial:transform"][0]), rel_tol=1e-9):
        return None  # no overviews, or a stride is in the slices already
    for level in levels[1:]:
        factor = abs(level["spatial:transform"][0]) / width
        if max(box.shape) / factor <= pixels:
            break
    return str(level["asset"])


def _cut(level: xr.DataArray, box: GeoBox) -> xr.DataArray | None:
    """Return the cells of a level that touch a box."""
    whole = geobox_of(level)
    edges = box.boundingbox
    corners = [~whole.affine * point for point in ((edges.left, edges.top), (edges.right, edges.bottom))]
    (left, top), (right, bottom) = ((round(x, 6), round(y, 6)) for x, y in corners)
    rows, columns = whole.shape
    if whole.crs != box.crs or min(left, top) < 0 or right > columns or bottom > rows:
        return None
    parts = {"y": slice(math.floor(top), math.ceil(bottom)), "x": slice(math.floor(left), math.ceil(right))}
    return with_grid(level.isel(parts), whole[parts["y"], parts["x"]])


def _same_steps(level: xr.DataArray, layer: xr.DataArray) -> xr.DataArray | None:
    """Return a level at the times, or classes, of a map: None where they cannot be told by their coordinates."""
    for dim in [d for d in level.dims if d not in ("y", "x")]:
        if dim not in layer.coords or dim not in level.coords or not level.indexes[dim].is_unique:
            return None
        level = level.sel({dim: layer.coords[dim].values})
    return level.assign_attrs(layer.attrs).rename(layer.name)


# ---- where pixels come from


def stored_array(layer: xr.DataArray) -> zarr.Array[Any] | None:
    """Return the Zarr array that a lazy map is an untouched part of; None where it is anything else.

    Parameters
    ----------
    layer : DataArray
        From `xarray.open_zarr`, with or without Dask, whole or sliced.
    """
    import zarr

    variable = layer.variable
    if variable.chunks is not None:
        inner = _from_graph(variable.data)
    else:
        inner = None if variable._in_memory else variable._data
    while inner is not None and hasattr(inner, "array"):  # xarray's wrappers: caching, slicing, decoding
        inner = inner.array
    found = getattr(inner, "_array", None)
    return found if isinstance(found, zarr.Array) else None


def _from_graph(data: Any) -> Any:
    """Return the only source of a Dask array that nothing but slices stands between."""
    layers = data.__dask_graph__().layers
    sources = [name for name in layers if name.startswith("original-")]
    if len(sources) != 1 or not all(name.startswith(_PASSED) for name in layers):
        return None
    value = layers[sources[0]][sources[0]]
    return getattr(value, "value", value)
