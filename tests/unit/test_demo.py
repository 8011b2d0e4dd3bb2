"""The demonstration, at small size, and how it measures."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from results import task_folder
from typer.testing import CliRunner

from xgfm.cli import app
from xgfm.cube.simulate import simulate_season
from xgfm.demo import command, main, score
from xgfm.grid import geobox_of, tile_geobox

NAMES = ("a", "b", "c")
classes = arrays("uint8", (5, 6), elements=st.sampled_from([0, 1, 2, 255]))


@given(classes, classes)
def test_score_against_sets_of_pixels(mapped: np.ndarray, truth: np.ndarray) -> None:
    found = score(mapped, truth, NAMES)
    pairs = [(t, m) for t, m in zip(truth.ravel(), mapped.ravel(), strict=True) if 255 not in (t, m)]
    assert found.confusion.sum() == len(pairs)
    assert found.accuracy == pytest.approx(sum(t == m for t, m in pairs) / max(len(pairs), 1))
    assert found.unmapped == sum(m == 255 for m in mapped.ravel())
    for number, name in enumerate(NAMES):
        inside = {i for i, (t, _) in enumerate(pairs) if t == number}
        drawn = {i for i, (_, m) in enumerate(pairs) if m == number}
        iou = len(inside & drawn) / len(inside | drawn) if inside | drawn else np.nan
        assert found.iou[name] == pytest.approx(iou, nan_ok=True)


def test_a_demonstration_from_images_to_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = main(tmp_path / "out", seed=3, size=96, task=str(task_folder(tmp_path / "task")))
    said = capsys.readouterr().out
    stored = xr.open_zarr(tmp_path / "out" / "map.zarr", mask_and_scale=False, decode_coords="all")
    box = geobox_of(stored)
    assert box.shape == (96, 96)
    assert box & tile_geobox("T15TVM") == box
    assert report.score is not None
    assert report.score.confusion.sum() + report.score.unmapped == 96 * 96
    assert report.score.unmapped == int((stored.crop_small == 255).sum())
    assert f"accuracy {report.score.accuracy:.1%}" in said
    assert "Winter Wheat" in said
    assert re.search(
        rf"^class +true pixels +IoU\n{report.score.names[0]} +{report.score.confusion[0].sum()} ", said, re.M
    )
    assert said.splitlines()[-1].strip() == report.again
    assert f"--catalog {tmp_path}/out/season/items.json --bbox " in report.again
    assert [name.split(",")[0] for name in report.seconds] == ["simulate a season", "open items", "read", "draw"]
    assert all(f"{name} ..." in said for name in report.seconds)
    assert report.memory["workers"] > 50e6
    assert "Ground and training data come from the same simulator" in said
    for picture in ("map.png", "truth.png"):
        assert (tmp_path / "out" / picture).read_bytes().startswith(b"\x89PNG")


def test_the_command_of_the_report_maps_the_season(tmp_path: Path) -> None:
    task = str(task_folder(tmp_path / "a task"))
    season = simulate_season(tmp_path / "a season", seed=3, shape=(64, 80), granules=5)
    words = shlex.split(command(season, task, tmp_path / "a map.zarr"))
    assert words[:2] == ["xgfm", "predict"]
    ended = CliRunner().invoke(app, words[1:])
    assert ended.exit_code == 0, ended.output
    box = geobox_of(xr.open_zarr(tmp_path / "a map.zarr", mask_and_scale=False, decode_coords="all"))
    assert box & season.geobox == season.geobox
    assert box.shape[0] < 64 + 8
    assert box.shape[1] < 80 + 8


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "file" / "x")])
    assert ended.exit_code == 1
    assert ended.stderr.startswith(f"error: not writable while writing {tmp_path}/file/x")
    assert "give a place that can be written as --out" in ended.stderr
