"""What a study compares: methods, shares of the labels and seeds, as one frozen record, as YAML and back.

In: a YAML file, or keywords. Out: a `StudySpec`, and the runs that it comes to, each with its own `TrainSettings`. What
can be refused without chips and weights is refused here. Nothing is lazy, and torch is not needed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from xgfm.errors import TrainError
from xgfm.jobs import document
from xgfm.train.settings import TrainSettings, WrongSettings

Method = Literal["full", "frozen", "head", "lora", "scratch", "unet", "forest"]
FROM_BASE = ("full", "frozen", "head", "lora")
"""Methods that begin with the weights of a base."""
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
_GIVEN = ("chips", "folder", "base", "base_spec", "method", "seed", "fraction", "device", "log")
"""Keys of `TrainSettings` that a study decides itself."""


def _several(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


class ForestSettings(BaseModel):
    """The random forest on band statistics."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trees: int = Field(default=100, ge=1, description="a whole number from 1 on")
    pixels: int = Field(default=50_000, ge=10, description="a whole number from 10 on")
    """Most training pixels, drawn at random."""
    leaf: int = Field(default=2, ge=1, description="a whole number from 1 on")
    """Fewest training pixels of a leaf."""


class StudySpec(document.Document):
    """Methods, shares of the labels, seeds, and what all runs have in common.

    Build one with keywords, or read it from YAML with `StudySpec.read`.
    """

    called = "study"
    wrong = WrongSettings
    refused_by = TrainError

    chips: str = Field(min_length=1, description="path of a store of chips")
    folder: str = Field(min_length=1, description="path of a folder that the study writes")
    """Runs, tables and figures. A folder that holds runs of this study goes on."""
    base: str | None = Field(default=None, description="name or path of a model or a task")
    """What ``full``, ``frozen``, ``head`` and ``lora`` begin with, and whose shape ``scratch`` has."""
    base_spec: str | None = Field(
        default=None, description="name of a task or model of the same architecture, or absent"
    )
    methods: Annotated[tuple[Method, ...], BeforeValidator(_several)] = Field(
        default=("full", "frozen", "scratch"), min_length=1, description=f"some of {', '.join(get_args(Method))}"
    )
    fractions: Annotated[tuple[Share, ...], BeforeValidator(_several)] = Field(
        default=(1.0, 0.5, 0.25, 0.1), min_length=1, description="shares of the training labels, above 0 up to 1"
    )
    """Of the training chips, in whole spatial groups. With one seed, a smaller share is a part of every larger one."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_several)] = Field(
        default=(0, 1, 2), min_length=1, description="whole numbers from 0 on"
    )
    """Each draws groups, initial weights, batches and augmentation anew."""
    score: Literal["mean_iou", "mean_f1", "accuracy", "balanced_accuracy", "kappa", "rmse", "mae", "r2"] | None = Field(
        default=None, description="mean_iou, mean_f1, accuracy, balanced_accuracy, kappa, rmse, mae or r2; or absent"
    )
    """What tables and figures show; None is mean_iou for classes, rmse for a regression."""
    train: dict[str, Any] = Field(default_factory=dict, description="keys of a training run that all runs share")
    only: dict[Method, dict[str, Any]] = Field(
        default_factory=dict, description="a mapping of a method to keys of its own training runs"
    )
    """What single methods have other than ``train`` says: their own learning rate, mostly."""
    widths: tuple[int, ...] = Field(default=(32, 64, 128), description="channels of each level of the U-Net")
    forest: ForestSettings = Field(default=ForestSettings(), description="a mapping of trees, pixels, leaf")
    device: str | None = Field(default=None, description="cpu or cuda, or absent")

    @model_validator(mode="after")
    def _fits(self) -> StudySpec:
        based = [method for method in self.methods if method in FROM_BASE]
        if based and self.base is None:
            raise ValueError(f"base: is missing, but methods {based} begin with the weights of one")
        for name in ("methods", "fractions", "seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name}: the same one is there twice; keep one of the two")
        for where, keys in {"train": self.train, **{f"only.{m}": v for m, v in self.only.items()}}.items():
            taken = [key for key in keys if key in _GIVEN]
            if taken:
                raise ValueError(f"{where.partition('.')[0]}: {taken} of {where} are the study's own; leave them out")
        return self

    def runs(self) -> Iterator[Run]:
        """Yield every run, the largest share of labels first, seed by seed: the longest ones begin early."""
        for fraction, seed, method in product(sorted(self.fractions, reverse=True), self.seeds, self.methods):
            yield Run(method, fraction, seed)

    def settings(self, run: Run, unet: Mapping[str, Any] | None = None) -> TrainSettings:
        """Return the settings of a run.

        Parameters
        ----------
        run
            Not of the method ``forest``.
        unet
            Record ``{"kind": "task", "spec": ...}`` of the U-Net, for the method of that name.

        Raises
        ------
        TrainError
            Keys of ``train`` or ``only`` that no training run has.
        """
        values = {**self.train, **self.only.get(run.method, {})}
        base: Any = self.base if self.base is not None else "scratch"
        if run.method == "unet":
            base = unet
            values["task"] = {key: v for key, v in values.get("task", {}).items() if key != "decoder"}
        method: Any = "scratch" if run.method == "unet" else run.method  # a forest is none
        return TrainSettings(
            **values,
            chips=self.chips,
            folder=str(Path(self.folder) / "runs" / run.name),
            base=base,
            base_spec=self.base_spec if run.method in FROM_BASE else None,
            method=method,
            seed=run.seed,
            fraction=run.fraction,
            device=self.device,
        )


@dataclass(frozen=True, slots=True)
class Run:
    """One training run of a study."""

    method: Method
    fraction: float
    seed: int

    @property
    def name(self) -> str:
        """Of its folder and its record: ``full-0.25-1``."""
        return f"{self.method}-{self.fraction:g}-{self.seed}"


def digest_of(*values: Any) -> str:
    """Return the SHA-256 of JSON values: what a run is made of."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
