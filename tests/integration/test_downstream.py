"""Climate tools read what we write, unedited: the examples run, and their numbers are those of a count by hand."""

from __future__ import annotations

import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

import xgfm
from xgfm import cf
from xgfm.climate.fractions import to_climate
from xgfm.climate.stack import stack_maps
from xgfm.cube.landscape import build_land
from xgfm.cube.phenology import CLASSES
from xgfm.grid import with_grid
from xgfm.store.netcdf import to_netcdf
from xgfm.store.write import to_zarr

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DOCS = EXAMPLES.parent / "docs"
BOX = GeoBox((360, 400), Affine(30, 0, 480_000, 0, -30, 4_600_020), "EPSG:32615")
NAMES = [c.name for c in CLASSES]
CORN = NAMES.index("Corn")
TYPES = {
    "Natural Vegetation": "vegetation", "Forest": "trees", "Corn": "crops", "Soybeans": "crops", "Wetlands": "wetland",
    "Developed/Barren": "urban", "Open Water": "lake_and_inland_sea", "Winter Wheat": "crops", "Alfalfa": "crops",
}  # fmt: skip


def season(seed: int, year: int) -> xr.Dataset:
    """Return a map of a simulated landscape, as predict returns it, with a gap."""
    codes = build_land(np.random.default_rng(seed), BOX.shape).label.copy()
    codes[100:160, 30:90] = cf.NODATA
    made = with_grid(xr.Dataset({"crop": (("y", "x"), codes)}), BOX)
    made["crop"].attrs = {"long_name": "Crops", **cf.class_flags(CLASSES)}
    made["crop"].encoding |= cf.fill_encoding(made["crop"].dtype)
    return made.assign_attrs(title="Crops", frames=f'[{{"window": ["{year}-04-01", "{year}-10-31"]}}]')


@pytest.fixture(scope="module")
def codes() -> Any:
    return season(1, 2024)["crop"].values


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("downstream") / "map.zarr"
    to_zarr(season(1, 2024), path)
    return path


def run(name: str, store: Path, folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """Run an example as a user would, and return what it prints."""
    words = [name, "--map", str(store), "--out", str(folder / "fractions.nc"), *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found, f"{pattern} is not in what the example printed:\n{text}"
    return float(found.group(1))


def test_cf_xarray_finds_axes_bounds_areas_and_classes(
    store: Path, codes: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cf_xarray", reason="cf-xarray is not installed")
    said = run("climate_cf_xarray.py", store, tmp_path, capsys)
    assert "{'X': ['lon'], 'Y': ['lat'], 'T': ['time']}" in said
    assert number(r"Corn: (\d+) pixels", said) == (codes == CORN).sum()
    # Pixels of UTM near its central meridian are 0.9996 squared of their nominal area's inverse.
    assert number(r"Corn: ([\d.]+) km2", said) == pytest.approx((codes == CORN).sum() * 900.72 / 1e6, rel=1e-4)
    assert number(r"of ([\d.]+) km2", said) == pytest.approx((codes != 255).sum() * 900.72 / 1e6, rel=1e-4)


def test_iris_reads_cubes_with_measures_and_companions(
    store: Path, codes: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("iris", reason="Iris is not installed")
    said = run("climate_iris.py", store, tmp_path, capsys, "--min-valid", "0")
    assert "measures: ['cell_area']" in said
    assert "companions: ['number_of_observations', 'valid_area_fraction']" in said
    assert re.search(r"area_fraction / \(1\) +\(class: 9; time: 1; latitude: \d+; longitude: \d+\)", said)
    own = (codes == CORN).sum() / (codes != cf.NODATA).sum()
    assert number(r"Corn: ([\d.]+) %", said) == pytest.approx(100 * own, abs=0.01)


def test_xclim_weighs_an_index_by_a_crop(
    store: Path, codes: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("xclim", reason="xclim is not installed")
    said = run("climate_xclim.py", store, tmp_path, capsys, "--min-valid", "0")
    assert number(r"Corn: ([\d.]+) km2", said) == pytest.approx((codes == CORN).sum() * 900.72 / 1e6, rel=1e-4)
    assert number(r"of ([\d.]+) km2", said) == pytest.approx((codes != 255).sum() * 900.72 / 1e6, rel=1e-4)
    everywhere = number(r"growing degree days: ([\d.]+) in the cells", said)
    there = number(r"in the cells, ([\d.]+) where Corn grows", said)
    # The example makes tilled cells warmer, so that a weight that is not read would show.
    assert there > everywhere + 1
    assert "K d" in said
    assert number(r"to ([\d.]+) % of a cell", said) <= 100


def snippet(page: str, after: str) -> str:
    """Return the code of a page that begins with a line."""
    found = re.search(rf"```(?:python|{{code-cell}} python)\n({re.escape(after)}.*?)```", page, re.DOTALL)
    assert found, f"no code that begins with {after!r}"
    return found.group(1)


def test_the_documented_mean_of_a_region_is_the_share_of_the_map(
    store: Path, codes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines of the pages, as they stand there."""
    monkeypatch.chdir(tmp_path)
    to_netcdf(to_climate(store, "0.02deg"), "shares.nc")
    own = (codes == CORN).sum() / (codes != cf.NODATA).sum()
    names: dict[str, Any] = {"xr": xr, "xgfm": xgfm, "np": np}
    code = snippet((DOCS / "how-to/downstream.md").read_text(), "file = xr.open_dataset")
    exec(code, names)
    assert float(names["corn"].weighted(names["ground"]).mean()) == pytest.approx(own, rel=1e-4)
    assert float(names["corn"].weighted(names["file"].cell_area).mean()) != pytest.approx(own, rel=1e-2)
    names["fractions"] = names["file"]
    exec(snippet((DOCS / "explanation/fractions.md").read_text(), "seen = fractions.cell_area"), names)
    assert float(names["region"][CORN, 0]) == pytest.approx(own, rel=1e-4)
    names["file"].close()


def test_the_documented_lines_for_a_reanalysis_weigh_its_cells_by_the_crop(
    store: Path, codes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cf_xarray", reason="cf-xarray is not installed")
    monkeypatch.chdir(tmp_path)
    reanalysis().to_netcdf("t2m.nc")
    shutil.copytree(store, "map.zarr")
    names: dict[str, Any] = {"xr": xr, "xgfm": xgfm}
    lines = snippet((DOCS / "how-to/downstream.md").read_text(), "import cf_xarray\n\nera5").strip().splitlines()
    exec("\n".join([*lines[:-1], f"mean = {lines[-1]}"]), names)
    corn, ground, mean = names["corn"], names["ground"], names["mean"]
    assert float((corn * ground).sum()) == pytest.approx((codes == CORN).sum() * 900.72, rel=1e-4)
    assert mean.dims == ("valid_time",)
    area = (corn * ground).fillna(0)
    field = names["era5"].t2m.sel(lat=area.lat, lon=area.lon)
    np.testing.assert_allclose(mean, (field * area).sum(["lat", "lon"]) / area.sum(), rtol=1e-5)


def reanalysis() -> xr.Dataset:
    """Return temperatures as files of ERA5 have them: rows on the poles, from the north, no bounds, 0 to 360."""
    lat, lon = np.arange(90, -90.1, -0.25), np.arange(0, 360, 0.25)
    field = 280 + np.random.default_rng(0).normal(0, 5, (2, len(lat), len(lon))).astype("float32")
    made = xr.Dataset({"t2m": (("valid_time", "latitude", "longitude"), field, {"units": "K"})})
    made = made.assign_coords(valid_time=xr.date_range("2024-07-01", periods=2), latitude=lat, longitude=lon)
    made["latitude"].attrs = {"units": "degrees_north", "standard_name": "latitude"}
    made["longitude"].attrs = {"units": "degrees_east", "standard_name": "longitude"}
    return made


def test_the_checker_passes_what_the_examples_read(tmp_path: Path) -> None:
    pytest.importorskip("compliance_checker", reason="the IOOS compliance checker is not installed")
    from cf_checks import complaints, complaints_of

    years = stack_maps([season(1, 2023), season(2, 2024)])
    for name, made in {
        "cf": to_climate(years, "0.05deg", area_types=TYPES),
        "cmip": to_climate(years, "0.05deg", mode="cmip", area_types=TYPES, min_valid=0.2),
    }.items():
        assert complaints(made, tmp_path / f"{name}.nc") == ""
        assert complaints_of(to_netcdf(made, tmp_path / f"{name}-ours.nc")) == ""


def test_fractions_of_two_years_hold_the_change_between_them() -> None:
    maps = [season(1, 2023), season(2, 2024)]
    out = to_climate(stack_maps(maps), "0.05deg").compute()
    assert out["time"].dt.year.values.tolist() == [2023, 2024]
    assert [str(d)[:10] for d in out["time_bnds"].values.ravel()] == [
        "2023-04-01", "2023-11-01", "2024-04-01", "2024-11-01",
    ]  # fmt: skip
    area = (out["area_fraction"] * out["valid_area_fraction"] * out["cell_area"]).sum(("lat", "lon"))
    for k, made in enumerate(maps):
        counts = np.bincount(made["crop"].values.ravel(), minlength=256)[: len(NAMES)]
        np.testing.assert_allclose(area.isel(time=k), counts * 900.72, rtol=2e-4)
