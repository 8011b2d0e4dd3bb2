"""The page that goes with a trained task, for the people who find it.

In: the task's record, its scores, and what it was trained on, as plain values. Out: Markdown with the front matter that
the Hugging Face Hub reads (https://huggingface.co/docs/hub/model-cards). Nothing is read or written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from xgfm.models.spec import PRITHVI_BANDS, TaskSpec

_WEAK = 0.5
"""IoU under which a class is named among the limits."""
_FEW_GROUPS = 20
"""Spatial groups under which intervals are said to be too narrow."""
_TOLD = (
    "method", "epochs", "steps", "batch_size", "lr", "layer_decay", "weight_decay", "loss", "class_weights", "seed",
)  # fmt: skip
_HUB_LICENCES = (
    "apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "unlicense",
)  # fmt: skip
"""Licences that the Hub knows by these names; others are ``other`` there, with their own name beside it."""


@dataclass(frozen=True)
class Facts:
    """What a card says beside the record of the task; mappings of JSON values, empty where nothing is known."""

    metrics: Mapping[str, Any]
    """As `Confusion.to_json` or `Regression.to_json` gave it, with the ``split`` that it is of."""
    calibration: Mapping[str, Any]
    """Expected calibration error ``before`` and ``after`` the temperature."""
    data: Mapping[str, Any]
    """Of the chips."""
    settings: Mapping[str, Any]
    base: str | None
    """Repository or name of the weights that training started from; None from scratch."""
    steps: int | None
    """That the best weights had been trained for."""


def model_card(task: TaskSpec, facts: Facts) -> str:
    """Return the card of a task.

    Parameters
    ----------
    task
        Its record.
    facts
        What was measured, what it was trained on, how.

    Returns
    -------
    str
        Markdown.
    """
    parts = [
        f"---\n{yaml.safe_dump(front_matter(task, facts), sort_keys=False, allow_unicode=True)}---",
        f"# {task.title or task.name}",
        *_warnings(task),
        "## What it predicts",
        _output(task),
        "## Use",
        _use(task),
        "## Measured",
        _measured(task, facts),
        "## Trained on",
        _data(facts.data),
        "## How it was trained",
        _training(facts),
        "## Intended use and limits",
        _limits(task, facts),
        "## Licence",
        _licence(task, facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def front_matter(task: TaskSpec, facts: Facts) -> dict[str, Any]:
    """Return what the Hub reads: licence, base model, tags, scores; keys as the Hub names them."""
    matter: dict[str, Any] = {"library_name": "xgfm"}
    if task.licence:
        known = task.licence.lower() in _HUB_LICENCES
        matter["license"] = task.licence.lower() if known else "other"
        matter |= {} if known else {"license_name": task.licence}
    if facts.base and "/" in facts.base:
        matter |= {"base_model": facts.base, "base_model_relation": "finetune"}
    if task.kind == "segmentation":
        matter["pipeline_tag"] = "image-segmentation"
    matter["tags"] = ["xgfm", "earth-observation", "remote-sensing", task.kind]
    scores = facts.metrics.get("scores", {})
    matter["metrics"] = list(scores)
    measured = [
        {"type": name, "name": name, "value": round(score["value"], 4)}
        for name, score in scores.items()
        if score["value"] is not None
    ]
    if measured:
        kind = "image-segmentation" if task.kind == "segmentation" else "image-regression"
        split = facts.metrics["split"]
        dataset = {"type": "chips", "name": f"{split} split of the chips that it was trained on", "split": split}
        result = {"task": {"type": kind}, "dataset": dataset, "metrics": measured}
        matter["model-index"] = [{"name": task.name, "results": [result]}]
    return matter


def _warnings(task: TaskSpec) -> list[str]:
    demonstration = ["> A demonstration of the software, trained on simulated data: a map of nothing real."]
    return (demonstration if task.demonstration else []) + [f"> {quirk}" for quirk in task.quirks]


def _output(task: TaskSpec) -> str:
    if task.kind == "regression":
        what = f"One number for each pixel, in {task.units}."
    else:
        rows = [f"| {code} | {info.name} | `{info.color}` |" for code, info in enumerate(task.classes)]
        what = "\n".join(["| code | class | colour |", "| ---: | --- | --- |", *rows])
    scale = task.statistics.reflectance_scale
    unit = "in their own units" if scale == 1 else f"one unit being {scale:g} of reflectance"
    return (
        f"{what}\n\nFrom {task.frames} frame(s) of the bands {', '.join(task.bands)}, {unit}, "
        f"at {task.pixel_size:g} m, in windows of {task.window} pixels whose outer {task.halo} are thrown away."
    )


def _use(task: TaskSpec) -> str:
    cube = "xgfm.open_hls(bbox=..., datetime=...)" if task.bands == PRITHVI_BANDS else "...  # (time, band, y, x)"
    return (
        f"```python\nimport xgfm\n\ncube = {cube}\n"
        'result = cube.gfm.predict(task="this-folder-or-owner/name")\n```\n\n'
        "`xgfm` refuses cubes whose bands, units or pixel size are others than those of the task."
    )


def _measured(task: TaskSpec, facts: Facts) -> str:
    metrics = facts.metrics
    if not metrics.get("pixels"):
        return "Nothing: there was no labelled pixel that was not trained on."
    groups, split = metrics["groups"], metrics["split"]
    said = [f"On {metrics['pixels']} labelled pixels of the {split} split, in {groups} spatial group(s)."]
    if split == "val":
        said.append("That split chose the weights that were kept, so these scores are somewhat too good.")
    if groups > 1:
        said.append("In brackets: 95 % of a bootstrap that draws whole groups.")
    if groups < _FEW_GROUPS:
        few = f"From {groups} groups such intervals are too narrow." if groups > 1 else "One group gives no intervals."
        said.append(few)
    units = f" ({task.units})" if task.kind == "regression" and task.units != "1" else ""
    overall = [f"| {name} | {_score(score)} |" for name, score in metrics["scores"].items()]
    tables = [" ".join(said), "\n".join([f"| score{units} | |", "| --- | --- |", *overall])]
    if "classes" in metrics:
        tables.append(_class_table(metrics["classes"]))
    if metrics.get("unpredicted"):
        tables.append(f"{metrics['unpredicted']} labelled pixels have no prediction and are in no score.")
    if "before" in facts.calibration:
        before, after = (facts.calibration.get(key) for key in ("before", "after"))
        tables.append(
            f"Probabilities are those of logits divided by {task.temperature:.3g}, fitted on the validation split; "
            f"expected calibration error {_number(before)} before and {_number(after)} after."
        )
    return "\n\n".join(tables)


def _class_table(classes: Sequence[Mapping[str, Any]]) -> str:
    names = ("iou", "f1", "precision", "recall")
    head = ["| class | pixels | " + " | ".join(names) + " |", "| --- | ---: |" + " --- |" * len(names)]
    rows = [
        f"| {entry['name']} | {entry['pixels']} | " + " | ".join(_score(entry[name]) for name in names) + " |"
        for entry in classes
    ]
    return "\n".join([*head, *rows])


def _data(data: Mapping[str, Any]) -> str:
    if not data:
        return "Nobody has said."
    apart = ("counts", "classes", "bbox", "period")
    lines = [f"- {name.replace('_', ' ')}: {_plain(value)}" for name, value in data.items() if name not in apart]
    if "bbox" in data:
        west, south, east, north = data["bbox"]
        lines.append(f"- place: {west:g} to {east:g} degrees east, {south:g} to {north:g} degrees north")
    if "period" in data:
        lines.append(f"- dates: {' to '.join(str(date)[:10] for date in data['period'])}")
    return "\n".join(lines) + _counts(data)


def _counts(data: Mapping[str, Any]) -> str:
    """Return the labelled pixels of each class and split as a table."""
    counts = data.get("counts") or {}
    names = [entry["name"] for entry in data.get("classes") or ()] or ["labelled"]
    if not counts or any(len(row) != len(names) for row in counts.values()):
        return ""
    head = ["| pixels | " + " | ".join(counts) + " |", "| --- |" + " ---: |" * len(counts)]
    rows = [f"| {name} | " + " | ".join(str(row[k]) for row in counts.values()) + " |" for k, name in enumerate(names)]
    return "\n\n" + "\n".join([*head, *rows])


def _training(facts: Facts) -> str:
    start = f"Starting from {facts.base}." if facts.base else "From random weights."
    kept = {name: facts.settings[name] for name in _TOLD if facts.settings.get(name) is not None}
    lines = [f"- {name.replace('_', ' ')}: {_plain(value)}" for name, value in kept.items()]
    steps = [f"- steps of the weights that were kept: {facts.steps}"] if facts.steps is not None else []
    return "\n".join([start, "", *lines, *steps]).rstrip()


def _limits(task: TaskSpec, facts: Facts) -> str:
    limits = [
        f"Made for cubes of {len(task.bands)} bands at {task.pixel_size:g} m from the sensors, the region and the "
        "seasons that it was trained on. Nothing was measured elsewhere.",
        "Pixel counts of a map are no area estimates: use a reference sample (`xgfm.climate.area`).",
    ]
    weak = [
        entry["name"]
        for entry in facts.metrics.get("classes", [])
        if entry["pixels"] and (entry["iou"]["value"] or 0) < _WEAK
    ]
    absent = [entry["name"] for entry in facts.metrics.get("classes", []) if not entry["pixels"]]
    if weak:
        limits.append(f"IoU is under {_WEAK:g} for: {', '.join(weak)}.")
    if absent:
        limits.append(f"Not measured, since there was no pixel of them: {', '.join(absent)}.")
    if task.kind == "segmentation" and "before" not in facts.calibration:
        limits.append("Probabilities were not calibrated.")
    return "\n".join(f"- {limit}" for limit in limits)


def _licence(task: TaskSpec, facts: Facts) -> str:
    base = f" of {facts.base}" if facts.base else ""
    if task.licence:
        return f"{task.licence}: that of the weights{base} that these were made from."
    if facts.base is None:
        return "The weights were trained from random ones, and nobody has said under which licence they are."
    return f"Nobody has said under which licence the weights{base} are. Ask before you pass them on."


def _score(score: Mapping[str, Any]) -> str:
    low, high = score.get("low"), score.get("high")
    interval = f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
    return _number(score["value"]) + interval


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}"


def _plain(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(inner) for inner in value)
    return str(value).replace("\n", " ").replace("|", "\\|")
