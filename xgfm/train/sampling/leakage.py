"""Whether a test tells more than memory: how near test chips lie to those that were trained on.

In: a plan of chips and its labels. Out: a report that sets the distance between train and test against the distance
over which labels resemble each other. A few windows of the labels are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from xgfm.errors import LabelError
from xgfm.grid import geobox_of
from xgfm.notebook import card
from xgfm.train.sampling.autocorrelation import Correlogram, correlogram
from xgfm.train.sampling.places import Places


class LeakageWarning(UserWarning):
    """Test chips lie so near to train chips that their score says more about memory than about skill."""


@dataclass(frozen=True, slots=True)
class LeakageReport:
    """Distances between splits, against the range of the labels' autocorrelation."""

    split: str
    """How the plan was split."""
    nearest_test: float
    """Metres between the nearest train and test pixels; infinite where there are none."""
    nearest_val: float
    """The same for val."""
    near_share: float
    """Share of test chips nearer to a train chip than the range."""
    same_places: float
    """Share of test chips that overlap a train chip, of this date or another."""
    range: float
    """Metres over which labels resemble each other (`autocorrelation.correlogram`)."""
    reached: bool
    """False: the labels resemble each other as far as they go; the range is at least this."""

    @property
    def leaks(self) -> bool:
        """Whether a test or val chip lies nearer to a train chip than the range."""
        return min(self.nearest_test, self.nearest_val) < self.range

    def __str__(self) -> str:
        """Return the report as a table, with what follows from it."""
        rows = self._rows()
        width = max(len(name) for name, _ in rows)
        table = "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
        return f"{table}\n{self.verdict}"

    def _repr_html_(self) -> str:
        return card("train and test", {**dict(self._rows()), "verdict": self.verdict})

    def _rows(self) -> list[tuple[str, str]]:
        return [
            ("split", self.split),
            ("autocorrelation range of the labels", f"{'' if self.reached else 'at least '}{_metres(self.range)}"),
            ("nearest train and test pixels", _metres(self.nearest_test)),
            ("nearest train and val pixels", _metres(self.nearest_val)),
            ("test chips within the range of a train chip", f"{self.near_share:.0%}"),
            ("test chips on ground that is trained on", f"{self.same_places:.0%}"),
        ]

    @property
    def verdict(self) -> str:
        """What follows, in a sentence."""
        if self.leaks:
            return (
                "LEAKS: scores on this split will be too good; use split='blocks' with block= and buffer= of at least "
                f"{_metres(self.range)}"
            )
        if self.split == "year" and self.same_places:
            return "ok for other years of the same places; says nothing about other places"
        return "ok: train and test are farther apart than labels resemble each other"


def leakage(plan: pd.DataFrame, labels: xr.DataArray | Sequence[xr.DataArray]) -> LeakageReport:
    """Say whether a plan's test chips lie too near to its train chips.

    Parameters
    ----------
    plan : DataFrame
        What `plan_chips` returned.
    labels : DataArray or sequence
        Those it was made of, in the same order.

    Returns
    -------
    LeakageReport
        ``print`` it; ``.leaks`` is the verdict. With ``split="year"`` only chips of one year are compared.

    Raises
    ------
    LabelError
        A plan that does not fit the labels.
    """
    arrays = [labels] if isinstance(labels, xr.DataArray) else list(labels)
    if len(plan) and int(plan["source"].max()) >= len(arrays):
        raise LabelError(
            f"the plan has chips of {int(plan['source'].max()) + 1} label arrays, {len(arrays)} were given"
        )
    if "size" not in plan.attrs:
        raise LabelError("the plan does not say the size of its chips; give what plan_chips returned, with its attrs")
    boxes = [geobox_of(array) for array in arrays]
    places = Places.of(plan, boxes, int(plan.attrs["size"]))
    return report(plan, places, correlogram(arrays))


def report(plan: pd.DataFrame, places: Places, curve: Correlogram) -> LeakageReport:
    """Return the report of a plan whose places and correlogram are known."""
    split = plan["split"].to_numpy()
    kind = str(plan.attrs.get("split", ""))
    # Groups of a split by year are years: between them labels differ however near they are.
    rounds = [plan["group"].to_numpy() == g for g in np.unique(plan["group"])] if kind == "year" else [split == split]
    test, val = ([_nearest(places, split, name, mine) for mine in rounds] for name in ("test", "val"))
    to_train = places.nearest(split == "test", split == "train")
    return LeakageReport(
        split=kind,
        nearest_test=_least(test),
        nearest_val=_least(val),
        near_share=_share(np.concatenate(test) < curve.range),
        same_places=_share(to_train == 0),
        range=curve.range,
        reached=curve.reached,
    )


def _nearest(places: Places, split: Any, name: str, mine: Any) -> Any:
    return places.nearest((split == name) & mine, (split == "train") & mine)


def _least(distances: list[Any]) -> float:
    together = np.concatenate(distances)
    return float(together.min()) if together.size else float("inf")


def _share(which: Any) -> float:
    return float(which.mean()) if which.size else 0.0


def _metres(value: float) -> str:
    if not np.isfinite(value):
        return "-"
    return f"{value / 1000:.3g} km" if value >= 10_000 else f"{value:.0f} m"
