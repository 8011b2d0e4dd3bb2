"""Reports: every block is drawn where it is, nothing is fetched, and what failed is told with a way on."""

from __future__ import annotations

import re
from array import array
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import catalogue
import numpy as np
import pytest
import shapely
import toys
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from odc.geo.geobox import GeoBox

from xgfm.jobs.drawing import COLOURS, HEIGHT, WIDTH, map_of
from xgfm.jobs.lattice import Area, tile_area
from xgfm.jobs.plan import Plan, make_plan
from xgfm.jobs.quote import quote
from xgfm.jobs.report import LISTED, render
from xgfm.jobs.spec import JobSpec
from xgfm.jobs.summary import DONE, FAILED, OUTCOMES, PARTS, Summary
from xgfm.store.ledger import Entry
from xgfm.store.objects import Objects

UTM = "EPSG:32615"
REGION = shapely.box(-93.6, 45.4, -93.4, 45.5)
MISSING = OUTCOMES.index("missing")


class Page(HTMLParser):
    """Elements and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attrs: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.attrs += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def area_of(rows: int, columns: int, block: int = 64) -> Area:
    return Area("map", "", GeoBox((rows * block, columns * block), Affine(30, 0, 450_000, 0, -30, 5e6), UTM), block)


def drawn(svg: str) -> dict[str, float]:
    """Blocks of each outcome, as the shapes of its colour cover them."""
    found = {}
    for path, colour in re.findall(r'<path d="([^"]*)" fill="(#[0-9a-f]{6})"', svg):
        name = next(name for name, value in COLOURS.items() if value == colour)
        boxes = re.findall(r"M([\d.]+) ([\d.]+)H([\d.]+)V([\d.]+)H[\d.]+Z", path)
        found[name] = sum((float(r) - float(x)) * (float(b) - float(y)) for x, y, r, b in boxes)
    return found


@settings(deadline=None, max_examples=50)
@given(arrays("uint8", st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, len(OUTCOMES) - 1)))
def test_every_block_is_drawn_in_the_colour_of_its_outcome(outcomes: np.ndarray) -> None:
    area = area_of(*outcomes.shape)
    svg = map_of([area], {"map": outcomes}, REGION)
    counts = {name: float((outcomes == code).sum()) for code, name in enumerate(OUTCOMES)}
    assert drawn(svg) == {name: count for name, count in counts.items() if count}


def test_a_block_is_drawn_in_its_place() -> None:
    outcomes = np.full((3, 4), DONE, "uint8")
    outcomes[2, 1] = FAILED
    assert '<path d="M1 2H2V3H1Z" fill="#d55e00"' in map_of([area_of(3, 4)], {"map": outcomes}, REGION)
    assert "M1 2L2 3M2 2L1 3" in map_of([area_of(3, 4)], {"map": outcomes}, REGION)  # and crossed out


def test_a_hundred_thousand_blocks_stay_readable() -> None:
    area, outcomes = area_of(250, 400), np.full((250, 400), DONE, "uint8")
    outcomes[100, 100] = FAILED
    svg = map_of([area], {"map": outcomes}, REGION)
    assert len(svg) < 50_000
    (stroke,) = re.findall(r'fill="#d55e00" stroke="#d55e00" stroke-width="([\d.]+)"', svg)
    assert float(stroke) + min(WIDTH / 400, HEIGHT / 250) >= 5  # pixels of the one block that failed
    noise = np.random.default_rng(0).integers(0, len(OUTCOMES), (250, 400)).astype("uint8")
    assert len(map_of([area], {"map": noise}, REGION)) < 4_000_000


@pytest.mark.parametrize("tiles", [("15TVM", "15TVL", "15TWM"), ("01UAA", "60UYF")])
def test_tiles_lie_as_on_a_map(tiles: tuple[str, ...]) -> None:
    areas = [tile_area(tile, 1024) for tile in tiles]
    svg = map_of(areas, {a.name: np.full(a.shape, DONE, "uint8") for a in areas}, REGION)
    places = {name: (float(x), float(y)) for x, y, name in re.findall(r'<text x="(\d+)" y="(\d+)"[^>]*>(\w+)<', svg)}
    assert set(places) == set(tiles)
    if "15TVM" in tiles:  # L lies south of M, W east of V
        assert places["15TVL"][1] > places["15TVM"][1] + 50
        assert places["15TWM"][0] > places["15TVM"][0] + 50


def plan_of(folder: Path, **changes: Any) -> Plan:
    spec = {"region": [-93.6, 45.4, -93.4, 45.5], "period": "2024-04-01/2024-09-30", "task": "toy-task",
            "store": str(folder / "out.zarr"), "grid": {"crs": UTM, "resolution": 30}, "block": 128,
            "chunk": 64}  # fmt: skip
    made = JobSpec(**{**spec, **changes})
    return make_plan(
        made,
        items=catalogue.season(["15TVL", "15TVM"]),
        objects=Objects(folder / "job"),
        handle=toys.Handle(toys.task_spec()),
    )


def summary_of(plan: Plan, failed: list[Entry]) -> Summary:
    (area,) = plan.areas
    outcomes = plan.codes(area).copy()
    work = outcomes == MISSING
    outcomes[work] = DONE
    for entry in failed:
        block = plan.block(entry.block)
        outcomes[block.row, block.column] = FAILED
    summary = Summary({area.name: outcomes}, failed=failed)
    summary.seconds = {part: array("d", [1.0 + number] * int(work.sum())) for number, part in enumerate(PARTS)}
    summary.started, summary.ended = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 1, tzinfo=UTC)
    summary.windows, summary.bytes_read = 1000, 10**9
    return summary


def page(plan: Plan, summary: Summary) -> str:
    return render(plan, summary, quote(plan, rate=10.0, handle=toys.Handle(plan.task.spec)))


def test_a_complete_job(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    summary = summary_of(plan, [])
    said = page(plan, summary)
    words = " ".join(Page(said).words)
    assert f"All {summary.blocks} blocks are done." in words
    assert "Failed blocks" not in words
    assert [f"{share}%" in words for share in (10, 20, 30, 40)] == [True] * 4  # of 1, 2, 3 and 4 s
    assert str(tmp_path / "out.zarr") in words


def test_nothing_is_fetched_and_nothing_is_run(tmp_path: Path) -> None:
    said = page(plan_of(tmp_path), summary_of(plan_of(tmp_path / "b"), []))
    fetching = {"src", "href", "xlink:href", "data", "action", "poster", "srcset"}
    found = Page(said).attrs
    assert found
    assert not [each for each in found if each[1] in fetching or each[0] in ("script", "link", "iframe")]
    assert "url(" not in said
    assert "@import" not in said


def test_what_failed_is_listed_with_the_command_that_retries_it(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, store=str(tmp_path / "my map.zarr"))
    first, second, *_ = plan.blocks()
    reason = "ReadError: asset 'B04' of item 'x' </td><script>alert(1)</script> at https://h/f?sig=SECRET is broken"
    failed = [Entry(block.id, "failed", reason=reason, item="x", attempts=3) for block in (first, second)]
    said = page(plan, summary_of(plan, failed))
    words = " ".join(Page(said).words)
    assert "<script" not in said
    assert "SECRET" not in said
    assert "</td><script>" in words
    assert f"xgfm retry '{tmp_path}/my map.zarr' --failed" in words
    assert "Not complete." in words
    assert "2 failed" in words
    assert first.id in words


def test_of_very_many_failed_blocks_the_first_are_listed(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, block=16, chunk=16)
    failed = [
        Entry(block.id, "failed", reason="no") for block, _ in zip(plan.blocks(), range(LISTED + 7), strict=False)
    ]
    words = " ".join(Page(page(plan, summary_of(plan, failed))).words)
    assert "And 7 more" in words


def test_a_job_of_which_nothing_is_done(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    (area,) = plan.areas
    words = " ".join(Page(page(plan, Summary({area.name: plan.codes(area)}))).words)
    assert f"0 of {plan.states()['work']} blocks are done" in words
    assert "xgfm resume" in words
