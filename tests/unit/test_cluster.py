from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import dask
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from xgfm import cluster
from xgfm.cluster import lifetime, queue_options
from xgfm.errors import ClusterError


@given(st.integers(2, 10_000))
def test_a_worker_retires_before_its_walltime(minutes: int) -> None:
    hours, rest = divmod(minutes, 60)
    option, kept, stagger_option, stagger = lifetime(f"{hours:02d}:{rest:02d}:00")
    assert (option, stagger_option) == ("--lifetime", "--lifetime-stagger")
    latest = int(kept.rstrip("s")) + int(stagger.rstrip("s"))
    assert 0 < latest <= 60 * minutes - 30


@pytest.mark.parametrize(
    ("walltime", "seconds"),
    [("02:00:00", 7200), ("90", 5400), ("02:00", 7200), ("1-00:00:00", 86400), ("1-12", 129600), ("2-00:30", 174600)],
)
def test_walltimes_are_read_as_queues_read_them(walltime: str, seconds: int) -> None:
    assert cluster._seconds(walltime) == seconds


def test_a_walltime_that_yaml_made_a_number_is_refused() -> None:
    with pytest.raises(ClusterError, match="in quotes"):
        lifetime(yaml.safe_load("walltime: 12:00:00")["walltime"])


@pytest.mark.parametrize("walltime", ["", "two hours", "-1", "1:2:3:4", "00:01:00"])
def test_walltimes_that_are_none_or_too_short(walltime: str) -> None:
    with pytest.raises(ClusterError, match="walltime="):
        lifetime(walltime)


def script(kind: str, **options: Any) -> str:
    """The job script that dask-jobqueue makes of our options."""
    jobqueue = pytest.importorskip("dask_jobqueue")
    more = {"lsf_units": "mb"} if kind == "lsf" else {}
    with getattr(jobqueue, cluster.QUEUES[kind])(**queue_options(kind, **options), **more) as started:
        text: str = started.job_script()
        assert started.scheduler.allowed_failures == cluster.DEATHS
    return text


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        ("slurm", ["#SBATCH -p gpu", "#SBATCH -A abc", "#SBATCH --cpus-per-task=3", "#SBATCH --gres=gpu:1"]),
        ("pbs", ["#PBS -q gpu", "#PBS -A abc", "#PBS -l select=1:ncpus=3:mem=3815MB:ngpus=1"]),
        ("lsf", ["#BSUB -q gpu", '#BSUB -P "abc"', "#BSUB -n 3", '#BSUB -gpu "num=1"']),
    ],
)
def test_a_queue_is_asked_for_one_worker_a_job(kind: str, lines: list[str], tmp_path: Path) -> None:
    text = script(
        kind, queue="gpu", account="abc", threads=3, memory="4GB", gpus=1, walltime="02:00:00", log_directory=tmp_path
    )
    for line in lines:
        assert line in text
    assert "--nthreads 3" in text
    assert "--nworkers" not in text or "--nworkers 1" in text
    assert "--resources GPU=1" in text
    assert "--lifetime 6120s --lifetime-stagger 360s" in text
    assert "--tls-key" in text
    assert str(tmp_path) in text


def test_a_queue_without_gpus_and_tls(tmp_path: Path) -> None:
    text = script("slurm", memory="1GB", tls=False, log_directory=tmp_path)
    assert "gres" not in text
    assert "GPU" not in text
    assert "tls" not in text
    assert "--lifetime" not in text


def test_a_queue_needs_memory() -> None:
    with pytest.raises(ClusterError, match=r'cluster "slurm" needs memory='):
        queue_options("slurm")


def test_certificates_are_for_their_owner_alone(tmp_path: Path) -> None:
    jobqueue = pytest.importorskip("dask_jobqueue")
    with jobqueue.SLURMCluster(**queue_options("slurm", memory="1GB", log_directory=tmp_path)):
        written = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert any("PRIVATE KEY" in path.read_text() for path in written)
        assert all(path.stat().st_mode & 0o077 == 0 for path in written)
    assert not any(path.exists() for path in written)


def test_workers_are_not_profiled_where_that_may_crash_them(tmp_path: Path) -> None:
    def profiled(dask_worker: Any) -> bool:
        return "profile" in dask_worker.periodic_callbacks

    crashes = sys.version_info[:2] == (3, 11)
    with dask.config.set({"distributed.worker.profile.enabled": True}), cluster.open("local", threads=1) as client:
        assert list(client.run(profiled).values()) == [not crashes]
    text = script("slurm", memory="1GB", log_directory=tmp_path, job_script_prologue=["module load python"])
    assert ("export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False" in text) == crashes
    assert "module load python" in text
    with dask.config.set({"jobqueue.slurm.job-script-prologue": ["module load gdal"]}):
        assert "module load gdal" in script("slurm", memory="1GB", log_directory=tmp_path)


@pytest.mark.parametrize("tls", [False, True])
def test_local_workers_end_with_the_client(tls: bool) -> None:
    with cluster.open("local", workers=1, threads=2, memory="0", tls=tls, processes=False) as client:
        assert client.submit(sum, [1, 2]).result() == 3
        assert [w["nthreads"] for w in client.scheduler_info()["workers"].values()] == [2]
        if tls:
            assert client.scheduler.address.startswith("tls://")
        started = client.cluster
    assert started.status.name == "closed"


def test_each_gpu_has_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with cluster.open("cuda", threads=2, memory="1GB") as client:
        assert set(client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"]).values()) == {"3", "5"}
        workers = client.scheduler_info()["workers"].values()
        assert [(w["nthreads"], w["resources"]) for w in workers] == [(2, {"GPU": 1})] * 2
    with pytest.raises(ClusterError, match="found 2 GPUs, 3 wanted"):
        cluster.open("cuda", gpus=3)


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ClusterError, match=r'found 0 GPUs.*"local"'):
        cluster.open("cuda")


def test_what_is_configured_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(cluster, "_queue", lambda kind, **options: asked.update(options, kind=kind))
    with dask.config.set({"xgfm.cluster.slurm": {"account": "abc", "log-directory": "logs", "memory": "8GB"}}):
        cluster.open("slurm", memory="4GB", walltime="01:00:00")
    assert asked == {
        "kind": "slurm", "account": "abc", "log_directory": "logs", "memory": "4GB", "walltime": "01:00:00",
    }  # fmt: skip


def test_an_address_is_connected_to() -> None:
    with cluster.open("local", memory="0", processes=False, protocol="tcp://") as client:
        with cluster.open(client.scheduler.address) as other:
            assert other.submit(sum, [1, 2]).result() == 3
        with pytest.raises(ClusterError, match=r"memory= cannot change a scheduler that is there"):
            cluster.open(client.scheduler.address, memory="1GB")
        assert client.submit(sum, [2, 2]).result() == 4  # closing the other has closed nothing of this one


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("slrum", {}, r"'slrum' is not known; give one of .*'slurm'"),
        ("local", {"walltime": "1:00:00"}, r"'local' takes no walltime="),
        ("local", {"gpus": 1}, r'give "cuda"'),
    ],
)
def test_what_cannot_be_started(kind: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ClusterError, match=said):
        cluster.open(kind, **options)
