"""Frozen records of what a model is and what a task takes and gives.

In: published facts. Out: values that travel in Dask graphs, JSON files and attributes. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from xgfm.errors import TaskError
from xgfm.models.fields import (
    listed,
    numbers,
    require_choice,
    require_flag,
    require_json,
    require_number,
    require_text,
    require_whole,
)

PRITHVI_BANDS = ("blue", "green", "red", "nir08", "swir16", "swir22")
"""STAC common names of BLUE, GREEN, RED, NIR_NARROW, SWIR_1, SWIR_2, in the models' order."""

Layout = Literal["v1", "v2", "terratorch", "mmseg", "xgfm"]
Coordinate = Literal["time", "location"]
Kind = Literal["segmentation", "regression"]
Composite = Literal["median", "medoid", "clearest"]
NodataUnits = Literal["normalised", "input"]

_VARIABLES = ("probability", "confidence", "entropy", "logits", "out_of_domain", "embedding")
_COORDINATES = ("feature", "class", "band", "time", "x", "y", "spatial_ref", "sensor", "item")
_TAKEN = frozenset((*_VARIABLES, *_COORDINATES))
"""Names of other variables and coordinates of a result."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Band statistics that inputs are normalised with."""

    mean: tuple[float, ...]
    """Mean of each band, in units of ``reflectance_scale``."""
    std: tuple[float, ...]
    """Standard deviation of each band, same units."""
    reflectance_scale: float = 1e-4
    """Reflectance of one unit: 1e-4 for HLS digital numbers (x 10000), 1.0 for 0-1 reflectance."""

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, numbers(name, getattr(self, name)))
        require_number("reflectance_scale", self.reflectance_scale, positive=True)
        if len(self.mean) != len(self.std) or not self.mean:
            raise TaskError(f"mean has {len(self.mean)} values and std {len(self.std)}; give one of each per band")
        if min(self.std) <= 0:
            raise TaskError(f"std must be positive in every band, got {self.std}")


@dataclass(frozen=True, slots=True)
class WeightsSource:
    """Where published weights are and how their state dict is laid out."""

    layout: Layout
    """Naming of the keys: `checkpoint.py` knows how to read each."""
    repo: str | None = None
    """Hugging Face repository, ``owner/name``; None for weights that are not on the Hub."""
    filename: str | None = None
    """File in the repository, or beside the registry for bundled weights."""
    revision: str = "main"
    sha256: str | None = None
    """Digest of the file where it is known; a file of another digest is refused."""
    size: str = ""
    """Rough size, for people: '1.3 GB'."""

    def __post_init__(self) -> None:
        require_choice("layout", self.layout, get_args(Layout))
        require_text(revision=self.revision, size=self.size)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A Prithvi-shaped masked autoencoder: its sizes and the input that it was trained on."""

    name: str
    title: str
    statistics: Statistics
    bands: tuple[str, ...] = PRITHVI_BANDS
    patch_size: tuple[int, int, int] = (1, 16, 16)
    """(frames, rows, columns) of one token."""
    frames: int = 1
    """Frames that the position table was built for."""
    embed_dim: int = 0
    """Width of the encoder; this and the next two stay 0 for a module that is not built by this package."""
    depth: int = 0
    num_heads: int = 0
    image_size: int = 224
    """Rows and columns, in pixels, that the position table was built for."""
    mlp_ratio: float = 4.0
    decoder_embed_dim: int = 512
    decoder_depth: int = 8
    decoder_num_heads: int = 16
    coords: tuple[Coordinate, ...] = ()
    """Encodings of the TL models."""
    coords_scale_learned: bool = False
    norm_eps: float = 1e-5
    mask_ratio: float = 0.75
    norm_pix_loss: bool = False
    pixel_size: float = 30.0
    """Metres."""
    weights: WeightsSource | None = None
    licence: str = ""
    """Of the weights, as SPDX names it; empty where nobody has said."""
    paper: str = ""

    def __post_init__(self) -> None:
        require_text(name=self.name, title=self.title, licence=self.licence, paper=self.paper)
        require_flag(coords_scale_learned=self.coords_scale_learned, norm_pix_loss=self.norm_pix_loss)
        for name, (least, most) in _SIZES.items():
            require_whole(name, getattr(self, name), least, most)
        for name in ("pixel_size", "mlp_ratio", "norm_eps"):
            require_number(name, getattr(self, name), positive=True)
        require_number("mask_ratio", self.mask_ratio)
        if len(listed("patch_size", self.patch_size)) != 3:
            raise TaskError(f"patch_size is {self.patch_size}; give (frames, rows, columns)")
        for size in self.patch_size:
            require_whole("patch_size", size, 1, 1024)
        if self.mlp_ratio > 64:
            raise TaskError(f"mlp_ratio is {self.mlp_ratio}; it may be up to 64")
        for coordinate in self.coords:
            require_choice("coords", coordinate, get_args(Coordinate))
        for band in self.bands:
            require_text(bands=band)
        if len(self.statistics.mean) != len(self.bands):
            raise TaskError(
                f"model {self.name!r} has {len(self.bands)} bands but statistics of {len(self.statistics.mean)}"
            )


_SIZES = {
    "frames": (1, 1024),
    "embed_dim": (0, 16_384),
    "depth": (0, 512),
    "num_heads": (0, 1024),
    "image_size": (1, 16_384),
    "decoder_embed_dim": (1, 16_384),
    "decoder_depth": (0, 512),
    "decoder_num_heads": (1, 1024),
}
"""Least and most that a size of a model may be: far above every published one, and low enough to be built at once."""


@dataclass(frozen=True, slots=True)
class ClassInfo:
    """One class of a map."""

    name: str
    color: str
    """``#rrggbb``."""

    def __post_init__(self) -> None:
        require_text(name=self.name, color=self.color)
        if not re.fullmatch(r"#[0-9a-f]{6}", self.color):
            raise TaskError(f"colour of class {self.name!r} is {self.color!r}; write it as '#rrggbb' in lower case")


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What to predict: encoder, head, classes, frames, input statistics and source of the weights."""

    name: str
    title: str
    model: ModelSpec
    statistics: Statistics
    """Of the task's own training set; often not those of the encoder's pre-training."""
    classes: tuple[ClassInfo, ...]
    """In the order of the logits; empty for regression."""
    architecture: Mapping[str, Any] = field(default_factory=dict)
    """JSON description of necks, decoder and head that `models.build` turns into a module."""
    kind: Kind = "segmentation"
    frames: int = 1
    """Time steps that one prediction takes; 1 keeps ``time`` in the output."""
    window: int = 224
    """Rows and columns, in pixels, that the model sees at once."""
    halo: int = 16
    """Pixels at a window's edge whose output is thrown away."""
    pixel_size: float = 30.0
    """Metres."""
    composite: Composite = "median"
    """How a longer series becomes ``frames`` steps when `predict` has to choose."""
    nodata_fill: float = 0.0
    """What the model is fed where a pixel is missing."""
    nodata_units: NodataUnits = "normalised"
    """Whether ``nodata_fill`` is put in after normalising (0 = band mean) or before (0 = no reflectance)."""
    coords: tuple[Coordinate, ...] = ()
    """Encodings that the task was fine-tuned with; empty where the metadata was not passed."""
    units: str = "1"
    """Units of a regression."""
    temperature: float = 1.0
    """What logits are divided by before they become probabilities; more than 1 makes them less sure."""
    quirks: tuple[str, ...] = ()
    """What a reader must know and the general path does not do; each is a sentence."""
    demonstration: bool = False
    """True for a task that shows how xgfm works and is a map of nothing real."""
    weights: WeightsSource | None = None
    licence: str = ""
    """Of the weights, as SPDX names it; empty where nobody has said."""
    paper: str = ""

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands in the model's order."""
        return self.model.bands

    def __post_init__(self) -> None:
        self._require_fields()
        self._require_shape()

    def _require_fields(self) -> None:
        require_text(name=self.name, title=self.title, units=self.units, licence=self.licence, paper=self.paper)
        require_flag(demonstration=self.demonstration)
        require_choice("kind", self.kind, get_args(Kind))
        require_choice("composite", self.composite, get_args(Composite))
        require_choice("nodata_units", self.nodata_units, get_args(NodataUnits))
        for coordinate in self.coords:
            require_choice("coords", coordinate, get_args(Coordinate))
        for quirk in self.quirks:
            require_text(quirks=quirk)
        for name, (least, most) in {"frames": (1, 1024), "window": (1, 16_384), "halo": (0, 8192)}.items():
            require_whole(name, getattr(self, name), least, most)
        for name in ("pixel_size", "temperature"):
            require_number(name, getattr(self, name), positive=True)
        require_number("nodata_fill", self.nodata_fill)
        if not isinstance(self.architecture, Mapping):
            raise TaskError(f"architecture is {type(self.architecture).__name__}; it must be a mapping")
        require_json("architecture", self.architecture)

    def _require_shape(self) -> None:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.\-]*", self.name):
            raise TaskError(f"task name {self.name!r} must start with a letter and hold only letters, digits, - _ .")
        if re.sub(r"[-.]", "_", self.name) in _TAKEN:
            raise TaskError(
                f"task name {self.name!r} is that of another variable or coordinate of its result; choose another name"
            )
        if self.window - 2 * self.halo < 1:
            raise TaskError(f"task {self.name!r}: window {self.window} leaves nothing inside a halo of {self.halo}")
        if self.kind == "segmentation" and not 2 <= len(self.classes) <= 255:
            raise TaskError(f"task {self.name!r} has {len(self.classes)} classes; a segmentation has 2 to 255")
        if len(self.statistics.mean) != len(self.bands):
            raise TaskError(f"task {self.name!r}: {len(self.bands)} bands, statistics of {len(self.statistics.mean)}")


def to_json(spec: ModelSpec | TaskSpec) -> dict[str, Any]:
    """Return a record as plain JSON values, for `config.json`."""
    return dataclasses.asdict(spec)


def _statistics(values: Mapping[str, Any]) -> Statistics:
    return Statistics(values["mean"], values["std"], values["reflectance_scale"])


def _weights(values: Mapping[str, Any] | None) -> WeightsSource | None:
    return None if values is None else WeightsSource(**values)


def model_from_json(values: Mapping[str, Any]) -> ModelSpec:
    """Build a `ModelSpec` from `to_json`'s answer."""
    kept = dict(values)
    kept["statistics"] = _statistics(kept["statistics"])
    kept["weights"] = _weights(kept.get("weights"))
    for name in ("patch_size", "bands", "coords"):
        kept[name] = listed(name, kept[name])
    return ModelSpec(**kept)


def task_from_json(values: Mapping[str, Any]) -> TaskSpec:
    """Build a `TaskSpec` from `to_json`'s answer."""
    kept = dict(values)
    kept["model"] = model_from_json(kept["model"])
    kept["statistics"] = _statistics(kept["statistics"])
    kept["weights"] = _weights(kept.get("weights"))
    kept["classes"] = tuple(ClassInfo(**c) for c in listed("classes", kept["classes"]))
    for name in ("coords", "quirks"):
        kept[name] = listed(name, kept[name])
    return TaskSpec(**kept)
