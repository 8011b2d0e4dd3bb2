"""The local map: seconds to the first view, tiles a second for many readers at once, and what other readers give.

A store of 20,000 x 20,000 pixels, with overviews and without, is served by `xgfm view` in a process of its own. Where
there is a browser, the first view is what it shows; else the tiles of that view, six at once, as browsers ask. Tiles of
rio-tiler's readers, where it is installed, are compared with the class that pyproj finds at the middle of each pixel.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import dask.array as da
import numpy as np
import psutil
import xarray as xr
import zarr
from harness import geobox, report
from pyproj import Transformer

from xgfm.cf import class_flags
from xgfm.grid import with_grid
from xgfm.models.spec import ClassInfo
from xgfm.store.overviews import add_overviews
from xgfm.store.write import to_zarr
from xgfm.viewer.tiles import Atlas, tile_bounds

CLASSES = [ClassInfo(f"class {i}", f"#{i * 19:02x}{255 - i * 19:02x}80") for i in range(13)]
FIELD = 25
WORLD = 2 * np.pi * 6_378_137
NONE: dict[str, Any] = {"tiles": "", "median_s": "", "p95_s": "", "tiles_per_s": "", "peak_MB": "", "right": ""}


def write(folder: Path, size: int) -> dict[str, Path]:
    """Write a map of fields twice, with and without overviews."""

    def fields(block_info: Any = None) -> np.ndarray:
        (top, bottom), (left, right) = block_info[None]["array-location"]
        rng = np.random.default_rng([top, left])
        small = rng.integers(0, 13, (-(-(bottom - top) // FIELD), -(-(right - left) // FIELD)), "uint8")
        return small.repeat(FIELD, 0).repeat(FIELD, 1)[: bottom - top, : right - left]

    chunks = da.core.normalize_chunks(2048, (size, size))
    values = da.map_blocks(fields, chunks=chunks, dtype="uint8", meta=np.empty((0, 0), "uint8"))
    mapped = with_grid(xr.Dataset({"fields": (("y", "x"), values, class_flags(CLASSES))}), geobox(size, size))
    stores = {name: folder / f"{name}.zarr" for name in ("plain", "overviews")}
    to_zarr(mapped, stores["plain"])
    shutil.copytree(stores["plain"], stores["overviews"])
    add_overviews(stores["overviews"])
    return stores


@contextmanager
def served(store: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Serve a store as the command does; yield its address, and its process."""
    command = [sys.executable, "-c", "from xgfm.cli import main; main()", "view", str(store), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+/", process.stdout.readline())
        assert found is not None
        yield found[0], psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def first_view(url: str, size: int) -> tuple[str, float]:
    """Return how the first view was taken, and seconds until all of it is there."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None or find_spec("playwright") is None:
        return "first view, its tiles", tiles_of_view(url, size)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1200, "height": 800})
        start = time.perf_counter()
        page.goto(url)
        page.wait_for_selector('#map[aria-busy="false"]')
        seconds = time.perf_counter() - start
        chromium.close()
    return "first view in a browser", seconds


def tiles_of_view(url: str, size: int) -> float:
    """Return seconds for the page's facts and twelve tiles of its middle, six at once."""
    start = time.perf_counter()
    urlopen(f"{url}map.json").read()
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda tile: urlopen(f"{url}{tile}").read(), paths(9, 4, size)[:12]))
    return time.perf_counter() - start


def paths(zoom: int, side: int, size: int) -> list[str]:
    """Return tiles round the middle of the map."""
    x, y = middle_tile(zoom, size)
    places = [(x + i - side // 2, y + j - side // 2) for j in range(side) for i in range(side)]
    return [f"tiles/fields/{zoom}/{i}/{j}.png" for i, j in places]


def middle_tile(zoom: int, size: int) -> tuple[int, int]:
    box = geobox(size, size).geographic_extent.boundingbox
    lon, lat = (box.left + box.right) / 2, (box.bottom + box.top) / 2
    y = (1 - np.arcsinh(np.tan(np.radians(lat))) / np.pi) / 2
    return int((lon + 180) / 360 * 2**zoom), int(y * 2**zoom)


def crowd(url: str, size: int, clients: int, views: int) -> dict[str, Any]:
    """Let clients look at views of twelve tiles each, at zooms of their own, and time each tile."""

    def client(seed: int) -> list[float]:
        rng, taken = random.Random(seed), []
        for _ in range(views):
            for path in rng.sample(paths(rng.randint(7, 14), 4, size), 12):
                start = time.perf_counter()
                assert urlopen(url + path).status == 200
                taken.append(time.perf_counter() - start)
        return taken

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        taken = [t for one in pool.map(client, range(clients)) for t in one]
    wall = time.perf_counter() - start
    return {
        "tiles": len(taken),
        "median_s": float(np.median(taken)),
        "p95_s": float(np.percentile(taken, 95)),
        "tiles_per_s": len(taken) / wall,
    }


def readers(store: Path, repeats: int) -> list[dict[str, Any]]:
    """Compare tiles with the class at the middle of each pixel, and take their times."""
    atlas = Atlas(store)
    calls: dict[str, Callable[[int, int, int], np.ndarray]] = {
        "this viewer": lambda z, x, y: atlas.picture(atlas.layers["fields"], tile_bounds(z, x, y), (256, 256))
    }
    if find_spec("rio_tiler") is not None:
        from rio_tiler.experimental.zarr import ArrayReader
        from rio_tiler.io.xarray import XarrayReader

        plain = ArrayReader(zarr.open_array(store / "fields", mode="r"))
        whole = XarrayReader(atlas.base["fields"])
        calls["rio-tiler zarr.ArrayReader"] = lambda z, x, y: plain.tile(x, y, z).array.data[0]
        calls["rio-tiler XarrayReader"] = lambda z, x, y: whole.tile(x, y, z).array.data[0]
    rows = []
    for name, call in calls.items():
        right, seconds = [], []
        for zoom in (12, 13, 14, 15, 17):  # the map itself, at and beyond its resolution
            x, y = middle_tile(zoom, atlas.base.sizes["y"])
            for _ in range(repeats):
                start = time.perf_counter()
                drawn = call(zoom, x, y)
                seconds.append(time.perf_counter() - start)
            right.append(float((drawn == truth(store, zoom, x, y)).mean()))
        rows.append(
            {**NONE, "what": name, "tiles": len(seconds), "median_s": float(np.median(seconds)), "right": min(right)}
        )
    return rows


def truth(store: Path, zoom: int, x: int, y: int) -> np.ndarray:
    """Return the class at the middle of each pixel of a tile."""
    array: Any = zarr.open_array(store / "fields", mode="r")
    box, side = geobox(*array.shape), WORLD / 2**zoom
    offsets = (np.arange(256) + 0.5) / 256 * side
    east, north = np.meshgrid(x * side - WORLD / 2 + offsets, WORLD / 2 - y * side - offsets)
    xs, ys = Transformer.from_crs(3857, box.crs.epsg, always_xy=True).transform(east, north)
    rows = np.floor((ys - box.affine.f) / box.affine.e).astype(int)
    columns = np.floor((xs - box.affine.c) / box.affine.a).astype(int)
    part = array[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return part[rows - rows.min(), columns - columns.min()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=20_000, help="rows and columns of the map")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--views", type=int, default=3, help="of each client")
    parser.add_argument("--folder", type=Path, help="of the stores; what is there already is used")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        stores = {name: folder / f"{name}.zarr" for name in ("plain", "overviews")}
        if not stores["overviews"].exists():
            folder.mkdir(parents=True, exist_ok=True)
            stores = write(folder, given.size)
        rows = []
        for name, store in stores.items():
            with served(store) as (url, process):
                for turn in ("cold", "warm"):
                    how, seconds = first_view(url, given.size)
                    peak = process.memory_info().rss / 1e6
                    rows.append({"what": f"{name}: {how}, {turn}", **NONE, "median_s": seconds, "peak_MB": peak})
                if name == "overviews":
                    row = crowd(url, given.size, given.clients, given.views)
                    peak = process.memory_info().rss / 1e6
                    rows.append({"what": f"{given.clients} clients", **NONE, **row, "peak_MB": peak})
        rows += readers(stores["overviews"], 5)
        report("viewer", rows)


if __name__ == "__main__":
    main()
