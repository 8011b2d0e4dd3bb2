from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import small
import small_jobs
from distributed import Client
from small_jobs import DATES, is_whole, region_of, season, task_folder

from xgfm.errors import JobError, TaskError
from xgfm.grid import tile_geobox
from xgfm.jobs import block, reading, run
from xgfm.jobs.job import Job, open_job
from xgfm.jobs.progress import Progress
from xgfm.jobs.run import Outcome
from xgfm.models.build import build_task
from xgfm.models.folder import save_task
from xgfm.models.handle import register_task

WINDOW = (1000, 1200, 160, 192)
UTM = {"crs": "EPSG:32615", "resolution": 30.0}


class Bench:
    """Granules and a task, and a job that was run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.items = season(folder / "granules", window=WINDOW, missing=0.02)
        self.task = task_folder(folder / "task")
        self.clean = self.job("clean.zarr")
        self.clean.run(progress=False)

    def job(self, store: str, **changes: Any) -> Job:
        kept = {"region": region_of("15TVM", WINDOW), "grid": UTM, **changes}
        return small_jobs.job(self.folder, self.items, self.task, store=store, **kept)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize(
    "options",
    [
        {"return": ["class", "probability"], "min_valid": 0.5},
        {"blend": "hann"},
        {"halo": 0},
    ],
    ids=["layers", "blend", "no halo"],
)
def test_blocks_make_the_whole_map(bench: Bench, options: dict[str, Any]) -> None:
    job = bench.job(f"{'-'.join(options)}.zarr", options=options)
    assert job.run(progress=False).complete
    is_whole(job)


def test_seasons_and_native_tiles(bench: Bench) -> None:
    periods = ["2024-04-01/2024-06-30", "2024-07-01/2024-09-30"]
    job = bench.job("native.zarr", grid="native", periods=periods)
    assert job.run(progress=False).complete
    is_whole(job)
    assert small_jobs.stored(job, "15TVM")["small_task"].shape == (2, 3660, 3660)


def test_two_zones_and_overlapping_tiles(tmp_path: Path) -> None:
    west, east = (1750, 900, 200, 300), (1750, 2050, 200, 300)
    items = season(tmp_path, tile="15TYK", window=west, dates=DATES[::2], missing=0.02)
    items += season(tmp_path, tile="16TBQ", window=east, dates=DATES[::2], missing=0.02, seed=9)
    job = small_jobs.job(
        tmp_path,
        items,
        task_folder(tmp_path / "task"),
        region=[-90.05, 44.61, -89.98, 44.65],
        grid={"crs": "EPSG:5070", "resolution": 30.0},
    )
    assert job.run(progress=False).complete
    is_whole(job)
    used = {tile for b in job.plan().blocks() for tile in job.plan().tiles_of(b)}
    assert used == {"15TYK", "16TBQ"}
    assert (small_jobs.stored(job)["small_task"] != 255).mean() > 0.05


def test_a_pixel_is_read_from_one_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tiles of one pass that show the same ground: the second is read where the first has nothing."""
    first = (3500, 1200, 160, 192)
    shift = round((tile_geobox("15TVM").transform.f - tile_geobox("15TVL").transform.f) / 30)
    second = (first[0] - shift, *first[1:])
    items = season(tmp_path, window=first, dates=DATES[::2], missing=0.0)
    items += season(tmp_path, tile="15TVL", window=second, dates=DATES[::2], missing=0.0, seed=9)
    seen: Counter[str] = Counter()
    read = reading.read_part

    def counted(source: Any, part: Any, *rest: Any) -> Any:
        seen[source.item[8:14]] += (part[2] - part[0]) * (part[3] - part[1])
        return read(source, part, *rest)

    monkeypatch.setattr(reading, "read_part", counted)
    region = region_of("15TVM", first)
    job = small_jobs.job(tmp_path, items, task_folder(tmp_path / "task"), region=region, grid=UTM)
    assert job.run(progress=False).complete
    assert 0 < seen["T15TVM"] < 1.5 * seen["T15TVL"]
    monkeypatch.undo()
    is_whole(job)


def test_only_what_is_missing_is_computed(bench: Bench) -> None:
    job = bench.job("missing.zarr")
    job.run(progress=False)
    lost = sorted(job.ledger.done())[1:4]
    for name in lost:
        job.objects.delete(f"done/{name}.json")
    before = {e.block: e.finished for e in job.ledger.entries()}
    outcome = job.run(progress=False)
    assert (outcome.computed, outcome.complete) == (3, True)
    assert all(e.finished == before[e.block] for e in job.ledger.entries() if e.block not in lost)
    assert small_jobs.digests(job) == small_jobs.digests(bench.clean)


def test_no_more_blocks_are_in_flight_than_allowed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    most, submit = [0], run._Run._submit

    def counted(self: Any, trial: Any) -> None:
        submit(self, trial)
        most[0] = max(most[0], len(self.flying))

    monkeypatch.setattr(run._Run, "_submit", counted)
    job = bench.job("flight.zarr", limits={"in_flight": 3})
    assert job.run(progress=False).complete
    assert most == [3]


def test_damage_is_found_and_mended(bench: Bench) -> None:
    job = bench.job("damaged.zarr")
    job.run(progress=False)
    assert job.verify()
    shards = sorted(p for p in Path(job.spec.store, "small_task", "c").rglob("*") if p.is_file())
    data = bytearray(shards[2].read_bytes())
    data[len(data) // 2] ^= 255
    shards[2].write_bytes(bytes(data))
    shards[3].unlink()
    found = job.verify(forget=True)
    assert len(found.wrong) == 2
    assert "2 of" in str(found)
    assert job.run(progress=False).computed == 2
    assert job.verify()
    assert small_jobs.digests(job) == small_jobs.digests(bench.clean)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_cleanly(bench: Bench, number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    count, job = Progress.finish, bench.job(f"{number.name}.zarr", limits={"in_flight": 1})

    def finish(self: Progress, km2: float) -> None:
        count(self, km2)
        if self.done == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Progress, "finish", finish)
    before = signal.getsignal(number)
    outcome = job.run(progress=False)
    assert signal.getsignal(number) is before
    assert outcome.stopped == number.name
    assert 2 <= outcome.done < outcome.blocks
    assert f"Stopped: {number.name}" in str(outcome)
    monkeypatch.undo()
    assert job.run(progress=False).computed == outcome.missing  # the holder is released: nothing to wait for
    assert small_jobs.digests(job) == small_jobs.digests(bench.clean)


def test_a_task_of_this_process_reaches_the_workers(bench: Bench) -> None:
    register_task(small.task(name="only-here"), lambda spec: seeded(spec))
    job = small_jobs.job(
        bench.folder, bench.items, Path("only-here"), store="here.zarr", region=region_of("15TVM", WINDOW), grid=UTM
    )
    with Client(n_workers=1, threads_per_worker=1, memory_limit=0, dashboard_address=":0") as client:
        assert job.run(client, progress=False).complete
    is_whole(job)


def seeded(spec: Any) -> Any:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return build_task(spec)


def test_weights_that_changed_are_refused(bench: Bench, tmp_path: Path) -> None:
    task = task_folder(tmp_path / "task")
    job = small_jobs.job(tmp_path, bench.items, task, region=region_of("15TVM", WINDOW), grid=UTM)
    save_task(build_task(small.task()), small.task(), task)  # of other random weights
    with pytest.raises(TaskError, match="the job was planned with"):
        open_job(job.spec).run(progress=False)


def test_jobs_are_opened_by_record_file_and_store(bench: Bench, tmp_path: Path) -> None:
    spec = bench.clean.spec
    spec.write(tmp_path / "job.yaml")
    for given in (spec, tmp_path / "job.yaml", spec.store):
        job = open_job(given)
        assert job.spec == spec
        assert (job.status().missing, job.status().failed) == (0, ())
    assert "blocks done, 0 missing" in str(job.status())
    assert "blocks done" in job._repr_html_()
    with pytest.raises(JobError, match="neither a YAML file nor a store with a job"):
        open_job(tmp_path / "nothing.zarr")


def test_another_job_for_the_same_store_is_refused(bench: Bench) -> None:
    other = bench.clean.spec.model_copy(update={"period": "2024-05-01/2024-09-30"})
    with pytest.raises(JobError, match=r"another job was planned for .*: period differ"):
        open_job(other).run(progress=False)
    with pytest.raises(JobError, match="planned with the items of its first plan"):
        open_job(bench.clean.spec).plan(items=[])


def test_a_new_job_is_not_planned_by_looking_at_it(bench: Bench, tmp_path: Path) -> None:
    job = Job(bench.clean.spec.model_copy(update={"store": str(tmp_path / "new.zarr")}))
    assert "not planned yet" in str(job.status())
    assert "new.zarr" in repr(job)
    assert not list(tmp_path.iterdir())


def test_outcomes_say_what_is_missing() -> None:
    outcome = Outcome(10, 6, 2, ("a", "b"), 12.3, "SIGTERM")
    assert (outcome.missing, outcome.complete) == (2, False)
    said = "6 of 10 blocks done, 2 of them in this run, in 12 s; 2 failed: a, b; 2 missing. Stopped: SIGTERM"
    assert str(outcome) == said
    assert Outcome(1, 1, 1, (), 1.0).complete


def test_items_that_miss_a_block_leave_it_empty(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile may reach a block's outline and none of its pixels."""
    job = bench.job("empty.zarr")
    monkeypatch.setattr(block, "_touching", lambda items, grid: [])
    assert job.run(progress=False).complete
    assert (small_jobs.stored(job)["small_task"] == 255).all()
    assert all(entry.valid_pixels == entry.windows == 0 for entry in job.ledger.entries())
