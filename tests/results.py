"""Results of predictions made by hand, on the contract of `predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from xgfm import cf
from xgfm.grid import with_grid
from xgfm.models.spec import ClassInfo, ModelSpec, Statistics, TaskSpec

NORTH = GeoBox((70, 90), Affine(30.0, 0, 399_960.0, 0, -30.0, 4_900_020.0), "EPSG:32615")
SOUTH = GeoBox((70, 90), Affine(30.0, 0, 199_980.0, 0, -30.0, -1_099_980.0), "EPSG:32619")
DEGREES = GeoBox((70, 90), Affine(0.00025, 0, -93.5, 0, -0.0003, 41.25), "EPSG:4326")
"""A geographic grid with pixels that are not square."""

CLASSES = (
    ClassInfo("Natural Vegetation", "#4e8c3b"),
    ClassInfo("Winter Wheat", "#a87000"),
    ClassInfo("Open Water", "#4d70a3"),
)


def spec(**changes: Any) -> TaskSpec:
    """Return the record of a three-class task of three frames."""
    statistics = Statistics((1000.0,) * 6, (500.0,) * 6)
    model = ModelSpec(
        name="m", title="m", patch_size=(1, 16, 16), frames=3, embed_dim=8, depth=1, num_heads=1, statistics=statistics
    )
    kept: dict[str, Any] = {"name": "crop-v1.0", "title": "Crops", "classes": CLASSES, "frames": 3}
    return TaskSpec(model=model, statistics=statistics, **{**kept, **changes})


def pixels(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return fields of 7 x 7 pixels of three classes, with a corner of nodata."""
    rng = np.random.default_rng(seed)
    fields = rng.integers(0, 3, (*shape[:-2], -(-shape[-2] // 7), -(-shape[-1] // 7))).astype("uint8")
    values = fields.repeat(7, -2).repeat(7, -1)[..., : shape[-2], : shape[-1]]
    values[..., :9, :11] = 255
    return values


def result(box: GeoBox = NORTH, *, chunks: Any = (32, 32), probability: bool = False, times: int = 0) -> xr.Dataset:
    """Return a lazy class map, with ``times`` a series of them, with ``probability`` what goes with it."""
    lead = (times,) if times else ()
    dims = (*(("time",) if times else ()), "y", "x")
    lazy = da.from_array(pixels((*lead, *box.shape)), chunks=(*((1,) if times else ()), *chunks))
    dataset = xr.Dataset({"crop_v1_0": (dims, lazy)})
    if times:
        dataset["time"] = np.array(["2024-04-03T17:01:02.345", "2024-07-02", "2024-09-25"], "datetime64[ns]")[:times]
    if probability:
        share = np.random.default_rng(1).random((3, *box.shape)).astype("float32")
        share[:, :9, :11] = np.nan
        dataset["probability"] = (("class", "y", "x"), da.from_array(share, chunks=(3, *chunks)))
    gridded = with_grid(dataset, box)
    return cf.like(gridded, gridded, spec(), {"task": "crop-v1.0", "frames": [{"dates": ["2024-04-03"]}]})


def noise() -> xr.Dataset:
    """Return a map of 1.2 MB that no codec makes small."""
    box = GeoBox((1200, 1000), NORTH.affine, NORTH.crs)
    values = np.random.default_rng(0).integers(0, 200, box.shape).astype("uint8")
    made = result(box, chunks=(300, 300))
    return made.assign(crop_v1_0=made.crop_v1_0.copy(data=da.from_array(values, chunks=300)))


def task_folder(folder: Path) -> Path:
    """Write a task of the simulated seasons' classes, with random weights, as `save_task` does."""
    import torch
    from small import task

    from xgfm.cube.phenology import CLASSES as COVERS
    from xgfm.models.build import build_task
    from xgfm.models.folder import save_task

    torch.manual_seed(0)
    record = task(name="crop-small", title="Random crops", classes=COVERS, demonstration=True)
    module = build_task(record)
    with torch.no_grad():
        for weights in module.parameters():
            weights += 0.2 * torch.randn_like(weights)  # enough to give several classes
    return save_task(module, record, folder)
