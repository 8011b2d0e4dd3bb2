"""A cube that was written and opened again is mapped as the one that was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import xgfm
from xgfm.cube.simulate import simulate_season


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> xr.DataArray:
    season = simulate_season(tmp_path_factory.mktemp("season"), seed=17, shape=(96, 96), granules=9)
    return xgfm.open_items(season.items, geobox=season.geobox, chunks=64)


@pytest.fixture(scope="module")
def direct(cube: xr.DataArray) -> xr.Dataset:
    return cube.gfm.predict("crop-demo").compute()


@pytest.mark.parametrize("masked", [True, False])
def test_the_map_is_the_same(cube: xr.DataArray, direct: xr.Dataset, tmp_path: Path, masked: bool) -> None:
    cube.gfm.to_zarr(tmp_path / "cube.zarr")
    again = xr.open_zarr(tmp_path / "cube.zarr", mask_and_scale=masked, decode_coords="all").hls
    assert again.dtype == "int16"
    mapped = again.gfm.predict("crop-demo")
    np.testing.assert_array_equal(mapped.crop_demo, direct.crop_demo)
    assert mapped.attrs["frames"] == direct.attrs["frames"]
    assert len(np.unique(direct.crop_demo)) > 3


def test_missing_pixels_as_nan_are_missing(cube: xr.DataArray, direct: xr.Dataset) -> None:
    decoded = cube.where(cube != -9999).astype("float32")
    mapped = decoded.gfm.predict("crop-demo").crop_demo.values
    np.testing.assert_array_equal(mapped == 255, direct.crop_demo == 255)
    # A median of whole numbers is rounded, one of floats is not.
    assert (mapped == direct.crop_demo).mean() > 0.999
