"""Kill workers, clients and schedulers at random times; count blocks that are wrong or lost.

Scheduler, worker and client are processes of their own. After each kill every block that the ledger calls done is read
again and compared with a run without faults; what the ledger has called done once must stay done. When a job is whole,
it is compared as a whole, and the next one begins. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zarr
from harness import report

from xgfm.cube.simulate import simulate_season
from xgfm.jobs.job import Job, open_job
from xgfm.jobs.spec import JobSpec
from xgfm.models.build import build_task
from xgfm.models.folder import save_task
from xgfm.models.registry import find
from xgfm.store.objects import zarr_store
from xgfm.store.region import read_digest

VICTIMS = ("worker", "client", "scheduler")
RUN = """
import sys
from distributed import Client
from xgfm.jobs.job import open_job
from xgfm.jobs.progress import Progress
count = Progress.finish
def finish(self, km2):
    count(self, km2)
    print("done", flush=True)
Progress.finish = finish
with Client(sys.argv[2], timeout=60) as client:
    outcome = open_job(sys.argv[1]).run(client, progress=False)
print("complete" if outcome.complete else f"incomplete {outcome}", flush=True)
"""


class Processes:
    """A scheduler and a worker; what was killed is started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder, 0
        self.scheduler: subprocess.Popen[str] | None = None
        self.worker: subprocess.Popen[bytes] | None = None
        self.address = ""

    def start(self) -> None:
        """Start what is not there."""
        if self.scheduler is not None and self.scheduler.poll() is None:
            return
        self.stop()
        self.number += 1
        file, python = self.folder / f"scheduler-{self.number}.json", [sys.executable, "-m"]
        scheduler = [*python, "distributed.cli.dask_scheduler", "--port", "0", "--dashboard-address", ":0"]
        worker = [*python, "distributed.cli.dask_worker", "--nthreads", "2", "--no-dashboard"]
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.scheduler = subprocess.Popen([*scheduler, "--scheduler-file", str(file)], text=True, **quiet)
        while not file.exists() or not file.read_text().strip():
            time.sleep(0.05)
        self.address = json.loads(file.read_text())["address"]
        scratch = ["--local-directory", str(self.folder / "scratch")]
        self.worker = subprocess.Popen([*worker, self.address, *scratch], **quiet)

    def kill(self, victim: str, client: subprocess.Popen[str]) -> bool:
        """SIGKILL one process; return whether it was there."""
        if victim == "client":
            client.kill()
            return client.wait() < 0
        if victim == "scheduler":
            assert self.scheduler is not None
            self.scheduler.kill()
            return self.scheduler.wait() < 0
        assert self.worker is not None
        children = [p for p in psutil.Process(self.worker.pid).children() if "spawn_main" in " ".join(p.cmdline())]
        for child in children:
            child.kill()
        return bool(children)

    def stop(self) -> None:
        """End both."""
        for process in (self.worker, self.scheduler):
            if process is not None:
                for child in psutil.Process(process.pid).children() if process.poll() is None else []:
                    child.kill()
                process.kill()
                process.wait()


def make_job(folder: Path, items: Path, region: list[float], store: str) -> Job:
    """Plan a job of some dozens of small blocks."""
    job = open_job(
        JobSpec(
            region=region,
            period="2024-04-01/2024-10-31",
            task=str(folder / "task"),
            store=str(folder / store),
            catalog=str(items),
            grid={"crs": "EPSG:32615", "resolution": 30.0},
            block=64,
            chunk=32,
            limits={"attempts": 5},
        )
    )
    job.plan()
    return job


def check(job: Job, expected: dict[str, str | None], known: set[str]) -> tuple[int, int]:
    """Return how many blocks are wrong and how many are lost, of those that are done."""
    done, plan = job.ledger.done(), job.plan()
    names = [str(name) for name in plan.template(plan.areas[0]).data_vars]
    wrong = 0
    for entry in job.ledger.entries(sorted(done)):
        block = plan.block(entry.block)
        found = read_digest(zarr_store(job.spec.store), "", names, block.rows, block.columns)
        wrong += not entry.digest == found == expected[entry.block]
    lost = len(known - done)
    known |= done
    return wrong, lost


def same(one: Job, other: Job) -> bool:
    """Whether two stores hold the same bits."""
    mine, theirs = (zarr.open_group(job.spec.store, mode="r") for job in (one, other))
    return all(np.array_equal(array[...], theirs[name][...]) for name, array in mine.arrays())


def rounds(folder: Path, kills: int, seed: int, side: int = 384) -> dict[str, Any]:
    """Go on until so many processes were killed in the middle of a run."""
    rng, struck, totals = random.Random(seed), Counter[str](), Counter[str]()
    season = simulate_season(folder / "season", seed=0, shape=(side, side), granules=6)
    region = [float(edge) for edge in season.geobox[16:-16, 16:-16].geographic_extent.boundingbox.bbox]
    spec = replace(find("crop-demo").spec, name="kills", window=32, halo=4, weights=None)
    save_task(build_task(spec), spec, folder / "task")
    clean = make_job(folder, season.items, region, "clean.zarr")
    clean.run(progress=False)
    expected = {entry.block: entry.digest for entry in clean.ledger.entries()}
    processes, job, known = Processes(folder), None, set[str]()
    try:
        while struck.total() < kills:
            if job is None:
                job, known = make_job(folder, season.items, region, f"job-{totals['jobs']}.zarr"), set()
            processes.start()
            command = [sys.executable, "-c", RUN, job.spec.store, processes.address]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as client:
                victim = rng.choice(VICTIMS)
                said = _until(client, rng.randrange(max(len(expected) // 2, 1)))
                if said != "complete":
                    time.sleep(rng.uniform(0, 0.5))
                    if client.poll() is None and processes.kill(victim, client):
                        struck[victim] += 1
                client.communicate()
            wrong, lost = check(job, expected, known)
            totals.update(wrong=wrong, lost=lost, runs=1)
            if job.status().done == len(expected):
                totals.update(jobs=1, differing=not same(job, clean))
                job = None
    finally:
        processes.stop()
    return {"kills": struck.total(), **{victim: struck[victim] for victim in VICTIMS}, "blocks": len(expected),
            **{name: totals[name] for name in ("runs", "jobs", "wrong", "lost", "differing")}}  # fmt: skip


def _until(client: subprocess.Popen[str], count: int) -> str:
    """Wait until a run has said so often that a block is done, or that it is over."""
    assert client.stdout is not None
    for number, line in enumerate(client.stdout):
        if not line.startswith("done"):
            return "complete"
        if number >= count:
            return "running"
    return "complete"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    with tempfile.TemporaryDirectory() as folder:
        report("random_kills", [rounds(Path(folder), asked.kills, asked.seed)])


if __name__ == "__main__":
    main()
