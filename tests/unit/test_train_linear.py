"""Logistic and ridge regression against scikit-learn, and what must hold of them whatever the features."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xgfm.errors import TrainError
from xgfm.train.linear import fit_logistic, fit_ridge


def clouds(seed: int, count: int, width: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    codes = np.concatenate([np.arange(classes), rng.integers(0, classes, count - classes)])
    centres = rng.normal(0, 1.5, (classes, width))
    return 50 + 7 * (centres[codes] + rng.normal(0, 1, (count, width))), codes


@pytest.mark.parametrize("penalty", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("classes", [2, 4])
def test_logistic_is_scikit_learns(penalty: float, classes: int) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, codes = clouds(3, 200, 6, classes)
    weight, bias = fit_logistic(features, codes, penalty)
    scaled = (features - features.mean(0)) / features.std(0)
    # newton-cg keeps two classes as two rows only in a multinomial model, which we ask for by a third, empty direction
    theirs = linear_model.LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=10_000).fit(scaled, codes)
    mine = features @ weight.T + bias
    if classes == 2:  # scikit-learn then fits one direction d with penalty |d|^2 / 2; two rows share it: |d|^2 / 4
        theirs = linear_model.LogisticRegression(C=2 / penalty, tol=1e-10, max_iter=10_000).fit(scaled, codes)
        np.testing.assert_allclose(mine[:, 1] - mine[:, 0], theirs.decision_function(scaled), atol=2e-3)
        return
    said = theirs.decision_function(scaled)
    centred = [values - values.mean(1, keepdims=True) for values in (mine, said)]
    np.testing.assert_allclose(*centred, atol=2e-3)


def test_ridge_is_scikit_learns() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, codes = clouds(4, 100, 5, 3)
    targets = np.stack([codes * 1.7 + features[:, 0], features[:, 2] * 0.1], axis=1)
    weight, bias = fit_ridge(features, targets, 2.0)
    scaled = (features - features.mean(0)) / features.std(0)
    theirs = linear_model.Ridge(alpha=2.0).fit(scaled, targets)
    np.testing.assert_allclose(features @ weight.T + bias, theirs.predict(scaled), atol=1e-8)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), shift=st.floats(-1e3, 1e3), scale=st.floats(1e-3, 1e3))
def test_units_of_the_features_do_not_matter(seed: int, shift: float, scale: float) -> None:
    features, codes = clouds(seed, 60, 4, 3)
    weight, bias = fit_logistic(features, codes, 1.0)
    other_weight, other_bias = fit_logistic(features * scale + shift, codes, 1.0)
    np.testing.assert_allclose(
        features @ weight.T + bias, (features * scale + shift) @ other_weight.T + other_bias, atol=1e-3
    )


def test_a_constant_feature_and_separable_classes_are_finite() -> None:
    features = np.array([[0.0, 5.0], [0.1, 5.0], [1.0, 5.0], [1.1, 5.0]])
    weight, bias = fit_logistic(features, np.array([0, 0, 1, 1]), 0.01)
    assert np.isfinite(weight).all()
    assert np.isfinite(bias).all()
    assert (features @ weight.T + bias).argmax(1).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("nan")])
def test_no_penalty_is_refused(penalty: float) -> None:
    with pytest.raises(TrainError, match="above 0"):
        fit_logistic(np.zeros((2, 1)), np.array([0, 1]), penalty)
    with pytest.raises(TrainError, match="above 0"):
        fit_ridge(np.zeros((2, 1)), np.zeros((2, 1)), penalty)
