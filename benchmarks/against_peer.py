"""The same model, array and stride through `xgfm.predict` and through the tiled inference that is usual elsewhere.

The peer is `peer_tiling.tiled_inference`, written from the published description of TerraTorch 1.1.1; where that
package is installed, its own function is run as well. The peer's caller normalises the whole raster in float32 and
takes the argmax of whole-raster logits. Ratios are the peer's cost over ours at the same precision; its bf16 is
autocast, as its trainer does it. ``wall_as_used`` compares with the peer's default, fp32; ours is bf16 where the CPU
computes it. Each way has a process of its own, and they take turns: what xgfm asks of the C library's allocator would
help the peer, and memory that one way has left would count for the next. Memory is what a process has above what it
had with the data and before the first run.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from itertools import product
from multiprocessing import get_context
from typing import Any

import dask
import numpy as np
import psutil
import torch
import xarray as xr
from harness import Cost, alternately, cube, measure, median, pixels, ratio, report, task
from peer_tiling import tiled_inference

import xgfm
from xgfm.cf import variable_name
from xgfm.models.handle import ModelHandle

Tiled = Callable[..., torch.Tensor]
MEASURES = {"wall": "wall", "cpu": "cpu", "memory": "peak_mb"}


def peer(tiled: Tiled, data: np.ndarray, handle: ModelHandle, precision: str) -> np.ndarray:
    """Map an array as users of the peer do: normalise all of it, blend whole-raster logits, take the argmax."""
    statistics = handle.spec.statistics
    mean, std = (np.array(v, "float32")[None, :, None, None] for v in (statistics.mean, statistics.std))
    x = torch.from_numpy((data.astype("float32") - mean) / std).movedim(0, 1)[None]
    module = handle.load("cpu")
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        return tiled(module, x).argmax(1)[0].to(torch.uint8).numpy()


def terratorch_tiled() -> Tiled | None:
    """Return TerraTorch's own function, where it is installed."""
    if importlib.util.find_spec("terratorch") is None:
        return None
    from terratorch.tasks.tiled_inference import tiled_inference as theirs

    return lambda module, x: theirs(module, x, crop=224, stride=192, batch_size=16)


WAYS: dict[str, Callable[[], Tiled | None]] = {
    "peer": lambda: partial(tiled_inference, crop=224, stride=192),
    "terratorch": terratorch_tiled,
}


@cache
def given(way: str, model: str, size: int) -> tuple[ModelHandle, Any, int]:
    """Return the task, the pixels as the way takes them, and the memory of this process once it has them, in bytes."""
    handle = task(model)
    data = pixels(handle.spec.frames, size, size)
    source = cube(data).chunk(x=1024, y=1024) if way == "ours" else data
    return handle, source, psutil.Process().memory_info().rss


def ours(lazy: xr.DataArray, handle: ModelHandle, precision: str) -> np.ndarray:
    """Map a cube as users of xgfm do."""
    with dask.config.set(scheduler="threads"):
        result = xgfm.predict(lazy, handle, precision=precision)
        return result[variable_name(handle.spec)].values


def cost(way: str, precision: str, model: str, size: int) -> Cost:
    """Return what one map costs, in the process that runs this."""
    handle, source, held = given(way, model, size)
    run = ours if way == "ours" else partial(peer, WAYS[way]())
    before = psutil.Process().memory_info().rss
    taken = measure(lambda: run(source, handle, precision))
    return replace(taken, peak_mb=taken.peak_mb + (before - held) / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny-t3")
    parser.add_argument("--size", type=int, default=3660)
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args()
    ways = [name for name, tiled in WAYS.items() if tiled() is not None] + ["ours"]
    with ExitStack() as stack:
        calls = {}
        for way, precision in product(ways, ("fp32", "bf16")):
            process = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
            calls[f"{way} {precision}"] = partial(process.submit, cost, way, precision, args.model, args.size)
        taken = alternately(calls, args.repeats, cost_of=lambda call: call().result())
    rows = []
    for name, turns in taken.items():
        c, theirs = median(turns), taken[f"peer {name[-4:]}"]
        rows.append(
            {
                "way": name,
                "wall_s": c.wall,
                "cpu_s": c.cpu,
                "peak_mb": c.peak_mb,
                **{f"{what}_ratio": ratio(theirs, turns, measure) for what, measure in MEASURES.items()},
                "wall_as_used": ratio(taken["peer fp32"], turns),
            }
        )
    report("against_peer", rows)


if __name__ == "__main__":
    main()
