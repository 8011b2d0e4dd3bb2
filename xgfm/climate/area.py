"""How much of each class there is, with its uncertainty, from a map and a reference sample.

In: areas of a map's classes, and what a reference says at places drawn from each (`sample`). Out: areas, accuracies and
their standard errors, which correct for the map's mistakes: counting its pixels does not. Olofsson et al. 2014, "Good
practices for estimating area and assessing accuracy of land change", Remote Sensing of Environment 148, 42-57.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from xgfm.errors import LabelError
from xgfm.notebook import table

if TYPE_CHECKING:
    import pandas as pd

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class AreaEstimate:
    """What a stratified reference sample says of a map. Every list is in the order of the classes."""

    classes: tuple[str, ...]
    matrix: Array
    """``(map class, reference class)`` estimated shares of the whole area; equation 4 of the paper."""
    area: Array
    """Of each class, by the reference, in the units of the mapped areas; equations 9 and 11."""
    area_error: Array
    """Standard errors; equations 10 and 11."""
    users: Array
    """User's accuracy: share of what is mapped as a class that is of it; NaN for a class that is not mapped."""
    users_error: Array
    producers: Array
    """Producer's accuracy: share of a class that is mapped as it; NaN for a class that is not there."""
    producers_error: Array
    overall: float
    overall_error: float
    confidence: float
    """Share of samples whose intervals hold the truth."""

    @property
    def factor(self) -> float:
        """Standard errors between an estimate and its bound."""
        return NormalDist().inv_cdf((1 + self.confidence) / 2)

    @property
    def interval(self) -> Array:
        """Bounds of the area of each class, ``(class, 2)``; the lower one is not under 0."""
        half = self.factor * self.area_error
        return np.stack([np.maximum(self.area - half, 0), self.area + half], axis=1)

    def to_pandas(self) -> pd.DataFrame:
        """Return a row for each class: areas and accuracies with half the width of their intervals."""
        import pandas as pd

        columns = {"area": self.area, "users": self.users, "producers": self.producers}
        errors = {"area": self.area_error, "users": self.users_error, "producers": self.producers_error}
        both = {
            n: v for name in columns for n, v in ((name, columns[name]), (f"{name}_ci", self.factor * errors[name]))
        }
        return pd.DataFrame(both, index=pd.Index(self.classes, name="class"))

    def _repr_html_(self) -> str:
        f = self.factor
        rows = [
            (name, f"{area:,.4g} ± {f * error:,.2g}", f"{u:.2f} ± {f * ue:.2f}", f"{p:.2f} ± {f * pe:.2f}")
            for name, area, error, u, ue, p, pe in zip(
                self.classes, self.area, self.area_error, self.users, self.users_error, self.producers,
                self.producers_error, strict=True,
            )
        ]  # fmt: skip
        overall = ("overall accuracy", f"{self.overall:.3f} ± {f * self.overall_error:.3f}", "", "")
        head = ("class", "area", "user's accuracy", "producer's accuracy")
        return table([*rows, overall], head=head, title=f"areas with {self.confidence:.0%} intervals")

    def __str__(self) -> str:
        f = self.factor
        rows = [
            f"{name[:24]:24s} {area:16.6g} +- {f * error:<12.6g} {u:.2f} +- {f * ue:.2f}      {p:.2f} +- {f * pe:.2f}"
            for name, area, error, u, ue, p, pe in zip(
                self.classes, self.area, self.area_error, self.users, self.users_error, self.producers,
                self.producers_error, strict=True,
            )
        ]  # fmt: skip
        head = f"{'class':24s} {'area':>16s}    {'':12s} user's            producer's"
        last = f"overall accuracy {self.overall:.3f} +- {f * self.overall_error:.3f} ({self.confidence:.0%} intervals)"
        return "\n".join([head, *rows, last])


def estimate_areas(counts: Any, mapped: Any, *, classes: Sequence[str] = (), confidence: float = 0.95) -> AreaEstimate:
    """Estimate areas and accuracies from a reference sample that was stratified by the map.

    Parameters
    ----------
    counts
        ``(map class, reference class)`` places of the sample. The map is along the first dimension, as in the paper;
        `xgfm.train.scores.metrics.Confusion` has it the other way, and its pixels are no random sample.
    mapped
        Area of each map class ``(class,)``, in any units, or pixels where they are all of one size.
    classes
        Their names.
    confidence
        Of the intervals.

    Returns
    -------
    AreaEstimate

    Raises
    ------
    LabelError
        For other shapes, negative numbers, or a map class with area and fewer than two places: its variance cannot be
        estimated.

    Notes
    -----
    Within each map class, places must have been drawn at random, each with the same chance: see
    `sample.stratified_sample`.
    """
    n, area = _checked(np.asarray(counts, "float64"), np.asarray(mapped, "float64"))
    if not 0 < confidence < 1:
        raise LabelError(f"confidence={confidence}; give a share between 0 and 1, such as 0.95")
    names = tuple(classes) or tuple(f"class {number}" for number in range(len(area)))
    if len(names) != len(area):
        raise LabelError(f"{len(names)} names for {len(area)} classes; give classes= one name each")
    seen = n.sum(1)
    weight, total = area / area.sum(), area.sum()
    share = n / np.where(seen > 0, seen, 1)[:, None]  # of each map class, by the reference
    matrix = weight[:, None] * share
    spread = share * (1 - share) / np.where(seen > 1, seen - 1, 1)[:, None]  # variance of each share
    truly = matrix.sum(0)
    users = np.where(weight > 0, np.diag(share), np.nan)
    producers = np.divide(np.diag(matrix), truly, out=np.full(len(truly), np.nan), where=truly > 0)
    return AreaEstimate(
        classes=names,
        matrix=matrix,
        area=total * truly,
        area_error=total * np.sqrt((weight[:, None] ** 2 * spread).sum(0)),
        users=users,
        users_error=np.where(weight > 0, np.sqrt(np.diag(spread)), np.nan),
        producers=producers,
        producers_error=_producers_error(weight, spread, truly, producers),
        overall=float(np.trace(matrix)),
        overall_error=float(np.sqrt((weight**2 * np.diag(spread)).sum())),
        confidence=confidence,
    )


def _producers_error(weight: Array, spread: Array, truly: Array, producers: Array) -> Array:
    """Return equation 7 of the paper, in shares of the area instead of pixels."""
    each = weight[:, None] ** 2 * spread
    own = np.diag(each)
    variance = (1 - producers) ** 2 * own + producers**2 * (each * (1 - np.eye(len(each)))).sum(0)
    out = np.full(len(truly), np.nan)
    np.divide(np.sqrt(variance), truly, out=out, where=truly > 0)
    return out


def _checked(n: Array, area: Array) -> tuple[Array, Array]:
    if n.ndim != 2 or n.shape != (len(area),) * 2:
        raise LabelError(f"counts have shape {n.shape} and mapped areas {area.shape}; expected (K, K) and (K,)")
    if not (np.isfinite(n).all() and np.isfinite(area).all() and (n >= 0).all() and (area >= 0).all() and area.any()):
        raise LabelError("counts and mapped areas must be finite numbers from 0 on, and some area above 0")
    few = [number for number, (places, there) in enumerate(zip(n.sum(1), area, strict=True)) if there and places < 2]
    if few:
        raise LabelError(
            f"map classes {few} have area and fewer than two places in the sample; draw more with "
            "stratified_sample(minimum=), or join classes"
        )
    lost = [number for number, (places, there) in enumerate(zip(n.sum(1), area, strict=True)) if places and not there]
    if lost:
        raise LabelError(f"map classes {lost} have places in the sample and no mapped area; give mapped= of this map")
    return n, area
