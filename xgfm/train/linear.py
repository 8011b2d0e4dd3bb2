"""Two linear fits of a few lines each: logistic and ridge regression on standardised features.

In: features ``(n, D)`` and targets. Out: weights ``(K, D)`` and biases ``(K,)`` for the features as they are: the
standardisation is folded in. Both problems are convex, so nothing is drawn at random.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from xgfm.errors import TrainError

Numbers = NDArray[np.float64]


def fit_logistic(features: NDArray[np.floating], codes: NDArray[np.integer], penalty: float) -> tuple[Numbers, Numbers]:
    """Fit a multinomial logistic regression.

    Minimises the sum of the cross-entropies plus half of ``penalty`` times the squared weights; biases are free. With
    ``penalty = 1 / C`` this is scikit-learn's ``LogisticRegression`` on standardised features.

    Parameters
    ----------
    features
        ``(n, D)``.
    codes
        ``(n,)`` 0 to K - 1, each of them there.
    penalty
        Above 0: without it, separable classes have no finite solution.
    """
    _require(penalty)
    scaled, mean, std = _standardised(features)
    x, y = torch.from_numpy(scaled), torch.from_numpy(codes.astype("int64"))
    classes = int(codes.max()) + 1
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=1000, tolerance_grad=1e-6, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = F.cross_entropy(x @ weight.T + bias, y, reduction="sum") + 0.5 * penalty * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    solver.step(loss)  # type: ignore[no-untyped-call]
    return _folded(weight.detach().numpy(), bias.detach().numpy(), mean, std)


def fit_ridge(features: NDArray[np.floating], targets: NDArray[np.floating], penalty: float) -> tuple[Numbers, Numbers]:
    """Fit a linear regression with a penalty on the squared weights: scikit-learn's ``Ridge(alpha=penalty)``.

    Parameters
    ----------
    features
        ``(n, D)``.
    targets
        ``(n, K)``.
    penalty
        Above 0.
    """
    _require(penalty)
    scaled, mean, std = _standardised(features)
    centre = targets.mean(axis=0, dtype="float64")
    gram = scaled.T @ scaled + penalty * np.eye(scaled.shape[1])
    weight = np.linalg.solve(gram, scaled.T @ (targets - centre)).T
    return _folded(weight, centre, mean, std)


def _require(penalty: float) -> None:
    if not penalty > 0:
        raise TrainError(f"penalty={penalty}; give a number above 0")


def _standardised(features: NDArray[np.floating]) -> tuple[Numbers, Numbers, Numbers]:
    values = features.astype("float64")
    mean, std = values.mean(axis=0), values.std(axis=0)
    std = np.where(std > 0, std, 1.0)  # a feature that is the same everywhere says nothing
    return (values - mean) / std, mean, std


def _folded(weight: Numbers, bias: Numbers, mean: Numbers, std: Numbers) -> tuple[Numbers, Numbers]:
    folded = weight / std
    return folded, bias - folded @ mean
