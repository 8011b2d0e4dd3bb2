"""Coarser copies of a result, so that a map of a continent can be looked at.

In: groups of a Zarr store that hold results. Out: below each a group per level, and the ``multiscales`` convention
that lists them. Each level is made from the one before, block by block, so that memory does not grow with the map:
classes by the most frequent one, floats by their mean, neither counting pixels without data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xgfm.errors import WriteError
from xgfm.grid import geobox_of, with_grid
from xgfm.store.layout import grid_conventions
from xgfm.store.objects import Objects, zarr_store
from xgfm.store.region import write_block
from xgfm.store.template import consolidate, template_differences, write_metadata

if TYPE_CHECKING:
    import zarr
    from odc.geo.geobox import GeoBox
    from zarr.abc.store import Store

FOLDER = "overviews"
_MULTISCALES = {
    "uuid": "d35379db-88df-4056-af3a-620245f8e347",
    "name": "multiscales",
    "schema_url": "https://raw.githubusercontent.com/zarr-conventions/multiscales/refs/tags/v0.1/schema.json",
    "spec_url": "https://github.com/zarr-conventions/multiscales/blob/v0.1/README.md",
    "description": "Multiscale layout of zarr datasets",
}


@dataclass(frozen=True)
class Piece:
    """One block of one level: whole shards of it, and the group that they are made from. It can be pickled."""

    store: Store
    source: str
    target: str
    names: tuple[str, ...]
    factor: int
    rows: slice
    columns: slice

    @property
    def record(self) -> str:
        """Name of what says that it is done, in the folder of its level."""
        return f"r{self.rows.start}-c{self.columns.start}"


def add_overviews(
    url: str | PathLike[str] | Store,
    groups: Sequence[str] = ("",),
    *,
    factor: int = 2,
    source: str = "",
    records: Objects | None = None,
    run: Callable[[Callable[[Piece], Any], Iterable[Piece]], Iterable[Any]] = map,
) -> None:
    """Add coarser levels to groups of a store, down to one inner chunk.

    A level is listed in its group's attributes when it is whole, and an interrupted call goes on with the first one
    that is not.

    Parameters
    ----------
    url : str, path or zarr Store
        Of the store; one that is open is left to the caller to commit.
    groups : sequence of str
        That hold results; ``""`` is the root.
    factor : int
        Rows and columns of a level that become one of the next.
    source : str
        What the pixels are, such as a digest of the ledger: overviews of another source are made anew.
    records : Objects, optional
        Where blocks of unfinished levels are written down, so that they are not made again.
    run : callable
        Applies a function to blocks and returns its results as they come, like `map`: of a pool, or of a cluster.

    Raises
    ------
    WriteError
        Where a variable is neither a map of classes nor floats.
    """
    store = url if not isinstance(url, str | PathLike) else zarr_store(url)
    for group in groups:
        _add_to(store, group, factor, source, records, run)
    if store.supports_consolidated_metadata:
        for path in (*(group for group in groups if group), ""):
            consolidate(store, path)


def coarser(values: np.ndarray, factor: int, nodata: float) -> np.ndarray:
    """Return ``(..., y, x)`` at a ``factor``-th of its resolution; the last cells may be cut by the edge.

    Floats become the mean of the cell's pixels that are not NaN. Anything else becomes the most frequent value of the
    cell; of several the one that comes first, row by row, which favours no class.

    Parameters
    ----------
    values : ndarray
        Pixels, or their classes.
    factor : int
        Rows and columns of a cell.
    nodata : float
        What is not counted; a cell of nothing else holds it.
    """
    edge = [(0, -size % factor) for size in values.shape[-2:]]
    padded = np.pad(values, [(0, 0)] * (values.ndim - 2) + edge, constant_values=nodata)
    planes = [padded[..., row::factor, column::factor] for row in range(factor) for column in range(factor)]
    return _mean(planes) if values.dtype.kind == "f" else _mode(planes, nodata)


def _mode(planes: list[np.ndarray], nodata: float) -> np.ndarray:
    best, most = planes[0].copy(), np.zeros(planes[0].shape, "uint16")
    for plane in planes:
        count = sum((plane == other).astype("uint16") for other in planes) * (plane != nodata)
        better = count > most
        best[better], most[better] = plane[better], count[better]
    return best


def _mean(planes: list[np.ndarray]) -> np.ndarray:
    total, count = np.zeros(planes[0].shape), np.zeros(planes[0].shape, "uint16")
    for plane in planes:
        valid = ~np.isnan(plane)
        total[valid] += plane[valid]
        count += valid
    mean: np.ndarray = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean.astype(planes[0].dtype, copy=False)


def _add_to(store: Store, group: str, factor: int, source: str, records: Objects | None, run: Any) -> None:
    """Add the missing levels of one group, one after the other."""
    base = xr.open_zarr(
        store, group=group or None, mask_and_scale=False, decode_coords="all", consolidated=False, chunks=None
    )
    names = _gridded(base, group)
    chunk, shard = (base[names[0]].encoding[key] for key in ("chunks", "shards"))
    chunk, shard = chunk[-1], (shard or chunk)[-1]
    levels = _listed(store, group, factor, source) or [_level(names[0], geobox_of(base))]
    box, finer, number = geobox_of(base), "", 0
    while max(box.shape) > chunk:
        box, number = _zoomed(box, factor), number + 1
        path = f"{FOLDER}/{factor**number}"
        if number >= len(levels):
            template = _template(base, names, box)
            began = _prepare(store, _below(group, path), template, chunk=chunk, shard=shard)
            pieces = _pieces(store, _below(group, finer), _below(group, path), tuple(names), factor, box, shard)
            _make(pieces, _records(source, _below(group, path)), records, run, anew=began)
            derived = {"derived_from": levels[-1]["asset"], "resampling_method": _method(base, names)}
            levels.append({**_level(path, box, factor), **derived})
            _list(store, group, levels, source, geobox_of(base))
        finer = path


def _records(source: str, target: str) -> str:
    """Return the folder of records of one level."""
    return f"{FOLDER}/{source or 'unnamed'}/{target}"


def _make(pieces: Iterator[Piece], folder: str, records: Objects | None, run: Any, *, anew: bool) -> None:
    """Make the blocks of a level that are not recorded."""
    done = set() if records is None else set(records.names(folder))
    if records is not None and anew:  # what they speak of is deleted
        for name in done:
            records.delete(name)
        done = set()
    missing = (piece for piece in pieces if f"{folder}/{piece.record}" not in done)
    for _ in run(partial(write_piece, records=records, folder=folder), missing):
        pass


def write_piece(piece: Piece, *, records: Objects | None, folder: str) -> None:
    """Make one block of a level, and record it."""
    import zarr

    paths = {name: _below(piece.source, name) for name in piece.names}
    arrays = {
        n: _coarse(zarr.open_array(piece.store, path=p, mode="r", zarr_format=3), piece) for n, p in paths.items()
    }
    write_block(piece.store, piece.target, arrays, piece.rows, piece.columns)
    if records is not None:
        records.put(f"{folder}/{piece.record}", b"")


def _coarse(array: zarr.Array[Any], piece: Piece) -> np.ndarray:
    """Read what a block is made from, one plane of the leading dimensions at a time, and make it coarser."""
    rows, columns = (
        slice(part.start * piece.factor, min(part.stop * piece.factor, size))
        for part, size in zip((piece.rows, piece.columns), array.shape[-2:], strict=True)
    )
    sides = (piece.rows.stop - piece.rows.start, piece.columns.stop - piece.columns.start)
    made = np.empty((*array.shape[:-2], *sides), array.dtype)
    for index in np.ndindex(array.shape[:-2]):
        plane = np.asarray(array[(*index, rows, columns)])
        made[index] = coarser(plane, piece.factor, array.fill_value)
    return made


def _gridded(base: xr.Dataset, group: str) -> list[str]:
    """Names of the variables on the grid, the map of classes first."""
    names = [str(n) for n, v in base.data_vars.items() if v.dims[-2:] == ("y", "x")]
    strange = [n for n in names if "flag_values" not in base[n].attrs and base[n].dtype.kind != "f"]
    if strange or not names:
        raise WriteError(
            f"group {group!r} holds {strange or list(base.data_vars)}; overviews are made of maps of classes (with "
            "flag_values) and of floats"
        )
    return sorted(names, key=lambda n: "flag_values" not in base[n].attrs)


def _method(base: xr.Dataset, names: list[str]) -> str:
    kinds = {"mode" if "flag_values" in base[n].attrs else "average" for n in names}
    return kinds.pop() if len(kinds) == 1 else "mode of classes, average of floats"


def _zoomed(box: GeoBox, factor: int) -> GeoBox:
    """Return the grid of the next level: the same upper left corner, and cells that may reach beyond the edge."""
    from affine import Affine
    from odc.geo.geobox import GeoBox

    rows, columns = (-(-size // factor) for size in box.shape)
    return GeoBox((rows, columns), box.affine * Affine.scale(factor), box.crs)


def _template(base: xr.Dataset, names: list[str], box: GeoBox) -> xr.Dataset:
    """Return the base with the shape of a level, its leading dimensions stored as they are there."""
    import dask.array as da

    variables = {}
    for name in names:
        variable = base[name]
        stored = variable.encoding["shards"] or variable.encoding["chunks"]
        data = da.empty((*variable.shape[:-2], *box.shape), dtype=variable.dtype, chunks=(*stored[:-2], -1, -1))
        variables[name] = (variable.dims, data, variable.attrs)
    coords = {name: c for name, c in base.coords.items() if not {"y", "x"} & set(c.dims)}
    attrs = {key: value for key, value in base.attrs.items() if key not in _group_attrs(box, {})}
    return with_grid(xr.Dataset(variables, coords, attrs), box)


def _prepare(store: Store, path: str, template: xr.Dataset, *, chunk: int, shard: int) -> bool:
    """Write a level's metadata, unless it stands there already; return whether it was written."""
    templates = {path: template}
    if template_differences(store, templates, chunk=chunk, shard=shard) == []:
        return False
    write_metadata(store, templates, chunk=chunk, shard=shard, consolidated=False, overwrite=True)
    return True


def _pieces(
    store: Store, source: str, target: str, names: tuple[str, ...], factor: int, box: GeoBox, shard: int
) -> Iterator[Piece]:
    height, width = box.shape
    for top in range(0, height, shard):
        for left in range(0, width, shard):
            rows, columns = slice(top, min(top + shard, height)), slice(left, min(left + shard, width))
            yield Piece(store, source, target, names, factor, rows, columns)


def _level(asset: str, box: GeoBox, factor: int = 1) -> dict[str, Any]:
    """Return the entry of a level in the layout."""
    return {
        "asset": asset,
        "transform": {"scale": [float(factor)] * 2},
        "spatial:shape": list(box.shape),
        "spatial:transform": list(box.transform[:6]),
    }


def _group_attrs(box: GeoBox, multiscales: dict[str, Any]) -> dict[str, Any]:
    """Return what the convention wants among the attributes of a group.

    Without the registration, which would make GDAL compare the scales with the number of dimensions.
    """
    attrs = grid_conventions(box)
    del attrs["spatial:registration"]
    return {**attrs, "zarr_conventions": [_MULTISCALES, *attrs["zarr_conventions"]], "multiscales": multiscales}


def _listed(store: Store, group: str, factor: int, source: str) -> list[dict[str, Any]]:
    """Return the levels that are whole, the base among them: none where they were made otherwise."""
    import zarr

    found: Any = zarr.open_group(store, path=group, mode="r", zarr_format=3, use_consolidated=False).attrs.get(
        "multiscales", {}
    )
    made = (found.get("xgfm:factor"), found.get("xgfm:source"))
    return list(found["layout"]) if made == (factor, source) else []


def _list(store: Store, group: str, levels: list[dict[str, Any]], source: str, box: GeoBox) -> None:
    """Write the levels into the group's attributes: those that are there are whole."""
    import zarr

    node = zarr.open_group(store, path=group, mode="r+", zarr_format=3, use_consolidated=False)
    factor = int(levels[-1]["transform"]["scale"][0])
    multiscales = {"layout": levels, "xgfm:factor": factor, "xgfm:source": source}
    node.attrs.update(_group_attrs(box, multiscales))


def _below(group: str, path: str) -> str:
    return f"{group}/{path}".strip("/")
