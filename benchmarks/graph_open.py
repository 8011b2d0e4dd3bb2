"""Graph of a year over one tile: how long `open_items` takes, how many tasks, how many bytes travel to the scheduler.

No pixel is read: 300 granules that exist as metadata only, six bands and the Fmask, chunks of 1024. Run with
``python benchmarks/graph_open.py``; the last line is the result as JSON.
"""

from __future__ import annotations

import datetime as dt
import json
import platform
import time
from typing import Any

import cloudpickle
import dask
import xarray as xr

from xgfm.cube.items import ASSETS
from xgfm.cube.open import open_items

ROOT = "https://data.lpdaac.earthdatacloud.nasa.gov/lp-prod-protected"


def item(number: int, tile: str) -> dict[str, Any]:
    """Return the item of one granule, as NASA's catalogue serves it."""
    sensor = "L30" if number % 3 == 0 else "S30"
    date = dt.datetime(2024, 1, 1, 17, 4, 39) + dt.timedelta(days=number * 1.21)
    name = f"HLS.{sensor}.T{tile}.{date:%Y%jT%H%M%S}.v2.0"
    folder = f"{ROOT}/HLS{sensor}.020/{name}"
    keys = [*ASSETS[sensor].values(), "Fmask"]
    return {
        "type": "Feature",
        "id": name,
        "properties": {"datetime": f"{date:%Y-%m-%dT%H:%M:%S}Z", "eo:cloud_cover": number % 100},
        "assets": {key: {"href": f"{folder}/{name}.{key}.tif"} for key in keys},
    }


def measure(items: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    """Build the cube, and say what its graph costs."""
    start = time.perf_counter()
    cube: xr.DataArray = open_items(items, **options)
    built = time.perf_counter() - start
    graph = cube.data.__dask_graph__()
    sent = len(cloudpickle.dumps(graph))
    start = time.perf_counter()
    (optimised,) = dask.optimize(cube.data)
    tasks = len(dict(optimised.__dask_graph__()))
    return {
        "steps": cube.sizes["time"],
        "chunks": cube.data.npartitions,
        "build_s": round(built, 2),
        "tasks_in_graph": len(dict(graph)),
        "tasks_after_optimising": tasks,
        "optimise_s": round(time.perf_counter() - start, 2),
        "pickled_bytes": sent,
    }


def main() -> None:
    """Print one line per way of opening, and all of them as JSON."""
    items = [item(number, "15TVM") for number in range(300)]
    open_items(items[:2], mask=None)  # imports are not part of the figures
    open_items(items[:2], mask=None, loader="odc")
    ways = {
        "stackstac": {"mask": None},
        "stackstac, masked": {},
        "odc": {"mask": None, "loader": "odc"},
        "odc, masked": {"loader": "odc"},
    }
    results = {name: measure(items, **options) for name, options in ways.items()}
    for name, figures in results.items():
        print(f"{name:18}", *(f"{key}={value:,}" for key, value in figures.items()))
    versions = {"python": platform.python_version(), "dask": dask.__version__}
    print(json.dumps({"items": 300, "bands": 6, "chunk": 1024, **versions, "results": results}))


if __name__ == "__main__":
    main()
