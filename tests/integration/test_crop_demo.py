"""The bundled task, through the same calls as a user's, on seasons that it was not trained on."""

from __future__ import annotations

import numpy as np
import pytest

import xgfm
from xgfm.cube.phenology import CLASSES
from xgfm.cube.simulate import simulate_cube
from xgfm.models.registry import BUNDLED

UNSEEN = 17  # the recipe trains on seeds from 1000


@pytest.fixture(scope="module")
def season():
    cube, truth = simulate_cube(seed=UNSEEN, shape=(256, 256))
    return xgfm.mask(cube).chunk(time=1, y=128, x=128), truth


def test_it_is_small_and_says_what_it_is():
    spec = xgfm.load_task("crop-demo").spec
    size = sum(file.stat().st_size for file in (BUNDLED / "crop-demo").iterdir())
    assert size < 3_000_000
    assert spec.demonstration
    assert "a map of nothing real" in spec.title
    assert spec.classes == CLASSES
    assert spec.frames == 3
    assert any("was not trained on" in quirk for quirk in spec.quirks)


def test_its_weights_are_float32_when_loaded():
    module = xgfm.load_task("crop-demo").load()
    assert {str(tensor.dtype) for tensor in module.parameters()} == {"torch.float32"}


def test_it_maps_an_unseen_season(season):
    cube, truth = season
    result = xgfm.predict(cube, "crop-demo")
    mapped = result["crop_demo"].values
    known = mapped != 255
    assert known.mean() > 0.8
    right = mapped[known] == truth.values[known]
    assert right.mean() > 0.85
    for code in np.flatnonzero(np.bincount(truth.values.ravel()) > 1000):
        one, other = mapped[known] == code, truth.values[known] == code
        iou = (one & other).sum() / (one | other).sum()
        assert iou > 0.4, CLASSES[code].name
    assert result.attrs["demonstration"]


def test_a_pixel_is_nodata_exactly_where_a_frame_is(season):
    cube, _ = season
    frames = xgfm.composite(cube, 3)
    mapped = xgfm.predict(frames, "crop-demo")["crop_demo"]
    np.testing.assert_array_equal(mapped.values == 255, (frames == -9999).any(("time", "band")).values)
    np.testing.assert_array_equal(mapped.values, xgfm.predict(cube, "crop-demo")["crop_demo"].values)
