from __future__ import annotations

import json
import re

import numpy as np
import pytest
from rasterio.features import geometry_mask
from rasterio.warp import transform_geom

from xgfm.cube.overpass import ORBITS, SEASON, plan_overpasses
from xgfm.errors import XgfmError
from xgfm.grid import tile_geobox

PLACE = (-93.6, 46.5)
WINDOW = (range(1700, 1800), range(2900, 3000))


def plan(**options):
    defaults = {"seed": 1, "window": WINDOW, "place": PLACE, "granules": 12, "max_cloud_cover": 60.0}
    return plan_overpasses("15TVM", 2024, **{**defaults, **options})


def test_dates_are_in_order_one_a_day_and_clear_enough():
    passes = plan()
    days = [overpass.time.astype("datetime64[D]") for overpass in passes]
    assert len(passes) == 12
    assert days == sorted(set(days))
    assert all(overpass.cover <= 0.6 for overpass in passes)
    assert all(np.datetime64(f"2024-{SEASON[0]}") <= day <= np.datetime64(f"2024-{SEASON[1]}") for day in days)
    assert {overpass.sensor for overpass in passes} == {"L30", "S30"}
    gaps = np.diff(np.array(days)).astype(int)
    assert gaps.max() < 3 * np.median(gaps)


def test_names_are_hls_granule_names_of_their_own_time():
    for overpass in plan():
        match = re.fullmatch(r"HLS\.([LS]30)\.T15TVM\.(\d{7}T\d{6})\.v2\.0", overpass.id)
        assert match
        assert match[1] == overpass.sensor
        named = np.datetime64(f"{match[2][:4]}-01-01") + np.timedelta64(int(match[2][4:7]) - 1, "D")
        assert named == overpass.time.astype("datetime64[D]")
        assert 30 < 90 - overpass.sun[0] < 70  # mid-morning, April to October
        assert 120 < overpass.sun[1] < 175


def test_the_same_seed_plans_the_same_and_more_granules_keep_their_own_randomness():
    assert plan() == plan()
    assert plan(seed=2) != plan()
    every = {overpass.id: overpass for overpass in plan(granules=30)}
    assert all(every[overpass.id] == overpass for overpass in plan(granules=9) if overpass.id in every)


def test_another_longitude_is_passed_at_the_same_local_time():
    home, east = plan(max_cloud_cover=100)[0], plan(max_cloud_cover=100, place=(PLACE[0] + 15, PLACE[1]))[0]
    assert abs((home.time - east.time) / np.timedelta64(1, "m") - 60) < 1
    assert home.sun[0] == pytest.approx(east.sun[0], abs=0.5)


def test_orbits_repeat_as_the_real_ones_do():
    """HLS.S30.T15TVM.2025280T170109 : 17:10:54.943, five days after the pass that its orbit is taken from."""
    options = {"seed": 0, "window": (range(3660), range(3600, 3660)), "granules": 90, "max_cloud_cover": 100.0}
    passes = plan_overpasses("15TVM", 2025, place=PLACE, **options)
    real = np.datetime64("2025-10-07T17:10:54.943")
    assert min(abs((overpass.time - real) / np.timedelta64(1, "s")) for overpass in passes) < 30
    assert any(overpass.id.startswith("HLS.S30.T15TVM.2025280T17") for overpass in passes)


def test_swaths_cover_what_the_real_footprints_cover(shared_data):
    items = json.loads((shared_data / "stac_items" / "rebuilt_cmrstac_T15TVM_2025-10.json").read_text())["features"]
    grid = tile_geobox("15TVM").zoom_out(12)
    for number, item in enumerate(items[:4]):
        ring = transform_geom("EPSG:4326", "EPSG:32615", item["geometry"])
        real = geometry_mask([ring], tuple(grid.shape), grid.transform, invert=True)
        orbit = ORBITS[number]
        edge = np.full(3660, -1.0) if orbit.edge is None else np.linspace(*orbit.edge, 3660)
        left = np.arange(3660) < edge[:, None]
        covered = (left if orbit.side == "left" else ~left)[6::12, 6::12]
        assert (covered == real).mean() > 0.985, item["id"]


def test_a_window_outside_a_swath_is_left_out():
    passes = plan(window=(range(50), range(50)), granules=20)
    assert all(overpass.imaged(range(50), range(50)).mean() >= 0.25 for overpass in passes)
    assert {overpass.sensor for overpass in plan(window=(range(3600, 3660), range(3600, 3660)))} == {"L30", "S30"}
    edged = [overpass for overpass in plan(granules=25) if overpass.edge is not None]
    assert any(0 < overpass.imaged(range(3660), range(3660)).mean() < 1 for overpass in edged)


@pytest.mark.parametrize("options", [{"granules": 200}, {"granules": 0}, {"max_cloud_cover": -1.0}])
def test_too_few_dates_are_refused(options):
    with pytest.raises(XgfmError, match=r"granules were asked for.*fewer granules= or a higher max_cloud_cover="):
        plan(**options)
