"""What a plan costs by number of blocks: time, memory, and what each block and each item adds.

The catalogue is simulated: items as NASA's CMR-STAC serves them, of every MGRS tile of the region, ten to a block. They
are made one after the other, and the time of making them is measured alone and taken off. Each size is planned in a
process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import shapely
from harness import report, task

from xgfm.cube.items import ASSETS
from xgfm.errors import GridError
from xgfm.grid import tile_geobox
from xgfm.jobs.plan import Plan, load_plan, make_plan
from xgfm.jobs.region import to_degrees
from xgfm.jobs.spec import JobSpec
from xgfm.store.objects import Objects

BLOCK = 256
"""Pixels: small, so that 100,000 of them fit into one country."""
CENTRE = (0.0, 1_500_000.0)
"""Of the region, in EPSG:5070: the middle of the conterminous United States."""
CASE = "tiny-t3"
ITEMS_PER_BLOCK = 10


def bbox(blocks: int) -> tuple[float, float, float, float]:
    """Return the box in degrees inside a square of about so many blocks."""
    from odc.geo.crs import CRS

    half = math.sqrt(blocks) * BLOCK * 30 / 2 * 1.06  # the box in degrees fills less than the square
    x, y = CENTRE
    return to_degrees((x - half * 1.05, y - half * 0.75, x + half * 1.05, y + half * 0.75), CRS("EPSG:5070"))


def tiles_of(box: tuple[float, float, float, float]) -> list[str]:
    """Return the MGRS tiles that touch a box in degrees."""
    zones = range(int((box[0] + 180) // 6) + 1, int((box[2] + 180) // 6) + 2)
    bands = [b for i, b in enumerate("CDEFGHJKLMNPQRSTUVWX") if -80 + 8 * i <= box[3] and -72 + 8 * i >= box[1]]
    asked, found = shapely.box(*box), []
    for zone, band, column, row in product(zones, bands, "ABCDEFGHJKLMNPQRSTUVWXYZ", "ABCDEFGHJKLMNPQRSTUV"):
        try:
            grid = tile_geobox(name := f"{zone:02d}{band}{column}{row}")
        except GridError:
            continue
        inside = (zone - 1) * 6 - 180 < grid.geographic_extent.centroid.coords[0][0] < zone * 6 - 180
        if inside and shapely.box(*grid.geographic_extent.boundingbox.bbox).intersects(asked):
            found.append(name)
    return found


def items(tiles: list[str], count: int) -> Iterator[dict[str, Any]]:
    """Yield items as a catalogue does, by date and not by tile."""
    boxes = {tile: list(tile_geobox(tile).geographic_extent.boundingbox.bbox) for tile in tiles}
    first = np.datetime64("2015-01-01T17:00:00")
    for number in range(count):
        turn, place = divmod(number, len(tiles))
        tile, sensor = tiles[place], ("L30", "S30")[turn % 2]
        moment = first + np.timedelta64(turn * 86_400 * 3650 // (count // len(tiles) + 1), "s")
        text = str(moment)
        day = int((moment.astype("datetime64[D]") - moment.astype("datetime64[Y]")).astype(int)) + 1
        name = f"HLS.{sensor}.T{tile}.{text[:4]}{day:03d}T{text[11:].replace(':', '')}.v2.0"
        base = f"https://data.lpdaac.earthdatacloud.nasa.gov/lp-prod-protected/HLS{sensor}.020/{name}/{name}"
        keys = [*ASSETS[sensor].values(), "Fmask"]
        yield {
            "type": "Feature",
            "stac_version": "1.1.0",
            "id": name,
            "collection": f"HLS{sensor}_2.0",
            "bbox": boxes[tile],
            "geometry": None,
            "properties": {"datetime": f"{text}.000Z", "eo:cloud_cover": number % 100},
            "assets": {key: {"href": f"{base}.{key}.tif", "title": f"Download {key}"} for key in keys},
        }


def one(blocks: int) -> dict[str, Any]:
    """Plan one size, after a small one that imports everything, and return what it took."""
    if blocks > 50:
        one(50)
    box = bbox(blocks)
    tiles, count = tiles_of(box), blocks * ITEMS_PER_BLOCK
    handle = task(CASE)
    start, cpu = time.perf_counter(), time.process_time()
    made = sum(1 for _ in items(tiles, count))
    source, source_cpu = time.perf_counter() - start, time.process_time() - cpu
    with tempfile.TemporaryDirectory() as folder:
        spec = JobSpec(
            region=list(box), period="2015-01-01/2024-12-31", task=handle.spec.name, store=f"{folder}/out.zarr",
            grid={"crs": "EPSG:5070", "resolution": 30}, block=BLOCK, chunk=BLOCK,
        )  # fmt: skip
        objects = Objects(f"{spec.store}.job")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start, cpu = time.perf_counter(), time.process_time()
        make_plan(spec, items=items(tiles, count), objects=objects, handle=handle)
        planned = time.perf_counter() - start - source
        busy = time.process_time() - cpu - source_cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        again, states, lookup, work = reload(objects)
        stored = sum(len(objects.get(name)) for name in objects.names())
    total = sum(states.values())
    return {
        "blocks": total,
        "work": work,
        "items": made,
        "tiles": len(tiles),
        "plan_s": planned,
        "plan_cpu_s": busy,
        "cpu_us_per_item": busy / made * 1e6,
        "cpu_us_per_block": busy / work * 1e6,
        "peak_mb": peak / 1e3,
        "over_imports_mb": (peak - before) / 1e3,
        "load_s": again[0],
        "states_us_per_block": again[1] / total * 1e6,
        "lookup_us_per_block": lookup,
        "stored_mb": stored / 1e6,
    }


def reload(objects: Objects) -> tuple[tuple[float, float], dict[str, int], float, int]:
    """Return what loading, the states of all blocks, and one block's tiles and items take."""
    start = time.perf_counter()
    plan: Plan = load_plan(objects)
    loaded = time.perf_counter() - start
    start = time.process_time()
    states = plan.states()
    listed = time.process_time() - start
    some = [block for i, block in enumerate(plan.blocks()) if i < 1000]
    plan.tiles_of(some[0])
    start = time.process_time()
    for block in some:
        plan.tiles_of(block)
        plan.reads(block)
    return (loaded, listed), states, (time.process_time() - start) / len(some) * 1e6, states["work"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--one", type=int, help="plan this size alone and print it as JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one)))
        return
    rows = []
    for blocks in args.blocks:
        command = [sys.executable, __file__, "--one", str(blocks)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows.append(json.loads(said.splitlines()[-1]))
    report("plan_scale", rows)


if __name__ == "__main__":
    main()
