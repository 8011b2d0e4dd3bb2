"""Periods of time that become the frames of a composite.

In: the dates of a cube, and how many frames or which named windows. Out: `Period` records, and the coordinates of
results that stand for some. Plain date arithmetic in UTC; no pixels.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from xgfm.errors import FramesError

_TIME_ENCODING = {"units": "seconds since 1970-01-01", "calendar": "standard", "dtype": "int64"}
TimeWindow = Any
"""A date or period ('2024', '2024-05', '2024-05-02'), a slice of two, or a ``(start, end)`` of two; ends count."""


@dataclass(frozen=True, slots=True)
class Period:
    """A half-open stretch of time, ``start <= t < stop``."""

    start: pd.Timestamp
    stop: pd.Timestamp

    @property
    def middle(self) -> pd.Timestamp:
        """Half way between start and stop."""
        return self.start + (self.stop - self.start) / 2

    @property
    def bounds(self) -> list[str]:
        """First and last day, or the two instants where the period is not made of whole days."""
        if self.start == self.start.normalize() and self.stop == self.stop.normalize():
            return [str(self.start.date()), str((self.stop - pd.Timedelta(days=1)).date())]
        return [self.start.isoformat(), self.stop.isoformat()]

    def steps(self, time: NDArray[np.datetime64]) -> NDArray[np.intp]:
        """Return the positions in ``time`` that fall into the period, earliest first."""
        inside = np.flatnonzero((time >= self.start.to_datetime64()) & (time < self.stop.to_datetime64()))
        return inside[np.argsort(time[inside], kind="stable")]


def equal_periods(time: NDArray[np.datetime64], frames: int) -> list[Period]:
    """Cut the days from the first to the last date into ``frames`` periods of the same length, to a day.

    Parameters
    ----------
    time
        Dates of a cube, in any order.
    frames
        How many periods, at least one.

    Raises
    ------
    FramesError
        If there are fewer days than frames.
    """
    first = pd.Timestamp(time.min()).normalize()
    days = (pd.Timestamp(time.max()).normalize() - first).days + 1
    if not 1 <= frames <= days:
        raise FramesError(
            f"{frames} frames cannot be cut out of {days} days ({first.date()} and on); frames= takes 1 to {days}"
        )
    edges = [first + pd.Timedelta(days=round(k * days / frames)) for k in range(frames + 1)]
    return [Period(start, stop) for start, stop in pairwise(edges)]


def named_periods(windows: Sequence[TimeWindow]) -> list[Period]:
    """Read windows as a user names them.

    Parameters
    ----------
    windows
        One entry per frame, in order of date. Ends are included at their own precision: ``("2024-04", "2024-05")``
        is the whole of both months.

    Raises
    ------
    FramesError
        If a window cannot be read, ends before it starts, or they are not in order of date.
    """
    if isinstance(windows, str) or not len(windows):
        raise FramesError(f"windows= takes a sequence with one window per frame, got {windows!r}")
    periods = [_period(window) for window in windows]
    for before, after in pairwise(periods):
        if after.start < before.start:
            raise FramesError(f"windows= must be in order of date; {after.bounds} comes after {before.bounds}")
    return periods


def _period(window: TimeWindow) -> Period:
    ends = (window.start, window.stop) if isinstance(window, slice) else window
    first, last = ends if isinstance(ends, tuple | list) and len(ends) == 2 else (ends, ends)
    try:
        start, stop = pd.Period(str(first)).start_time, (pd.Period(str(last)) + 1).start_time
    except ValueError as error:
        raise FramesError(
            f"window {window!r} is not a date: write '2024-05', '2024-05-02', ('2024-05-01', '2024-06-15') "
            f"or slice('2024-05', '2024-06')"
        ) from error
    if stop <= start:
        raise FramesError(f"window {window!r} ends before it starts")
    return Period(start, stop)


def time_coordinates(periods: Sequence[Period]) -> dict[Hashable, xr.Variable]:
    """Return ``time``, the middle of each period, and ``time_bnds``, its two ends, as CF asks (section 7.1)."""
    middles = np.array([p.middle.to_datetime64() for p in periods], "datetime64[ns]")
    ends = np.array([[p.start.to_datetime64(), p.stop.to_datetime64()] for p in periods], "datetime64[ns]")
    attrs = {"standard_name": "time", "long_name": "time", "axis": "T", "bounds": "time_bnds"}
    # Zarr's writer would give the bounds units of their own.
    return {
        "time": xr.Variable("time", middles, attrs, dict(_TIME_ENCODING)),
        "time_bnds": xr.Variable(("time", "bnds"), ends, {}, dict(_TIME_ENCODING)),
    }
