from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr

from xgfm.jobs.job import open_job
from xgfm.jobs.spec import JobSpec

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_the_job_file_of_the_examples_is_one() -> None:
    spec = JobSpec.read(EXAMPLES / "job.yaml")
    assert JobSpec.from_yaml(spec.to_yaml()) == spec


@pytest.mark.slow
def test_the_example_stops_on_the_way_and_ends_with_a_whole_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [sys.executable, str(EXAMPLES / "run_job.py"), "--folder", str(tmp_path)]
    ran = subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=600, env={**os.environ, "MPLBACKEND": "Agg"}
    )
    assert ran.returncode == 0, ran.stderr
    assert "Stopped: SIGINT" in ran.stdout
    assert "9 blocks read again, all as they were written" in ran.stdout
    monkeypatch.chdir(tmp_path)  # the paths of its job file are seen from there
    status = open_job("map.zarr").status()
    assert (status.done, status.blocks) == (9, 9)
    assert (tmp_path / "map.png").stat().st_size > 10_000
    store = xr.open_zarr(tmp_path / "map.zarr", group="15TVM", mask_and_scale=False)
    assert int((store.crop_demo != 255).sum()) > 100_000
