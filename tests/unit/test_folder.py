"""Save and load as a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small import FCN, MMSEG, model, task
from torch import nn

from xgfm.errors import CheckpointError
from xgfm.models.build import build_model, build_task
from xgfm.models.folder import save_model, save_task
from xgfm.models.handle import load_model, load_task
from xgfm.models.spec import TaskSpec, WeightsSource

TASKS = [
    task(),
    task(FCN, kind="regression", classes=(), units="t ha-1"),
    task({**MMSEG, "quirk": {"name": "PlanesDateByDate"}}, weights=WeightsSource("mmseg", "a/b", "c.pth")),
    task({**FCN, "quirk": {"name": "Resized", "window": 32, "resized": 48}}, quirks=("One.", "Two.")),
]


def equal(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("spec", TASKS, ids=["unet", "regression", "mmseg", "resized"])
def test_task_comes_back_equal(tmp_path: Path, spec: TaskSpec) -> None:
    module = build_task(spec).eval()
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.add_(1) if tensor.dtype == torch.int64 else tensor.mul_(1.5)
    handle = load_task(save_task(module, spec, tmp_path / "deep" / "folder"))
    assert handle.spec == spec
    assert equal(handle.load(), module)
    x = torch.randn(1, 6, 3, 32, 32)
    assert torch.equal(handle.load()(x), module(x))


def test_model_comes_back_equal(tmp_path: Path) -> None:
    module = build_model(model(coords=("time",))).eval()
    handle = load_model(save_model(module, model(coords=("time",)), tmp_path))
    assert handle.spec == model(coords=("time",))
    assert equal(handle.load(), module)


def test_folder_holds_two_files(tmp_path: Path) -> None:
    save_task(build_task(task()), task(), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((tmp_path / "config.json").read_text())
    assert set(config) == {"xgfm_version", "kind", "sha256", "spec"}


def test_weights_of_another_save_are_refused(tmp_path: Path) -> None:
    save_task(build_task(task()), task(), tmp_path / "a")
    save_task(build_task(task()), task(), tmp_path / "b")
    (tmp_path / "a" / "model.safetensors").replace(tmp_path / "b" / "model.safetensors")
    with pytest.raises(CheckpointError, match="expected"):
        load_task(tmp_path / "b").load()


def test_saving_again_replaces(tmp_path: Path) -> None:
    first, second = build_task(task()), build_task(task())
    save_task(first, task(), tmp_path)
    save_task(second, task(), tmp_path)
    assert equal(load_task(tmp_path).load(), second)


def test_missing_weights_are_an_error_at_once(tmp_path: Path) -> None:
    save_task(build_task(task()), task(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights at"):
        load_task(tmp_path)


def test_tied_weights_are_saved_under_both_names(tmp_path: Path) -> None:
    module = build_task(task())
    module.encoder.norm.bias = module.encoder.norm.weight
    handle = load_task(save_task(module, task(), tmp_path))
    assert equal(handle.load(), module)
