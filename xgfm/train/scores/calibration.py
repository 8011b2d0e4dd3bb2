"""Whether a model is as sure as it is right, and the temperature that makes it so.

In: logits or confidences of labelled pixels that the model was not trained on. Out: how often it was right for how sure
it was, the expected calibration error, and the number that a task's logits are divided by (`TaskSpec.temperature`).
Guo et al. 2017, "On calibration of modern neural networks". Nothing is lazy, and torch is not needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from xgfm.errors import LabelError
from xgfm.notebook import subplots
from xgfm.palette import class_colors
from xgfm.train.scores.group_sums import Array, over
from xgfm.train.scores.metrics import IGNORE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BOUNDS = (0.05, 20.0)
"""Least and largest temperature: labels that a model always meets would ask for 0."""
_STEPS = 60


class Reliability:
    """How often a model was right, by how sure it was.

    Parameters
    ----------
    bins
        Of confidence, all of one width from 0 to 1; a bin holds its upper bound.
    """

    def __init__(self, bins: int = 15) -> None:
        if bins < 1:
            raise LabelError(f"bins={bins}; give 1 or more")
        self._sums = np.zeros((3, bins))

    @property
    def count(self) -> Array:
        """Pixels in each bin, ``(bin,)``."""
        count: Array = self._sums[0]
        return count

    @property
    def confidence(self) -> Array:
        """Mean confidence in each bin; NaN in an empty one."""
        return over(self._sums[1], self._sums[0])

    @property
    def accuracy(self) -> Array:
        """Share of right pixels in each bin; NaN in an empty one."""
        return over(self._sums[2], self._sums[0])

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of confidence and accuracy, bins weighted by their pixels."""
        count, sure, right = self._sums
        return float(over(np.abs(sure - right).sum(), count.sum()))

    def add(self, truth: Any, predicted: Any, confidence: Any) -> None:
        """Count some pixels.

        Parameters
        ----------
        truth, predicted
            Class codes of one shape; pixels with 255 in one of them are left out.
        confidence
            Probability of the predicted class, same shape.

        Raises
        ------
        LabelError
            For other shapes, or confidences that are no probabilities.
        """
        truth, predicted, confidence = np.asarray(truth), np.asarray(predicted), np.asarray(confidence, "float64")
        if not truth.shape == predicted.shape == confidence.shape:
            raise LabelError(
                f"truth, prediction and confidence have shapes {truth.shape}, {predicted.shape} and "
                f"{confidence.shape}; give all three of one shape"
            )
        kept = (truth != IGNORE) & (predicted != IGNORE)
        sure, right = confidence[kept], (truth == predicted)[kept]
        if not ((sure >= 0) & (sure <= 1)).all():
            raise LabelError("confidence= must hold probabilities from 0 to 1, not logits; NaN only where 255 is")
        bins = self._sums.shape[1]
        place = np.clip(np.ceil(sure * bins).astype("int64") - 1, 0, bins - 1)
        for row, weights in enumerate((np.ones_like(sure), sure, right)):
            self._sums[row] += np.bincount(place, weights, minlength=bins)

    def merge(self, other: Self) -> Self:
        """Add what another one of as many bins counted; return this one."""
        self._sums += other._sums
        return self

    def to_json(self) -> dict[str, Any]:
        """Return the error and the table as JSON values; empty bins have None."""
        means = ([None if np.isnan(v) else float(v) for v in values] for values in (self.confidence, self.accuracy))
        confidence, accuracy = means
        return {
            "expected_calibration_error": None if np.isnan(self.error) else self.error,
            "count": [int(n) for n in self.count],
            "confidence": confidence,
            "accuracy": accuracy,
        }

    def __str__(self) -> str:
        edges = np.linspace(0, 1, len(self.count) + 1)
        rows = [
            f"{low:.2f} - {high:.2f}   {int(n):9d}   {sure:10.3f}   {right:8.3f}"
            for low, high, n, sure, right in zip(
                edges[:-1], edges[1:], self.count, self.confidence, self.accuracy, strict=True
            )
            if n
        ]
        head = "bin            pixels   confidence   accuracy"
        return "\n".join([head, *rows, f"expected calibration error {self.error:.4f}"])


def confidence_of(logits: Any, temperature: float = 1.0) -> tuple[Array, Array]:
    """Return the predicted class of logits and its probability.

    Parameters
    ----------
    logits
        ``(sample, class, ...)``.
    temperature
        What they are divided by.

    Returns
    -------
    tuple
        Class codes and probabilities, both ``(sample, ...)``.
    """
    scaled = np.asarray(logits, "float64") / temperature
    largest = scaled.max(1, keepdims=True)
    return scaled.argmax(1), 1 / np.exp(scaled - largest).sum(1)


def fit_temperature(logits: Any, labels: Any) -> float:
    """Return the temperature under which labels are likeliest.

    Parameters
    ----------
    logits
        ``(sample, class, ...)``, of pixels that the model was not trained on: those of the validation split.
    labels
        Class codes ``(sample, ...)``; pixels with 255 are left out.

    Returns
    -------
    float
        Put it into the task: ``dataclasses.replace(spec, temperature=...)``. Between 0.05 and 20, which it only
        reaches where labels are all met, or where more would be right with the classes turned around.

    Raises
    ------
    LabelError
        For other shapes, or without a labelled pixel.

    Notes
    -----
    The mean negative log-likelihood is convex in 1/temperature, so its slope is halved between the bounds until they
    meet: the mean over pixels of (expected logit - logit of the label).
    """
    table, codes = _labelled(np.asarray(logits), np.asarray(labels))
    table = table - table.max(1, keepdims=True)
    wanted = table[np.arange(len(codes)), codes].mean()

    def slope(inverse: float) -> float:
        weights = np.exp(table * inverse)
        return float(((weights * table).sum(1) / weights.sum(1)).mean() - wanted)

    low, high = 1 / BOUNDS[1], 1 / BOUNDS[0]
    for _ in range(_STEPS):
        middle = (low * high) ** 0.5
        if high - low < 1e-9 * high:
            break
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return float((low * high) ** -0.5)


def _labelled(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Return logits ``(pixel, class)`` and codes ``(pixel,)`` of the pixels that have a label."""
    if logits.ndim < 2 or labels.shape != (logits.shape[0], *logits.shape[2:]):
        raise LabelError(
            f"logits have shape {logits.shape} and labels {labels.shape}; expected (sample, class, ...) and "
            "(sample, ...)"
        )
    table = np.moveaxis(logits, 1, -1).reshape(-1, logits.shape[1])
    kept = labels.ravel() != IGNORE
    codes = labels.ravel()[kept].astype("int64")
    if not codes.size:
        raise LabelError("no pixel has a label, so no temperature can be fitted; give the validation split's")
    if codes.max() >= logits.shape[1] or codes.min() < 0:
        raise LabelError(f"labels hold code {codes.max()}; logits have {logits.shape[1]} classes")
    return table[kept].astype("float64"), codes


def draw_reliability(*reliabilities: Reliability, names: tuple[str, ...] = ()) -> Figure:
    """Draw reliability diagrams: accuracy against confidence, and below it how many pixels were how sure.

    Parameters
    ----------
    reliabilities
        One curve each; say before and after a temperature.
    names
        For the legend, one for each.

    Returns
    -------
    Figure

    Raises
    ------
    MissingExtraError
        Where matplotlib is not installed.
    """
    figure, (curves, counts) = subplots(
        2, 1, figsize=(4.8, 5.6), height_ratios=(3, 1), sharex=True, layout="constrained"
    )
    curves.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="as sure as right")
    for number, (one, color) in enumerate(zip(reliabilities, class_colors(len(reliabilities)), strict=True)):
        there, edges = one.count > 0, np.linspace(0, 1, len(one.count) + 1)
        name = f"{names[number]}, " if number < len(names) else ""
        label = f"{name}error {one.error:.3f}"
        curves.plot(one.confidence[there], one.accuracy[there], "o-", color=color, markersize=4, label=label)
        share = one.count / max(one.count.sum(), 1)
        counts.stairs(share, edges, color=color, fill=True, alpha=0.35)
    curves.set(xlim=(0, 1), ylim=(0, 1), ylabel="share of pixels that are right")
    curves.legend(frameon=False, fontsize="small", loc="upper left")
    counts.set(xlabel="confidence", ylabel="share of pixels")
    return figure
