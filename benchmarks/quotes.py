"""Quote against actual: bytes, windows and device seconds of three small jobs over simulated seasons.

One job on the UTM grid of its tile, one on an Albers grid over two zones whose tiles overlap, one on native tiles. The
rate is measured by the quote; then the job is run, and what it took stands beside what was quoted. Both on one thread:
on a processor, reading ahead would take time from the device, which it does not take from a GPU.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distributed import Client
from harness import report

import xgfm
from xgfm.cube.catalogs import load_items, save_items
from xgfm.cube.simulate import Season, simulate_season

ZONES = ("T15UXV", "T16UBE")
"""Tiles of two zones whose simulated windows share ground."""


def jobs(folder: Path, size: int, block: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield names and specs."""
    one = simulate_season(folder / "one", seed=1, shape=(size, size), granules=8)
    two = [simulate_season(folder / tile, seed=2, shape=(size, size), tile=tile, granules=8) for tile in ZONES]
    both = folder / "both.json"
    save_items([item for season in two for item in sized(season)], both)
    save_items(sized(one), one.items)
    common = {"task": "crop-demo", "block": block, "chunk": block // 2}
    middle = {**common, "region": shrunk(one, block), "period": one.datetime, "catalog": str(one.items)}
    boxes = zip(*(shrunk(season, block) for season in two), strict=True)
    west, south, east, north = (edge(values) for edge, values in zip((min, min, max, max), boxes, strict=True))
    wide = {**common, "region": [west, south, east, north], "period": two[0].datetime, "catalog": str(both)}
    yield "utm", {**middle, "grid": {"crs": "EPSG:32615", "resolution": 30.0}}
    yield "albers", {**wide, "grid": {"crs": "EPSG:5070", "resolution": 30.0}}
    yield "native", {**wide, "grid": "native"}


def sized(season: Season) -> list[dict[str, Any]]:
    """The items of a season, with what the file and projection extensions say of files that are part of a tile."""
    items = load_items(season.items)
    for item in items:
        item["properties"]["proj:transform"] = list(season.geobox.transform)[:6]
        item["properties"]["proj:shape"] = list(season.geobox.shape)
        for asset in item["assets"].values():
            asset["file:size"] = Path(asset["href"]).stat().st_size
    return items


def shrunk(season: Season, block: int) -> list[float]:
    """A box in the middle of a season: blocks that it touches have pixels everywhere, as in tiles that are whole."""
    west, south, east, north = season.bbox
    margin = (block + 32) / max(season.geobox.shape)
    width, height = margin * (east - west), margin * (north - south)
    return [west + width, south + height, east - width, north - height]


def one(store: Path, spec: dict[str, Any], rate: float | None) -> dict[str, Any]:
    """Quote and run a job; return both."""
    job = xgfm.open_job(xgfm.JobSpec(**spec, store=str(store)))
    with Client(processes=False, n_workers=1, threads_per_worker=1, memory_limit=0, dashboard_address=":0") as client:
        quoted = job.quote(client, rate=rate, measure=rate is None)
        outcome = job.run(client, progress=False)
    assert outcome.complete, outcome
    taken = quoted.against(job.ledger.entries())
    row: dict[str, Any] = {"blocks": quoted.blocks}
    for name, value in taken.ratios.items():
        row |= {f"{name}_quoted": getattr(quoted, name), f"{name}_taken": getattr(taken, name), f"{name}_ratio": value}
    return {**row, "windows_per_s": quoted.rate, "wall_s": outcome.seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1024, help="rows and columns of a simulated window")
    parser.add_argument("--block", type=int, default=256)
    parser.add_argument("--rate", type=float, help="windows per second, instead of measuring it")
    parser.add_argument("--keep", type=Path, help="folder for seasons, stores and reports")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = args.keep or Path(made)
        rows = []
        for name, spec in jobs(folder, args.size, args.block):
            rows.append({"job": name, **one(folder / f"{name}.zarr", spec, args.rate)})
    report("quotes", rows)


if __name__ == "__main__":
    main()
