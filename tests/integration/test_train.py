"""Training from end to end on small chips: what comes out, going on, stopping, and what is refused."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small
import torch
from field_chips import field, plan_of, write_small_chips
from typer.testing import CliRunner

import xgfm
from xgfm.cli import app
from xgfm.errors import LabelError, Taken, TrainError, WriteError
from xgfm.models.build import build_task
from xgfm.models.folder import save_task
from xgfm.models.handle import load_task
from xgfm.models.spec import to_json
from xgfm.train.chips.chips import Chips
from xgfm.train.fit import fit, run
from xgfm.train.loop import trainer
from xgfm.train.loop.history import HISTORY, read_history
from xgfm.train.loop.stepping import Stepper
from xgfm.train.loop.trainer import train
from xgfm.train.settings import TrainSettings

MEASURED = ["seconds", "samples_per_second", "data_wait"]
UNET = {"kind": "task", "spec": to_json(small.task(model=small.model(frames=2), frames=2))}


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Chips:
    return write_small_chips(tmp_path_factory.mktemp("chips") / "chips.zarr")


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Chips:
    return write_small_chips(tmp_path_factory.mktemp("numbers") / "chips.zarr", "regression")


def settings(chips: Chips, folder: Path, **options: Any) -> TrainSettings:
    kept: dict[str, Any] = {
        "chips": str(chips.path), "folder": str(folder), "base": UNET, "epochs": 4, "batch_size": 4, "lr": 3e-3,
        "precision": "fp32", "device": "cpu",
    }  # fmt: skip
    return TrainSettings(**{**kept, **options})


def curve(folder: Path) -> pd.DataFrame:
    return read_history(folder).drop(columns=MEASURED)


@contextmanager
def stopping(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> Iterator[None]:
    """Do something when a step begins."""
    take = Stepper.take

    def acting(self: Stepper, number: int, *args: Any) -> Any:
        if number == step:
            act()
        return take(self, number, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "take", acting)
        yield


# ---- what comes out


def test_a_run_learns_and_its_task_predicts(chips: Chips, tmp_path: Path) -> None:
    result = run(settings(chips, tmp_path / "run", epochs=20, lr=1e-2))
    assert list(result.history.index) == list(range(1, 41))
    assert result.history.loss.iloc[-4:].mean() < 0.5 * result.history.loss.iloc[:4].mean()
    validated = result.history.val_mean_iou.dropna()
    assert list(validated.index) == list(range(2, 41, 2))
    assert result.step == validated.idxmax()
    scores = result.metrics["scores"]
    assert scores["mean_iou"]["value"] > 0.6
    handle = load_task(result.task)
    assert [c.name for c in handle.spec.classes] == [c.name for c in chips.facts.classes]
    assert handle.spec.temperature != 1.0
    assert (result.task / "README.md").exists()
    assert (tmp_path / "run" / "settings.yaml").exists()


def test_scores_are_those_of_the_task_that_is_written(chips: Chips, tmp_path: Path) -> None:
    """Counted anew, from the folder that was written: by scikit-learn, of the test chips."""
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn, the oracle of scores, is not installed")
    result = run(settings(chips, tmp_path / "run"))
    handle = load_task(result.task)
    sample = chips.read(chips.indexes("test"))
    mean, std = (np.array(v)[:, None, None] for v in (handle.spec.statistics.mean, handle.spec.statistics.std))
    x = torch.from_numpy(((sample.image - mean) / std).astype("float32")).transpose(1, 2)
    known = (sample.label != 255) & sample.valid
    with torch.no_grad():
        said = handle.load()(x).argmax(1).numpy()
    iou = sklearn.jaccard_score(sample.label[known], said[known], average="macro")
    assert result.metrics["scores"]["mean_iou"]["value"] == pytest.approx(iou, abs=1e-6)


def test_the_best_weights_are_those_of_the_best_step(chips: Chips, tmp_path: Path) -> None:
    result = run(settings(chips, tmp_path / "run", lr=3e-2, monitor="loss", warmup=0.0, min_lr=3e-2))
    losses = result.history.val_loss.dropna()
    assert result.step == losses.idxmin()
    assert result.step != losses.index[-1]  # else this shows nothing
    short = train(settings(chips, tmp_path / "short", lr=3e-2, monitor="loss", warmup=0.0, min_lr=3e-2, epochs=None,
                           steps=result.step, every=2))  # fmt: skip
    pd.testing.assert_frame_equal(curve(short.folder), curve(result.folder)[: result.step])


def test_a_regression_answers_in_units_of_its_targets(numbers: Chips, tmp_path: Path) -> None:
    record = small.task(model=small.model(frames=2), frames=2, kind="regression", classes=(), units="t ha-1")
    base = {"kind": "task", "spec": to_json(record)}
    result = run(settings(numbers, tmp_path / "run", base=base, epochs=20, lr=1e-2))
    sample = numbers.read(numbers.indexes("test"))
    target = sample.label[np.isfinite(sample.label)]
    assert result.metrics["scores"]["rmse"]["value"] < 0.6 * target.std()
    handle = load_task(result.task)
    assert handle.spec.units == "t ha-1"
    answer = handle.load()(torch.zeros(1, 6, 2, 32, 32))
    assert 50 < float(answer.mean()) < 250
    validated = result.history.val_rmse.dropna()
    assert validated.loc[result.step] == pytest.approx(validated.min())
    assert validated.min() == pytest.approx(result.metrics["scores"]["rmse"]["value"], rel=0.5)  # not of a scaled one


@pytest.mark.parametrize("method", ["full", "frozen", "head", "lora"])
def test_every_method_goes_through(chips: Chips, tmp_path: Path, method: str) -> None:
    record = small.task(model=small.model(frames=2), frames=2, classes=tuple(chips.facts.classes))
    save_task(build_task(record), record, tmp_path / "base")
    result = run(settings(chips, tmp_path / "run", base=str(tmp_path / "base"), method=method, epochs=1))
    before, after = load_task(tmp_path / "base").load(), load_task(result.task).load()
    same = {n for n, v in before.state_dict().items() if torch.equal(v, after.state_dict()[n])}
    assert ("encoder.blocks.0.mlp.fc1.weight" in same) == (method != "full")
    assert ("encoder.blocks.0.attn.qkv.weight" in same) == (method in ("frozen", "head"))
    assert ("decoder.decoder.blocks.0.conv1.0.weight" in same) == (method == "head")
    assert "head.head.2.weight" not in same


def test_a_fraction_takes_whole_groups(chips: Chips, tmp_path: Path) -> None:
    result = train(settings(chips, tmp_path / "run", fraction=0.5, epochs=1))
    assert len(result.history) == 1  # four of eight chips, in batches of four


# ---- going on


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    chips: Chips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"every": 3, "epochs": 5}
    whole = train(settings(chips, tmp_path / "whole", **options))

    class Gone(BaseException):
        pass

    def go() -> None:
        raise Gone

    for step in (1, 4, 7):  # before the first checkpoint, after one, between two
        with stopping(monkeypatch, step, go), pytest.raises(Gone):
            train(settings(chips, tmp_path / "cut", **options))
    parts = train(settings(chips, tmp_path / "cut", **options))
    pd.testing.assert_frame_equal(curve(parts.folder), curve(whole.folder))
    assert parts.metrics == whole.metrics
    states = [
        torch.load(r.folder / "checkpoints" / "step-00000010.pt", weights_only=True)["module"] for r in (whole, parts)
    ]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_leaves_a_checkpoint(chips: Chips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    whole = train(settings(chips, tmp_path / "whole"))
    number = getattr(signal, name)
    handler = signal.getsignal(number)
    with (
        stopping(monkeypatch, 4, lambda: os.kill(os.getpid(), number)),
        pytest.raises(TrainError, match=rf"stopped by {name} after step 6 of 8; a checkpoint is in .*goes on"),
    ):
        train(settings(chips, tmp_path / "cut"))
    assert signal.getsignal(number) is handler
    parts = train(settings(chips, tmp_path / "cut"))
    pd.testing.assert_frame_equal(curve(parts.folder), curve(whole.folder))


def test_a_finished_run_is_told_of(chips: Chips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(settings(chips, tmp_path / "run"))
    monkeypatch.setattr(Stepper, "take", None)
    again = run(settings(chips, tmp_path / "run"))
    assert again.metrics == first.metrics
    pd.testing.assert_frame_equal(again.history, first.history)


def test_another_run_in_the_same_folder_is_refused(chips: Chips, tmp_path: Path) -> None:
    train(settings(chips, tmp_path / "run"))
    with pytest.raises(TrainError, match=r"a run of other settings \(lr: 0.003, not 0.1, seed: 0, not 1\)"):
        train(settings(chips, tmp_path / "run", lr=0.1, seed=1))
    other = write_small_chips(tmp_path / "other.zarr", seed=1)
    with pytest.raises(TrainError, match="holds a run on other chips"):
        train(settings(other, tmp_path / "run"))


def test_training_ends_when_nothing_gets_better(chips: Chips, tmp_path: Path) -> None:
    result = train(settings(chips, tmp_path / "run", lr=1e-12, monitor="loss", patience=2, epochs=50, base=str(
        _folder(tmp_path))))  # fmt: skip
    validations = result.history.val_loss.dropna()
    assert len(result.history) < 100
    assert list(validations.index[-3:]) == [result.step, result.step + 2, result.step + 4]


def _folder(tmp_path: Path) -> Path:
    record = small.task({**small.FCN}, model=small.model(frames=2), frames=2)
    return save_task(build_task(record), record, tmp_path / "base")


def test_the_callers_own_draws_stay_as_they_were(chips: Chips, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(settings(chips, tmp_path / "run", epochs=1))
    assert torch.equal(torch.rand(3), expected)


# ---- what goes wrong


def test_a_full_disk_leaves_the_last_whole_checkpoint(
    chips: Chips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(settings(chips, tmp_path / "whole"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))

    try:
        with (
            stopping(monkeypatch, 3, fill),
            pytest.raises(WriteError, match=r"step 4 cannot .* whole one is of step 2"),
        ):
            train(settings(chips, tmp_path / "cut"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    parts = train(settings(chips, tmp_path / "cut"))
    pd.testing.assert_frame_equal(curve(parts.folder), curve(whole.folder))


def test_a_loss_that_is_not_finite_leaves_the_last_checkpoint(
    chips: Chips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrainError, match=r"at step \d+ the loss is (nan|inf).*the last checkpoint is as it was"):
        train(settings(chips, tmp_path / "run", lr=1e30, warmup=0.0, clip=0.0, epochs=50))
    assert (tmp_path / "run" / HISTORY).exists()


def test_what_does_not_fit_is_refused_before_weights_are_opened(
    chips: Chips, numbers: Chips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "start_module", None)
    wrong: list[tuple[Chips, dict[str, Any], str]] = [
        (chips, {"monitor": "rmse"}, r"monitor='rmse' is no score of a segmentation; give one of \['accuracy'"),
        (numbers, {"monitor": "mean_iou"}, "monitor='mean_iou' is no score of a regression"),
        (numbers, {"class_weights": "sqrt_inverse"}, "class_weights= is for classes"),
        (chips, {"class_weights": [1, 2]}, "class_weights has 2 numbers for 3 classes"),
        (chips, {"loss": "mse"}, "loss 'mse' does not fit a segmentation"),
    ]
    for some, options, said in wrong:
        with pytest.raises(TrainError, match=said):
            train(settings(some, tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_from_cube_and_labels_to_a_map(tmp_path: Path) -> None:
    cube, label = field()
    record = small.task(model=small.model(frames=2), frames=2)
    options: dict[str, Any] = {"folder": tmp_path / "run", "base": record, "task": "fields", "plan": plan_of(label),
                               "size": 32, "epochs": 20, "batch_size": 4, "lr": 1e-2, "device": "cpu"}  # fmt: skip
    result = fit(cube, label, **options)
    mapped = xgfm.predict(cube, task=str(result.task)).fields
    known = (label != 255) & (mapped != 255)
    assert float((mapped == label).where(known).mean()) > 0.7
    again = fit(cube, label, **options)
    assert again.metrics == result.metrics
    with pytest.raises(TrainError, match="a cube needs labels="):
        fit(cube, **{**options, "folder": tmp_path / "other"})


def test_a_longer_cube_becomes_the_frames_of_its_base(tmp_path: Path) -> None:
    cube, label = field()
    assert cube.sizes["time"] == 2
    record = small.task(model=small.model(frames=1), frames=1)
    base = save_task(build_task(record), record, tmp_path / "base")
    options: dict[str, Any] = {"base": base, "plan": plan_of(label), "size": 32, "epochs": 1, "device": "cpu"}
    result = fit(cube, label, folder=tmp_path / "run", **options)
    assert xgfm.open_chips(tmp_path / "run" / "chips.zarr").facts.frames == 1
    assert load_task(result.task).spec.frames == 1
    assert repr(result).startswith("TrainResult(")
    assert "mean_iou" in repr(result)
    assert len(repr(result)) < 300
    with pytest.raises(LabelError, match=r"labels= is 'fields.shp'; expected a label array"):
        fit(cube, "fields.shp", folder=tmp_path / "other", **options)


def test_a_cube_without_the_bases_bands_is_not_cut(tmp_path: Path) -> None:
    cube, label = field()
    record = small.task(model=small.model(frames=2), frames=2)
    base = save_task(build_task(record), record, tmp_path / "base")
    with pytest.raises(TrainError, match=r"\['swir22'\] are missing. Take images with these"):
        fit(cube.isel(band=slice(0, 5)), label, folder=tmp_path / "run", base=base, size=32)
    assert not (tmp_path / "run").exists()


def test_windows_smaller_than_the_chips(chips: Chips, tmp_path: Path) -> None:
    """Trained on random parts; validated and tested on all of each chip, window by window."""
    result = run(settings(chips, tmp_path / "run", task={"window": 16, "halo": 0}, epochs=2))
    assert load_task(result.task).spec.window == 16
    sample = chips.read(chips.indexes("test"))
    assert result.metrics["pixels"] == ((sample.label != 255) & sample.valid).sum()


def test_the_command(chips: Chips, tmp_path: Path) -> None:
    record = settings(chips, tmp_path / "run", epochs=1)
    record.write(tmp_path / "settings.yaml")
    said = CliRunner().invoke(app, ["train", str(tmp_path / "settings.yaml")])
    assert said.exit_code == 0, said.output
    assert "best weights: step 2" in said.output
    assert f"task: {tmp_path / 'run' / 'task'}" in said.output
    assert "mean_iou" in said.output
    (tmp_path / "wrong.yaml").write_text("chips: a\nfolder: b\nbase: c\nepoch: 1\n")
    said = CliRunner().invoke(app, ["train", str(tmp_path / "wrong.yaml")])
    assert said.exit_code == 1
    assert "line 4: there is no key 'epoch', did you mean 'epochs'?" in said.output
    said = CliRunner().invoke(app, ["train", str(tmp_path / "settings.yaml"), "--ranks", "2"])
    assert said.exit_code == 1
    assert "--ranks 2: of which workers? Give --cluster" in said.output


def test_fit_says_what_it_lacks(chips: Chips, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="fit needs folder= and base="):
        fit(chips)
    with pytest.raises(TrainError, match=r"\['labels', 'size'\] are for cubes"):
        fit(chips, labels=1, folder=tmp_path, base="scratch", size=32)
    with pytest.raises(TrainError, match="there is no key 'epoch', did you mean 'epochs'"):
        fit(chips, folder=tmp_path, base="scratch", epoch=3)
    with pytest.raises(TrainError, match="ranks=2 needs client="):
        fit(chips, folder=tmp_path, base="scratch", ranks=2)
    with pytest.raises(TrainError, match="are given beside complete settings"):
        fit(settings(chips, tmp_path), lr=0.1)


HOLD = """
import sys
from xgfm.store.lock import Holder
from xgfm.store.objects import Objects
with Holder(Objects(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time_trains_in_a_folder(chips: Chips, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(Taken, match=rf"process {other.pid} on"):
            run(settings(chips, folder))
        assert not (folder / HISTORY).exists()
        other.kill()
    assert run(settings(chips, folder)).step  # the dead one of this machine is known to be dead
