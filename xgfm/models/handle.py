"""Handles: small values that stand for a loaded task or model in graphs and pickles.

In: a name or a path. Out: a `ModelHandle`, which is the record, where the weights are and their digest. The weights are
opened by `ModelHandle.load`, once in each process and for each device.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from xgfm.errors import CheckpointError, TaskError
from xgfm.models import fetch, registry
from xgfm.models.registry import Builder, Entry, register_task, tasks
from xgfm.models.spec import Layout, ModelSpec, TaskSpec, to_json

if TYPE_CHECKING:
    import torch
    from torch import nn

    from xgfm.models.domain import Domain

__all__ = ["ModelHandle", "is_cached", "load_model", "load_task", "register_task", "tasks"]

_LOADED: dict[tuple[str, str], nn.Module] = {}
_LOCK = threading.RLock()  # a builder may load another handle


@dataclass(frozen=True, slots=True)
class ModelHandle:
    """A task or a model with its weights, as a value of a few hundred bytes."""

    spec: Any
    """`TaskSpec` from `load_task`, `ModelSpec` from `load_model`."""
    source: str | None
    """``hub:owner/name/file@revision``, ``bundled:name`` or ``file:/path``; None where ``build`` loads the weights."""
    digest: str
    """SHA-256 of the weights file, or of the parameters where there is no file."""
    layout: Layout = "xgfm"
    """How the weights file names its tensors."""
    build: Builder | None = field(default=None, compare=False)
    """Makes the module, where the record alone does not describe it."""
    builder: str = ""
    """Digest of ``build``; computed once and sent along, since another process may pickle it otherwise."""
    domain: str = ""
    """SHA-256 of the training set beside the weights, for the layer ``out_of_domain``; empty for a task without one."""

    def __post_init__(self) -> None:
        if self.build is not None and not self.builder:
            object.__setattr__(self, "builder", registry.builder_digest(self.build))

    @property
    def key(self) -> str:
        """What tells this module from every other one."""
        return json.dumps([self.digest, self.builder, to_json(self.spec)], sort_keys=True)

    def __hash__(self) -> int:
        return hash(self.key)

    def __dask_tokenize__(self) -> tuple[str, str, str]:
        return ("xgfm.ModelHandle", self.key, self.domain)

    def _repr_html_(self) -> str:
        from xgfm.models.shown import shown

        return shown(self)

    def load(self, device: str | torch.device = "cpu") -> nn.Module:
        """Return the module, float32, in evaluation mode, without gradients.

        It is the same object for every caller of this process and device: do not change it.

        Parameters
        ----------
        device
            As torch names it.

        Returns
        -------
        torch.nn.Module

        Raises
        ------
        CheckpointError
            When the weights are not those of the digest, or not of this architecture.
        """
        place = (self.key, str(device))
        with _LOCK:
            if place not in _LOADED:
                _LOADED[place] = self._read().to(device).eval().requires_grad_(False)
            return _LOADED[place]

    def load_domain(self, device: str = "cpu") -> Domain:
        """Return the task's training set as its encoder sees it; read once, as the module.

        Raises
        ------
        TaskError
            The task has none.
        CheckpointError
            When the file beside the weights is another one.
        """
        from xgfm.models.domain import load_domain

        if not self.domain or self.source is None:
            raise TaskError(
                f"task {self.spec.name!r} does not know its training set, so nothing can be out of it; fit it with "
                "xgfm.fit_domain(task, chips)"
            )
        return load_domain(self.source, self.domain, self.digest, device)

    def _read(self) -> nn.Module:
        from xgfm.models.checkpoint import load_into, read_state

        if self.source is None:
            return self._built()
        path = fetch.local_file(self.source)
        fetch.require_digest(path, self.digest)
        module = _empty(self.spec, self.build)
        load_into(module, read_state(path, self.layout), path.name)
        return module

    def _built(self) -> nn.Module:
        module = _empty(self.spec, self.build)
        if _digest_of(module) != self.digest:
            raise CheckpointError(
                f"the builder of task {self.spec.name!r} gives other weights in each process; make it load a file, or "
                "give weights= to register_task"
            )
        return module


def load_task(name_or_path: str | os.PathLike[str], spec: TaskSpec | str | None = None) -> ModelHandle:
    """Find a task and the weights of it.

    Parameters
    ----------
    name_or_path
        A published, bundled or registered name; a folder written by `save_task` or `write_artifact`; a weights file; or
        ``owner/name`` of such a folder on the Hugging Face Hub (``owner/name@revision`` for one version of it).
    spec
        What a weights file holds, as a record, or as the name of a task of the same architecture. Not needed for a file
        with its published name.

    Returns
    -------
    ModelHandle
        Published weights whose digest is not known beforehand are downloaded now, others when they are first used.

    Raises
    ------
    TaskError
        For an unknown name, or that of a model.
    CheckpointError
        For a file that does not exist, does not say what it holds, or cannot be downloaded.
    """
    return _handle(registry.find(name_or_path, spec), TaskSpec, "task", "load_model")


def load_model(name_or_path: str | os.PathLike[str], spec: ModelSpec | str | None = None) -> ModelHandle:
    """Find a masked autoencoder and the weights of it; as `load_task`."""
    return _handle(registry.find(name_or_path, spec), ModelSpec, "model", "load_task")


def is_cached(spec: TaskSpec | ModelSpec) -> bool:
    """Tell whether the weights of a named task or model are on this machine. Nothing is downloaded."""
    source = registry.find(spec.name).source
    return source is None or fetch.is_cached(source)


def _handle(entry: Entry, kind: type[TaskSpec] | type[ModelSpec], word: str, other: str) -> ModelHandle:
    if not isinstance(entry.spec, kind):
        raise TaskError(f"{entry.spec.name!r} is no {word}; use {other}({entry.spec.name!r})")
    return ModelHandle(entry.spec, entry.source, _digest(entry), entry.layout, entry.build, entry.builder, entry.domain)


def _digest(entry: Entry) -> str:
    if entry.source is None:
        return _digest_of(_empty(entry.spec, entry.build))
    if entry.sha256 is not None and entry.source.startswith("hub:"):
        return entry.sha256
    path = fetch.local_file(entry.source)
    return entry.sha256 or fetch.sha256_of(path)


def _empty(spec: TaskSpec | ModelSpec, build: Builder | None) -> nn.Module:
    """Make the module of a record, on the meta device where this package builds it."""
    import torch

    from xgfm.models.build import build_model, build_task

    if isinstance(spec, ModelSpec):
        with torch.device("meta"):
            return build_model(spec)
    if build is not None:
        return build(spec)
    with torch.device("meta"):
        return build_task(spec)


def _digest_of(module: nn.Module) -> str:
    """Return the SHA-256 of a module's parameters and buffers, for modules that come from no file."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
