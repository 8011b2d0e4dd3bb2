"""Settings: YAML both ways, and errors that name line, key and what is allowed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import small
from hypothesis import given
from hypothesis import strategies as st

from xgfm.errors import TrainError, WriteError
from xgfm.models.spec import to_json
from xgfm.train.settings import LOSSES, TrainSettings, record_of

LEAST: dict[str, Any] = {"chips": "chips.zarr", "folder": "run", "base": "prithvi-eo-1-100m"}


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "method": st.sampled_from(["full", "frozen", "head", "lora", "scratch"]),
            "epochs": st.integers(1, 10**6),
            "batch_size": st.integers(1, 4096),
            "lr": st.floats(1e-9, 10),
            "clip": st.floats(0, 100),
            "warmup": st.floats(0, 1),
            "loss": st.sampled_from(LOSSES)
            | st.dictionaries(st.sampled_from(LOSSES), st.floats(1e-3, 1e3), min_size=1),
            "class_weights": st.just("sqrt_inverse") | st.lists(st.floats(0.1, 10), min_size=1),
            "seed": st.integers(0, 2**63 - 1),
            "augment": st.booleans(),
            "log": st.lists(st.sampled_from(["csv", "tensorboard", "mlflow"])),
            "task": st.fixed_dictionaries({}, optional={"name": st.just("fields"), "halo": st.integers(0, 99)}),
        },
    )
)
def test_yaml_and_pickle_bring_the_same_settings_back(values: dict[str, Any]) -> None:
    settings = TrainSettings(**LEAST, **values)
    assert TrainSettings.from_yaml(settings.to_yaml()) == settings
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_a_record_is_a_base(tmp_path: Path) -> None:
    base = {"kind": "task", "spec": to_json(small.task())}
    settings = TrainSettings(**{**LEAST, "base": base})
    assert settings.from_scratch
    settings.write(tmp_path / "settings.yaml")
    assert record_of(TrainSettings.read(tmp_path / "settings.yaml").base) == small.task()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("chips: a\nfolder: b\n", "settings.yaml, line 1: key 'base' is missing; expected name or path"),
        ("chips: a\nfolder: b\nbase: c\nepoch: 3", r"line 4: there is no key 'epoch', did you mean 'epochs'\?"),
        ("chips: a\nfolder: b\nbase: c\nepochs: 3\nsteps: 5", "line 4: epochs: given together with steps"),
        ("chips: a\nfolder: b\nbase: c\nloss: dise", "line 4: loss: there is no loss 'dise'; allowed: cross_entropy"),
        (
            "chips: a\nfolder: b\nbase: c\nloss:\n  dice: -1",
            "line 4: loss: the weight of 'dice' must be a number above 0",
        ),
        ("chips: a\nfolder: b\nbase: c\nclass_weights: [0, 0]", "line 4: class_weights: at least one weight"),
        ("chips: a\nfolder: b\nbase: c\nclass_weights: [1, x]", "line 4: class_weights: weights are numbers from 0 on"),
        ("chips: a\nfolder: b\nbase: c\nlr: 1.0e-5\nmin_lr: 1.0e-4", "line 5: min_lr: 0.0001 is above lr 1e-05"),
        ("chips: a\nfolder: b\nbase: scratch\nmethod: lora", "line 4: method: 'lora' keeps weights of the base, but"),
        ("chips: a\nfolder: b\nbase: {kind: task}", r"line 3: base: is neither a name nor a record \(KeyError"),
        ("chips: a\nfolder: b\nbase: c\nbatch_size: 0", "line 4: batch_size: 0 is wrong"),
        ("chips: a\nfolder: b\nbase: c\nlr: .nan", "line 4: lr: nan is wrong"),
        ("chips: a\nfolder: b\nbase: c\ntask: {window: 1.5}", "line 4: task.window: 1.5 is wrong"),
        ("chips: a\nfolder: b\nbase: c\nlog: [paper]", r"line 4: log.0: 'paper' is wrong .*allowed: some of csv"),
        ("chips: [", "settings.yaml, line 1"),
        ("", "settings.yaml holds no keys; expected at least chips, folder, base"),
    ],
)
def test_wrong_entries_are_named(text: str, said: str) -> None:
    with pytest.raises(TrainError, match=said):
        TrainSettings.from_yaml(text)


def test_keywords_are_refused_alike() -> None:
    with pytest.raises(TrainError, match="epochs: given together with steps") as caught:
        TrainSettings(**LEAST, epochs=1, steps=1)
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), TrainError)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="cannot be read"):
        TrainSettings.read(tmp_path / "none.yaml")
    with pytest.raises(WriteError, match="cannot be written"):
        TrainSettings(**LEAST).write(tmp_path / "none" / "settings.yaml")


def test_learning_rates_follow_the_method() -> None:
    assert TrainSettings(**LEAST).rate == 1e-4
    assert TrainSettings(**LEAST, method="frozen").rate == 1e-3
    assert TrainSettings(**{**LEAST, "base": "scratch"}).rate == TrainSettings(**LEAST, method="scratch").rate == 5e-4
    assert TrainSettings(**LEAST, method="frozen", lr=0.5).rate == 0.5


def test_losses_follow_the_kind() -> None:
    assert TrainSettings(**LEAST).losses("regression") == {"mse": 1.0}
    assert TrainSettings(**LEAST).losses("segmentation") == {"cross_entropy": 1.0}
    assert TrainSettings(**LEAST, loss={"dice": 2.0}).losses("segmentation") == {"dice": 2.0}


def test_places_and_logs_do_not_make_another_run() -> None:
    one, other = TrainSettings(**LEAST), TrainSettings(chips="x", folder="y", base=LEAST["base"], log="mlflow", keep=5)
    assert one.numbers() == other.numbers()
    assert one.numbers() != TrainSettings(**LEAST, seed=1).numbers()
