"""Sums on a climate grid as a Dataset that climate tools open: fractions with bounds, methods, measures and flags.

In: `CellSums`. Out: a Dataset that follows CF-1.11, or the names, units and axes of CMIP6 (`cmip`). What was lazy stays
so; nothing here reads a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from xgfm import cf
from xgfm.climate.area_types import area_types_of, suggest_area_types
from xgfm.climate.sums import CellSums
from xgfm.errors import CubeError, LabelError, XgfmError
from xgfm.grid import with_grid

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Array = np.ndarray[Any, Any]
Mode = Literal["cf", "cmip"]
TIME_ENCODING: Mapping[str, Any] = {"units": "days since 1850-01-01", "calendar": "standard", "dtype": "float64"}
"""Of time and of its bounds, which xarray's Zarr writer would otherwise give units of their own."""
DENOMINATOR = (
    "Share of the part of the cell that the map gives a class; valid_area_fraction says how large that part is. "
    "Counted on a map, whose errors go into it."
)


def described(
    sums: CellSums,
    *,
    mode: Mode = "cf",
    min_valid: float = 0.0,
    sample_error: ArrayLike | None = None,
    area_types: Mapping[str, str] | None = None,
) -> xr.Dataset:
    """Make fractions of sums, with their metadata.

    Parameters
    ----------
    sums
        On a climate grid; lazy arrays stay lazy.
    mode
        "cf": shares from 0 to 1 in one variable, as CF-1.11 has them. "cmip": names, units and axes of CMIP6, in
        percent of the whole cell; it needs ``area_types``, a grid in degrees, and times.
    min_valid
        Cells of which a smaller share has a class are missing, 0 to 1.
    sample_error
        Standard error of `area_fraction`, from a reference sample; any shape that fits ``(class, time, lat, lon)``.
    area_types
        From class to a name of CF's area type table; see `area_types.suggest_area_types`. For "cf" every class needs
        one.

    Returns
    -------
    Dataset
        ``area_fraction (class, time, lat, lon)`` and what goes with it, or for "cmip" a variable for each area type
        (see `cmip.as_cmip`). Where the map does not say its time, the dimension is left out. On a GeoBox the last
        dimensions are ``(y, x)``.

    Raises
    ------
    LabelError
        For a table that does not fit the legend or lacks a class.
    CubeError
        Where some times are known and others not, or none in CMIP mode.
    """
    if mode not in ("cf", "cmip"):
        raise XgfmError(f"mode={mode!r}; expected 'cf' or 'cmip'")
    if not 0 <= min_valid <= 1:
        raise XgfmError(f"min_valid={min_valid}; expected a share of the cell, 0 to 1")
    if mode == "cmip":
        from xgfm.climate.cmip import as_cmip

        return as_cmip(sums, min_valid=min_valid, sample_error=sample_error, area_types=area_types)
    kinds = _all_types(sums.classes, area_types)
    out = fractions(sums, min_valid=min_valid, sample_error=sample_error)
    out = out.assign_coords(_class_coordinates(sums, kinds))
    out.attrs = facts(sums)
    return _finished(located(out, sums))


def fractions(sums: CellSums, *, min_valid: float, sample_error: ArrayLike | None) -> xr.Dataset:
    """Return shares without coordinates: ``area_fraction`` and its companions, NaN where too little has a class."""
    flat = ("time", *sums.grid.dims)
    full = ("class", *flat)
    area, valid = xr.Variable(full, sums.area), xr.Variable(flat, sums.valid_area)
    cell = xr.Variable(sums.grid.dims, sums.cell_area)
    # Centres of pixels decide in whose cell most of them count, so a full cell can come out a little above 1.
    share = (valid / cell).clip(max=1.0)
    seen = valid.where((valid > 0) & (share >= min_valid))
    out = {"area_fraction": (area / seen).transpose(*full)}
    if sums.probability is not None:
        out["soft_area_fraction"] = (xr.Variable(full, sums.probability) / seen).transpose(*full)
    if sample_error is not None:
        error = xr.Variable(full, np.broadcast_to(_trailing(sample_error, 4), sums.area.shape))
        out["area_fraction_standard_error"] = error.where(seen.notnull()).transpose(*full)
    out["valid_area_fraction"] = share
    out = {name: variable.astype("float32") for name, variable in out.items()}
    out["number_of_observations"] = xr.Variable(full, sums.count).sum("class")
    out["cell_area"] = cell
    return xr.Dataset(out)


def _trailing(values: ArrayLike, dims: int) -> Array:
    """Return an array of one value per class, or of more dimensions, as one of ``dims``."""
    array = np.asarray(values, "float64")
    return array.reshape(array.shape + (1,) * (dims - array.ndim))


def located(out: xr.Dataset, sums: CellSums) -> xr.Dataset:
    """Give a Dataset the coordinates of the sums, with their bounds: place, and time where it is known."""
    out = _on_geobox(out, sums) if sums.grid.geobox is not None else _on_degrees(out, sums)
    unknown = np.isnat(sums.times)
    if unknown.all() and len(unknown) == 1:
        return out.isel(time=0)
    if unknown.any():
        raise CubeError(
            f"{unknown.sum()} of {len(unknown)} maps do not say their time; give it to each with "
            "xgfm.stack_maps(maps, times=[...])"
        )
    return out.assign_coords(_times(sums))


def _on_degrees(out: xr.Dataset, sums: CellSums) -> xr.Dataset:
    from pyproj import CRS

    coords: dict[str, xr.Variable] = {cf.GRID_MAPPING: xr.Variable((), np.int32(0), CRS("EPSG:4326").to_cf())}
    edges = {"lat": sums.grid.lat_bounds, "lon": sums.grid.lon_bounds}
    for name, axis, values in (("lat", "y", sums.grid.lat), ("lon", "x", sums.grid.lon)):
        attrs = {**cf.axis_attrs(axis, geographic=True), "bounds": f"{name}_bnds"}
        coords[name] = xr.Variable(name, np.asarray(values, "float64"), attrs)
        coords[f"{name}_bnds"] = xr.Variable((name, "bnds"), np.asarray(edges[name], "float64"))
    return out.assign_coords(coords)


def _on_geobox(out: xr.Dataset, sums: CellSums) -> xr.Dataset:
    box = sums.grid.geobox
    assert box is not None
    out = with_grid(out, box)
    for name, step in (("y", box.resolution.y), ("x", box.resolution.x)):
        centres = out[name].values
        out[name].attrs["bounds"] = f"{name}_bnds"
        edges = np.stack([centres - step / 2, centres + step / 2], axis=1)
        out = out.assign_coords({f"{name}_bnds": ((name, "bnds"), edges)})
    return out


def has_periods(sums: CellSums) -> bool:
    """Whether every map stands for a stretch of time, rather than a moment."""
    return bool((sums.time_bounds[:, 0] < sums.time_bounds[:, 1]).all())  # False for NaT


def _times(sums: CellSums) -> dict[str, xr.Variable]:
    attrs = {"standard_name": "time", "long_name": "time", "axis": "T", "units_metadata": "leap_seconds: unknown"}
    bounded = has_periods(sums)
    coords = {"time": xr.Variable("time", sums.times, {**attrs, **({"bounds": "time_bnds"} if bounded else {})})}
    if bounded:
        coords["time_bnds"] = xr.Variable(("time", "bnds"), sums.time_bounds)
    return coords


def _class_coordinates(sums: CellSums, kinds: tuple[str, ...]) -> dict[str, xr.Variable]:
    words = cf.flag_words(sums.classes)
    number = np.asarray(sums.values, "uint8" if max(sums.values, default=0) < 256 else "int32")
    attrs = {"long_name": "class", "flag_values": number, "flag_meanings": " ".join(words)}
    colors = {"flag_colors": " ".join(sums.colors)} if sums.colors else {}
    coords = {
        "class": xr.Variable("class", number, {**attrs, **colors}),
        # A coordinate of numbers for Zarr, and one of words for people and for tools that know no flags.
        "class_name": xr.Variable("class", words_array(sums.classes), {"long_name": "name of the class"}),
    }
    if kinds:
        coords["area_type"] = xr.Variable(
            "class", words_array(kinds), {"standard_name": "area_type", "long_name": "area type of the class"}
        )
    return coords


def words_array(words: Sequence[str]) -> Array:
    """Return words as an array: of variable length, because Zarr v3 has no fixed-length strings."""
    return np.asarray(list(words), object)


def _all_types(classes: tuple[str, ...], given: Mapping[str, str] | None) -> tuple[str, ...]:
    """Return the area type of each class; none at all without a table."""
    if given is None:
        return ()
    kinds = area_types_of(classes, given)
    without = [name for name, kind in zip(classes, kinds, strict=True) if kind is None]
    if without:
        raise LabelError(
            f"area_types= gives no type to {without}, and CF's coordinate area_type needs one for each class; "
            f"add them: by their words they would be {suggest_area_types(without)}, or leave area_types= out"
        )
    return tuple(kind for kind in kinds if kind is not None)


def facts(sums: CellSums) -> dict[str, Any]:
    """Return what the Dataset says of itself: what the map says, and what was made of it."""
    title, version = (
        str(sums.attrs.get("title", sums.attrs.get("long_name", ""))).strip(),
        str(sums.attrs.get("xgfm_version", "")).strip(),
    )
    made = f"classes of a map summed in the cells of the grid {sums.grid.name} by xgfm {version}".rstrip()
    named = f"{title}: shares of classes" if title else "shares of classes"
    own = {k: v for k, v in sums.attrs.items() if k != "long_name"}  # of a variable, not of a file
    return {**own, "title": named, "history": made, "Conventions": cf.CONVENTIONS}


def _finished(out: xr.Dataset) -> xr.Dataset:
    """Attributes and encoding of every variable, once its dimensions are settled."""
    methods = cell_methods(out)
    # The area of cells is a measure of theirs, which `cell_measures` names.
    plain = [name for name in _PLAIN if name in out and name != "cell_area"]
    companions = [name for name in ("area_fraction_standard_error",) if name in out] + plain
    attrs: dict[str, dict[str, Any]] = {
        "area_fraction": {"standard_name": "area_fraction", "long_name": "share of each class", "units": "1",
                          "comment": DENOMINATOR, "ancillary_variables": " ".join(companions)},
        "soft_area_fraction": {"standard_name": "area_fraction", "long_name": "mean probability of each class",
                               "units": "1",
                               "ancillary_variables": " ".join(plain)},
        "area_fraction_standard_error": {"standard_name": "area_fraction standard_error", "units": "1",
                                         "long_name": "standard error of the share of each class",
                                         "comment": "by a reference sample"},
        **_PLAIN,
    }  # fmt: skip
    for name, variable in out.data_vars.items():
        variable.attrs = dict(attrs[str(name)])
        if name != "cell_area":
            variable.attrs |= {"cell_measures": "area: cell_area", **methods(str(name))}
    return encoded(out, math.nan)


_PLAIN: Mapping[str, dict[str, Any]] = {
    "valid_area_fraction": {"long_name": "share of the cell that the map gives a class", "units": "1"},
    "number_of_observations": {"standard_name": "number_of_observations", "units": "1",
                               "long_name": "pixels of the map that have a class",
                               "comment": "a pixel on the edge of a cell counts by its parts"},
    "cell_area": {"standard_name": "cell_area", "long_name": "area of the cell on the WGS84 ellipsoid", "units": "m2"},
}  # fmt: skip


def cell_methods(out: xr.Dataset) -> Any:
    """Return a function from a variable's name to its ``cell_methods``."""
    time = {True: " time: mean", False: " time: point"}["time_bnds" in out.coords] if "time" in out.dims else ""

    def of(name: str) -> dict[str, str]:
        # The error of a mean and a count of pixels are no means over the cell.
        return (
            {} if name == "area_fraction_standard_error" else {"cell_methods": f"area: {_OVER.get(name, 'mean')}{time}"}
        )

    return of


_OVER = {"number_of_observations": "sum"}


def encoded(out: xr.Dataset, missing: float) -> xr.Dataset:
    """Set encoding: fill values on variables alone, and one unit of time."""
    for coordinate in out.coords.values():
        coordinate.encoding = {"_FillValue": None} if coordinate.dtype.kind in "fM" else {}
    for name in ("time", "time_bnds"):
        if name in out.coords:
            out[name].encoding = {**TIME_ENCODING, "_FillValue": None}
    for key, variable in out.data_vars.items():
        fill = variable.dtype.type(missing)
        filled = {} if key in ("cell_area", "areacella") else {"_FillValue": fill, "fill_value": fill}
        variable.encoding = {**(filled or {"_FillValue": None}), "grid_mapping": cf.GRID_MAPPING}
    return out
