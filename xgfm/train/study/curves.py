"""What a study says: tables with intervals, learning curves, data efficiency.

In: a table with a line for each run, and one with a line for each evaluation of each run, as `experiment` keeps them.
Out: tables (pandas) and figures (matplotlib). Nothing is lazy.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from xgfm.errors import TrainError
from xgfm.notebook import subplots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METHODS = {
    "full": ("fine-tuned", "#0072b2", "o"),
    "frozen": ("encoder frozen", "#e69f00", "s"),
    "head": ("head only", "#cc79a7", "v"),
    "lora": ("LoRA", "#56b4e9", "P"),
    "scratch": ("from scratch", "#000000", "X"),
    "unet": ("U-Net", "#009e73", "D"),
    "forest": ("random forest", "#d55e00", "^"),
}
"""Name in figures, colour (of Okabe and Ito, told apart by everyone) and marker of each method."""

SCORES = {
    "mean_iou": "mean IoU",
    "mean_f1": "mean F1",
    "accuracy": "overall accuracy",
    "balanced_accuracy": "mean recall",
    "kappa": "kappa",
    "rmse": "RMSE",
    "mae": "mean absolute error",
    "r2": "R²",
}

_STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""97.5 % quantile of Student's t with 1 to 30 degrees of freedom."""


def summary(runs: pd.DataFrame, score: str = "mean_iou") -> pd.DataFrame:
    """Return mean and interval of each method at each share of the labels.

    Parameters
    ----------
    runs
        A line per run: ``method``, ``fraction``, ``seed``, ``chips`` and for each score ``<score>``, ``<score>_low``,
        ``<score>_high``, the last two from drawing the test blocks again.
    score
        Which one.

    Returns
    -------
    DataFrame
        ``method``, ``fraction``, ``chips`` (mean over seeds), ``runs``, ``mean``; ``low`` and ``high``, Student's 95 %
        interval of the mean over seeds, NaN for a single one; ``blocks_low`` and ``blocks_high``, the mean of the
        single runs' intervals over test blocks. Largest share first.
    """
    _require(runs, score)
    lines = [
        {
            "method": method,
            "fraction": fraction,
            "chips": float(some["chips"].mean()),
            "runs": len(some),
            **dict(zip(("mean", "low", "high"), student(some[score].to_numpy()), strict=True)),
            "blocks_low": float(some[f"{score}_low"].mean()),
            "blocks_high": float(some[f"{score}_high"].mean()),
        }
        for (method, fraction), some in runs.groupby(["method", "fraction"])
    ]
    return _ordered(pd.DataFrame(lines))


def differences(runs: pd.DataFrame, score: str = "mean_iou", against: str = "scratch") -> pd.DataFrame:
    """Return how much better each method is than another one on the same labels, with the same seed.

    Parameters
    ----------
    runs, score
        As `summary` takes them.
    against
        Method that the others are compared with.

    Returns
    -------
    DataFrame
        ``method``, ``fraction``, ``runs``, ``mean`` difference, ``low``, ``high``: Student's 95 % interval of the mean
        over pairs. Pairs are narrower than single scores: the subset of labels is the same in both.
    """
    _require(runs, score)
    other = runs[runs["method"] == against].set_index(["fraction", "seed"])[score]
    lines = []
    for (method, fraction), some in runs[runs["method"] != against].groupby(["method", "fraction"]):
        gained = (some.set_index(["fraction", "seed"])[score] - other).dropna()
        values = dict(zip(("mean", "low", "high"), student(gained.to_numpy()), strict=True))
        lines.append({"method": method, "fraction": fraction, "runs": len(gained), **values})
    return _ordered(pd.DataFrame(lines, columns=["method", "fraction", "runs", "mean", "low", "high"]))


def student(values: np.ndarray[Any, Any]) -> tuple[float, float, float]:
    """Return mean and Student's 95 % interval of it; NaN bounds for fewer than two values."""
    count = len(values)
    if count == 0:
        return math.nan, math.nan, math.nan
    mean = float(values.mean())
    if count == 1:
        return mean, math.nan, math.nan
    quantile = _STUDENT[count - 2] if count - 2 < len(_STUDENT) else 1.96 + 2.5 / (count - 1)
    half = quantile * float(values.std(ddof=1)) / math.sqrt(count)
    return mean, mean - half, mean + half


def markdown(table: pd.DataFrame) -> str:
    """Return a `summary` or `differences` table as Markdown: a line per method, a column per share of the labels."""
    rows = cells_of(table)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) + " |" for row in rows)


def cells_of(table: pd.DataFrame) -> list[list[str]]:
    """Return a `summary` or `differences` table as text: a header, then a line per method, a column per share."""
    fractions = sorted(table["fraction"].unique(), reverse=True)
    rows = [["", *(f"{100 * f:g} %" for f in fractions)]]
    for method, some in table.groupby("method", sort=False):
        cells = {line["fraction"]: _cell(line) for line in some.to_dict("records")}
        rows.append([label_of(str(method)), *(cells.get(f, "") for f in fractions)])
    return rows


def _cell(line: dict[Any, Any]) -> str:
    bounds = "" if math.isnan(line["low"]) else f" [{line['low']:.3f}, {line['high']:.3f}]"
    return f"{line['mean']:.3f}{bounds}"


def label_of(method: str) -> str:
    """Return what a method is called in tables and figures."""
    return METHODS[method][0] if method in METHODS else method


# ---- figures


def draw_efficiency(runs: pd.DataFrame, score: str = "mean_iou") -> Figure:
    """Draw the score on the test blocks against the share of the labels, on a logarithmic axis.

    Parameters
    ----------
    runs, score
        As `summary` takes them. Each run is a small mark, the line goes through the means, and the band is Student's
        95 % interval over seeds.

    Returns
    -------
    Figure

    Raises
    ------
    TrainError
        No runs, or no such score in them.
    MissingExtraError
        Where matplotlib is not installed.
    """
    table, (figure, axis) = summary(runs, score), _axes(6.4, 4.2)
    for method, some in table.groupby("method", sort=False):
        name, color, marker = _look(str(method))
        line = some.sort_values("fraction")
        each = runs[runs["method"] == method]
        axis.plot(line["fraction"], line["mean"], color=color, marker=marker, markersize=7, label=name)
        axis.plot(each["fraction"], each[score], ".", color=color, alpha=0.45, markersize=5)
        axis.fill_between(line["fraction"], line["low"], line["high"], color=color, alpha=0.12, linewidth=0)
    shares = sorted(table["fraction"].unique())
    chips = table.groupby("fraction")["chips"].mean()
    axis.set_xscale("log")
    axis.set_xticks(shares, [f"{100 * share:g} %\n{chips[share]:.0f} chips" for share in shares])
    axis.minorticks_off()
    axis.set_ylim(*_limits(runs[score].to_numpy()))
    axis.set_xlabel("share of the training labels")
    axis.set_ylabel(f"{SCORES.get(score, score)} on held-out blocks")
    axis.grid(alpha=0.25)
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    return figure


def draw_learning(history: pd.DataFrame, score: str = "mean_iou") -> Figure:
    """Draw the validation score against the training step, one picture for each share of the labels.

    Parameters
    ----------
    history
        A line per evaluation: ``method``, ``fraction``, ``seed``, ``step``, ``<score>``. Thin lines are seeds, the
        thick one is their mean where all of them have got to.
    score
        Which one, as the column is called.

    Returns
    -------
    Figure

    Raises
    ------
    TrainError
        Nothing to draw, or no such column.
    MissingExtraError
        Where matplotlib is not installed.
    """
    _require(history, score, bounds=False)
    shares = sorted(history["fraction"].unique(), reverse=True)
    columns = min(len(shares), 4)
    rows = math.ceil(len(shares) / columns)
    figure, axes = _axes(2.6 * columns + 1.8, 2.9 * rows, rows, columns)
    flat = np.atleast_1d(axes).ravel()
    for axis in flat[len(shares) :]:
        axis.remove()
    for axis, share in zip(flat, shares, strict=False):
        _draw_share(axis, history[history["fraction"] == share], score)
        axis.set_title(f"{100 * share:g} % of the labels", fontsize="medium")
    flat[0].set_ylim(*_limits(history[score].to_numpy()))
    figure.supxlabel("training step", fontsize="medium")
    figure.supylabel(f"{SCORES.get(score, score)} on validation blocks", fontsize="medium")
    handles = {
        label: handle
        for axis in flat[: len(shares)]
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False, fontsize="small")
    return figure


def _draw_share(axis: Axes, history: pd.DataFrame, score: str) -> None:
    for method in _by_order(history["method"].unique()):
        name, color, _ = _look(method)
        steps = history[history["method"] == method].pivot_table(index="step", columns="seed", values=score)
        axis.plot(steps.index, steps.to_numpy(), color=color, alpha=0.3, linewidth=0.8)
        whole = steps.dropna()
        axis.plot(whole.index, whole.mean(axis=1), color=color, linewidth=2, label=name)
    axis.grid(alpha=0.25)
    axis.tick_params(labelsize="small")


def _axes(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    return subplots(rows, columns, figsize=(width, height), layout="constrained", sharex=True, sharey=True)


def _limits(values: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Range of an axis from the runs themselves: an interval over two seeds would stretch it beyond use."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    margin = 0.06 * (high - low or 1.0)
    return low - margin, high + margin


def _look(method: str) -> tuple[str, str, str]:
    return METHODS.get(method, (method, "#999999", "."))


def _by_order(methods: Any) -> list[str]:
    known = list(METHODS)
    return sorted(map(str, methods), key=lambda m: (known.index(m) if m in known else len(known), m))


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    order = {method: number for number, method in enumerate(_by_order(table["method"].unique()))}
    ranked = table.assign(_order=table["method"].map(order))
    ranked = ranked.sort_values(["_order", "fraction"], ascending=[True, False], ignore_index=True)
    return ranked.drop(columns="_order")


def _require(table: pd.DataFrame, score: str, *, bounds: bool = True) -> None:
    if not len(table):
        raise TrainError("the study has no finished run; run it with xgfm.experiment(...)")
    missing = [name for name in (score, f"{score}_low", f"{score}_high")[: 3 if bounds else 1] if name not in table]
    if missing:
        known = [name for name in table.columns if f"{name}_low" in table or name in SCORES]
        raise TrainError(f"score={score!r}: the runs have no {missing}; expected one of {known}")
