"""Two pictures with a slider: what is in the page."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from odc.geo.geobox import GeoBox
from results import CLASSES, DEGREES, NORTH, pixels, result

from xgfm.errors import CubeError, GridError
from xgfm.figures import EMPTY, swipe

Image = pytest.importorskip("PIL.Image")


class Page(HTMLParser):
    """Tags and texts of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts += [data.strip()] if data.strip() else []

    @property
    def pictures(self) -> list[np.ndarray]:
        sources = [str(attrs["src"]) for tag, attrs in self.tags if tag == "img"]
        files = [io.BytesIO(base64.b64decode(source.partition("base64,")[2])) for source in sources]
        return [np.asarray(Image.open(file))[..., :3] for file in files]


def expected(values: np.ndarray) -> np.ndarray:
    table = {255: EMPTY, **{i: c.color for i, c in enumerate(CLASSES)}}
    return np.array([[[int(table[v][i : i + 2], 16) for i in (1, 3, 5)] for v in row] for row in values])


def later() -> xr.Dataset:
    made = result()
    changed = made.crop_v1_0.copy(data=pixels(NORTH.shape, seed=5)).assign_attrs(long_name="Crops, later")
    return made.assign(crop_v1_0=changed)


def test_both_pictures_are_in_the_page_and_nothing_else_is_needed() -> None:
    before = result().assign_attrs(dates=["2024-04-03T17:00"])
    page = Page(swipe(before, later()).html)
    first, second = page.pictures
    np.testing.assert_array_equal(first, expected(pixels(NORTH.shape)))
    np.testing.assert_array_equal(second, expected(pixels(NORTH.shape, seed=5)))
    assert page.texts == ["Crops, 2024-04-03", "Crops, later", *(c.name for c in CLASSES), "no data"]
    links = [value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href")]
    assert all(str(link).startswith("data:image/png") for link in links)
    (slider,) = [attrs for tag, attrs in page.tags if tag == "input"]
    assert slider["type"] == "range"  # which keys move as well
    assert slider["aria-label"] == "Crops, 2024-04-03 to the left, Crops, later to the right"


def test_frames_of_a_cube_beside_a_map() -> None:
    values = np.random.default_rng(0).integers(200, 3000, (1, 3, *NORTH.shape)).astype("int16")
    cube = xr.DataArray(
        values, dims=("time", "band", "y", "x"), coords={"time": [np.datetime64("2024-06-01", "ns")],
        "band": ["red", "green", "blue"], **{n: result()[n] for n in ("y", "x", "spatial_ref")}},
    )  # fmt: skip
    for frame in (cube, cube.isel(time=0)):
        page = Page(swipe(frame, result()).html)
        assert page.texts[0] == "2024-06-01"
        order = np.corrcoef(page.pictures[0][..., 0].ravel(), values[0, 0].ravel())[0, 1]
        assert order > 0.99
    with pytest.raises(CubeError, match=r"2 time steps; a swipe shows one frame, choose with \.isel\(time=\[0\]\)"):
        swipe(xr.concat([cube, cube], "time"), result())


def test_names_cannot_break_the_page() -> None:
    nasty = '"><script>alert(1)</script>'
    evil = result()
    evil.crop_v1_0.attrs |= {"class_names": [nasty, "<b>", "&amp;"], "long_name": nasty}
    for made in (swipe(evil, result(), names=(nasty, "")), swipe(evil, result())):
        page = Page(made.html)
        assert {tag for tag, _ in page.tags} <= {"div", "span", "img", "input"}
        assert nasty in page.texts
        assert "&amp;" in page.texts


def test_it_is_saved_as_a_page(tmp_path: Path) -> None:
    made = swipe(result(), later())
    path = made.save(tmp_path / "swipe.html")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert made._repr_html_() in text


def test_two_resolutions_of_one_place() -> None:
    half = GeoBox((35, 45), NORTH.affine * NORTH.affine.scale(2), NORTH.crs)
    page = Page(swipe(result(half), result()).html)
    assert [p.shape for p in page.pictures] == [(35, 45, 3), (70, 90, 3)]


def test_what_cannot_be_swiped() -> None:
    with pytest.raises(GridError, match="two pictures of one place"):
        swipe(result(), result(DEGREES))
    with pytest.raises(GridError, match="two pictures of one place"):
        swipe(result(), result().isel(x=slice(5, None)))
    with pytest.raises(CubeError, match=r"shows one map of classes \(y, x\)"):
        swipe(result(), result(times=2))
    with pytest.raises(CubeError, match="no flag_values"):
        swipe(result(probability=True).probability[0], result())
