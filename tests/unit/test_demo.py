"""The demonstration, at small size, and how it measures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from results import task_folder

from xgfm.demo import main, score
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
    assert [name.split(",")[0] for name in report.seconds] == ["simulate a season", "open items", "read", "draw"]
    assert all(f"{name} ..." in said for name in report.seconds)
    assert report.memory["workers"] > 50e6
    for picture in ("map.png", "truth.png"):
        assert (tmp_path / "out" / picture).read_bytes().startswith(b"\x89PNG")
