"""Tables and figures of a study, against numbers worked out by hand and by SciPy."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xgfm.errors import TrainError
from xgfm.train.study.curves import differences, draw_efficiency, draw_learning, markdown, student, summary


def runs() -> pd.DataFrame:
    """Two methods, two shares, three seeds; the gain of fine-tuning is 0.2 + 0.01 seed at every share."""
    lines = []
    for fraction, level in ((1.0, 0.6), (0.1, 0.3)):
        for seed in range(3):
            base = level + 0.05 * seed
            for method, score in (("scratch", base), ("full", base + 0.2 + 0.01 * seed)):
                lines.append(
                    {"method": method, "fraction": fraction, "seed": seed, "chips": 100 * fraction, "mean_iou": score,
                     "mean_iou_low": score - 0.02, "mean_iou_high": score + 0.03}
                )  # fmt: skip
    return pd.DataFrame(lines).sample(frac=1, random_state=1)


def history() -> pd.DataFrame:
    steps = range(10, 60, 10)
    return pd.DataFrame(
        {"method": method, "fraction": fraction, "seed": seed, "step": step, "mean_iou": 1 - 1 / step - 0.01 * seed}
        for method in ("full", "scratch") for fraction in (1.0, 0.1) for seed in (0, 1) for step in steps
        if seed == 0 or step < 40  # the second seed stopped early
    )  # fmt: skip


def test_a_line_for_each_method_and_share() -> None:
    table = summary(runs())
    assert table[["method", "fraction"]].to_numpy().tolist() == [
        ["full", 1.0], ["full", 0.1], ["scratch", 1.0], ["scratch", 0.1],
    ]  # fmt: skip
    line = table.iloc[2]
    assert line["mean"] == pytest.approx(0.65)
    assert line["runs"] == 3
    assert line["high"] - line["mean"] == pytest.approx(4.303 * 0.05 / math.sqrt(3))
    assert line["blocks_low"] == pytest.approx(0.63)
    assert line["blocks_high"] == pytest.approx(0.68)


def test_pairs_are_of_one_seed_and_share() -> None:
    table = differences(runs())
    assert table["method"].tolist() == ["full", "full"]
    np.testing.assert_allclose(table["mean"], 0.21)
    np.testing.assert_allclose(table["high"] - table["mean"], 4.303 * 0.01 / math.sqrt(3))
    unpaired = runs()[lambda t: ~((t.method == "scratch") & (t.seed == 1))]
    assert differences(unpaired)["runs"].tolist() == [2, 2]


@settings(max_examples=60)
@given(values=st.lists(st.floats(-10, 10), min_size=2, max_size=60))
def test_intervals_are_scipys(values: list[float]) -> None:
    stats = pytest.importorskip("scipy.stats")
    array = np.array(values)
    mean, low, high = student(array)
    error = array.std(ddof=1) / math.sqrt(len(array))
    quantile = stats.t.ppf(0.975, len(array) - 1)
    assert mean == pytest.approx(array.mean())
    assert high - mean == pytest.approx(quantile * error, rel=2e-3, abs=1e-12)
    assert mean - low == pytest.approx(high - mean, abs=1e-9)


def test_one_value_has_no_interval() -> None:
    mean, low, high = student(np.array([0.5]))
    assert mean == 0.5
    assert math.isnan(low)
    assert math.isnan(high)
    assert math.isnan(student(np.array([]))[0])


def test_markdown_has_a_column_for_each_share() -> None:
    lines = markdown(summary(runs())).splitlines()
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == ["", "100 %", "10 %"]
    assert lines[2].startswith("| fine-tuned ")
    assert "0.650 [0.526, 0.774]" in lines[3]
    assert len({len(line) for line in lines}) == 1


def test_efficiency_is_drawn_from_the_means() -> None:
    pytest.importorskip("matplotlib")
    (axis,) = draw_efficiency(runs()).axes
    line = next(line for line in axis.lines if line.get_label() == "from scratch")
    np.testing.assert_allclose(line.get_xdata(), [0.1, 1.0])
    np.testing.assert_allclose(line.get_ydata(), [0.35, 0.65])
    assert axis.get_xscale() == "log"
    assert [t.get_text() for t in axis.get_xticklabels()] == ["10 %\n10 chips", "100 %\n100 chips"]
    assert len(axis.collections) == 2  # bands


def test_learning_curves_have_a_picture_for_each_share() -> None:
    pytest.importorskip("matplotlib")
    figure = draw_learning(history())
    assert [axis.get_title() for axis in figure.axes] == ["100 % of the labels", "10 % of the labels"]
    thick = [line for line in figure.axes[0].lines if line.get_linewidth() == 2]
    assert [line.get_label() for line in thick] == ["fine-tuned", "from scratch"]
    np.testing.assert_allclose(thick[0].get_xdata(), [10, 20, 30])  # where both seeds have got to
    np.testing.assert_allclose(thick[0].get_ydata()[0], 1 - 0.1 - 0.005)


def test_single_runs_are_drawn_without_bands() -> None:
    pytest.importorskip("matplotlib")
    one = runs()[lambda t: t.seed == 0]
    (axis,) = draw_efficiency(one).axes
    assert len(axis.lines) == 4


def test_nothing_and_unknown_scores_are_refused() -> None:
    with pytest.raises(TrainError, match="no finished run"):
        summary(runs().iloc[:0])
    with pytest.raises(TrainError, match=r"score='r2'.*mean_iou"):
        summary(runs(), "r2")
    with pytest.raises(TrainError, match="no finished run"):
        draw_learning(history().iloc[:0])
