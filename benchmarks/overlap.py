"""Share of the wall time in which the device computes, with a reader that is no faster than the device.

Reader and device wait instead of working: neither takes processor time from the other, as a network and a GPU would
not. The reader gives one block after the other, each in the time in which the device computes one. One block computes
at a time, so that the seconds of all predictions over the wall time are the share. Without overlap it would be a half.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from distributed import Client
from harness import report
from torch import nn

from xgfm.cube.simulate import simulate_season
from xgfm.jobs import block
from xgfm.jobs.job import Job
from xgfm.jobs.run import Outcome
from xgfm.jobs.spec import JobSpec
from xgfm.models.handle import register_task
from xgfm.models.registry import find

TASK = "slow"
BLOCK = 128


class Slow(nn.Module):
    """A device that takes so long for a window."""

    def __init__(self, classes: int, seconds: float) -> None:
        super().__init__()
        self.classes, self.seconds = classes, seconds

    def forward(self, x: torch.Tensor, **_: Any) -> torch.Tensor:
        """Return logits ``(B, K, H, W)``."""
        time.sleep(self.seconds * len(x))
        return x.mean((1, 2))[:, None].expand(-1, self.classes, -1, -1)


def one(folder: Path, items: Path, region: list[float], name: str, threads: int, wait: float) -> tuple[Outcome, float]:
    """Run one job whose reader takes so many seconds for a block; return what it came to, and seconds of computing."""
    turn, read = threading.Lock(), block.read_frames

    def slowly(*args: Any) -> Any:
        with turn:
            time.sleep(wait)
        return read(*args)

    spec = JobSpec(
        region=region,
        period="2024-04-01/2024-10-31",
        task=TASK,
        store=str(folder / f"{name}.zarr"),
        catalog=str(items),
        grid={"crs": "EPSG:32615", "resolution": 30.0},
        block=BLOCK,
        chunk=BLOCK,
    )
    job, block.read_frames = Job(spec), slowly
    try:
        options: dict[str, Any] = {"processes": False, "n_workers": 1, "dashboard_address": ":0", "memory_limit": 0}
        with Client(threads_per_worker=threads, **options) as client:
            outcome = job.run(client, progress=False)
    finally:
        block.read_frames = read
    return outcome, sum(entry.seconds["predict"] for entry in job.ledger.entries())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--window-seconds", type=float, default=0.05)
    parser.add_argument("--side", type=int, default=1024, help="rows and columns of the land")
    asked = parser.parse_args()
    spec = replace(find("crop-demo").spec, name=TASK, window=64, halo=8, weights=None)
    register_task(spec, lambda s: Slow(len(s.classes), asked.window_seconds))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        season = simulate_season(folder / "season", seed=0, shape=(asked.side, asked.side), granules=6)
        inside = season.geobox[16:-16, 16:-16].geographic_extent.boundingbox
        region = [float(edge) for edge in inside.bbox]
        outcome, computing = one(folder, season.items, region, "free", 4, 0.0)
        wait, rows = computing / outcome.blocks, []
        for threads in asked.threads:
            outcome, computing = one(folder, season.items, region, f"slow-{threads}", threads, wait)
            rows.append(
                {
                    "threads": threads,
                    "blocks": outcome.blocks,
                    "reader_s_per_block": wait,
                    "device_s_per_block": computing / outcome.blocks,
                    "wall_s": outcome.seconds,
                    "share": computing / outcome.seconds,
                }
            )
    report("overlap", rows)


if __name__ == "__main__":
    main()
