"""Groups of chips dealt out to train, val and test.

In: the group of each chip, its pixel counts, and the pairs of chips that are too near to each other. Out: a split for
each chip; chips of a group stay together, and of a train chip and a val or test chip that are too near one is left out.
Of many seeded deals the one is kept that gives every split its share of every class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NAMES = ("train", "val", "test", "none")
"""Splits by number; the last: chips of the buffer."""
NONE = 3
TRIES = 400
_WORK = 3e7
"""Chips times classes times tries that take a second or so."""
_LOST = 0.5
"""What a deal costs that leaves out all chips, against one whose shares are all wrong by all."""
_ABSENT = 10.0
"""What a class costs that a split lacks."""

Splits = NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class Deal:
    """What is dealt out."""

    group: NDArray[np.int64]
    counts: NDArray[np.int64]
    """``(chip, class)``, labelled pixels."""
    near: NDArray[np.int64]
    """``(pair, 2)``: chips that must not lie one in train and one in val or test."""
    shares: tuple[float, float, float]


def deal(what: Deal, seed: int) -> Splits:
    """Return the split of each chip: 0 train, 1 val, 2 test, 3 left out.

    Parameters
    ----------
    what : Deal
    seed : int
        The same seed gives the same deal.
    """
    groups, member = np.unique(what.group, return_inverse=True)
    size = np.bincount(member, weights=what.counts.sum(axis=1), minlength=len(groups)).astype("float64")
    total = np.maximum(what.counts.sum(axis=0), 1)
    near = what.near[member[what.near[:, 0]] != member[what.near[:, 1]]]
    tries = int(np.clip(_WORK / (what.counts.size + 4 * len(near) + 1), 20, TRIES))
    rng = np.random.default_rng(seed)
    best, least = np.zeros(len(member), "int8"), np.inf
    for _ in range(tries):
        split = _shuffled(rng, size, what.shares)[member]
        for kept in _apart(split, near):
            cost = _cost(kept, what, total)
            if cost < least:
                best, least = kept, cost
    return best


def _shuffled(rng: np.random.Generator, size: NDArray[np.float64], shares: tuple[float, ...]) -> Splits:
    """A split for each group: shuffled, and cut where the shares of labelled pixels are reached."""
    order = rng.permutation(len(size))
    before = np.cumsum(size[order]) - size[order] / 2
    split = np.empty(len(size), "int8")
    split[order] = np.searchsorted(np.cumsum(shares)[:-1] * size.sum(), before, side="right")
    return split


def _apart(split: Splits, near: NDArray[np.int64]) -> list[Splits]:
    """The split with the chips of one side left out that are too near to the other side; both ways."""
    one, other = split[near[:, 0]], split[near[:, 1]]
    clash = near[(one == 0) != (other == 0)]
    if not len(clash):
        return [split]
    chips = np.unique(clash)
    train = split[chips] == 0
    out = []
    for left in (chips[~train], chips[train]):
        kept = split.copy()
        kept[left] = NONE
        out.append(kept)
    return out


def _cost(split: Splits, what: Deal, total: NDArray[np.int64]) -> float:
    """How far a deal is from what was asked: shares of classes, classes that a split lacks, chips left out."""
    cost = _LOST * float(what.counts[split == NONE].sum()) / float(what.counts.sum())
    for number, share in enumerate(what.shares):
        if share > 0:
            held = what.counts[split == number].sum(axis=0)
            there = what.counts.sum(axis=0) > 0
            cost += float(np.abs(held / total / share - 1)[there].mean()) / 3 + _ABSENT * int((held[there] == 0).sum())
    return cost


def drawn(
    split: Splits, counts: NDArray[np.int64], shares: tuple[float, float, float], chips: int, balance: float, seed: int
) -> NDArray[np.int64]:
    """Return the rows of so many chips, in order; train chips by their classes, the others as they come.

    Parameters
    ----------
    split, counts
        Of each chip.
    shares : tuple of float
        Of the chips, for train, val and test.
    chips : int
        How many in all; fewer where a split has fewer.
    balance : float
        0: every chip alike. 1: a class is drawn, all alike, and then a chip of it by how much of the class it holds.
    seed : int
    """
    rng = np.random.default_rng(seed)
    rows = [np.flatnonzero(split == NONE)]
    for number, share in enumerate(shares):
        mine = np.flatnonzero(split == number)
        weight = _weights(counts[mine], balance if number == 0 else 0.0)
        # Efraimidis and Spirakis 2006 (Inf. Process. Lett. 97): without replacement, each next one by its weight.
        key = np.log(rng.random(len(mine))) / weight
        rows.append(mine[np.argsort(-key, kind="stable")[: round(chips * share / sum(shares))]])
    return np.sort(np.concatenate(rows))


def _weights(counts: NDArray[np.int64], balance: float) -> NDArray[np.float64]:
    total = counts.sum(axis=0)
    there = total > 0
    even = (counts[:, there] / total[there]).mean(axis=1) if there.any() else np.ones(len(counts))
    return (1 - balance) / max(len(counts), 1) + balance * even
