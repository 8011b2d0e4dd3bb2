"""Blocks of a job on the map: outcomes of the ledger, outlines of the plan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_jobs
from shapely.geometry import shape

from xgfm.jobs.job import Job
from xgfm.store.ledger import Entry
from xgfm.viewer import blocks as module
from xgfm.viewer.blocks import Blocks

WINDOW = (1024, 1216, 256, 320)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    tmp_path = tmp_path_factory.mktemp("job")
    task = small_jobs.task_folder(tmp_path / "task")
    items = small_jobs.season(tmp_path, window=WINDOW, dates=small_jobs.DATES[::2])
    made = small_jobs.job(tmp_path, items, task, grid="native", region=small_jobs.region_of("15TVM", WINDOW))
    named = [block.id for block in made.plan().blocks()]
    for name in named[:3]:
        made.ledger.record(Entry(name, "done"))
    made.ledger.record(Entry(named[3], "failed", reason="the server said no"))
    return made


EVERYWHERE = (-180.0, -85.0, 180.0, 85.0)


def test_blocks_have_the_outcomes_of_the_ledger_and_the_outlines_of_the_plan(job: Job) -> None:
    plan, found = job.plan(), Blocks(job.spec.store).geojson(EVERYWHERE)["features"]
    work = {block.id: block for block in plan.blocks()}
    named = {
        plan.area(f["properties"]["area"]).at(f["properties"]["row"], f["properties"]["column"]).id: f for f in found
    }
    assert set(named) == set(work)
    for name, feature in named.items():
        outline = plan.geobox(work[name]).geographic_extent.geom
        both = shape(feature["geometry"])
        assert both.symmetric_difference(outline).area < 1e-3 * outline.area
    outcomes = {name: feature["properties"]["outcome"] for name, feature in named.items()}
    in_order = [outcomes[name] for name in work]
    assert in_order == ["done"] * 3 + ["failed"] + ["missing"] * (len(work) - 4)


def counted(blocks: Blocks) -> dict[str, int]:
    return {each["outcome"]: each["blocks"] for each in blocks.geojson(EVERYWHERE)["counts"]}


def test_counts_and_reasons(job: Job) -> None:
    blocks = Blocks(job.spec.store)
    assert blocks.there
    assert (counted(blocks)["done"], counted(blocks)["failed"]) == (3, 1)
    first, *_, failed = [job.plan().block(e.block) for e in job.ledger.entries()]
    failed = next(job.plan().block(e.block) for e in job.ledger.entries() if e.outcome == "failed")
    assert blocks.reason(failed.area, failed.row, failed.column) == "the server said no"
    assert blocks.reason(first.area, first.row, first.column) is None


def test_a_running_job_can_be_watched(job: Job) -> None:
    blocks = Blocks(job.spec.store)
    before = counted(blocks)
    missing = next(b for b in job.plan().blocks() if b.id not in job.ledger.done() | job.ledger.failed())
    job.ledger.record(Entry(missing.id, "done"))
    after = counted(blocks)
    job.objects.delete(f"done/{missing.id}.json")
    assert (after["done"], after["missing"]) == (before["done"] + 1, before["missing"] - 1)


def test_only_the_blocks_in_view_are_told(job: Job) -> None:
    plan, blocks = job.plan(), Blocks(job.spec.store)
    whole = blocks.geojson(EVERYWHERE)["features"]
    one = next(iter(plan.blocks()))
    west, south, east, north = plan.geobox(one).geographic_extent.boundingbox.bbox
    part = blocks.geojson((west + (east - west) * 0.4, south + (north - south) * 0.4, east - (east - west) * 0.4,
                           north - (north - south) * 0.4))["features"]  # fmt: skip
    assert 1 <= len(part) < len(whole)
    assert (one.row, one.column) in {(f["properties"]["row"], f["properties"]["column"]) for f in part}
    assert blocks.geojson((10.0, 10.0, 11.0, 11.0))["features"] == []


def test_neighbours_become_one_where_there_are_many(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = Blocks(job.spec.store)
    single = blocks.geojson(EVERYWHERE)["features"]
    monkeypatch.setattr(module, "LISTED", 1)
    merged = blocks.geojson(EVERYWHERE)["features"]
    assert len(merged) < len(single)
    for outcome in ("done", "failed", "missing"):
        areas = [
            sum(shape(f["geometry"]).area for f in found if f["properties"]["outcome"] == outcome)
            for found in (single, merged)
        ]
        np.testing.assert_allclose(*areas, rtol=1e-3)
    assert sum(f["properties"]["blocks"] for f in merged) == len(single)


def test_a_store_without_a_job_has_no_blocks(tmp_path: Path) -> None:
    assert not Blocks(str(tmp_path / "map.zarr")).there
