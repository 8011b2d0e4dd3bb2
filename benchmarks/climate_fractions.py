"""Time and peak memory of class fractions on a climate grid, by size of the map.

A block of the map becomes a few sums, so the peak is that of the blocks under way. Maps are stores on disk, of fields
of 13 classes; each size runs in a process of its own. (A file called fractions.py would hide Python's own module.)
"""

from __future__ import annotations

import argparse
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from affine import Affine
from harness import TILE, measure, report
from odc.geo.geobox import GeoBox

from xgfm import cf
from xgfm.climate.fractions import cell_sums, to_climate
from xgfm.grid import tile_geobox, with_grid
from xgfm.models.spec import ClassInfo
from xgfm.store.write import to_zarr

CLASSES = tuple(ClassInfo(f"class {number}", f"#{number:06x}") for number in range(13))
FIELD = 25
"""Rows and columns of a field."""


def fields(block: np.ndarray, block_info: dict[Any, Any]) -> np.ndarray:
    """Return fields that depend on the place of the block alone, some of them missing."""
    (top, _), (left, _) = block_info[0]["array-location"]
    rng = np.random.default_rng([top, left])
    rows, columns = block.shape
    small = rng.integers(0, 14, (rows // FIELD + 1, columns // FIELD + 1)).astype("uint8")
    small[small == 13] = cf.NODATA
    return small.repeat(FIELD, 0).repeat(FIELD, 1)[:rows, :columns]


def class_map(side: int, chunk: int, *, probability: bool) -> xr.Dataset:
    """Return a lazy map of side x side pixels of 30 m that begins at a tile's corner."""
    corner = tile_geobox(TILE).transform
    box = GeoBox((side, side), Affine(30, 0, corner.c, 0, -30, corner.f), "EPSG:32615")
    nothing = da.zeros((side, side), dtype="uint8", chunks=chunk)
    codes = da.map_blocks(fields, nothing, dtype="uint8", meta=np.empty((0, 0), "uint8"))
    made = xr.Dataset({"crops": (("y", "x"), codes, cf.class_flags(CLASSES))})
    if probability:
        numbers = np.arange(13, dtype="uint8")[:, None, None]
        sure = da.where(codes[None] == cf.NODATA, np.nan, da.where(codes[None] == numbers, 0.88, 0.01)).astype(
            "float32"
        )
        made["probability"] = (("class", "y", "x"), sure.rechunk({0: -1}))
    return with_grid(made, box)


def fractions(path: str, grid: str) -> tuple[float, float, float, int, float]:
    """Return what the fractions of a store take: wall and CPU seconds, peak in MB, tasks, km2 with a class."""
    small = xr.open_zarr(path, mask_and_scale=False).isel(y=slice(64), x=slice(64))
    to_climate(small, grid).compute()  # what is imported and looked up once
    tasks = len(dict(cell_sums(path, grid).area.__dask_graph__()))
    found: list[xr.Dataset] = []
    cost = measure(lambda: found.append(to_climate(path, grid).compute()))
    area = float((found[0]["valid_area_fraction"] * found[0]["cell_area"]).sum()) / 1e6
    return cost.wall, cost.cpu, cost.peak_mb, tasks, area


def main() -> None:
    """Measure each size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[3660, 9150, 18300, 36600])
    parser.add_argument("--chunk", type=int, default=1220, help="rows and columns of a shard of the store")
    parser.add_argument("--grid", default="0.05deg")
    parser.add_argument("--probability", action="store_true", help="with the probabilities of 13 classes")
    parser.add_argument("--folder", type=Path, help="where the stores are written; a temporary one by default")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for side in options.sides:
            path = f"{folder}/map-{side}.zarr"
            with dask.config.set(scheduler="threads"):
                to_zarr(class_map(side, options.chunk, probability=options.probability), path)
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                wall, cpu, peak, tasks, area = pool.submit(fractions, path, options.grid).result()
            rows.append(
                {
                    "side": side,
                    "Mpixel": side**2 / 1e6,
                    "wall_s": wall,
                    "cpu_s": cpu,
                    "peak_MB": peak,
                    "Mpixel_per_s": side**2 / 1e6 / wall,
                    "tasks": tasks,
                    "area_km2": area,
                }
            )
            print(rows[-1], flush=True)
    report("climate_fractions", rows)


if __name__ == "__main__":
    main()
