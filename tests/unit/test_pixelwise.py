"""Whole tasks on images of any size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import FCN, model, task

from xgfm.errors import TaskError
from xgfm.models.build import build_task
from xgfm.models.pixelwise import pad_to_even_grid

SIZES = st.tuples(st.integers(17, 50), st.integers(17, 50))


@given(SIZES)
@settings(max_examples=15, deadline=None)
def test_logits_have_the_size_of_the_image(size: tuple[int, int]) -> None:
    module = build_task(task()).eval()
    with torch.inference_mode():
        assert module(torch.randn(1, 6, 3, *size)).shape == (1, 3, *size)


@given(SIZES)
@settings(max_examples=30, deadline=None)
def test_padding_reflects_below_and_right(size: tuple[int, int]) -> None:
    x = torch.randn(1, 2, 3, *size)
    padded = pad_to_even_grid(x, (1, 8, 8))
    height, width = padded.shape[-2:]
    assert (height % 16, width % 16) == (0, 0)
    assert 0 <= height - size[0] < 16
    assert 0 <= width - size[1] < 16
    rows = [i if i < size[0] else 2 * (size[0] - 1) - i for i in range(height)]
    columns = [j if j < size[1] else 2 * (size[1] - 1) - j for j in range(width)]
    assert torch.equal(padded, x[..., rows, :][..., columns])


def test_change_at_the_far_end_of_a_long_image_shows_there() -> None:
    """A model that took the square root of the token count would show it elsewhere."""
    module, x = build_task(task()).eval(), torch.randn(1, 6, 3, 16, 144)  # 2 x 18 = 36 patches, a square number
    with torch.inference_mode():
        far = x.clone()
        far[..., 136:] += 50
        changed = (module(far) - module(x)).abs().amax(dim=(0, 1, 2))
    assert changed.argmax() >= 112


def test_too_small_an_image_is_refused() -> None:
    with pytest.raises(TaskError, match="give at least 9 x 9"):
        build_task(task())(torch.zeros(1, 6, 3, 8, 40))


def test_frames_other_than_the_tasks_are_refused() -> None:
    with pytest.raises(TaskError, match="built for 3"):
        build_task(task())(torch.zeros(1, 6, 2, 32, 32))


def test_regression_gives_one_channel() -> None:
    module = build_task(task(FCN, kind="regression", classes=())).eval()
    assert module(torch.randn(2, 6, 3, 40, 24)).shape == (2, 1, 40, 24)


def test_time_and_location_reach_the_encoder() -> None:
    spec = task(model=model(coords=("time", "location"), coords_scale_learned=True))
    module, x = build_task(spec).eval(), torch.randn(1, 6, 3, 32, 32)
    time = torch.tensor([[[2024.0, 90.0], [2024.0, 180.0], [2024.0, 270.0]]])
    with torch.inference_mode():
        plain = module(x)
        assert not torch.equal(module(x, time), plain)
        assert not torch.equal(module(x, location=torch.tensor([[45.0, 7.0]])), plain)
