"""The period of a search.

In: what ``datetime=`` takes. Out: its first and last instant in UTC, and whether an item's date lies between them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, timedelta
from datetime import datetime as Datetime
from typing import Any

from xgfm.errors import ItemError, SearchError

Interval = tuple[Datetime | None, Datetime | None]


def parse_interval(datetime: Any) -> Interval:
    """Read what ``datetime=`` takes: first and last instant, None where the side is open."""
    if datetime is None:
        return None, None
    parts = datetime.split("/") if isinstance(datetime, str) else datetime
    first, last = parts if isinstance(parts, Sequence) and len(parts) == 2 else (parts, parts)
    first, last = (_single(part) for part in (first, last))
    try:
        start = None if first in ("", "..") else _period(first)[0]
        end = None if last in ("", "..") else _period(last)[1]
    except ValueError as error:
        raise SearchError(
            f"datetime={datetime!r} is not a period; write '2024', '2024-05', '2024-05-01/2024-06-30' or (start, end)"
        ) from error
    if start is not None and end is not None and end < start:
        raise SearchError(f"datetime={datetime!r} ends before it starts; give (start, end)")
    interval = tuple(None if t is None else t.floor("us").to_pydatetime().replace(tzinfo=UTC) for t in (start, end))
    return interval[0], interval[1]


def _period(text: str) -> tuple[Any, Any]:
    """First and last instant of a date or time, in UTC: of ``2024-05``, ``2024-05-02T17:00:00+02:00``."""
    import pandas as pd

    shifted = re.fullmatch(r"(\d{4}-?\d\d-?\d\d[T ].*?)([+-])(\d\d):?(\d\d)?", text)
    if shifted is None:
        period = pd.Period(text.removesuffix("Z"))
        return period.start_time, period.end_time
    local, sign, hours, minutes = shifted.groups(default="0")
    ahead = int(f"{sign}1") * timedelta(hours=int(hours), minutes=int(minutes))
    period = pd.Period(local)
    return period.start_time - ahead, period.end_time - ahead


def _single(part: Any) -> str:
    value = part[0] if isinstance(part, Sequence) and not isinstance(part, str) and len(part) == 1 else part
    return ".." if value is None else str(value)


def in_interval(text: str | None, interval: Interval) -> bool:
    """Whether an item's date lies in an interval; ends count."""
    if interval == (None, None):
        return True
    if text is None:
        return False
    try:
        date = Datetime.fromisoformat(text)
    except (TypeError, ValueError) as error:
        raise ItemError(f"an item has the date {text!r}; expected ISO 8601 in 'datetime', correct the item") from error
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return (interval[0] is None or interval[0] <= date) and (interval[1] is None or date <= interval[1])
