"""A trained task as a STAC Item of the Machine Learning Model extension, so that a catalogue can list it.

In: a task's record and facts about its weights and its training, as plain values. Out: an Item as JSON values, whose
assets lie beside it. Nothing is read or written. The extension is v1.5.1; what it asks for:
https://github.com/stac-extensions/mlm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from xgfm.describe.sources import MOST, Source
from xgfm.describe.stac import EXTENSIONS, classes
from xgfm.models.spec import TaskSpec

MLM = "https://stac-extensions.github.io/mlm/v1.5.1/schema.json"
FILE = "https://stac-extensions.github.io/file/v2.1.0/schema.json"
_SHA256 = "1220"
"""What a multihash of 32 bytes of SHA-256 begins with."""


@dataclass(frozen=True)
class Trained:
    """What an Item of a model is made of."""

    task: TaskSpec
    digest: str
    """SHA-256 of the weights file."""
    size: int
    """Bytes of the weights file."""
    parameters: int
    created: datetime
    software: Mapping[str, str]
    """Versions; those of torch and xgfm among them."""
    base: str | None
    """Repository or name of the weights that training started from; None from scratch."""
    hyperparameters: Mapping[str, Any]
    scores: Mapping[str, float | None]
    """On the test split."""
    bbox: Sequence[float] | None = None
    """West, south, east, north in degrees: where the training data lie."""
    period: tuple[datetime, datetime] | None = None
    """Of the training data."""
    sources: Sequence[Source] = ()
    files: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Name of each file beside the weights: media type and title."""


def model_item(trained: Trained) -> dict[str, Any]:
    """Return the STAC Item of a trained task.

    Parameters
    ----------
    trained
        Its facts.

    Returns
    -------
    dict
        JSON values; hrefs are relative to the folder of the weights.
    """
    period = trained.period or (trained.created, trained.created)
    item: dict[str, Any] = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [MLM, FILE, EXTENSIONS["classification"], EXTENSIONS["processing"]],
        "id": f"{trained.task.name}-{trained.digest[:12]}",
        "geometry": None if trained.bbox is None else _rectangle(trained.bbox),
        "properties": {
            "title": trained.task.title or trained.task.name,
            "description": _description(trained),
            "datetime": None,
            "start_datetime": _text(period[0]),
            "end_datetime": _text(period[1]),
            "created": _text(trained.created),
            "gsd": trained.task.pixel_size,
            "license": trained.task.licence or "other",
            "bands": _bands(trained.task),
            "processing:software": dict(trained.software),
            **_model(trained),
            "xgfm:scores": dict(trained.scores),
        },
        "links": _links(trained),
        "assets": _assets(trained),
    }
    return item if trained.bbox is None else {**item, "bbox": [float(edge) for edge in trained.bbox]}


def _bands(task: TaskSpec) -> list[dict[str, str]]:
    """Return the bands that the input names.

    The extension looks for them in the properties, and STAC allows them there only if an asset has some, too.
    """
    return [{"name": name} for name in task.bands]


def _model(trained: Trained) -> dict[str, Any]:
    """Return the fields of the extension."""
    task = trained.task
    pretrained = {"mlm:pretrained": trained.base is not None, "mlm:pretrained_source": trained.base}
    hyperparameters = {re.sub(r"[^0-9a-zA-Z_.-]", "_", key): value for key, value in trained.hyperparameters.items()}
    return {
        "mlm:name": _name(task.name),
        "mlm:architecture": _architecture(task),
        "mlm:tasks": _tasks(task),
        "mlm:framework": "PyTorch",
        "mlm:framework_version": trained.software["torch"],
        "mlm:memory_size": trained.size,
        "mlm:total_parameters": trained.parameters,
        **pretrained,
        "mlm:accelerator": None,
        "mlm:accelerator_constrained": False,
        "mlm:input": _inputs(task),
        "mlm:output": [_output(task)],
        **({"mlm:hyperparameters": hyperparameters} if hyperparameters else {}),
    }


def _name(name: str) -> str:
    """Return a name that the extension allows: three characters or more, a letter or digit at the end."""
    kept = name.rstrip("._-")
    return kept if len(kept) > 2 else f"task-{kept}"


def _architecture(task: TaskSpec) -> str:
    decoder = task.architecture.get("decoder")
    named = decoder.get("name") if isinstance(decoder, Mapping) else task.architecture.get("family")
    return " + ".join(str(part) for part in (task.model.title or task.model.name, named) if part)


def _tasks(task: TaskSpec) -> list[str]:
    return ["regression" if task.kind == "regression" else "semantic-segmentation"]


def _inputs(task: TaskSpec) -> list[dict[str, Any]]:
    unit = task.statistics.reflectance_scale
    images: dict[str, Any] = {
        "name": "images",
        "description": f"One unit is {unit:g} of reflectance. Missing pixels: {task.nodata_fill:g}, "
        f"{'after' if task.nodata_units == 'normalised' else 'before'} scaling.",
        "bands": list(task.bands),
        "input": {
            "shape": [-1, len(task.bands), task.frames, task.window, task.window],
            "dim_order": ["batch", "bands", "time", "height", "width"],
            "data_type": "float32",
        },
        "value_scaling": [
            {"type": "z-score", "mean": mean, "stddev": std}
            for mean, std in zip(task.statistics.mean, task.statistics.std, strict=True)
        ],
    }
    told = {
        "time": ("Year and day of the year, counted from 0.", [-1, task.frames, 2], ["batch", "time", "date"]),
        "location": ("Latitude and longitude of the centre, in degrees.", [-1, 2], ["batch", "position"]),
    }
    others = [
        {
            "name": name,
            "description": told[name][0],
            "bands": [],
            "input": {"shape": told[name][1], "dim_order": told[name][2], "data_type": "float32"},
        }
        for name in task.coords
    ]
    return [images, *others]


def _output(task: TaskSpec) -> dict[str, Any]:
    if task.kind == "regression":
        names, count, words = "channel", 1, f"Value in {task.units}."
    else:
        names, count = "class", len(task.classes)
        words = f"Logits; divided by {task.temperature:g}, their softmax is the probability of each class."
    output: dict[str, Any] = {
        "name": task.name,
        "description": words,
        "tasks": _tasks(task),
        "result": {
            "shape": [-1, count, task.window, task.window],
            "dim_order": ["batch", names, "height", "width"],
            "data_type": "float32",
        },
    }
    return {**output, "classification:classes": _classes(task)} if task.classes else output


def _classes(task: TaskSpec) -> list[dict[str, Any]]:
    """Return the classes with a description instead of a title, which readers of older versions do not know."""
    listed = [entry for entry in classes(task) if not entry.get("nodata")]
    return [{"description": entry.pop("title"), **entry} for entry in listed]


def _description(trained: Trained) -> str:
    said = [f"Task {trained.task.name!r} of xgfm, {trained.task.frames} frame(s) of {len(trained.task.bands)} bands."]
    if trained.task.demonstration:
        said.append("A demonstration of the software, trained on simulated data: it maps nothing real.")
    said.append("Geometry and dates are those of the training data.")
    return " ".join(said)


def _assets(trained: Trained) -> dict[str, Any]:
    weights = {
        "href": "./model.safetensors",
        "type": "application/octet-stream",
        "title": "weights",
        "roles": ["mlm:model", "mlm:weights", "data"],
        "bands": _bands(trained.task),
        "mlm:artifact_type": "safetensors.torch.save_file",
        "file:size": trained.size,
        "file:checksum": _SHA256 + trained.digest,
    }
    others = {
        name.partition(".")[0].lower(): {"href": f"./{name}", "type": media, "title": title, "roles": ["metadata"]}
        for name, (media, title) in trained.files.items()
    }
    return {"model": weights, **others}


def _links(trained: Trained) -> list[dict[str, Any]]:
    links = [
        {"rel": "derived_from", "href": source.href, "type": source.media_type, "title": source.title}
        for source in trained.sources[:MOST]
    ]
    if trained.base and "/" in trained.base:
        href = f"https://huggingface.co/{trained.base}"
        links.append({"rel": "derived_from", "href": href, "type": "text/html", "title": "base model"})
    return links


def _rectangle(bbox: Sequence[float]) -> dict[str, Any]:
    west, south, east, north = (float(edge) for edge in bbox)
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"type": "Polygon", "coordinates": [ring]}


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
