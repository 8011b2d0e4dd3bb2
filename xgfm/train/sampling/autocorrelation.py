"""How far labels resemble their neighbours.

In: label arrays. Out: their correlogram, and the range: the distance beyond which one label says little about another.
A few windows of each array are computed, of at most `WINDOW` pixels a side; the same labels give the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from xgfm.cf import NODATA
from xgfm.grid import geobox_of, pixel_size_m

GONE = 0.2
"""Correlation at the range: of a label, a neighbour at this distance says a fifth."""
WINDOW = 1024
"""Rows and columns of a window."""
WINDOWS = 8
"""Most windows of an array."""
_ANCHORS = 3000
"""Pixels of a window that others are compared with."""
_SPARSE = 1500
"""Labelled pixels of a window up to which all pairs are looked at: points have few neighbours at a given distance."""
_DIRECTIONS = 6
_FEWEST = 50
"""Pairs that a distance needs to count."""


@dataclass(frozen=True, slots=True)
class Correlogram:
    """Correlation of labels with distance."""

    distance: tuple[float, ...]
    """Metres."""
    correlation: tuple[float, ...]
    """1: alike, 0: as alike as two labels at random. 1 minus the variogram over its sill; for classes the variogram is
    that of their indicators, the share of unlike pairs."""
    range: float
    """Metres until the correlation has fallen to `GONE`; 0 where labels are all alike or too few."""
    reached: bool
    """False: it does not fall so low within the labels, and the range is at least this."""


@dataclass(slots=True)
class _Pairs:
    """Sums over pairs by distance bin, of all windows."""

    edges: NDArray[np.float64]
    unlike: NDArray[np.float64]
    pairs: NDArray[np.float64]
    metres: NDArray[np.float64]

    def add(self, metres: NDArray[np.float64], unlike: NDArray[np.float64]) -> None:
        """Add pairs by their distance."""
        bins = np.digitize(metres, self.edges) - 1
        fits = (bins >= 0) & (bins < len(self.pairs))
        for sums, values in ((self.unlike, unlike), (self.pairs, np.ones_like(metres)), (self.metres, metres)):
            sums += np.bincount(bins[fits], weights=values[fits], minlength=len(sums))


def correlogram(labels: Sequence[xr.DataArray]) -> Correlogram:
    """Return the correlogram of label arrays ``(y, x)`` or ``(time, y, x)``, all of one kind.

    Pairs are drawn at distances from one pixel up to half of the longest side, 1.4 times apart. The range is where the
    curve first falls below `GONE`, between two distances in a straight line.
    """
    sizes = [pixel_size_m(geobox_of(array)) for array in labels]
    longest = max(
        size * min(max(array.sizes["y"], array.sizes["x"]), WINDOW) for array, size in zip(labels, sizes, strict=True)
    )
    sums = _empty_pairs(min(sizes), longest / 2)
    values: list[NDArray[Any]] = []
    rng = np.random.default_rng(0)
    for array, size in zip(labels, sizes, strict=True):
        for window in _windows(array, rng):
            labelled = _labelled(window)
            if labelled.any():
                values.append(window[labelled])
                _add_window(sums, window, labelled, size, rng)
    return _curve(sums, _sill(values))


def _empty_pairs(pixel: float, longest: float) -> _Pairs:
    steps = max(1, math.ceil(math.log(max(longest / pixel, 1.5)) / math.log(math.sqrt(2))))
    edges = (0.84 * pixel * math.sqrt(2) ** np.arange(steps + 1)).astype("float64")
    return _Pairs(edges, *(np.zeros(steps) for _ in range(3)))


def _windows(array: xr.DataArray, rng: np.random.Generator) -> Iterator[NDArray[Any]]:
    """The whole array where it is small, else some windows of it; of each time step."""
    steps = [array] if "time" not in array.dims else [array.isel(time=t) for t in range(array.sizes["time"])]
    for step in steps[:: math.ceil(len(steps) / WINDOWS)]:
        high, wide = step.sizes["y"], step.sizes["x"]
        if max(high, wide) <= WINDOW:
            yield step.values
            continue
        for _ in range(max(1, WINDOWS // len(steps))):
            top, left = (int(rng.integers(0, max(size - WINDOW, 0) + 1)) for size in (high, wide))
            yield step.isel(y=slice(top, top + WINDOW), x=slice(left, left + WINDOW)).values


def _labelled(values: NDArray[Any]) -> NDArray[np.bool_]:
    labelled: NDArray[np.bool_] = values != NODATA if values.dtype.kind == "u" else ~np.isnan(values)
    return labelled


def _add_window(
    sums: _Pairs, window: NDArray[Any], labelled: NDArray[np.bool_], size: float, rng: np.random.Generator
) -> None:
    rows, columns = np.nonzero(labelled)
    if len(rows) <= _SPARSE:
        first, second = np.triu_indices(len(rows), 1)
        pairs = (rows[first], columns[first], rows[second], columns[second])
        sums.add(*_compared(window, *pairs, size))
        return
    chosen = rng.choice(len(rows), min(_ANCHORS, len(rows)), replace=False)
    centres = np.sqrt(sums.edges[:-1] * sums.edges[1:]) / size
    angle = rng.uniform(0, 2 * np.pi, (len(chosen), len(centres), _DIRECTIONS))
    from_row, from_column = (np.broadcast_to(p[chosen, None, None], angle.shape) for p in (rows, columns))
    row = from_row + np.rint(centres[:, None] * np.sin(angle)).astype(int)
    column = from_column + np.rint(centres[:, None] * np.cos(angle)).astype(int)
    inside = (row >= 0) & (row < window.shape[0]) & (column >= 0) & (column < window.shape[1])
    inside[inside] = labelled[row[inside], column[inside]]
    sums.add(*_compared(window, from_row[inside], from_column[inside], row[inside], column[inside], size))


def _compared(
    window: NDArray[Any], row: Any, column: Any, other_row: Any, other_column: Any, size: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distance of pairs in metres, and how unlike they are."""
    one, other = window[row, column], window[other_row, other_column]
    unlike = (
        (one != other).astype("float64") if window.dtype.kind == "u" else 0.5 * (one.astype("float64") - other) ** 2
    )
    return np.hypot(row - other_row, column - other_column) * size, unlike


def _sill(values: list[NDArray[Any]]) -> float:
    """How unlike two labels at random are."""
    together = np.concatenate(values) if values else np.zeros(0, "uint8")
    if together.dtype.kind == "u":
        share = np.bincount(together, minlength=1) / max(together.size, 1)
        return float(1 - (share**2).sum())
    return float(together.astype("float64").var()) if together.size else 0.0


def _curve(sums: _Pairs, sill: float) -> Correlogram:
    enough = sums.pairs >= _FEWEST
    if sill <= 0 or not enough.any():
        return Correlogram((), (), 0.0, reached=False)
    metres = sums.metres[enough] / sums.pairs[enough]
    alike = 1 - sums.unlike[enough] / sums.pairs[enough] / sill
    low = np.flatnonzero(alike < GONE)
    if not low.size:
        return Correlogram(tuple(metres.tolist()), tuple(alike.tolist()), float(metres[-1]), reached=False)
    at = int(low[0])
    before = (0.0, 1.0) if at == 0 else (metres[at - 1], alike[at - 1])
    share = (before[1] - GONE) / (before[1] - alike[at])
    reach = before[0] + share * (metres[at] - before[0])
    return Correlogram(tuple(metres.tolist()), tuple(alike.tolist()), float(reach), reached=True)
