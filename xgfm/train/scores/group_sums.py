"""Sums of spatial groups, and what drawing groups again and again says of a score.

In: sums that some pixels of a group come to. Out: scores of all of them, and intervals from a bootstrap that draws
whole groups: neighbouring pixels are not independent. What is kept grows with the number of groups, not of pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from xgfm.errors import TrainError

LEVEL = 0.95
"""Share of the bootstrap's draws that an interval holds."""
_AT_ONCE = 1 << 23
"""Numbers of a bootstrap that are in memory at once: 64 MB."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Interval:
    """Bounds of a score."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Scores:
    """What a bootstrap says: bounds of every score, by its name."""

    overall: Mapping[str, Interval]
    classes: Mapping[str, tuple[Interval, ...]]
    """Of scores that every class has one of, in the order of the codes."""


class GroupSums:
    """What the two kinds of metrics share: groups with their sums, and the bootstrap over them."""

    overall: ClassVar[tuple[str, ...]]
    """Names of the scores that are one number."""

    def __init__(self) -> None:
        self._sums: dict[int, Array] = {}
        self.unpredicted = 0
        """Pixels with a label and without a prediction: they are in no score."""

    @property
    def groups(self) -> tuple[int, ...]:
        """Spatial groups with pixels in them, in order."""
        return tuple(sorted(self._sums))

    def sums(self, groups: Sequence[int] | None = None) -> Array:
        """Return what was summed up, ``(group, ...)`` float64, zero for groups without pixels.

        With the same list of groups on every rank, those of confusion matrices may be added over ranks. Metrics of
        both kinds are pickled and merged, too: see `merge`.
        """
        wanted = self.groups if groups is None else groups
        return np.stack([self._sums.get(g, self._empty()) for g in wanted]) if len(wanted) else self._empty()[None]

    def merge(self, other: Self) -> Self:
        """Add what another one counted, on another rank or part of the data; return this one."""
        for group, sums in other._sums.items():
            self._put(group, sums)
        self.unpredicted += other.unpredicted
        return self

    def bootstrap(self, n: int = 1000, seed: int = 0, level: float = LEVEL) -> Scores:
        """Return percentile intervals of every score, from drawing groups with replacement.

        Parameters
        ----------
        n
            Draws.
        seed
            The same seed gives the same intervals, in whatever order pixels came.
        level
            Share of the draws between the bounds.

        Returns
        -------
        Scores
            NaN bounds where no draw has the score. Intervals from fewer than some twenty groups are too narrow.

        Raises
        ------
        TrainError
            With fewer than two groups.
        """
        count = len(self._sums)
        if count < 2:
            raise TrainError(
                f"intervals come from drawing spatial groups, and all pixels are of {count}; give groups= to add(), "
                "or split by blocks with a smaller block="
            )
        sums, rng = self.sums(), np.random.default_rng(seed)
        draws: dict[str, list[Array]] = {}
        step = max(_AT_ONCE // max(sums[0].size, count), 1)
        for start in range(0, n, step):
            weights = rng.multinomial(count, np.full(count, 1 / count), min(step, n - start)).astype("float64")
            for name, values in self._scores(weights, sums).items():
                draws.setdefault(name, []).append(values)
        bounds = {name: _bounds(np.concatenate(values), level) for name, values in draws.items()}
        return Scores(
            {name: Interval(float(low), float(high)) for name, (low, high) in bounds.items() if name in self.overall},
            {
                name: tuple(Interval(float(a), float(b)) for a, b in zip(low, high, strict=True))
                for name, (low, high) in bounds.items()
                if name not in self.overall
            },
        )

    def scores(self) -> dict[str, float]:
        """Return the scores over all pixels, by name; NaN where there is nothing to score."""
        every = self._scores(np.ones((1, max(len(self._sums), 1))), self.sums())
        return {name: float(every[name][0]) for name in self.overall}

    def intervals(self, n: int = 1000, seed: int = 0) -> Scores | None:
        """Return `bootstrap`'s answer, or None where there are too few groups for one."""
        return self.bootstrap(n, seed) if len(self._sums) > 1 else None

    def _scores(self, weights: Array, sums: Array) -> dict[str, Array]:
        raise NotImplementedError

    def _joined(self, one: Array, other: Array) -> Array:
        raise NotImplementedError

    def _empty(self) -> Array:
        raise NotImplementedError

    def _put(self, group: int, sums: Array) -> None:
        self._sums[group] = self._joined(self._sums[group], sums) if group in self._sums else sums

    def _counted(self) -> dict[str, Any]:
        return {
            "groups": list(self.groups),
            "sums": [self._sums[group].tolist() for group in self.groups],
            "unpredicted": self.unpredicted,
        }

    def _restored(self, state: Mapping[str, Any]) -> Self:
        pairs = zip(state["groups"], state["sums"], strict=True)
        self._sums = {int(group): np.asarray(sums, "float64") for group, sums in pairs}
        self.unpredicted = int(state["unpredicted"])
        return self


def over(above: Any, below: Any) -> Array:
    """Divide; NaN where there is nothing to divide by."""
    above, below = np.asarray(above, "float64"), np.asarray(below, "float64")
    out = np.full(np.broadcast(above, below).shape, np.nan)
    np.divide(above, below, out=out, where=below != 0)
    return out


def mean_of(values: Array) -> Array:
    """Mean over the last axis of what is no NaN."""
    return over(np.nansum(values, -1), np.isfinite(values).sum(-1))


def _bounds(draws: Array, level: float) -> Array:
    """Percentiles ``(2, ...)`` of draws ``(draw, ...)``; NaN draws count as not made."""
    out = np.full((2, *draws.shape[1:]), np.nan)
    there = ~np.isnan(draws).all(0)
    out[:, there] = np.nanquantile(draws[:, there], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return out
