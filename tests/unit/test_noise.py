from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from xgfm.cube.noise import blur, cells, dilate, noise

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@pytest.mark.parametrize(("slope", "scale"), [(1.0, 5), (2.0, 50), (3.0, 300)])
def test_noise_is_standard(slope, scale):
    field = noise(np.random.default_rng(0), (100, 77), scale=scale, slope=slope)
    assert field.shape == (100, 77)
    assert field.dtype == np.float32
    assert abs(field.mean()) < 1e-4
    assert field.std() == pytest.approx(1, abs=1e-4)


def test_noise_is_smoother_where_the_spectrum_is_steeper():
    def roughness(slope):
        return np.abs(np.diff(noise(np.random.default_rng(0), (128, 128), scale=50, slope=slope))).mean()

    assert roughness(1.0) > 2 * roughness(2.0) > 4 * roughness(3.0)


def test_the_same_generator_gives_the_same_field():
    one, same, other = (noise(np.random.default_rng(k), (20, 30), scale=9, slope=2) for k in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


@settings(deadline=None)
@given(SHAPES, st.floats(2, 25), st.integers(0, 99))
def test_a_cell_is_nearest_to_its_own_seed(shape, spacing, seed):
    rows, columns = (int(np.ceil(size / spacing)) + 2 for size in shape)
    rng = np.random.default_rng(seed)
    y = (np.arange(rows)[:, None] - 1 + rng.uniform(0.2, 0.8, (rows, columns))) * spacing
    x = (np.arange(columns) - 1 + rng.uniform(0.2, 0.8, (rows, columns))) * spacing
    py, px = np.indices(shape)
    distance = (py[..., None] - y.ravel()) ** 2 + (px[..., None] - x.ravel()) ** 2
    owner = cells(np.random.default_rng(seed), shape, spacing)
    chosen = np.take_along_axis(distance, owner[..., None].astype(int), -1)[..., 0]
    np.testing.assert_allclose(chosen, distance.min(-1))


@settings(deadline=None)
@given(hnp.arrays(bool, SHAPES), st.integers(0, 6))
def test_dilate_is_a_disc_round_every_pixel(mask, pixels):
    y, x = np.nonzero(mask)
    py, px = np.indices(mask.shape)
    near = (py[..., None] - y) ** 2 + (px[..., None] - x) ** 2 <= pixels**2
    np.testing.assert_array_equal(dilate(mask, pixels), near.any(-1))


def test_blur_spreads_a_point_and_keeps_the_sum():
    image = np.zeros((2, 7, 7), "float32")
    image[1, 3, 3] = 1
    seen = blur(image, 0.1)
    np.testing.assert_allclose(seen[1, 2:5, 2:5], np.outer([0.1, 0.8, 0.1], [0.1, 0.8, 0.1]), rtol=1e-6)
    assert seen.sum() == pytest.approx(1)
    assert not seen[0].any()


def test_blur_does_not_reach_round_the_edge():
    image = np.zeros((1, 5, 5), "float32")
    image[0, 0, 0] = 1
    seen = blur(image, 0.1)
    assert not seen[0, -1].any()
    assert not seen[0, :, -1].any()
    np.testing.assert_allclose(blur(np.full((1, 4, 4), 3, "float32"), 0.1), 3)
