"""Features on the patch grid, against the encoder called by hand."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from toys import Handle, cube, model_spec, task_spec

import xgfm
from xgfm.errors import FramesError, GridError, TaskError
from xgfm.models.build import build_model

embed = partial(xgfm.embed, precision="fp32")  # bf16 is test_precision.py's


@pytest.fixture(scope="module")
def handle() -> Handle:
    torch.manual_seed(0)
    return Handle(model_spec(coords=("time", "location")), build_model(model_spec(coords=("time", "location"))).eval())


def test_one_window_is_the_encoders_own_answer() -> None:
    torch.manual_seed(0)
    spec = model_spec()
    module = build_model(spec).eval()
    c = cube(16, 16, row=0, column=0)
    x = torch.from_numpy((c.values.astype("float32") - 1000) / 500).movedim(0, 1)[None]
    with torch.no_grad():
        layers = module.encoder.forward_features(x)
    for layer in (0, -1):
        expected = layers[layer][0, 1:].reshape(3, 4, 4, 32).mean(0).movedim(-1, 0)
        seen = embed(c, Handle(spec, module), layer=layer, halo=0)
        assert seen.dims == ("feature", "y", "x")
        np.testing.assert_allclose(seen.values, expected.numpy(), atol=1e-5)


def test_pixels_of_features_are_patches(handle: Handle) -> None:
    c = cube(41, 43, row=-160_003, column=14_677)  # the first whole patch begins at row 3, column 3
    seen = embed(c, handle)
    assert seen.shape == (32, 9, 10)
    geobox = seen.odc.geobox
    assert geobox.resolution.x == 120
    assert (geobox.transform.c, geobox.transform.f) == ((14_677 + 3) * 30, (160_003 - 3) * 30)
    assert float(seen.x[0]) == float(c.x[3:7].mean())
    assert geobox.crs.epsg == 32615


@settings(deadline=None, max_examples=15)
@given(
    size=st.tuples(st.integers(4, 60), st.integers(4, 60)),
    chunk=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(7, 70), st.integers(7, 70)),
    corner=st.tuples(st.integers(-50, 50), st.integers(-50, 50)),
)
def test_any_chunking_gives_the_same_features(
    handle: Handle, size: tuple[int, int], chunk: tuple[int, ...], corner: tuple[int, int]
) -> None:
    c = cube(*size, row=corner[0], column=corner[1], chunks=-1, missing=0.02)
    try:
        whole = embed(c, handle)
    except GridError:
        assume(False)  # no whole patch in it: the test below
    np.testing.assert_allclose(
        embed(c.chunk(dict(zip(c.dims, chunk, strict=True))), handle).values, whole.values, atol=2e-5
    )


def test_a_smaller_bbox_gives_the_same_features_inside(handle: Handle) -> None:
    c = cube(90, 95)
    part = embed(c.isel(y=slice(5, 83), x=slice(7, 90)), handle)[:, 4:-4, 4:-4]
    whole = embed(c, handle).sel(y=part.y, x=part.x)
    xr.testing.assert_allclose(whole, part, atol=2e-5)


def test_patches_without_a_valid_pixel_are_nan(handle: Handle) -> None:
    c = cube(32, 32, row=0, column=0, chunks=-1)
    values = c.values.copy()
    values[0, :, :16, :16] = -9999
    values[0, :, 16, 16] = -9999
    seen = embed(c.copy(data=values).chunk(-1), handle).values
    assert np.isnan(seen[:, :4, :4]).all()
    assert np.isfinite(seen[:, 4:, 4:]).all()


def test_too_many_dates_and_layers_are_refused(handle: Handle) -> None:
    with pytest.raises(FramesError, match=r"built for 3 dates at once, the cube has 4; .*composite\(frames=3\)"):
        embed(cube(times=4), handle)
    with pytest.raises(TaskError, match="has 2 blocks"):
        embed(cube(), handle, layer=2)
    with pytest.raises(TaskError, match="multiple of the patch, 4, from 0 to 7"):
        embed(cube(), handle, halo=3)


def test_a_cube_without_a_whole_patch_is_refused(handle: Handle) -> None:
    with pytest.raises(GridError, match="6 x 6 pixels covers no whole patch of 4 pixels; open a larger bbox"):
        embed(cube(6, 6, row=1, column=1), handle)


def test_a_tasks_encoder_is_an_encoder() -> None:
    """With the task's statistics and frames; what the demonstration is, is said elsewhere."""
    task = xgfm.load_task("crop-demo")
    c = cube(64, 64, row=0, column=0)
    statistics = task.spec.statistics
    mean, std = (np.array(v, "float32")[:, None, None] for v in (statistics.mean, statistics.std))
    x = torch.from_numpy((c.values - mean) / std).movedim(0, 1)[None]
    with torch.no_grad():
        tokens = task.load().encoder(x)[0, 1:]
    patches = 64 // task.spec.model.patch_size[1]
    expected = tokens.reshape(3, patches, patches, -1).mean(0).movedim(-1, 0).numpy()
    np.testing.assert_allclose(embed(c, "crop-demo", halo=0).values, expected, atol=1e-4)


def test_a_module_without_an_encoder_is_refused() -> None:
    with pytest.raises(TaskError, match="task 'toy-task' has no encoder that can be called alone"):
        xgfm.embed(cube(), Handle(task_spec()))
    with pytest.raises(TaskError, match="task 'crop' has no encoder"):  # its planes come in an order of their own
        xgfm.embed(cube(), "crop")
