"""One step: equal however its batch is cut, and what stops it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from field_chips import write_small_chips
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from xgfm.errors import TrainError
from xgfm.models.build import build_task
from xgfm.train.chips.chips import Chips
from xgfm.train.loop.losses import Losses
from xgfm.train.loop.passes import Passes, tensors
from xgfm.train.loop.stepping import Stepper, learning_rate, seeded
from xgfm.train.ranks.ranks import Ranks
from xgfm.train.settings import TrainSettings
from xgfm.train.start.tuning import parameter_groups

LEAST: dict[str, Any] = {"chips": "chips", "folder": "run", "base": "small", "precision": "fp32", "warmup": 0.0}


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Chips:
    return write_small_chips(tmp_path_factory.mktemp("chips") / "chips.zarr")


def stepper(chips: Chips, folder: Path, *, architecture: Any = None, **options: Any) -> Stepper:
    """Return a stepper of a model that has no batch norm, unless another architecture is given."""
    spec = small.task(architecture or small.FCN, model=small.model(frames=2), frames=2)
    torch.manual_seed(0)
    settings = TrainSettings(**{**LEAST, "batch_size": 6, **options})
    module = build_task(spec)
    return Stepper(
        passes=Passes(module, spec, chips, "cpu"),
        optimizer=torch.optim.AdamW(parameter_groups(module, settings), lr=1e-3),
        losses=Losses(settings.losses("segmentation"), "segmentation"),
        settings=settings,
        ranks=Ranks(),
        total=10,
        note=folder / "at_once",
    )


def weights_of(one: Stepper) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in one.passes.module.named_parameters()}


def gradients_of(one: Stepper) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in one.passes.module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("micro", [1, 2, 4, 5])
def test_micro_batches_add_up_to_the_batch(chips: Chips, tmp_path: Path, micro: int) -> None:
    """Equal but for the order of sums, though parts hold different numbers of labelled pixels."""
    indexes = np.arange(6)
    sample = tensors(chips.read(indexes))
    sample.label[0, 5:] = 255
    parts = {"cross_entropy": 1.0, "dice": 0.5, "focal": 0.5}
    whole, cut = (stepper(chips, tmp_path, loss=parts, micro_batch=m, clip=0.0) for m in (6, micro))
    one, other = (s.take(0, indexes, sample, False) for s in (whole, cut))
    assert other.loss == pytest.approx(one.loss, rel=1e-5)
    assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-4)
    expected = gradients_of(whole)
    for name, gradient in gradients_of(cut).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6, msg=name)


def test_the_loss_is_torchs(chips: Chips, tmp_path: Path) -> None:
    one = stepper(chips, tmp_path)
    sample = tensors(chips.read(np.arange(6)))
    label = torch.where(sample.valid, sample.label, 255).long()
    one.passes.module.train()
    seeded(0, 0, 0)
    expected = nn.functional.cross_entropy(one.passes.logits(sample), label, ignore_index=255)
    assert one.take(0, np.arange(6), sample, False).loss == pytest.approx(expected.item(), rel=1e-6)


def test_missing_pixels_have_no_say(chips: Chips, tmp_path: Path) -> None:
    sample = tensors(chips.read(np.arange(2)))
    assert not sample.valid.all()
    assert (stepper(chips, tmp_path).passes.labels(sample)[~sample.valid] == 255).all()


def test_gradients_are_clipped(chips: Chips, tmp_path: Path) -> None:
    sample = tensors(chips.read(np.arange(6)))
    one = stepper(chips, tmp_path, clip=1e-3)
    taken = one.take(0, np.arange(6), sample, False)
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients_of(one).values()))
    assert taken.gradient_norm > 1e-2
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_dropout_follows_step_and_seed_alone(chips: Chips, tmp_path: Path) -> None:
    sample = tensors(chips.read(np.arange(6)))

    def loss(step: int, seed: int) -> float:
        torch.manual_seed(np.random.default_rng().integers(2**31))  # whatever was drawn before
        fresh = stepper(chips, tmp_path, architecture={**small.UNET, "head": {"dropout": 0.5}}, seed=seed)
        return fresh.take(step, np.arange(6), sample, False).loss

    assert loss(3, 0) == loss(3, 0)
    assert loss(3, 0) != loss(4, 0)
    assert loss(3, 0) != loss(3, 1)


# ---- memory


class Small(nn.Module):
    """A module for which only so many chips are not too many."""

    def __init__(self, module: nn.Module, most: int) -> None:
        super().__init__()
        self.module, self.most, self.seen = module, most, []  # type: ignore[var-annotated]

    def forward(self, x: torch.Tensor, *told: Any) -> Any:
        self.seen.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.module(x, *told)


def with_memory(one: Stepper, most: int) -> Small:
    one.module = Small(one.passes.module, most)
    return one.module


def test_out_of_memory_halves_what_is_taken_at_once_and_keeps_the_batch(chips: Chips, tmp_path: Path) -> None:
    indexes, sample = np.arange(6), tensors(chips.read(np.arange(6)))
    plain, tight = stepper(chips, tmp_path / "a", clip=0.0), stepper(chips, tmp_path / "b", clip=0.0)
    (tmp_path / "b").mkdir()
    module = with_memory(tight, 2)
    expected = plain.take(0, indexes, sample, False)
    with pytest.warns(UserWarning, match="3 chips at once do not fit into memory .*from now on 2, of the same batches"):
        taken = tight.take(0, indexes, sample, False)
    assert taken.loss == pytest.approx(expected.loss, rel=1e-5)
    wanted = weights_of(plain)
    for name, weight in weights_of(tight).items():
        torch.testing.assert_close(weight, wanted[name], rtol=1e-4, atol=1e-5, msg=name)
    assert tight.micro == 2
    assert module.seen == [6, 3, 2, 2, 2]
    assert stepper(chips, tmp_path / "b").micro == 2  # a run that goes on need not find out again


def test_running_statistics_count_a_batch_once(chips: Chips, tmp_path: Path) -> None:
    """What a failed attempt has moved is put back: chips are counted once each."""
    indexes, sample = np.arange(6), tensors(chips.read(np.arange(6)))
    options: dict[str, Any] = {"architecture": {**small.UNET, "head": {"dropout": 0.0}}, "clip": 0.0}
    halves = stepper(chips, tmp_path / "a", micro_batch=3, **options)
    tight = stepper(chips, tmp_path / "b", **options)
    (tmp_path / "b").mkdir()
    tight.module = Late(tight.passes.module)
    halves.take(0, indexes, sample, False)
    with pytest.warns(UserWarning, match="do not fit"):
        tight.take(0, indexes, sample, False)
    for name, buffer in halves.passes.module.named_buffers():
        assert torch.equal(buffer, dict(tight.passes.module.named_buffers())[name]), name


class Late(nn.Module):
    """A module that runs out of memory once, after its work is done."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor, *told: Any) -> Any:
        answer = self.module(x, *told)
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return answer


def test_one_chip_that_does_not_fit_is_an_error(chips: Chips, tmp_path: Path) -> None:
    one = stepper(chips, tmp_path, micro_batch=1)
    with_memory(one, 0)
    before = weights_of(one)
    with pytest.raises(TrainError, match=r"one chip of 32 pixels does not fit into memory .*give a smaller window="):
        one.take(0, np.arange(6), tensors(chips.read(np.arange(6))), False)
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(one).items())


# ---- what is not finite


def test_a_loss_that_is_not_finite_names_the_chip(
    chips: Chips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = stepper(chips, tmp_path)
    before = weights_of(one)
    logits: Callable[..., torch.Tensor] = Passes.logits
    dark = tensors(chips.read(np.arange(6))).image[3]

    def broken(self: Passes, sample: Any, module: Any = None) -> torch.Tensor:
        bad = torch.tensor([bool(torch.equal(image, dark)) for image in sample.image])
        return torch.where(bad[:, None, None, None], torch.inf, logits(self, sample, module))

    monkeypatch.setattr(Passes, "logits", broken)
    with pytest.raises(TrainError, match=r"at step 7 the loss is nan .*alone, these give none: chip 3 \(.*column 96\)"):
        one.take(7, np.arange(6), tensors(chips.read(np.arange(6))), False)
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(one).items())


def test_a_gradient_that_is_not_finite_stops_too(chips: Chips, tmp_path: Path) -> None:
    one = stepper(chips, tmp_path)
    next(one.passes.module.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(
        TrainError, match=r"norm of its gradient (nan|inf).*alone, each of its chips does \(chips 0, 1, 2"
    ):
        one.take(7, np.arange(6), tensors(chips.read(np.arange(6))), False)


# ---- learning rate


@given(
    total=st.integers(1, 2000),
    warmup=st.floats(0, 1),
    lr=st.floats(1e-6, 1),
    least=st.floats(0, 1),
)
def test_learning_rates_rise_and_fall(total: int, warmup: float, lr: float, least: float) -> None:
    settings = TrainSettings(**{**LEAST, "warmup": warmup, "lr": lr, "min_lr": lr * least})
    rates = [learning_rate(settings, step, total) for step in range(total)]
    top = int(np.argmax(rates))
    assert all(0 < rate <= lr * (1 + 1e-9) for rate in rates[: top + 1])
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert all(a >= b - 1e-12 for a, b in zip(rates[top:], rates[top + 1 :], strict=False))
    assert min(rates[top:]) >= lr * least * (1 - 1e-9)


def test_learning_rates_are_a_line_and_half_a_cosine() -> None:
    settings = TrainSettings(**{**LEAST, "warmup": 0.2, "lr": 1.0, "min_lr": 0.2})
    rates = [learning_rate(settings, step, 10) for step in range(10)]
    cosine = [0.2 + 0.8 * (1 + math.cos(math.pi * k / 8)) / 2 for k in range(8)]
    assert rates == pytest.approx([0.5, 1.0, *cosine])
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD([torch.zeros(1)], lr=1.0), 8, eta_min=0.2)
    for rate in rates[2:]:
        assert rate == pytest.approx(theirs.get_last_lr()[0])
        theirs.optimizer.step()
        theirs.step()


def test_other_steps_ranks_and_seeds_draw_other_numbers() -> None:
    seen = set()
    with torch.random.fork_rng():
        for seed in range(3):
            for step in range(3):
                for rank in range(3):
                    seeded(seed, step, rank)
                    seen.add(torch.rand(1).item())
    assert len(seen) == 27
