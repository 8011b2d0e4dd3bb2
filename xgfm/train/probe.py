"""A task from embeddings and a handful of labels, without training the encoder.

In: embeddings ``(feature, y, x)`` from `xgfm.embed`, in memory, lazy or reopened from a store, and labels. Out: a
handle of a task that predicts from a cube: the encoder, and a linear layer or the labelled examples themselves on top
of it. Only the patches under labelled pixels are computed.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import nn

from xgfm.cf import NODATA
from xgfm.errors import CubeError, GridError, LabelError, TaskError
from xgfm.grid import geobox_of, with_grid
from xgfm.infer.embed import NO_FEATURE, encoder_of, encoder_spec, loaded
from xgfm.models.folder import save_task
from xgfm.models.handle import ModelHandle, load_task, register_task
from xgfm.models.probed import Head, ProbedEncoder
from xgfm.models.spec import ModelSpec, TaskSpec
from xgfm.train.labels.labels import labels as drawn_labels
from xgfm.train.labels.legend import classes_of
from xgfm.train.linear import fit_logistic, fit_ridge

Floats = NDArray[np.float32]

_SURE = 0.5
"""Share of a pixel's interpolated feature that must come from patches with data."""
_NEVER = -100.0
"""Logit of a class that no labelled pixel has."""


def probe(
    embedding: xr.DataArray | xr.Dataset,
    labels: Any,
    *,
    kind: Literal["linear", "knn"] = "linear",
    model: str | os.PathLike[str] | ModelHandle | None = None,
    name: str = "probe",
    title: str = "",
    folder: str | os.PathLike[str] | None = None,
    penalty: float = 1.0,
    neighbours: int = 5,
    samples: int = 10_000,
    seed: int = 0,
    **label_options: Any,
) -> ModelHandle:
    """Fit a head to embeddings at labelled pixels, and return a task that predicts.

    Parameters
    ----------
    embedding : DataArray or Dataset
        What `xgfm.embed` returned, or a store of it reopened; int8 ones are decoded.
    labels : DataArray or anything that `xgfm.labels` takes
        Dims ``(y, x)`` in the CRS of the embeddings, of any pixel size: usually the cube's own grid. Points, polygons
        and files are drawn on the pixels of the cube that the embeddings came from; `label_options` go to
        `xgfm.labels`.
    kind : "linear" or "knn"
        Logistic regression (ridge regression for a regression target), or a vote of the nearest examples by cosine.
    model : str, path or ModelHandle, optional
        The encoder of the embeddings; by default the one they name, which a folder's must be given for.
    name, title : str
        Of the task.
    folder : path, optional
        Where to write the task. Without one it is known by its name in this process, and its handle can be sent to
        workers.
    penalty : float
        Weight of the squared coefficients of the linear layer, on standardised features, against the sum of the losses
        of the labelled pixels.
    neighbours : int
        Examples that vote.
    samples : int
        Most labelled pixels that are used, drawn at random.
    seed : int
        Of that draw.
    **label_options
        For `xgfm.labels`: ``column=``, ``legend=``, ...

    Returns
    -------
    ModelHandle
        For ``cube.gfm.predict(task=...)``.

    Raises
    ------
    LabelError
        No labelled pixel lies on the embeddings, or fewer than two classes do.
    TaskError
        The embeddings do not say, or say otherwise, which encoder they came from.

    Notes
    -----
    A labelled pixel is given the features interpolated to it bilinearly, as the task's answers are enlarged when it
    predicts: a pixel learns from what it will be mapped by, wherever it lies in its patch.
    """
    array = _array(embedding)
    handle = _encoder_of(array, model)
    spec = encoder_spec(handle)
    label = labels if isinstance(labels, xr.DataArray) else _drawn(labels, array, spec, label_options)
    examples = _examples(array, label, samples, seed)
    task = _task(array, spec, label, kind, examples, neighbours)
    task = replace(task, name=name, title=title or f"{kind} probe of {spec.title}")
    fitted = _fitted(task, examples, penalty)
    register_task(task, build=_Build(handle, fitted))
    known = load_task(name)
    return known if folder is None else load_task(save_task(known.load(), task, folder))


@dataclass(frozen=True)
class Examples:
    """Labelled pixels."""

    features: Floats
    """``(n, D)``"""
    targets: NDArray[Any]
    """``(n,)`` codes of classes, or values."""


@dataclass(frozen=True)
class _Build:
    """Makes the module of a probe: its own copy of the encoder, since a handle's is shared."""

    handle: ModelHandle
    head: dict[str, Floats]

    def __call__(self, spec: TaskSpec) -> nn.Module:
        options = {key: value for key, value in spec.architecture.items() if key != "family"}
        encoder = copy.deepcopy(encoder_of(self.handle.load()))
        module = ProbedEncoder(encoder, max(len(spec.classes), 1), **options)
        module.head.load_state_dict({key: torch.from_numpy(value) for key, value in self.head.items()})
        return module


# ---- embeddings


def _array(embedding: xr.DataArray | xr.Dataset) -> xr.DataArray:
    array = embedding
    if isinstance(array, xr.Dataset):
        if "embedding" not in array.data_vars:
            raise CubeError(f"the Dataset holds {list(array.data_vars)}; expected 'embedding', as cube.gfm.embed gives")
        array = array["embedding"]
    if tuple(array.dims) != ("feature", "y", "x"):
        raise CubeError(f"embeddings have dims {tuple(array.dims)}; expected ('feature', 'y', 'x')")
    missing = [fact for fact in ("model", "weights_digest", "layer", "steps") if fact not in array.attrs]
    if missing:
        raise CubeError(f"the embeddings' attributes lack {missing}; make them with cube.gfm.embed(model)")
    return array


def _encoder_of(array: xr.DataArray, model: str | os.PathLike[str] | ModelHandle | None) -> ModelHandle:
    named, digest = str(array.attrs["model"]), str(array.attrs["weights_digest"])
    try:
        handle = loaded(named if model is None else model)
    except TaskError as error:
        raise TaskError(f"the embeddings came from {named!r}, which has no name here ({error}); give model=") from error
    if handle.digest != digest:
        raise TaskError(
            f"the embeddings came from weights of digest {digest[:12]}..., model {handle.spec.name!r} has "
            f"{handle.digest[:12]}...; give the model that they were made with: model="
        )
    return handle


def _is_quantised(array: xr.DataArray) -> bool:
    return "decoding" in array.attrs


def _decoded(array: xr.DataArray, values: NDArray[Any]) -> Floats:
    """Features with NaN where there are none; int8 ones as the directions they stand for."""
    if array.dtype.kind == "i":
        values = np.where(values == NO_FEATURE, np.nan, values.astype("float32"))
    values = values.astype("float32")
    return np.sign(values) * (values / 127) ** 2 if _is_quantised(array) else values


# ---- labelled pixels


def _drawn(source: Any, array: xr.DataArray, spec: ModelSpec, options: dict[str, Any]) -> xr.DataArray:
    """Labels of a file or of geometries, on the pixels that the patches are made of."""
    pixels = geobox_of(array).zoom_out(1 / spec.patch_size[1])
    nothing = np.broadcast_to(np.uint8(0), pixels.shape)
    return drawn_labels(source, with_grid(xr.DataArray(nothing, dims=("y", "x")), pixels), **options)


def _examples(array: xr.DataArray, label: xr.DataArray, samples: int, seed: int) -> Examples:
    """Features and targets of labelled pixels, at most ``samples`` of them."""
    flat = label.squeeze("time", drop=True) if label.sizes.get("time") == 1 else label
    if set(flat.dims) != {"y", "x"}:
        raise LabelError(f"labels have dims {tuple(label.dims)}; choose one date with labels.isel(time=...)")
    place, on = geobox_of(array), geobox_of(flat)
    if place.crs != on.crs:
        raise GridError(f"labels are in {on.crs}, the embeddings in {place.crs}; give labels on the cube's own grid")
    values = flat.transpose("y", "x").values
    rows, columns = np.nonzero(np.isfinite(values) if values.dtype.kind == "f" else np.not_equal(values, NODATA))
    if not rows.size:
        raise LabelError("no pixel is labelled; every one has the ignore value (255, or NaN)")
    y, x = _cells(place, flat["y"].values[rows], flat["x"].values[columns])
    inside = (y > -0.5) & (y < place.shape[0] - 0.5) & (x > -0.5) & (x < place.shape[1] - 0.5)
    chosen = np.flatnonzero(inside)
    if len(chosen) > samples:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, samples, replace=False))
    features = _interpolated(array, y[chosen], x[chosen]) if chosen.size else np.empty((0, 0), "float32")
    kept = np.isfinite(features).all(axis=1)
    if not kept.any():
        raise LabelError(
            f"none of {rows.size} labelled pixels lies on a patch with data; embeddings cover {place.boundingbox}, "
            f"labels {on.boundingbox}"
        )
    return Examples(features[kept], values[rows, columns][chosen][kept])


def _cells(place: Any, y: NDArray[Any], x: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Row and column in patches, 0 at the centre of the first."""
    transform = place.transform
    return (y - transform.f) / transform.e - 0.5, (x - transform.c) / transform.a - 0.5


def _interpolated(array: xr.DataArray, y: NDArray[np.float64], x: NDArray[np.float64]) -> Floats:
    """Features ``(n, D)`` at fractional patches, bilinear; NaN where most of it would come from missing patches."""
    rows, columns = (axis.astype("int64") for axis in (np.floor(y), np.floor(x)))
    share_y, share_x = y - rows, x - columns
    height, width = array.sizes["y"], array.sizes["x"]
    corners, weights = [], []
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        corners.append((rows + down).clip(0, height - 1) * width + (columns + right).clip(0, width - 1))
        weights.append(np.where(down, share_y, 1 - share_y) * np.where(right, share_x, 1 - share_x))
    patches, which = np.unique(np.stack(corners), return_inverse=True)
    table = _features(array, patches // width, patches % width)  # (patch, D)
    there: NDArray[np.bool_] = np.all(np.isfinite(table), axis=1)
    total, seen = np.zeros((len(y), table.shape[1]), "float32"), np.zeros(len(y), "float32")
    for corner, weight in zip(which.reshape(4, -1), weights, strict=True):
        lent = (weight * there[corner]).astype("float32")
        total += lent[:, None] * np.nan_to_num(table[corner])
        seen += lent
    mixed: Floats = np.where(seen[:, None] >= _SURE, total / np.maximum(seen, _SURE)[:, None], np.float32(np.nan))
    return mixed


def _features(array: xr.DataArray, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Floats:
    """Compute the features of some patches, ``(patch, D)``."""
    points = array.isel(y=xr.DataArray(rows, dims="patch"), x=xr.DataArray(columns, dims="patch"))
    return _decoded(array, points.transpose("patch", "feature").values)


# ---- the task


def _task(
    array: xr.DataArray,
    spec: ModelSpec,
    label: xr.DataArray,
    kind: str,
    examples: Examples,
    neighbours: int,
) -> TaskSpec:
    """Return the record of a probe, but for its name."""
    if kind not in get_args(Head):
        raise TaskError(f"kind={kind!r}: expected one of {list(get_args(Head))}")
    regression = examples.targets.dtype.kind == "f"
    architecture: dict[str, Any] = {
        "family": "probe",
        "head": kind,
        "layer": int(array.attrs["layer"]) % spec.depth,
        "unit": _is_quantised(array),
    }
    if kind == "knn":
        count = len(examples.targets)
        if not 1 <= neighbours <= count:
            raise LabelError(f"neighbours={neighbours}: there are {count} labelled examples; give 1 to {count}")
        architecture |= {"examples": count, "neighbours": neighbours, "regression": regression}
    return TaskSpec(
        name="probe",
        title="probe",
        model=spec,
        statistics=spec.statistics,
        classes=() if regression else classes_of(label),
        architecture=architecture,
        kind="regression" if regression else "segmentation",
        frames=int(array.attrs["steps"]),
        window=spec.image_size,
        halo=int(array.attrs.get("halo", spec.patch_size[1])),
        pixel_size=spec.pixel_size,
        coords=spec.coords,
        units=str(label.attrs.get("units", "1")) if regression else "1",
        licence=spec.licence,
    )


def _fitted(task: TaskSpec, examples: Examples, penalty: float) -> dict[str, Floats]:
    """Return the head's weights."""
    present = np.unique(examples.targets)
    if task.kind == "segmentation" and len(present) < 2:
        names = [task.classes[int(code)].name for code in present]
        raise LabelError(f"the labelled pixels have the class {names} alone; a probe needs two or more")
    if task.architecture["head"] == "knn":
        return _neighbours(task, examples)
    if task.kind == "regression":
        weight, bias = fit_ridge(examples.features, examples.targets[:, None], penalty)
    else:
        codes = np.searchsorted(present, examples.targets)
        found, found_bias = fit_logistic(examples.features, codes, penalty)
        weight = np.zeros((len(task.classes), found.shape[1]))
        bias = np.full(len(task.classes), _NEVER)
        weight[present], bias[present] = found, found_bias
    return {"linear.weight": weight.astype("float32"), "linear.bias": bias.astype("float32")}


def _neighbours(task: TaskSpec, examples: Examples) -> dict[str, Floats]:
    lengths = np.linalg.norm(examples.features, axis=1, keepdims=True)
    targets = examples.targets[:, None] if task.kind == "regression" else np.eye(len(task.classes))[examples.targets]
    return {
        "directions": (examples.features / np.maximum(lengths, 1e-12)).astype("float32"),
        "targets": targets.astype("float32"),
    }
