"""Losses against torch's and MONAI's own, and the property that they add up however a batch is cut."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from xgfm.errors import TrainError
from xgfm.train.loop.losses import IGNORE, Losses, cross_entropy, dice, focal, sqrt_inverse

WEIGHTS = (0.5, 1.0, 3.0, 0.25)


def batch(seed: int, count: int = 4, *, ignored: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 4, 5, 6, generator=generator, dtype=torch.float64) * 3
    label = torch.randint(0, 4, (count, 5, 6), generator=generator).to(torch.uint8)
    label[torch.rand(label.shape, generator=generator) < ignored] = IGNORE
    return logits, label


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_is_torchs(weights: tuple[float, ...] | None) -> None:
    logits, label = batch(0)
    given_weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    total, weight = cross_entropy(logits, label, given_weights)
    expected = F.cross_entropy(logits, label.long(), weight=given_weights, ignore_index=IGNORE)
    assert float(total / weight) == pytest.approx(float(expected), rel=1e-12)


def test_dice_is_monais() -> None:
    """MONAI has no ignored pixels, and counts classes that are not there: a sample holds all four here."""
    monai = pytest.importorskip("monai.losses", reason="MONAI, the oracle of Dice and focal loss, is not installed")
    logits, label = batch(1, ignored=0.0)
    assert all(len(sample.unique()) == 4 for sample in label)
    total, weight = dice(logits, label)
    oracle = monai.DiceLoss(softmax=True, to_onehot_y=True, smooth_nr=1e-6, smooth_dr=1e-6)
    assert float(total / weight) == pytest.approx(float(oracle(logits, label[:, None].long())), rel=1e-9)


def test_focal_is_monais() -> None:
    monai = pytest.importorskip("monai.losses", reason="MONAI, the oracle of Dice and focal loss, is not installed")
    logits, label = batch(2, ignored=0.0)
    total, weight = focal(logits, label)
    oracle = monai.FocalLoss(use_softmax=True, to_onehot_y=True, gamma=2.0, reduction="none")
    each = oracle(logits, label[:, None].long()).sum(1)  # one class of each pixel is not 0
    assert float(total / weight) == pytest.approx(float(each.mean()), rel=1e-6)  # it counts in float32


def test_dice_knows_only_labelled_pixels_and_present_classes() -> None:
    logits = torch.zeros(1, 3, 1, 4)
    label = torch.tensor([[[0, 0, 1, IGNORE]]], dtype=torch.uint8)
    total, weight = dice(logits, label)
    # P is 1/3 everywhere: class 0 has |P T| = 2/3 and |P| + |T| = 1 + 2, class 1 has 1/3 and 1 + 1
    assert float(total) == pytest.approx((1 - 2 * (2 / 3) / 3) + (1 - 2 * (1 / 3) / 2), rel=1e-5)
    assert float(weight) == 2


def numbers(kind: str, seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    if kind == "segmentation":
        logits, label = batch(seed, count)
        return logits.float(), label
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(count, 5, 6, generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.3] = torch.nan
    return torch.randn(count, 1, 5, 6, generator=generator), target


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    cuts=st.lists(st.integers(0, 6), max_size=3),
    case=st.sampled_from(
        [
            ("segmentation", {"cross_entropy": 1.0, "dice": 0.5, "focal": 2.0}, WEIGHTS),
            ("segmentation", {"dice": 1.0}, None),
            ("regression", {"mse": 1.0, "mae": 0.3, "huber": 2.0}, None),
        ]
    ),
)
def test_parts_of_a_batch_add_up(seed: int, cuts: list[int], case: tuple[str, dict[str, float], Any]) -> None:
    """Loss and gradient of the whole are the sums of those of its parts, however it is cut."""
    kind, parts, class_weights = case
    losses = Losses(parts, kind, class_weights)
    said, label = numbers(kind, seed, 6)

    def gradient(edges: list[int]) -> tuple[float, torch.Tensor]:
        logits = said.clone().requires_grad_()
        pieces = [slice(a, b) for a, b in pairwise(edges)]
        weights = sum(losses.weights(label[piece], logits.shape[1]) for piece in pieces)
        total = 0.0
        for piece in pieces:
            loss = losses.together(losses.sums(logits[piece], label[piece]), weights)
            loss.backward()
            total += loss.item()
        assert logits.grad is not None
        return total, logits.grad

    whole, expected = gradient([0, 6])
    loss, found = gradient([0, *sorted(cuts), 6])
    assert loss == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), value=st.floats(-1e4, 1e4, width=32))
def test_ignored_pixels_have_no_say(seed: int, value: float) -> None:
    logits, label = numbers("segmentation", seed, 2)
    losses = Losses({"cross_entropy": 1.0, "dice": 1.0, "focal": 1.0}, "segmentation")
    changed = torch.where((label == IGNORE)[:, None], torch.tensor([value, 0.0, 1.0, -1.0])[:, None, None], logits)
    torch.testing.assert_close(losses.sums(changed, label), losses.sums(logits, label))


@pytest.mark.parametrize(
    ("name", "oracle"),
    [("mse", F.mse_loss), ("mae", F.l1_loss), ("huber", F.huber_loss)],
)
def test_regressions_are_torchs(name: str, oracle: Any) -> None:
    said, target = numbers("regression", 3, 4)
    losses = Losses({name: 1.0}, "regression")
    known = target.isfinite()
    found = losses.together(losses.sums(said, target), losses.weights(target, 1))
    assert float(found) == pytest.approx(float(oracle(said[:, 0][known], target[known])), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "parts"), [("segmentation", {"dice": 1.0, "focal": 1.0}), ("regression", {"mse": 1.0})]
)
def test_a_batch_without_labels_moves_nothing(kind: str, parts: dict[str, float]) -> None:
    said, label = numbers(kind, 0, 2)
    said.requires_grad_()
    empty = torch.full_like(label, IGNORE) if kind == "segmentation" else torch.full_like(label, torch.nan)
    losses = Losses(parts, kind)
    loss = losses.together(losses.sums(said, empty), losses.weights(empty, said.shape[1]))
    loss.backward()
    assert loss.item() == 0
    assert said.grad is not None
    assert not said.grad.any()


def test_weights_come_from_labels_alone() -> None:
    """The weight of a batch is known before its logits: what `sums` divides by is what `weights` says."""
    logits, label = numbers("segmentation", 5, 4)
    for name, loss in (("cross_entropy", cross_entropy), ("focal", focal)):
        class_weights = torch.tensor(WEIGHTS)
        _, weight = loss(logits, label, class_weights)
        assert float(Losses({name: 1.0}, "segmentation", WEIGHTS).weights(label, 4)[0]) == pytest.approx(float(weight))
    assert float(Losses({"dice": 1.0}, "segmentation").weights(label, 4)[0]) == float(dice(logits, label)[1])


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=8).filter(any))
def test_sqrt_inverse_weights_are_1_over_the_pixels(counts: list[int]) -> None:
    weights = np.array(sqrt_inverse(counts))
    assert (weights * counts).sum() == pytest.approx(sum(counts))
    there = np.array(counts) > 0
    assert (weights[~there] == 0).all()
    np.testing.assert_allclose(
        weights[there] * np.sqrt(np.array(counts)[there]), weights[there][0] * counts[there.argmax()] ** 0.5
    )


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(TrainError, match=r"loss 'mse' does not fit a segmentation; give loss= one of"):
        Losses({"mse": 1.0}, "segmentation")
    with pytest.raises(TrainError, match=r"class_weights= has no effect on loss \['dice'\]"):
        Losses({"dice": 1.0}, "segmentation", (1.0, 2.0))
    with pytest.raises(TrainError, match="the chips have none"):
        sqrt_inverse([0, 0])
