"""Which part of which stored array a lazy map is, where it is nothing but that.

In: a DataArray from `xarray.open_zarr`, with or without Dask, whole or sliced. Out: the Zarr array and the place of the
map's first and last pixel in it, or None. Nothing is read: Dask's graph and xarray's wrappers are looked at, and
whatever is not known there counts as computed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import xarray as xr

if TYPE_CHECKING:
    import zarr

Index = tuple[int, ...]

_PASSED = ("original-", "open_dataset-", "xarray-", "getitem-")
"""Beginnings of the names of Dask's layers that leave pixels as they are: opening, chunking and slicing."""
_GETTERS = ("getitem", "getter")
"""Functions of their tasks."""


@dataclass(frozen=True, slots=True)
class Origin:
    """A part of a stored array: every pixel from the first to the last, in their order."""

    array: zarr.Array[Any]
    first: Index
    """Place of the map's first pixel, one number for each dimension of the array."""
    last: Index


def origin_of(layer: xr.DataArray) -> Origin | None:
    """Return the part of a stored array that a map is; None where it is anything else.

    Parameters
    ----------
    layer : DataArray
        Any. Slices with a stride, or in another order, are something else.
    """
    variable = layer.variable
    if not layer.size or (variable.chunks is None and variable._in_memory):
        return None
    corners = ((0,) * layer.ndim, tuple(size - 1 for size in layer.shape))
    found = [_in_store(*_behind_graph(variable, corner)) for corner in corners]
    if found[0] is None or found[1] is None or found[0][0] is not found[1][0]:
        return None
    return Origin(found[0][0], found[0][1], found[1][1])


def _behind_graph(variable: xr.Variable, corner: Index) -> tuple[Any, Index | None]:
    """Return the array behind a variable's graph, and the place of a corner pixel in it."""
    if variable.chunks is None:
        return variable._data, corner
    data: Any = variable.data
    layers = data.__dask_graph__().layers
    sources = [name for name in layers if name.startswith("original-")]
    if len(sources) != 1 or not all(name.startswith(_PASSED) for name in layers):
        return None, None
    blocks = [0 if place == 0 else len(sizes) - 1 for place, sizes in zip(corner, data.chunks, strict=True)]
    inside = [0 if place == 0 else sizes[-1] - 1 for place, sizes in zip(corner, data.chunks, strict=True)]
    key: Any = (data.name, *blocks)
    index: Index | None = tuple(inside)
    while key != sources[0]:
        if index is None:
            return None, None
        key, index = _one_back(layers, key, index)
    value = layers[key][key]
    return getattr(value, "value", value), index


def _one_back(layers: Any, key: Any, index: Index) -> tuple[Any, Index | None]:
    """Return the key that a task reads, and the place there of what is at ``index`` here."""
    task: Any = layers[key[0]][key] if key[0] in layers else None
    if hasattr(task, "target"):  # another name for the same block
        return task.target, index
    if len(getattr(task, "args", ())) != 2 or getattr(task.func, "__name__", "") not in _GETTERS:
        return key, None
    source, taken = task.args
    return getattr(source, "key", None), _composed(getattr(taken, "value", taken), index)


def _in_store(data: Any, index: Index | None) -> tuple[zarr.Array[Any], Index] | None:
    """Go through xarray's wrappers (caching, slicing, decoding) down to the Zarr array."""
    import zarr

    while index is not None and hasattr(data, "array"):
        if hasattr(data, "key"):
            index = _composed(data.key.tuple, index)
        data = data.array
    found = getattr(data, "_array", None)
    return (found, index) if isinstance(found, zarr.Array) and index is not None else None


def _composed(taken: Iterable[Any], index: Index) -> Index | None:
    """Return the place of a pixel before slicing; None for strides, and for what is no slice."""
    left, whole = list(index), []
    for one in taken:
        if isinstance(one, slice) and one.step in (None, 1) and (one.start or 0) >= 0 and left:
            whole.append((one.start or 0) + left.pop(0))
        elif hasattr(one, "__index__") and int(one) >= 0:
            whole.append(int(one))
        else:
            return None
    return None if left else tuple(whole)
