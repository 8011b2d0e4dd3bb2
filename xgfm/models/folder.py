"""A task or a model as a folder: ``model.safetensors`` and ``config.json``.

In: a module with its record. Out: two files that `load_task` and `load_model` read back to equal weights and an equal
record, and a third where the task knows its training set. The configuration holds their digests.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

import xgfm
from xgfm.models.domain import Domain, save_domain
from xgfm.models.fetch import DOMAIN_FILE, WEIGHTS_FILE, sha256_of
from xgfm.models.quirks import published_part
from xgfm.models.registry import CONFIG_FILE
from xgfm.models.spec import ModelSpec, TaskSpec, to_json


def save_task(
    module: nn.Module, spec: TaskSpec, folder: str | os.PathLike[str], *, domain: Domain | None = None
) -> Path:
    """Write a task as a folder that `load_task` reads.

    Parameters
    ----------
    module
        The task's module; `build_task` must be able to build its like from ``spec``.
    spec
        Record of the task.
    folder
        Made where it is missing; files of the same names are replaced.
    domain
        The training set, for the layer ``out_of_domain`` of `predict`: see `xgfm.fit_domain`.

    Returns
    -------
    Path
        The folder.
    """
    return _save(module, spec, "task", Path(folder), domain)


def save_model(module: nn.Module, spec: ModelSpec, folder: str | os.PathLike[str]) -> Path:
    """Write a masked autoencoder as a folder that `load_model` reads; parameters as in `save_task`."""
    return _save(module, spec, "model", Path(folder))


def _umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _save(module: nn.Module, spec: TaskSpec | ModelSpec, kind: str, folder: Path, domain: Domain | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    state = {  # cloned, since safetensors refuses tied weights
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in published_part(module).state_dict().items()
    }
    weights, config = folder / WEIGHTS_FILE, folder / CONFIG_FILE
    config.unlink(missing_ok=True)  # written last, so a folder with a configuration is whole
    (folder / DOMAIN_FILE).unlink(missing_ok=True)  # of the weights that are replaced
    save_file(state, weights)
    weights.chmod(0o666 & ~_umask())  # safetensors makes it readable by its owner alone: no good in a shared folder
    digest = sha256_of(weights)
    facts = {"xgfm_version": xgfm.__version__, "kind": kind, "sha256": digest, "spec": to_json(spec)}
    if domain is not None:
        facts["domain"] = {"sha256": write_domain(domain, folder, digest)}
    config.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return folder


def write_domain(domain: Domain, folder: Path, weights: str) -> str:
    """Write a domain into a task's folder and return its digest, which belongs into the configuration."""
    path = folder / DOMAIN_FILE
    save_domain(domain, path, weights)
    path.chmod(0o666 & ~_umask())
    return sha256_of(path)


def add_domain(domain: Domain, folder: Path) -> None:
    """Add a domain to the folder of a task, or replace the one that it has."""
    config = folder / CONFIG_FILE
    facts = json.loads(config.read_text(encoding="utf-8"))
    facts["domain"] = {"sha256": write_domain(domain, folder, facts["sha256"])}
    whole = config.with_name(f".{CONFIG_FILE}")
    whole.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    whole.replace(config)
