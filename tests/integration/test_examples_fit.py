"""The worked examples of fine-tuning, as a user runs them, at a small size."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

import xgfm

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
pytestmark = pytest.mark.slow


def run(script: str, folder: Path, *words: str) -> str:
    """Run an example in a process of its own, and return what it says."""
    command = [sys.executable, str(EXAMPLES / script), "--folder", str(folder), *words]
    environment = {**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def assert_drawn(picture: Path) -> None:
    """Something is on it: more than a frame on white."""
    values = imread(picture)
    assert min(values.shape[:2]) > 200
    assert (values[..., :3].min(-1) < 0.95).mean() > 0.1


def scores(said: str) -> dict[str, float]:
    """Return the scores of the test split that an example printed."""
    line = next(line for line in said.splitlines() if line.startswith("test split: {"))
    return {name: float(value) for name, value in re.findall(r"'(\w+)': (-?[\d.]+(?:e-?\d+)?)", line)}


def test_crops_are_learned_from_a_surveyed_season(tmp_path: Path) -> None:
    said = run("fit_crop.py", tmp_path, "--size", "256", "--chip", "32", "--granules", "8", "--steps", "30")
    assert scores(said)["accuracy"] > 0.6  # the largest class alone has less than half
    for picture in ("splits.png", "crops.png"):
        assert_drawn(tmp_path / picture)
    classes = xgfm.load_task(tmp_path / "task").spec.classes
    assert [c.name for c in classes] == ["not cultivated", "Corn", "Soybeans", "other crops"]


def test_water_is_learned_from_a_real_image(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "hls" / "flood"
    words = (
        "--image",
        str(folder / "Spain_7370579_S2Hand.tif"),
        "--label",
        str(folder / "Spain_7370579_LabelHand.tif"),
    )
    said = run("fit_flood.py", tmp_path, *words, "--steps", "12")
    water = re.search(r"test split, water: IoU ([\d.]+)", said)
    assert water is not None
    assert float(water[1]) > 0.25  # all of it called water: 0.1
    for picture in ("splits.png", "water.png"):
        assert_drawn(tmp_path / picture)


def test_biomass_is_learned_from_a_few_real_pixels(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "hls" / "chips"
    words = ("--image", str(folder / "agb_L30_int16"), "--label", str(folder / "agb_L30_biomass_label.tif"))
    said = run("fit_biomass.py", tmp_path, *words, "--steps", "40")
    found = re.search(r"test split: RMSE ([\d.]+) t/ha", said)
    assert found is not None
    assert 0 < float(found[1]) < 6  # the labels' standard deviation is 4.5, their mean 5.6
    assert_drawn(tmp_path / "biomass.png")


def test_smoke_is_learned_from_outlines_on_a_geostationary_cube(tmp_path: Path) -> None:
    """Outlines in degrees meet a grid of scanning angles; pictures are told apart by the minute."""
    said = run("fit_smoke.py", tmp_path, "--size", "128", "--chip", "32", "--steps", "60")
    smoke = next(line for line in said.split("a day that it has not seen")[1].splitlines() if line.startswith("smoke"))
    assert float(re.findall(r"\d\.\d+", smoke)[0]) > 0.7  # all of it called smoke: 0.2
    assert_drawn(tmp_path / "smoke.png")
    spec = xgfm.load_task(tmp_path / "task").spec
    assert spec.bands == tuple(f"C{number:02d}" for number in range(1, 17))
    assert 2000 < spec.pixel_size < 2400
    assert spec.statistics.mean[12] == pytest.approx(297, abs=6)  # kelvin at 10.3 micrometres
