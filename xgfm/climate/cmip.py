"""Sums on a climate grid with the names, units and axes of CMIP6: ``cropFrac``, ``landCoverFrac``, ``areacella``.

In: `CellSums` and a table from classes to area types. Out: a Dataset of percentages on longitudes from 0 to 360, single
precision, 1e20 where missing; lazy where the sums are. The files are like those of CMIP6; for ESGF they lack the
description of an experiment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xgfm.climate import output
from xgfm.climate.area_types import CMIP_VARIABLES, area_types_of, suggest_area_types
from xgfm.errors import CubeError, GridError, LabelError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from xgfm.climate.sums import CellSums

MISSING = 1e20
WHOLE_CELL = (
    "Percentage of the whole cell: what the map gives no class counts as not of the class, so that the value times the "
    "area of the cell is the area on the map. Cells that are seen in part (valid_area_fraction) come out low; a higher "
    "min_valid leaves them out. Counted on a map, whose errors go into it."
)
"""What the percentages are of, which is what ``_METHODS`` says in CF's words."""
_METHODS = "area: mean where land over all_area_types time: mean"


def as_cmip(
    sums: CellSums,
    *,
    min_valid: float = 0.0,
    sample_error: ArrayLike | None = None,
    area_types: Mapping[str, str] | None = None,
) -> xr.Dataset:
    """Make percentages of sums, as CMIP6 names them.

    Parameters
    ----------
    sums, min_valid, sample_error
        As of `output.described`.
    area_types
        From class to area type. Classes that it leaves out are in ``landCoverFrac`` alone.

    Returns
    -------
    Dataset
        ``landCoverFrac (vegtype, time, lat, lon)`` of all classes, a variable ``(time, lat, lon)`` for each area type
        that CMIP6 has one for, ``areacella``, and ``valid_area_fraction``: percentages of ``float32``, all of the
        whole cell. What was not seen counts as not of the class; a cell of which nothing was seen is missing.

    Raises
    ------
    LabelError
        Without a table, or for one that does not fit.
    GridError
        On a grid that is not of latitudes and longitudes.
    CubeError
        Where times or their bounds are not known.
    """
    kinds = _checked(sums, area_types)
    shares = _of_the_cell(output.fractions(sums, min_valid=min_valid, sample_error=sample_error))
    out = xr.Dataset({"landCoverFrac": shares["area_fraction"].rename({"class": "vegtype"})})
    if sample_error is not None:
        out["landCoverFrac_standard_error"] = shares["area_fraction_standard_error"].rename({"class": "vegtype"})
    for variable in CMIP_VARIABLES:
        chosen = [number for number, kind in enumerate(kinds) if kind in variable.types]
        if chosen:
            out[variable.name] = shares["area_fraction"].isel({"class": chosen}).sum("class", skipna=False)
    out["valid_area_fraction"] = shares["valid_area_fraction"]
    out = (100 * out).astype("float32").assign(areacella=shares["cell_area"])
    out = eastward(output.located(out.assign_coords(_legend(sums)), sums))
    out.attrs = output.facts(sums)
    return _with_types(output.encoded(_named(out), MISSING))


def _of_the_cell(shares: xr.Dataset) -> xr.Dataset:
    """Return shares of whole cells, from those of the part that has a class."""
    parts = [n for n in ("area_fraction", "area_fraction_standard_error") if n in shares]
    return shares.assign({n: shares[n] * shares["valid_area_fraction"] for n in parts})


def _checked(sums: CellSums, area_types: Mapping[str, str] | None) -> tuple[str | None, ...]:
    if sums.grid.geobox is not None:
        raise GridError(
            f"mode='cmip' needs latitudes and longitudes, the grid is {sums.grid.name}; give a grid such as '0.25deg'"
        )
    if np.isnat(sums.times).any() or not output.has_periods(sums):
        raise CubeError(
            "mode='cmip' needs the period of every map, and the map does not say it; give it with "
            "xgfm.stack_maps([result], times=['2024'])"
        )
    if area_types is None:
        raise LabelError(
            f"mode='cmip' needs the area type of each class; by their words they would be "
            f"{suggest_area_types(sums.classes)}: correct this and give it as area_types="
        )
    return area_types_of(sums.classes, area_types)


def _legend(sums: CellSums) -> dict[str, xr.Variable]:
    # CF's coordinate of a dimension has to be of numbers; the names stand beside it, as in the files of CMIP6.
    return {"type": xr.Variable("vegtype", output.words_array(sums.classes), {"long_name": "land cover category"})}


def eastward(out: xr.Dataset) -> xr.Dataset:
    """Turn longitudes so that they increase from 0 to under 360, with their bounds; latitudes increase too."""
    lon = out["lon"].values
    turned = lon % 360
    moved = out["lon_bnds"].values + (turned - lon)[:, None]
    named = {"lon": out["lon"].copy(data=turned), "lon_bnds": out["lon_bnds"].copy(data=moved)}
    return out.assign_coords(named).isel(lon=np.argsort(turned, kind="stable")).sortby("lat")


def _named(out: xr.Dataset) -> xr.Dataset:
    """Attributes as the tables have them."""
    common: dict[str, Any] = {"standard_name": "area_fraction", "units": "%", "cell_methods": _METHODS,
                              "cell_measures": "area: areacella", "comment": WHOLE_CELL,
                              "ancillary_variables": "valid_area_fraction"}  # fmt: skip
    for variable in CMIP_VARIABLES:
        if variable.name in out:
            out[variable.name].attrs = {**common, "long_name": variable.long_name}
    beside = [n for n in ("landCoverFrac_standard_error", "valid_area_fraction") if n in out]
    out["landCoverFrac"].attrs = {
        **common,
        "long_name": "Percentage of Area by Vegetation or Land-Cover Category",
        "ancillary_variables": " ".join(beside),
    }
    if "landCoverFrac_standard_error" in out:
        out["landCoverFrac_standard_error"].attrs = {
            "standard_name": "area_fraction standard_error", "units": "%", "cell_measures": "area: areacella",
            "long_name": "standard error of landCoverFrac, by a reference sample",
        }  # fmt: skip
    out["valid_area_fraction"].attrs = {
        "long_name": "share of the cell that the map gives a class", "units": "%",
        "cell_methods": "area: mean time: mean", "cell_measures": "area: areacella",
    }  # fmt: skip
    out["areacella"].attrs = {
        "standard_name": "cell_area", "long_name": "Grid-Cell Area for Atmospheric Grid Variables", "units": "m2",
    }  # fmt: skip
    return out


def _with_types(out: xr.Dataset) -> xr.Dataset:
    """Add the scalar coordinate of each area type, and let every variable name its own alone."""
    for array in out.data_vars.values():
        array.encoding["coordinates"] = "type" if "vegtype" in array.dims else None
    for variable in (v for v in CMIP_VARIABLES if v.name in out):
        attrs = {"standard_name": "area_type", "long_name": variable.type_name}
        out = out.assign_coords({variable.coordinate: xr.Variable((), np.asarray(variable.types[0], object), attrs)})
        out[variable.name].encoding["coordinates"] = variable.coordinate
    return out
