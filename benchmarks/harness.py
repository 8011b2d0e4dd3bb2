"""What the benchmarks share: tasks of published size with random weights, pixels, clocks and the last line."""

from __future__ import annotations

import json
import platform
import resource
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

import xgfm
from xgfm.grid import tile_geobox, with_grid
from xgfm.models.build import build_task
from xgfm.models.handle import ModelHandle, load_task, register_task
from xgfm.models.published import MODELS
from xgfm.models.spec import PRITHVI_BANDS, ClassInfo, TaskSpec

CASES = {
    "tiny-t3": ("prithvi-eo-2.0-tiny-tl", 3),
    "v1-100m-t3": ("prithvi-eo-1.0-100m", 3),
    "v2-300m-t1": ("prithvi-eo-2.0-300m", 1),
    "v2-300m-t4": ("prithvi-eo-2.0-300m", 4),
    "v2-100m-tl-t4": ("prithvi-eo-2.0-100m-tl", 4),
    "v2-600m-t1": ("prithvi-eo-2.0-600m", 1),
}
"""Name on the command line: published encoder, frames."""

TILE = "T15TVM"


def seeded(spec: TaskSpec) -> torch.nn.Module:
    """Build a task with the same random weights in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_task(spec)


def task(case: str) -> ModelHandle:
    """Return an encoder of published size under a linear head of 13 classes."""
    encoder, frames = CASES[case]
    model = MODELS[encoder]
    spec = TaskSpec(
        name=f"bench-{case}",
        title=f"random weights of {encoder}",
        model=replace(model, frames=frames),
        statistics=model.statistics,
        classes=tuple(ClassInfo(f"class {i}", "#000000") for i in range(13)),
        frames=frames,
        halo=16 if model.patch_size[1] == 16 else 14,
        architecture={
            "family": "pixelwise",
            "necks": [{"name": "SelectIndices", "indices": [model.depth - 1]}, {"name": "ReshapeTokensToImage"}],
            "decoder": {"name": "LinearDecoder", "upsampling_size": model.patch_size[1]},
        },
    )
    register_task(spec, build=seeded)
    return load_task(spec.name)


def pixels(frames: int, rows: int, columns: int) -> np.ndarray:
    """Return int16 ``(time, band, y, x)`` that compress like reflectance: hills, fields and sensor noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:rows, :columns].astype("float32")
    fields = rng.normal(0, 500, (frames, 6, rows // 16 + 1, columns // 16 + 1)).repeat(16, 2).repeat(16, 3)
    hills = 400 * np.sin(y / 300) * np.cos(x / 200)
    noise = rng.normal(0, 25, (rows, columns))
    return (1500 + hills + noise + fields[..., :rows, :columns]).clip(1, 9000).astype("int16")


def geobox(rows: int, columns: int) -> GeoBox:
    """Return the upper left part of a tile, or a larger grid that begins there."""
    whole = tile_geobox(TILE)
    return GeoBox((rows, columns), Affine(30, 0, whole.transform.c, 0, -30, whole.transform.f), whole.crs)


def cube(data: Any) -> xr.DataArray:
    """Return ``(time, band, y, x)`` as a cube."""
    times = np.datetime64("2024-04-15", "ns") + np.arange(data.shape[0]) * np.timedelta64(60, "D")
    array = xr.DataArray(
        data,
        dims=("time", "band", "y", "x"),
        coords={"time": times, "band": list(PRITHVI_BANDS)},
        attrs={"nodata": -9999, "reflectance_scale": 1e-4},
        name="hls",
    )
    return with_grid(array, geobox(*data.shape[-2:]))


@dataclass
class Cost:
    """What a call took."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds of all threads of this process."""
    peak_mb: float
    """Most memory during the call above what there was before it, sampled every 5 ms."""


def measure(call: Callable[[], object]) -> Cost:
    """Run a call once and return what it took."""
    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    usage, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    call()
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    done.set()
    watcher.join()
    cpu = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
    return Cost(wall, cpu, (peak - before) / 1e6)


def alternately(
    calls: Mapping[str, Callable[[], Any]], repeats: int, cost_of: Callable[[Callable[[], Any]], Cost] = measure
) -> dict[str, list[Cost]]:
    """Run several calls in turn, ``repeats`` times after one warm-up, and return what each turn of each cost.

    What else the machine does then falls on all of them.
    """
    taken: dict[str, list[Cost]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            cost = cost_of(call)
            if turn:
                taken[name].append(cost)
    return taken


def median(costs: Sequence[Cost]) -> Cost:
    """Return the median of each measure."""
    return Cost(*(statistics.median(getattr(c, name) for c in costs) for name in ("wall", "cpu", "peak_mb")))


def ratio(above: Sequence[Cost], below: Sequence[Cost], measure: str = "wall") -> float:
    """Return the median over turns of one cost over another: a machine that slows down slows both of a turn."""
    return statistics.median(getattr(a, measure) / getattr(b, measure) for a, b in zip(above, below, strict=True))


def device_name(device: str) -> str:
    """Return what the device is called."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    return str(torch.cpu.get_capabilities().get("cpu_name", platform.processor()))


def report(benchmark: str, rows: Sequence[Mapping[str, Any]], device: str = "cpu") -> None:
    """Print a table, and as the last line everything as JSON, with machine, versions and commit."""
    columns = list(rows[0])
    cells = [columns, *([_text(row[c]) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    ).stdout.strip()
    machine = {
        "device": device_name(device),
        "cores": psutil.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "xgfm": xgfm.__version__,
        "commit": commit,
    }
    print(json.dumps({"benchmark": benchmark, "machine": machine, "rows": list(rows)}))


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
