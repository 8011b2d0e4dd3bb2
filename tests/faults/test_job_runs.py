"""Runs that end in the middle: killed, told to stop, without a scheduler, on a full disk; and two at once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import small_jobs
from distributed import Client

from xgfm.errors import ClusterError, StoreFull, Taken
from xgfm.jobs.job import Job
from xgfm.jobs.progress import Progress

TESTS = Path(__file__).parents[1]
WINDOW = (1000, 1200, 256, 320)
GRID = {"crs": "EPSG:32615", "resolution": 30.0}


class Bench:
    """What the tests of this file share: granules, a task, and a run without faults."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.items = small_jobs.season(folder / "granules", window=WINDOW, dates=small_jobs.DATES[::2])
        self.task = small_jobs.task_folder(folder / "task")
        self.clean = self.job("clean.zarr")
        self.clean.run(progress=False)

    def job(self, store: str, **changes: Any) -> Job:
        region = small_jobs.region_of("15TVM", WINDOW)
        return small_jobs.job(self.folder, self.items, self.task, store=store, region=region, grid=GRID, **changes)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@contextmanager
def apart(job: Job) -> Iterator[subprocess.Popen[str]]:
    """The job in a process of its own, when three of its blocks are done."""
    command = [sys.executable, str(TESTS / "job_process.py"), job.spec.store]
    paths = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("done 3"):
                    break
            yield process
        finally:
            process.kill()


def resumes(job: Job, clean: Job) -> None:
    """The next run computes what is missing and no more, and the store is that of a run without faults."""
    before = job.status()
    assert 3 <= before.done < before.blocks
    outcome = job.run(progress=False)
    assert outcome.computed == before.missing
    assert outcome.complete
    assert job.verify().checked == before.blocks
    assert job.verify()
    assert small_jobs.digests(job) == small_jobs.digests(clean)


def test_a_client_that_is_killed(bench: Bench) -> None:
    job = bench.job("client.zarr")
    with apart(job) as process:
        workers = psutil.Process(process.pid).children(recursive=True)
        assert workers
        process.kill()
        assert process.wait() == -signal.SIGKILL
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert not alive
    resumes(job, bench.clean)
    small_jobs.same_stores(job, bench.clean)


def test_a_client_that_is_told_to_stop(bench: Bench) -> None:
    job = bench.job("stopped.zarr")
    with apart(job) as process:
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    assert "Stopped: SIGTERM" in said
    assert "missing" in said
    resumes(job, bench.clean)


def test_a_second_run_of_one_store_is_refused(bench: Bench) -> None:
    job = bench.job("two.zarr")
    with apart(job) as process:
        process.send_signal(signal.SIGSTOP)  # it lives, and does not finish in the meantime
        with pytest.raises(Taken, match=rf"process {process.pid} on "):
            job.run(progress=False)
        process.send_signal(signal.SIGCONT)
        said = process.communicate(timeout=120)[0]
    blocks = job.status().blocks
    assert f"outcome {blocks} of {blocks} blocks done, {blocks} of them in this run" in said
    assert job.verify()
    assert small_jobs.digests(job) == small_jobs.digests(bench.clean)


@contextmanager
def workers(folder: Path) -> Iterator[tuple[Client, subprocess.Popen[bytes]]]:
    """A client, and the process of its scheduler."""
    file = folder / "scheduler.json"
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--dashboard-address", ":0"]
    work = [sys.executable, "-m", "distributed.cli.dask_worker", "--nthreads", "1", "--no-dashboard"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with (
        subprocess.Popen([*dask, "--scheduler-file", str(file)], **quiet) as scheduler,
        subprocess.Popen([*work, "--scheduler-file", str(file), "--local-directory", str(folder)], **quiet) as worker,
    ):
        try:
            with Client(scheduler_file=str(file), timeout=30) as client:
                yield client, scheduler
        finally:
            scheduler.kill()
            worker.terminate()
            worker.wait()


def test_a_scheduler_that_is_killed(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, count = bench.job("scheduler.zarr"), Progress.finish
    with workers(tmp_path) as (client, scheduler):

        def finish(self: Progress, km2: float) -> None:
            count(self, km2)
            if self.done == 3:
                scheduler.kill()

        monkeypatch.setattr(Progress, "finish", finish)
        with pytest.raises(ClusterError, match=r"the scheduler is gone; .* go on with xgfm resume"):
            job.run(client, progress=False)
        assert scheduler.wait() == -signal.SIGKILL
    monkeypatch.undo()
    resumes(job, bench.clean)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes."""
    if shutil.which("mount") is None:
        pytest.skip("a small file system cannot be mounted here: there is no mount command")
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def pages(job: Job) -> int:
    """Bytes that a job and its records take in memory."""
    folders = (Path(job.spec.store), Path(f"{job.spec.store}.job"))
    return sum(-(-f.stat().st_size // 4096) * 4096 for folder in folders for f in folder.rglob("*") if f.is_file())


def test_a_disk_that_fills_up(bench: Bench, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", pages(bench.clean) * 3 // 4) as disk:
        job = bench.job(str(disk / "map.zarr"))
        with pytest.raises(StoreFull, match=r"takes no more data \(No space left on device\); .*xgfm resume"):
            job.run(progress=False)
        room = os.statvfs(disk)
        assert room.f_bavail * room.f_bsize < 16_384
        assert job.status().failed == ()
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        resumes(job, bench.clean)
        small_jobs.same_stores(job, bench.clean)
