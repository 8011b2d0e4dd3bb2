"""YAML documents that say where they are wrong.

In: a YAML text and a pydantic record. Out: the record, or one error that lists each wrong entry with file, line, key,
what was given and what is allowed; and the record as YAML again. Scalars are those of YAML 1.2: ``no`` is a text and
``2024-04-01`` too. Nothing is lazy.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from yaml.resolver import Resolver

from xgfm.cube.hrefs import redacted
from xgfm.errors import JobError, WriteError, XgfmError

Record = TypeVar("Record", bound=BaseModel)
Place = tuple[str | int, ...]

_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)
_DEEPEST = 40
"""Levels of a document: deeper ones are an accident, or meant to exhaust the stack."""


class _Loader(yaml.SafeLoader):
    """Scalars of YAML 1.2's core schema, so that a date or a code stays a text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own class attribute


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would read as something else than a text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own class attribute

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's own signature
        return True


def _quoted(dumper: _Dumper, text: str) -> yaml.Node:
    # Only between double quotes does PyYAML write every sign so that it reads it again. What YAML 1.1 reads as no text
    # (no, 2024-04-01, 08:30, =) is quoted too, for other readers.
    tag = _OLD.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    plain = text.isprintable() and tag == "tag:yaml.org,2002:str"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


def _decimal(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


_OLD = Resolver()
_Loader.add_constructor("tag:yaml.org,2002:int", _decimal)  # PyYAML reads 010 as eight, and fails at 08
_Dumper.add_representer(str, _quoted)
for _tag, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def to_yaml(record: BaseModel) -> str:
    """Return a record as YAML, with every value that it holds; absent ones are left out."""
    values = record.model_dump(mode="json", by_alias=True, exclude_none=True)
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text


def from_yaml(text: str, record: type[Record], name: str) -> Record:
    """Read a record.

    Parameters
    ----------
    text
        The document.
    record
        What it must hold.
    name
        Of the file, for messages.

    Raises
    ------
    JobError
        Not YAML, or entries that are wrong: all of them, with their lines.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
        lines = {} if node is None else dict(_lines(node, (), set()))
        values = _Loader("").construct_document(node) if node is not None else None
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f"{name}, line {mark.line + 1}" if mark is not None else name
        raise JobError(
            f"{where}: {getattr(error, 'problem', None) or 'is no YAML'}; expected YAML, key: value"
        ) from error
    except _RefusedError as error:
        raise JobError(f"{name}, line {error.line}: {error}") from error
    if not isinstance(values, dict):
        raise JobError(f"{name} holds no keys; expected at least {_required(record)}, one 'key: value' on each line")
    try:
        return record(**values)
    except WrongEntriesError as error:
        raise JobError("\n".join(_at(place, lines, name) + said for place, said in error.entries)) from None


class WrongEntriesError(JobError):
    """Entries of a record that are wrong, each with its place."""

    def __init__(self, entries: list[tuple[Place, str]]) -> None:
        super().__init__("\n".join(said for _, said in entries))
        self.entries = entries

    def __reduce__(self) -> tuple[type[WrongEntriesError], tuple[list[tuple[Place, str]]]]:
        return WrongEntriesError, (self.entries,)

    @classmethod
    def of(cls, error: ValidationError, record: type[BaseModel]) -> WrongEntriesError:
        """Say what pydantic found in the project's own words, without repeating what may be secret."""
        return cls([_say(problem, record) for problem in error.errors(include_url=False)])


class Document(BaseModel):
    """A frozen record that is kept as a YAML file."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False, hide_input_in_errors=True)
    called: ClassVar[str]
    """What messages call it."""
    wrong: ClassVar[type[WrongEntriesError]] = WrongEntriesError
    """What is raised for wrong entries."""
    refused_by: ClassVar[type[XgfmError]] = JobError
    """What is raised for a document that it cannot be read from."""

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise self.wrong.of(error, type(self)) from None  # pydantic's own text repeats what was given

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read a YAML file.

        Raises
        ------
        JobError or TrainError
            No such file, no YAML, or wrong entries: all of them, with line, value and what is allowed.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise cls.refused_by(
                f"the {cls.called} {str(path)!r} cannot be read ({error}); give the path of a YAML file"
            ) from error
        return cls.from_yaml(text, name=str(path))

    @classmethod
    def from_yaml(cls, text: str, *, name: str | None = None) -> Self:
        """Read YAML; ``name`` is what messages call it."""
        try:
            return from_yaml(text, cls, name or f"{cls.called}.yaml")
        except JobError as error:
            raise cls.refused_by(str(error)) from None

    def to_yaml(self) -> str:
        """Return the record as YAML, defaults written out."""
        return to_yaml(self)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the record as a YAML file; an existing one is replaced."""
        try:
            Path(path).write_text(self.to_yaml(), encoding="utf-8")
        except OSError as error:
            raise WriteError(f"the {self.called} cannot be written to {str(path)!r} ({error.strerror})") from error


def _at(place: Place, lines: dict[Place, int], name: str) -> str:
    line = next((lines[place[:n]] for n in range(len(place), -1, -1) if place[:n] in lines), None)
    return f"{name}: " if line is None else f"{name}, line {line}: "


class _RefusedError(Exception):
    """An entry that is YAML but that no record is read from."""

    def __init__(self, node: yaml.Node, text: str) -> None:
        super().__init__(text)
        self.line = node.start_mark.line + 1


def _lines(node: yaml.Node, place: Place, seen: set[int]) -> Iterator[tuple[Place, int]]:
    """Line of each entry; refuses what would make two entries one, or one entry many."""
    if id(node) in seen:
        raise _RefusedError(node, "an anchor (&) is used again here (*); write the value out at each place")
    if len(place) > _DEEPEST:
        raise _RefusedError(node, f"entries are nested in more than {_DEEPEST} levels")
    seen.add(id(node))
    yield place, node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            yield from _lines(child, (*place, index), seen)
    elif isinstance(node, yaml.MappingNode):
        _check_keys(node)
        for key, child in node.value:
            inner = _lines(child, (*place, key.value), seen)
            next(inner)  # the line of the key is meant, where the value begins on the next
            yield (*place, key.value), key.start_mark.line + 1
            yield from inner


def _check_keys(node: yaml.MappingNode) -> None:
    keys: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _RefusedError(key, "a key must be a word")
        if key.value in keys:
            raise _RefusedError(key, f"key {key.value!r} is there twice; keep one of the two")
        key.tag = "tag:yaml.org,2002:str"
        keys.add(key.value)


def _say(problem: Any, record: type[BaseModel]) -> tuple[Place, str]:
    """One wrong entry: its place in the document, and a sentence."""
    kind = problem["type"]
    holder, field, place = _find(tuple(problem["loc"]), record)
    key = ".".join(map(str, place)) or "the job"
    if kind == "extra_forbidden":  # its value may be a secret that has no place here
        options = list(_names(holder))
        near = difflib.get_close_matches(str(place[-1]), options, 1)
        hint = f", did you mean {near[0]!r}?" if near else "."
        return place, f"there is no key {key!r}{hint} Allowed: {', '.join(options)}"
    if kind == "missing":
        return place, f"key {key!r} is missing; expected {_expected(field)}"
    said = problem["msg"].removeprefix("Value error, ")
    if kind == "value_error":  # of the whole record: its sentence begins with the key
        return (place, f"{key}: {said}") if place else ((said.partition(":")[0],), said)
    return place, f"{key}: {redacted(repr(problem['input']))[:100]} is wrong ({said}); allowed: {_expected(field)}"


def _find(place: Place, record: type[BaseModel]) -> tuple[type[BaseModel], Any, Place]:
    """The record that holds an entry, the entry's field, and its place as the document has it."""
    holder, field, known = record, None, []
    for part in place:
        inner = _record_of(field) if field is not None else holder
        names = _names(inner) if inner is not None else {}
        if inner is not None and part in names:
            holder, field = inner, names[str(part)]
        elif isinstance(part, str) and (part in ("GridSpec", "native")):
            continue  # the branch of a choice, which the document does not show
        known.append(part)
    if field is not None and (inner := _record_of(field)) is not None and known[-1] not in _names(holder):
        holder = inner
    return holder, field, tuple(known)


def _names(record: type[BaseModel]) -> dict[str, Any]:
    return {field.serialization_alias or name: field for name, field in record.model_fields.items()}


def _record_of(field: Any) -> type[BaseModel] | None:
    """The record that a field holds, if it holds one."""
    pending = [field.annotation]
    while pending:
        kind = pending.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
        pending += get_args(kind)
    return None


def _expected(field: Any) -> str:
    return (field.description if field is not None else None) or "another value"


def _required(record: type[BaseModel]) -> str:
    return ", ".join(name for name, field in _names(record).items() if field.is_required())
