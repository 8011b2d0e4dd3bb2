"""Scores against scikit-learn, and what streaming, merging and drawing must not change."""

from __future__ import annotations

import json
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sk
from small import CLASSES, task

from xgfm.errors import LabelError, TrainError
from xgfm.train.scores.metrics import IGNORE, Confusion, Regression, metrics_for, metrics_from_state, scores_of

NAMES = ("a", "b", "c", "d")
CODES = st.sampled_from([0, 1, 2, 3, IGNORE])
PAIRS = st.integers(1, 60).flatmap(
    lambda n: st.tuples(*(hnp.arrays("uint8", n, elements=CODES) for _ in range(2)), st.integers(0, 2**32 - 1))
)
NUMBERS = st.one_of(st.floats(-1e4, 1e4, width=32), st.just(float("nan")))
SERIES = st.integers(2, 60).flatmap(
    lambda n: st.tuples(*(hnp.arrays("float32", n, elements=NUMBERS) for _ in range(2)), st.integers(0, 2**32 - 1))
)


def noisy(seed: int = 0, *, samples: int = 40, skill: float = 0.6, classes: int = 4) -> tuple[Any, Any, Any]:
    """Truth, a prediction that is right with that chance, and the group of each sample."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, (samples, 6, 5)).astype("uint8")
    said = np.where(rng.random(truth.shape) < skill, truth, rng.integers(0, classes, truth.shape)).astype("uint8")
    truth[rng.random(truth.shape) < 0.1] = IGNORE
    said[rng.random(truth.shape) < 0.05] = IGNORE
    return truth, said, np.arange(samples) // 2


@settings(deadline=None)
@given(PAIRS)
def test_scores_are_those_of_scikit_learn(pair: Any) -> None:
    truth, said, _ = pair
    kept = (truth != IGNORE) & (said != IGNORE)
    confusion = Confusion(NAMES)
    confusion.add(truth, said)
    assert confusion.unpredicted == ((truth != IGNORE) & (said == IGNORE)).sum()
    if not kept.any():
        assert all(np.isnan(v) for v in confusion.scores().values())
        return
    truth, said, labels = truth[kept], said[kept], range(4)
    np.testing.assert_array_equal(confusion.matrix, sk.confusion_matrix(truth, said, labels=list(labels)))
    ours, nan = scores_of(confusion.matrix), np.nan
    assert ours["accuracy"] == pytest.approx(sk.accuracy_score(truth, said))
    iou = sk.jaccard_score(truth, said, labels=list(labels), average=None, zero_division=0)
    there = np.isin(list(labels), [*truth, *said])
    np.testing.assert_allclose(ours["iou"], np.where(there, iou, nan))
    for name, theirs in {
        "f1": sk.f1_score,
        "precision": sk.precision_score,
        "recall": sk.recall_score,
    }.items():
        wanted = theirs(truth, said, labels=list(labels), average=None, zero_division=nan)
        np.testing.assert_allclose(ours[name], wanted, err_msg=name)
    assert ours["mean_iou"] == pytest.approx(np.nanmean(ours["iou"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a class that is only predicted, or one class alone
        assert ours["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, said))
        kappa = sk.cohen_kappa_score(truth, said)
    if np.isnan(ours["kappa"]):
        assert len(np.unique(truth)) == len(np.unique(said)) == 1
    else:
        assert ours["kappa"] == pytest.approx(kappa)


@settings(deadline=None)
@given(SERIES)
def test_errors_are_those_of_scikit_learn(pair: Any) -> None:
    truth, said, _ = pair
    kept = ~np.isnan(truth) & ~np.isnan(said)
    regression = Regression("t")
    regression.add(truth, said)
    assert regression.unpredicted == (~np.isnan(truth) & np.isnan(said)).sum()
    if not kept.any():
        return
    truth, said, scores = truth[kept].astype("float64"), said[kept].astype("float64"), regression.scores()
    assert scores["rmse"] == pytest.approx(sk.root_mean_squared_error(truth, said), abs=1e-9)
    assert scores["mae"] == pytest.approx(sk.mean_absolute_error(truth, said), abs=1e-9)
    assert scores["bias"] == pytest.approx((said - truth).mean(), abs=1e-9)
    if np.ptp(truth) > 1e-3:
        assert scores["r2"] == pytest.approx(sk.r2_score(truth, said), rel=1e-6, abs=1e-6)


def test_r2_of_large_numbers_that_differ_little_is_right() -> None:
    rng = np.random.default_rng(0)
    truth = 1e8 + rng.normal(size=(50, 100))
    said = truth + 0.1 * rng.normal(size=truth.shape)
    regression = Regression()
    for row in range(50):
        regression.add(truth[row : row + 1], said[row : row + 1], [row % 7])
    assert regression.scores()["r2"] == pytest.approx(sk.r2_score(truth.ravel(), said.ravel()), abs=1e-7)


@settings(deadline=None)
@given(PAIRS)
def test_parts_merged_in_any_order_are_the_whole(pair: Any) -> None:
    truth, said, seed = pair
    rng = np.random.default_rng(seed)
    groups, part = rng.integers(0, 3, truth.size), rng.integers(0, 3, truth.size)
    whole, one, other = Confusion(NAMES), Confusion(NAMES), Confusion(NAMES)
    whole.add(truth, said, groups)
    for number in rng.permutation(3):
        here = part == number
        (one if number else other).add(truth[here], said[here], groups[here])
    merged = pickle.loads(pickle.dumps(other)).merge(one)
    assert merged.to_json(20) == whole.to_json(20)
    assert merged.groups == whole.groups


@settings(deadline=None)
@given(SERIES)
def test_parts_of_a_regression_are_the_whole(pair: Any) -> None:
    truth, said, seed = pair
    part = np.random.default_rng(seed).integers(0, 2, truth.size)
    whole, one, other = Regression(), Regression(), Regression()
    whole.add(truth, said)
    one.add(truth[part == 0], said[part == 0])
    other.add(truth[part == 1], said[part == 1])
    for name, value in one.merge(other).scores().items():
        np.testing.assert_allclose(value, whole.scores()[name], rtol=1e-6, atol=1e-6, err_msg=name)


def test_ranks_may_add_the_sums_of_all_groups() -> None:
    truth, said, groups = noisy()
    whole, parts = Confusion(NAMES), [Confusion(NAMES) for _ in range(3)]
    whole.add(truth, said, groups)
    for rank, part in enumerate(parts):
        part.add(truth[rank::3], said[rank::3], groups[rank::3])
    every = sorted(set(groups.tolist()))
    np.testing.assert_array_equal(sum(p.sums(every) for p in parts), whole.sums(every))
    assert parts[0].sums([99_999]).sum() == 0


def test_intervals_hold_the_score_and_depend_on_the_seed_alone() -> None:
    truth, said, groups = noisy()
    confusion, shuffled = Confusion(NAMES), Confusion(NAMES)
    confusion.add(truth, said, groups)
    for i in np.random.default_rng(5).permutation(len(truth)):
        shuffled.add(truth[i : i + 1], said[i : i + 1], groups[i : i + 1])
    scores = confusion.bootstrap(300, seed=3)
    assert scores == shuffled.bootstrap(300, seed=3) != confusion.bootstrap(300, seed=4)
    for name, value in confusion.scores().items():
        assert scores.overall[name].low < value < scores.overall[name].high


def test_bootstrap_draws_groups_and_not_pixels() -> None:
    """Of 20 groups that are all right or all wrong, the mean varies as that of 20 coins."""
    truth = np.zeros((20, 500), "uint8")
    said = np.repeat((np.arange(20) % 2).astype("uint8"), 500).reshape(20, 500)
    confusion = Confusion(("a", "b"))
    confusion.add(truth, said, np.arange(20))
    bounds = confusion.bootstrap(4000).overall["accuracy"]
    assert bounds.high - bounds.low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 20), rel=0.1)
    alone = Confusion(("a", "b"))
    alone.add(truth.reshape(-1, 1), said.reshape(-1, 1), np.arange(10_000))
    narrow = alone.bootstrap(400).overall["accuracy"]
    assert narrow.high - narrow.low < 0.1 * (bounds.high - bounds.low)


def test_bootstrap_is_that_of_a_loop() -> None:
    truth, said, groups = noisy(samples=12)
    confusion = Confusion(NAMES)
    confusion.add(truth, said, groups)
    rng, drawn = np.random.default_rng(0), []
    for weights in rng.multinomial(6, np.full(6, 1 / 6), 200):
        rows = np.concatenate([np.flatnonzero(groups == g) for g, w in enumerate(weights) for _ in range(w)])
        one = Confusion(NAMES)
        one.add(truth[rows], said[rows])
        drawn.append(one.scores()["mean_iou"])
    low, high = np.quantile(drawn, [0.025, 0.975])
    bounds = confusion.bootstrap(200).overall["mean_iou"]
    assert (bounds.low, bounds.high) == pytest.approx((low, high))


def test_bootstrap_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, said, groups = noisy()
    confusion = Confusion(NAMES)
    confusion.add(truth, said, groups)
    whole = confusion.bootstrap(100)
    monkeypatch.setattr("xgfm.train.scores.group_sums._AT_ONCE", 200)
    assert confusion.bootstrap(100) == whole


def test_class_that_some_draws_lack_has_an_interval() -> None:
    truth = np.zeros((10, 4), "uint8")
    truth[:2] = 1
    confusion = Confusion(("a", "b", "c"))
    confusion.add(truth, truth, np.arange(10))
    scores = confusion.bootstrap(200)
    assert (scores.classes["iou"][1].low, scores.classes["iou"][1].high) == (1, 1)
    assert np.isnan(scores.classes["iou"][2].low)


def test_class_of_one_group_or_none_has_no_interval() -> None:
    truth = np.zeros((10, 4), "uint8")
    truth[0] = 1
    predicted = truth.copy()
    predicted[0, 0] = 0
    confusion = Confusion(("a", "b", "c"))
    confusion.add(truth, predicted, np.arange(10))
    scores = confusion.bootstrap(200)
    assert np.isnan(scores.classes["iou"][1].low)
    assert scores.classes["iou"][0].low < scores.classes["iou"][0].high
    values = confusion.to_json(50)
    assert values["classes"][1]["iou"] == {"value": 0.75, "low": None, "high": None}
    assert values["classes"][2]["iou"] == {"value": None, "low": None, "high": None}
    json.dumps(values, allow_nan=False)


def test_regression_has_intervals_too() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(30, 20))
    regression = Regression("t ha-1")
    regression.add(truth, truth + 0.3 * rng.normal(size=truth.shape), np.arange(30))
    for name, value in regression.scores().items():
        bounds = regression.bootstrap(300).overall[name]
        assert bounds.low < value < bounds.high
    assert "rmse, mae and bias in t ha-1" in str(regression)


def test_one_group_gives_no_interval() -> None:
    confusion = Confusion(NAMES)
    confusion.add([0, 1], [0, 1])
    with pytest.raises(TrainError, match="all pixels are of 1; give groups="):
        confusion.bootstrap()
    assert confusion.intervals() is None
    assert confusion.to_json()["scores"]["accuracy"] == {"value": 1.0}


@pytest.mark.parametrize("metrics", [Confusion(NAMES), Regression("t")])
def test_state_comes_back_equal(metrics: Any) -> None:
    truth, said, groups = noisy()
    metrics.add(truth, said, groups)
    again = metrics_from_state(json.loads(json.dumps(metrics.state())))
    assert type(again) is type(metrics)
    assert again.to_json(20) == metrics.to_json(20)


def test_empty_metrics_say_so() -> None:
    assert np.isnan(Confusion(NAMES).scores()["accuracy"])
    assert Confusion(NAMES).to_json()["pixels"] == 0
    assert Regression().to_json()["scores"]["rmse"] == {"value": None}
    assert Confusion(NAMES).matrix.shape == (4, 4)


def test_task_says_which_metrics() -> None:
    assert metrics_for(task()).classes == tuple(c.name for c in CLASSES)  # type: ignore[union-attr]
    assert metrics_for(task(kind="regression", classes=(), units="t ha-1")).units == "t ha-1"  # type: ignore[union-attr]


def test_table_names_classes_and_what_is_in_no_score() -> None:
    confusion = Confusion(NAMES)
    confusion.add([0, 1, 2, 0], [0, 1, 1, IGNORE])
    assert "0.667" in str(confusion)
    assert "1 labelled pixels have no prediction and are in no score" in str(confusion)
    truth, said, groups = noisy()
    confusion.add(truth, said, groups)
    assert "[0." in confusion.table(confusion.bootstrap(50))


@pytest.mark.parametrize(
    ("truth", "said", "groups", "words"),
    [
        ([0, 4], [0, 1], None, "truth holds codes from 0 to 4 as .*; the 4 classes have whole numbers from 0 to 3"),
        ([0, 1], [0, 254], None, "predicted holds codes from 0 to 254"),
        ([0.5, 1], [0, 1], None, "as float64"),
        ([-1, 1], [0, 1], None, "codes from -1"),
        ([0, 1], [0], None, r"truth has shape \(2,\) and the prediction \(1,\)"),
        ([0, 1], [0, 1], [0.5, 1], "groups are float64"),
        ([0, 1], [0, 1], [1], r"of shape \(1,\); expected one whole number for each of the 2 samples"),
    ],
)
def test_what_cannot_be_counted_is_refused(truth: Any, said: Any, groups: Any, words: str) -> None:
    confusion = Confusion(NAMES)
    with pytest.raises(LabelError, match=words):
        confusion.add(truth, said, groups)


def test_infinite_numbers_and_too_few_classes_are_refused() -> None:
    with pytest.raises(LabelError, match="infinite"):
        Regression().add([1.0, np.inf], [1.0, 2.0])
    with pytest.raises(LabelError, match="1 classes"):
        Confusion(["one"])
