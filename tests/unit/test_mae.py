"""Masking and patches: properties; the numbers are compared in tests/parity."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import model

from xgfm.errors import TaskError
from xgfm.models.build import build_model
from xgfm.models.mae import random_masking, reconstruction_loss

PATCHES = st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3))
GRIDS = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))


@given(PATCHES, GRIDS)
@settings(max_examples=25, deadline=None)
def test_patches_go_back_to_the_image(patch: tuple[int, int, int], grid: tuple[int, int, int]) -> None:
    mae = build_model(model(patch_size=patch))
    size = [g * p for g, p in zip(grid, patch, strict=True)]
    x = torch.arange(2 * 6 * size[0] * size[1] * size[2], dtype=torch.float32).reshape(2, 6, *size)
    patches = mae.patchify(x)
    assert torch.equal(mae.unpatchify(patches, grid), x)
    t, h, w = (g - 1 for g in grid)
    token = (t * grid[1] + h) * grid[2] + w
    corner = x[:, :, t * patch[0], h * patch[1], w * patch[2]]
    assert torch.equal(patches[:, token, :6], corner)  # bands are fastest


@given(st.integers(1, 300), st.floats(0, 0.99), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_the_smallest_noise_is_kept(count: int, ratio: float, seed: int) -> None:
    noise = torch.rand(2, count, generator=torch.Generator().manual_seed(seed))
    kept, mask, restore = random_masking(noise, ratio)
    assert kept.shape[1] == int(count * (1 - ratio))
    assert torch.equal(mask.sum(1), torch.full((2,), float(count - kept.shape[1])))
    assert not mask.gather(1, kept).any()
    values = noise.gather(1, kept)
    assert torch.equal(values, noise.sort(dim=1).values[:, : kept.shape[1]])
    assert torch.equal(noise.sort(dim=1).values.gather(1, restore), noise)


def test_count_kept_is_cut_off_as_in_pre_training() -> None:
    assert random_masking(torch.rand(1, 50), 0.8)[0].shape[1] == 9


def test_ratio_of_zero_hides_nothing() -> None:
    out = build_model(model()).eval()(torch.randn(1, 6, 3, 16, 16), mask_ratio=0.0)
    assert not out.mask.any()
    assert out.latent.shape[1] == 1 + 12
    assert out.loss.isnan()


@pytest.mark.parametrize("ratio", [1.0, -0.1, 75])
def test_impossible_ratio_is_refused(ratio: float) -> None:
    with pytest.raises(TaskError, match="at least 0 and less than 1"):
        random_masking(torch.rand(1, 4), ratio)


def test_default_ratio_is_the_specs_and_noise_is_drawn() -> None:
    mae, x = build_model(model(mask_ratio=0.5)).eval(), torch.randn(1, 6, 3, 32, 32)
    torch.manual_seed(1)
    first, second = mae(x), mae(x)
    assert first.mask.mean() == 0.5
    assert not torch.equal(first.mask, second.mask)


def test_hidden_pixels_do_not_reach_the_prediction() -> None:
    mae, x, noise = build_model(model()).eval(), torch.randn(1, 6, 3, 32, 32), torch.rand(1, 48)
    out = mae(x, noise=noise)
    hidden = mae.mask_image(out.mask, out.grid)[:, None]
    changed = mae(torch.where(hidden > 0, x + 100, x), noise=noise)
    assert torch.equal(out.prediction, changed.prediction)
    assert not torch.equal(mae(x + 1 - hidden, noise=noise).prediction, out.prediction)


def test_loss_counts_hidden_tokens_only() -> None:
    target, mask = torch.zeros(1, 3, 2), torch.tensor([[1.0, 0.0, 1.0]])
    prediction = torch.tensor([[[1.0, 3.0], [50.0, 50.0], [2.0, 0.0]]])
    assert reconstruction_loss(target, prediction, mask, normalise_target=False).item() == pytest.approx((5 + 2) / 2)


def test_normalised_target_uses_the_unbiased_variance() -> None:
    target = torch.tensor([[[1.0, 2.0, 6.0]]])
    expected = (target - 3) / (7 + 1e-6) ** 0.5  # variance of 1, 2, 6 over n - 1
    loss = reconstruction_loss(target, torch.zeros(1, 1, 3), torch.ones(1, 1), normalise_target=True)
    assert loss.item() == pytest.approx((expected**2).mean().item())
