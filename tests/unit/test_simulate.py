from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import rasterio
import xarray as xr

from xgfm.cube.catalogs import load_items
from xgfm.cube.composite import composite
from xgfm.cube.items import ASSETS
from xgfm.cube.mask import mask
from xgfm.cube.open import open_items
from xgfm.cube.phenology import CLASSES
from xgfm.cube.simulate import simulate_cube, simulate_season
from xgfm.errors import GridError, XgfmError
from xgfm.grid import geobox_of, tile_geobox
from xgfm.models.spec import PRITHVI_BANDS

SMALL = {"seed": 4, "shape": (70, 60), "granules": 5}
CODE = {info.name: code for code, info in enumerate(CLASSES)}


@pytest.fixture(scope="module")
def season(tmp_path_factory):
    return simulate_season(tmp_path_factory.mktemp("season"), **SMALL)


@pytest.fixture(scope="module")
def large():
    return simulate_cube(seed=4, shape=(256, 256), granules=14)


def digest(folder):
    files = sorted(folder.rglob("*.tif"))
    assert files
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def test_the_same_seed_writes_the_same_bits(season, tmp_path):
    again = simulate_season(tmp_path / "again", **SMALL)
    assert digest(again.items.parent) == digest(season.items.parent)
    other = simulate_season(tmp_path / "other", **{**SMALL, "seed": 5})
    assert digest(other.items.parent) != digest(tmp_path / "again")
    assert (again.granules, again.bbox, again.datetime) == (season.granules, season.bbox, season.datetime)


def test_files_hold_what_the_cube_in_memory_holds(season):
    cube, truth = simulate_cube(**SMALL)
    items = json.loads(season.items.read_text())["features"]
    assert [item["id"] for item in items] == list(season.granules) == cube["item"].values.tolist()
    for step, item in enumerate(items):
        sensor = item["id"].split(".")[1]
        assert cube["sensor"].values[step] == sensor
        assert str(cube["time"].values[step])[:23] + "Z" == item["properties"]["datetime"]
        assert cube["eo:cloud_cover"].values[step] == item["properties"]["eo:cloud_cover"]
        for band in PRITHVI_BANDS:
            with rasterio.open(item["assets"][ASSETS[sensor][band]]["href"]) as file:
                np.testing.assert_array_equal(file.read(1), cube[step].sel(band=band).values)
        with rasterio.open(item["assets"]["Fmask"]["href"]) as file:
            np.testing.assert_array_equal(file.read(1), cube["fmask"].values[step])
    with rasterio.open(season.truth) as file:
        np.testing.assert_array_equal(file.read(1), truth.values)
        assert tuple(file.transform) == tuple(season.geobox.transform)


def test_the_archives_way_to_the_cube_gives_the_same_cube(season):
    """Search, items and loader know nothing of the simulation."""
    cube, _ = simulate_cube(**SMALL)
    read = open_items(load_items(season.items), geobox=season.geobox, mask=None)
    for name in ("time", "band", "y", "x", "sensor", "item", "eo:cloud_cover", "fmask"):
        np.testing.assert_array_equal(read[name].values, cube[name].values, err_msg=name)
    np.testing.assert_array_equal(read.values, cube.values)
    assert read["spatial_ref"].attrs["GeoTransform"] == cube["spatial_ref"].attrs["GeoTransform"]
    assert read.attrs["attribution"] == cube.attrs["attribution"]
    assert read.attrs["simulated"] == cube.attrs["simulated"] == 1


def test_the_season_lies_on_the_lattice_of_its_tile(season):
    tile, window = tile_geobox("T15TVM"), season.geobox
    row, column = (tile.transform.f - window.transform.f) / 30, (window.transform.c - tile.transform.c) / 30
    assert row == int(row) >= 0
    assert column == int(column) >= 0
    assert row + 70 <= 3660
    assert window.crs.epsg == 32615
    assert tuple(window.shape) == (70, 60)
    west, south, east, north = season.bbox
    assert west < east
    assert south < north
    assert season.datetime == f"{day_of(season.granules[0])}/{day_of(season.granules[-1])}"


def day_of(granule):
    stamp = granule.split(".")[3]
    return str(np.datetime64(f"{stamp[:4]}-01-01") + np.timedelta64(int(stamp[4:7]) - 1, "D"))


@pytest.mark.parametrize("shape", [(3660, 40), (1, 1), (30, 3660)])
def test_any_window_of_the_tile_can_be_simulated(shape):
    cube, truth = simulate_cube(seed=0, shape=shape, granules=2, max_cloud_cover=80)
    assert cube.shape == (2, 6, *shape)
    assert truth.shape == shape
    assert geobox_of(cube) == geobox_of(truth)


def test_the_cube_keeps_the_contract(large):
    cube, truth = large
    assert cube.dims == ("time", "band", "y", "x")
    assert cube.dtype == np.int16
    assert cube["band"].values.tolist() == list(PRITHVI_BANDS)
    assert cube.attrs["nodata"] == -9999
    assert cube.attrs["reflectance_scale"] == 1e-4
    assert cube["fmask"].dtype == np.uint8
    assert cube.encoding["grid_mapping"] == "spatial_ref"
    assert np.diff(cube["time"].values).min() > np.timedelta64(0)
    assert truth.dtype == np.uint8
    assert json.loads(json.dumps(cube.attrs)) == cube.attrs


def test_pixels_are_nodata_exactly_where_the_fmask_is_fill(large):
    cube, _ = large
    np.testing.assert_array_equal((cube == -9999).any("band"), cube["fmask"] == 255)
    np.testing.assert_array_equal((cube == -9999).all("band"), cube["fmask"] == 255)
    assert 0 < (cube["fmask"] == 255).mean() < 0.4
    valid = cube.values[cube.values != -9999]
    assert valid.min() > -500
    assert valid.max() < 12000


def test_the_fmask_finds_the_clouds(large):
    """Cloud is bright in the blue, its shadow dark in the near infrared, clear land neither."""
    cube, _ = large
    blue, nir = cube.sel(band="blue"), cube.sel(band="nir08")
    cloudy, shaded = ((cube["fmask"] & bit) > 0 for bit in (2, 8))
    seen = cube["fmask"] != 255
    clear = seen & ((cube["fmask"] & 0b10_1110) == 0)
    assert float(blue.where(cloudy & seen).quantile(0.1)) > float(blue.where(clear).quantile(0.9))
    assert float(nir.where(shaded & seen).median()) < 0.8 * float(nir.where(clear).median())
    assert float((cloudy & seen).mean()) > 0.02


def test_water_is_flagged_and_dark(large):
    cube, truth = large
    water = truth == CODE["Open Water"]
    flagged = ((cube["fmask"] & 32) > 0).where(cube["fmask"] != 255)
    assert bool((flagged == water).where(flagged.notnull(), True).all())
    nir = mask(cube).sel(band="nir08").isel(time=3)
    assert float(nir.where(water & (nir != -9999)).median()) < 500


def test_classes_can_be_told_apart_by_their_seasons(large):
    """Medians of NDVI over each class's clear pixels: the crop calendar survives clouds, noise and mixing."""
    cube, truth = large
    frames = composite(mask(cube), windows=["2024-05", "2024-07", ("2024-08-10", "2024-09-05")])
    red, nir = (frames.sel(band=band).astype("float32") for band in ("red", "nir08"))
    ndvi = ((nir - red) / (nir + red)).where(red != -9999)
    spring, summer, late = (
        {name: float(frame.where(truth == code).median()) for name, code in CODE.items()} for frame in ndvi
    )
    assert spring["Winter Wheat"] > spring["Corn"] + 0.2
    assert spring["Alfalfa"] > spring["Soybeans"] + 0.2
    assert summer["Corn"] > 0.6
    assert late["Soybeans"] > 0.7 > late["Winter Wheat"] + 0.2
    assert min(summer["Forest"], late["Forest"]) > 0.75
    assert max(spring["Open Water"], summer["Open Water"]) < 0
    assert summer["Developed/Barren"] < summer["Natural Vegetation"]


def test_sensor_noise_is_a_few_dn(large):
    """Between neighbours of one lake: no more than Landsat's and Sentinel-2's signal-to-noise ratios leave."""
    cube, truth = large
    water = (truth == CODE["Open Water"]).values
    inner = water[1:-1, 2:] & water[1:-1, 1:-1] & water[1:-1, :-2] & water[2:, 1:-1] & water[:-2, 1:-1]
    step = np.diff(cube.isel(time=0).sel(band="nir08").values.astype(float)[1:-1, 1:], axis=1)
    clear = (cube["fmask"].values[0] & 0b1110) == 0
    kept = inner & clear[1:-1, 1:-1] & clear[1:-1, 2:]
    assert 3 < np.median(np.abs(step[kept])) < 30


def test_years_and_seeds_differ_but_names_are_real():
    this, _ = simulate_cube(seed=1, shape=(40, 40), granules=3, year=2023)
    that, _ = simulate_cube(seed=1, shape=(40, 40), granules=3, year=2024)
    assert all(".T15TVM.2023" in name for name in this["item"].values)
    assert set(this["time"].values).isdisjoint(that["time"].values)


def test_another_tile_has_its_own_zone():
    cube, _ = simulate_cube(seed=1, shape=(20, 20), granules=2, tile="T19LDD")
    assert geobox_of(cube).crs.epsg == 32619
    assert float(cube["y"][0]) < 0
    assert all(".T19LDD." in name for name in cube["item"].values)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"shape": (3661, 10)}, GridError, "shape= takes 1 to 3660 rows and columns"),
        ({"shape": (0, 10)}, GridError, "shape= takes 1 to 3660"),
        ({"granules": 500}, XgfmError, "500 granules were asked for"),
        ({"tile": "T99XXX"}, GridError, "tile"),
    ],
)
def test_what_cannot_be_simulated_is_refused(options, error, words):
    with pytest.raises(error, match=words):
        simulate_cube(**{**SMALL, **options})


def test_writing_twice_into_a_folder_replaces(season):
    before = digest(season.items.parent)
    simulate_season(season.items.parent, **SMALL)
    assert digest(season.items.parent) == before


def test_the_composite_of_a_season_is_what_tasks_take(large):
    frames = composite(mask(large[0]), 3)
    assert isinstance(frames, xr.DataArray)
    assert frames.sizes["time"] == 3
    assert (frames != -9999).mean() > 0.8
