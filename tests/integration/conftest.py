"""A queue for the tests that submit to one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

TOOLS = Path(os.environ.get("XGFM_SHARED", Path(__file__).parents[2] / "shared")) / "tools"


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Slurm queue that takes jobs: the one that is there, or one that the shared tools start here."""
    if shutil.which("sinfo") and subprocess.run(["sinfo"], capture_output=True).returncode == 0:
        yield
        return
    up = TOOLS / "slurm-up"
    if not up.exists() or os.geteuid() != 0:
        pytest.skip("no Slurm: set SLURM_CONF, or as root set XGFM_SHARED to the folder that holds tools/slurm-up")
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run(
        [str(up), str(folder)], env={**os.environ, "SLURM_LAB_CPUS": "4", "SLURM_LAB_GPUS": "0"}, capture_output=True
    )
    if started.returncode:
        pytest.skip(f"Slurm does not start: {started.stderr.decode()[-300:]}")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        yield
    finally:
        del os.environ["SLURM_CONF"]
        subprocess.run([str(TOOLS / "slurm-down"), str(folder)], check=True, capture_output=True)
