"""Workers that die, hang or fail in the middle of a block: the block is computed elsewhere, or listed, and no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import breaking
import dask
import psutil
import pytest
import small_jobs
from distributed import Client, LocalCluster

from xgfm.errors import JobError
from xgfm.jobs.job import Job

WINDOW = (1000, 1200, 192, 192)
GRID = {"crs": "EPSG:32615", "resolution": 30.0}
BROKEN = "map-r0001-c0001"


class Bench:
    """What the tests of this file share: granules, a task, and a run without faults."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.items = small_jobs.season(folder / "granules", window=WINDOW)
        self.task = small_jobs.task_folder(folder / "task")
        self.clean = self.job("clean.zarr")
        self.clean.run(progress=False)

    def job(self, store: str, **changes: Any) -> Job:
        region = small_jobs.region_of("15TVM", WINDOW)
        return small_jobs.job(self.folder, self.items, self.task, store=store, region=region, grid=GRID, **changes)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Two processes; a task is blamed when the second worker dies under it."""
    options = {"distributed.scheduler.allowed-failures": 1, "distributed.scheduler.worker-saturation": 1.0}
    with (
        dask.config.set(options),
        LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address=":0", silence_logs="CRITICAL"
        ) as running,
    ):
        yield running


@pytest.fixture
def broken(cluster: LocalCluster, tmp_path: Path) -> Iterator[Callable[..., Client]]:
    """A client of workers that one fault strikes."""
    with Client(cluster) as client:

        def strike(step: str, **options: Any) -> Client:
            fault = breaking.Break(step, BROKEN, str(tmp_path / "struck"), **options)
            client.register_plugin(fault, name="break")
            return client

        yield strike
        client.unregister_worker_plugin("break")


def struck(folder: Path) -> list[int]:
    """Process ids that the fault has struck, in order."""
    marker = folder / "struck"
    assert marker.exists(), "the fault has not happened"
    return [int(line.split()[0]) for line in marker.read_text().splitlines()]


def is_whole(job: Job, clean: Job) -> None:
    """Every block is there, reads back, and is that of a run without faults."""
    assert job.status().done == job.status().blocks == clean.status().blocks > 0
    assert job.verify().checked == job.status().blocks
    assert job.verify()
    assert small_jobs.digests(job) == small_jobs.digests(clean)
    small_jobs.same_stores(job, clean)


def test_a_clean_run_is_predict_over_the_whole_area(bench: Bench) -> None:
    small_jobs.is_whole(bench.clean)
    assert 0 < (small_jobs.stored(bench.clean)["small_task"] != 255).mean() < 1


@pytest.mark.parametrize("step", ["read", "predict", "write", "record"])
def test_a_worker_that_is_killed(
    step: str, bench: Bench, broken: Callable[..., Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = bench.job(f"killed-{step}.zarr")
    outcome = job.run(broken(step), progress=False)
    (pid,) = set(struck(tmp_path))  # reads go side by side: two of them may be struck at once
    assert not psutil.pid_exists(pid)
    assert (outcome.complete, outcome.computed, outcome.failed) == (True, outcome.blocks, ())
    left = list(Path(job.spec.store).rglob("*.partial"))
    assert len(left) == (step == "write")
    again = job.run(progress=False)  # nothing is missing, and what the dead have left is swept
    assert again.computed == 0
    assert not list(Path(job.spec.store).rglob("*.partial"))
    is_whole(job, bench.clean)


def test_a_block_that_kills_every_worker_is_listed(bench: Bench, broken: Callable[..., Client], tmp_path: Path) -> None:
    job = bench.job("segfault.zarr")
    outcome = job.run(broken("predict", how=breaking.segfault, once=False), progress=False)
    pids = struck(tmp_path)
    assert len(pids) == len(set(pids)) >= 2
    assert not any(map(psutil.pid_exists, pids))
    assert outcome.failed == (BROKEN,)
    assert outcome.done == outcome.blocks - 1
    assert outcome.missing == 0
    (entry,) = job.ledger.entries([BROKEN])
    assert "died" in str(entry.reason)
    assert job.retry_failed() == (BROKEN,)
    healthy = job.run(progress=False)
    assert (healthy.computed, healthy.complete) == (1, True)
    is_whole(job, bench.clean)


def test_a_block_that_is_recorded_as_its_worker_dies_is_done(
    bench: Bench, broken: Callable[..., Client], tmp_path: Path
) -> None:
    job = bench.job("recorded.zarr")
    outcome = job.run(broken("recorded", once=False), progress=False)
    assert len(set(struck(tmp_path))) >= 2
    assert (outcome.complete, outcome.failed) == (True, ())
    is_whole(job, bench.clean)


def test_a_block_that_always_fails_is_listed(bench: Bench, broken: Callable[..., Client], tmp_path: Path) -> None:
    job = bench.job("poisoned.zarr")
    outcome = job.run(broken("predict", how=breaking.poison, once=False), progress=False)
    assert len(struck(tmp_path)) == job.spec.limits.attempts
    assert outcome.failed == (BROKEN,)
    assert outcome.done == outcome.blocks - 1
    (entry,) = job.ledger.entries([BROKEN])
    assert (entry.outcome, entry.attempts) == ("failed", job.spec.limits.attempts)
    assert "ArithmeticError: this block cannot be computed" in str(entry.reason)
    assert job.run(progress=False).computed == 0  # it is not tried again unasked
    job.retry_failed()
    assert job.run(progress=False).computed == 1
    is_whole(job, bench.clean)


def test_a_failure_may_stop_the_run(bench: Bench, broken: Callable[..., Client], tmp_path: Path) -> None:
    limits = {"attempts": 1, "on_error": "raise", "in_flight": 2}
    job = bench.job("raised.zarr", limits=limits)
    client = broken("predict", how=breaking.poison)
    with pytest.raises(JobError, match=rf"block {BROKEN} failed.*on_error: raise.*cannot be computed"):
        job.run(client, progress=False)
    struck(tmp_path)
    # A block that a worker had begun is recorded by that worker, perhaps after the run has ended: each worker has one
    # thread, so when it has done something else it is through with the block.
    client.gather([client.submit(int, workers=[w], pure=False) for w in client.scheduler_info()["workers"]])
    status = job.status()
    assert status.failed == (BROKEN,)
    job.retry_failed()
    assert job.run(progress=False).computed == status.missing + 1
    is_whole_as(job, bench.clean)


def is_whole_as(job: Job, clean: Job) -> None:
    """As `is_whole`, for a job of other limits."""
    assert job.verify()
    assert small_jobs.digests(job) == small_jobs.digests(clean)


def test_a_worker_that_is_frozen_is_restarted(
    bench: Bench, broken: Callable[..., Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xgfm.jobs.run.SILENCE", 3.0)
    job = bench.job("frozen.zarr", limits={"attempts": 2, "read_seconds": 3.0})
    outcome = job.run(broken("read", how=breaking.freeze), progress=False)
    (pid,) = set(struck(tmp_path))  # reads go side by side: two of them may be struck at once
    assert not psutil.pid_exists(pid)
    assert outcome.complete
    log = next(Path(f"{job.spec.store}.job", "logs").iterdir()).read_text()
    assert "restarting 1 workers that hang" in log
    is_whole_as(job, bench.clean)
