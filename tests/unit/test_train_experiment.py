"""Studies from end to end: what is run, what is not run again, what fails, and the same on workers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import striped_chips
import torch
from distributed import Client, LocalCluster

from xgfm.errors import TrainError
from xgfm.models.build import build_model
from xgfm.models.folder import save_model
from xgfm.models.spec import Statistics
from xgfm.train.chips.chips import Chips
from xgfm.train.chips.subsets import subset
from xgfm.train.loop.interrupts import Stopped
from xgfm.train.study import experiment as module
from xgfm.train.study.experiment import StudyWarning, execute, experiment, plan, records
from xgfm.train.study.spec import StudySpec

TRAIN = {"steps": 2, "every": 1, "batch_size": 4, "precision": "fp32", "task": {"decoder": "linear"}}


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Chips:
    return striped_chips.store(tmp_path_factory.mktemp("chips") / "chips.zarr")


@pytest.fixture(scope="module")
def base(chips: Chips, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    facts = chips.facts
    spec = small.model(depth=2, statistics=Statistics(facts.statistics.mean, facts.statistics.std))
    return save_model(build_model(spec), spec, tmp_path_factory.mktemp("base") / "model")


def study(chips: Chips, base: Path, folder: Path, **changes: Any) -> StudySpec:
    kept: dict[str, Any] = {
        "chips": chips.path, "folder": str(folder), "base": str(base), "methods": ("frozen", "scratch"),
        "fractions": (1.0, 0.3), "seeds": (0,), "train": TRAIN, "device": "cpu", "widths": (4, 8),
        "forest": {"trees": 3, "pixels": 200},
    }  # fmt: skip
    return StudySpec(**{**kept, **changes})


def without_seconds(folder: Path) -> dict[str, Any]:
    return {
        name: {k: v for k, v in record.items() if k not in ("seconds", "folder")}
        for name, record in records(folder).items()
    }


def test_every_method_leaves_a_record_tables_and_figures(chips: Chips, base: Path, tmp_path: Path) -> None:
    spec = study(
        chips, base, tmp_path / "study", methods=("full", "frozen", "scratch", "unet", "forest"), fractions=(0.3,)
    )
    spec.write(tmp_path / "study.yaml")
    result = experiment(tmp_path / "study.yaml")
    assert sorted(result.runs["method"]) == ["forest", "frozen", "full", "scratch", "unet"]
    assert not result.failed
    train = chips.indexes("train")
    kept = train[subset(chips.groups(train), 0.3, 0)]
    assert set(result.runs["chips"]) == {len(kept)}
    assert set(result.runs["groups"]) == {len(np.unique(chips.groups(kept)))}
    assert result.runs["mean_iou"].between(0, 1).all()
    assert (result.runs["mean_iou_low"] <= result.runs["mean_iou_high"]).all()
    assert set(result.history["method"]) == {"full", "frozen", "scratch", "unet"}
    assert result.history.groupby("method")["step"].apply(list).tolist() == [[1, 2]] * 4
    for name in ("runs.csv", "history.csv", "summary.md", "efficiency.png", "learning.png", "study.yaml"):
        assert (tmp_path / "study" / name).stat().st_size > 0
    assert "random forest" in str(result)
    assert len(result.differences()) == 4


def test_what_is_done_is_not_done_again(
    chips: Chips, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = experiment(study(chips, base, tmp_path / "study"))
    done: list[str] = []

    def watched(planned: module.Planned) -> str | None:
        done.append(planned.run.name)
        return execute(planned)

    monkeypatch.setattr(module, "execute", watched)
    again = experiment(study(chips, base, tmp_path / "study"))
    assert not done
    assert again.runs.equals(first.runs)
    experiment(study(chips, base, tmp_path / "study", seeds=(0, 1)))
    assert done == ["frozen-1-1", "scratch-1-1", "frozen-0.3-1", "scratch-0.3-1"]
    done.clear()
    slower = experiment(study(chips, base, tmp_path / "study", only={"frozen": {"lr": 1e-5}}))
    assert done == ["frozen-1-0", "frozen-0.3-0"]  # other settings of one method are other runs of that method alone
    assert len(slower.runs) == 4


def test_one_seed_trains_on_the_same_chips_whatever_the_method(chips: Chips, base: Path, tmp_path: Path) -> None:
    spec = study(chips, base, tmp_path / "study")
    for one in plan(spec, chips):
        assert one.settings is not None
        assert one.settings.fraction == one.run.fraction
        assert one.settings.seed == one.run.seed


def test_other_chips_are_another_study(chips: Chips, base: Path, tmp_path: Path) -> None:
    other = striped_chips.store(tmp_path / "other.zarr", stripe=20)
    names = [{one.name for one in plan(study(chips, base, tmp_path), some)} for some in (chips, other)]
    assert not names[0] & names[1]
    moved = {one.digest for one in plan(study(chips, base, tmp_path / "elsewhere"), chips)}
    assert moved == {one.digest for one in plan(study(chips, base, tmp_path), chips)}


def test_a_run_that_fails_does_not_stop_the_others_and_is_tried_again(
    chips: Chips, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = module.unguarded

    def failing(settings: Any) -> Any:
        if settings.method == "frozen":
            raise TrainError("the loss of step 1 is nan")
        return train(settings)

    spec = study(chips, base, tmp_path / "study", fractions=(1.0,))
    with monkeypatch.context() as patch:
        patch.setattr(module, "unguarded", failing)
        with pytest.warns(StudyWarning, match="1 of 2 runs failed"):
            result = experiment(spec)
    assert result.runs["method"].tolist() == ["scratch"]
    assert next(iter(result.failed.values())) == "TrainError: the loss of step 1 is nan"
    assert "failed: frozen-1-0-" in str(result)
    with warnings.catch_warnings():
        warnings.simplefilter("error", StudyWarning)
        assert sorted(experiment(spec).runs["method"]) == ["frozen", "scratch"]


def test_who_stops_a_run_stops_the_study(
    chips: Chips, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(settings: Any) -> Any:
        raise Stopped("stopped by SIGINT after step 1 of 2")

    monkeypatch.setattr(module, "unguarded", stopped)
    with pytest.raises(Stopped, match="SIGINT"):
        experiment(study(chips, base, tmp_path / "study"))
    assert not records(tmp_path / "study")


def test_a_mistake_in_code_is_not_hidden(
    chips: Chips, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "unguarded", lambda settings: {}["scores"])
    with pytest.raises(KeyError):
        experiment(study(chips, base, tmp_path / "study"))


def test_what_cannot_run_is_refused_before_anything_runs(
    chips: Chips, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "execute", lambda planned: pytest.fail("it ran"))
    with pytest.raises(TrainError, match="did you mean 'lr'"):
        experiment(study(chips, base, tmp_path / "study", only={"scratch": {"lrr": 1}}))
    with pytest.raises(TrainError, match="cannot be read"):
        experiment(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="unknown task or model"):
        experiment(study(chips, base, tmp_path / "study").model_copy(update={"base": "prithvy"}))
    cube, label = striped_chips.land(128)
    whole = striped_chips.write_chips(cube, label, tmp_path / "w.zarr", size=32, shares=(0.6, 0.4, 0.0), block=960.0)
    with pytest.raises(TrainError, match="no chip in the split 'test'"):
        experiment(study(whole, base, tmp_path / "study"))


def test_records_are_plain_json(chips: Chips, base: Path, tmp_path: Path) -> None:
    experiment(study(chips, base, tmp_path / "study", methods=("forest",), fractions=(1.0,)))
    (path,) = (tmp_path / "study" / "records").glob("*.json")
    record = json.loads(path.read_text())
    assert (record["method"], record["fraction"], record["seed"]) == ("forest", 1.0, 0)
    assert record["metrics"]["scores"]["accuracy"]["value"] > 0.9


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        yield client


@pytest.mark.slow
def test_workers_say_what_one_process_says(chips: Chips, base: Path, tmp_path: Path, client: Client) -> None:
    here = experiment(study(chips, base, tmp_path / "here"))
    there = experiment(study(chips, base, tmp_path / "there"), client=client)
    assert not there.failed
    one, other = (without_seconds(tmp_path / name) for name in ("here", "there"))
    assert one.keys() == other.keys()
    for name, record in one.items():
        assert record["metrics"]["matrix"] == other[name]["metrics"]["matrix"]
    assert len(here.runs) == len(there.runs) == 4


@pytest.mark.slow
def test_a_run_whose_worker_dies_is_run_elsewhere(chips: Chips, base: Path, tmp_path: Path, client: Client) -> None:
    spec = study(chips, base, tmp_path / "study", train={**TRAIN, "steps": 3})
    mark = tmp_path / "died"
    client.run(_dying_once, str(mark))
    result = experiment(spec, client=client)
    assert mark.exists()
    assert not result.failed
    assert len(result.runs) == 4


def _dying_once(mark: str) -> None:
    """Let the first run that validates on a worker take its process with it."""
    import os

    from xgfm.train.loop.checkpoints import Checkpoints

    save = Checkpoints.save

    def dying(self: Checkpoints, *args: Any, **options: Any) -> Any:
        saved = save(self, *args, **options)
        try:
            with open(mark, "x"):  # noqa: PTH123 - of all processes, one succeeds
                pass
        except FileExistsError:
            return saved
        os._exit(1)

    Checkpoints.save = dying  # type: ignore[method-assign]
