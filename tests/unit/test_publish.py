from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio
from rasterio.features import geometry_mask
from rasterio.warp import transform_geom

from xgfm.cube.overpass import Overpass
from xgfm.cube.phenology import CLASSES
from xgfm.cube.publish import write_granule, write_items, write_truth
from xgfm.grid import tile_geobox

ROWS, COLUMNS = 300, 290
KEYS = {
    "L30": ["B02", "B03", "B04", "B05", "B06", "B07", "Fmask"],
    "S30": ["B02", "B03", "B04", "B8A", "B11", "B12", "Fmask"],
}


@pytest.fixture
def geobox():
    return tile_geobox("15TVM")[100 : 100 + ROWS, 200 : 200 + COLUMNS]


def granule(sensor, edge=None):
    name = f"HLS.{sensor}.T15TVM.2024129T170439.v2.0"
    time = np.datetime64("2024-05-08T17:04:39.336", "ms")
    return Overpass(name, sensor, time, (1, 0, 1), 0.1, (35.5, 145.25), edge, "left")


def pixels_of(overpass):
    imaged = overpass.imaged(range(100, 100 + ROWS), range(200, 200 + COLUMNS))
    values = np.random.default_rng(0).integers(-100, 9000, (6, ROWS, COLUMNS))
    fmask = np.where(np.random.default_rng(1).random(imaged.shape) < 0.1, 66, 64)
    return np.where(imaged, values, -9999).astype("int16"), np.where(imaged, fmask, 255).astype("uint8"), imaged


@pytest.mark.parametrize("sensor", ["L30", "S30"])
def test_files_are_cogs_on_the_sensors_own_asset_keys(tmp_path, geobox, sensor):
    overpass = granule(sensor)
    pixels, fmask, _ = pixels_of(overpass)
    item = write_granule(tmp_path, overpass, pixels, fmask, geobox)
    assert list(item["assets"]) == KEYS[sensor]
    for key, expected in zip(KEYS[sensor], [*pixels, fmask], strict=True):
        path = tmp_path / overpass.id / f"{overpass.id}.{key}.tif"
        assert item["assets"][key]["href"] == str(path)
        with rasterio.open(path) as file:
            np.testing.assert_array_equal(file.read(1), expected)
            assert file.crs.to_epsg() == 32615
            assert tuple(file.transform) == tuple(geobox.transform)
            assert file.block_shapes == [(256, 256)]
            assert file.compression.value == "DEFLATE"
            assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
            assert (file.dtypes[0], file.nodata) == (("uint8", 255) if key == "Fmask" else ("int16", -9999))
            assert file.scales == ((1.0,) if key == "Fmask" else (0.0001,))
            tags = file.tags()
        assert tags["cloud_coverage"] == "10"
        assert tags["MEAN_SUN_AZIMUTH_ANGLE"] == "145.2500"
        assert "not an observation" in tags["DESCRIPTION"]


@pytest.mark.parametrize("sensor", ["L30", "S30"])
def test_items_have_the_shape_of_cmr_stac(tmp_path, geobox, shared_data, sensor):
    overpass = granule(sensor)
    pixels, fmask, _ = pixels_of(overpass)
    item = write_granule(tmp_path, overpass, pixels, fmask, geobox)
    real = json.loads((shared_data / "stac_items" / "rebuilt_cmrstac_T15TVM_2025-10.json").read_text())["features"]
    like = next(one for one in real if f".{sensor}." in one["id"])
    assert set(item) == set(like)
    assert item["collection"] == like["collection"]
    said = set(item["properties"]) - {"xgfm:simulated", "attribution"}
    assert said == set(like["properties"]) - {"storage:schemes"}
    assert item["properties"]["xgfm:simulated"] is True
    assert "simulated by xgfm" in item["properties"]["attribution"]
    assert set(item["assets"]) <= set(like["assets"])
    assert all(set(asset) == set(like["assets"][key]) for key, asset in item["assets"].items())
    assert item["properties"]["datetime"] == "2024-05-08T17:04:39.336Z"
    assert item["properties"]["eo:cloud_cover"] == 10
    assert json.loads(json.dumps(item)) == item


@pytest.mark.parametrize("edge", [None, (420.0, -900.0), (300.0, 200.0), (9000.0, 260.0)])
def test_the_footprint_holds_what_was_imaged(tmp_path, geobox, edge):
    overpass = granule("L30", edge)
    pixels, fmask, imaged = pixels_of(overpass)
    assert 0.2 < imaged.mean() <= 1
    item = write_granule(tmp_path, overpass, pixels, fmask, geobox)
    ring = transform_geom("EPSG:4326", "EPSG:32615", item["geometry"])
    inside = geometry_mask([ring], imaged.shape, geobox.transform, invert=True)
    assert (inside == imaged).mean() > 0.99
    west, south, east, north = item["bbox"]
    xs, ys = zip(*item["geometry"]["coordinates"][0], strict=True)
    assert (min(xs), min(ys), max(xs), max(ys)) == (west, south, east, north)


def test_the_truth_has_the_classes_and_their_colours(tmp_path, geobox):
    label = np.random.default_rng(0).integers(0, 9, (ROWS, COLUMNS)).astype("uint8")
    with rasterio.open(write_truth(tmp_path / "truth.tif", label, geobox)) as file:
        np.testing.assert_array_equal(file.read(1), label)
        assert file.nodata == 255
        assert json.loads(file.tags()["classes"]) == [info.name for info in CLASSES]
        assert file.colormap(1)[2] == (255, 211, 0, 255)


def test_items_are_written_as_a_collection(tmp_path):
    path = write_items(tmp_path / "items.json", [{"id": "a"}, {"id": "b"}])
    assert json.loads(path.read_text()) == {"type": "FeatureCollection", "features": [{"id": "a"}, {"id": "b"}]}
