"""Two models without a foundation model: a U-Net, and a random forest on the statistics of single pixels.

In: chips. Out: the record of a U-Net that the trainer takes as a base, and the scores of a forest on the test split.
A forest reads chips in small lots; its training pixels are in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from xgfm.cf import NODATA
from xgfm.errors import MissingExtraError, TrainError
from xgfm.models.spec import ModelSpec, Statistics, TaskSpec, to_json
from xgfm.train.chips.chips import ChipFacts, Chips, Sample
from xgfm.train.scores.metrics import Confusion, Regression
from xgfm.train.study.spec import ForestSettings

_LOT = 64
"""Chips that are in memory at once."""
_AROUND = 5
"""Pixels of the side of the square that local statistics are taken over."""
_TEST_PIXELS = 1 << 18
"""Pixels that go through a forest at once."""


def unet_task(facts: ChipFacts, *, widths: Sequence[int] = (32, 64, 128), name: str = "unet") -> TaskSpec:
    """Return the record of a U-Net for chips: of any sensor, bands and frames.

    Parameters
    ----------
    facts
        Of the chips: bands, frames, size, classes, statistics.
    widths
        Channels of each level.
    name
        Of the task.
    """
    statistics = Statistics(facts.statistics.mean, facts.statistics.std, facts.reflectance_scale)
    model = ModelSpec(
        name="unet",
        title="U-Net",
        statistics=statistics,
        bands=tuple(facts.bands),
        patch_size=(1, 1, 1),
        frames=facts.frames,
        image_size=facts.size,
        pixel_size=facts.pixel_size,
    )
    return TaskSpec(
        name=name,
        title="U-Net",
        model=model,
        statistics=statistics,
        classes=tuple(facts.classes),
        architecture={"family": "unet", "widths": list(widths)},
        kind=facts.kind,
        frames=facts.frames,
        window=facts.size,
        halo=facts.size // 8,
        pixel_size=facts.pixel_size,
        units=facts.units,
    )


def unet_base(facts: ChipFacts, widths: Sequence[int] = (32, 64, 128)) -> dict[str, Any]:
    """Return `unet_task` as a base of ``TrainSettings(base=..., method="scratch")``."""
    return {"kind": "task", "spec": to_json(unet_task(facts, widths=widths))}


def forest(chips: Chips, train: NDArray[np.int64], settings: ForestSettings, seed: int) -> Confusion | Regression:
    """Fit a random forest to training pixels and score it on the test split.

    Parameters
    ----------
    chips
        With a test split.
    train
        Chips to learn from.
    settings
        Trees, pixels, leaf.
    seed
        Of the draw of pixels and of the trees.

    Returns
    -------
    Confusion or Regression
        By spatial group, as the trainer scores its own models.

    Raises
    ------
    TrainError
        No labelled training pixel.
    MissingExtraError
        Where scikit-learn is not installed.
    """
    model = _model(chips.facts.kind, settings, seed)
    features, targets = _training(chips, train, settings.pixels, seed)
    model.fit(features, targets)
    classes = chips.facts.classes
    scored = Regression(chips.facts.units) if chips.facts.kind == "regression" else Confusion(classes)
    for lot, sample in _lots(chips, chips.indexes("test")):
        usable = _usable(sample)
        truth = np.where(usable, sample.label, _nothing(sample))
        predicted = truth.copy()
        predicted[usable] = _predicted(model, pixel_features(sample, chips.facts.nodata)[usable])
        scored.add(truth, predicted, chips.groups(lot))
    return scored


def pixel_features(sample: Sample, nodata: float | None) -> NDArray[np.float32]:
    """Return what a forest knows of each pixel, ``(n, H, W, feature)``.

    Values of every band in every frame, their mean and standard deviation over the 5 x 5 pixels around, and minimum,
    maximum, mean and standard deviation of every band over the frames; the last only where there are two or more.
    Missing pixels count as the mean of what is there around them, and as 0 where nothing is.
    """
    image = torch.from_numpy(np.ascontiguousarray(sample.image)).flatten(1, 2).float()  # (n, T * C, H, W)
    there = torch.isfinite(image) if nodata is None else torch.isfinite(image) & (image != nodata)
    values = torch.where(there, image, 0.0)
    share = _around(there.float()).clamp_min(1e-6)
    mean = _around(values) / share
    spread = (_around(values.square()) / share - mean.square()).clamp_min(0).sqrt()
    filled = torch.where(there, image, mean)
    parts = [filled, mean, spread]
    frames = filled.reshape(sample.image.shape)
    if frames.shape[1] > 1:
        parts += [frames.amin(1), frames.amax(1), frames.mean(1), frames.std(1)]
    return torch.cat(parts, dim=1).movedim(1, -1).numpy()


def _around(x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(x, _AROUND, stride=1, padding=_AROUND // 2, count_include_pad=False)


def _model(kind: str, settings: ForestSettings, seed: int) -> Any:
    try:
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "ml", "a random forest") from error
    of_kind = RandomForestRegressor if kind == "regression" else RandomForestClassifier
    return of_kind(
        n_estimators=settings.trees,
        min_samples_leaf=settings.leaf,
        max_features="sqrt",
        random_state=seed % 2**32,
        n_jobs=1,
    )


def _training(
    chips: Chips, train: NDArray[np.int64], pixels: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Features and targets of training pixels, drawn evenly from the chips."""
    rng = np.random.default_rng(seed)
    each = -(-pixels // max(len(train), 1))
    features: list[NDArray[np.float32]] = []
    targets: list[NDArray[Any]] = []
    for _, sample in _lots(chips, train):
        usable, known = _usable(sample), pixel_features(sample, chips.facts.nodata)
        for k in range(len(usable)):
            places = np.flatnonzero(usable[k])
            drawn = rng.choice(places, min(each, len(places)), replace=False)
            features.append(known[k].reshape(-1, known.shape[-1])[drawn])
            targets.append(sample.label[k].ravel()[drawn])
    if not sum(len(t) for t in targets):
        raise TrainError("no training pixel has a label; write chips with labels in the training split")
    return np.concatenate(features), np.concatenate(targets)


def _lots(chips: Chips, indexes: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Sample]]:
    for start in range(0, len(indexes), _LOT):
        lot = indexes[start : start + _LOT]
        yield lot, chips.read(lot)


def _usable(sample: Sample) -> NDArray[np.bool_]:
    """Labelled pixels that are there in every frame: those that a map would show."""
    labelled = np.isfinite(sample.label) if sample.label.dtype.kind == "f" else sample.label != NODATA
    usable: NDArray[np.bool_] = labelled & sample.valid
    return usable


def _nothing(sample: Sample) -> Any:
    """Return what says that a pixel has no label, in the labels' own dtype."""
    return sample.label.dtype.type(np.nan if sample.label.dtype.kind == "f" else NODATA)


def _predicted(model: Any, features: NDArray[np.float32]) -> NDArray[Any]:
    parts = [model.predict(features[i : i + _TEST_PIXELS]) for i in range(0, len(features), _TEST_PIXELS)]
    return np.concatenate(parts) if parts else np.empty(0)
