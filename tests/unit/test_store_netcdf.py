"""netCDF files as the CF checker and other people's readers see them."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import dask.array as da
import netCDF4
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from results import DEGREES, NORTH, SOUTH, pixels, result

from xgfm.cf import like
from xgfm.cube.periods import named_periods, time_coordinates
from xgfm.errors import GridError, WriteError
from xgfm.grid import with_grid
from xgfm.store.netcdf import described, to_netcdf
from xgfm.store.write import to_zarr


def faults(path: Path) -> list[str]:
    """What the IOOS checker finds fault with, warnings and advice included."""
    pytest.importorskip("compliance_checker", reason="compliance-checker is not installed")
    from compliance_checker.runner import CheckSuite, ComplianceChecker

    CheckSuite.load_all_available_checkers()
    said = path.with_suffix(".json")
    ComplianceChecker.run_checker(str(path), ["cf:1.11"], 0, "strict", output_filename=str(said), output_format="json")
    found = json.loads(said.read_text())["cf:1.11"]
    checks = [c for level in ("high", "medium", "low") for c in found[f"{level}_priorities"]]
    return [message for c in checks if c["value"][0] < c["value"][1] for message in c["msgs"]]


def features(dtype: str = "float16") -> xr.DataArray:
    """An embedding: 3 features on 5 x 6 patches."""
    box = GeoBox((5, 6), NORTH.affine, NORTH.crs)
    values = np.random.default_rng(0).normal(size=(3, 5, 6)).astype(dtype)
    array = xr.DataArray(da.from_array(values), dims=("feature", "y", "x"), name="embedding")
    dataset = with_grid(array.assign_coords(feature=np.arange(3)).to_dataset(), box)
    return like(dataset, dataset)["embedding"]


def picture() -> xr.Dataset:
    """A reconstruction: words along ``band``, between time and space."""
    box = GeoBox((5, 6), NORTH.affine, NORTH.crs)
    values = np.random.default_rng(0).normal(size=(2, 3, 5, 6)).astype("float32")
    coords = {
        "time": np.array(["2024-04-03T17:01:02.345", "2024-07-02"], "datetime64[ns]"),
        "band": ["blue", "green", "red"],
        "eo:cloud_cover": ("time", [1.0, 2.0]),
    }
    made = with_grid(xr.Dataset({"reconstruction": (("time", "band", "y", "x"), values)}, coords), box)
    return like(made, made, None, {"model": "m", "frames": [{"dates": ["2024-04-03"]}], "flag": True})


def seasons() -> xr.Dataset:
    """Maps that stand for periods."""
    return result(times=2).assign_coords(time_coordinates(named_periods(["2023", ("2024-04", "2024-09")])))


OUTPUTS: dict[str, Any] = {
    "class map": lambda: result(probability=True),
    "southern": lambda: result(SOUTH),
    "degrees": lambda: result(DEGREES, probability=True),
    "series": lambda: result(times=3),
    "seasons": seasons,
    "embedding": features,
    "reconstruction": picture,
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_checker_finds_no_fault(name: str, tmp_path: Path) -> None:
    assert faults(to_netcdf(OUTPUTS[name](), tmp_path / "a.nc")) == []


def test_bounds_of_time_stay_in_every_file_they_pass_through(tmp_path: Path) -> None:
    to_zarr(seasons(), tmp_path / "first.zarr")
    with xr.open_zarr(tmp_path / "first.zarr", mask_and_scale=False, decode_coords="all") as first:
        to_zarr(first, tmp_path / "again.zarr")
        to_zarr(first.isel(time=0).drop_vars("time_bnds"), tmp_path / "alone.zarr")
    with xr.open_zarr(tmp_path / "again.zarr", mask_and_scale=False, decode_coords="all") as again:
        assert faults(to_netcdf(again, tmp_path / "a.nc")) == []
    for path, engine in (("again.zarr", "zarr"), ("a.nc", "netcdf4")):
        with xr.open_dataset(tmp_path / path, engine=engine, decode_coords="all") as read:
            assert read.time.encoding["bounds"] == "time_bnds"
            np.testing.assert_array_equal(read.time_bnds, seasons().time_bnds)
    with xr.open_zarr(tmp_path / "alone.zarr") as alone:
        assert "bounds" not in alone.time.attrs  # it would name what is not there


def test_the_check_can_fail(tmp_path: Path) -> None:
    path = to_netcdf(result(), tmp_path / "a.nc")
    with netCDF4.Dataset(path, "a") as file:
        file["crop_v1_0"].flag_values = np.array([0, 1, 2], "int64")
        file["x"].units = "parsecs per fortnight"
    assert any("flag_values" in fault for fault in faults(path))


@pytest.mark.parametrize("masked", [False, True])
def test_a_store_opened_again_gives_the_same_file(tmp_path: Path, masked: bool) -> None:
    store = to_zarr(result(probability=True), tmp_path / "a.zarr")
    again = xr.open_zarr(store, mask_and_scale=masked, decode_coords="all")
    assert (again.crop_v1_0.dtype.kind == "f") == masked
    with netCDF4.Dataset(to_netcdf(again, tmp_path / "a.nc")) as file:
        file.set_auto_mask(False)
        classes = file["crop_v1_0"]
        assert (classes.dtype, classes._FillValue, classes.flag_values.dtype) == ("uint8", 255, "uint8")
        np.testing.assert_array_equal(classes[:], pixels(NORTH.shape))
        assert classes.grid_mapping == "spatial_ref"
        assert not any("zarr" in name or ":" in name for name in (*file.ncattrs(), *classes.ncattrs()))
        assert "_FillValue" not in file["y"].ncattrs() + file["x"].ncattrs() + file["class"].ncattrs()
        assert classes.filters()["zlib"]


@pytest.mark.parametrize("grid", ["class map", "southern", "degrees"])
def test_readers_find_crs_transform_and_nodata(grid: str, tmp_path: Path) -> None:
    rasterio, rioxarray = pytest.importorskip("rasterio"), pytest.importorskip("rioxarray")
    made = OUTPUTS[grid]()
    path = to_netcdf(made, tmp_path / "a.nc")
    box = {"class map": NORTH, "southern": SOUTH, "degrees": DEGREES}[grid]
    with rasterio.open(f"netcdf:{path}:crop_v1_0") as file:
        assert (file.crs.to_epsg(), file.nodata) == (box.crs.epsg, 255)
        assert tuple(file.transform)[:6] == pytest.approx(tuple(box.affine)[:6], rel=1e-9)
        np.testing.assert_array_equal(file.read(1), made.crop_v1_0)
    assert rioxarray is not None
    opened = xr.open_dataset(path, decode_coords="all", mask_and_scale=False)
    assert opened.rio.crs.to_epsg() == box.crs.epsg


def test_half_floats_become_whole_ones_and_nothing_is_lost(tmp_path: Path) -> None:
    made = features()
    back = xr.open_dataset(to_netcdf(made, tmp_path / "a.nc")).embedding
    assert back.dtype == "float32"
    np.testing.assert_array_equal(back, made.values.astype("float32"))


def test_names_words_and_facts_are_legal(tmp_path: Path) -> None:
    back = xr.open_dataset(to_netcdf(picture(), tmp_path / "a.nc"))
    assert back.reconstruction.dims == ("band", "time", "y", "x")  # CF: what is not time or space comes first
    assert list(back.band_name.values) == ["blue", "green", "red"]
    assert list(back.eo_cloud_cover.values) == [1.0, 2.0]
    assert json.loads(back.attrs["frames"]) == [{"dates": ["2024-04-03"]}]
    assert back.attrs["flag"] == 1
    np.testing.assert_array_equal(back.reconstruction.transpose("time", ...), picture().reconstruction.values)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(-(10**17), 10**17), min_size=1, max_size=4, unique=True), st.sampled_from([1, 10**6, 10**9])
)
def test_times_and_their_bounds_are_exact(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], step: int
) -> None:
    times = (np.sort(counts) // step * step).astype("datetime64[ns]")
    bounds = np.stack([times - np.timedelta64(step, "ns"), times + np.timedelta64(86_400 * 10**9, "ns")], 1)
    made = xr.Dataset(
        coords={"time": ("time", times, {"bounds": "time_bnds"}), "time_bnds": (("time", "bnds"), bounds)}
    )
    path = tmp_path_factory.mktemp("times") / "a.nc"
    described(made).to_netcdf(path)
    with xr.open_dataset(path, decode_cf=False) as raw:
        assert raw.time.attrs["calendar"] == "standard"
        assert raw.time_bnds.attrs.get("units", raw.time.attrs["units"]) == raw.time.attrs["units"]
        assert "_FillValue" not in {**raw.time.attrs, **raw.time_bnds.attrs}
    with xr.open_dataset(path) as back:
        np.testing.assert_array_equal(back.time.values.astype("datetime64[ns]"), times)
        np.testing.assert_array_equal(back.time_bnds.values.astype("datetime64[ns]"), bounds)


def test_memory_does_not_grow_with_the_map(tmp_path: Path) -> None:
    def peak(blocks: int) -> int:
        box = GeoBox((512 * blocks, 2048), NORTH.affine, NORTH.crs)
        dataset = with_grid(
            xr.Dataset({"m": (("y", "x"), da.zeros((512 * blocks, 2048), dtype="f4", chunks=(512, 512)))}), box
        )
        tracemalloc.start()
        to_netcdf(like(dataset, dataset), tmp_path / f"{blocks}.nc")
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    small, large = peak(2), peak(12)  # 8 and 48 MiB of pixels
    assert large < small + 8 * 2**20


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("a.zarr", r"not the name of a netCDF.*path='.*a\.nc'"),
        ("a.tif", "not the name"),
        ("s3://b/a.nc", "no local file"),
    ],
)
def test_other_names_are_refused(path: str, said: str) -> None:
    with pytest.raises(WriteError, match=said):
        to_netcdf(result(), path)


def test_what_is_there_stays_unless_it_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    path.write_bytes(b"mine")
    with pytest.raises(WriteError, match="overwrite=True"):
        to_netcdf(result(), path)
    assert path.read_bytes() == b"mine"
    to_netcdf(result(), path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a.nc"]


def test_a_result_without_a_grid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GridError, match="no CRS"):
        to_netcdf(result().drop_vars("spatial_ref"), tmp_path / "a.nc")
