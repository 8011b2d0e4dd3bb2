"""What follows a run: the best weights as an ordinary task, judged on chips that it has never seen.

In: the settings of a run that is over. Out: ``folder/task``, which `load_task` reads: weights, record, training
set as the encoder sees it, model card, scores of the test split. Nothing is lazy.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from xgfm.errors import TrainError
from xgfm.infer.device import pick
from xgfm.models import registry
from xgfm.models.spec import TaskSpec
from xgfm.train.chips.chips import Chips, open_chips
from xgfm.train.loop.checkpoints import Checkpoints
from xgfm.train.loop.history import read_history
from xgfm.train.loop.losses import IGNORE
from xgfm.train.loop.passes import Passes
from xgfm.train.loop.trainer import CHECKPOINTS, TASK, scale_of
from xgfm.train.loop.validate import said
from xgfm.train.result.artifact import CARD, SCORES, write_artifact
from xgfm.train.result.domain import domain_of
from xgfm.train.result.origin import extent_of_chips
from xgfm.train.scores.calibration import Reliability, fit_temperature
from xgfm.train.scores.metrics import Confusion, Regression, metrics_for
from xgfm.train.settings import TrainSettings
from xgfm.train.start.lora import merge
from xgfm.train.start.targets import rescale
from xgfm.train.start.tuning import put_learned, start_module

if TYPE_CHECKING:
    from torch import Tensor

_PIXELS = 200_000
"""Of the validation split, from which the temperature is fitted."""


def finish(settings: TrainSettings) -> Mapping[str, Any]:
    """Write the finished task of a run into its folder, and return the scores of the test split.

    Parameters
    ----------
    settings
        Of a run that `train` has brought to its end.

    Returns
    -------
    Mapping
        What ``folder/task/metrics.json`` holds: see `Confusion.to_json`. Scores are of the validation split where the
        chips have no test split; ``"split"`` says which. A folder that is written already is read.

    Raises
    ------
    TrainError
        There is no checkpoint yet.
    """
    folder = Path(settings.folder).expanduser()
    saved = Checkpoints(folder / CHECKPOINTS).best()
    if saved is None:
        raise TrainError(f"{folder} has no checkpoint of a validation; train first")
    written = folder / TASK
    if (written / CARD).exists():  # it is written last
        known: dict[str, Any] = json.loads((written / SCORES).read_text(encoding="utf-8"))
        return known
    chips = open_chips(settings.chips)
    module, spec = trained(settings, chips)
    passes = Passes(module.to(pick(settings.device)), spec, chips, pick(settings.device))
    split = "test" if len(chips.indexes("test")) else "val"
    at_once = settings.micro_batch or settings.batch_size
    spec = dataclasses.replace(spec, temperature=_temperature(passes, at_once, settings.seed))
    scores, calibration = judge(dataclasses.replace(passes, spec=spec), split, at_once)
    domain = domain_of(passes, settings.seed)
    write_artifact(
        module.cpu(),
        spec,
        written,
        metrics=scores,
        calibration=calibration,
        split=split,
        facts={**chips.facts.to_json(), "bbox": _place(chips)},
        settings={**settings.model_dump(mode="json"), "lr": settings.rate},
        history=_validations(folder),
        steps=saved.step,
        domain=domain,
    )
    finished: dict[str, Any] = json.loads((written / SCORES).read_text(encoding="utf-8"))
    return finished


def trained(settings: TrainSettings, chips: Chips | None = None) -> tuple[nn.Module, TaskSpec]:
    """Return the best module of a run, with its record.

    It is an ordinary one that `build_task` builds the like of: adapters are added into the weights, and a regression
    answers in units of its targets.
    """
    chips = open_chips(settings.chips) if chips is None else chips
    checkpoints = Checkpoints(Path(settings.folder).expanduser() / CHECKPOINTS)
    saved = checkpoints.best()
    if saved is None:
        raise TrainError(f"{settings.folder} has no checkpoint of a validation; train first")
    scale = scale_of(settings, chips)
    module, spec = start_module(settings, chips.facts, scale)
    put_learned(module, checkpoints.load(saved)["module"])
    return rescale(merge(module), spec, scale).eval().requires_grad_(False), spec


def judge(passes: Passes, split: str, at_once: int) -> tuple[Confusion | Regression, dict[str, float]]:
    """Return the scores of a split by spatial group, and of classes the calibration error before and after.

    ``passes.spec.temperature`` is the one after.
    """
    scores = metrics_for(passes.spec)
    before, after = Reliability(), Reliability()
    chips = passes.chips
    for indexes, logits, label in said(passes, chips, chips.indexes(split), at_once):
        truth, groups = label.cpu().numpy(), chips.groups(indexes)
        if isinstance(scores, Regression):
            scores.add(truth, logits[:, 0].cpu().numpy(), groups)
            continue
        predicted = logits.max(1).indices.cpu().numpy()
        scores.add(truth, predicted, groups)
        for reliability, temperature in ((before, 1.0), (after, passes.spec.temperature)):
            sure = (logits.double() / temperature).softmax(1).amax(1).clamp(0, 1)
            reliability.add(truth, predicted, sure.cpu().numpy())
    if isinstance(scores, Regression):
        return scores, {}
    return scores, {"temperature": passes.spec.temperature, "before": before.error, "after": after.error}


def _place(chips: Chips) -> list[float] | None:
    """Return west, south, east, north of the chips in degrees: labels may be in a small part of a cube."""
    places = chips.dataset()
    half = chips.facts.size * chips.facts.pixel_size / 2
    return extent_of_chips(places["lat"].values, places["lon"].values, half)


def _temperature(passes: Passes, at_once: int, seed: int) -> float:
    """Return the temperature that fits the validation split, from some of its pixels."""
    if passes.spec.kind == "regression":
        return 1.0
    chips = passes.chips
    indexes = chips.indexes("val")
    share = _PIXELS / max(len(indexes) * chips.facts.size**2, 1)
    rng = np.random.default_rng([seed, 0x7E4D])
    tables, codes = [], []
    for _, logits, label in said(passes, chips, indexes, at_once):
        known = (label != IGNORE).cpu() & torch.from_numpy(rng.random(tuple(label.shape)) < share)
        tables.append(_rows(logits.cpu(), known))
        codes.append(label.cpu()[known])
    table, code = torch.cat(tables).numpy(), torch.cat(codes).numpy()
    return fit_temperature(table, code) if len(code) else 1.0


def _rows(logits: Tensor, known: Tensor) -> Tensor:
    return logits.movedim(1, -1)[known]


def _validations(folder: Path) -> list[dict[str, Any]]:
    history = read_history(folder)
    table = history[history["val_loss"].notna()].dropna(axis=1, how="all").reset_index()
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def check_artifact(settings: TrainSettings) -> None:
    """Refuse a base whose module no folder can describe: one of a builder that was registered in this process."""
    if isinstance(settings.base, str) and settings.base != "scratch":
        entry = registry.find(settings.base, settings.base_spec)
        if entry.build is not None:
            raise TrainError(
                f"base {settings.base!r} is built by a function of this process, which no folder can hold; give it "
                "an architecture that build_task knows, or call xgfm.train.loop.trainer.train and save the weights"
            )
