"""A head on an encoder's features: against the encoder called by hand, and scikit-learn's neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import small
import torch
from torch.nn import functional as F

from xgfm.errors import TaskError
from xgfm.models.build import build_task
from xgfm.models.probed import ProbedEncoder


def probed(**options: Any) -> ProbedEncoder:
    torch.manual_seed(0)
    module = build_task(small.task({"family": "probe", "layer": 2, **options})).eval()
    assert isinstance(module, ProbedEncoder)
    return module


def tokens_of(module: ProbedEncoder, x: torch.Tensor) -> torch.Tensor:
    """Features ``(B, D, rows, columns)`` of the third block, written out."""
    tokens = module.encoder.forward_features(x)[2][:, 1:]
    return tokens.reshape(len(x), 3, x.shape[-2] // 8, x.shape[-1] // 8, -1).mean(1).movedim(-1, 1)


@pytest.mark.parametrize("unit", [False, True])
def test_a_linear_head_sees_features_interpolated_to_the_pixel(unit: bool) -> None:
    module, x = probed(head="linear", unit=unit), torch.randn(2, 6, 3, 32, 40)
    features = tokens_of(module, x)
    features = F.normalize(features, dim=1) if unit else features
    enlarged = F.interpolate(features, scale_factor=8, mode="bilinear", align_corners=False)
    linear = module.head.linear
    assert isinstance(linear, torch.nn.Linear)
    wanted = torch.einsum("bdyx,kd->bkyx", enlarged, linear.weight) + linear.bias[:, None, None]
    torch.testing.assert_close(module(x), wanted, atol=1e-4, rtol=1e-4)


def test_neighbours_vote_as_scikit_learns() -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    rng = np.random.default_rng(0)
    module = probed(head="knn", examples=40, neighbours=7)
    x = torch.randn(1, 6, 3, 32, 32)
    features = tokens_of(module, x)[0].flatten(1).T.detach().numpy()  # (16, D)
    examples = features[rng.integers(0, 16, 40)] + rng.normal(0, 0.5, (40, features.shape[1]))
    codes = rng.integers(0, 3, 40)
    module.head.load_state_dict(
        {
            "directions": F.normalize(torch.tensor(examples).float(), dim=1),
            "targets": F.one_hot(torch.tensor(codes), 3).float(),
        }
    )
    theirs = neighbors.KNeighborsClassifier(7, metric="cosine").fit(examples, codes).predict_proba(features)
    mine = module.head(torch.tensor(features).float()[None, None])[0, 0]
    np.testing.assert_allclose(mine.numpy(), theirs, atol=1e-6)
    shares = module(x).softmax(1)[0, :, 3:5, 3:5].mean((1, 2))  # about the middle of the first patch
    np.testing.assert_allclose(shares.detach().numpy(), theirs[0], atol=0.02 + 8 * 1e-4 + _blur(theirs))


def _blur(shares: np.ndarray) -> float:
    """How far bilinear enlarging may move the answer in the middle of the first patch: its edges are repeated."""
    grid = shares.reshape(4, 4, 3)
    return float(np.abs(grid[:2, :2] - grid[0, 0]).max()) / 8


def test_means_of_a_regression() -> None:
    spec = small.task(
        {"family": "probe", "layer": 3, "head": "knn", "examples": 2, "neighbours": 2, "regression": True},
        kind="regression",
        classes=(),
    )
    module = build_task(spec).eval()
    module.head.targets[:] = torch.tensor([[2.0], [-6.0]])
    torch.testing.assert_close(module(torch.randn(1, 6, 3, 32, 32)), torch.full((1, 1, 32, 32), -2.0))


@pytest.mark.parametrize("size", [(8, 8), (13, 40), (33, 31)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    assert probed(head="linear")(torch.randn(2, 6, 3, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"head": "tree"}, "head is 'tree'"),
        ({"head": "linear", "layer": 4}, "layer is 4"),
        ({"head": "knn"}, "examples is 0"),
        ({"head": "knn", "examples": 3, "neighbours": 4}, "neighbours is 4"),
        ({"head": "linear", "unit": 1}, "unit is 1"),
    ],
)
def test_wrong_heads_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(TaskError, match=said):
        probed(**options)
