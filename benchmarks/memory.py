"""Peak memory of a prediction that is streamed to Zarr, by size of the region in blocks.

A job's peak is that of the blocks under way, whatever the size of the region. One Dask graph holds rows of chunks: a
block waits for its neighbours, so its peak grows with the width of the region.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import dask
import dask.array as da
import numpy as np
from harness import cube, geobox, measure, report, task
from three_rates import write_inputs

import xgfm
from xgfm.cube.catalogs import save_items
from xgfm.jobs.job import open_job
from xgfm.jobs.spec import JobSpec


def of_graph(side: int, block: int, case: str) -> float:
    """Return the peak of one graph over side x side blocks, in MB above what the process had before."""
    handle = task(case)

    def make() -> np.ndarray:
        rng = np.random.default_rng(0)
        return rng.integers(200, 4000, (1, 6, block, block), dtype="int16")

    chunks = ((1,) * handle.spec.frames, (6,), (block,) * side, (block,) * side)
    data = da.map_blocks(make, dtype="int16", chunks=chunks)
    with tempfile.TemporaryDirectory() as folder, dask.config.set(scheduler="threads", num_workers=2):
        xgfm.predict(cube(data[:, :, :block, :block]), handle).compute()  # libraries and buffers that stay
        return measure(lambda: xgfm.to_zarr(xgfm.predict(cube(data), handle), Path(folder) / "map.zarr")).peak_mb


def of_job(side: int, block: int, case: str) -> float:
    """Return the peak of a job over side x side blocks, granules included, in MB above what the process had before."""
    handle = task(case)
    size = side * block
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with ProcessPoolExecutor(1, get_context("spawn")) as other:  # what writing takes does not count
            stored, items = other.submit(write_inputs, folder, handle.spec.frames, size).result()
        save_items(items, folder / "items.json")

        box = geobox(size, size)[1 : size - 1, 1 : size - 1]
        spec = JobSpec(
            region=[float(v) for v in box.geographic_extent.boundingbox.bbox],
            period="2024-01-01/2024-12-31",
            catalog=str(folder / "items.json"),
            task=handle.spec.name,
            store=str(folder / "map.zarr"),
            block=block,
            chunk=256,
        )

        def run() -> None:
            outcome = open_job(spec).run(progress=False)
            if not outcome.complete:
                raise SystemExit(str(outcome))

        xgfm.predict(stored.isel(x=slice(block), y=slice(block)), handle).compute()  # libraries and buffers that stay
        return measure(run).peak_mb


WAYS = {"graph": of_graph, "job": of_job}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny-t3")
    parser.add_argument("--block", type=int, default=256)
    parser.add_argument("--sides", type=int, nargs="+", default=[3, 6, 12])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(WAYS[args.ways[0]](args.one, args.block, args.model)))
        return
    rows = []
    for way in args.ways:
        peaks = {side: peak(way, side, args) for side in args.sides}
        rows += [
            {"way": way, "blocks": side**2, "model": args.model, "peak_mb": mb, "to_first": mb / peaks[args.sides[0]]}
            for side, mb in peaks.items()
        ]
    report("memory", rows)


def peak(way: str, side: int, args: argparse.Namespace) -> float:
    """Measure one size in a process of its own: what the last one left does not count."""
    sizes = ["--one", str(side), "--block", str(args.block), "--model", args.model]
    command = [sys.executable, __file__, "--ways", way, *sizes]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(answer.splitlines()[-1])


if __name__ == "__main__":
    main()
