"""The table of a label set: which code means which class, in which colour, under which parent.

In: a mapping, names, a CSV or YAML file, or a label array. Out: a frozen `Legend` that turns codes into indexes of
classes, the order of a model's logits. Nothing here reads labels.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from xgfm.cf import NODATA
from xgfm.errors import LabelError
from xgfm.models.spec import ClassInfo
from xgfm.palette import class_colors
from xgfm.train.labels.table import Code, LegendEntry, plain, rows_of

__all__ = ["Legend", "LegendEntry", "classes_of", "legend_of"]


@dataclass(frozen=True)
class Legend:
    """Codes, and the classes that they stand for. Several codes can be one class (`merge`), some none at all."""

    entries: tuple[LegendEntry, ...]
    groups: tuple[str | None, ...] = ()
    """Class of each entry, by name; None: its pixels are unlabelled. Empty: every entry is a class of its own."""

    def __post_init__(self) -> None:
        if not self.entries:
            raise LabelError("the legend is empty; give at least one code with its name, legend={1: 'corn'}")
        columns: dict[str, list[Code]] = {
            "code": [entry.code for entry in self.entries],
            "name": [entry.name for entry in self.entries],
        }
        for what, values in columns.items():
            twice = sorted({str(v) for v in values if values.count(v) > 1})
            if twice:
                raise LabelError(
                    f"the legend has the {what} {', '.join(twice)} more than once; each {what} stands once"
                )
        if len(self.groups) not in (0, len(self.entries)):
            raise LabelError(
                f"{len(self.groups)} groups for {len(self.entries)} entries of a legend; give one for each"
            )
        if self.groups and not any(self.groups):
            raise LabelError("the legend leaves no class: every code is unlabelled; name at least one class")

    @classmethod
    def of(cls, source: Any) -> Legend:
        """Return the legend that a value describes.

        Parameters
        ----------
        source : Legend, mapping, sequence or path
            A mapping from code to name, to a record ``{name, color, parent}``, or to None (unlabelled); a sequence of
            names or `ClassInfo` (codes 0, 1, ...) or of records with ``code``; a CSV file with the columns ``code,
            name, color, parent``; a YAML file of a mapping or sequence as these.

        Returns
        -------
        Legend

        Raises
        ------
        LabelError
            Where it describes none.
        """
        if isinstance(source, cls):
            return source
        rows = rows_of(source)
        entries = tuple(entry for entry, _ in rows)
        return cls(entries, () if all(named for _, named in rows) else tuple(e.name if n else None for e, n in rows))

    @cached_property
    def classes(self) -> tuple[ClassInfo, ...]:
        """Classes in the order of their first entries, which is that of the logits.

        Raises
        ------
        LabelError
            More than 255: labels are uint8, and 255 is the ignore index. Two whose names differ in case or blanks only:
            labels that people typed, and a model would be asked to tell one crop from itself.
        """
        names = list(dict.fromkeys(g for g in self._groups if g is not None))
        alike: dict[str, str] = {}
        for name in names:
            first = alike.setdefault(" ".join(name.casefold().split()), name)
            if first != name:
                raise LabelError(
                    f"the classes {first!r} and {name!r} differ in case or blanks only; make them one: "
                    f"legend=xgfm.Legend.of([...]).merge({{{name!r}: {first!r}}})"
                )
        if len(names) > NODATA:
            raise LabelError(f"the legend has {len(names)} classes; labels hold {NODATA}: merge some, legend.merge(1)")
        return tuple(
            ClassInfo(name, self._color(name) or color)
            for name, color in zip(names, class_colors(len(names)), strict=True)
        )

    @property
    def codes(self) -> tuple[Code, ...]:
        """Every code of the table."""
        return tuple(entry.code for entry in self.entries)

    def index_of(self, code: Any) -> int:
        """Return the index of the class that a code or a name stands for, 255 where it is unlabelled.

        Raises
        ------
        LabelError
            A code that the legend does not know.
        """
        found = self._indexes.get(plain(code))
        if found is None:
            raise LabelError(f"the legend has no code or class {code!r}; {self.nearest([code])}")
        return found

    def knows(self, code: Any) -> bool:
        """Return whether the legend has this code or name."""
        return plain(code) in self._indexes

    def nearest(self, codes: Iterable[Any]) -> str:
        """Return what an error says about codes that the legend lacks: what it has, and what may have been meant."""
        known = [str(key) for key in self._indexes]
        close = dict.fromkeys(m for c in codes for m in difflib.get_close_matches(str(c), known, 1))
        meant = f"did you mean {', '.join(map(repr, close))}? " if close else ""
        has = ", ".join(f"{e.code!r}: {e.name}" for e in self.entries[:12])
        more = f" and {len(self.entries) - 12} more" if len(self.entries) > 12 else ""
        return f"{meant}it has {has}{more}; add them to legend=, with None as class to leave them unlabelled"

    def merge(self, level: int | Mapping[Any, str | None]) -> Legend:
        """Return a coarser legend.

        Parameters
        ----------
        level : int or mapping
            An int: the depth of the taxonomy that classes are taken from, 0 for its roots; an entry that lies higher
            stays itself. A mapping: from code, class name or parent to the name of a new class, or to None
            (unlabelled); what it does not name stays as it is.

        Returns
        -------
        Legend
            With the same codes, and fewer classes.

        Raises
        ------
        LabelError
            A name that the legend does not have, or a taxonomy that goes in a circle.
        """
        if isinstance(level, Mapping):
            return replace(self, groups=self._renamed(level))
        if isinstance(level, bool) or not isinstance(level, int) or level < 0:
            raise LabelError(
                f"level is {level!r}; give a depth of the taxonomy, 0 for its roots, or a mapping of names"
            )
        merged = []
        for entry, group in zip(self.entries, self._groups, strict=True):
            line = self._line(entry)
            merged.append(None if group is None else line[min(level, len(line) - 1)])
        return replace(self, groups=tuple(merged))

    def lookup(self, codes: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return the class indexes of codes, any shape.

        Raises
        ------
        LabelError
            Codes that the legend does not know, all of them named.
        """
        inverse, found = pd.factorize(codes.ravel(), use_na_sentinel=False)
        unknown = [value for value in found.tolist() if not self.knows(value)]
        if unknown:
            shown = ", ".join(repr(u) for u in unknown[:10]) + (" ..." if len(unknown) > 10 else "")
            raise LabelError(f"the labels hold {shown}, which the legend does not know; {self.nearest(unknown)}")
        table = np.array([self.index_of(value) for value in found.tolist()], "uint8")
        return table[inverse].reshape(codes.shape)

    @cached_property
    def _groups(self) -> tuple[str | None, ...]:
        return self.groups or tuple(entry.name for entry in self.entries)

    @cached_property
    def _indexes(self) -> dict[Code, int]:
        """Index of the class by code, by class name and by the name of an entry; a code counts before a name."""
        number = {info.name: index for index, info in enumerate(self.classes)}
        found: dict[Code, int] = {}
        found.update(number)
        pairs = list(zip(self.entries, self._groups, strict=True))
        found |= {e.name: NODATA if g is None else number[g] for e, g in pairs if e.name not in number}
        return found | {plain(e.code): NODATA if g is None else number[g] for e, g in pairs}

    def _entry(self, key: Any) -> LegendEntry | None:
        by_code = {plain(e.code): e for e in self.entries}
        by_name = {e.name: e for e in self.entries}
        return by_code.get(plain(key)) or by_name.get(str(key))

    def _line(self, entry: LegendEntry) -> list[str]:
        """Names from the root of the taxonomy down to an entry."""
        line, above = [entry.name], entry.parent
        while above is not None:
            parent = self._entry(above)
            name = str(above) if parent is None else parent.name
            if name in line:
                raise LabelError(f"the legend's parents go in a circle: {' < '.join([*line, name])}; correct parent")
            line.append(name)
            above = None if parent is None else parent.parent
        return line[::-1]

    def _renamed(self, names: Mapping[Any, str | None]) -> tuple[str | None, ...]:
        unused = dict.fromkeys(names)
        merged = []
        for entry, group in zip(self.entries, self._groups, strict=True):
            keys = (entry.code, entry.name, group, *self._line(entry)[::-1])
            key = next((k for k in keys if k in names), None)
            unused.pop(key, None)
            merged.append(group if key is None else names[key])
        if unused:
            raise LabelError(f"the legend has no code, class or parent {list(unused)}; {self.nearest(unused)}")
        return tuple(merged)

    def _color(self, name: str) -> str:
        """Colour of the entry of this name, else of the first entry of the group."""
        own = self._entry(name)
        members = [e for e, g in zip(self.entries, self._groups, strict=True) if g == name]
        return next((e.color for e in ([own] if own else []) + members if e.color), "")


def classes_of(labels: xr.DataArray) -> tuple[ClassInfo, ...]:
    """Return the classes of a label array or a class map, from its flags; none for a regression target.

    Parameters
    ----------
    labels : DataArray
        With ``flag_values``, ``flag_meanings`` and where there are any ``class_names`` and ``flag_colors``.

    Returns
    -------
    tuple of ClassInfo
        In the order of the codes, which are 0 to n - 1.

    Raises
    ------
    LabelError
        Where integers say nothing of their classes, or the codes are others.
    """
    attrs = labels.attrs
    if "flag_values" not in attrs:
        if labels.dtype.kind == "f":
            return ()
        raise LabelError(
            f"{labels.name!r} of {labels.dtype} has no flag_values, so its classes are not known; make label arrays "
            "with labels(source, cube, legend=...)"
        )
    values = np.atleast_1d(attrs["flag_values"]).tolist()
    if values != list(range(len(values))):
        raise LabelError(f"flag_values of {labels.name!r} are {values}; expected 0 to {len(values) - 1}, in order")
    return legend_of(labels).classes


def legend_of(labels: xr.DataArray) -> Legend:
    """Return the legend that CF flags describe; codes as they stand, in any order."""
    attrs = labels.attrs
    codes = np.atleast_1d(attrs["flag_values"]).tolist()
    names = list(attrs.get("class_names") or [w.replace("_", " ") for w in str(attrs["flag_meanings"]).split()])
    colors = str(attrs.get("flag_colors", "")).split() or [""] * len(codes)
    if not len(codes) == len(names) == len(colors):
        raise LabelError(
            f"{labels.name!r} has {len(codes)} flag_values, {len(names)} meanings and {len(colors)} colours; give one "
            "of each for every class"
        )
    return Legend(tuple(LegendEntry(int(c), str(n), k) for c, n, k in zip(codes, names, colors, strict=True)))
