from __future__ import annotations

import datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xgfm.cube.periods import Period, equal_periods, named_periods
from xgfm.errors import FramesError

DATES = st.lists(st.datetimes(pd.Timestamp("2013-04-11"), pd.Timestamp("2030-01-01")), min_size=1, max_size=30)


@settings(deadline=None)
@given(DATES, st.integers(1, 12))
def test_equal_periods_cover_every_date_once_and_differ_by_a_day_at_most(dates, frames):
    time = np.array(dates, "datetime64[ns]")
    days = len(pd.date_range(min(dates).date(), max(dates).date()))
    if frames > days:
        with pytest.raises(FramesError, match=f"{frames} frames cannot be cut out of {days} days"):
            equal_periods(time, frames)
        return
    periods = equal_periods(time, frames)
    assert sorted(np.concatenate([period.steps(time) for period in periods])) == list(range(len(time)))
    lengths = [(period.stop - period.start).days for period in periods]
    assert sum(lengths) == days
    assert max(lengths) - min(lengths) <= 1
    assert [before.stop for before in periods[:-1]] == [after.start for after in periods[1:]]


def test_a_quarter_in_three_is_its_days_in_thirds():
    time = np.array(["2024-03-30T17:02", "2024-01-01T00:01"], "datetime64[us]")
    assert [period.bounds for period in equal_periods(time, 3)] == [
        ["2024-01-01", "2024-01-30"],
        ["2024-01-31", "2024-02-29"],
        ["2024-03-01", "2024-03-30"],
    ]


@pytest.mark.parametrize(
    ("window", "bounds"),
    [
        ("2024", ["2024-01-01", "2024-12-31"]),
        ("2024-02", ["2024-02-01", "2024-02-29"]),
        ("2024-05-02", ["2024-05-02", "2024-05-02"]),
        (datetime.date(2024, 5, 2), ["2024-05-02", "2024-05-02"]),
        (np.datetime64("2024-05"), ["2024-05-01", "2024-05-31"]),
        (("2024-04", "2024-05"), ["2024-04-01", "2024-05-31"]),
        (["2024-04-10", "2024-05-20"], ["2024-04-10", "2024-05-20"]),
        (slice("2024-04-10", "2024-05"), ["2024-04-10", "2024-05-31"]),
        (("2024-05-02T10:00", "2024-05-02T12:00"), ["2024-05-02T10:00:00", "2024-05-02T12:01:00"]),
    ],
)
def test_a_window_is_read_as_pandas_slices_dates(window, bounds):
    (period,) = named_periods([window])
    assert period.bounds == bounds
    series = pd.Series(0, pd.date_range("2023-12-20", "2025-01-10", freq="7h"))
    ends = (window.start, window.stop) if isinstance(window, slice) else window
    first, last = ends if isinstance(ends, list | tuple) else (ends, ends)
    expected = series.loc[str(first) : str(last)].index
    assert series.index[period.steps(series.index.values)].equals(expected)


def test_the_middle_and_the_order_of_steps():
    period = Period(pd.Timestamp("2024-05-01"), pd.Timestamp("2024-05-03"))
    time = np.array(["2024-05-02T23", "2024-05-03", "2024-05-01"], "datetime64[ns]")
    assert period.middle == pd.Timestamp("2024-05-02")
    assert period.steps(time).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("windows", "words"),
    [
        (["2024-05", "spring"], "window 'spring' is not a date: write '2024-05'"),
        ([("2024-05-02", None)], r"window \('2024-05-02', None\) is not a date"),
        ([("2024-06", "2024-05")], r"window \('2024-06', '2024-05'\) ends before it starts"),
        (["2024-06", "2024-05"], r"in order of date; \['2024-05-01', '2024-05-31'\] comes after \['2024-06-01'"),
        ("2024-05", "a sequence with one window per frame, got '2024-05'"),
        ([], r"a sequence with one window per frame, got \[\]"),
    ],
)
def test_windows_that_cannot_be_read(windows, words):
    with pytest.raises(FramesError, match=words):
        named_periods(windows)
