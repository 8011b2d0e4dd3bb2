"""Jobs on a Slurm queue."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import small_jobs

from xgfm.cluster import open as open_cluster
from xgfm.jobs.job import Job
from xgfm.jobs.progress import Progress

pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")

WEST, EAST = ("15TYK", (1700, 860, 560, 420)), ("16TBQ", (1700, 2020, 560, 420))
"""Parts of two tiles of two UTM zones, side by side along 90 degrees west."""


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder, dates = tmp_path_factory.mktemp("granules"), small_jobs.DATES[::2]
    sides = enumerate((WEST, EAST))
    return [
        i for n, (tile, w) in sides for i in small_jobs.season(folder, tile=tile, window=w, dates=dates, seed=9 * n)
    ]


ALL, SOME = [-90.09, 44.55, -89.94, 44.67], [-90.05, 44.60, -89.97, 44.64]


def two_zones(folder: Path, items: list[dict[str, Any]], store: str, region: list[float] = ALL) -> Job:
    """A job over both zones; all of it is more than 200 blocks."""
    return small_jobs.job(
        folder,
        items,
        small_jobs.task_folder(folder / "task"),
        store=store,
        region=region,
        grid={"crs": "EPSG:5070", "resolution": 30.0},
        block=32,
        chunk=32,
    )


def queue(folder: Path, lifetime: int) -> Any:
    """Two jobs of one worker; each worker retires after some seconds."""
    return open_cluster(
        "slurm",
        workers=2,
        threads=2,
        memory="1GB",
        walltime="00:10:00",
        log_directory=folder / "logs",
        interface="lo",
        local_directory=str(folder / "scratch"),
        worker_extra_args=["--lifetime", f"{lifetime}s", "--lifetime-stagger", "2s", "--no-dashboard"],
        job_script_prologue=[f"export PYTHONPATH={os.environ.get('PYTHONPATH', '')}"],
    )


@pytest.mark.slow
def test_workers_retire_and_the_map_is_that_of_one_process(
    slurm: None, items: list[dict[str, Any]], tmp_path: Path
) -> None:
    job, alone = two_zones(tmp_path, items, "queue.zarr"), two_zones(tmp_path, items, "alone.zarr")
    with queue(tmp_path, lifetime=40) as client:
        assert client.scheduler.address.startswith("tls://")
        outcome = job.run(client, progress=False)
    assert outcome.complete
    assert outcome.blocks >= 200
    assert len({entry.worker for entry in job.ledger.entries()}) > 2  # replaced on the way
    assert list((tmp_path / "logs").glob("*.err"))
    alone.run(progress=False)
    assert small_jobs.digests(job) == small_jobs.digests(alone)
    small_jobs.same_stores(job, alone)
    assert job.verify()


@pytest.mark.slow
def test_a_job_of_the_queue_that_is_cancelled(
    slurm: None, items: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, count, cancelled = two_zones(tmp_path, items, "cancelled.zarr", SOME), Progress.finish, []

    def finish(self: Progress, km2: float) -> None:
        count(self, km2)
        if self.done == 5:
            running = subprocess.run(
                ["squeue", "-h", "-t", "R", "-o", "%A"], capture_output=True, text=True, check=True
            ).stdout.split()
            subprocess.run(["scancel", running[0]], check=True)
            cancelled.append(running[0])

    monkeypatch.setattr(Progress, "finish", finish)
    with queue(tmp_path, lifetime=600) as client:
        outcome = job.run(client, progress=False)
    assert cancelled
    assert outcome.complete
    assert len({entry.worker for entry in job.ledger.entries()}) >= 2
    assert job.verify()
