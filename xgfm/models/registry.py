"""Names to records: published, bundled and registered tasks and models.

In: a name, a path, or a record with a path. Out: an `Entry` that says what to build and where its weights are. Nothing
is downloaded and no weights are opened; torch is not imported.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import marshal
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgfm.errors import CheckpointError, TaskError
from xgfm.models.fetch import BUNDLED, WEIGHTS_FILE, hub_file, hub_source
from xgfm.models.published import MODELS, TASKS
from xgfm.models.spec import Layout, ModelSpec, TaskSpec, WeightsSource, model_from_json, task_from_json

if TYPE_CHECKING:
    from torch import nn

Builder = Callable[[TaskSpec], "nn.Module"]
"""Makes the module of a task from its record."""

CONFIG_FILE = "config.json"
REPOSITORY = r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}"
"""``owner/name`` of a repository of the Hugging Face Hub, as a regular expression."""


@dataclass(frozen=True)
class Entry:
    """What to build, and where its weights are."""

    spec: TaskSpec | ModelSpec
    source: str | None
    """``hub:``, ``bundled:`` or ``file:``; None where the builder gives the module its weights."""
    layout: Layout = "xgfm"
    """How the weights file names its tensors."""
    sha256: str | None = None
    """Digest that the weights must have, where it is known."""
    build: Builder | None = None
    """For modules that a record does not describe."""
    builder: str = ""
    """Digest of ``build``, from the time of its registration; empty without one."""
    domain: str = ""
    """Digest of the training set that lies beside the weights (`models.domain`); empty without one."""


_REGISTERED: dict[str, Entry] = {}
_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".bin")


def register_task(spec: TaskSpec, build: Builder | None = None, weights: str | os.PathLike[str] | None = None) -> None:
    """Make a task known by its name, in this process.

    Handles carry the builder and the place of the weights with them, so workers need not register anything.

    Parameters
    ----------
    spec
        Record of the task.
    build
        ``build(spec)`` gives a module that is called as ``module(x, time, location)``, x ``(B, C, T, H, W)``
        normalised, and returns ``(B, K, H, W)``. None builds from ``spec.architecture``.
    weights
        File of the module's state dict, seen from every worker. None where ``build`` loads them itself: it must then
        give the same weights in every process.

    Raises
    ------
    TaskError
        For a name that is taken, neither builder nor weights, or a builder that cannot be pickled.
    """
    if spec.name in TASKS or spec.name in MODELS or spec.name in _bundled():
        raise TaskError(f"task name {spec.name!r} is taken by a task that comes with xgfm; choose another name")
    if build is None and weights is None:
        raise TaskError(f"task {spec.name!r} would have random weights; give build= or weights=")
    if isinstance(build, type) or hasattr(build, "parameters"):
        raise TaskError(f"build= of task {spec.name!r} is a module; give a function of its record: lambda spec: M()")
    source = None if weights is None else _file_source(Path(weights))
    _REGISTERED[spec.name] = Entry(spec, source, _layout(spec), build=build, builder=builder_digest(build))


class _Hash:
    """A file that keeps only the digest of what is written: a builder may hold gigabytes of weights."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return memoryview(data).nbytes


def builder_digest(build: Builder | None) -> str:
    """Return the SHA-256 of a pickled builder: two lambdas of one name differ by what they do.

    Functions of an importable module are pickled as their name alone, so their code is added: a reloaded module counts.

    Raises
    ------
    TaskError
        When the builder cannot be pickled, so cannot reach a worker either.
    """
    if build is None:
        return ""
    import cloudpickle  # what workers get builders with

    hashed = _Hash()
    try:
        cloudpickle.dump(build, hashed)
    except Exception as error:  # objects refuse to be pickled with errors of their own
        raise TaskError(
            f"build= cannot be pickled ({type(error).__name__}: {error}), so it cannot be sent to workers or told from "
            "another one; give a function that opens what it needs itself"
        ) from error
    if (code := getattr(build, "__code__", None)) is not None:
        hashed.write(marshal.dumps(code, 2))  # later formats depend on how often an object is referred to
    return hashed.digest.hexdigest()


def tasks() -> list[TaskSpec]:
    """Return the records of all tasks that have a name: published, bundled, registered."""
    return [entry.spec for entry in _entries().values() if isinstance(entry.spec, TaskSpec)]


def models() -> list[ModelSpec]:
    """Return the records of the published masked autoencoders."""
    return [entry.spec for entry in _entries().values() if isinstance(entry.spec, ModelSpec)]


def spec_of(name_or_path: str | os.PathLike[str]) -> TaskSpec | ModelSpec:
    """Return the record of a task or a model by name or path.

    Nothing is downloaded, but for the record of a repository of the Hub.
    """
    return find(name_or_path).spec


def find(name_or_path: str | os.PathLike[str], spec: TaskSpec | ModelSpec | str | None = None) -> Entry:
    """Find a task or a model.

    Parameters
    ----------
    name_or_path
        A name; a folder written by `save_task`; a weights file; or ``owner/name`` of such a folder on the Hugging Face
        Hub, ``owner/name@revision`` for one commit, tag or branch of it.
    spec
        What the weights file holds, as a record or as the name of a task or model of the same architecture. May be left
        out for a file that has its published name.

    Returns
    -------
    Entry

    Raises
    ------
    TaskError
        For an unknown name, with the nearest known one, and for an empty one.
    CheckpointError
        For a path where there is nothing, a file that does not say what it holds, or a repository that is not there or
        cannot be reached.
    """
    name, entries = os.fspath(name_or_path), _entries()
    if not name:
        raise TaskError(f"the name of a task or model is empty; give a path, or one of {sorted(entries)}")
    if name in entries and spec is None:
        return entries[name]
    path = Path(name).expanduser()
    if path.is_dir():
        return _from_folder(path, f"file:{(path / WEIGHTS_FILE).resolve()}")
    if path.is_file():
        return _from_file(path, spec)
    if _may_be_repository(name):
        return _from_hub(name)
    if "/" in name or os.sep in name or path.suffix in _SUFFIXES:
        raise CheckpointError(
            f"there is no file or folder {name}; give a path that exists, or one of {sorted(entries)}"
        )
    near = difflib.get_close_matches(name.lower(), entries, n=1, cutoff=0.0)
    raise TaskError(f"unknown task or model {name!r}; the nearest name is {near[0]!r}, all are {sorted(entries)}")


def _may_be_repository(name: str) -> bool:
    """Tell ``owner/name`` from a path with a slip: that one has a folder that is there, or a file's ending."""
    repo = name.partition("@")[0]
    return (
        re.fullmatch(REPOSITORY, repo) is not None
        and not Path(repo).parent.is_dir()
        and Path(repo).suffix not in _SUFFIXES
    )


def _from_hub(name: str) -> Entry:
    """Read the record of a repository; its weights are fetched when they are used, of the same commit."""
    repo, _, revision = name.partition("@")
    try:
        config, commit = hub_file(repo, CONFIG_FILE, revision or "main")
        return _from_folder(config.parent, hub_source(WeightsSource("xgfm", repo, WEIGHTS_FILE, commit)))
    except CheckpointError as error:
        raise CheckpointError(
            f"there is no file or folder {name} here, and as a repository of the Hugging Face Hub: {error}"
        ) from error


def _entries() -> dict[str, Entry]:
    return {**_published(), **_bundled(), **_REGISTERED}


def _published() -> dict[str, Entry]:
    known: list[TaskSpec | ModelSpec] = [*TASKS.values(), *MODELS.values()]
    return {
        spec.name: Entry(spec, hub_source(spec.weights), spec.weights.layout, spec.weights.sha256)
        for spec in known
        if spec.weights is not None
    }


def _bundled() -> dict[str, Entry]:
    folders = (config.parent for config in sorted(BUNDLED.glob(f"*/{CONFIG_FILE}")))
    return {folder.name: _from_folder(folder, f"bundled:{folder.name}") for folder in folders}


def _from_folder(folder: Path, source: str) -> Entry:
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        domain = str(config["domain"]["sha256"]) if "domain" in config else ""
        return Entry(_record(config), source, sha256=str(config["sha256"]), domain=domain)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(
            f"{folder} has no readable {CONFIG_FILE} ({type(error).__name__}: {error}); "
            "give a folder written by save_task, or a weights file with spec="
        ) from error


def _record(config: Mapping[str, Any]) -> TaskSpec | ModelSpec:
    readers: dict[str, Callable[[Mapping[str, Any]], TaskSpec | ModelSpec]]
    readers = {"task": task_from_json, "model": model_from_json}
    return readers[config["kind"]](config["spec"])


def _from_file(path: Path, spec: TaskSpec | ModelSpec | str | None) -> Entry:
    if isinstance(spec, str):
        entry = find(spec)  # of the same architecture, so not of the same digest
        return replace(entry, source=_file_source(path), sha256=None, domain="")
    if spec is not None:
        return Entry(spec, _file_source(path), _layout(spec), spec.weights.sha256 if spec.weights else None)
    for entry in _published().values():
        if entry.spec.weights is not None and entry.spec.weights.filename == path.name:
            return replace(entry, source=_file_source(path))
    raise CheckpointError(
        f"{path.name} is not the name of a published file, so it does not say what it holds; give spec=, the record or "
        "the name of a task or model of the same architecture"
    )


def _layout(spec: TaskSpec | ModelSpec) -> Layout:
    return "xgfm" if spec.weights is None else spec.weights.layout


def _file_source(path: Path) -> str:
    return f"file:{path.expanduser().resolve()}"
