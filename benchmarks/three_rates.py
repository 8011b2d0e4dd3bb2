"""How fast the forward pass is alone, fed from local Zarr, and fed from COGs through STAC items.

The three take turns in one process. A rate is windows of 224 x 224 pixels a second; the ratios say how much of the
device's time the way from disk to the model costs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import torch
import xarray as xr
from harness import CASES, TILE, alternately, cube, geobox, median, pixels, ratio, report, task

import xgfm
from xgfm.cube.overpass import Overpass
from xgfm.cube.publish import write_granule
from xgfm.infer.device import batch_size, dtype_of, ready
from xgfm.infer.inputs import lattice_origin, window_values
from xgfm.infer.products import products
from xgfm.infer.sharing import callers, in_order
from xgfm.models.handle import ModelHandle
from xgfm.windows import AxisPlan


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """Return FLOP/s of a large square matrix product."""
    a = torch.randn(4096, 4096, device=device).to(dtype)
    best = float("inf")
    for _ in range(5):
        _wait(device)
        start = time.perf_counter()
        with torch.inference_mode(), products(device):
            torch.nn.functional.linear(a, a)
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * 4096**3 / best


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def flops_of(module: torch.nn.Module, x: torch.Tensor) -> float:
    """Return the FLOPs of one window, counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        module(x)
    return float(counter.get_total_flops())


def write_inputs(folder: Path, frames: int, size: int) -> tuple[xr.DataArray, list[dict[str, Any]]]:
    """Write the same pixels as a Zarr store and as granules; return the cube and the items."""
    data, box = pixels(frames, size, size), geobox(size, size)
    cube(data).chunk(time=1, x=1024, y=1024).to_dataset(name="hls").drop_attrs().to_zarr(folder / "cube.zarr")
    reopened = cube(xr.open_zarr(folder / "cube.zarr").hls.data)
    clear = np.full(box.shape, 64, "uint8")
    items = []
    for frame, values in enumerate(data):
        time_ = np.datetime64(f"2024-{4 + 2 * frame:02d}-15T17:04:39.000")
        id_ = f"HLS.S30.{TILE}.{pd.Timestamp(time_):%Y%jT%H%M%S}.v2.0"
        overpass = Overpass(id_, "S30", time_, (frame,), 0.0, (40.0, 150.0), None, "left")
        items.append(write_granule(folder, overpass, values, clear, box))
    return reopened, items


def rates(case: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one model."""
    handle: ModelHandle = task(case)
    spec, device = handle.spec, args.device
    values = window_values(spec.model, spec.frames, spec.window)
    at_once = args.batch or batch_size(device, 2 * values)
    sample = torch.Size((at_once, 6, spec.frames, spec.window, spec.window))
    with tempfile.TemporaryDirectory() as name:
        stored, items = write_inputs(Path(name), spec.frames, args.size)
        box = geobox(args.size, args.size)
        windows = 1
        for size, origin in zip(box.shape, lattice_origin(box), strict=True):
            windows *= len(AxisPlan(size, origin, spec.window, spec.halo).windows())
        module = ready(handle, device, args.precision, lambda m, x: m(x), torch.Size((1, *sample[1:])))
        x = torch.randn(sample, device=device).to(dtype_of(module))

        turns = -(-windows // (at_once * callers(device)))
        batches = turns * callers(device)  # no caller is idle in the last turn

        def call(x: torch.Tensor) -> torch.Tensor:
            with products(device):
                return module(x)

        def forward() -> None:
            with torch.inference_mode():
                for _ in in_order(call, [x] * batches, callers(device), device):
                    pass
            _wait(device)

        def fed(source: xr.DataArray) -> None:
            options = {"precision": args.precision, "device": device, "batch_size": args.batch}
            with dask.config.set(scheduler="threads", num_workers=args.readers):
                xgfm.predict(source, handle, **options).compute()

        opened = xgfm.open_items(items, bounds=tuple(box.boundingbox))
        calls = {"forward": forward, "zarr": lambda: fed(stored), "cog": lambda: fed(opened)}
        taken = alternately(calls, args.repeats)
    costs = {name: median(each) for name, each in taken.items()}
    whole = batches * at_once
    speed = {n: (whole if n == "forward" else windows) / c.wall for n, c in costs.items()}
    km2 = (args.size * 0.03) ** 2
    return {
        "model": case,
        "precision": str(dtype_of(module)).removeprefix("torch."),
        **speed,
        **{f"{way}_ratio": ratio(taken["forward"], taken[way]) * windows / whole for way in ("zarr", "cog")},
        "zarr_km2_s": km2 / costs["zarr"].wall,
        "peak_share": speed["forward"] * flops_of(module, x[:1]) / matmul_peak(device, dtype_of(module)),
        "peak_mb": costs["zarr"].peak_mb,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="+", default=["tiny-t3", "v1-100m-t3", "v2-300m-t1"], choices=list(CASES))
    parser.add_argument("--size", type=int, default=1536, help="rows and columns of the region, pixels")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--batch", type=int, help="windows at once; by default what suits the device")
    parser.add_argument("--readers", type=int, default=4, help="Dask threads")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    report("three_rates", [rates(case, args) for case in args.model], args.device)


if __name__ == "__main__":
    main()
