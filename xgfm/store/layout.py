"""A result as it is to stand in a Zarr store: chunks and shards, fill values, CF attributes, georeference.

In: a lazy result, or a cube, that carries its grid. Out: the same as a Dataset whose Dask chunks are whole shards and
whose encoding is complete, so that writing needs no further option. Everything stays lazy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xgfm import cf
from xgfm.cube.hrefs import redacted
from xgfm.errors import CubeError, GridError, WriteError, XgfmError
from xgfm.grid import geobox_of, with_grid
from xgfm.store.objects import zarr_store

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

CHUNK = (256, 512)
"""Least and largest side of an inner chunk, in pixels, where none is given."""
LISTED = 5
"""Groups that a message names."""
_MEANING = ("dtype", "scale_factor", "add_offset", "units", "calendar")
"""Encoding that says what values mean; whatever else a reopened result brings is the layout of another file."""
_DECODED = ("grid_mapping", "_FillValue")
"""Encoding that stands among the attributes of what was opened with decoding off."""
_CONVENTIONS = (
    ("proj", "f17cb550-5864-4468-aeb7-f3180cfb622f", "Coordinate reference system information for geospatial data"),
    ("spatial", "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "Spatial coordinate information"),
)


def prepared(result: xr.Dataset | xr.DataArray, *, chunk: int | None = None, shard: int | None = None) -> xr.Dataset:
    """Return a result as it is to stand in a Zarr store: Dask chunks of whole shards, CF attributes, encoding. Lazy."""
    dataset = as_dataset(result)
    geobox = geobox_of(dataset)
    dataset = _strings_as_objects(with_grid(dataset, geobox))
    inner, whole = _layout(dataset, chunk, shard)
    for name, variable in list(dataset.variables.items()):
        if _on_grid(variable):
            dataset[name] = variable.chunk({d: whole[d] for d in variable.dims})
    for name, variable in dataset.variables.items():
        _check_json(f"variable {name!r}", variable.attrs)
        bounds = {k: v for k, v in variable.encoding.items() if k == "bounds" and v in dataset.variables}
        variable.encoding = {**_encoding(variable, inner, whole), **bounds}
        kept = {k: v for k, v in variable.attrs.items() if k not in _DECODED}
        variable.attrs = {**kept, **(grid_conventions(geobox) if _on_grid(variable) else {})}
    _check_json("the result", dataset.attrs)
    dataset.attrs["Conventions"] = cf.CONVENTIONS
    dataset.encoding = {}
    return dataset


def as_dataset(result: xr.Dataset | xr.DataArray) -> xr.Dataset:
    """Return a copy that shares the pixels, ``y`` and ``x`` last, the grid mapping variable among the coordinates.

    Raises
    ------
    CubeError
        For a path, for anything else that xarray does not know, and for a group without variables, such as the root of
        a store that holds a map for each tile.
    """
    if not isinstance(result, xr.Dataset | xr.DataArray):
        raise CubeError(_not_opened(result))
    dataset = result.to_dataset(name=result.name or "data") if isinstance(result, xr.DataArray) else result
    named = {v.encoding.get("grid_mapping", v.attrs.get("grid_mapping")) for v in dataset.data_vars.values()}
    # Reopened without decode_coords="all", it is an ordinary variable.
    dataset = dataset.set_coords([n for n in named if n in dataset.data_vars])
    if not dataset.data_vars:
        raise CubeError(_empty(dataset))
    return dataset.transpose(..., "y", "x", missing_dims="ignore")


def _not_opened(given: Any) -> str:
    if not isinstance(given, str | PathLike):
        return f"a {type(given).__name__} is no Dataset and no DataArray; give what predict returned, or a store opened"
    path = redacted(str(given))
    return f'{path!r} is a path, and a Dataset is needed; give xr.open_zarr({path!r}, decode_coords="all")'


def _empty(dataset: xr.Dataset) -> str:
    """Say which groups there are where the root of a store was opened."""
    source = dataset.encoding.get("source")
    groups = _groups(source) if isinstance(source, str) else []
    if not groups:
        return (
            "the Dataset holds no variable; give what predict returned, or a group of a store with "
            'xr.open_zarr(path, group=..., decode_coords="all")'
        )
    path, more = redacted(str(source)), f" and {len(groups) - LISTED} more" if len(groups) > LISTED else ""
    return (
        f"{path!r} holds no variable at its root, but has groups {groups[:LISTED]}{more}; open one of them with "
        f'xr.open_zarr({path!r}, group={groups[0]!r}, decode_coords="all")'
    )


def _groups(source: str) -> list[str]:
    """Return the groups below the root of what a Dataset was opened from, where that is a Zarr store."""
    import zarr

    try:
        return sorted(map(str, zarr.open_group(zarr_store(source), mode="r").group_keys()))
    except (OSError, ValueError):  # another format, or gone: the message does without
        return []


def choose_variable(dataset: xr.Dataset, variable: str | None) -> str:
    """Return the variable that is named, or the class map, or the only one there is."""
    names = [str(n) for n in dataset.data_vars]
    maps = [n for n in names if "flag_values" in dataset[n].attrs] or names
    if variable is None and len(maps) == 1:
        return maps[0]
    if variable is None or variable not in names:
        raise XgfmError(f"cannot tell which variable is meant: variable={variable!r}, and there are {names}; name one")
    return variable


def _on_grid(variable: xr.Variable) -> bool:
    return variable.dims[-2:] == ("y", "x")


def _strings_as_objects(dataset: xr.Dataset) -> xr.Dataset:
    """Fixed-length strings have no Zarr v3 specification; variable-length ones, which objects become, have."""
    fixed = [n for n, c in dataset.coords.items() if c.dtype.kind == "U"]
    return dataset.assign_coords({n: dataset.coords[n].astype(object) for n in fixed})


def _layout(
    dataset: xr.Dataset, chunk: int | None, shard: int | None
) -> tuple[dict[Hashable, int], dict[Hashable, int]]:
    """Inner chunk and shard along each dimension: whole Dask chunks, cut to single steps of leading dimensions."""
    inner: dict[Hashable, int] = {}
    whole: dict[Hashable, int] = {}
    gridded = [v for v in dataset.variables.values() if _on_grid(v)]
    for dim, size in dataset.sizes.items():
        lazy = max((max(v.chunksizes[dim]) for v in gridded if dim in v.chunksizes), default=0)
        inner[dim], whole[dim] = _split(size, lazy, chunk, shard) if dim in ("y", "x") else (1, lazy or size)
    return inner, whole


def _split(size: int, lazy: int, chunk: int | None, shard: int | None) -> tuple[int, int]:
    """Inner chunk and shard of an axis of ``size`` pixels in Dask chunks of ``lazy`` (0: not lazy)."""
    if chunk and shard and shard % chunk:
        raise WriteError(f"shard={shard} is not a whole number of inner chunks; give a multiple of chunk={chunk}")
    least, largest = CHUNK
    whole = min(shard or lazy or 4 * (chunk or largest), size)
    divisors = (d for d in range(largest, least - 1, -1) if whole % d == 0)
    inner = min(chunk or next(divisors, largest), whole)
    return inner, math.ceil(whole / inner) * inner


def _encoding(variable: xr.Variable, inner: Mapping[Hashable, int], whole: Mapping[Hashable, int]) -> dict[str, Any]:
    """Layout, compression and fill of a gridded variable; other coordinates are small and stay in one chunk."""
    from zarr.codecs import BloscCodec, ZstdCodec

    kept = {k: v for k, v in variable.encoding.items() if k in _MEANING}
    if not _on_grid(variable):
        return {**kept, "_FillValue": None} if variable.dtype.kind == "f" else kept
    chunks, shards = (tuple(sizes[d] for d in variable.dims) for sizes in (inner, whole))
    single = np.dtype(kept.get("dtype", variable.dtype)).itemsize == 1
    return {
        **kept,
        **_fill(variable),
        "grid_mapping": cf.GRID_MAPPING,
        "chunks": chunks,
        # A shard of one chunk is a chunk, and GDAL before 3.13 reads those only.
        "shards": None if chunks == shards else shards,
        # Shuffling bytes pays where a value has several.
        "compressors": (ZstdCodec() if single else BloscCodec(cname="zstd", shuffle="shuffle"),),
    }


def _fill(variable: xr.Variable) -> dict[str, Any]:
    """The fill value: the result's own, that of its kind, or a cube's nodata, which must not turn int16 into floats."""
    given = variable.encoding.get("_FillValue", variable.attrs.get("_FillValue"))
    if given is not None:
        return {"_FillValue": given, "fill_value": given}
    if "flag_values" in variable.attrs or variable.dtype.kind == "f":
        return cf.fill_encoding(variable.dtype)
    nodata = variable.attrs.get("nodata")
    return {} if nodata is None else {"fill_value": nodata}


def grid_conventions(geobox: GeoBox) -> dict[str, Any]:
    """Return the attributes of the Zarr conventions ``proj:`` and ``spatial:`` (v0.1) for an array on a grid.

    The names end in a colon because rioxarray compares names where the specification means uuids.
    """
    declared = [
        {
            "uuid": key,
            "name": f"{name}:",
            "schema_url": f"https://raw.githubusercontent.com/zarr-conventions/{name}/refs/tags/v0.1/schema.json",
            "spec_url": f"https://github.com/zarr-conventions/{name}/blob/v0.1/README.md",
            "description": description,
        }
        for name, key, description in _CONVENTIONS
    ]
    crs = geobox.crs
    if crs is None:
        raise GridError("the grid has no CRS; attach one with xgfm.grid.with_grid(result, geobox)")
    reference = {"proj:code": f"EPSG:{crs.epsg}"} if crs.epsg else {"proj:wkt2": crs.proj.to_wkt("WKT2_2019")}
    return {
        "zarr_conventions": declared,
        **reference,
        "spatial:dimensions": ["y", "x"],
        "spatial:shape": list(geobox.shape),
        "spatial:transform": list(geobox.transform[:6]),
        "spatial:bbox": list(geobox.boundingbox.bbox),
        "spatial:registration": "pixel",
    }


def _check_json(owner: str, attrs: Mapping[Any, Any]) -> None:
    """Refuse an attribute that is not JSON before anything is computed."""
    for key, value in attrs.items():
        try:
            json.dumps(value.tolist() if isinstance(value, np.ndarray | np.generic) else value)
        except TypeError as error:
            raise WriteError(
                f"attribute {key!r} of {owner} is a {type(value).__name__}, which Zarr cannot hold; "
                f"expected JSON values, drop it with .attrs.pop({key!r})"
            ) from error
