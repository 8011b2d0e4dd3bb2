"""Calibration: against scikit-learn, torch's optimiser, and probabilities that are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from toys import Positional, cube, task_spec

from xgfm.errors import LabelError, TaskError
from xgfm.infer.layers import map_layers
from xgfm.models.handle import ModelHandle, load_task, register_task
from xgfm.models.spec import task_from_json, to_json
from xgfm.train.scores.calibration import BOUNDS, Reliability, confidence_of, draw_reliability, fit_temperature
from xgfm.train.scores.metrics import IGNORE


def drawn(seed: int, temperature: float, *, pixels: int = 4000, classes: int = 4) -> tuple[Any, Any]:
    """Logits, and labels drawn with the probabilities that the logits have at that temperature."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(pixels, classes))
    weights = np.exp(logits / temperature)
    shares = (weights / weights.sum(1, keepdims=True)).cumsum(1)
    labels = (rng.random((pixels, 1)) > shares).sum(1).clip(0, classes - 1)
    return logits, labels.astype("uint8")


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 30))
def test_bins_are_those_of_scikit_learn(seed: int, bins: int) -> None:
    rng = np.random.default_rng(seed)
    sure, right = rng.random(500), rng.random(500) < 0.7
    reliability = Reliability(bins)
    for part in range(3):
        one = Reliability(bins)
        here = np.s_[part::3]
        one.add(np.zeros(500, int)[here], np.where(right, 0, 1)[here], sure[here])
        reliability.merge(one)
    accuracy, confidence = calibration_curve(right, sure, n_bins=bins)
    there = reliability.count > 0
    np.testing.assert_allclose(reliability.accuracy[there], accuracy)
    np.testing.assert_allclose(reliability.confidence[there], confidence)
    error = (reliability.count[there] / 500 * np.abs(accuracy - confidence)).sum()
    assert reliability.error == pytest.approx(error)


def test_model_that_is_as_sure_as_right_has_no_error_and_one_that_is_too_sure_has() -> None:
    logits, labels = drawn(0, 1.0, pixels=40_000)
    errors = []
    for temperature in (1.0, 0.4):
        reliability = Reliability()
        said, sure = confidence_of(logits, temperature)
        reliability.add(labels, said, sure)
        errors.append(reliability.error)
    assert errors[0] < 0.01 < 0.05 < errors[1]


@pytest.mark.parametrize("true", [0.5, 1.0, 2.5, 6.0])
def test_temperature_that_labels_were_drawn_with_is_found(true: float) -> None:
    logits, labels = drawn(1, true, pixels=40_000)
    assert fit_temperature(logits, labels) == pytest.approx(true, rel=0.05)


@settings(deadline=None)
@given(st.integers(0, 200), st.floats(0.3, 5))
def test_temperature_is_the_likeliest_of_torch(seed: int, true: float) -> None:
    logits, labels = drawn(seed, true, pixels=300)
    found = fit_temperature(logits, labels)
    table, codes = torch.from_numpy(logits), torch.from_numpy(labels).long()

    def loss(temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(table / temperature, codes))

    assert loss(found) <= min(loss(found * 1.01), loss(found / 1.01), loss(true)) + 1e-12


def test_pixels_without_label_are_left_out_and_images_are_taken() -> None:
    logits, labels = drawn(2, 2.0)
    images = np.moveaxis(logits.reshape(10, 20, 20, 4), -1, 1)
    masked = labels.reshape(10, 20, 20).copy()
    masked[3] = IGNORE
    kept = np.delete(np.arange(4000).reshape(10, 400), 3, 0).ravel()
    assert fit_temperature(images, masked) == pytest.approx(fit_temperature(logits[kept], labels[kept]))


def test_labels_that_are_all_met_end_at_the_bound() -> None:
    logits = np.array([[4.0, 0.0], [0.0, 4.0]])
    assert fit_temperature(logits, np.array([0, 1])) == pytest.approx(BOUNDS[0], rel=1e-3)
    assert fit_temperature(logits, np.array([1, 0])) == pytest.approx(BOUNDS[1], rel=1e-3)


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        (np.zeros((4, 3)), np.zeros(3, int), r"logits have shape \(4, 3\) and labels \(3,\)"),
        (np.zeros((4, 3)), np.full(4, IGNORE), "no pixel has a label"),
        (np.zeros((4, 3)), np.full(4, 3), "code 3; logits have 3 classes"),
    ],
)
def test_labels_that_do_not_fit_are_refused(logits: Any, labels: Any, words: str) -> None:
    with pytest.raises(LabelError, match=words):
        fit_temperature(logits, labels)


def test_logits_are_no_confidences() -> None:
    with pytest.raises(LabelError, match="probabilities from 0 to 1, not logits"):
        Reliability().add([0], [0], [3.0])
    with pytest.raises(LabelError, match="all three of one shape"):
        Reliability().add([0], [0, 1], [0.5])
    with pytest.raises(LabelError, match="bins=0"):
        Reliability(0)


def test_table_is_json_and_text() -> None:
    reliability = Reliability(4)
    reliability.add([0, 0, IGNORE], [0, 1, 0], [0.9, 0.8, np.nan])
    assert reliability.to_json() == {
        "expected_calibration_error": pytest.approx(0.35),
        "count": [0, 0, 0, 2],
        "confidence": [None, None, None, pytest.approx(0.85)],
        "accuracy": [None, None, None, 0.5],
    }
    assert "0.75 - 1.00" in str(reliability)
    assert "error 0.3500" in str(reliability)
    assert np.isnan(Reliability().error)


def test_diagram_shows_every_curve() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    logits, labels = drawn(3, 2.0)
    curves = []
    for temperature in (1.0, 2.0):
        curves.append(Reliability())
        curves[-1].add(labels, *confidence_of(logits, temperature))
    figure = draw_reliability(*curves, names=("before", "after"))
    words = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert words[1:] == [f"before, error {curves[0].error:.3f}", f"after, error {curves[1].error:.3f}"]
    line = figure.axes[0].lines[1]
    np.testing.assert_allclose(line.get_ydata(), curves[0].accuracy[curves[0].count > 0])


# ---- the temperature of a task


def test_layers_divide_logits_and_keep_the_class() -> None:
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(2, 4, 5, dtype=torch.bool)
    layers = ("class", "probability", "confidence", "entropy", "logits")
    cold, warm = (map_layers(logits, valid, layers, t) for t in (1.0, 2.5))
    assert torch.equal(cold[:, 0], warm[:, 0])
    assert torch.allclose(warm[:, 1:4], (logits / 2.5).softmax(1))
    assert torch.allclose(warm[:, 4], (logits / 2.5).softmax(1).amax(1))
    wanted = torch.distributions.Categorical(logits=(logits / 2.5).movedim(1, -1)).entropy()
    assert torch.allclose(warm[:, 5], wanted, atol=1e-6)
    assert torch.equal(warm[:, 6:], logits)
    assert torch.equal(cold, map_layers(logits, valid, layers))


def test_temperature_goes_through_the_record() -> None:
    spec = task_spec(temperature=1.75)
    assert task_from_json(to_json(spec)) == spec
    old = to_json(task_spec())
    del old["temperature"]
    assert task_from_json(old).temperature == 1
    for wrong in (0, -1.0, float("nan"), "2"):
        with pytest.raises(TaskError, match="temperature is"):
            task_spec(temperature=wrong)


def handle(name: str, temperature: float) -> ModelHandle:
    register_task(task_spec(name=name, temperature=temperature), lambda spec: Positional())
    return load_task(name)


def test_predict_gives_calibrated_probabilities_and_the_same_map() -> None:
    plain, warm = handle("plain-toy", 1.0), handle("warm-toy", 3.0)
    assert plain.key != warm.key
    layers = ["class", "probability", "logits"]
    one, other = (cube(missing=0.01).gfm.predict(h, return_=layers).compute() for h in (plain, warm))
    assert (one["plain_toy"].values == other["warm_toy"].values).all()
    logits = other["logits"].values
    np.testing.assert_array_equal(one["logits"].values, logits)
    weights = np.exp(logits / 3 - np.max(logits / 3, axis=0))
    np.testing.assert_allclose(other["probability"].values, weights / weights.sum(0), atol=1e-6)
    assert other.attrs["temperature"] == 3
    assert "temperature" not in one.attrs


def test_handles_of_other_temperatures_share_no_key() -> None:
    one = handle("key-toy", 1.0)
    assert replace(one, spec=replace(one.spec, temperature=2.0)).key != one.key
