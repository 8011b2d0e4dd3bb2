"""Which feature lies on top, and to which date of the cube each belongs.

In: features with their attributes. Out: the order that they are drawn in, and a time step for each. Arithmetic on
attributes; nothing is drawn.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xgfm.cf import NODATA
from xgfm.errors import LabelError
from xgfm.train.labels.files import Features
from xgfm.train.labels.legend import Legend


class LabelWarning(UserWarning):
    """Some labels could not be used; the message says how many, and why."""


def drawing_order(
    features: Features, values: NDArray[Any], legend: Legend | None, priority: str | Sequence[str] | None
) -> NDArray[np.int64]:
    """Return the rows from the lowest to the one on top (`labels` says by what)."""
    if priority is None:
        return np.arange(len(features))
    if isinstance(priority, str):
        column = features.column(priority, "priority")
        return np.argsort(pd.factorize(column, sort=True)[0], kind="stable")
    if legend is None:
        raise LabelError("priority= names classes, but a regression target has none; name an attribute")
    ranks = np.zeros(NODATA + 1, "int64")
    for rank, name in enumerate(reversed(list(priority)), 1):
        ranks[legend.index_of(name)] = rank
    return np.argsort(ranks[values], kind="stable")


def dates_of(features: Features, name: str) -> NDArray[np.datetime64]:
    """Return an attribute as dates (UTC), NaT where it is empty."""
    column = features.column(name, "time_column")
    if any(isinstance(each, int | float | np.number) and each == each for each in column):
        raise LabelError(f"column {name!r} of {features.name} holds numbers; expected dates, 2024-07-02")
    try:
        # Each by itself: texts may be days and hours, mixed with dates of other libraries.
        stamps = pd.Series([pd.to_datetime(each, utc=True) for each in column], dtype="datetime64[ns, UTC]")
    except (ValueError, TypeError) as error:
        raise LabelError(f"column {name!r} of {features.name} does not hold dates ({error})") from error
    return stamps.dt.tz_localize(None).to_numpy().astype("datetime64[ns]")


def steps_of(
    dates: NDArray[np.datetime64], times: NDArray[np.datetime64], tolerance: pd.Timedelta, source: str
) -> NDArray[np.int64]:
    """Return the nearest time step of each date, -1 where it is too far; refuse where all are."""
    gaps = np.abs(dates[:, None] - times[None, :])
    steps = np.where(np.isnat(dates), -1, np.argmin(gaps, axis=1))
    far = np.isnat(dates) | (gaps.min(axis=1) > tolerance.to_timedelta64())
    if far.all():
        known = dates[~np.isnat(dates)]
        period = _period(known, tolerance) if known.size else "no date"
        raise LabelError(
            f"the labels of {source} ({period}) do not meet the cube ({_period(times, tolerance)}) within "
            f"{tolerance}; give labels of this period, or a larger tolerance="
        )
    if far.any():
        warnings.warn(
            f"{int(far.sum())} of {far.size} labels of {source} lie more than {tolerance} from every date of the cube "
            "and are left out",
            LabelWarning,
            stacklevel=4,
        )
    return np.where(far, -1, steps)


def _period(times: NDArray[np.datetime64], tolerance: pd.Timedelta) -> str:
    """First and last date; to the minute where a day is not near enough."""
    unit: Literal["D", "m"] = "D" if tolerance >= pd.Timedelta("1D") else "m"
    first, last = (np.datetime_as_string(time, unit=unit) for time in (times.min(), times.max()))
    return f"{first} to {last}"
