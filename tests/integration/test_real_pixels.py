"""Real HLS and Sentinel-2 pixels through the whole line, with full-size architectures in their published files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray as xr
from published_files import Shapes, layouts_of, mmseg_shapes, write_task

import xgfm
from xgfm.cube.items import ASSETS
from xgfm.grid import tile_geobox, with_grid
from xgfm.infer import device
from xgfm.models import handle as handle_module
from xgfm.models.published import TASKS
from xgfm.models.spec import PRITHVI_BANDS

CHIP_TILE = "14RMS"
"""MGRS tile that the real chip was cut from: its corner lies on that tile's lattice."""


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gigabytes of modules go when the test does."""
    monkeypatch.setattr(handle_module, "_LOADED", {})
    monkeypatch.setattr(device, "_CAST", {})


@pytest.fixture
def chip(shared_data: Path) -> Path:
    return shared_data / "hls" / "chips" / "agb_L30_int16"


def cmr_item(chip: Path, date: str, sensor: str = "L30") -> dict[str, Any]:
    """Return an item as CMR-STAC serves it, without a projection, whose bands are the chip's."""
    day = np.datetime64(date) - np.datetime64(date[:4]) + 1
    name = f"HLS.{sensor}.T{CHIP_TILE}.{date[:4]}{int(day.astype(int)):03d}T170439.v2.0"
    files = [chip / f"{key}.tif" for key in ASSETS["L30"].values() if key != "Fmask"]
    keys = [key for key in ASSETS[sensor].values() if key != "Fmask"]
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [],
        "id": name,
        "collection": f"HLS{sensor}_2.0",
        "geometry": None,
        "bbox": [-97.7, 28.4, -97.4, 28.7],
        "properties": {"datetime": f"{date}T17:04:39.336Z", "eo:cloud_cover": 0},
        "assets": {key: {"href": str(file), "roles": ["data"]} for key, file in zip(keys, files, strict=True)},
        "links": [],
    }


def open_chip(chip: Path, *dates: str, sensor: str = "L30") -> tuple[xr.DataArray, Any]:
    with rasterio.open(chip / "B02.tif") as file:
        bounds, transform = file.bounds, file.transform
    box = tile_geobox(CHIP_TILE)
    assert ((transform.c - box.transform.c) / 30).is_integer()
    items = [cmr_item(chip, date, sensor) for date in dates]
    return xgfm.open_items(items, bounds=tuple(bounds), mask=None), transform


def assert_on_the_chips_grid(store: Path, variable: str, transform: Any, crs: str = "EPSG:32614") -> xr.Dataset:
    reopened = xr.open_zarr(store, decode_coords="all", mask_and_scale=False)
    geobox = reopened[variable].odc.geobox
    assert geobox.transform.almost_equals(transform, precision=1e-9)
    assert geobox.crs == crs
    return reopened


def shapes_of(parity: Path, name: str) -> Shapes:
    layouts = {"flood": "ft_sen1floods11_300_tl", "burn": "ft_burnscars_300"}
    if name in layouts:
        return layouts_of(parity)[layouts[name]]
    spec = TASKS[name]
    return mmseg_shapes(depth=spec.model.depth, frames=spec.frames, classes=len(spec.classes))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["burn-v1", "burn"])
def test_a_real_chip_is_mapped_for_burn_scars(chip: Path, parity: Path, tmp_path: Path, name: str) -> None:
    cube, transform = open_chip(chip, "2024-06-01")
    handle = xgfm.load_task(str(write_task(tmp_path, TASKS[name], shapes_of(parity, name))))
    result = cube.gfm.predict(handle, return_=["class", "confidence"])
    xgfm.to_zarr(result, tmp_path / "map.zarr")
    variable = name.replace("-", "_")
    reopened = assert_on_the_chips_grid(tmp_path / "map.zarr", variable, transform)
    assert reopened[variable].shape == (1, 224, 224)
    assert set(np.unique(reopened[variable])) <= {0, 1}
    assert reopened.confidence.values.min() > 0.5 - 1e-6


@pytest.mark.slow
def test_three_real_dates_are_mapped_for_crops(chip: Path, parity: Path, tmp_path: Path) -> None:
    cube, transform = open_chip(chip, "2024-04-01", "2024-06-20", "2024-09-10", sensor="S30")
    handle = xgfm.load_task(str(write_task(tmp_path, TASKS["crop"], shapes_of(parity, "crop"))))
    xgfm.to_zarr(cube.gfm.predict(handle), tmp_path / "map.zarr")
    reopened = assert_on_the_chips_grid(tmp_path / "map.zarr", "crop", transform)
    assert reopened.crop.shape == (224, 224)
    assert reopened.crop.max() < 13
    assert reopened.attrs["dates"] == [f"2024-{d}T17:04:39" for d in ("04-01", "06-20", "09-10")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flood-v1", "flood"])
def test_a_real_flood_chip_is_mapped(shared_data: Path, parity: Path, tmp_path: Path, name: str) -> None:
    """Sentinel-2 L1C, 13 bands in EPSG:4326: the six by their descriptions, as a user of rasterio would take them."""
    from odc.geo.geobox import GeoBox

    with rasterio.open(shared_data / "hls" / "flood" / "Spain_7370579_S2Hand.tif") as file:
        places = [file.descriptions.index(b) + 1 for b in ("B2", "B3", "B4", "B8A", "B11", "B12")]
        pixels, box = file.read(places)[None, :, :256, :256], GeoBox.from_rio(file)
    cube = with_grid(
        xr.DataArray(
            pixels,
            dims=("time", "band", "y", "x"),
            coords={"time": np.array(["2019-09-17"], "datetime64[ns]"), "band": list(PRITHVI_BANDS)},
            attrs={"nodata": 0, "reflectance_scale": 1e-4},
        ),
        box[:256, :256],
    )
    handle = xgfm.load_task(str(write_task(tmp_path, TASKS[name], shapes_of(parity, name))))
    xgfm.to_zarr(cube.gfm.predict(handle), tmp_path / "map.zarr")
    variable = name.replace("-", "_")
    reopened = assert_on_the_chips_grid(tmp_path / "map.zarr", variable, box.transform, "EPSG:4326")
    missing = (pixels == 0).any((0, 1))
    np.testing.assert_array_equal(reopened[variable].values[0] == 255, missing)


def test_real_pixels_arrive_unchanged(chip: Path) -> None:
    cube, _ = open_chip(chip, "2024-06-01")
    for band, key in zip(PRITHVI_BANDS, ("B02", "B03", "B04", "B05", "B06", "B07"), strict=True):
        with rasterio.open(chip / f"{key}.tif") as file:
            np.testing.assert_array_equal(cube.sel(band=band).values[0], file.read(1))
