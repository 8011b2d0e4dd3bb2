"""Chips small enough to train on in a second: squares of three classes, or a number that depends on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import toys
import xarray as xr

from xgfm.cf import class_flags
from xgfm.grid import geobox_of, with_grid
from xgfm.models.spec import PRITHVI_BANDS
from xgfm.train.chips.chips import Chips, write_chips

SIZE, FRAMES = 32, 2
SPLITS = (*["train"] * 8, "val", "val", "test", "test")
"""Of the chips of `write_small_chips`, in their order."""


def field(kind: str = "segmentation", seed: int = 0, count: int = len(SPLITS)) -> tuple[xr.DataArray, xr.DataArray]:
    """Return a cube of ``count`` chips side by side, and labels that its pixels tell of.

    The first two rows have no label; four rows of the first chip are missing in one band of the first frame.
    """
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 3, (SIZE // 8, count * SIZE // 8)).repeat(8, 0).repeat(8, 1)
    values = (codes * 700 + rng.integers(0, 800, (FRAMES, 6, *codes.shape))).astype("int16")
    values[0, 0, 4:8, :SIZE] = -9999
    box = toys.geobox(*codes.shape)
    cube = xr.DataArray(
        values,
        dims=("time", "band", "y", "x"),
        coords={"time": np.array(toys.DATES[:FRAMES], "datetime64[ns]"), "band": list(PRITHVI_BANDS)},
        attrs={"nodata": -9999, "reflectance_scale": 1e-4},
        name="hls",
    ).chunk(time=1, y=16, x=64)
    cube = with_grid(cube, box)
    if kind == "regression":
        numbers = (codes * 50 + 100 + rng.normal(0, 3, codes.shape)).astype("float32")
        numbers[:2] = np.nan
        label = xr.DataArray(numbers, dims=("y", "x"), name="label", attrs={"units": "t ha-1"})
    else:
        known = codes.astype("uint8")
        known[:2] = 255
        classes = toys.task_spec().classes
        label = xr.DataArray(known, dims=("y", "x"), name="label", attrs=class_flags(classes))
    return cube, with_grid(label, geobox_of(cube))


def write_small_chips(path: Path, kind: str = "segmentation", seed: int = 0, count: int = len(SPLITS)) -> Chips:
    """Write chips, eight to train on, two to validate with, two to test with, in groups of two."""
    cube, label = field(kind, seed, count)
    return write_chips(cube, label, path, plan_of(label, count), size=SIZE)


def plan_of(label: xr.DataArray, count: int = len(SPLITS)) -> pd.DataFrame:
    """Return the plan of the chips of `field`."""
    columns = np.arange(count) * SIZE
    values = label.values
    classes = toys.task_spec().classes if values.dtype == "uint8" else ()
    counts = {
        f"n_{info.name}": [int((values[:, c : c + SIZE] == code).sum()) for c in columns]
        for code, info in enumerate(classes)
    } or {"n_labelled": [int(np.isfinite(values[:, c : c + SIZE]).sum()) for c in columns]}
    middle = SIZE // 2
    return pd.DataFrame(
        {
            "source": 0,
            "row": 0,
            "column": columns,
            "step": 0,
            "x": label.x.values[columns + middle],
            "y": float(label.y.values[middle]),
            "group": np.arange(count) // 2,
            "split": [SPLITS[k % len(SPLITS)] for k in range(count)],
            **counts,
        }
    )
