"""What a run costs by number of blocks, without the pixels: submission, scheduler, ledger, resuming.

Each block only records that it is done. Scheduler and workers are processes of their own, so that their memory and
processor time are theirs.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from distributed import Client
from harness import report, task
from plan_scale import BLOCK, bbox, items, tiles_of

from xgfm.jobs import run
from xgfm.jobs.block import now
from xgfm.jobs.plan import Plan, make_plan
from xgfm.jobs.spec import JobSpec
from xgfm.store.ledger import Entry, Ledger
from xgfm.store.objects import Objects

CASE = "tiny-t3"


def record(url: str, block: str, **_: Any) -> tuple[Entry, None]:
    """Stand for a block that is computed in no time."""
    entry = Entry(block, "done", digest="0" * 32, worker="none", finished=now())
    Ledger(Objects(url)).record(entry)
    return entry, None


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[tuple[Client, psutil.Process]]:
    """A client of processes of one thread, and the scheduler's process."""
    file = folder / "scheduler.json"
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    python = [sys.executable, "-m"]
    scheduler = [*python, "distributed.cli.dask_scheduler", "--port", "0", "--dashboard-address", ":0"]
    worker = [*python, "distributed.cli.dask_worker", "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    started = [subprocess.Popen([*scheduler, "--scheduler-file", str(file)], cwd=Path(__file__).parent, **quiet)]
    started += [
        subprocess.Popen([*worker, "--scheduler-file", str(file)], cwd=Path(__file__).parent, **quiet)
        for _ in range(workers)
    ]
    try:
        with Client(scheduler_file=str(file), timeout=60) as client:
            client.wait_for_workers(workers, timeout=60)
            yield client, psutil.Process(started[0].pid)
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait()


def planned(folder: Path, blocks: int) -> Plan:
    """Plan about so many blocks, with a few items each tile."""
    handle, box = task(CASE), bbox(blocks)
    tiles = tiles_of(box)
    spec = JobSpec(
        region=list(box), period="2015-01-01/2024-12-31", task=handle.spec.name, store=f"{folder}/out.zarr",
        grid={"crs": "EPSG:5070", "resolution": 30}, block=BLOCK, chunk=BLOCK,
    )  # fmt: skip
    return make_plan(spec, items=items(tiles, 30 * len(tiles)), objects=Objects(f"{spec.store}.job"), handle=handle)


def one(blocks: int, workers: int) -> dict[str, Any]:
    """Run one size, and once more when it is done."""
    me = psutil.Process()
    with tempfile.TemporaryDirectory() as name:
        plan = planned(Path(name), blocks)
        with cluster(Path(name), workers) as (client, scheduler):
            run.run_plan(planned_alike := planned(Path(name) / "warm", 50), client, progress=False)
            del planned_alike
            seen, ended, before = [scheduler.memory_info().rss], threading.Event(), me.memory_info().rss

            def watch() -> None:
                while not ended.wait(0.5):
                    seen.append(scheduler.memory_info().rss)

            watcher = threading.Thread(target=watch)
            watcher.start()
            cpu, mine = sum(scheduler.cpu_times()[:2]), time.process_time()
            outcome = run.run_plan(plan, client, progress=False)
            cpu, mine = sum(scheduler.cpu_times()[:2]) - cpu, time.process_time() - mine
            ended.set()
            watcher.join()
            after = me.memory_info().rss
            start = time.perf_counter()
            done = len(Ledger(plan.objects).done())
            listing = time.perf_counter() - start
            start = time.perf_counter()
            again = run.run_plan(plan, client, progress=False)
            resumed = time.perf_counter() - start
        records = sum(f.stat().st_size for f in Path(f"{plan.objects.url}/done").iterdir())
    assert outcome.complete
    assert done == outcome.blocks
    assert again.computed == 0
    return {
        "blocks": outcome.blocks,
        "seconds": outcome.seconds,
        "ms_per_block": 1e3 * outcome.seconds / outcome.blocks,
        "scheduler_cpu_ms_per_block": 1e3 * cpu / outcome.blocks,
        "client_cpu_ms_per_block": 1e3 * mine / outcome.blocks,
        "scheduler_mb_start": seen[0] / 1e6,
        "scheduler_mb_half": seen[len(seen) // 2] / 1e6,
        "scheduler_mb_most": max(seen) / 1e6,
        "client_mb_more": (after - before) / 1e6,
        "ledger_bytes_per_block": math.ceil(records / outcome.blocks),
        "list_ledger_s": listing,
        "resume_s": resumed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    run.compute_block = record
    report("submission", [one(blocks, asked.workers) for blocks in asked.blocks])


if __name__ == "__main__":
    sys.modules.setdefault("submission", sys.modules["__main__"])
    record.__module__ = "submission"  # workers import it from this folder
    main()
