"""Masked pre-training: it learns, goes on exactly where it was stopped, and gives a model to begin with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import striped_chips
import torch

from xgfm.errors import TrainError
from xgfm.models.handle import load_model
from xgfm.models.mae import reconstruction_loss
from xgfm.models.spec import ModelSpec, Statistics
from xgfm.train.chips.chips import Chips
from xgfm.train.chips.loader import normalised
from xgfm.train.pretrain import MODEL, Options, _Run, pretrain

SHORT: dict[str, Any] = {"steps": 6, "batch_size": 4, "every": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Chips:
    return striped_chips.store(tmp_path_factory.mktemp("chips") / "chips.zarr")


def spec_of(chips: Chips, **changes: Any) -> ModelSpec:
    facts = chips.facts
    return small.model(statistics=Statistics(facts.statistics.mean, facts.statistics.std), depth=2, **changes)


def options(**changes: Any) -> Options:
    kept: dict[str, Any] = {
        "steps": 4, "batch_size": 4, "rate": 1e-3, "weight_decay": 0.05, "warmup": 0.1, "mask_ratio": 0.75, "every": 2,
        "augment": False, "seed": 0, "bf16": False,
    }  # fmt: skip
    return Options(**{**kept, **changes})


def test_it_learns_and_its_model_is_loaded(tmp_path: Path) -> None:
    chips = striped_chips.store(tmp_path / "wide.zarr", stripe=80)  # what is seen tells of what is hidden
    result = pretrain(chips, spec_of(chips), tmp_path / "run", steps=40, batch_size=8, every=20, lr=5e-3, device="cpu")
    said = result.history["val_loss"].dropna()
    assert said.index.tolist() == [20, 40]
    assert said.iloc[1] < 0.7  # in units of the variance: 1 is the bands' mean everywhere
    handle = load_model(result.model)
    assert handle.spec.statistics == spec_of(chips).statistics
    state = torch.load(next((tmp_path / "run" / "checkpoints").glob("step-00000040.pt")), weights_only=True)
    for name, value in handle.load().state_dict().items():
        torch.testing.assert_close(value, state["module"][name], atol=0, rtol=0)


def test_going_on_is_as_if_nothing_had_happened(chips: Chips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pretrain(chips, spec_of(chips), tmp_path / "whole", **SHORT)
    take = _Run._take

    def stopping(self: _Run, batch: Any) -> tuple[float, float]:
        if self.step == 3:
            raise KeyboardInterrupt
        return take(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(_Run, "_take", stopping)
        with pytest.raises(KeyboardInterrupt):
            pretrain(chips, spec_of(chips), tmp_path / "cut", **SHORT)
    resumed = pretrain(chips, spec_of(chips), tmp_path / "cut", **SHORT)
    np.testing.assert_array_equal(resumed.history["loss"], whole.history["loss"])
    one, other = (load_model(result.model).load().state_dict() for result in (whole, resumed))
    assert all(one[name].equal(other[name]) for name in one)


def test_a_finished_run_is_not_run_again(chips: Chips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pretrain(chips, spec_of(chips), tmp_path / "run", **SHORT)
    monkeypatch.setattr(_Run, "_take", lambda *_: pytest.fail("a step was taken"))
    again = pretrain(chips, spec_of(chips), tmp_path / "run", **SHORT)
    assert again.history.equals(first.history)


def test_the_loss_is_the_models_own_where_nothing_is_missing(tmp_path: Path) -> None:
    cube, label = striped_chips.land(128, missing=0.0)
    chips = striped_chips.write_chips(cube, label, tmp_path / "c.zarr", size=32, shares=(0.5, 0.25, 0.25), block=960.0)
    for norm_pix_loss in (False, True):
        run = _Run(chips, spec_of(chips, norm_pix_loss=norm_pix_loss), tmp_path / "run", options(), "cpu")
        sample = run.batches.at(0)
        noise = torch.rand(4, 48)
        x = normalised(sample, run.task, chips.facts, "cpu")
        said = run.module(x, mask_ratio=0.75, noise=noise)
        wanted = reconstruction_loss(run.module.patchify(x), said.prediction, said.mask, normalise_target=norm_pix_loss)
        torch.testing.assert_close(run._loss(sample, noise), wanted, atol=1e-6, rtol=1e-5)


def test_missing_pixels_are_in_no_loss(chips: Chips, tmp_path: Path) -> None:
    run = _Run(chips, spec_of(chips), tmp_path / "run", options(), "cpu")
    sample, noise = run.batches.at(0), torch.rand(4, 48)
    gone = (sample.image == -9999).any(2).any(1)
    assert gone.any()
    assert not bool((sample.valid & gone).any())
    x = normalised(sample, run.task, chips.facts, "cpu")
    weight = run.module.patchify(sample.valid[:, None, None].expand_as(x).float())
    said = run.module(x, mask_ratio=0.75, noise=noise)
    target = run.module.patchify(x)
    kept = (weight > 0) & (said.mask[..., None] > 0)
    wanted = (said.prediction - target)[kept].square().mean()
    torch.testing.assert_close(run._loss(sample, noise), wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bands": ("blue", "green", "red", "nir08", "swir16", "thermal")}, "no.*thermal"),
        ({"frames": 2}, "takes 2 frames, chips have 3"),
        ({"patch_size": (1, 5, 5)}, "whole number of patches of 5"),
    ],
)
def test_models_that_do_not_fit_are_refused(chips: Chips, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(TrainError, match=said):
        pretrain(chips, replace(spec_of(chips), **changes), tmp_path / "run", **SHORT)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 0}, "steps=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"mask_ratio": 1.0}, "mask_ratio=1.0"),
    ],
)
def test_options_beyond_reason_are_refused(chips: Chips, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(TrainError, match=said):
        pretrain(chips, spec_of(chips), tmp_path / "run", **{**SHORT, **changes})


def test_another_run_in_the_folder_is_not_gone_on_with(chips: Chips, tmp_path: Path) -> None:
    pretrain(chips, spec_of(chips), tmp_path / "run", **SHORT)
    with pytest.raises(TrainError, match="another folder="):
        pretrain(chips, spec_of(chips), tmp_path / "run", **{**SHORT, "lr": 1e-4})


def test_a_loss_that_is_not_finite_stops(chips: Chips, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"the loss of step \d+ is (nan|inf)"):
        pretrain(chips, spec_of(chips), tmp_path / "run", lr=1e30, **{**SHORT, "steps": 30})
    assert not (tmp_path / "run" / MODEL).exists()
