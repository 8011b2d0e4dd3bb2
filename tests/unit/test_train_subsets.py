"""Shares of the labels: whole groups, nested, near what was asked for, another one with each seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xgfm.errors import TrainError
from xgfm.train.chips.subsets import subset

groups = st.lists(st.integers(-5, 12), min_size=1, max_size=120).map(np.array)
shares = st.floats(0.01, 1.0)


@settings(max_examples=200)
@given(groups=groups, shares=st.tuples(shares, shares), seed=st.integers(0, 2**40))
def test_smaller_shares_are_parts_of_larger_ones(groups: np.ndarray, shares: tuple[float, float], seed: int) -> None:
    small, large = (set(subset(groups, share, seed).tolist()) for share in sorted(shares))
    assert small <= large


@settings(max_examples=200)
@given(groups=groups, share=shares, seed=st.integers(0, 2**40))
def test_groups_are_whole_and_the_share_is_the_nearest(groups: np.ndarray, share: float, seed: int) -> None:
    kept = subset(groups, share, seed)
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert kept.size
    names = set(groups[kept].tolist())
    assert kept.tolist() == [k for k, g in enumerate(groups.tolist()) if g in names]
    largest = int(np.unique(groups, return_counts=True)[1].max())
    assert abs(len(kept) - share * len(groups)) <= largest  # one group at least, and off by half a group otherwise


def test_all_of_them() -> None:
    assert subset(np.array([4, 4, 1, 9]), 1.0, 3).tolist() == [0, 1, 2, 3]


def test_seeds_draw_other_groups_and_one_seed_the_same() -> None:
    groups = np.arange(100)
    drawn = [tuple(subset(groups, 0.1, seed)) for seed in (0, 1, 2)]
    assert len(set(drawn)) == 3
    assert drawn[0] == tuple(subset(groups, 0.1, 0))


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_shares_beyond_all_are_refused(share: float) -> None:
    with pytest.raises(TrainError, match="above 0, up to 1"):
        subset(np.arange(3), share, 0)


def test_no_chips_are_refused() -> None:
    with pytest.raises(TrainError, match="no training chips"):
        subset(np.array([], int), 0.5, 0)
