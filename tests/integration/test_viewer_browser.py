"""The map of `xgfm view` in a browser: what is seen, what is clicked, and that nothing comes from elsewhere."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import small_jobs
import xarray as xr
from odc.geo.geobox import GeoBox
from PIL import Image
from pyproj import Transformer
from results import CLASSES, NORTH, result

from xgfm.grid import with_grid
from xgfm.store.ledger import Entry
from xgfm.store.overviews import add_overviews
from xgfm.store.write import to_zarr
from xgfm.viewer import view

BOX = GeoBox((900, 1050), NORTH.affine, NORTH.crs)
FIELD = 150
"""Rows and columns of a field of the map: wide enough to be seen at every zoom."""
EMPTY = (232, 232, 232)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no browser: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Page:
    """A page that must stay without errors, and ask nobody else."""

    def __init__(self, browser: Any, url: str) -> None:
        self.problems: list[str] = []
        self.url = url
        self.page = browser.new_page(viewport={"width": 1100, "height": 750})
        self.page.on("console", lambda m: self.problems.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", self._asked)
        self.page.on("response", lambda r: self.problems.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        self.page.goto(url)
        self.wait()

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:")):
            self.problems.append(f"asked {request.url}")

    def wait(self) -> None:
        self.page.wait_for_selector('#map[aria-busy="false"]')

    def go(self, lon: float, lat: float, zoom: int) -> None:
        self.page.evaluate(f"page.map.setView([{lat}, {lon}], {zoom}, {{animate: false}})")
        self.wait()

    def at(self, lon: float, lat: float) -> tuple[int, int]:
        point = self.page.evaluate(f"page.map.latLngToContainerPoint([{lat}, {lon}])")
        return round(point["x"]), round(point["y"])

    def picture(self) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(self.page.screenshot())).convert("RGB"))

    def colour(self, lon: float, lat: float) -> tuple[int, ...]:
        x, y = self.at(lon, lat)
        return tuple(self.picture()[y, x].tolist())


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    pages: list[Page] = []

    def made(viewer: Any) -> Page:
        pages.append(Page(browser, viewer.url))
        return pages[-1]

    yield made
    for page in pages:
        page.page.close()
    assert [page.problems for page in pages] == [[] for _ in pages]


def fields(seed: int = 0, times: int = 0) -> np.ndarray:
    shape = (*((times,) if times else ()), BOX.shape[0] // FIELD, BOX.shape[1] // FIELD)
    return np.random.default_rng(seed).integers(0, 3, shape).astype("uint8").repeat(FIELD, -2).repeat(FIELD, -1)


def mapped(values: np.ndarray) -> xr.Dataset:
    times = values.shape[0] if values.ndim == 3 else 0
    made = result(BOX, chunks=(300, 300), probability=not times, times=times)
    lazy = da.from_array(values, chunks=(*((1,) if times else ()), 300, 300))
    return made.assign(crop_v1_0=made.crop_v1_0.copy(data=lazy))


def cube() -> xr.DataArray:
    values = np.zeros((1, 3, *BOX.shape), "int16")
    values[0, :, :, BOX.shape[1] // 2 :] = 3000  # black to the west, white to the east
    dims = {"time": np.array(["2024-06-01"], "datetime64[ns]"), "band": ["red", "green", "blue"]}
    array = xr.DataArray(da.from_array(values, chunks=(1, 3, 300, 300)), dims=("time", "band", "y", "x"), coords=dims)
    return with_grid(array.rename("hls").assign_attrs(nodata=-9999), BOX)


def degrees(row: float, column: float) -> tuple[float, float]:
    to_degrees = Transformer.from_crs(32615, 4326, always_xy=True)
    lon, lat = to_degrees.transform(*(BOX.affine * (column, row)))
    return lon, lat


def rgb(number: int) -> tuple[int, ...]:
    return tuple(bytes.fromhex(CLASSES[number].color[1:]))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("viewed") / "map.zarr"
    to_zarr(mapped(fields()), folder, chunk=100)
    add_overviews(folder)
    return folder


def middles() -> list[tuple[int, int]]:
    """Rows and columns in the middle of fields."""
    return [(r, c) for r in range(FIELD // 2, BOX.shape[0], FIELD) for c in range(FIELD // 2, BOX.shape[1], FIELD)]


def test_colours_on_the_screen_are_those_of_the_array_at_every_zoom(store: Path, opened: Any) -> None:
    with view(store) as viewer:
        page, values = opened(viewer), fields()
        for zoom in (9, 10, 11, 12, 14, 16):
            seen = 0
            centre = middles()[len(middles()) // 2]
            page.go(*degrees(*centre), zoom)
            picture = page.picture()
            for row, column in middles():
                x, y = page.at(*degrees(row + 0.5, column + 0.5))
                if 60 < x < 790 and 10 < y < 700:
                    assert tuple(picture[y, x].tolist()) == rgb(values[row, column])
                    seen += 1
            assert seen >= 1
        assert page.problems == []


def test_the_legend_hides_and_shows_classes(store: Path, opened: Any) -> None:
    with view(store) as viewer:
        page, values = opened(viewer), fields()
        places = {number: next(p for p in middles() if values[p] == number) for number in range(3)}
        page.go(*degrees(450, 525), 10)
        boxes = page.page.locator("#legend input")
        assert page.page.locator("#legend label").all_inner_texts() == [c.name for c in CLASSES]
        for number, place in places.items():
            boxes.nth(number).uncheck()
            page.wait()
            found = [page.colour(*degrees(*p)) for p in places.values()]
            assert found == [EMPTY if other == number else rgb(other) for other in places]
            boxes.nth(number).check()
            page.wait()
            assert page.colour(*degrees(*place)) == rgb(number)
        page.page.click("#none")
        page.wait()
        assert {page.colour(*degrees(*p)) for p in places.values()} == {EMPTY}
        page.page.click("#all")
        page.wait()
        assert [page.colour(*degrees(*p)) for p in places.values()] == [rgb(n) for n in places]


def test_a_click_shows_what_the_store_holds(store: Path, opened: Any) -> None:
    held = xr.open_zarr(store, mask_and_scale=False)
    with view(store) as viewer:
        page = opened(viewer)
        for row, column in middles()[::17]:
            page.go(*degrees(row + 0.5, column + 0.5), 15)
            page.page.mouse.click(*page.at(*degrees(row + 0.5, column + 0.5)))
            page.page.wait_for_selector(f".popup :text('row {row}, column {column}')")
            number = int(held.crop_v1_0[row, column])
            assert page.page.locator(".popup .value").inner_text() == CLASSES[number].name
            shares = page.page.locator(".popup table td:nth-child(2)").all_inner_texts()
            assert [s.strip() for s in shares] == [f"{v:.3f}" for v in held.probability[:, row, column].values]
            page.page.click(".leaflet-popup-close-button")


def test_areas_of_the_view_are_beside_the_legend(store: Path, opened: Any) -> None:
    with view(store) as viewer:
        page, values = opened(viewer), fields()
        page.page.wait_for_selector("#area-note:text('of what is in view')")
        shown = [float(t) for t in page.page.locator("#legend .km2").all_inner_texts()]
        np.testing.assert_allclose(shown, [(values == n).sum() * 900 / 1e6 for n in range(3)], rtol=0.02)
        row, column = middles()[0]
        page.go(*degrees(row, column), 17)
        shares = page.page.locator(f"#legend tr:nth-child({values[row, column] + 1}) .share")
        shares.filter(has_text="100.0 %").wait_for()


def test_numbers_have_a_scale_and_opacity_lets_the_ground_through(store: Path, opened: Any) -> None:
    with view(store) as viewer:
        page = opened(viewer)
        page.page.select_option("#layer", "probability")
        page.page.select_option("#number", "Open Water")
        page.wait()
        assert page.page.locator("#scale").inner_text().split() == ["0", "1"]
        assert page.page.locator("#classes").is_hidden()
        page.page.select_option("#layer", "crop_v1_0")
        page.wait()
        place = degrees(*middles()[0])
        solid = page.colour(*place)
        page.page.locator("#opacity").fill("0")
        assert solid != EMPTY
        assert page.colour(*place) == EMPTY


def test_dates_of_a_series_and_true_colours_underneath(tmp_path: Path, opened: Any) -> None:
    values = fields(seed=3, times=3)
    to_zarr(mapped(values), tmp_path / "map.zarr")
    to_zarr(cube(), tmp_path / "cube.zarr")
    with view(tmp_path / "map.zarr", under=tmp_path / "cube.zarr") as viewer:
        page = opened(viewer)
        row, column = next(p for p in middles() if len(set(values[:, p[0], p[1]].tolist())) > 1 and p[1] > 600)
        assert page.page.locator("#time-row").is_visible()
        for time in range(3):
            page.page.locator("#time").fill(str(time))
            page.page.locator("#time").dispatch_event("change")
            page.wait()
            assert page.page.locator("#time-name").inner_text() == ("2024-04-03", "2024-07-02", "2024-09-25")[time]
            assert page.colour(*degrees(row, column)) == rgb(values[time, row, column])
        page.page.click("#none")
        page.wait()
        assert page.colour(*degrees(row, column)) == (255, 255, 255)
        assert page.colour(*degrees(row, 225)) == (0, 0, 0)
        page.page.locator("#under").uncheck()
        assert page.colour(*degrees(row, column)) == EMPTY


def test_blocks_of_a_job_and_why_one_failed(tmp_path: Path, opened: Any) -> None:
    window = (1024, 1216, 256, 320)
    items = small_jobs.season(tmp_path, window=window, dates=small_jobs.DATES[::2])
    region = small_jobs.region_of("15TVM", window)
    job = small_jobs.job(tmp_path, items, small_jobs.task_folder(tmp_path / "task"), grid="native", region=region)
    blocks, area = list(job.plan().blocks()), job.plan().areas[0]
    result(area.geobox, chunks=(915, 915)).to_zarr(job.spec.store, group=area.group, zarr_format=3)
    for block in blocks[1:]:
        job.ledger.record(Entry(block.id, "done"))
    job.ledger.record(Entry(blocks[0].id, "failed", reason="the server said <b>no</b>"))
    with view(job.spec.store) as viewer:
        page = opened(viewer)
        assert f"done: {len(blocks) - 1}" in page.page.locator("#block-legend").inner_text()
        page.page.locator("#blocks").check()
        page.page.wait_for_selector("path.leaflet-interactive, #map path")
        assert page.page.locator("#map path").count() == len(blocks)
        box = job.plan().geobox(blocks[0]).geographic_extent.boundingbox
        lon, lat = (box.left + box.right) / 2, (box.bottom + box.top) / 2
        page.page.mouse.click(*page.at(lon, lat))
        page.page.wait_for_selector(f".popup :text('block {blocks[0].id}: failed, the server said <b>no</b>')")


def test_without_overviews_a_part_is_seen_and_a_hint(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from xgfm.viewer import tiles

    monkeypatch.setattr(tiles, "MOST", 300**2)
    with view(mapped(fields())) as viewer:
        page = opened(viewer)
        assert page.colour(*degrees(450, 525)) != EMPTY
        assert page.page.locator("#hint").is_hidden()
        page.page.evaluate("page.map.setZoom(page.map.getZoom() - 2, {animate: false})")
        assert "add_overviews" in page.page.locator("#hint").inner_text()
        page.page.wait_for_selector("#area-note:text('zoom in')")


def test_the_command_serves_until_it_is_interrupted(store: Path, opened: Any) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "from xgfm.cli import main; main()", "view", str(store), "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    found = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
    assert found is not None

    class Served:
        url = found[0]

    page = opened(Served)
    assert page.page.title() == "Crops - xgfm"
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
