"""After a run: metadata, overviews, records; of an incomplete job the report alone; and all of it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import small_jobs
import xarray as xr
import zarr
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from small_jobs import region_of, season, task_folder
from stac_checks import check

from xgfm.grid import tile_geobox
from xgfm.jobs import finish
from xgfm.jobs.job import Job, open_job
from xgfm.jobs.lattice import tile_area
from xgfm.jobs.outcome import Outcome
from xgfm.jobs.outline import outline_of
from xgfm.jobs.quote import Quote
from xgfm.jobs.summary import DONE, OUTCOMES, summarise
from xgfm.store import overviews
from xgfm.store.overviews import coarser
from xgfm.store.sinks import open_sink

WINDOW = (1000, 1200, 160, 192)
UTM = {"crs": "EPSG:32615", "resolution": 30.0}


class Bench:
    """Granules and a task."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.items = season(folder / "granules", window=WINDOW, missing=0.02)
        for number, item in enumerate(self.items):
            item["links"] = [{"rel": "self", "href": f"https://host/items/{number}?sig=SECRET"}]
        self.task = task_folder(folder / "task")

    def job(self, store: str, **changes: Any) -> Job:
        kept = {"region": region_of("15TVM", WINDOW), "grid": UTM, **changes}
        return small_jobs.job(self.folder, self.items, self.task, store=store, **kept)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def complete(bench: Bench) -> tuple[Job, Outcome]:
    job = bench.job("complete.zarr", overviews=True)
    job.quote(rate=20.0)
    return job, job.run(progress=False)


def document(job: Job, name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(job.objects.get(name))
    return read


def test_a_complete_run_leaves_valid_records(complete: tuple[Job, Outcome]) -> None:
    job, outcome = complete
    item = document(job, finish.ITEM)
    check(item)
    assert outcome.report is not None
    assert "Complete." in Path(outcome.report).read_text()
    assert [link["href"] for link in item["links"]] == [f"https://host/items/{n}" for n in range(6)]
    (place,) = {asset["href"] for key, asset in item["assets"].items() if key == "data"}
    stored = xr.open_zarr(Path(job.objects.url) / place, decode_coords="all")
    assert list(stored.data_vars) == [band["name"] for band in item["assets"]["data"]["bands"]]
    assert item["properties"]["proj:shape"] == [stored.sizes["y"], stored.sizes["x"]]
    lacking = [a["href"] for a in item["assets"].values() if not (Path(job.objects.url) / a["href"]).exists()]
    assert lacking == []
    used = document(job, finish.PROVENANCE)["entity"]
    assert {e["prov:location"] for e in used.values() if "prov:location" in e} >= {"https://host/items/0", place}


def test_no_record_holds_a_secret(complete: tuple[Job, Outcome]) -> None:
    for name in complete[0].objects.names():
        assert b"SECRET" not in complete[0].objects.get(name)


def test_the_report_sets_the_quote_beside_what_was_taken(complete: tuple[Job, Outcome]) -> None:
    job, _ = complete
    kept = Quote.from_json(job.objects.get(finish.QUOTE))
    assert kept == job.quote(rate=20.0)
    said = job.objects.get(finish.REPORT).decode()
    assert "device seconds" in said
    assert f"{kept.windows:,}" in said
    assert "unknown" not in said.partition("Quoted and taken")[2].partition("Facts")[0]


def test_the_rate_is_measured_on_a_worker(complete: tuple[Job, Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import get_worker

    def measured(handle: Any, *, options: Any, block: int) -> float:
        return 7.0 + (get_worker().state.nthreads == 1) + (block == 64) / 2  # fails outside of a worker

    monkeypatch.setattr("xgfm.jobs.rate.measure_rate", measured)
    job, _ = complete
    with Client(processes=False, n_workers=1, threads_per_worker=1, memory_limit=0, dashboard_address=":0") as client:
        assert job.quote(client, measure=True).rate == 8.5
    assert job.quote(measure=True).rate == 7.5
    job.quote(rate=20.0)


def test_overviews_are_made_once(complete: tuple[Job, Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    job, _ = complete
    whole = small_jobs.stored(job)["small_task"]
    level = zarr.open_array(job.spec.store, path="overviews/2/small_task", mode="r")
    np.testing.assert_array_equal(level[...], coarser(whole, 2, 255))
    assert zarr.open_group(job.spec.store, mode="r", use_consolidated=True)["overviews/2"] is not None
    made: list[Any] = []
    monkeypatch.setattr(overviews, "write_piece", lambda *a, **k: made.append(a))
    assert job.finish().complete
    assert made == []


def test_overviews_of_pixels_that_changed_are_made_anew(bench: Bench) -> None:
    job = bench.job("anew.zarr", overviews=True)
    job.run(progress=False)
    before = zarr.open_group(job.spec.store, mode="r").attrs["multiscales"]["xgfm:source"]
    entry = next(job.ledger.entries())
    job.ledger.record(type(entry).from_json(entry.to_json().replace(str(entry.digest), "other")))
    job.finish()
    assert zarr.open_group(job.spec.store, mode="r").attrs["multiscales"]["xgfm:source"] != before


def test_overviews_are_made_by_workers_and_go_on_after_an_interruption(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = bench.job("workers.zarr", overviews=True)
    done: list[str] = []
    write = overviews.write_piece

    def interrupted(piece: Any, **options: Any) -> None:
        if len(done) == 3:
            raise KeyboardInterrupt
        write(piece, **options)
        done.append(piece.record)

    with Client(processes=False, n_workers=1, threads_per_worker=1, memory_limit=0, dashboard_address=":0") as client:
        monkeypatch.setattr(finish, "_complete_store", lambda *a: None)
        assert job.run(client, progress=False).complete
        monkeypatch.undo()
        monkeypatch.setattr(overviews, "write_piece", interrupted)
        with pytest.raises(KeyboardInterrupt):
            job.finish()
        monkeypatch.undo()
        before = {name: job.objects.modified(name) for name in job.objects.names("overviews")}
        assert len(before) == 3
        job.finish(client)
    after = {name: job.objects.modified(name) for name in job.objects.names("overviews")}
    assert len(after) == 4 + 1 + 1  # of three levels
    assert {name: after[name] for name in before} == before  # none of them was made again
    level = zarr.open_array(job.spec.store, path="overviews/2/small_task", mode="r")
    np.testing.assert_array_equal(level[...], coarser(small_jobs.stored(job)["small_task"], 2, 255))


def test_an_incomplete_run_gets_the_report_alone(bench: Bench) -> None:
    job = bench.job("incomplete.zarr", overviews=True)
    job.run(progress=False)
    for name in (finish.ITEM, finish.PROVENANCE):
        job.objects.delete(name)
    job.objects.delete(f"done/{sorted(job.ledger.done())[0]}.json")
    finished = job.finish()
    assert (finished.complete, finished.item, finished.provenance) == (False, None, None)
    said = Path(finished.report).read_text()
    assert "Not complete." in said
    assert "1 missing" in said
    assert not {finish.ITEM, finish.PROVENANCE} & set(job.objects.names())


def test_the_sink_is_the_jobs_own(bench: Bench) -> None:
    pytest.importorskip("icechunk", reason="icechunk is not installed")
    plain = bench.job("plain.zarr", overviews=True)
    job = bench.job("snapshots", sink="icechunk", overviews=True)
    for each in (plain, job):
        assert each.run(progress=False).complete
    assert small_jobs.digests(job) == small_jobs.digests(plain)
    assert job.verify()
    found = zarr.open_group(open_sink(job.spec.store, "icechunk").open_for_reading(), mode="r")
    theirs = zarr.open_group(plain.spec.store, mode="r")
    for path in ("small_task", "overviews/2/small_task", "overviews/4/small_task"):
        np.testing.assert_array_equal(found[path][...], theirs[path][...])
    item = document(job, finish.ITEM)
    check(item)
    assert item["assets"]["data"]["title"] == "Icechunk repository"
    again = job.finish()  # nothing to commit
    assert again.complete
    assert open_job(job.spec.store).spec.sink == "icechunk"


def test_the_sums_are_those_of_the_ledger(complete: tuple[Job, Outcome]) -> None:
    job, _ = complete
    summary = summarise(job.plan(), job.ledger)
    entries = list(job.ledger.entries())
    assert summary.windows == sum(e.windows for e in entries)
    assert summary.bytes_read == sum(e.bytes_read for e in entries)
    for part in ("read", "predict", "write"):
        assert sum(summary.seconds[part]) == pytest.approx(sum(e.seconds[part] for e in entries))
    assert summary.counts["done"] == len(entries) == summary.blocks
    assert summary.started is not None
    assert summary.ended is not None
    assert summary.started < summary.ended
    assert list(summary.weights) == [job.plan().task.digest]


AREA = tile_area("15TVM", 512)


@settings(deadline=None, max_examples=10)
@given(arrays("uint8", AREA.shape, elements=st.sampled_from([DONE, OUTCOMES.index("missing")])))
def test_outlines_hold_the_blocks_that_are_done_and_no_others(outcomes: np.ndarray) -> None:
    found = outline_of([AREA], {AREA.name: outcomes})
    assert found.is_valid
    for row, column in np.ndindex(AREA.shape):
        block = AREA.at(row, column)
        middle = AREA.geobox[block.rows, block.columns].geographic_extent.centroid.points[0]
        assert found.contains(shapely.Point(*middle)) == (outcomes[row, column] == DONE)


def test_outlines_do_not_reach_over_the_antimeridian() -> None:
    area = next(a for t in ("01VCE", "01UBV", "01WCM", "01UCV") if (a := tile_area(t, 3660)) and crosses(t))
    found = outline_of([area], {area.name: np.full(area.shape, DONE, "uint8")})
    parts = shapely.get_parts(found)
    assert len(parts) == 2
    assert all(p.bounds[2] - p.bounds[0] < 5 for p in parts)
    assert found.is_valid


def crosses(tile: str) -> bool:
    west, _, east, _ = tile_geobox(tile).geographic_extent.boundingbox.bbox
    return east - west > 180 or west < -180 or east > 180


def test_outcomes_are_shown_in_notebooks() -> None:
    said = Outcome(10, 6, 2, ("<a>", "b"), 12.3, "SIGTERM", "s3://b/report.html")._repr_html_()
    assert "6 of 10 done" in said
    assert "&lt;a&gt;, b" in said
    assert "SIGTERM" in said
    assert "s3://b/report.html" in said
    assert "failed" not in Outcome(1, 1, 1, (), 1.0)._repr_html_()
