"""Fractions with CF metadata: against the sums, the IOOS checker, and what readers find."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from affine import Affine
from climate_sums import BOUNDS, CLASSES, TIMES, TYPES, degrees, on_geobox, sums
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from xgfm.climate.area_types import AREA_TYPES, CMIP_VARIABLES, area_types_of, suggest_area_types
from xgfm.climate.output import described
from xgfm.errors import CubeError, LabelError, XgfmError

ZONE_15 = GeoBox((3, 4), Affine(5000, 0, 500_000, 0, -5000, 4_600_000), "EPSG:32615")
UNKNOWN = {"times": np.array(["NaT"], "datetime64[ns]"), "time_bounds": np.full((1, 2), "NaT", "datetime64[ns]")}


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.floats(0, 1))
def test_shares_are_of_what_has_a_class(seed: int, min_valid: float) -> None:
    made = sums(seed=seed)
    out = described(made, min_valid=min_valid)
    enough = (made.valid_area > 0) & (made.valid_area / made.cell_area >= min_valid)
    total = out["area_fraction"].sum("class", skipna=False).values
    assert (np.isfinite(total) == enough).all()
    np.testing.assert_allclose(total[enough], 1, rtol=1e-6)
    back = out["area_fraction"].astype("float64") * out["valid_area_fraction"] * out["cell_area"]
    np.testing.assert_allclose(back.values[:, enough], made.area[:, enough], rtol=1e-6, atol=1)
    assert (out["number_of_observations"] == made.count.sum(0)).all()


def test_a_full_cell_is_not_more_than_full() -> None:
    made = sums()
    out = described(sums(cell_area=made.valid_area.max(0) * 0.999 + 1))
    assert float(out["valid_area_fraction"].max()) == 1


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"probability": True}, {"sample_error": [0.01, 0.02, 0.03, 0.04], "area_types": TYPES, "min_valid": 0.2}),
        ({}, {}),
        ({"grid": on_geobox(ZONE_15)}, {}),
        (UNKNOWN, {}),
        ({"time_bounds": np.full((2, 2), "NaT", "datetime64[ns]")}, {}),
        ({"values": (1, 5, 24, 300)}, {}),
    ],
    ids=["all", "plain", "geobox", "no time", "no bounds", "codes over 255"],
)
def test_the_checker_has_nothing_to_say(changes: dict[str, Any], options: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("compliance_checker", reason="the IOOS compliance checker is not installed")
    from cf_checks import complaints

    assert complaints(described(sums(**changes), **options), tmp_path / "map.nc") == ""


def test_the_checker_would_say_it(tmp_path: Path) -> None:
    """The checker is run as it should be: it finds what is wrong."""
    pytest.importorskip("compliance_checker", reason="the IOOS compliance checker is not installed")
    from cf_checks import complaints

    wrong = described(sums())
    wrong["area_fraction"].attrs["units"] = "m"
    wrong["class"].attrs["flag_meanings"] = "one two"
    said = complaints(wrong, tmp_path / "map.nc")
    assert "units" in said
    assert "flag_meanings" in said


def test_dimensions_bounds_and_links() -> None:
    out = described(sums(probability=True), sample_error=0.02, area_types=TYPES)
    assert out["area_fraction"].dims == ("class", "time", "lat", "lon")
    assert out["soft_area_fraction"].dims == out["area_fraction_standard_error"].dims == out["area_fraction"].dims
    assert out["valid_area_fraction"].dims == out["number_of_observations"].dims == ("time", "lat", "lon")
    for axis in ("time", "lat", "lon"):
        low, high = out[f"{axis}_bnds"].values.T
        assert ((low < out[axis].values) & (out[axis].values < high)).all()
    for name in str(out["area_fraction"].attrs["ancillary_variables"]).split():
        assert name in out.data_vars
    companions = "area_fraction_standard_error valid_area_fraction number_of_observations"
    assert out["area_fraction"].attrs["ancillary_variables"] == companions
    assert out["area_fraction"].attrs["cell_measures"] == "area: cell_area"
    assert out["area_type"].values.tolist() == [TYPES[name] for name in CLASSES]
    assert out["class_name"].values.tolist() == list(CLASSES)


def test_soft_shares_are_of_the_same_ground() -> None:
    made = sums(probability=True)
    out = described(made)
    np.testing.assert_allclose(out["soft_area_fraction"], out["area_fraction"][::-1], rtol=1e-6)


def test_lazy_sums_stay_lazy_and_give_the_same() -> None:
    made = sums(probability=True)
    lazy = {n: da.from_array(getattr(made, n)) for n in ("area", "count", "probability", "valid_area")}
    out = described(replace(made, **lazy), sample_error=0.1)
    for name in ("area_fraction", "soft_area_fraction", "valid_area_fraction", "number_of_observations"):
        assert isinstance(out[name].data, da.Array), name
    xr.testing.assert_equal(out.compute(), described(made, sample_error=0.1))


def test_errors_of_classes_lie_along_the_classes() -> None:
    out = described(sums(), sample_error=[0.01, 0.02, 0.03, 0.04])["area_fraction_standard_error"]
    np.testing.assert_allclose(out.isel(time=0, lat=0, lon=0), [0.01, 0.02, 0.03, 0.04], rtol=1e-6)
    assert out.isel(lat=-1, lon=-1).isnull().all()  # where there is no share, there is no error of one


@pytest.mark.parametrize("store", ["netcdf", "zarr"])
def test_written_by_xarray_alone_it_comes_back(store: str, tmp_path: Path) -> None:
    out = described(sums(probability=True), area_types=TYPES)
    if store == "netcdf":
        out.to_netcdf(tmp_path / "map.nc")
        back = xr.open_dataset(tmp_path / "map.nc", decode_coords="all")
    else:
        out.to_zarr(tmp_path / "map.zarr", consolidated=False)
        back = xr.open_zarr(tmp_path / "map.zarr", decode_coords="all", consolidated=False)
    xr.testing.assert_allclose(back.compute().reset_coords(["cell_area", *set(back.coords) - set(out.coords)]), out)
    for name in ("time", "time_bnds"):
        assert back[name].encoding["units"] == "days since 1850-01-01"
    assert "_FillValue" not in {**back["lat"].encoding, **back["lat_bnds"].encoding}
    with back:
        assert back["area_fraction"].odc.crs.epsg == 4326
        assert back["area_fraction"].rio.crs.to_epsg() == 4326
        assert back["area_fraction"].rio.bounds() == pytest.approx((-94, 41, -93, 41.75))


def test_on_a_geobox_the_crs_is_its_own(tmp_path: Path) -> None:
    out = described(sums(on_geobox(ZONE_15)))
    assert out["area_fraction"].dims == ("class", "time", "y", "x")
    assert out["area_fraction"].odc.geobox == ZONE_15
    np.testing.assert_allclose(out["y_bnds"][0], [4_600_000, 4_595_000])


def test_a_map_without_time_has_no_time() -> None:
    out = described(sums(**UNKNOWN))
    assert out["area_fraction"].dims == ("class", "lat", "lon")
    assert "time" not in out["area_fraction"].attrs["cell_methods"]
    moments = described(sums(time_bounds=np.stack([TIMES, TIMES], axis=1)))
    assert "time: point" in moments["area_fraction"].attrs["cell_methods"]
    assert "time_bnds" not in moments.coords
    mixed = {"times": np.array(["2023-07-02", "NaT"], "datetime64[ns]"), "time_bounds": BOUNDS}
    with pytest.raises(CubeError, match=r"1 of 2 maps do not say their time.*times="):
        described(sums(**mixed))


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(XgfmError, match="expected 'cf' or 'cmip'"):
        described(sums(), mode="CF")  # type: ignore[arg-type]
    with pytest.raises(XgfmError, match=r"min_valid=1\.5"):
        described(sums(), min_valid=1.5)


def test_a_table_names_classes_and_types_that_exist() -> None:
    assert area_types_of(CLASSES, {"winter_wheat": "crops"}) == (None, "crops", None, None)
    with pytest.raises(LabelError, match=r"names the class 'Rye'"):
        area_types_of(CLASSES, {"Rye": "crops"})
    with pytest.raises(LabelError, match=r"'crop', which is not in version 13 .*'crops'"):
        area_types_of(CLASSES, {"Corn": "crop"})
    with pytest.raises(LabelError, match=r"'maize'.*type table; near it are \['crops'\]"):
        area_types_of(CLASSES, {"Corn": "maize"})
    with pytest.raises(LabelError, match=r"'Zebra'.*type table; see xgfm\.climate\.area_types\.AREA_TYPES"):
        area_types_of(CLASSES, {"Corn": "Zebra"})
    with pytest.raises(LabelError, match="twice"):
        area_types_of(CLASSES, {"Corn": "crops", "corn": "trees"})
    with pytest.raises(LabelError, match=r"no type to \['Open Water'\].*fresh_free_water"):
        described(sums(), area_types={k: v for k, v in TYPES.items() if k != "Open Water"})


def test_suggestions_and_variables_are_of_the_table() -> None:
    named = suggest_area_types([*CLASSES, "Class 7", "Developed/Barren", "Deciduous Forest", "Grassland/Pasture"])
    assert set(named.values()) <= AREA_TYPES
    assert named["Corn"] == named["Winter Wheat"] == "crops"
    assert named["Developed/Barren"] == "urban"
    assert "Class 7" not in named
    assert {kind for variable in CMIP_VARIABLES for kind in variable.types} <= AREA_TYPES
    assert set(described(sums(degrees()), area_types=TYPES)["area_type"].values) <= AREA_TYPES
