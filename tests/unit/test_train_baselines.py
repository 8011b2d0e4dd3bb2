"""Baselines: what a forest knows of a pixel, against NumPy; scores on blocks it has not seen; the record of a U-Net."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import striped_chips

from xgfm.errors import MissingExtraError, TrainError
from xgfm.models.build import build_task
from xgfm.models.spec import TaskSpec
from xgfm.train.chips.chips import Chips, Sample
from xgfm.train.settings import TrainSettings, record_of
from xgfm.train.study.baselines import forest, pixel_features, unet_base, unet_task
from xgfm.train.study.spec import ForestSettings

FEW = ForestSettings(trees=5, pixels=500)


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Chips:
    return striped_chips.store(tmp_path_factory.mktemp("chips") / "chips.zarr")


def sample(image: np.ndarray) -> Sample:
    n, *_, height, width = image.shape
    return Sample(image, np.zeros((n, height, width), "uint8"), np.ones((n, height, width), bool), None, None)


def test_features_are_numpys() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 5000, (2, 3, 4, 9, 11)).astype("int16")
    image[0, 1, 2, 4, 5] = -9999
    found = pixel_features(sample(image), -9999)
    assert found.shape == (2, 9, 11, 3 * 4 * 3 + 4 * 4)
    values = np.where(image == -9999, np.nan, image.astype("float64")).reshape(2, 12, 9, 11)
    around = values[1, 7, 2:7, 3:8]  # about row 4, column 5
    np.testing.assert_allclose(
        found[1, 4, 5, [7, 12 + 7, 24 + 7]], [around[2, 2], around.mean(), around.std()], rtol=1e-3
    )
    corner = values[0, 3, :3, :3]
    np.testing.assert_allclose(found[0, 0, 0, [12 + 3, 24 + 3]], [corner.mean(), corner.std()], rtol=1e-3)
    gap = values[0, 6, 2:7, 3:8]  # frame 1, band 2, where a pixel is missing
    assert found[0, 4, 5, 6] == pytest.approx(np.nanmean(gap), rel=1e-4)
    frames = image[1, :, 2, 3, 3].astype("float64")
    wanted = [frames.min(), frames.max(), frames.mean(), frames.std(ddof=1)]
    np.testing.assert_allclose(found[1, 3, 3, [36 + 2, 40 + 2, 44 + 2, 48 + 2]], wanted, rtol=1e-4)


def test_one_frame_has_no_statistics_over_frames() -> None:
    assert pixel_features(sample(np.ones((1, 1, 6, 5, 5), "float32")), None).shape[-1] == 18


def test_a_place_without_data_is_finite() -> None:
    assert np.isfinite(pixel_features(sample(np.full((1, 2, 3, 8, 8), -9999, "int16")), -9999)).all()


def test_it_learns_the_land_and_is_scored_where_it_has_not_been(chips: Chips) -> None:
    scores = forest(chips, chips.indexes("train"), FEW, 0)
    assert scores.scores()["accuracy"] > 0.98
    assert set(scores.groups) == set(chips.groups(chips.indexes("test")).tolist())
    labelled = chips.read(chips.indexes("test"))
    assert int(scores.matrix.sum()) == int(labelled.valid.sum())  # missing pixels are in no score
    assert scores.unpredicted == 0


def test_one_seed_gives_one_forest(chips: Chips) -> None:
    train = chips.indexes("train")[:3]
    few = ForestSettings(trees=2, pixels=30)
    first, again, other = (forest(chips, train, few, seed).matrix for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_targets_of_a_regression(tmp_path: Path) -> None:
    chips = striped_chips.store(tmp_path / "chips.zarr", regression=True)
    scores = forest(chips, chips.indexes("train"), FEW, 0).scores()
    assert scores["r2"] > 0.95


def test_without_a_labelled_pixel_it_is_refused(chips: Chips) -> None:
    with pytest.raises(TrainError, match="no training pixel"):
        forest(chips, chips.indexes("train")[:0], FEW, 0)


def test_without_scikit_learn_the_extra_is_named(chips: Chips, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(MissingExtraError, match=r"xgfm\[ml\]"):
        forest(chips, chips.indexes("train"), FEW, 0)


def test_a_unet_is_a_base_without_weights(chips: Chips) -> None:
    base = unet_base(chips.facts, (4, 8))
    settings = TrainSettings(chips=chips.path, folder="run", base=base, method="scratch")
    assert TrainSettings.from_yaml(settings.to_yaml()) == settings
    spec = record_of(base)
    assert isinstance(spec, TaskSpec)
    assert spec == unet_task(chips.facts, widths=(4, 8))
    assert (spec.window, spec.frames, spec.classes) == (32, 3, striped_chips.CLASSES)
    build_task(spec)
