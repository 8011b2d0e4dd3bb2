"""Commands of jobs, as a shell sees them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from distributed import LocalCluster
from small_jobs import region_of, season, task_folder
from typer.testing import CliRunner

from xgfm.cli import app
from xgfm.cube.catalogs import save_items
from xgfm.jobs.job import Job, open_job
from xgfm.store.ledger import Entry

COMMANDS = ("quote", "run", "status", "resume", "verify", "retry", "report")
WINDOW = (1000, 1200, 96, 96)


def run(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(w) for w in words])


def fails(*words: Any) -> str:
    """The one line that a failing command says."""
    ended = run(*words)
    assert ended.exit_code == 1
    assert "Traceback" not in ended.output
    lines: list[str] = ended.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ")
    return lines[-1]


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A YAML file, as somebody would write it."""
    folder = tmp_path_factory.mktemp("job")
    save_items(season(folder / "granules", window=WINDOW, dates=("2024-04-10T17:04:39Z", "2024-06-13T17:04:39Z",
                      "2024-08-16T17:04:39Z")), folder / "items.json")  # fmt: skip
    written = {
        "region": region_of("15TVM", WINDOW),
        "period": "2024-04-01/2024-09-30",
        "task": str(task_folder(folder / "task")),
        "store": str(folder / "map.zarr"),
        "catalog": str(folder / "items.json"),
        "grid": {"crs": "EPSG:32615", "resolution": 30},
        "block": 64,
        "chunk": 32,
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(written))
    return path


@pytest.fixture(scope="module")
def job(record: Path) -> Job:
    """The job, run to its end by the command line."""
    ended = run("run", record)
    assert ended.exit_code == 0, ended.output
    done = open_job(record)
    count = done.status().blocks
    assert f"{count} of {count} blocks done, {count} of them in this run" in ended.stdout
    assert f"report: {done.spec.store}.job/report.html" in ended.stdout
    return done


@pytest.fixture
def lost(job: Job) -> Iterator[str]:
    """A block of the job that is missing, and is there again afterwards."""
    name = sorted(job.ledger.done())[0]
    (kept,) = job.ledger.entries([name])
    job.objects.delete(f"done/{name}.json")
    yield name
    job.ledger.record(kept)
    job.ledger.forget_failed([name])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_is_explained(command: str) -> None:
    import typer

    ended = run(command, "--help")
    assert ended.exit_code == 0
    for parameter in typer.main.get_command(app).commands[command].params:  # type: ignore[attr-defined]
        assert parameter.help, parameter.name
        assert parameter.opts[0] in ended.stdout or str(parameter.metavar) in ended.stdout


def test_a_job_is_quoted_before_it_runs(record: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "job.yaml"
    fresh.write_text(yaml.safe_dump({**yaml.safe_load(record.read_text()), "store": str(tmp_path / "new.zarr")}))
    ended = run("quote", fresh, "--rate", 10)
    assert ended.exit_code == 0
    assert "device time" in ended.stdout
    assert "10 windows/s" in ended.stdout
    said = json.loads(run("quote", fresh, "--rate", 10, "--json").stdout)
    assert said["device_seconds"] == said["windows"] / 10
    assert not (tmp_path / "new.zarr").exists()
    assert "exclude each other" in fails("quote", fresh, "--rate", 10, "--measure")


def test_status_says_how_far_a_job_is(job: Job, lost: str) -> None:
    assert "1 missing" in run("status", job.spec.store).stdout
    job.ledger.record(Entry(lost, "failed", reason="asset 'B04' is gone"))
    said = run("status", job.spec.store).stdout
    assert "1 failed" in said
    assert f"{lost} failed: asset 'B04' is gone" in said


def test_resume_computes_what_is_missing(job: Job, lost: str) -> None:
    ended = run("resume", job.spec.store)
    assert ended.exit_code == 0
    assert "1 of them in this run" in ended.stdout


def test_a_run_with_failed_blocks_ends_with_1_and_retry_mends_it(job: Job, lost: str) -> None:
    job.ledger.record(Entry(lost, "failed", reason="no"))
    ended = run("resume", job.spec.store)
    assert ended.exit_code == 1
    assert f"1 failed: {lost}" in ended.stdout
    assert f"xgfm retry {job.spec.store} --failed" in ended.stderr
    assert "Not complete." in Path(f"{job.spec.store}.job/report.html").read_text()
    assert "say which blocks: --failed" in fails("retry", job.spec.store)
    ended = run("retry", job.spec.store, "--failed")
    assert ended.exit_code == 0
    assert "1 of them in this run" in ended.stdout


def test_verify_finds_damage(job: Job) -> None:
    ended = run("verify", job.spec.store)
    assert (ended.exit_code, "all as they were written" in ended.stdout) == (0, True)
    shard = next(p for p in Path(job.spec.store, "small_task", "c").rglob("*") if p.is_file())
    kept = shard.read_bytes()
    shard.unlink()
    ended = run("verify", job.spec.store)
    assert ended.exit_code == 1
    assert "1 of" in ended.stdout
    assert "--forget" in ended.stderr
    shard.write_bytes(kept)
    assert run("verify", job.spec.store).exit_code == 0


def test_report_is_written_anew(job: Job) -> None:
    job.objects.delete("report.html")
    ended = run("report", job.spec.store)
    assert ended.exit_code == 0
    places = ended.stdout.split()
    assert [Path(p).name for p in places] == ["report.html", "item.json", "provenance.json"]
    assert all(Path(p).exists() for p in places)


def test_workers_of_a_scheduler_that_is_there(job: Job, lost: str) -> None:
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", memory_limit=0, dashboard_address=":0"
    ) as cluster:
        ended = run("resume", job.spec.store, "--cluster", cluster.scheduler_address)
    assert ended.exit_code == 0, ended.output
    assert "1 of them in this run" in ended.stdout


def test_what_cannot_be_done_is_said(record: Path, tmp_path: Path) -> None:
    assert "neither a YAML file nor a store with a job" in fails("status", tmp_path / "nothing.zarr")
    assert "of which workers? Give --cluster" in fails("run", record, "--workers", 3)
    assert "is not known; give one of" in fails("run", record, "--cluster", "kubernetes")
    fresh = tmp_path / "job.yaml"
    fresh.write_text(yaml.safe_dump({**yaml.safe_load(record.read_text()), "store": str(tmp_path / "new.zarr")}))
    assert f"begin with xgfm run {fresh}" in fails("resume", fresh)
    fresh.write_text(fresh.read_text() + "periodd: 2024\n")
    assert "periodd" in fails("run", fresh)
