"""The layer ``out_of_domain`` of predict: against each window by itself, and its invariances."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import small
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import cube

import xgfm
from xgfm.errors import TaskError
from xgfm.jobs.spec import Options
from xgfm.models.build import build_task
from xgfm.models.domain import Domain
from xgfm.models.folder import save_task
from xgfm.models.handle import ModelHandle, load_task

predict = partial(xgfm.predict, precision="fp32")

ROW, COLUMN = -160_000, 14_676
LAYER = 2


def domain(frames: int = 3, seed: int = 0) -> Domain:
    """A domain that tells tokens apart: distances of these toys lie within its table."""
    rng = np.random.default_rng(seed)
    mean, whiten = rng.normal(size=(frames, 32)), 0.2 * rng.normal(size=(frames, 32, 32))
    return Domain(LAYER, *(torch.from_numpy(v).float() for v in (mean, whiten)), torch.linspace(6, 10, 101))


def written(folder: Path, **changes: Any) -> ModelHandle:
    torch.manual_seed(0)
    spec = small.task(**changes)
    return load_task(save_task(build_task(spec).eval(), spec, folder, domain=domain()))


@pytest.fixture(scope="module")
def handle(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return written(tmp_path_factory.mktemp("task"))


def score(c: xr.DataArray, handle: ModelHandle, **options: Any) -> np.ndarray:
    return predict(c, handle, return_="out_of_domain", **options).out_of_domain.values


def oracle(c: xr.DataArray, handle: ModelHandle) -> np.ndarray:
    """Score of every pixel from its own window; the cube is at least a window long."""
    spec, module, known = handle.spec, handle.load(), handle.load_domain()
    pixels = c.values.astype("float64")
    valid = (pixels != -9999).all((0, 1))
    x = np.where(pixels != -9999, (pixels - 1000) / 500, 0.0).astype("float32").swapaxes(0, 1)
    stride, (rows, columns) = spec.window - 2 * spec.halo, c.shape[-2:]
    out = np.full((rows, columns), np.nan, "float32")
    seen: dict[tuple[int, int], np.ndarray] = {}
    for i, j in np.argwhere(valid):
        top = min(max((ROW + i) // stride * stride - spec.halo - ROW, 0), rows - spec.window)
        left = min(max((COLUMN + j) // stride * stride - spec.halo - COLUMN, 0), columns - spec.window)
        if (top, left) not in seen:
            window = torch.from_numpy(x[None, ..., top : top + spec.window, left : left + spec.window])
            with torch.no_grad():
                (tokens,) = module.encoder.forward_features(window, layers=[LAYER])
            away = tokens[0, 1:].reshape(3, 4, 4, 32) - known.mean[:, None, None]
            squares = torch.stack([(a @ w) ** 2 for a, w in zip(away, known.whiten, strict=True)])
            seen[top, left] = squares.mean((0, 3)).sqrt().numpy()
        distance = seen[top, left][(i - top) // 8, (j - left) // 8]
        out[i, j] = np.interp(distance, known.nearer.numpy(), np.linspace(0, 1, 101))
    return out


def test_every_pixel_has_the_share_of_its_patch(handle: ModelHandle) -> None:
    c = cube(70, 61, missing=0.02, row=ROW, column=COLUMN)
    expected = oracle(c, handle)
    assert np.nanstd(expected) > 0.02  # else this shows nothing
    assert 0.05 < np.nanmean(expected) < 0.95
    np.testing.assert_allclose(score(c, handle), expected, atol=1e-3)


@settings(deadline=None, max_examples=10)
@given(
    rows=st.integers(5, 80),
    columns=st.integers(5, 80),
    chunk=st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(7, 80), st.integers(7, 80)),
    origin=st.tuples(st.integers(-200_000, 200_000), st.integers(0, 30_000)),
    batch_size=st.sampled_from([None, 1, 3]),
)
def test_any_chunking_and_batch_gives_the_same(
    handle: ModelHandle, rows: int, columns: int, chunk: Any, origin: Any, batch_size: int | None
) -> None:
    c = cube(rows, columns, missing=0.02, row=origin[0], column=origin[1], chunks=-1)
    parts = score(c.chunk(dict(zip(c.dims, chunk, strict=True))), handle, batch_size=batch_size)
    np.testing.assert_allclose(parts, score(c, handle), atol=2e-5)  # a batch of another size rounds otherwise
    np.testing.assert_array_equal(np.isnan(parts), (c.values == -9999).any((0, 1)))


@settings(deadline=None, max_examples=5)
@given(cut=st.tuples(*[st.integers(0, 20)] * 4))
def test_a_smaller_bbox_gives_the_same_inside(handle: ModelHandle, cut: tuple[int, int, int, int]) -> None:
    c, edge = cube(120, 115), handle.spec.window  # windows shift inward at the edge of either
    top, bottom, left, right = cut
    part = c.isel(y=slice(top, 120 - bottom), x=slice(left, 115 - right))
    inside = predict(part, handle, return_="out_of_domain").out_of_domain[edge:-edge, edge:-edge]
    whole = predict(c, handle, return_="out_of_domain").out_of_domain.sel(y=inside.y, x=inside.x)
    np.testing.assert_allclose(inside.values, whole.values, atol=2e-5)


def test_workers_read_it_themselves(handle: ModelHandle) -> None:
    c = cube(40, 40, chunks=(1, 1, 40, 40))
    with dask.config.set(scheduler="processes", num_workers=1):
        there = score(c, handle)
    np.testing.assert_allclose(there, score(c, handle), atol=2e-5)


def test_other_layers_are_what_they_are_without_it(handle: ModelHandle) -> None:
    c = cube(60, 50, missing=0.05)
    names = ["class", "probability", "confidence", "entropy", "logits"]
    alone, beside = predict(c, handle, return_=names), predict(c, handle, return_=["out_of_domain", *names])
    assert list(beside.data_vars) == ["small_task", *names[1:], "out_of_domain"]
    for name in alone.data_vars:
        np.testing.assert_array_equal(alone[name].values, beside[name].values)
    assert beside.small_task.dtype == "uint8"
    np.testing.assert_array_equal(beside.out_of_domain.values, score(c, handle))


def test_augmentation_leaves_it_as_it_is(handle: ModelHandle) -> None:
    """Held-out patches were seen as they are, and so is what they are compared with."""
    c = cube(50, 50)
    assert not np.array_equal(
        *(predict(c, handle, return_="confidence", tta=t).confidence.values for t in (False, True))
    )
    np.testing.assert_array_equal(score(c, handle, tta=True), score(c, handle))


def test_blended_windows_average_their_distances(handle: ModelHandle) -> None:
    c = cube(90, 90)
    blended = score(c, handle, blend="hann")
    assert np.isfinite(blended).all()
    inner = np.abs(blended - score(c, handle))
    assert inner.max() < 0.5
    chunked = score(c.chunk(y=31, x=47), handle, blend="hann")
    np.testing.assert_allclose(chunked, blended, atol=1e-4)


def test_attributes_say_what_it_is(handle: ModelHandle) -> None:
    result = predict(cube(), handle, return_=["class", "out_of_domain"])
    assert result.out_of_domain.attrs["long_name"].startswith("share of held-out training patches")
    assert result.out_of_domain.attrs["units"] == "1"
    assert result.out_of_domain.dtype == "float32"
    assert np.isnan(result.out_of_domain.encoding["_FillValue"])
    assert "out_of_domain" in result.small_task.attrs["ancillary_variables"].split()
    assert result.attrs["domain_digest"] == handle.domain
    assert "domain_digest" not in predict(cube(), handle).attrs


def test_it_stays_lazy(handle: ModelHandle) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("computed")

    with dask.config.set(scheduler=refuse):
        predict(cube(), handle, return_="out_of_domain")


def test_task_that_does_not_know_its_training_set_is_refused_before_any_read(tmp_path: Path) -> None:
    spec = small.task()
    known = load_task(save_task(build_task(spec), spec, tmp_path))
    with pytest.raises(
        TaskError, match=r"'small-task' does not know its training set.*xgfm\.fit_domain\(task, chips\)"
    ):
        predict(cube(), known, return_=["class", "out_of_domain"])


def test_regression_can_say_it_too(tmp_path: Path) -> None:
    handle = written(tmp_path, kind="regression", classes=(), units="t ha-1")
    c = cube(40, 40, missing=0.1)
    both = predict(c, handle, return_=["class", "out_of_domain"])
    np.testing.assert_array_equal(both.small_task.values, predict(c, handle).small_task.values)
    np.testing.assert_array_equal(np.isnan(both.out_of_domain.values), (c.values == -9999).any((0, 1)))
    assert list(predict(c, handle, return_="out_of_domain").data_vars) == ["out_of_domain"]
    with pytest.raises(TaskError, match="is a regression"):
        predict(c, handle, return_=["class", "entropy"])


def test_task_of_one_frame_has_it_for_every_date(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = small.task(model=small.model(frames=1), frames=1)
    handle = load_task(save_task(build_task(spec).eval(), spec, tmp_path, domain=domain(frames=1)))
    c = cube(40, 40)
    values = score(c, handle)
    assert values.shape == (3, 40, 40)
    for step in range(3):
        np.testing.assert_allclose(values[step], score(c.isel(time=[step]), handle)[0], atol=2e-5)


def test_job_can_ask_for_it() -> None:
    assert Options.model_validate({"return": ["class", "out_of_domain"]}).return_ == ("class", "out_of_domain")
