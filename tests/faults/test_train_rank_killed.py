"""Ranks that die, hang or fail: the others end in bounded time, and training goes on from where it was, or says why."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import breaking
import numpy as np
import psutil
import pytest
import ranking
from distributed import Client, LocalCluster

from xgfm.errors import ClusterError, TrainError
from xgfm.train.loop.history import read_history
from xgfm.train.loop.trainer import TrainResult, train
from xgfm.train.ranks import launch
from xgfm.train.ranks.launch import run_ranks

pytestmark = pytest.mark.slow

STEPS, AT = 6, 3
"""Steps of the training, and the one before which something happens."""


@pytest.fixture
def client() -> Iterator[Client]:
    """Two processes of a cluster as users have them: tasks of workers that die are repeated."""
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address=":0", silence_logs="CRITICAL"
        ) as running,
        Client(running) as connected,
    ):
        yield connected


def fault(folder: Path, rank: int, how: Callable[[], None], **more: bool) -> ranking.Fault:
    return ranking.Fault(rank, AT, how, str(folder / "struck"), **more)


def work(folder: Path, struck: ranking.Fault | None = None) -> partial[dict[str, int]]:
    return partial(ranking.count_up, folder=str(folder), steps=STEPS, fault=struck)


def test_without_a_fault(client: Client, tmp_path: Path) -> None:
    answer = run_ranks(work(tmp_path), client, 2, device="cpu")
    assert (answer["began"], answer["world"], answer["sum"]) == (0, 2, 2)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("how", [breaking.kill, breaking.segfault], ids=lambda f: f.__name__)
def test_a_rank_that_dies(
    how: Callable[[], None], rank: int, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Well within the patience of torch, the other rank has ended and two new ones have gone on."""
    monkeypatch.setattr(launch, "SETTLE", 60.0)
    struck = fault(tmp_path, rank, how)
    answer = run_ranks(work(tmp_path, struck), client, 2, device="cpu", grace=5.0)
    (pid,) = struck.pids
    assert not psutil.pid_exists(pid)
    assert answer["began"] == AT  # from the last checkpoint, not from the start
    assert (answer["world"], answer["sum"]) == (2, 2)


def test_a_rank_that_hangs(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process lives, and so do its connections: nothing but its silence tells."""
    monkeypatch.setattr(launch, "SILENCE", 3.0)
    struck = fault(tmp_path, 1, breaking.freeze)
    answer = run_ranks(work(tmp_path, struck), client, 2, device="cpu", grace=2.0)
    (pid,) = struck.pids
    assert not psutil.pid_exists(pid)
    assert (answer["began"], answer["world"]) == (AT, 2)


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [(ranking.dies, ArithmeticError, "one rank alone has failed"), (ranking.refuses, TrainError, "chips 3, 8")],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_what_would_happen_again_is_not_tried_again(
    how: Callable[[], None], kind: type[Exception], said: str, rank: int, client: Client, tmp_path: Path
) -> None:
    struck = fault(tmp_path, rank, how, once=False)
    with pytest.raises(kind, match=said):
        run_ranks(work(tmp_path, struck), client, 2, device="cpu")
    assert len(struck.pids) == 1
    after = run_ranks(work(tmp_path), client, 2, device="cpu")  # the workers are as good as new
    assert after["began"] == AT


def test_a_connection_that_breaks_is_tried_again(client: Client, tmp_path: Path) -> None:
    struck = fault(tmp_path, 1, ranking.breaks_the_connection)
    answer = run_ranks(work(tmp_path, struck), client, 2, device="cpu")
    assert (answer["began"], answer["world"]) == (AT, 2)


def test_attempts_come_to_an_end(client: Client, tmp_path: Path) -> None:
    struck = fault(tmp_path, 1, breaking.kill, once=False)
    with pytest.raises(ClusterError, match=r"failed 2 times, last with: the worker of rank 1 of 2 is gone"):
        run_ranks(work(tmp_path, struck), client, 2, device="cpu", attempts=2, grace=5.0)
    assert len(set(struck.pids)) == 2


def test_a_launch_that_is_interrupted_leaves_no_rank_behind(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C, as it comes while the client waits, with a rank that would go on for minutes."""
    struck, seen = fault(tmp_path, 1, breaking.freeze), []
    land = launch._Attempt._land

    def interrupted(self: launch._Attempt[dict[str, int]]) -> None:
        land(self)
        if Path(struck.marker).exists():
            seen.extend(place.pid for place in self.places)
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(launch._Attempt, "_land", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_ranks(work(tmp_path, struck), client, 2, device="cpu")
    assert len(seen) == 2
    assert not any(map(psutil.pid_exists, seen))
    assert run_ranks(work(tmp_path), client, 2, device="cpu")["began"] == AT


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A training that nothing happens to, by one process."""
    return train(ranking.training(tmp_path_factory.mktemp("trainings"), "whole"))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_training_of_which_a_rank_is_killed(rank: int, client: Client, whole: TrainResult, tmp_path: Path) -> None:
    """It is finished, and its history reads as if nothing had happened."""
    settings = ranking.training(whole.folder.parent, f"workers-{rank}")
    struck = fault(tmp_path, rank, breaking.kill)
    client.register_plugin(ranking.Strike(struck))
    result = launch.launch(settings, client, 2)
    assert len(struck.pids) == 1
    assert list(result.history.index) == list(range(1, ranking.STEPS + 1))
    np.testing.assert_allclose(result.history["loss"], whole.history["loss"], rtol=1e-5)
    assert result.metrics == pytest.approx(whole.metrics, rel=1e-5)


def torchrun(what: str, path: Path, *, restarts: int) -> subprocess.CompletedProcess[str]:
    """Train on two ranks; the second comes to grief on the way."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [f"--max-restarts={restarts}", ranking.__file__, what, str(path), "1", str(AT)]
    return subprocess.run(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_training_of_torchrun_of_which_a_rank_is_killed(whole: TrainResult) -> None:
    settings = ranking.training(whole.folder.parent, "torchrun")
    path = whole.folder.parent / "torchrun.yaml"
    settings.write(path)
    done = torchrun("train", path, restarts=1)
    assert done.returncode == 0, done.stdout[-3000:]
    assert Path(f"{path}.struck").exists()
    history = read_history(settings.folder)
    np.testing.assert_allclose(history["loss"], whole.history["loss"], rtol=1e-5)
    assert (Path(settings.folder) / "task" / "model.safetensors").exists()


def test_a_rank_of_torchrun_that_fails_leaves_nothing_of_the_group(tmp_path: Path) -> None:
    """Its error holds the frames that it came through, and they the module that adds up gradients."""
    settings, path = ranking.training(tmp_path, "fails"), tmp_path / "fails.yaml"
    settings.write(path)
    done = torchrun("train-and-fail", path, restarts=0)
    assert done.returncode == 1
    assert "one rank alone has failed" in done.stdout
    assert "threads outlive" not in done.stdout


def environment() -> dict[str, str]:
    """What a program needs to find the modules of tests."""
    path = os.pathsep.join([str(Path(ranking.__file__).parent), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Client]:
    """Two workers that nobody starts again."""
    with LocalCluster(n_workers=0, dashboard_address=":0", silence_logs="CRITICAL") as scheduler:
        command = [sys.executable, "-m", "distributed.cli.dask_worker", scheduler.scheduler_address, "--no-nanny"]
        command += ["--nthreads", "1", "--no-dashboard", "--local-directory", str(tmp_path / "scratch")]
        workers = [subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL) for _ in range(2)]
        try:
            with Client(scheduler) as connected:
                connected.wait_for_workers(2, timeout=60)
                yield connected
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()


def test_those_that_are_left_go_on(bare: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "SETTLE", 3.0)
    struck = fault(tmp_path, 0, breaking.kill)
    answer = run_ranks(work(tmp_path, struck), bare, 2, device="cpu")
    assert (answer["began"], answer["world"], answer["sum"]) == (AT, 1, 1)


def test_a_rank_that_hangs_where_nobody_can_restart_it(
    bare: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the other rank says is told, and what works is used."""
    monkeypatch.setattr(launch, "SETTLE", 3.0)
    hangs = ranking.Fault(1, AT, ranking.sleeps, str(tmp_path / "hangs"))
    fails = ranking.Fault(0, AT, ranking.dies, str(tmp_path / "fails"))
    both = partial(ranking.two_faults, first=hangs, second=fails)
    with pytest.raises(ArithmeticError, match="one rank alone has failed"):
        run_ranks(both, bare, 2, device="cpu", grace=1.0)
    assert run_ranks(work(tmp_path), bare, 1, device="cpu")["world"] == 1
    with pytest.raises(ClusterError, match=r"ranks=2, but 1 workers can be ranks after 2 s.*wait_for_workers"):
        run_ranks(work(tmp_path), bare, 2, device="cpu", wait=2.0)


def test_workers_of_one_process_are_no_ranks(tmp_path: Path) -> None:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0") as running,
        Client(running) as client,
    ):
        with pytest.raises(ClusterError, match=r"1 workers of 2 that answer \(1 share a process"):
            run_ranks(work(tmp_path), client, 2, device="cpu", wait=1.0)
        assert run_ranks(work(tmp_path), client, 1, device="cpu")["sum"] == 1


@pytest.mark.parametrize("given", [{"ranks": 0}, {"ranks": 1, "attempts": 0}], ids=str)
def test_no_ranks_or_no_attempts(given: dict[str, int], client: Client, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="expected at least 1 of each"):
        run_ranks(work(tmp_path), client, **given)
