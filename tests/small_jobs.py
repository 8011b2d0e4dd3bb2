"""Jobs of many small blocks over a few granules, for tests that run and break them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import small
import torch
import xarray as xr
import zarr
from granules import granule

from xgfm.cube.catalogs import save_items
from xgfm.cube.open import open_items
from xgfm.grid import tile_geobox
from xgfm.jobs.job import Job, open_job
from xgfm.jobs.planned import Plan
from xgfm.jobs.reading import PatientLoader, Tally
from xgfm.jobs.spec import JobSpec
from xgfm.models.build import build_task
from xgfm.models.folder import save_task

DATES = ("2024-04-10T17:04:39Z", "2024-05-12T17:04:39Z", "2024-06-13T17:04:39Z", "2024-07-15T17:04:39Z",
         "2024-08-16T17:04:39Z", "2024-09-17T17:04:39Z")  # fmt: skip
PERIOD = "2024-04-01/2024-09-30"


def task_folder(folder: Path, **changes: Any) -> Path:
    """Write a task of three frames and windows of 32 pixels that every process can load by its path."""
    spec = small.task(**changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build_task(spec)
    return save_task(module, spec, folder)


def season(
    folder: Path,
    *,
    tile: str = "15TVM",
    window: tuple[int, int, int, int] = (1000, 1200, 256, 320),
    dates: Sequence[str] = DATES,
    seed: int = 0,
    **options: Any,
) -> list[dict[str, Any]]:
    """Write granules of a part of a tile."""
    return [
        granule(folder, tile=tile, window=window, time=date, seed=seed + i, **options) for i, date in enumerate(dates)
    ]


def region_of(tile: str, window: tuple[int, int, int, int]) -> list[float]:
    """Return the box in degrees of the middle of a part of a tile: blocks that it touches are mapped whole."""
    row, column, rows, columns = window
    box = tile_geobox(tile)[row + 1 : row + rows - 1, column + 1 : column + columns - 1]
    return [float(v) for v in box.geographic_extent.boundingbox.bbox]


def job(folder: Path, items: Sequence[dict[str, Any]], task: Path, *, store: str = "map.zarr", **changes: Any) -> Job:
    """Return a planned job of blocks of 64 pixels."""
    catalog = folder / "items.json"
    save_items(items, catalog)
    kept: dict[str, Any] = {
        "period": PERIOD,
        "task": str(task),
        "store": store if "://" in store else str(folder / store),
        "catalog": str(catalog),
        "block": 64,
        "chunk": 32,
        "limits": {"attempts": 2, "read_seconds": 60.0},
    }
    made = open_job(JobSpec(**{**kept, **changes}))
    made.plan()
    return made


def whole(plan: Plan, area: str) -> xr.Dataset:
    """What `predict` gives for the cube of a whole area, lazily: the oracle of every run."""
    geobox = plan.area(area).geobox
    items = [item for tile in plan.tiles for item in plan_items(plan, tile) if area in ("map", tile)]
    # The loader of jobs: for tiles on the area's own lattice it gives what any other does.
    cube = open_items(items, geobox=geobox, mask=plan.spec.mask, loader=PatientLoader(Tally()), chunks=512)
    return plan.predict(plan.frames(cube))


def is_whole(job: Job) -> None:
    """Fail unless a store holds, bit for bit, what `predict` gives for the whole area, in every block with work."""
    plan = job.plan()
    for area in plan.areas:
        blocks = [block for block in plan.blocks() if block.area == area.name]
        rows = slice(min(b.rows.start for b in blocks), max(b.rows.stop for b in blocks))
        columns = slice(min(b.columns.start for b in blocks), max(b.columns.stop for b in blocks))
        expected = whole(plan, area.name).isel(y=rows, x=columns).compute(scheduler="threads")
        found = stored(job, area.group)
        assert set(found) == set(map(str, expected.data_vars))
        for block, (name, variable) in product(blocks, expected.data_vars.items()):
            part = variable.values[
                ...,
                block.rows.start - rows.start : block.rows.stop - rows.start,
                block.columns.start - columns.start : block.columns.stop - columns.start,
            ]
            np.testing.assert_array_equal(found[str(name)][..., block.rows, block.columns], part)


def plan_items(plan: Plan, tile: str) -> list[dict[str, Any]]:
    from xgfm.jobs.items import read_tile

    return list(read_tile(plan.objects, tile))


def stored(job: Job, group: str = "") -> dict[str, np.ndarray]:
    """Return every gridded array of a store's group, as it is stored."""
    root = zarr.open_group(job.spec.store, mode="r", path=group or None)
    return {
        name: array[...] for name, array in root.arrays() if (array.metadata.dimension_names or ())[-2:] == ("y", "x")
    }


def same_stores(one: Job, other: Job) -> None:
    """Fail unless two stores hold the same bits."""
    for area in one.plan().areas:
        mine, theirs = stored(one, area.group), stored(other, area.group)
        assert mine.keys() == theirs.keys()
        for name, values in mine.items():
            np.testing.assert_array_equal(values, theirs[name])


def digests(job: Job) -> dict[str, str | None]:
    """Return the digest of every block that is done."""
    return {entry.block: entry.digest for entry in job.ledger.entries(sorted(job.ledger.done()))}
