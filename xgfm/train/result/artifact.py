"""A trained task as a folder that can be used, judged and passed on.

In: a module with its record, its scores, what it was trained on and how. Out: a folder of weights and record, which
`load_task` reads, with a model card, a STAC item, scores and the record of the training beside them; and the same on
the Hugging Face Hub. No file holds a path of this machine or what follows the question mark of an address.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from xgfm.describe.mlm import Trained, model_item
from xgfm.describe.sources import Source
from xgfm.errors import CheckpointError, MissingExtraError, TaskError
from xgfm.models import registry
from xgfm.models.fetch import DOMAIN_FILE, WEIGHTS_FILE, beside, require_digest, sha256_of
from xgfm.models.registry import CONFIG_FILE
from xgfm.models.spec import ModelSpec, TaskSpec
from xgfm.train.result.card import Facts, model_card
from xgfm.train.result.origin import addresses_of, credits_of, extent_of, grids_of, period_of
from xgfm.train.scores.metrics import Confusion, Regression

if TYPE_CHECKING:
    from torch import nn

    from xgfm.models.domain import Domain

CARD, ITEM, SCORES, TRAINING = "README.md", "mlm.json", "metrics.json", "training.json"
FILES: Mapping[str, tuple[str, str]] = {
    CONFIG_FILE: ("application/json", "record of the task, with the digest of the weights"),
    CARD: ("text/markdown", "model card"),
    SCORES: ("application/json", "scores on pixels that were not trained on"),
    TRAINING: ("application/json", "settings, data and history of the training"),
}
"""Files beside the weights: media type and title."""
_ADDRESS = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_PATH = re.compile(r"^(/|~|\.{1,2}/|[A-Za-z]:[\\/]|\\\\|file:)")


def write_artifact(
    module: nn.Module,
    spec: TaskSpec,
    folder: str | os.PathLike[str],
    *,
    metrics: Confusion | Regression | None = None,
    calibration: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    steps: int | None = None,
    split: str = "test",
    domain: Domain | None = None,
) -> Path:
    """Write a trained task with everything that is known of it.

    Parameters
    ----------
    module
        The task's module, in any state that `save_task` takes.
    spec
        Record of the task; its licence is that of the base weights, its temperature the fitted one.
    folder
        Made where it is missing; files of the same names are replaced, others stay.
    metrics
        Of pixels that were not trained on; with groups, so that there are intervals.
    calibration
        Expected calibration error ``before`` and ``after`` the temperature, of the same pixels; empty for a regression.
    facts
        Of the chips: what `ChipFacts.to_json` gives; with ``bbox``, in degrees, where they fill less than their cubes.
    settings
        Of the run, as JSON values.
    history
        Rows of the history.
    steps
        That the weights were trained for.
    split
        Which split ``metrics`` and ``calibration`` are of.
    domain
        The training set as the encoder sees it: see `xgfm.train.result.domain`.

    Returns
    -------
    Path
        The folder. A folder with ``config.json`` holds whole weights; the other files are written after them.
    """
    from xgfm.models.folder import save_task

    folder = Path(folder)
    for name in (CARD, ITEM, SCORES, TRAINING):  # of weights that are about to be replaced
        (folder / name).unlink(missing_ok=True)
    save_task(module, spec, folder, domain=domain)
    scored: dict[str, Any] = {} if metrics is None else {"split": split, **metrics.to_json()}
    asked, known = public(dict(settings or {})), public(dict(facts or {}))
    base = _base(dict(settings or {}), spec)
    card = Facts(scored, dict(calibration or {}), _about(known), asked, base, steps)
    record = {"settings": asked, "data": known, "base": base, "steps": steps, "history": [dict(row) for row in history]}
    _write(folder / SCORES, _json({**scored, "calibration": dict(calibration or {})}))
    _write(folder / TRAINING, _json(record))
    _write(folder / ITEM, _json(model_item(_trained(module, spec, folder, scored, card, known))))
    _write(folder / CARD, model_card(spec, card))
    return folder


def push(
    folder: str | os.PathLike[str], repo_id: str, *, private: bool = False, message: str = "", api: Any = None
) -> str:
    """Upload a task's folder to the Hugging Face Hub, from where `load_task` reads it by ``owner/name``.

    Parameters
    ----------
    folder
        What `write_artifact` or `save_task` wrote. Only the files of a task go up; checkpoints and logs that lie beside
        them stay here.
    repo_id
        ``owner/name``; made where it is missing.
    private
        Whether a repository that is made now is for its owners alone.
    message
        Of the commit.
    api
        A `huggingface_hub.HfApi`; by default one with the account that ``hf auth login`` or ``HF_TOKEN`` named.

    Returns
    -------
    str
        Address of the commit.

    Raises
    ------
    CheckpointError
        When the folder holds no whole task: nothing is uploaded.
    TaskError
        For a repo_id that is none, before anything is asked of the Hub.
    """
    folder = Path(folder)
    if not re.fullmatch(registry.REPOSITORY, repo_id):
        raise TaskError(f"repo_id={repo_id!r}: expected 'owner/name' of a repository of the Hugging Face Hub")
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(f"{folder} has no {CONFIG_FILE}; give a folder written by write_artifact or save_task")
    entry = registry.find(folder)
    if not isinstance(entry.spec, TaskSpec) or entry.sha256 is None:
        raise CheckpointError(f"{folder} holds no task; give a folder written by write_artifact or save_task")
    if not (folder / WEIGHTS_FILE).is_file():
        raise CheckpointError(f"{folder} has no {WEIGHTS_FILE}; give a folder written by write_artifact or save_task")
    require_digest(folder / WEIGHTS_FILE, entry.sha256)
    domain = [DOMAIN_FILE] if entry.domain else []
    for name in domain:
        require_digest(beside(f"file:{folder / WEIGHTS_FILE}", name), entry.domain)
    api = api or _hub()
    api.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
    done = api.upload_folder(
        repo_id=repo_id,
        folder_path=str(folder),
        repo_type="model",
        allow_patterns=[WEIGHTS_FILE, ITEM, *FILES, *domain],
        commit_message=message or f"{entry.spec.name}, weights {entry.sha256[:12]}",
    )
    return str(getattr(done, "commit_url", done))


def public(value: Any) -> Any:
    """Return JSON values without what is of this machine or secret.

    Of a path the last part is kept; of an address everything but user, password, query and fragment.
    """
    if isinstance(value, Mapping):
        return {str(key): public(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [public(inner) for inner in value]
    if isinstance(value, str) and _ADDRESS.match(value) and not value.startswith("file:"):
        parts = urlsplit(value)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    if isinstance(value, str) and _PATH.match(value):
        return re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    return value


def _hub() -> Any:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise MissingExtraError("huggingface-hub", "torch", "uploading to the Hub") from error
    return HfApi()


def _base(settings: Mapping[str, Any], spec: TaskSpec) -> str | None:
    """Return the repository of the weights that training started from, or their name; None from scratch."""
    if settings.get("method") == "scratch" or settings.get("base") == "scratch":
        return None
    named = settings.get("base")
    known: dict[Any, TaskSpec | ModelSpec] = {one.name: one for one in registry.models()}
    known |= {one.name: one for one in registry.tasks()}
    weights = (known.get(named, spec.model) if isinstance(named, str) else spec.model).weights
    if weights is not None and weights.repo:
        return weights.repo
    if not isinstance(named, str):
        return None
    return Path(named).name if Path(named).exists() else str(public(named))


def _about(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a card says of the data: no items one by one, which stand in the record of the training."""
    cubes = facts.get("lineage") or ()
    kept = ("bands", "frames", "size", "pixel_size", "classes", "counts", "split", "digest")
    said = {name: facts[name] for name in kept if name in facts}
    found = {"crs": grids_of(cubes), "bbox": facts.get("bbox") or extent_of(cubes), "period": period_of(cubes)}
    found["attribution"] = credits_of(cubes)
    simulated = {"simulated": True} if any(cube.get("simulated") for cube in cubes) else {}
    failed = {"chips that could not be read": len(facts["failed"])} if facts.get("failed") else {}
    return {**said, **{name: value for name, value in found.items() if value}, **simulated, **failed}


def _trained(
    module: nn.Module,
    spec: TaskSpec,
    folder: Path,
    scored: Mapping[str, Any],
    card: Facts,
    facts: Mapping[str, Any],
) -> Trained:
    import torch

    import xgfm

    weights, period = folder / WEIGHTS_FILE, card.data.get("period")
    plain = {k: v for k, v in card.settings.items() if isinstance(v, str | int | float | bool)}
    return Trained(
        task=spec,
        digest=sha256_of(weights),
        size=weights.stat().st_size,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        created=datetime.now(UTC),
        software={"xgfm": xgfm.__version__, "torch": str(torch.__version__)},
        base=card.base,
        hyperparameters={k: v for k, v in plain.items() if k not in ("chips", "folder", "base", "device")},
        scores={name: score["value"] for name, score in scored.get("scores", {}).items()},
        bbox=card.data.get("bbox"),
        period=None if not period else (_moment(period[0]), _moment(period[1])),
        sources=[Source(href, href.rpartition("/")[2]) for href in addresses_of(facts.get("lineage") or ())],
        files=FILES,
    )


def _moment(text: Any) -> datetime:
    moment = datetime.fromisoformat(str(text)[:19])
    return moment.replace(tzinfo=moment.tzinfo or UTC)


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, default=str) + "\n"


def _write(path: Path, text: str) -> None:
    """Write a file in one go: a reader sees the old one or the new one."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
