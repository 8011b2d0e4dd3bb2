"""Jobs over a server that fails, that never answers, and whose tokens end: nothing is wrong, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import small_jobs
from flaky_server import KINDS
from granules import with_hrefs

from xgfm.cube import credentials
from xgfm.jobs import block, reading
from xgfm.jobs.job import Job

TESTS = Path(__file__).parents[1]
WINDOW = (1000, 1200, 128, 128)
GRID = {"crs": "EPSG:32615", "resolution": 30.0}


class Bench:
    """What the tests of this file share: granules, a task, and a run from disk."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.files = folder, folder / "files"
        self.items = small_jobs.season(folder / "granules", window=WINDOW, dates=small_jobs.DATES[::2])
        self.files.mkdir()
        for item in self.items:
            for asset in item["assets"].values():
                shutil.copy(asset["href"], self.files)
        self.task = small_jobs.task_folder(folder / "task")
        self.clean = self.job("clean.zarr", self.items)
        self.clean.run(progress=False)

    def job(self, store: str, items: list[dict[str, Any]], **changes: Any) -> Job:
        region = small_jobs.region_of("15TVM", WINDOW)
        return small_jobs.job(self.folder, items, self.task, store=store, region=region, grid=GRID, **changes)

    @contextmanager
    def served(self, log: Path, **how: Any) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """The address of a server, and the items as it serves them."""
        options = json.dumps({"folder": str(self.files), "log": str(log), **how})
        paths = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
        command = [sys.executable, str(TESTS / "flaky_server.py"), options]
        environment = {**os.environ, "PYTHONPATH": paths}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
            try:
                assert server.stdout is not None
                url = f"http://127.0.0.1:{int(server.stdout.readline())}"
                yield url, [with_hrefs(item, url) for item in self.items]
            finally:
                server.kill()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits; and no cache, so that every read asks the server."""
    settings = {
        "GDAL_HTTP_RETRY_DELAY": "0.05",
        "GDAL_HTTP_LOW_SPEED_LIMIT": "1000",
        "GDAL_HTTP_LOW_SPEED_TIME": "1",
        "CPL_VSIL_CURL_NON_CACHED": "/vsicurl/http://127.0.0.1",
    }
    monkeypatch.setattr(block, "GDAL", settings)
    monkeypatch.setattr(reading, "WAIT", 0.02)


def verdicts(log: Path) -> Counter[str]:
    return Counter(line.split()[0] for line in log.read_text().splitlines())


def is_whole(job: Job, clean: Job) -> None:
    status = job.status()
    assert status.done == status.blocks == clean.status().blocks > 0
    assert job.verify()
    assert small_jobs.digests(job) == small_jobs.digests(clean)


def test_a_server_that_fails_at_every_twentieth_read(bench: Bench, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with bench.served(log, share=0.05) as (_, items):
        job = bench.job("flaky.zarr", items)
        outcome = job.run(progress=False)
    said = verdicts(log)
    assert all(said[kind] for kind in KINDS)
    assert 0.03 < sum(said[kind] for kind in KINDS) / said.total() < 0.08
    assert (outcome.complete, outcome.failed) == (True, ())
    is_whole(job, bench.clean)
    small_jobs.same_stores(job, bench.clean)


def test_an_item_that_is_never_answered(bench: Bench, tmp_path: Path) -> None:
    """Its blocks are listed with its name, when the job's limit is over."""
    log, name = tmp_path / "log", bench.items[1]["id"]
    with bench.served(log, hang=f"{name}.B04") as (_, items):
        job = bench.job("hanging.zarr", items, limits={"attempts": 1, "read_seconds": 6.0})
        outcome = job.run(progress=False)
    assert verdicts(log)["hang"] >= outcome.blocks
    assert len(outcome.failed) == outcome.blocks
    for entry in job.ledger.entries(outcome.failed):
        assert f"under way for longest is asset 'B04' of item '{name}'" in str(entry.reason)
        assert entry.item == name


def test_reads_that_hang_once(bench: Bench, tmp_path: Path) -> None:
    log, name = tmp_path / "log", bench.items[1]["id"]
    with bench.served(log, hang=f"{name}.B04", requests=2) as (_, items):
        job = bench.job("hung.zarr", items, limits={"attempts": 2, "read_seconds": 2.0})
        outcome = job.run(progress=False)
    assert verdicts(log)["hang"]
    assert max(entry.attempts for entry in job.ledger.entries()) == 2
    assert (outcome.complete, outcome.failed) == (True, ())
    is_whole(job, bench.clean)


def test_a_poisoned_item(bench: Bench, tmp_path: Path) -> None:
    """An item whose file is damaged: the blocks that it touches are listed, all others are done."""
    west = small_jobs.season(tmp_path / "west", window=(1000, 1200, 128, 40), dates=("2024-08-20T17:04:39Z",), seed=50)[
        0
    ]
    asset = Path(west["assets"]["B04"]["href"])
    whole = asset.read_bytes()
    asset.write_bytes(whole[:1000] + bytes(len(whole) - 1000))
    job = bench.job("poisoned.zarr", [*bench.items, west])
    outcome = job.run(progress=False)
    assert outcome.failed
    assert outcome.missing == 0
    for entry in job.ledger.entries(outcome.failed):
        assert entry.item == west["id"]
        assert "asset 'B04'" in str(entry.reason)
    asset.write_bytes(whole)
    assert job.retry_failed() == outcome.failed
    assert job.run(progress=False).computed == len(outcome.failed)
    assert job.verify()


def test_tokens_that_end_while_a_job_runs(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    monkeypatch.setattr(credentials, "PLANETARY_COMPUTER_HOSTS", ("127.0.0.1",))
    with bench.served(log, lifetime=1.0) as (url, items):
        monkeypatch.setenv("VSICURL_PC_SAS_TOKEN_URL", f"{url}/token/")
        with urlopen(f"{url}/token/first") as answer:
            first = json.load(answer)["token"]
        job = bench.job("tokens.zarr", items)
        outcome = job.run(progress=False)
        name = Path(items[0]["assets"]["B04"]["href"]).name
        with pytest.raises(HTTPError, match="403"):  # a token of the beginning is not taken any more
            urlopen(f"{url}/{name}?{first}")
    assert outcome.seconds > 1.0
    assert verdicts(log)["token"] > 2
    is_whole(job, bench.clean)
    records = b"".join(f.read_bytes() for f in Path(f"{job.spec.store}.job").rglob("*") if f.is_file())
    assert b"sig=" not in records


def test_a_login_that_ends_while_a_job_runs(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are listed with what to do; with a new token they are computed, and no others."""
    log = tmp_path / "log"
    monkeypatch.setattr(credentials, "EARTHDATA_HOSTS", ("127.0.0.1",))
    monkeypatch.setenv("EARTHDATA_TOKEN", "old0123")
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    with bench.served(log, bearer="old0123,new0123", requests=250) as (_, items):
        job = bench.job("login.zarr", items, limits={"attempts": 1, "in_flight": 1})
        outcome = job.run(progress=False)
        assert verdicts(log)["401"]
        assert 0 < outcome.done < outcome.blocks
        assert outcome.missing == 0
        entries = list(job.ledger.entries(outcome.failed))
        assert all("login failed: set EARTHDATA_TOKEN" in str(entry.reason) for entry in entries)
        assert not any("old0123" in entry.to_json() for entry in entries)
        monkeypatch.setenv("EARTHDATA_TOKEN", "new0123")
        job.retry_failed()
        assert job.run(progress=False).computed == len(outcome.failed)
    assert small_jobs.digests(job) == small_jobs.digests(bench.clean)
