"""The history of a run, and the other places that follow it."""

from __future__ import annotations

import math
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xgfm.errors import MissingExtraError, WriteError
from xgfm.train.loop.history import COLUMNS, HISTORY, History, read_history
from xgfm.train.loop.loggers import Records
from xgfm.train.settings import TrainSettings

LEAST: dict[str, Any] = {"chips": "c", "folder": "f", "base": "scratch"}
ROWS = st.lists(
    st.fixed_dictionaries(
        {"loss": st.floats(allow_nan=False, allow_infinity=False)}, optional={"val_loss": st.floats(0, 1e30)}
    ),
    max_size=8,
)


def write(history: History, rows: list[dict[str, float]], first: int = 1) -> int:
    for step, row in enumerate(rows, first):
        history.add({"step": step, "epoch": 0, **row})
    return history.sync()


@settings(max_examples=40, deadline=None)
@given(rows=ROWS)
def test_numbers_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, float]]) -> None:
    folder = tmp_path_factory.mktemp("run")
    history = History(folder, 0)
    write(history, rows)
    history.close()
    back = read_history(folder)
    assert list(back.columns) == list(COLUMNS[1:])
    assert list(back.index) == list(range(1, len(rows) + 1))
    for row, (_, found) in zip(rows, back.iterrows(), strict=True):
        assert found["loss"] == row["loss"]
        assert found["val_loss"] == row["val_loss"] if "val_loss" in row else math.isnan(found["val_loss"])


@settings(max_examples=40, deadline=None)
@given(kept=ROWS, lost=ROWS, after=ROWS)
def test_what_follows_the_checkpoint_is_cut_off(
    tmp_path_factory: pytest.TempPathFactory,
    kept: list[dict[str, float]],
    lost: list[dict[str, float]],
    after: list[dict[str, float]],
) -> None:
    cut, whole = tmp_path_factory.mktemp("cut"), tmp_path_factory.mktemp("whole")
    history = History(cut, 0)
    size = write(history, kept)
    write(history, lost, len(kept) + 1)
    history.file.write(b"12,0,0.3")  # half a row
    history.close()
    again = History(cut, size)
    write(again, after, len(kept) + 1)
    again.close()
    plain = History(whole, 0)
    write(plain, [*kept, *after])
    plain.close()
    assert (cut / HISTORY).read_bytes() == (whole / HISTORY).read_bytes()


def test_a_history_that_was_lost_begins_anew(tmp_path: Path) -> None:
    history = History(tmp_path, 10_000)
    write(history, [{"loss": 1.0}])
    history.close()
    assert len(read_history(tmp_path)) == 1


def test_a_full_disk_is_told_of(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    history = History(tmp_path, 0)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
        with pytest.raises(WriteError, match=r"history.csv cannot be written .*goes on from the last checkpoint"):
            write(history, [{"loss": 1.0}] * 50)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_tensorboard_shows_each_step_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    asked = TrainSettings(**LEAST, log="tensorboard")
    records = Records(asked, tmp_path, 0, 0)
    for step in (1, 2, 3):
        records.add({"step": step, "loss": 1.0 / step, "lr": math.nan})
    records.sync()
    records.close()
    again = Records(asked, tmp_path, 0, 2)  # a checkpoint of step 2
    again.add({"step": 3, "loss": 5.0})
    again.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(e.step, round(e.value, 3)) for e in events.Scalars("loss")] == [(1, 1.0), (2, 0.5), (3, 5.0)]


def test_mlflow_goes_on_with_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = pytest.importorskip("mlflow.tracking", reason="MLflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    asked = TrainSettings(**LEAST, log=["csv", "mlflow"], seed=7)
    for step in (1, 2):
        records = Records(asked, tmp_path, 0, step - 1)
        records.add({"step": step, "loss": 1.0 / step})
        records.close()
    client = tracking.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("xgfm").experiment_id])
    assert run.data.params["seed"] == "7"
    found = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in found] == [(1, 1.0), (2, 0.5)]


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow.tracking")]
)
def test_a_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf'log=\'{name}\' needs {name}.*pip install "xgfm\[{name}\]"'):
        Records(TrainSettings(**LEAST, log=name), tmp_path, 0, 0)
