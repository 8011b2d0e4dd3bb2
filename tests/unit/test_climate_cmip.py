"""Percentages with CMIP6's names and axes: against its tables, the IOOS checker, and the fractions they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
import xarray as xr
from affine import Affine
from climate_sums import TYPES, degrees, on_geobox, sums
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from xgfm.climate.output import described
from xgfm.errors import CubeError, GridError, LabelError, XgfmError
from xgfm.store.netcdf import to_netcdf

LMON = {
    "cropFrac": ("Percentage Crop Cover", "typecrop", "crops"),
    "treeFrac": ("Tree Cover Percentage", "typetree", "trees"),
    "baresoilFrac": ("Bare Soil Percentage Area Coverage", "typebare", "bare_ground"),
}
"""Long name, coordinate and its value: tables Lmon and coordinate of CMIP6, 01.00.30."""


def test_names_units_and_types_are_those_of_the_tables() -> None:
    kinds = ["broadleaf_deciduous_trees", "crops", "crops_of_c4_plant_functional_types", "bare_ground"]
    legend = dict(zip(TYPES, kinds, strict=True))
    out = described(sums(), mode="cmip", area_types=legend)
    cf = described(sums())
    plain = cf["area_fraction"] * cf["valid_area_fraction"]
    members = {"cropFrac": [1, 2], "treeFrac": [0], "baresoilFrac": [3]}
    for name, (long_name, coordinate, kind) in LMON.items():
        assert out[name].dims == ("time", "lat", "lon")
        assert out[name].attrs["standard_name"] == "area_fraction"
        assert out[name].attrs["units"] == "%"
        assert out[name].attrs["long_name"] == long_name
        assert out[name].attrs["cell_methods"] == "area: mean where land over all_area_types time: mean"
        assert out[name].attrs["cell_measures"] == "area: areacella"
        assert out[name].attrs["ancillary_variables"] == "valid_area_fraction"
        assert str(out[coordinate].values) == kind
        expected = 100 * plain.isel({"class": members[name]}).sum("class", skipna=False)
        np.testing.assert_allclose(out[name], expected, rtol=1e-5)
    assert out["landCoverFrac"].dims == ("vegtype", "time", "lat", "lon")
    np.testing.assert_allclose(out["landCoverFrac"], 100 * plain, rtol=1e-6)
    assert out["landCoverFrac"].attrs["ancillary_variables"] == "valid_area_fraction"
    assert "grassFrac" not in out


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.3, 0.6]))
def test_percentages_times_the_area_of_cells_are_areas_on_the_map(seed: int, min_valid: float) -> None:
    """As a tool for CMIP6 computes them, from files that say nothing of what was seen."""
    made = sums(seed=seed)
    out = described(made, mode="cmip", area_types=TYPES, min_valid=min_valid, sample_error=0.1)
    seen = made.valid_area / made.cell_area
    kept = (seen > 0) & (seen >= min_valid)
    crops = out["cropFrac"].astype("float64") / 100 * out["areacella"]
    np.testing.assert_array_equal(np.isfinite(crops), kept)
    expected = np.where(kept, made.area[[1, 2]].sum(0), 0)
    np.testing.assert_allclose(crops.fillna(0), expected, rtol=1e-6, atol=1)
    np.testing.assert_allclose(out["landCoverFrac"].sum("vegtype"), 100 * seen * kept, rtol=1e-5, atol=1e-4)
    error = out["landCoverFrac_standard_error"].isel(vegtype=0)
    np.testing.assert_allclose(error.values[kept], 10 * seen[kept], rtol=1e-5)


def test_the_checker_has_nothing_to_say(tmp_path: Path) -> None:
    pytest.importorskip("compliance_checker", reason="the IOOS compliance checker is not installed")
    from cf_checks import complaints

    out = described(sums(), mode="cmip", area_types=TYPES, sample_error=0.02, min_valid=0.3)
    assert complaints(out, tmp_path / "all.nc") == ""
    kept = ("cropFrac", "areacella", "valid_area_fraction")
    alone = out.drop_vars([n for n in out.data_vars if n not in kept])
    assert complaints(alone, tmp_path / "one.nc") == ""


@pytest.mark.parametrize("opened", [False, True], ids=["made", "opened"])
def test_a_variable_alone_makes_a_file_of_nothing_else(opened: bool, tmp_path: Path) -> None:
    two = {**TYPES, "Natural Vegetation": "natural_grasses"}
    out = described(sums(), mode="cmip", area_types=two)
    if opened:
        to_netcdf(out, tmp_path / "all.nc")
        out = xr.open_dataset(tmp_path / "all.nc", decode_coords="all")
    to_netcdf(out, tmp_path / "cropFrac.nc", variable="cropFrac")
    out.close()
    with netCDF4.Dataset(tmp_path / "cropFrac.nc") as file:
        own = {"cropFrac", "areacella", "valid_area_fraction", "typecrop"}
        axes = {"lat", "lat_bnds", "lon", "lon_bnds", "time", "time_bnds", "spatial_ref"}
        assert set(file.variables) == own | axes
        assert "coordinates" not in file.ncattrs()
        assert {n: v.coordinates for n, v in file.variables.items() if "coordinates" in v.ncattrs()} == {
            "cropFrac": "typecrop"
        }
        assert {file[axis].bounds for axis in ("lat", "lon", "time")} == {"lat_bnds", "lon_bnds", "time_bnds"}
        assert (file["cropFrac"].cell_measures, file["cropFrac"].ancillary_variables) == (
            "area: areacella", "valid_area_fraction"
        )  # fmt: skip
    pytest.importorskip("compliance_checker", reason="the IOOS compliance checker is not installed")
    from cf_checks import complaints_of

    assert complaints_of(tmp_path / "cropFrac.nc") == ""


def test_bounds_and_links_in_a_file_of_all_variables_name_what_is_there(tmp_path: Path) -> None:
    out = described(sums(), mode="cmip", area_types=TYPES)
    to_netcdf(out.drop_vars("valid_area_fraction"), tmp_path / "all.nc")
    with netCDF4.Dataset(tmp_path / "all.nc") as file:
        assert not [n for n, v in file.variables.items() if "ancillary_variables" in v.ncattrs()]
        for name in ("lat_bnds", "lon_bnds", "time_bnds", "areacella"):
            assert "coordinates" not in file[name].ncattrs(), name
        assert file["landCoverFrac"].coordinates == "type"
    with pytest.raises(XgfmError, match="variable='treeFrac'"):
        to_netcdf(out, tmp_path / "tree.nc", variable="treeFrac")


def test_the_file_is_single_precision_with_double_axes(tmp_path: Path) -> None:
    two = {**TYPES, "Natural Vegetation": "natural_grasses"}
    described(sums(), mode="cmip", area_types=two).to_netcdf(tmp_path / "map.nc")
    with netCDF4.Dataset(tmp_path / "map.nc") as file:
        file.set_auto_mask(False)
        crop = file["cropFrac"]
        assert crop.dtype == np.float32
        assert crop._FillValue == np.float32(1e20)
        assert crop[0, -1, -1] == np.float32(1e20)
        assert crop.coordinates == "typecrop"
        assert file["typecrop"][...] == "crops"
        assert file["grassFrac"].coordinates == "typenatgr"
        assert file["landCoverFrac"].coordinates == "type"
        assert "coordinates" not in file["valid_area_fraction"].ncattrs()
        for axis in ("lat", "lon", "time"):
            assert file[axis].dtype == np.float64
            assert "_FillValue" not in file[axis].ncattrs()
            assert file[file[axis].bounds].shape == (*file[axis].shape, 2)


@pytest.mark.parametrize(("west", "expected"), [(-94.0, 266.0), (-0.5, 0.0), (179.0, 179.0), (359.0, 0.0)])
def test_longitudes_increase_from_0_to_360_and_carry_their_values(west: float, expected: float) -> None:
    made = sums(degrees(columns=8, west=west))
    out = described(made, mode="cmip", area_types=TYPES)
    lon = out["lon"].values
    assert (np.diff(lon) > 0).all()
    assert ((lon >= 0) & (lon < 360)).all()
    assert out["lon_bnds"].values.min() == pytest.approx(expected)
    np.testing.assert_allclose(out["lon_bnds"].mean("bnds"), lon)
    assert (np.diff(out["lat"]) > 0).all()
    cf = described(made)
    plain = cf["area_fraction"] * cf["valid_area_fraction"]
    for k, east in enumerate(plain["lon"].values):
        there = out["landCoverFrac"].sel(lon=east % 360, method="nearest")
        np.testing.assert_allclose(there, 100 * plain.isel(lon=k), rtol=1e-6)
        np.testing.assert_array_equal(out["areacella"].sel(lon=east % 360, method="nearest"), made.cell_area[:, k])


def test_axes_that_run_down_are_turned() -> None:
    grid = degrees()
    down = type(grid)("down", grid.lat[::-1], grid.lon, grid.lat_bounds[::-1], grid.lon_bounds)
    out = described(sums(down), mode="cmip", area_types=TYPES)
    up = described(sums(), mode="cmip", area_types=TYPES)
    np.testing.assert_array_equal(out["lat"], up["lat"])
    np.testing.assert_array_equal(out["cropFrac"], up["cropFrac"][:, ::-1])


@pytest.mark.parametrize(
    ("changes", "options", "error", "match"),
    [
        ({}, {}, LabelError, r"'Winter Wheat': 'crops'.*area_types="),
        ({"times": np.array(["NaT"], "datetime64[ns]"), "time_bounds": np.full((1, 2), "NaT", "datetime64[ns]")},
         {"area_types": TYPES}, CubeError, r"stack_maps\(\[result\]"),
        ({"grid": on_geobox(GeoBox((3, 4), Affine(5000, 0, 500_000, 0, -5000, 4_600_000), "EPSG:32615"))},
         {"area_types": TYPES}, GridError, "0.25deg"),
    ],
    ids=["no table", "no time", "geobox"],
)  # fmt: skip
def test_what_cmip_needs_is_asked_for(
    changes: dict[str, Any], options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        described(sums(**changes), mode="cmip", **options)


def test_it_comes_back_from_zarr(tmp_path: Path) -> None:
    out = described(sums(), mode="cmip", area_types=TYPES)
    out.to_zarr(tmp_path / "map.zarr", consolidated=False)
    back = xr.open_zarr(tmp_path / "map.zarr", decode_coords="all", consolidated=False)
    xr.testing.assert_allclose(back.compute().reset_coords("areacella"), out)
