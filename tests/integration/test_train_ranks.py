"""Several ranks, started in every way that there is, give the gradient that one process gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ranking
import torch
from distributed import Client, LocalCluster
from torch import Tensor

from xgfm.cluster import open as open_cluster
from xgfm.train import fit
from xgfm.train.loop.checkpoints import Checkpoints
from xgfm.train.loop.history import read_history
from xgfm.train.loop.trainer import TrainResult, train
from xgfm.train.ranks.launch import run_ranks
from xgfm.train.ranks.ranks import Ranks
from xgfm.train.settings import TrainSettings

pytestmark = pytest.mark.slow

CLOSE = 1e-5
"""Largest relative difference of a loss or a gradient's norm, at any step of a short training."""
TOLERANCE = 2e-6
"""Largest difference of a gradient from that of one process, as a share of its size: sums of fp32 in another order."""
PROGRAM = Path(ranking.__file__)


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    """What one process gives, without torch.distributed."""
    return ranking.gradients(Ranks())


def environment() -> dict[str, str]:
    """What a program needs to find the modules of tests."""
    path = os.pathsep.join(filter(None, [str(PROGRAM.parent), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; what it says is heard."""
    return subprocess.run(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def torchrun(count: int, *arguments: str, restarts: int = 0) -> None:
    """Start ranks by torchrun, and see them end well."""
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}")
    done = run(sys.executable, *launcher, f"--max-restarts={restarts}", *arguments)
    assert done.returncode == 0, done.stdout[-3000:]


def srun(count: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Start ranks by srun, as one step of a job."""
    return run("srun", f"--ntasks={count}", "--mem=2G", "--kill-on-bad-exit=1", sys.executable, *arguments)


def are_equal(folder: Path, world: int, expected: dict[str, Tensor]) -> None:
    """Every rank has the gradient of the whole batch."""
    for rank in range(world):
        found = torch.load(folder / f"{rank}.pt", weights_only=True)
        assert ranking.difference(found, expected) < TOLERANCE


@pytest.mark.parametrize("world", [2, 3])
def test_torchrun(world: int, expected: dict[str, Tensor], tmp_path: Path) -> None:
    torchrun(world, str(PROGRAM), "gradients", str(tmp_path))
    are_equal(tmp_path, world, expected)


def test_workers_of_a_dask_cluster(expected: dict[str, Tensor]) -> None:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        found = run_ranks(ranking.gradients, client, 2, device="cpu")
    assert ranking.difference(found, expected) < TOLERANCE


def test_a_step_of_slurm(slurm: None, expected: dict[str, Tensor], tmp_path: Path) -> None:
    done = srun(2, str(PROGRAM), "gradients", str(tmp_path))
    assert done.returncode == 0, done.stdout[-3000:]
    are_equal(tmp_path, 2, expected)


def test_workers_of_a_dask_cluster_in_a_queue(slurm: None, expected: dict[str, Tensor], tmp_path: Path) -> None:
    with open_cluster(
        "slurm",
        workers=2,
        threads=1,
        memory="2GB",
        walltime="00:10:00",
        log_directory=tmp_path / "logs",
        interface="lo",
        local_directory=str(tmp_path / "scratch"),
        worker_extra_args=["--no-dashboard"],
        job_script_prologue=[f"export PYTHONPATH={environment()['PYTHONPATH']}"],
    ) as client:
        found = run_ranks(ranking.gradients, client, 2, device="cpu")
    assert ranking.difference(found, expected) < TOLERANCE


def test_a_mean_of_means_would_be_seen(expected: dict[str, Tensor]) -> None:
    """The oracle can fail: the mean of the gradients of two halves, each over its own labels, is another one."""
    found = ranking.naive_mean()
    assert ranking.difference(found, expected) > 1000 * TOLERANCE


@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_starts_ranks_again(rank: int, tmp_path: Path) -> None:
    torchrun(2, str(PROGRAM), "count", str(tmp_path), str(rank), "4", restarts=1)
    for each in range(2):
        done = json.loads((tmp_path / f"done-{each}.json").read_text())
        assert (done["began"], done["steps"], done["world"], done["sum"]) == (4, 7, 2, 2)


def test_a_step_of_slurm_ends_when_a_rank_dies_and_its_like_goes_on(slurm: None, tmp_path: Path) -> None:
    arguments = (str(PROGRAM), "count", str(tmp_path), "1", "4")
    done = srun(2, *arguments)
    assert done.returncode != 0
    assert not list(tmp_path.glob("done-*"))
    done = srun(2, *arguments)
    assert done.returncode == 0, done.stdout[-3000:]
    assert json.loads((tmp_path / "done-0.json").read_text())["began"] == 4


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A training by one process; its folder's neighbours are those of the others."""
    return train(ranking.training(tmp_path_factory.mktemp("trainings"), "alone"))


def is_the_same_run(settings: TrainSettings, alone: TrainResult) -> None:
    """Losses, gradients and validations of every step, and the weights in the end."""
    history = read_history(settings.folder)
    for column in ("loss", "gradient_norm", "val_loss"):
        np.testing.assert_allclose(history[column], alone.history[column], rtol=CLOSE)
    mine, its = (
        Checkpoints(Path(folder) / "checkpoints").load(Checkpoints(Path(folder) / "checkpoints").last())["module"]
        for folder in (settings.folder, alone.folder)
    )
    assert list(mine) == list(its)
    apart = [float((mine[name] - its[name]).abs().max()) for name in mine if mine[name].is_floating_point()]
    assert max(apart) < 0.05 * settings.rate * ranking.STEPS  # weights move by about a rate in a step


def settings_of(alone: TrainResult, name: str) -> tuple[TrainSettings, str]:
    """Return settings of the same training in another folder, and the file that holds them."""
    settings = ranking.training(alone.folder.parent, name)
    path = alone.folder.parent / f"{name}.yaml"
    settings.write(path)
    return settings, str(path)


def test_a_training_by_torchrun(alone: TrainResult) -> None:
    settings, path = settings_of(alone, "torchrun")
    torchrun(2, "-m", "xgfm.train", path)
    is_the_same_run(settings, alone)
    assert (Path(settings.folder) / "task" / "model.safetensors").exists()


def test_a_training_on_workers(alone: TrainResult) -> None:
    """On three, of which none has the share of another: 6 chips are 2 for each, 2 of validation are 1, 1, 0."""
    settings, _ = settings_of(alone, "workers")
    with (
        LocalCluster(n_workers=3, threads_per_worker=1, memory_limit=0, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        result = fit.run(settings, client=client, ranks=3)
    is_the_same_run(settings, alone)
    assert result.step == alone.step
    assert result.metrics["split"] == "test"
    assert (result.task / "model.safetensors").exists()


def test_a_training_by_slurm(slurm: None, alone: TrainResult) -> None:
    settings, path = settings_of(alone, "slurm")
    done = srun(2, "-m", "xgfm.train", path)
    assert done.returncode == 0, done.stdout[-3000:]
    is_the_same_run(settings, alone)
