"""The slider of a swipe, in a browser: left of it is the first picture, right of it the second."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results import CLASSES, result

from xgfm.figures import swipe

Image = pytest.importorskip("PIL.Image")
playwright = pytest.importorskip("playwright.sync_api", reason="a browser is driven by playwright")
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium on this machine")


@pytest.fixture
def page() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 700, "height": 700})
        browser.close()


def colors_seen(page: Any, places: list[float]) -> list[str]:
    """Return the colours in the middle row of the picture at shares of its width."""
    box = page.locator(".xgfm-swipe img").first.bounding_box()
    shot = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    row = round(box["y"] + box["height"] / 2)
    return ["#{:02x}{:02x}{:02x}".format(*shot[row, round(box["x"] + place * box["width"])]) for place in places]


def test_the_slider_parts_the_pictures(page: Any, tmp_path: Path) -> None:
    one, two = (result().map(lambda v, n=n: (v * 0 + n).astype("uint8"), keep_attrs=True) for n in (0, 2))
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(swipe(one, two).save(tmp_path / "swipe.html").as_uri())
    first, second = CLASSES[0].color, CLASSES[2].color
    places = [0.1, 0.45, 0.55, 0.9]
    assert colors_seen(page, places) == [first, first, second, second]

    slider = page.locator("input")
    box = slider.bounding_box()
    page.mouse.click(box["x"] + 0.2 * box["width"], box["y"] + box["height"] / 2)
    assert colors_seen(page, places) == [first, second, second, second]
    slider.press("End")
    assert colors_seen(page, places) == [first] * 4
    slider.press("Home")
    assert colors_seen(page, places) == [second] * 4
    assert said == []
