"""What a training run is: one frozen record, as YAML and back.

In: a YAML file, or keywords. Out: a `TrainSettings` that is consistent in itself: what can be refused without chips and
weights is refused here. Nothing is lazy, and torch is not needed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from xgfm.errors import TaskError, TrainError
from xgfm.jobs import document
from xgfm.models.spec import Coordinate, ModelSpec, TaskSpec, model_from_json, task_from_json

SCRATCH = "scratch"
"""Instead of a base: a small encoder of random weights, of the chips' own bands."""
Method = Literal["full", "frozen", "head", "lora", "scratch"]
Monitor = Literal["auto", "loss", "mean_iou", "accuracy", "rmse", "mae"]
LEARNING_RATES: dict[Method, float] = {"full": 1e-4, "frozen": 1e-3, "head": 1e-3, "lora": 1e-3, "scratch": 5e-4}
"""What ``lr`` is where it is not given: weights that know something are moved little."""
LOSSES = ("cross_entropy", "dice", "focal", "mse", "mae", "huber")
_RUNNING = ("chips", "folder", "device", "log", "keep")
"""Keys that change nothing of what is computed; chips are told apart by their digest."""


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _losses(value: Any) -> Any:
    """One loss, or several with their weights."""
    parts = {value: 1.0} if isinstance(value, str) else value
    if not isinstance(parts, Mapping) or not parts:
        raise ValueError("is neither a loss nor a mapping of losses to weights")
    for name, share in parts.items():
        if name not in LOSSES:
            raise ValueError(f"there is no loss {name!r}; allowed: {', '.join(LOSSES)}")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < math.inf:
            raise ValueError(f"the weight of {name!r} must be a number above 0")
    return value


def _class_weights(value: Any) -> Any:
    if value is None or value == "sqrt_inverse":
        return value
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("is no list of numbers")
    if any(isinstance(v, bool) or not isinstance(v, int | float) or not 0 <= v < math.inf for v in value):
        raise ValueError("weights are numbers from 0 on")
    if not any(value):
        raise ValueError("at least one weight must be above 0")
    return tuple(float(v) for v in value)


def _base(value: Any) -> Any:
    if isinstance(value, str) and value.strip():
        return value
    try:
        record_of(value)
        json.dumps(value)
    except (TaskError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"is neither a name nor a record ({type(error).__name__}: {error})") from error
    return json.loads(json.dumps(value))


def record_of(base: Mapping[str, Any]) -> TaskSpec | ModelSpec:
    """Return the record that a mapping ``{"kind": "task" or "model", "spec": ...}`` holds, as in `config.json`."""
    readers: dict[str, Callable[[Mapping[str, Any]], TaskSpec | ModelSpec]]
    readers = {"task": task_from_json, "model": model_from_json}
    return readers[base["kind"]](base["spec"])


Text = Annotated[str, Field(strict=True, min_length=1)]
Flag = Annotated[bool, Field(strict=True)]
Whole = Annotated[int, Field(strict=True, ge=1)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Amount = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]


class WrongSettings(document.WrongEntriesError, TrainError):  # noqa: N818 - what the settings are
    """Entries of settings that are wrong, each with its place."""

    def __reduce__(self) -> tuple[type[WrongSettings], tuple[list[tuple[document.Place, str]]]]:
        return WrongSettings, (self.entries,)


class _Record(BaseModel):
    """Frozen, with no key that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False, hide_input_in_errors=True)


class TaskSettings(_Record):
    """The task that comes out; what is not said follows from the chips and the base."""

    name: Text = Field(default="fine-tuned", description="a name of letters, digits, - _ .")
    """Of the task and of the variable that it predicts."""
    title: Text | None = Field(default=None, description="a title, or absent")
    decoder: Literal["unet", "upernet", "fcn", "linear"] | None = Field(
        default=None, description="unet, upernet, fcn or linear; absent for the base task's own, unet for a model"
    )
    """A new decoder on the base's encoder; None keeps that of a base task."""
    window: Whole | None = Field(default=None, description="a whole number of pixels; absent for the chips' size")
    """Rows and columns that the model sees at once."""
    halo: Annotated[int, Field(strict=True, ge=0)] | None = Field(
        default=None, description="a whole number of pixels from 0 on, or absent"
    )
    """Pixels at a window's edge whose prediction is thrown away."""
    coords: tuple[Coordinate, ...] | None = Field(default=None, description="some of time, location; absent for all")
    """What the model is told beside pixels; None for what its encoder knows."""


class TrainSettings(document.Document):
    """Chips, a base, a way to train, and where it goes.

    Build one with keywords, or read it from YAML with `TrainSettings.read`.
    """

    called = "settings"
    wrong = WrongSettings
    refused_by = TrainError

    chips: Text = Field(description="path of a store of chips")
    """What `write_chips` or `import_chips` wrote."""
    folder: Text = Field(description="path of a folder that the run writes")
    """Checkpoints, history and the finished task. A folder that holds a run of these settings goes on."""
    base: Annotated[Any, AfterValidator(_base)] = Field(
        description="name or path of a task or model, 'scratch', or a record {kind, spec}"
    )
    """What is fine-tuned: what `load_task` or `load_model` take. A record has no weights: ``method="scratch"``."""
    base_spec: Text | None = Field(
        default=None, description="name of a task or model of the same architecture, or absent"
    )
    """What a base's weights file holds, where its own name does not say so."""
    task: TaskSettings = Field(default=TaskSettings(), description="a mapping of name, title, decoder, window, halo")
    fraction: Annotated[float, Field(strict=True, gt=0, le=1)] = Field(
        default=1.0, description="a share of the training chips, above 0 up to 1"
    )
    """Share of the training chips that is used, in whole spatial groups that ``seed`` chooses; nested over shares."""
    method: Method = Field(default="full", description="full, frozen, head, lora or scratch")
    """All weights; the encoder fixed; the last layer alone; low-rank adapters in a fixed encoder, and the decoder; all
    weights, from random ones."""
    lora_rank: Whole = Field(default=8, description="a whole number from 1 on")
    """Rank of the adapters of ``method="lora"``."""
    epochs: Whole | None = Field(default=None, description="a whole number from 1 on, or absent")
    """Times that every training chip is seen; 50 where ``steps`` is not given either."""
    steps: Whole | None = Field(default=None, description="a whole number from 1 on, or absent")
    """Batches, instead of ``epochs``."""
    every: Whole | None = Field(default=None, description="a whole number of steps; absent for once in each epoch")
    """Steps from one validation and checkpoint to the next."""
    batch_size: Whole = Field(default=16, description="a whole number of chips from 1 on")
    """Chips of one step, over all processes."""
    micro_batch: Whole | None = Field(default=None, description="a whole number of chips; absent for all at once")
    """Chips that go through the model at once, in each process; gradients of a step are added up. It is halved where
    memory does not suffice."""
    lr: Positive | None = Field(default=None, description="a number above 0; absent for what suits the method")
    """Largest learning rate; None is 1e-4 for full, 5e-4 for scratch, 1e-3 for the others."""
    layer_decay: Annotated[float, Field(strict=True, gt=0, le=1)] = Field(
        default=1.0, description="a number above 0, up to 1"
    )
    """Learning rate of each block of the encoder, as a share of that of the block above it."""
    weight_decay: Amount = Field(default=0.05, description="a number from 0 on")
    """Of AdamW; biases, norms and tokens have none."""
    warmup: Share = Field(default=0.05, description="a share from 0 to 1")
    """Share of the steps in which the learning rate rises."""
    min_lr: Amount = Field(default=0.0, description="a number from 0 on, not above lr")
    """Learning rate at the end; a cosine leads there."""
    loss: Annotated[Any, AfterValidator(_losses)] = Field(
        default=None,
        description=f"one of {', '.join(LOSSES)}, or a mapping of these to weights",
        validate_default=False,
    )
    """None is cross_entropy for classes, mse for a regression."""
    class_weights: Annotated[Any, AfterValidator(_class_weights)] = Field(
        default=None, description="sqrt_inverse, a list of numbers, one for each class, or absent"
    )
    """Of cross_entropy and focal; ``"sqrt_inverse"`` is one over the square root of the class's share of the training
    pixels, 1 on average over the pixels."""
    clip: Amount = Field(default=1.0, description="a number from 0 on; 0 for none")
    """Largest norm of a step's gradient; 0 does not clip."""
    patience: Whole | None = Field(default=None, description="a whole number of validations, or absent")
    """Validations without a better score after which training ends."""
    monitor: Monitor = Field(default="auto", description="auto, loss, mean_iou, accuracy, rmse or mae")
    """Score of the validation split that says which weights are best; auto is mean_iou, or rmse of a regression."""
    augment: bool | dict[str, Any] = Field(
        default=True, description="true, false, or a mapping of d4, crop, band_dropout, frame_dropout"
    )
    """Flips and quarter turns; none; or a mapping of ``d4`` (these), ``crop`` (pixels of a random part; by default the
    task's window), ``band_dropout`` and ``frame_dropout`` (the chance of each to be missing)."""
    precision: Literal["auto", "fp32", "bf16"] = Field(default="auto", description="auto, fp32 or bf16")
    """Number format of activations; weights and their updates are fp32. auto is bf16 where it is fast and right."""
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)] = Field(default=0, description="a whole number from 0 on")
    """Of initial weights, batches, augmentation and dropout."""
    device: Text | None = Field(default=None, description="cpu or cuda, or absent")
    """None takes CUDA where there is one."""
    log: Annotated[tuple[Literal["csv", "tensorboard", "mlflow"], ...], BeforeValidator(_several)] = Field(
        default=("csv",), description="some of csv, tensorboard, mlflow"
    )
    """Beside the history in history.csv, which is always written."""
    keep: Whole = Field(default=2, description="a whole number from 1 on")
    """Checkpoints that are kept beside the best."""

    @model_validator(mode="after")
    def _fits(self) -> TrainSettings:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs: given together with steps; give one of the two")
        if self.min_lr > self.rate:
            raise ValueError(f"min_lr: {self.min_lr:g} is above lr {self.rate:g}; give a smaller one")
        without_weights = self.base == SCRATCH or isinstance(self.base, Mapping)
        if without_weights and self.method not in ("scratch", "full"):
            raise ValueError(
                f"method: {self.method!r} keeps weights of the base, but this base has none; give method: scratch"
            )
        return self

    @property
    def rate(self) -> float:
        """Largest learning rate."""
        method: Method = "scratch" if self.from_scratch else self.method
        return LEARNING_RATES[method] if self.lr is None else self.lr

    @property
    def from_scratch(self) -> bool:
        """Whether all weights are drawn anew."""
        return self.method == "scratch" or self.base == SCRATCH or isinstance(self.base, Mapping)

    def losses(self, kind: str) -> dict[str, float]:
        """Return losses and their weights for a kind of task."""
        if self.loss is None:
            return {"mse" if kind == "regression" else "cross_entropy": 1.0}
        return {self.loss: 1.0} if isinstance(self.loss, str) else dict(self.loss)

    def numbers(self) -> dict[str, Any]:
        """Return what decides over the numbers of a run, as JSON values: a run goes on with equal ones only."""
        return {key: value for key, value in self.model_dump(mode="json").items() if key not in _RUNNING}
