"""A result as one netCDF file that climate tools open without being told anything.

In: a lazy result, or one opened again. Out: netCDF-4 with CF metadata, chunked and compressed. Computed into a Zarr
store first, so that blocks may come in any order and from any machine; then copied chunk by chunk, and memory does not
grow with the map.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.util import find_spec
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from xgfm import cf
from xgfm.errors import MissingExtraError
from xgfm.store.layout import as_dataset, choose_variable
from xgfm.store.path import local_file, written_whole
from xgfm.store.write import to_zarr

SUFFIXES = (".nc", ".nc4", ".cdf")
COMPRESSION = {"zlib": True, "complevel": 4, "shuffle": True}
_OF_ZARR = ("zarr_conventions", "multiscales", "proj:", "spatial:")
"""Attributes, or what they begin with, that speak of the store that a result comes from."""
_OF_ENCODING = ("_FillValue", "grid_mapping", "units", "calendar", "coordinates")
"""What xarray writes from the encoding, and refuses among the attributes."""
_LAYOUT = ("dtype", "scale_factor", "add_offset", "_FillValue", "grid_mapping")
"""Encoding of a Zarr store that means the same in netCDF."""
_REFERENCES = ("bounds", "cell_measures")
"""Attributes that xarray moves into the encoding where it opens with ``decode_coords="all"``."""
_DTYPES = {"float16": "float32", "bool": "uint8"}
"""What netCDF has no type for, and the smallest that it has."""
_LAST = ("time", "lat", "lon", "y", "x")
"""Dims that CF wants last, in this order."""
_STEPS = {"days": 86_400_000_000_000, "seconds": 1_000_000_000, "milliseconds": 1_000_000, "microseconds": 1_000}
"""Nanoseconds of the units of time, the coarsest first."""


def to_netcdf(
    result: xr.Dataset | xr.DataArray,
    path: str | PathLike[str],
    *,
    variable: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Write a result as a netCDF-4 file that follows CF-1.11.

    Parameters
    ----------
    result : Dataset or DataArray
        What `predict`, `embed`, `reconstruct` or `to_climate` returned, or a store of it opened again, with or without
        masking. Computed here, block by block, by way of a scratch folder beside ``path``.
    path : str or path
        Local file, ``.nc``.
    variable : str, optional
        Write this variable alone, with what it names: its coordinates and their bounds, areas of cells, and ancillary
        variables. A file of CMIP6 has one variable: ``variable="cropFrac"``.
    overwrite : bool
        Replace the file that is there; it stays until the new one is whole.
    progress : bool
        Show Dask's progress bar.

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    WriteError
        Where the path is taken, has another name than netCDF's, is no local file or cannot be written; it says what is
        left on disk.
    CubeError
        For a path in place of a result, and for the root of a store that holds its maps in groups.
    GridError
        Where the result has no CRS or no regular grid.
    XgfmError
        For a ``variable`` that is not there.
    MissingExtraError
        Without the package netCDF4.

    Notes
    -----
    Class maps stay uint8 with ``_FillValue`` 255, and their ``flag_values`` have that type, as CF asks. float16, which
    netCDF does not have, becomes float32. Dims other than time, y and x come first. Names that CF does not allow
    (``eo:cloud_cover``) get ``_`` for what stands in the way, and words along a dim (``band``) are called
    ``band_name``. Attributes of Zarr's conventions are left out: ``spatial_ref`` says the same.
    """
    target = local_file(path, "netCDF", SUFFIXES)
    if find_spec("netCDF4") is None:
        raise MissingExtraError("netCDF4", "netcdf", "to_netcdf")
    dataset = as_dataset(result)
    dataset = dataset if variable is None else alone(dataset, variable)
    with written_whole(target, overwrite=overwrite, inside="map.nc") as partial:
        if {"y", "x"} <= set(dataset.dims):
            to_zarr(_without_half_floats(dataset), partial / "map.zarr", progress=progress)
            with xr.open_zarr(partial / "map.zarr", mask_and_scale=False, decode_coords="all") as stored:
                _write(described(stored), partial / "map.nc")
        else:
            _write(described(dataset), partial / "map.nc")
    return target


def alone(dataset: xr.Dataset, variable: str) -> xr.Dataset:
    """Return a variable with what it names, and without coordinates that are of other variables. Lazy."""
    out = _with_references(dataset)
    main = out[choose_variable(out, variable)]
    words = (str(main.attrs.get(link, "")).split() for link in ("ancillary_variables", "cell_measures"))
    bounds = {c.attrs.get("bounds") for c in out.coords.values()}
    kept = {main.name, *chain.from_iterable(words), *bounds}
    out = out.drop_vars([n for n in out.data_vars if n not in kept])
    declared = main.encoding.get("coordinates")
    listed = None if declared is None else declared.split()
    named = kept | {cf.GRID_MAPPING, main.encoding.get("grid_mapping"), *(listed or ())}
    elsewhere = [
        n
        for n, c in out.coords.items()
        if n not in out.dims and n not in named and (listed is not None or not set(c.dims) <= set(main.dims))
    ]
    out = out.drop_vars([*elsewhere, *(n for n in out.coords if n in out.dims and n not in main.dims)])
    for name, companion in out.data_vars.items():
        if listed is not None and name != main.name:
            fits = [w for w in listed if w in out.coords and out[w].ndim and set(out[w].dims) <= set(companion.dims)]
            companion.encoding["coordinates"] = " ".join(fits) or None
    return out


def described(dataset: xr.Dataset) -> xr.Dataset:
    """Return a result with the names, attributes and encoding that netCDF and CF ask for. Lazy.

    Parameters
    ----------
    dataset : Dataset
        Of any dims; its grid mapping is a coordinate.

    Returns
    -------
    Dataset
        Sharing the pixels; `xarray.Dataset.to_netcdf` needs no further option.
    """
    out = _labels_aside(_with_references(dataset).rename(_legal_names(dataset)))
    bounds = {v.attrs.get("bounds") for v in out.variables.values()}
    for name, given in list(out.variables.items()):
        variable = _ordered(given)
        variable.encoding = {**_encoding(variable, out.sizes), **_links(variable, out)}
        attrs = _attached(_attrs(variable), out)
        variable.attrs = attrs if name in bounds else _named(str(name), attrs)
        out[name] = variable
    for name in [n for n, v in out.variables.items() if v.dtype.kind == "M" and n not in bounds]:
        _encode_time(out, str(name))
    # As coordinates, bounds and areas would be named in a global attribute that CF has no place for.
    aside = [n for n in out.coords if n in bounds | _measures(out)]
    out = out.reset_coords(aside)
    for name in aside:
        out[name].encoding["coordinates"] = None
    facts = {"title": _title(out), **_legal_attrs(dataset.attrs)}
    out.attrs = {**facts, "history": _history(facts), "Conventions": cf.CONVENTIONS}
    out.encoding = {}
    return out


def _write(dataset: xr.Dataset, path: Path) -> None:
    """Write chunk by chunk: one thread, as HDF5 has one lock, and one chunk in memory."""
    import dask

    with dask.config.set(scheduler="synchronous"):
        dataset.to_netcdf(path, engine="netcdf4", format="NETCDF4")


def _without_half_floats(dataset: xr.Dataset) -> xr.Dataset:
    """Cast what netCDF has no type for, lazily and keeping the encoding that is not the type's."""
    dataset = dataset.copy()
    for name, variable in dataset.data_vars.items():
        wanted = _DTYPES.get(str(variable.dtype))
        if wanted is not None:
            kept = {k: v for k, v in variable.encoding.items() if k != "dtype"}
            dataset[name] = variable.astype(wanted)
            dataset[name].encoding = kept
    return dataset


def _encoding(variable: xr.Variable, sizes: Mapping[Any, int]) -> dict[str, Any]:
    """Return the encoding of one variable: chunks and compression on a grid, no fill value on coordinates."""
    given = {**{k: v for k, v in variable.attrs.items() if k in _OF_ENCODING}, **variable.encoding}
    if variable.dtype.kind == "M":
        return {k: v for k, v in given.items() if k in ("units", "calendar", "dtype")}
    kept = {k: v for k, v in given.items() if k in _LAYOUT and v is not None}
    if variable.ndim < 2 or variable.dtype.kind not in "iuf":
        return {**({"dtype": str} if variable.dtype.kind in "OU" else {}), "_FillValue": None}
    chunks = given.get("chunks") or [min(size, 512) for size in variable.shape]
    kept["chunksizes"] = tuple(min(c, sizes[d]) for c, d in zip(chunks, variable.dims, strict=True))
    kept.setdefault("_FillValue", None)
    return {**kept, **COMPRESSION}


def _links(variable: xr.Variable, dataset: xr.Dataset) -> dict[str, Any]:
    """Return which coordinates a variable names, where it says so and they are there: an area type is of one alone."""
    named = variable.encoding.get("coordinates", "?")
    return {"coordinates": named} if all(word in dataset.coords for word in (named or "").split()) else {}


def _with_references(dataset: xr.Dataset) -> xr.Dataset:
    """Return a copy whose variables name bounds and measures in their attributes; opened, they may in the encoding."""
    out = dataset.copy()
    for variable in out.variables.values():
        moved = {k: variable.encoding[k] for k in _REFERENCES if variable.encoding.get(k)}
        variable.attrs = {**moved, **variable.attrs}
    return out


def _measures(dataset: xr.Dataset) -> set[str]:
    """Return the names of the variables that hold areas of cells."""
    return {w for v in dataset.variables.values() for w in str(v.attrs.get("cell_measures", "")).split()}


def _attached(attrs: dict[str, Any], dataset: xr.Dataset) -> dict[str, Any]:
    """Return attributes that name no ancillary variable which is not there."""
    words = [w for w in str(attrs.get("ancillary_variables", "")).split() if w in dataset.variables]
    rest = {k: v for k, v in attrs.items() if k != "ancillary_variables"}
    return {**rest, "ancillary_variables": " ".join(words)} if words else rest


def _legal_names(dataset: xr.Dataset) -> dict[str, str]:
    """Return new names of variables and dims that are no names to CF."""
    names = {str(n) for n in (*dataset.variables, *dataset.dims)}
    return {n: _legal_name(n) for n in names if _legal_name(n) != n}


def _labels_aside(dataset: xr.Dataset) -> xr.Dataset:
    """Return strings along a dim as ``<dim>_name``: to CF a variable named like its dim is a number that grows."""
    words = [str(n) for n, c in dataset.coords.items() if c.dims == (n,) and c.dtype.kind in "OUT"]
    return dataset.reset_index(words).rename_vars({n: f"{n}_name" for n in words}) if words else dataset


def _title(dataset: xr.Dataset) -> str:
    """Return what a result without a title is called."""
    first = next(iter(dataset.data_vars.values()), None)
    return "result" if first is None else str(first.attrs.get("long_name", first.name))


def _ordered(variable: xr.Variable) -> xr.Variable:
    """Return a copy that shares the pixels; of one on a grid, time and space are last."""
    gridded = {"y", "x"} <= set(variable.dims) or {"lat", "lon"} <= set(variable.dims)
    ordered = variable.transpose(..., *(d for d in _LAST if d in variable.dims and gridded))
    stored = [variable.encoding[k] for k in ("chunks", "chunksizes") if variable.encoding.get(k)]
    sides = dict(zip(variable.dims, stored[0], strict=True)) if stored else {}
    ordered.encoding = (
        {**variable.encoding, "chunks": tuple(sides[d] for d in ordered.dims)} if sides else {**variable.encoding}
    )
    return ordered


def _named(name: str, attrs: dict[str, Any]) -> dict[str, Any]:
    known = {"standard_name", "long_name", "grid_mapping_name"} & set(attrs)
    return attrs if known else {"long_name": name.replace("_", " "), **attrs}


def _attrs(variable: xr.Variable) -> dict[str, Any]:
    """Return attributes that netCDF can hold, with flags of the type that the variable has on disk."""
    time = variable.dtype.kind == "M"
    dropped = [n for n in _OF_ENCODING if n != "units" or time]
    attrs = {k: v for k, v in _legal_attrs(variable.attrs).items() if k not in dropped}
    dtype = np.dtype(variable.encoding.get("dtype", variable.dtype)) if not time else None
    for flags in ("flag_values", "flag_masks", "valid_range", "valid_min", "valid_max"):
        if flags in attrs and dtype is not None:
            attrs[flags] = np.asarray(attrs[flags], dtype)
    return attrs


def _legal_attrs(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Return what netCDF can hold of some attributes: no empty ones, records as JSON text, truth as 0 and 1."""
    kept = {str(k): v for k, v in attrs.items() if not str(k).startswith(_OF_ZARR)}
    kept = {k: v for k, v in kept.items() if not (v is None or (isinstance(v, list | tuple) and not v))}
    return {_legal_name(name): _legal_value(value) for name, value in kept.items()}


def _legal_value(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    nested = isinstance(value, list | tuple) and any(isinstance(v, dict | list | tuple | None) for v in value)
    if isinstance(value, dict) or nested:
        return json.dumps(value)
    return value


def _legal_name(name: str) -> str:
    """Return a name of letters, digits and ``_``, as CF recommends; ``_FillValue`` keeps its first letter."""
    return re.sub(r"[^A-Za-z0-9_]", "_", name)


def _history(attrs: Mapping[str, Any]) -> str:
    """Return CF's audit trail with a line for this file."""
    line = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} written by xgfm.to_netcdf"
    return "\n".join([*([str(attrs["history"])] if attrs.get("history") else []), line])


def _encode_time(dataset: xr.Dataset, name: str) -> None:
    """Give a time and its bounds the same unit, the coarsest that holds both exactly."""
    bounds = dataset[name].attrs.get("bounds")
    members = [dataset.variables[n] for n in (name, bounds) if n in dataset.variables]
    units = _unit(member.values for member in members)
    members[0].attrs.setdefault("units_metadata", "leap_seconds: unknown")  # what catalogues do not tell
    for member in members:
        exact = {"units": f"{units} since 1970-01-01", "calendar": "standard", "dtype": "int64"}
        # Double precision is asked for where CMIP's tables are followed.
        double = np.dtype(member.encoding.get("dtype", "int64")).kind == "f"
        member.encoding = {**(member.encoding if double else exact), "_FillValue": None}


def _unit(times: Iterable[np.ndarray]) -> str:
    """Return the coarsest unit of which all times are whole numbers."""
    stamps = np.concatenate([t.astype("datetime64[ns]").astype("int64").ravel() for t in times])
    return next((unit for unit, step in _STEPS.items() if not (stamps % step).any()), "nanoseconds")
