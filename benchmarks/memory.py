"""Peak memory of a prediction that is streamed to Zarr, by size of the region in blocks."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import dask
import dask.array as da
import numpy as np
from harness import cube, measure, report, task

import xgfm


def one(side: int, block: int, case: str) -> float:
    """Return the peak of a region of side x side blocks, in MB above what the process had before."""
    handle = task(case)
    handle.load("cpu")
    frames = handle.spec.frames

    def make() -> np.ndarray:
        rng = np.random.default_rng(0)
        return rng.integers(200, 4000, (1, 6, block, block), dtype="int16")

    data = da.map_blocks(make, dtype="int16", chunks=((1,) * frames, (6,), (block,) * side, (block,) * side))
    with tempfile.TemporaryDirectory() as folder, dask.config.set(scheduler="threads", num_workers=2):
        xgfm.predict(cube(data[:, :, :block, :block]), handle).compute()  # libraries and buffers that stay
        return measure(lambda: xgfm.to_zarr(xgfm.predict(cube(data), handle), Path(folder) / "map.zarr")).peak_mb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny-t3")
    parser.add_argument("--block", type=int, default=512)
    parser.add_argument("--sides", type=int, nargs="+", default=[1, 2, 4, 10])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one, args.block, args.model)))
        return
    rows = []
    for side in args.sides:  # a process each: what the last one left does not count
        command = [sys.executable, __file__, "--one", str(side), "--block", str(args.block), "--model", args.model]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows.append({"blocks": side**2, "model": args.model, "peak_mb": float(answer.splitlines()[-1])})
    for row in rows:
        row["to_first"] = row["peak_mb"] / rows[0]["peak_mb"]
    report("memory", rows)


if __name__ == "__main__":
    main()
