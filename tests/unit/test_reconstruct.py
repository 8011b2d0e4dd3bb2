"""A masked autoencoder's view of a cube."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import Handle, cube, model_spec

import xgfm
from xgfm.errors import TaskError
from xgfm.models.build import build_model


@pytest.fixture(scope="module")
def handle() -> Handle:
    torch.manual_seed(0)
    return Handle(model_spec(), build_model(model_spec()).eval())


def test_seen_patches_are_the_input_and_hidden_ones_are_not(handle: Handle) -> None:
    c = cube(48, 48, row=0, column=0)
    result = xgfm.reconstruct(c, handle, mask_ratio=0.5, seed=3).compute()
    assert result.reconstruction.dims == ("time", "band", "y", "x")
    hidden = result.hidden.values == 1
    assert hidden.mean() == pytest.approx(0.5)
    patches = hidden.reshape(3, 12, 4, 12, 4)
    assert (patches.all((2, 4)) | ~patches.any((2, 4))).all()  # whole patches
    every = np.broadcast_to(hidden[:, None], c.shape)
    np.testing.assert_allclose(result.reconstruction.values[~every], c.values[~every], atol=0.01)
    assert (np.abs(result.reconstruction.values[every] - c.values[every]) > 0.5).mean() > 0.95


def test_prediction_is_in_the_cubes_units(handle: Handle) -> None:
    c = cube(16, 16, row=0, column=0)
    result = xgfm.reconstruct(c, handle, mask_ratio=0.5, seed=3).compute()
    x = torch.from_numpy((c.values.astype("float32") - 1000) / 500).movedim(0, 1)[None]
    noise = torch.from_numpy(np.random.default_rng([3, 2**31, 2**31]).random(48, dtype="float32"))[None]
    with torch.no_grad():
        seen = handle.module(x, mask_ratio=0.5, noise=noise)
    image = handle.module.unpatchify(seen.prediction, seen.grid)[0].movedim(0, 1).numpy() * 500 + 1000
    hidden = handle.module.mask_image(seen.mask, seen.grid)[0].numpy() == 1
    every = np.broadcast_to(hidden[:, None], c.shape)
    np.testing.assert_array_equal(result.hidden.values == 1, hidden)
    np.testing.assert_allclose(result.reconstruction.values[every], image[every], rtol=1e-4, atol=0.05)


@settings(deadline=None, max_examples=10)
@given(chunk=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(7, 70), st.integers(7, 70)))
def test_any_chunking_hides_the_same_patches(handle: Handle, chunk: tuple[int, ...]) -> None:
    c = cube(50, 45, missing=0.02)
    one, other = (
        xgfm.reconstruct(k, handle, seed=1).compute() for k in (c, c.chunk(dict(zip(c.dims, chunk, strict=True))))
    )
    np.testing.assert_array_equal(one.hidden.values, other.hidden.values)
    np.testing.assert_allclose(one.reconstruction.values, other.reconstruction.values, atol=0.05)


def test_the_seed_chooses_the_patches(handle: Handle) -> None:
    one, other = (xgfm.reconstruct(cube(), handle, seed=s).hidden.values for s in (1, 2))
    assert (one != other).any()


def test_a_share_that_is_none_is_refused(handle: Handle) -> None:
    with pytest.raises(TaskError, match="mask_ratio=1: expected a share between 0 and 1"):
        xgfm.reconstruct(cube(), handle, mask_ratio=1)


def test_a_task_reconstructs_nothing() -> None:
    with pytest.raises(TaskError, match="'crop' is a task and reconstructs nothing; give a model"):
        xgfm.reconstruct(cube(), "crop")
