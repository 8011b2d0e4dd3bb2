"""Checks of single fields of records: records come from files too, and a file can hold anything.

In: the name of a field and its value. Out: nothing, or a `TaskError` that names the field, its value and what it may
be.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from xgfm.errors import TaskError

_DEEPEST = 16
_LONGEST = 512
_LARGEST = 65_536


def require_whole(field: str, value: Any, least: int, most: int) -> None:
    """Refuse what is no whole number from ``least`` to ``most``."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise TaskError(f"{field} is {_shown(value)}; it must be a whole number from {least} to {most}")


def require_number(field: str, value: Any, *, positive: bool = False) -> None:
    """Refuse what is no finite number, or none above 0 where that is asked."""
    if not _is_number(value) or (positive and value <= 0):
        raise TaskError(f"{field} is {_shown(value)}; it must be a finite number{' above 0' if positive else ''}")


def require_choice(field: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse what is none of the choices."""
    if value not in choices:
        raise TaskError(f"{field} is {_shown(value)}; it can be {', '.join(repr(choice) for choice in choices)}")


def require_text(**fields: Any) -> None:
    """Refuse values that are no text."""
    for field, value in fields.items():
        if not isinstance(value, str):
            raise TaskError(f"{field} is {_shown(value)}; it must be text")


def require_flag(**fields: Any) -> None:
    """Refuse values that are neither True nor False."""
    for field, value in fields.items():
        if not isinstance(value, bool):
            raise TaskError(f"{field} is {_shown(value)}; it must be true or false")


def numbers(field: str, values: Any) -> tuple[float, ...]:
    """Return finite numbers as floats, refusing everything else."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TaskError(f"{field} is {_shown(values)}; it must be a list of numbers")
    values = tuple(values)
    if not all(_is_number(value) for value in values):
        raise TaskError(f"{field} is {_shown(values)}; its values must be finite numbers")
    return tuple(float(value) for value in values)


def listed(field: str, values: Any) -> tuple[Any, ...]:
    """Return a list as a tuple, refusing text, which would fall into letters."""
    if not isinstance(values, (list, tuple)):
        raise TaskError(f"{field} is {_shown(values)}; it must be a list")
    return tuple(values)


def require_json(field: str, value: Any, depth: int = 0) -> None:
    """Refuse what is no JSON value of a size that describes a model: depth, lengths and numbers have bounds."""
    if depth > _DEEPEST:
        raise TaskError(f"{field} is nested more than {_DEEPEST} deep")
    if isinstance(value, (Mapping, list, tuple)):
        if len(value) > _LONGEST:
            raise TaskError(f"{field} has {len(value)} entries; it may have {_LONGEST}")
        for entry in value.items() if isinstance(value, Mapping) else enumerate(value):
            require_json(f"{field}[{entry[0]!r:.40}]", entry[1], depth + 1)
    elif not (value is None or isinstance(value, (str, bool)) or (_is_number(value) and abs(value) <= _LARGEST)):
        raise TaskError(f"{field} is {_shown(value)}; it must be text, true, false or a number up to {_LARGEST}")


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
