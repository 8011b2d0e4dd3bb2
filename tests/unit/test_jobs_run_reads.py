"""Files of jobs: what a pixel is does not depend on what else is read; and the sinks that commit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import small_jobs
from affine import Affine
from distributed import Client
from granules import granule, read_own
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from xgfm.cube.files import Blocks, read_part
from xgfm.cube.items import normalise
from xgfm.cube.loaders import FMASK, REFLECTANCE, place
from xgfm.cube.open import open_items
from xgfm.errors import ReadError
from xgfm.grid import tile_geobox
from xgfm.jobs.reading import PatientLoader, Tally
from xgfm.jobs.run import run_plan

WINDOW = (1750, 900, 300, 300)


@pytest.fixture(scope="module")
def item(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return granule(tmp_path_factory.mktemp("granule"), tile="15TYK", window=WINDOW, missing=0.02)


@pytest.fixture(scope="module")
def grid(item: dict[str, Any]) -> GeoBox:
    """Albers, round the granule."""
    row, column, rows, columns = WINDOW
    box = tile_geobox("15TYK")[row : row + rows, column : column + columns].extent.to_crs("EPSG:5070").boundingbox
    left, top = round(box.left / 30) * 30, round(box.top / 30) * 30
    return GeoBox((330, 330), Affine(30, 0, left, 0, -30, top), "EPSG:5070")


def cube(item: dict[str, Any], geobox: GeoBox, chunks: int = 4096) -> Any:
    opened = open_items([item], geobox=geobox, mask=None, chunks=chunks, loader=PatientLoader(Tally()))
    return opened.compute(scheduler="threads")


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_a_warped_pixel_is_the_same_in_every_window(item: dict[str, Any], grid: GeoBox, data: st.DataObject) -> None:
    whole = cube(item, grid)
    top, left = (data.draw(st.integers(0, 280)) for _ in range(2))
    rows, columns = (data.draw(st.integers(20, 330 - start)) for start in (top, left))
    part = cube(item, grid[top : top + rows, left : left + columns], data.draw(st.integers(16, 200)))
    there = (..., slice(top, top + rows), slice(left, left + columns))
    np.testing.assert_array_equal(part.values, whole.values[there])
    np.testing.assert_array_equal(part.fmask.values, whole.fmask.values[there])


def test_a_warped_fmask_is_the_nearest_pixel(item: dict[str, Any], grid: GeoBox) -> None:
    """PROJ, pixel by pixel, is the oracle; GDAL may be an eighth of a pixel off."""
    found = cube(item, grid).fmask.values[0]
    own = read_own(item, ["Fmask"])[0]
    corner = tile_geobox("15TYK")[WINDOW[0] :, WINDOW[1] :].transform
    columns, rows = np.meshgrid(np.arange(330) + 0.5, np.arange(330) + 0.5)
    x, y = grid.transform * (columns, rows)
    x, y = Transformer.from_crs("EPSG:5070", "EPSG:32615", always_xy=True).transform(x, y)
    column, row = ~corner * (x, y)
    clear = (np.abs(column % 1 - 0.5) < 0.375) & (np.abs(row % 1 - 0.5) < 0.375)
    inside = (column >= 1) & (row >= 1) & (column < WINDOW[3] - 1) & (row < WINDOW[2] - 1)
    checked = clear & inside
    assert checked.sum() > 30_000
    expected = own[row.clip(0, WINDOW[2] - 1).astype(int), column.clip(0, WINDOW[3] - 1).astype(int)]
    np.testing.assert_array_equal(found[checked], expected[checked])
    assert (found[(column < -2) | (row < -2)] == 255).all()


def test_tiles_on_the_lattice_are_copied(item: dict[str, Any]) -> None:
    row, column, rows, columns = WINDOW
    grid = tile_geobox("15TYK")[row - 20 : row + rows + 30, column - 10 : column + columns + 5]
    found, usual = cube(item, grid, 100), open_items([item], geobox=grid, mask=None).compute()
    np.testing.assert_array_equal(found.values, usual.values)
    np.testing.assert_array_equal(found.fmask.values, usual.fmask.values)


def test_bytes_are_those_of_the_blocks_of_the_file(item: dict[str, Any]) -> None:
    record = normalise(item, bands=("blue",), fmask=True)
    row, column = WINDOW[:2]
    grid = tile_geobox("15TYK")[row : row + 300, column : column + 300]
    blocks = Blocks()
    source = place(record, "blue", grid)
    read_part(source, (0, 0, 200, 200), grid, REFLECTANCE, blocks)
    with rasterio.open(source.href) as file:
        sizes = {(i, j): file.block_size(1, i, j) for i in range(2) for j in range(2)}
    assert blocks.bytes == sizes[0, 0] > 0
    read_part(source, (100, 100, 200, 300), grid, REFLECTANCE, blocks)
    assert blocks.bytes == sizes[0, 0] + sizes[0, 1]  # none is counted twice
    assert sum(sizes.values()) <= Path(source.href).stat().st_size


def test_a_file_that_declares_no_nodata(item: dict[str, Any], tmp_path: Path, grid: GeoBox) -> None:
    record = normalise(item, bands=("blue",), fmask=True)
    source = place(record, "fmask", grid)
    bare = tmp_path / "bare.tif"
    with rasterio.open(source.href) as file:
        profile, pixels = {**file.profile, "nodata": None, "driver": "GTiff"}, file.read()
    with rasterio.open(bare, "w", **profile) as file:
        file.write(pixels)
    from dataclasses import replace

    part = (0, 0, 330, 330)
    expected = read_part(source, part, grid, FMASK, Blocks())
    np.testing.assert_array_equal(read_part(replace(source, href=str(bare)), part, grid, FMASK, Blocks()), expected)


def test_a_damaged_file_is_named(item: dict[str, Any], tmp_path: Path) -> None:
    broken = small_jobs.season(tmp_path, dates=small_jobs.DATES[:1])[0]
    asset = Path(broken["assets"]["B04"]["href"])
    asset.write_bytes(asset.read_bytes()[:3000])
    row, column, rows, columns = 1000, 1200, 256, 320
    grid = tile_geobox("15TVM")[row : row + rows, column : column + columns]
    with pytest.raises(ReadError, match=rf"asset 'B04' of item '{broken['id']}'"):
        cube(broken, grid)


def test_a_sink_that_commits(tmp_path: Path) -> None:
    """Blocks are recorded when a snapshot shows them, and the map is that of a plain store."""
    pytest.importorskip("icechunk", reason="icechunk is not installed")
    from xgfm.store.icechunk import IcechunkSink

    window = (1000, 1200, 160, 192)
    items, task = (
        small_jobs.season(tmp_path, window=window, dates=small_jobs.DATES[::2]),
        small_jobs.task_folder(tmp_path / "t"),
    )
    options = {"region": small_jobs.region_of("15TVM", window), "grid": {"crs": "EPSG:32615", "resolution": 30.0}}
    plain = small_jobs.job(tmp_path, items, task, store="plain.zarr", **options)
    plain.run(progress=False)
    job = small_jobs.job(tmp_path, items, task, store="snapshots", **options)
    sink = IcechunkSink(job.spec.store)
    with Client(processes=False, n_workers=1, threads_per_worker=2, memory_limit=0, dashboard_address=":0") as client:
        outcome = run_plan(job.plan(), client, sink=sink, progress=False)
        again = run_plan(job.plan(), client, sink=IcechunkSink(job.spec.store), progress=False)
    assert outcome.complete
    assert again.computed == 0
    assert small_jobs.digests(job) == small_jobs.digests(plain)
    import zarr

    stored = zarr.open_group(sink.open_for_reading(), mode="r")
    np.testing.assert_array_equal(stored["small_task"][...], small_jobs.stored(plain)["small_task"])
