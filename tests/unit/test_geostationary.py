"""The simulated geostationary imager: its grid against published numbers, its pixels against a day without fire."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import shapely
import xarray as xr
from pyproj import Transformer
from rasterio.features import rasterize
from toys import Handle, model_spec, task_spec

import xgfm
from xgfm.cube.geostationary import ABI_BANDS, abi_geobox, outline_smoke, simulate_goes
from xgfm.errors import GridError, LabelError
from xgfm.grid import geobox_of, pixel_size_m
from xgfm.models.spec import Statistics

STEP = 56e-6
"""Radians of a pixel."""
HEIGHT = 35_786_023.0
SMALL = {"seed": 3, "shape": (96, 80), "steps": 3, "minutes": 30}


@pytest.fixture(scope="module")
def burning() -> tuple[xr.DataArray, xr.DataArray]:
    return simulate_goes(**SMALL)


@pytest.fixture(scope="module")
def calm() -> tuple[xr.DataArray, xr.DataArray]:
    return simulate_goes(**SMALL, fires=0)


def test_the_grid_is_the_published_one() -> None:
    """GOES-R Product Definition and Users' Guide, volume 3: the worked example of navigation, and the lattice."""
    box = abi_geobox((33.846162, -84.690932), (1, 1))
    x, y = box.boundingbox.left / HEIGHT, box.boundingbox.top / HEIGHT
    assert -0.024052 - STEP <= x <= -0.024052 + STEP
    assert 0.095340 - STEP <= y <= 0.095340 + STEP
    for edge in (x, y):
        assert edge / STEP == pytest.approx(round(edge / STEP), abs=1e-6)
    assert pixel_size_m(abi_geobox((0.0, -75.0), (4, 4))) == pytest.approx(2004, rel=0.01)
    there = Transformer.from_crs(box.crs.proj, "EPSG:4326", always_xy=True)
    lon, lat = there.transform(-0.024052 * HEIGHT, 0.095340 * HEIGHT)
    assert (lat, lon) == pytest.approx((33.846162, -84.690932), abs=1e-5)


@pytest.mark.parametrize(("place", "shape"), [((0.0, 60.0), (4, 4)), ((0.0, -75.0), (4, 5500))])
def test_a_window_off_the_disk_is_refused(place: tuple[float, float], shape: tuple[int, int]) -> None:
    with pytest.raises(GridError, match="another place="):
        abi_geobox(place, shape)


def test_the_same_seed_gives_the_same_bits(burning: tuple[xr.DataArray, xr.DataArray]) -> None:
    again = simulate_goes(**SMALL)
    for one, other in zip(burning, again, strict=True):
        xr.testing.assert_identical(one, other)
    assert not np.array_equal(simulate_goes(**{**SMALL, "seed": 4})[0].values, burning[0].values)


def test_the_cube_is_one_of_reflectance_factors_and_kelvin(burning: tuple[xr.DataArray, xr.DataArray]) -> None:
    cube, smoke = burning
    assert cube.dims == ("time", "band", "y", "x")
    assert cube.band.values.tolist() == list(ABI_BANDS)
    assert cube.dtype == smoke.dtype == np.dtype("float32")
    assert (np.diff(cube.time.values) == np.timedelta64(30, "m")).all()
    assert -0.05 < float(cube[:, :6].min()) < float(cube[:, :6].max()) < 1.2
    assert 180 < float(cube[:, 6:].min()) < float(cube[:, 6:].max()) < 412
    assert geobox_of(cube) == geobox_of(smoke)
    assert cube.spatial_ref.attrs["grid_mapping_name"] == "geostationary"


def test_smoke_is_seen_in_short_waves_and_fire_in_c07(
    burning: tuple[xr.DataArray, xr.DataArray], calm: tuple[xr.DataArray, xr.DataArray]
) -> None:
    """The same land, sky and noise without fires: what differs is smoke and fire."""
    apart = (burning[0] - calm[0]).sel(band=list(ABI_BANDS))
    smoky = (burning[1] > 0.5) & (calm[0].sel(band="C02") < 0.12)
    assert int(smoky.sum()) > 200
    by_band = apart.where(smoky).mean(("time", "y", "x"))
    assert float(by_band.sel(band="C01")) > float(by_band.sel(band="C02")) > 3 * float(by_band.sel(band="C06")) > 0
    assert float(abs(apart.sel(band=list(ABI_BANDS[7:]))).max()) == 0
    assert float(apart.sel(band="C07").max()) > 5


def test_plumes_grow(burning: tuple[xr.DataArray, xr.DataArray]) -> None:
    area = (burning[1] > 0.3).sum(("y", "x")).values
    assert (np.diff(area) > 0).all()


def test_outlines_follow_the_smoke_and_are_not_exact(burning: tuple[xr.DataArray, xr.DataArray]) -> None:
    smoke = burning[1]
    features = json.loads(json.dumps(outline_smoke(smoke, every=2)))["features"]
    times = sorted({f["properties"]["time"] for f in features})
    assert times == ["2024-08-20T13:00:00Z", "2024-08-20T14:00:00Z"]
    box = geobox_of(smoke)
    back = Transformer.from_crs("EPSG:4326", box.crs.proj, always_xy=True)
    for step, time in zip((0, 2), times, strict=True):
        drawn = [f for f in features if f["properties"] == {"class": "smoke", "time": time}]
        shapes = [shapely.geometry.shape(f["geometry"]) for f in drawn]
        assert shapes
        assert all(s.is_valid for s in shapes)
        placed = [shapely.transform(s, lambda xy: np.column_stack(back.transform(*xy.T))) for s in shapes]
        inside = rasterize(placed, out_shape=box.shape, transform=box.transform).astype(bool)
        seen = smoke.values[step] > 0.3
        agreement = (inside & seen).sum() / (inside | seen).sum()
        assert 0.6 < agreement < 0.99
    whole = shapely.geometry.shape(features[0]["geometry"])
    assert features[0]["properties"]["class"] == "no smoke"
    assert all(whole.buffer(0.1).contains(shapely.geometry.shape(f["geometry"])) for f in features)


def test_a_map_is_the_same_in_any_cut_of_the_disk(burning: tuple[xr.DataArray, xr.DataArray]) -> None:
    """Windows are anchored to the fixed grid: what lies a window away from an edge does not see where it is."""
    cube = burning[0].isel(time=[0])
    known = Statistics(*(tuple(m(("time", "y", "x")).values.tolist()) for m in (cube.mean, cube.std)), 1.0)
    model = model_spec(bands=ABI_BANDS, statistics=known, frames=1, pixel_size=2100.0)
    handle = Handle(task_spec(frames=1, model=model, statistics=known, pixel_size=2100.0))
    whole = xgfm.predict(cube, handle, precision="fp32").toy_task
    part = xgfm.predict(cube.isel(y=slice(23, None), x=slice(17, 71)), handle, precision="fp32").toy_task
    assert len(np.unique(whole)) == 3
    inside = {"y": slice(16, -16), "x": slice(16, -16)}
    expected = whole.isel(y=slice(23, None), x=slice(17, 71)).isel(inside)
    np.testing.assert_array_equal(part.isel(inside).values, expected.values)


def test_outlines_reach_the_picture_that_they_were_drawn_on(
    burning: tuple[xr.DataArray, xr.DataArray], tmp_path: Path
) -> None:
    """From degrees to the grid of scanning angles, and to the picture of the same minutes."""
    cube, smoke = burning
    file = tmp_path / "analyst.geojson"
    file.write_text(json.dumps(outline_smoke(smoke, every=2)))
    how = {"column": "class", "legend": ["no smoke", "smoke"], "priority": ["smoke", "no smoke"]}
    drawn = xgfm.labels(file, cube, time_column="time", tolerance="5min", **how)
    assert [np.unique(step).tolist() for step in drawn.values] == [[0, 1], [255], [0, 1]]
    for step in (0, 2):
        seen = smoke.values[step] > 0.3
        marked = drawn.values[step] == 1
        assert (marked & seen).sum() / (marked | seen).sum() > 0.6
    xr.testing.assert_identical(drawn, xgfm.labels(file, cube.chunk(y=30, x=50), **how, time_column="time").compute())
    late = cube.assign_coords(time=cube.time + np.timedelta64(3, "h"))
    with pytest.raises(LabelError, match=r"20T14:00\) do not meet the cube \(2024-08-20T16:00 to"):
        xgfm.labels(file, late, time_column="time", tolerance="5min", **how)
