"""Cloud-optimised GeoTIFFs as rasterio sees them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
from odc.geo.geobox import GeoBox
from results import CLASSES, DEGREES, NORTH, SOUTH, pixels, result

from xgfm.errors import GridError, WriteError, XgfmError
from xgfm.store.write import to_cog, to_zarr

LARGE = GeoBox((1300, 1100), SOUTH.affine, SOUTH.crs)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_cog(result(LARGE, chunks=(400, 512)), tmp_path_factory.mktemp("cog") / "map.tif")


@pytest.mark.parametrize("box", [NORTH, SOUTH, DEGREES], ids=["north", "south", "degrees"])
def test_pixels_and_georeference(tmp_path: Path, box: GeoBox) -> None:
    with rasterio.open(to_cog(result(box), tmp_path / "map.tif")) as file:
        np.testing.assert_array_equal(file.read(1), pixels(box.shape))
        assert file.crs == rasterio.crs.CRS.from_epsg(box.crs.epsg)
        assert tuple(file.transform) == pytest.approx(tuple(box.affine), rel=1e-12)
        assert (file.nodata, file.dtypes) == (255, ("uint8",))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["map.tif", "map.tif.aux.xml"]


def test_real_chip_keeps_its_georeference(shared_data: Path, tmp_path: Path) -> None:
    with rasterio.open(shared_data / "hls" / "chips" / "agb_L30_int16" / "B02.tif") as chip:
        box = GeoBox(chip.shape, chip.transform, chip.crs.to_wkt())
        with rasterio.open(to_cog(result(box), tmp_path / "map.tif")) as file:
            assert (file.crs, file.transform, file.shape) == (chip.crs, chip.transform, chip.shape)


def test_structure(large: Path) -> None:
    with rasterio.open(large) as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.block_shapes == [(512, 512)]
        assert file.overviews(1) == [2, 4]
        np.testing.assert_array_equal(file.read(1), pixels(LARGE.shape))


def test_structure_by_the_validator(large: Path) -> None:
    rio_cogeo = pytest.importorskip("rio_cogeo")
    assert rio_cogeo.cog_validate(large, strict=True, quiet=True) == (True, [], [])


def test_overviews_hold_the_most_frequent_class(large: Path) -> None:
    full = pixels(LARGE.shape)
    quads = full.reshape(650, 2, 550, 2).swapaxes(1, 2).reshape(650, 550, 4)
    counts = np.stack([(quads == c).sum(-1) for c in range(3)])
    clear = counts.max(0) >= 3
    with rasterio.open(large, overview_level=0) as file:
        half = file.read(1)
    np.testing.assert_array_equal(half[clear], counts.argmax(0)[clear])
    assert (half[..., None] == quads).any(-1).all()  # and never a mean, of class numbers or of colours


def test_colours_names_and_facts(large: Path) -> None:
    with rasterio.open(large) as file:
        table = file.colormap(1)
        assert [table[i][:3] for i in range(3)] == [(0x4E, 0x8C, 0x3B), (0xA8, 0x70, 0x00), (0x4D, 0x70, 0xA3)]
        assert file.descriptions == ("Crops",)
        assert file.tags()["task"] == "crop-v1.0"
        assert file.tags()["frames"] == '[{"dates": ["2024-04-03"]}]'
        assert file.tags(1)["flag_meanings"] == "natural_vegetation winter_wheat open_water"
    names = ET.parse(large.with_name("map.tif.aux.xml")).findall("PAMRasterBand[@band='1']/CategoryNames/Category")
    assert [n.text for n in names] == [c.name for c in CLASSES]


def test_probability_is_one_band_for_each_class(tmp_path: Path) -> None:
    made = result(probability=True)
    with rasterio.open(to_cog(made, tmp_path / "p.tif", variable="probability")) as file:
        np.testing.assert_array_equal(file.read(), made.probability.values)
        assert np.isnan(file.nodata)
        assert file.descriptions == tuple(c.name for c in CLASSES)
    assert [p.name for p in tmp_path.iterdir()] == ["p.tif"]


def test_the_class_map_is_the_default(tmp_path: Path) -> None:
    with rasterio.open(to_cog(result(probability=True), tmp_path / "map.tif")) as file:
        assert (file.count, file.dtypes) == (1, ("uint8",))


def test_a_choice_has_to_be_made(tmp_path: Path) -> None:
    unclear = result(probability=True).drop_vars("crop_v1_0").assign(other=lambda d: d.probability[0])
    with pytest.raises(XgfmError, match=r"cannot tell which variable.*variable=None.*'probability', 'other'"):
        to_cog(unclear, tmp_path / "map.tif")
    with pytest.raises(XgfmError, match=r"variable='crop'.*there are \['crop_v1_0'\]"):
        to_cog(result(), tmp_path / "map.tif", variable="crop")


def test_one_time_goes_and_several_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"'crop_v1_0' has 3 times.*result\.isel\(time=0\)"):
        to_cog(result(times=3), tmp_path / "map.tif")
    assert not list(tmp_path.iterdir())
    for number, one in enumerate((result(times=3).isel(time=[1]), result(times=3).isel(time=1))):
        with rasterio.open(to_cog(one, tmp_path / f"{number}.tif")) as file:
            np.testing.assert_array_equal(file.read(1), pixels((3, *NORTH.shape))[1])


def test_too_many_dimensions_are_refused(tmp_path: Path) -> None:
    deep = result(probability=True)[["probability"]].expand_dims("run")
    with pytest.raises(WriteError, match=r"has dims \('run', 'class', 'y', 'x'\); expected"):
        to_cog(deep, tmp_path / "map.tif")


@pytest.mark.parametrize("masked", [True, False])
def test_a_reopened_store(tmp_path: Path, masked: bool) -> None:
    opened = xr.open_zarr(to_zarr(result(), tmp_path / "a.zarr"), mask_and_scale=masked)
    with rasterio.open(to_cog(opened, tmp_path / "map.tif")) as file:
        np.testing.assert_array_equal(file.read(1), pixels(NORTH.shape))
        assert (file.nodata, file.dtypes) == (255, ("uint8",))


def test_a_taken_path_is_refused_and_kept(tmp_path: Path) -> None:
    path = to_cog(result(), tmp_path / "map.tif")
    before = path.read_bytes()
    with pytest.raises(WriteError, match=r"map\.tif exists.*overwrite=True"):
        to_cog(result(SOUTH), path)
    assert path.read_bytes() == before
    confidence = result(SOUTH, probability=True).probability.isel({"class": 0}).rename("confidence")
    to_cog(confidence, path, overwrite=True)
    with rasterio.open(path) as file:
        assert (file.transform.f, file.dtypes) == (-1_099_980, ("float32",))
    assert [p.name for p in tmp_path.iterdir()] == ["map.tif"]  # the names of the classes went with the classes


def test_no_crs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GridError, match="no CRS"):
        to_cog(result().drop_vars("spatial_ref"), tmp_path / "map.tif")


@pytest.mark.parametrize("name", ["map.zarr", "map.ZARR/"])
def test_the_name_of_a_store_is_refused(tmp_path: Path, name: str) -> None:
    where = f"{tmp_path}/{name}"
    with pytest.raises(WriteError, match=r"name of a Zarr store.*path='.*/map\.tif'.*xgfm\.to_zarr\(result, "):
        to_cog(result(), where)
    assert list(tmp_path.iterdir()) == []
