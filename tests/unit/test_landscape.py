from __future__ import annotations

import numpy as np
import pytest

from xgfm.cube.landscape import SECTION, build_land
from xgfm.cube.phenology import CLASSES

CODE = {info.name: code for code, info in enumerate(CLASSES)}


@pytest.fixture(scope="module")
def land():
    return build_land(np.random.default_rng([7, 1]), (400, 420))


def test_every_pixel_has_a_class_and_a_patch_of_that_class(land):
    assert land.label.shape == land.patch.shape == (400, 420)
    assert land.label.dtype == np.uint8
    assert sorted(np.unique(land.patch)) == list(range(len(land.patch_class)))
    np.testing.assert_array_equal(land.patch_class[land.patch], land.label)


def test_all_classes_are_there_in_credible_shares():
    labels = np.stack([build_land(np.random.default_rng(seed), (300, 300)).label for seed in range(4)])
    share = {name: (labels == code).mean() for name, code in CODE.items()}
    assert all(value > 0.01 for value in share.values()), share
    assert 0.4 < sum(share[name] for name in ("Corn", "Soybeans", "Winter Wheat", "Alfalfa")) < 0.75
    assert share["Corn"] > share["Winter Wheat"]
    assert 0.03 < share["Open Water"] < 0.12


def test_fields_have_the_sizes_of_the_midwest(land):
    crops = np.isin(land.patch_class, [CODE["Corn"], CODE["Soybeans"]])
    hectares = np.bincount(land.patch.ravel())[crops] * 0.09
    assert 5 < np.median(hectares) < 40
    assert hectares.max() < 90  # a quarter of a section is 65 ha
    assert np.quantile(hectares, 0.9) > 2 * np.median(hectares)


def test_gravel_roads_are_a_mile_apart(land):
    """The strongest period along rows and columns is the section's."""
    for axis in (0, 1):
        profile = land.gravel.mean(axis=axis) - land.gravel.mean()
        echo = np.correlate(profile, profile, "full")[len(profile) - 1 :]
        assert 20 + echo[20:90].argmax() == pytest.approx(SECTION, abs=2)


def test_roads_are_neither_on_water_nor_in_towns(land):
    assert not land.gravel[np.isin(land.label, [CODE["Open Water"], CODE["Developed/Barren"]])].any()
    assert land.gravel.max() < 1


def test_soil_and_vigour_vary_round_one(land):
    for field in (land.soil, land.vigour):
        assert field.dtype == np.float32
        assert abs(field.mean() - 1) < 0.03
        assert 0.02 < field.std() < 0.3
        assert field.min() >= 0


def test_a_river_crosses_and_wetlands_lie_by_the_water(land):
    water = land.label == CODE["Open Water"]
    wet = np.argwhere(land.label == CODE["Wetlands"])[::17]
    points = np.argwhere(water)
    nearest = np.sqrt(((wet[:, None] - points[None, ::3]) ** 2).sum(-1)).min(1)
    assert np.median(nearest) < 6


def test_the_same_generator_builds_the_same_land():
    one, same, other = (build_land(np.random.default_rng(seed), (60, 70)) for seed in (5, 5, 6))
    for name in ("label", "patch", "patch_class", "soil", "vigour", "gravel"):
        np.testing.assert_array_equal(getattr(one, name), getattr(same, name))
    assert (one.label != other.label).any()


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (31, 5)])
def test_small_lands_can_be_built(shape):
    assert build_land(np.random.default_rng(0), shape).label.shape == shape
