"""Run a job over a simulated season: quote it, stop it on the way, go on, verify, and draw the map and its blocks.

    python examples/run_job.py --folder job-output

Takes about a minute, and no network. The job is ``examples/job.yaml``; the map is of nothing real.
"""

from __future__ import annotations

import argparse
import os
import shutil
import threading
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.patches import Rectangle

import xgfm
from xgfm.jobs.job import Job

JOB = Path(__file__).with_name("job.yaml")


def stop_after(job: Job, blocks: int) -> None:
    """Send this process Ctrl-C when so many blocks are done."""
    import signal

    while job.status().done < blocks:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)


def draw(axes: Axes, map_: xr.DataArray, job: Job) -> None:
    """Draw the map with the outlines of its blocks."""
    colors = ListedColormap(map_.attrs["flag_colors"].split())
    norm = BoundaryNorm(np.arange(colors.N + 1), colors.N)
    blocks = list(job.plan().blocks())
    top, left = min(b.rows.start for b in blocks), min(b.columns.start for b in blocks)
    bottom, right = max(b.rows.stop for b in blocks), max(b.columns.stop for b in blocks)
    axes.imshow(
        map_[top:bottom, left:right].where(map_[top:bottom, left:right] != 255),
        cmap=colors, norm=norm, interpolation="nearest", extent=(left, right, bottom, top),
    )  # fmt: skip
    for block in blocks:
        height, width = block.shape
        axes.add_patch(Rectangle((block.columns.start, block.rows.start), width, height, fill=False, ec="0.2"))
    axes.set(title="the map, and the blocks of its job", xlabel="column of the tile", ylabel="row of the tile")


def main() -> None:
    """Simulate, quote, run, stop, resume, verify, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("job-output"), help="where all of it is written")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(JOB, options.folder)
    os.chdir(options.folder)  # paths of a job file are seen from where it is run

    season = xgfm.simulate_season("season", seed=20)
    job = xgfm.open_job("job.yaml")
    print(job.quote(measure=True), "\n")

    threading.Thread(target=stop_after, args=(job, 3), daemon=True).start()
    print(job.run(progress=False))
    print(job.status(), "\n")

    print(xgfm.open_job("map.zarr").run(progress=False))
    print(job.verify())

    store = xr.open_zarr("map.zarr", group=season.tile, mask_and_scale=False, decode_coords="all")
    figure, axes = plt.subplots(figsize=(7, 7), layout="constrained")
    draw(axes, store.crop_demo, job)
    figure.savefig("map.png", dpi=110)
    print("look at", Path("map.png").resolve(), "and", Path("map.zarr.job/report.html").resolve())


if __name__ == "__main__":
    main()
