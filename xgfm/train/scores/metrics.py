"""How good a map is, counted batch by batch.

In: truth and prediction of some pixels, and the spatial group that each sample lies in. Out: scores, per class and over
all, with intervals that know of groups (`group_sums`). Nothing is lazy, and torch is not needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from xgfm.errors import LabelError
from xgfm.models.spec import ClassInfo, TaskSpec
from xgfm.train.scores.group_sums import LEVEL, Array, GroupSums, Interval, Scores, mean_of, over

IGNORE = 255
"""Class code of a pixel without label, and of one without prediction."""


def scores_of(matrix: Array) -> dict[str, Array]:
    """Return the scores of confusion matrices.

    Parameters
    ----------
    matrix
        ``(..., class, class)`` counts, truth along the first of the two.

    Returns
    -------
    dict
        ``accuracy``, ``kappa`` (Cohen's), ``mean_iou``, ``mean_f1`` and ``balanced_accuracy`` (mean recall) of shape
        ``(...)``; ``iou``, ``f1``, ``precision``, ``recall`` of ``(..., class)``. NaN where a score has no
        denominator, and means leave those classes out: a class that is neither there nor predicted has no IoU.
    """
    matrix = np.asarray(matrix, "float64")
    right = np.diagonal(matrix, axis1=-2, axis2=-1)
    true, said = matrix.sum(-1), matrix.sum(-2)
    total = true.sum(-1)
    agreement, by_chance = over(right.sum(-1), total), over((true * said).sum(-1), total**2)
    iou, f1, recall = over(right, true + said - right), over(2 * right, true + said), over(right, true)
    return {
        "accuracy": agreement,
        "kappa": over(agreement - by_chance, 1 - by_chance),
        "mean_iou": mean_of(iou),
        "mean_f1": mean_of(f1),
        "balanced_accuracy": mean_of(recall),
        "iou": iou,
        "f1": f1,
        "precision": over(right, said),
        "recall": recall,
    }


class Confusion(GroupSums):
    """Confusion matrix of a classification, by spatial group.

    Parameters
    ----------
    classes
        In the order of the codes: `ClassInfo`, or names.

    Examples
    --------
    >>> confusion = Confusion(["water", "land"])
    >>> confusion.add([[0, 1, 1, 255]], [[0, 1, 0, 1]], groups=[7])
    >>> round(confusion.scores()["accuracy"], 3)
    0.667
    """

    overall = ("accuracy", "kappa", "mean_iou", "mean_f1", "balanced_accuracy")
    per_class = ("iou", "f1", "precision", "recall")

    def __init__(self, classes: Sequence[ClassInfo | str]) -> None:
        super().__init__()
        self.classes = tuple(c if isinstance(c, str) else c.name for c in classes)
        if not 2 <= len(self.classes) <= IGNORE:
            raise LabelError(f"{len(self.classes)} classes; a confusion matrix has 2 to {IGNORE}")

    @property
    def matrix(self) -> Array:
        """``(class, class)`` int64 counts of all groups, truth along the first, prediction along the second."""
        counts: Array = self.sums().sum(0).astype("int64")
        return counts

    def add(self, truth: Any, predicted: Any, groups: Any = None) -> None:
        """Count some pixels.

        Parameters
        ----------
        truth, predicted
            Class codes, integers of one shape ``(sample, ...)``. Pixels with 255 in ``truth`` are left out; those with
            255 in ``predicted`` alone are counted in ``unpredicted``.
        groups
            Spatial group of each sample, whole numbers ``(sample,)``; one group for all where not given.

        Raises
        ------
        LabelError
            For other shapes, or codes that no class has.
        """
        truth, predicted = np.asarray(truth), np.asarray(predicted)
        count = len(self.classes)
        for group, true, said in _by_group(truth, predicted, groups):
            self.unpredicted += int(((true != IGNORE) & (said == IGNORE)).sum())
            kept = (true != IGNORE) & (said != IGNORE)
            true, said = self._codes("truth", true[kept]), self._codes("predicted", said[kept])
            if true.size:
                cells = np.bincount(true * count + said, minlength=count**2)
                self._put(group, cells.reshape(count, count).astype("float64"))

    def _codes(self, name: str, codes: Array) -> Array:
        if codes.size and not (codes.dtype.kind in "iu" and codes.min() >= 0 and codes.max() < len(self.classes)):
            raise LabelError(
                f"{name} holds codes from {codes.min()} to {codes.max()} as {codes.dtype}; the {len(self.classes)} "
                f"classes have whole numbers from 0 to {len(self.classes) - 1}, and {IGNORE} stands for no class"
            )
        return codes.astype("int64")

    def _scores(self, weights: Array, sums: Array) -> dict[str, Array]:
        shape = sums.shape[1:]
        return scores_of((weights @ sums.reshape(len(sums), -1)).reshape(-1, *shape))

    def _joined(self, one: Array, other: Array) -> Array:
        return one + other

    def _empty(self) -> Array:
        return np.zeros((len(self.classes),) * 2)

    def bootstrap(self, n: int = 1000, seed: int = 0, level: float = LEVEL) -> Scores:
        """As `GroupSums.bootstrap`; a class that lies in one group alone has no interval: all draws say the same."""
        drawn = super().bootstrap(n, seed, level)
        alone = (self.sums().sum(axis=2) > 0).sum(axis=0) < 2
        none = Interval(np.nan, np.nan)
        return Scores(
            drawn.overall,
            {
                name: tuple(none if one else bounds for bounds, one in zip(of_class, alone, strict=True))
                for name, of_class in drawn.classes.items()
            },
        )

    def to_json(self, n: int = 1000, seed: int = 0) -> dict[str, Any]:
        """Return scores, intervals and counts as JSON values; NaN is None.

        Parameters
        ----------
        n, seed
            As `bootstrap` takes them.
        """
        said, bounds = scores_of(self.matrix), self.intervals(n, seed)
        classes = [
            {"name": name, "pixels": int(self.matrix[k].sum())}
            | {s: _scored(said[s][k], bounds.classes[s][k] if bounds else None) for s in self.per_class}
            for k, name in enumerate(self.classes)
        ]
        return {
            "kind": "segmentation",
            "groups": len(self.groups),
            "pixels": int(self.matrix.sum()),
            "unpredicted": self.unpredicted,
            "scores": {s: _scored(said[s], bounds.overall[s] if bounds else None) for s in self.overall},
            "classes": classes,
            "matrix": self.matrix.tolist(),
        }

    def state(self) -> dict[str, Any]:
        """Return everything as JSON values; `from_state` gives the same metrics back."""
        return {"kind": "segmentation", "classes": list(self.classes), **self._counted()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Confusion:
        """Return the metrics of a `state`, to be merged or drawn from again."""
        return cls(state["classes"])._restored(state)

    def table(self, intervals: Scores | None = None) -> str:
        """Return the scores as a table of text, with intervals where `bootstrap`'s answer is given."""
        said = scores_of(self.matrix)
        head = [f"{'class':24s} {'pixels':>11s}" + "".join(f"  {name:>20s}" for name in self.per_class)]
        rows = [
            f"{name[:24]:24s} {int(self.matrix[k].sum()):11d}"
            + "".join(
                f"  {_shown(said[s][k], intervals.classes[s][k] if intervals else None):>20s}" for s in self.per_class
            )
            for k, name in enumerate(self.classes)
        ]
        return "\n".join([*head, *rows, *_overall(self, intervals)])

    def __str__(self) -> str:
        return self.table()


class Regression(GroupSums):
    """Errors of predicted numbers, by spatial group.

    Parameters
    ----------
    units
        Of the numbers; for tables.
    """

    overall = ("rmse", "mae", "bias", "r2")

    def __init__(self, units: str = "1") -> None:
        super().__init__()
        self.units = units

    def add(self, truth: Any, predicted: Any, groups: Any = None) -> None:
        """Count some pixels.

        Parameters
        ----------
        truth, predicted
            Numbers of one shape ``(sample, ...)``. Pixels with NaN in ``truth`` are left out; those with NaN in
            ``predicted`` alone are counted in ``unpredicted``.
        groups
            Spatial group of each sample, whole numbers ``(sample,)``; one group for all where not given.

        Raises
        ------
        LabelError
            For other shapes, or infinite numbers.
        """
        for group, true, said in _by_group(np.asarray(truth), np.asarray(predicted), groups):
            self.unpredicted += int((~np.isnan(true) & np.isnan(said)).sum())
            kept = ~np.isnan(true) & ~np.isnan(said)
            true, said = (values[kept].astype("float64") for values in (true, said))
            if not (np.isfinite(true).all() and np.isfinite(said).all()):
                raise LabelError("truth or prediction is infinite somewhere; NaN stands for a missing number")
            if true.size:
                error = said - true
                spread = ((true - true.mean()) ** 2).sum()
                self._put(
                    group, np.array([true.size, true.mean(), spread, error.sum(), np.abs(error).sum(), error @ error])
                )

    def _scores(self, weights: Array, sums: Array) -> dict[str, Array]:
        """Of groups' (count, mean, squares about the mean, errors, absolute errors, squared errors), ``(group, 6)``."""
        count = weights * sums[:, 0]
        total = count.sum(1)
        mean = over((count * sums[:, 1]).sum(1), total)
        spread = weights @ sums[:, 2] + (count * (sums[:, 1] - mean[:, None]) ** 2).sum(1)
        bias, absolute, squared = (over(weights @ sums[:, k], total) for k in (3, 4, 5))
        return {"rmse": np.sqrt(squared), "mae": absolute, "bias": bias, "r2": 1 - over(squared * total, spread)}

    def _joined(self, one: Array, other: Array) -> Array:
        """Pairwise sums of Chan, Golub and LeVeque (1983): no large numbers are subtracted."""
        count = one[0] + other[0]
        apart = other[1] - one[1]
        mean = one[1] + apart * other[0] / count
        spread = one[2] + other[2] + apart**2 * one[0] * other[0] / count
        return np.concatenate([[count, mean, spread], one[3:] + other[3:]])

    def _empty(self) -> Array:
        return np.zeros(6)

    def to_json(self, n: int = 1000, seed: int = 0) -> dict[str, Any]:
        """Return scores and intervals as JSON values, as `Confusion.to_json`."""
        said, bounds = self.scores(), self.intervals(n, seed)
        return {
            "kind": "regression",
            "units": self.units,
            "groups": len(self.groups),
            "pixels": int(self.sums()[:, 0].sum()),
            "unpredicted": self.unpredicted,
            "scores": {s: _scored(said[s], bounds.overall[s] if bounds else None) for s in self.overall},
        }

    def state(self) -> dict[str, Any]:
        """Return everything as JSON values; `from_state` gives the same metrics back."""
        return {"kind": "regression", "units": self.units, **self._counted()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Regression:
        """Return the metrics of a `state`, to be merged or drawn from again."""
        return cls(str(state["units"]))._restored(state)

    def table(self, intervals: Scores | None = None) -> str:
        """Return the scores as a table of text, with intervals where `bootstrap`'s answer is given."""
        units = "" if self.units == "1" else f" (rmse, mae and bias in {self.units})"
        return "\n".join([f"{int(self.sums()[:, 0].sum())} pixels{units}", *_overall(self, intervals)])

    def __str__(self) -> str:
        return self.table()


def metrics_for(spec: TaskSpec) -> Confusion | Regression:
    """Return empty metrics of the kind that a task needs."""
    return Regression(spec.units) if spec.kind == "regression" else Confusion(spec.classes)


def metrics_from_state(state: Mapping[str, Any]) -> Confusion | Regression:
    """Return metrics of either kind from their `state`."""
    read: Callable[[Mapping[str, Any]], Confusion | Regression]
    read = Regression.from_state if state["kind"] == "regression" else Confusion.from_state
    return read(state)


def _by_group(truth: Array, predicted: Array, groups: Any) -> Iterator[tuple[int, Array, Array]]:
    """Yield group, truth and prediction, flat, of each group in turn."""
    if truth.shape != predicted.shape:
        raise LabelError(
            f"truth has shape {truth.shape} and the prediction {predicted.shape}; both must be of one shape"
        )
    if groups is None:
        yield 0, truth.ravel(), predicted.ravel()
        return
    groups = np.atleast_1d(np.asarray(groups))
    if groups.dtype.kind not in "iu" or truth.shape[:1] != groups.shape:
        raise LabelError(
            f"groups are {groups.dtype} of shape {groups.shape}; expected one whole number for each of the "
            f"{truth.shape[0] if truth.ndim else 0} samples"
        )
    for group in np.unique(groups):
        here = groups == group
        yield int(group), truth[here].ravel(), predicted[here].ravel()


def _scored(value: Any, interval: Interval | None) -> dict[str, float | None]:
    bounds = {} if interval is None else {"low": _json(interval.low), "high": _json(interval.high)}
    return {"value": _json(value), **bounds}


def _json(value: Any) -> float | None:
    return None if math.isnan(value) else float(value)


def _overall(metrics: GroupSums, intervals: Scores | None) -> list[str]:
    lines = [
        f"{name:24s} {_shown(value, intervals.overall[name] if intervals else None)}"
        for name, value in metrics.scores().items()
    ]
    left = f"{metrics.unpredicted} labelled pixels have no prediction and are in no score"
    return [*lines, left] if metrics.unpredicted else lines


def _shown(value: Any, interval: Interval | None) -> str:
    return f"{value:.3f}" + (
        f" [{interval.low:.3f}, {interval.high:.3f}]" if interval and np.isfinite(interval.low) else ""
    )
