"""How fast training samples are read: from a store of chips, and by the ways that are usual elsewhere.

    OMP_NUM_THREADS=1 python benchmarks/loader.py --model v1-100m-t3

A sample is 224 x 224 pixels of three frames and six bands, int16, with its label. All ways read the same chips in the
same random order, take turns in one process, and return one array of the batch; the files are in the page cache. With
``--model`` an encoder of published size is then trained from random weights, to see which share of a step it waits.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import dask
import numpy as np
import torch
import xarray as xr
import zarr
from harness import CASES, Cost, alternately, cube, geobox, median, pixels, report, task

from xgfm.cf import class_flags
from xgfm.grid import with_grid
from xgfm.models.spec import ClassInfo, to_json
from xgfm.train.chips.chips import Chips, write_chips
from xgfm.train.chips.loader import Batches
from xgfm.train.loop.trainer import train
from xgfm.train.settings import TrainSettings

SIZE, FRAMES = 224, 3
CLASSES = tuple(ClassInfo(f"class {k}", "#000000") for k in range(13))
MB_OF_SAMPLE = SIZE**2 * (FRAMES * 6 * 2 + 1) / 1e6


@dataclass(frozen=True)
class Data:
    """The same pixels as a cube on disk and as chips."""

    chips: Chips
    lazy: xr.Dataset
    """Image and label, each part of them a Dask task."""
    direct: xr.Dataset
    """Image and label, read by xarray when they are indexed."""
    rows: np.ndarray
    columns: np.ndarray
    batch: int


def write_data(folder: Path, across: int, batch: int) -> Data:
    """Write a cube of ``across`` by ``across`` chips in inner chunks of 512 pixels, zstd, and cut it."""
    side = across * SIZE
    image = cube(pixels(FRAMES, side, side))
    codes = (np.arange(side)[:, None] // 40 + np.arange(side) // 40) % len(CLASSES)
    label = xr.DataArray(codes.astype("uint8"), dims=("y", "x"), attrs=class_flags(CLASSES))
    both = xr.Dataset({"image": image, "label": with_grid(label, geobox(side, side))})
    both = both.assign_coords(band=both["band"].astype(object))  # fixed-length text has no place in Zarr v3
    layout = {"image": (1, 1, 512, 512), "label": (512, 512)}
    encoding = {name: {"chunks": chunks, "grid_mapping": "spatial_ref"} for name, chunks in layout.items()}
    both.to_zarr(folder / "cube.zarr", consolidated=False, encoding=encoding)
    opened = {"consolidated": False, "decode_coords": "all", "mask_and_scale": False}
    lazy = xr.open_zarr(folder / "cube.zarr", **opened)
    split = {"block": SIZE * 30.0, "buffer": 0.0, "shares": (0.8, 0.1, 0.1)}
    chips = write_chips(lazy["image"], lazy["label"], folder / "chips.zarr", size=SIZE, **split)
    places = chips.dataset()
    rows, columns = (places[name].values for name in ("row", "column"))
    return Data(chips, lazy, xr.open_zarr(folder / "cube.zarr", chunks=None, **opened), rows, columns, batch)


def random_chips(data: Data) -> Callable[[], np.ndarray]:
    """Return what draws the training chips of the next batch: the same ones for every way."""
    steps, batches = count(), Batches(data.chips, "train", data.batch, 0, augment=False)
    return lambda: batches.indexes(next(steps))


def ways(data: Data) -> dict[str, Callable[[], Any]]:
    """Return the ways to read a batch, by name."""
    group = zarr.open_group(data.chips.path, mode="r")
    return {
        "chips": partial(_by_chips, data, random_chips(data)),
        "chips, flipped and turned": partial(_by_batches, Batches(data.chips, "train", data.batch, 0), count()),
        "the same store by zarr": partial(_by_zarr, group, random_chips(data)),
        "cube by xarray": partial(_by_xarray, data, random_chips(data)),
        "cube by dask": partial(_by_dask, data, random_chips(data)),
        "cube by xbatcher": partial(_by_xbatcher, data, _batcher(data.lazy), random_chips(data)),
    }


def _by_chips(data: Data, draw: Callable[[], np.ndarray]) -> Any:
    return data.chips.read(draw())


def _by_batches(batches: Batches, steps: Any) -> Any:
    return batches.at(next(steps))


def _by_zarr(group: zarr.Group, draw: Callable[[], np.ndarray]) -> Any:
    """One chip after the other: zarr's selection of several scattered ones is far slower."""
    numbers = draw()
    return [np.stack([np.asarray(group[name][k]) for k in numbers]) for name in ("image", "label")]


def _windows(data: Data, source: xr.Dataset, numbers: np.ndarray) -> list[xr.Dataset]:
    return [
        source.isel(y=slice(data.rows[k], data.rows[k] + SIZE), x=slice(data.columns[k], data.columns[k] + SIZE))
        for k in numbers
    ]


def _by_xarray(data: Data, draw: Callable[[], np.ndarray]) -> Any:
    parts = _windows(data, data.direct, draw())
    return [np.stack([part[name].values for part in parts]) for name in ("image", "label")]


def _by_dask(data: Data, draw: Callable[[], np.ndarray]) -> Any:
    parts = _windows(data, data.lazy, draw())
    return [np.stack(dask.compute(*(part[name].data for part in parts))) for name in ("image", "label")]


def _batcher(cube: xr.Dataset) -> Any:
    import xbatcher

    sizes = {"time": FRAMES, "band": 6, "y": SIZE, "x": SIZE}
    return xbatcher.BatchGenerator(cube[["image", "label"]], input_dims=sizes)


def _by_xbatcher(data: Data, grid: Any, draw: Callable[[], np.ndarray]) -> Any:
    across = data.lazy.sizes["x"] // SIZE
    parts = [grid[int(data.rows[k] // SIZE * across + data.columns[k] // SIZE)].load() for k in draw()]
    return [np.stack([part[name].values for part in parts]) for name in ("image", "label")]


def check_same(calls: Mapping[str, Callable[[], Any]]) -> None:
    """Refuse to compare ways that do not read the same."""
    read = {name: call() for name, call in calls.items() if "flipped" not in name}
    expected = read["chips"]
    for name, (image, label) in ((name, both[:2]) for name, both in read.items()):
        if not (np.array_equal(image, expected.image) and np.array_equal(label, expected.label)):
            raise RuntimeError(f"{name} reads other samples")


def waiting(data: Data, case: str, folder: Path, steps: int, batch: int, device: str) -> dict[str, Any]:
    """Train an encoder of published size for a few steps; return medians over them, but for the first."""
    model = task(case).spec
    spec = replace(model, statistics=model.model.statistics, classes=CLASSES, window=SIZE)
    settings = TrainSettings(
        chips=data.chips.path,
        folder=str(folder / case),
        base={"kind": "task", "spec": to_json(spec)},
        method="scratch",
        steps=steps,
        every=steps,
        batch_size=batch,
        device=device,
    )
    history = train(settings).history.iloc[1:]
    return {
        "training": case,
        "samples/s": float(history["samples_per_second"].median()),
        "data_wait": float(history["data_wait"].mean()),
        "worst": float(history["data_wait"].max()),
    }


def row(name: str, cost: Cost, samples: int, slowest: float) -> dict[str, Any]:
    """Return a line of the table."""
    rate = samples / cost.wall
    return {
        "way": name,
        "samples/s": rate,
        "samples/cpu-s": samples / cost.cpu if cost.cpu else float("nan"),
        "MB/s": rate * MB_OF_SAMPLE,
        "times the slowest": rate / slowest,
    }


def main() -> None:
    """Write, read in turn, train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--across", type=int, default=10, help="chips along each side of the cube")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", choices=list(CASES), help="train this one too")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--model-batch", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        data = write_data(Path(place), options.across, options.batch)
        calls = ways(data)
        check_same(calls)
        costs = {name: median(taken) for name, taken in alternately(calls, options.repeats).items()}
        slowest = min(options.batch / cost.wall for cost in costs.values())
        rows = [row(name, cost, options.batch, slowest) for name, cost in costs.items()]
        trained = []
        if options.model:
            batch, steps = options.model_batch, options.steps
            trained = [waiting(data, options.model, Path(place), steps, batch, options.device)]
            report("waiting", trained, options.device)
        report("loader", rows, options.device)


if __name__ == "__main__":
    main()
