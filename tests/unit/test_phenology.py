from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xgfm.cube.phenology import (
    CLASSES,
    COVERS,
    SPECTRA,
    double_logistic,
    draw_patches,
    reflectance,
    regrowth,
    typical_season,
)
from xgfm.models.spec import PRITHVI_BANDS

DAYS = np.arange(91.0, 290.0)  # 1 April to 16 October
COVER = {cover.name: cover for cover in COVERS}
VEGETATION = [name for name in COVER if name not in ("Open Water", "Developed/Barren")]


def ndvi(name, days=DAYS):
    red, nir = typical_season(COVER[name], days)[:, [2, 3]].T
    return (nir - red) / (nir + red)


def peak_day(name):
    return DAYS[ndvi(name).argmax()]


def test_double_logistic_is_the_published_formula():
    # greenbrown's and phenofit's reference implementations of Beck et al. 2006, with mn = 0 and mx = 1
    day, rise, fall = 160.0, 150.0, 260.0
    expected = 1 / (1 + np.exp(-0.08 * (day - rise))) + 1 / (1 + np.exp(0.05 * (day - fall))) - 1
    assert double_logistic(np.array(day), rise, 0.08, fall, 0.05) == pytest.approx(expected)
    assert double_logistic(np.array(rise), rise, 0.08, 400, 0.05) == pytest.approx(0.5, abs=1e-3)


@settings(deadline=None)
@given(st.floats(-100, 500), st.floats(80, 200), st.floats(200, 320), st.floats(0.02, 0.3), st.floats(0.02, 0.3))
def test_double_logistic_is_a_share(day, rise, fall, up, down):
    assert 0 <= double_logistic(np.array(day), rise, up, fall, down) <= 1


def test_regrowth_drops_at_each_cut_and_closes_within_a_month():
    days = np.arange(140.0, 260.0)
    standing = np.array([regrowth(np.array([day]), np.array([[150.0], [190.0]]))[0] for day in days])
    assert (standing[days < 150] == 1).all()
    assert standing[days == 150] < 0.2
    assert standing[days == 180] > 0.95
    assert standing[days == 190] < 0.2
    assert standing[days == 250] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("cover", COVERS, ids=lambda cover: cover.name)
def test_reflectance_is_physical_for_every_patch_and_day(cover):
    patches = draw_patches(np.random.default_rng(3), cover, 200, year_shift=4.0)
    for day in DAYS[::10]:
        green, dry = patches.shares(day)
        assert (green >= 0).all()
        assert (dry >= 0).all()
        assert (green + dry <= 1 + 1e-9).all()
        seen = reflectance(patches, day)
        assert seen.shape == (200, len(PRITHVI_BANDS))
        assert (seen > 0).all()
        assert (seen < 0.7).all()


def test_ground_is_a_mixture_of_its_three_parts():
    patches = draw_patches(np.random.default_rng(0), COVER["Corn"], 5, year_shift=0.0)
    green, dry = patches.shares(170.0)
    by_hand = [
        green[k] * patches.green[k] + dry[k] * patches.dry[k] + (1 - green[k] - dry[k]) * patches.bare[k]
        for k in range(5)
    ]
    np.testing.assert_allclose(reflectance(patches, 170.0), by_hand)


def test_peaks_come_in_the_order_of_the_crop_calendar():
    """Handbook 628 for Minnesota: wheat ripens in July, maize tassels in July, soybeans fill pods in August."""
    assert 140 <= peak_day("Winter Wheat") <= 170 < peak_day("Corn") < peak_day("Soybeans") <= 235
    assert 190 <= peak_day("Corn") <= 225


@pytest.mark.parametrize(
    ("name", "day", "low", "high"),
    [
        ("Corn", 130, 0.15, 0.32),  # just planted
        ("Corn", 210, 0.75, 0.92),
        ("Corn", 280, 0.15, 0.45),  # ripe
        ("Soybeans", 150, 0.15, 0.32),
        ("Soybeans", 228, 0.80, 0.95),
        ("Soybeans", 285, 0.15, 0.35),  # harvested
        ("Winter Wheat", 150, 0.70, 0.90),
        ("Winter Wheat", 220, 0.15, 0.35),  # stubble
        ("Alfalfa", 150, 0.70, 0.92),
        ("Alfalfa", 156, 0.20, 0.55),  # first cut
        ("Forest", 100, 0.25, 0.60),
        ("Forest", 200, 0.80, 0.92),
        ("Natural Vegetation", 180, 0.50, 0.75),
        ("Wetlands", 200, 0.50, 0.80),
        ("Developed/Barren", 200, 0.15, 0.50),
        ("Open Water", 200, -1.0, -0.1),
    ],
)
def test_ndvi_is_what_a_reader_of_landsat_expects(name, day, low, high):
    assert low <= ndvi(name, np.array([float(day)]))[0] <= high


def test_soybeans_are_brighter_than_maize_in_the_near_and_shortwave_infrared():
    """The contrast by which published maps tell them apart in August."""
    corn, soy = (typical_season(COVER[name], np.array([225.0]))[0] for name in ("Corn", "Soybeans"))
    assert soy[3] > 1.15 * corn[3]
    assert soy[4] > 1.1 * corn[4]


def test_alfalfa_is_cut_three_times():
    curve = ndvi("Alfalfa")
    assert (np.diff(curve) < -0.2).sum() == 3


@pytest.mark.parametrize("name", VEGETATION)
def test_vegetation_is_green_at_its_peak(name):
    blue, green, red, nir, swir16, swir22 = typical_season(COVER[name], np.array([peak_day(name)]))[0]
    assert nir > swir16 > swir22
    assert green > red
    assert green > blue


def test_a_late_year_shifts_the_curve():
    days = np.array([160.0])
    early, late = (
        reflectance(draw_patches(np.random.default_rng(1), COVER["Corn"], 50, year_shift=shift), days[0])[:, 3].mean()
        for shift in (-10.0, 10.0)
    )
    assert early > late


def test_classes_are_the_covers_with_colours_of_the_cropland_data_layer():
    assert [info.name for info in CLASSES] == [cover.name for cover in COVERS]
    assert {info.name: info.color for info in CLASSES}["Corn"] == "#ffd300"
    assert all(len(spectrum) == len(PRITHVI_BANDS) for spectrum in SPECTRA.values())
