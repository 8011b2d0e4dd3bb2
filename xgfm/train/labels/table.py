"""Rows of a table of classes, from mappings, sequences, CSV and YAML files.

In: what a user writes. Out: entries, each with whether it is a class. Scalars are texts or whole numbers: ``no`` is a
word, ``"07"`` keeps its zero.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from xgfm.errors import LabelError
from xgfm.models.spec import ClassInfo

Code = int | str
FIELDS = ("code", "name", "color", "parent")
"""Columns of a table of classes; the last two may be left out."""


@dataclass(frozen=True, slots=True)
class LegendEntry:
    """One row of the table."""

    code: Code
    """What stands in the labels: a number of a raster, a number or text of a vector attribute."""
    name: str
    """Readable name."""
    color: str = ""
    """``#rrggbb``; empty: one is chosen."""
    parent: Code | None = None
    """Code or name of the entry above in the taxonomy, or the name of a group that has no entry of its own."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise LabelError(f"code {self.code!r} of the legend has the name {self.name!r}; give it a text, name")
        if self.color:
            ClassInfo(self.name, self.color)  # refuses what is no colour


Row = tuple[LegendEntry, bool]
"""An entry, and whether it is a class: what has no name is unlabelled."""


def rows_of(source: Any) -> list[Row]:
    """Return the rows that a mapping, a sequence or the path of a table describes (`Legend.of`)."""
    if isinstance(source, str | Path):
        return rows_of(_read_table(Path(source)))
    if isinstance(source, Mapping):
        return [_record(code, value) for code, value in source.items()]
    if isinstance(source, Iterable):
        return [_numbered(number, value) for number, value in enumerate(source)]
    raise LabelError(
        f"{type(source).__name__} is no legend; give {{code: name}}, a list of names, or the path of a CSV or YAML "
        "table with code, name, color, parent"
    )


def _record(code: Any, value: Any) -> Row:
    """An entry of a mapping, and whether it is a class."""
    code = plain(code)
    if value is None:
        return LegendEntry(code, f"unlabelled {code}"), False
    if isinstance(value, LegendEntry):
        return replace(value, code=code), True
    if isinstance(value, ClassInfo):
        return LegendEntry(code, value.name, value.color), True
    if isinstance(value, str):
        return LegendEntry(code, value), True
    if isinstance(value, Mapping):
        return _checked({"code": code, **value})
    raise LabelError(f"code {code!r} of the legend is {value!r}; give a name, None, or {{name, color, parent}}")


def _numbered(number: int, value: Any) -> Row:
    """An entry of a sequence: with its own code, or numbered."""
    if isinstance(value, LegendEntry):
        return value, True
    own = isinstance(value, Mapping) and "code" in value
    return _checked(value) if own else _record(number, value)


def _checked(record: Mapping[str, Any]) -> Row:
    strange = [str(key) for key in record if key not in FIELDS]
    if strange:
        raise LabelError(f"an entry of the legend has {', '.join(strange)}; expected {', '.join(FIELDS)}")
    code, name = plain(record["code"]), record.get("name")
    if name is None or name == "":
        return _record(code, None)
    parent = record.get("parent")
    parent = None if parent in ("", None) else plain(parent)
    return LegendEntry(code, str(name), str(record.get("color") or "").lower(), parent), True


def _read_table(path: Path) -> Any:
    """The rows of a CSV file, or the document of a YAML file."""
    if path.suffix.lower() not in (".csv", ".yaml", ".yml"):
        raise LabelError(f"legend {str(path)!r} is no table; give a .csv or .yaml file, or {{code: name}}")
    if not path.is_file():
        raise LabelError(f"there is no file {str(path)!r}; correct legend=")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() != ".csv":
        return _yaml(path, text)
    rows = list(csv.DictReader(text.splitlines(), skipinitialspace=True))
    missing = [field for field in FIELDS[:2] if not rows or field not in rows[0]]
    if missing:
        raise LabelError(
            f"{path.name!r} has no column {' and '.join(missing)}; its first line is code,name,color,parent"
        )
    return [{field: row.get(field) for field in FIELDS} for row in rows]


def _yaml(path: Path, text: str) -> Any:
    try:
        # Every scalar as text: `no` is a word, and `plain` knows whole numbers.
        return _unquoted(yaml.load(text, Loader=yaml.BaseLoader))
    except yaml.YAMLError as error:
        raise LabelError(f"{path.name!r} cannot be read as YAML ({' '.join(str(error).split())})") from error


def _unquoted(document: Any) -> Any:
    """The document with None where YAML says null."""
    if isinstance(document, Mapping):
        return {key: _unquoted(value) for key, value in document.items()}
    if isinstance(document, list):
        return [_unquoted(value) for value in document]
    return None if document in ("", "~", "null") else document


def plain(code: Any) -> Code:
    """Return a code as an int where it is a whole number, also in a text or as a float; else as text."""
    if isinstance(code, np.generic):
        code = code.item()
    if isinstance(code, int) or (isinstance(code, float) and code.is_integer()):
        return int(code)
    text = str(code).strip()
    return int(text) if text.lstrip("-").isdecimal() and str(int(text)) == text else text
