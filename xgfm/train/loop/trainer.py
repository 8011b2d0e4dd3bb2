"""The training loop: one process, or one of several that train together.

In: settings. Out: a folder with checkpoints and a history, and what the best validation said. What a step computes
follows from the settings and the step's number alone, so a run that was stopped anywhere goes on as if it had not been.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from xgfm.errors import TrainError, WriteError
from xgfm.infer.device import keep_memory
from xgfm.models import registry
from xgfm.notebook import card
from xgfm.train.chips.chips import Chips, open_chips
from xgfm.train.chips.loader import Batches
from xgfm.train.chips.subsets import subset
from xgfm.train.loop.checkpoints import Checkpoints
from xgfm.train.loop.history import read_history
from xgfm.train.loop.interrupts import Interrupts, Stopped
from xgfm.train.loop.loggers import Records
from xgfm.train.loop.losses import Losses, sqrt_inverse
from xgfm.train.loop.passes import Passes, bf16_is_right
from xgfm.train.loop.stepping import Stepper, Taken
from xgfm.train.loop.validate import Validation
from xgfm.train.ranks.norm import synchronised
from xgfm.train.ranks.ranks import Ranks, joined
from xgfm.train.settings import SCRATCH, TrainSettings
from xgfm.train.start.targets import Scale, target_scale
from xgfm.train.start.tuning import learned, parameter_groups, put_learned, start_module
from xgfm.train.study.curves import SCORES

if TYPE_CHECKING:
    import pandas as pd

    from xgfm.models.spec import TaskSpec


CHECKPOINTS, SETTINGS, TASK = "checkpoints", "settings.yaml", "task"
EPOCHS = 50
"""Where neither ``epochs`` nor ``steps`` is given."""
_LESS = frozenset({"loss", "rmse", "mae"})
"""Scores of which less is better."""


@dataclass(frozen=True)
class TrainResult:
    """What a run has come to."""

    folder: Path
    """Of the run."""
    history: pd.DataFrame
    """By step: loss, learning rate, speed, and the validations."""
    metrics: Mapping[str, Any]
    """Scores of the best weights on the validation split; from `xgfm.fit` those of the test split too."""
    step: int
    """Whose weights are the best."""

    @property
    def task(self) -> Path:
        """Folder of the finished task, which `xgfm.load_task` reads; `xgfm.fit` writes it."""
        return self.folder / TASK

    def __repr__(self) -> str:
        """Say folder, step and scores on one line; history and metrics are long."""
        scores = {name: score["value"] for name, score in self.metrics.get("scores", {}).items()}
        said = ", ".join(f"{name} {'-' if value is None else f'{value:.3g}'}" for name, value in scores.items())
        return f"TrainResult({str(self.folder)!r}, best weights of step {self.step}, {said or 'no scores'})"

    def _repr_html_(self) -> str:
        scores = {SCORES.get(n, n): _told(score) for n, score in self.metrics.get("scores", {}).items()}
        rows = {"folder": self.folder, "best weights": f"of step {self.step:,}", **scores}
        return card("training run, scores of the validation split", rows)


def _told(score: Mapping[str, Any]) -> str:
    """A score, and its interval where there is one."""
    numbers = [score.get(name) for name in ("value", "low", "high")]
    value, low, high = ("-" if number is None else f"{number:.3f}" for number in numbers)
    return f"{value} [{low}, {high}]" if "low" in score else value


def train(settings: TrainSettings) -> TrainResult:
    """Train until the last step, or until the score of the validation split has stopped to get better.

    Where this process was started by torchrun or srun together with others, or inside `xgfm.train.ranks.ranks.joined`,
    it is one rank of several: all of them call this.

    Parameters
    ----------
    settings
        What to train on what, and where to. A folder that holds a run of equal settings goes on from its last
        checkpoint; a finished one is told of at once.

    Returns
    -------
    TrainResult

    Raises
    ------
    TrainError
        Settings, base and chips do not fit; the folder holds another run; a loss that is not finite, with the chips of
        the batch; or the run was told to stop (SIGTERM, Ctrl-C), and has left a checkpoint.
    WriteError
        The disk is full; the last whole checkpoint is as it was.
    ClusterError
        A rank among several has run out of memory: the next attempt takes fewer chips at once.
    """
    with joined(device=settings.device) as ranks:
        return _train(settings, ranks)


def _train(settings: TrainSettings, ranks: Ranks) -> TrainResult:
    """Begin and end a run: what adds up its gradients is gone when this returns, before the ranks part."""
    gpus = [torch.device(ranks.device)] if ranks.device.startswith("cuda") else []
    with torch.random.fork_rng(gpus):  # the caller's own draws stay what they are
        run = begin(settings, ranks)
        if not run.state.finished:
            run.work()
        return run.result()


@dataclass
class _State:
    """Where a run is: what its checkpoints hold beside weights."""

    step: int = 0
    """Steps that were taken."""
    best: float = math.nan
    """Best score so far."""
    best_scores: dict[str, float] = field(default_factory=dict)
    best_step: int = 0
    waits: int = 0
    """Validations since the best."""
    finished: bool = False
    history: int = 0
    """Bytes of the history."""


@dataclass
class Run:
    """A run while it goes on; `begin` makes it."""

    settings: TrainSettings
    chips: Chips
    ranks: Ranks
    passes: Passes
    batches: Batches
    stepper: Stepper
    validation: Validation
    checkpoints: Checkpoints
    state: _State = field(default_factory=_State)

    @property
    def folder(self) -> Path:
        """Of the run."""
        return self.checkpoints.folder.parent

    @property
    def score(self) -> str:
        """Name of the score that says which weights are best."""
        if self.settings.monitor != "auto":
            return self.settings.monitor
        return "rmse" if self.passes.spec.kind == "regression" else "mean_iou"

    def work(self) -> None:
        """Take all steps that are left."""
        leads = self.ranks.rank == 0  # one process writes
        records = Records(self.settings, self.folder, self.state.history, self.state.step) if leads else None
        try:
            with Interrupts() as interrupts, self._bar() as bar:
                self._steps(interrupts, records, bar)
        except BaseException:
            if records is not None:
                with suppress(WriteError):  # of a disk that is full the first error says more
                    records.close()
            raise
        if records is not None:
            records.close()

    def _bar(self) -> tqdm[Any]:
        quiet = None if self.ranks.rank == 0 else True  # None: where nobody looks at a terminal
        return tqdm(total=self.stepper.total, initial=self.state.step, desc=self.passes.spec.name, disable=quiet)

    def _steps(self, interrupts: Interrupts, records: Records | None, bar: tqdm[Any]) -> None:
        clock = _Clock(self.settings.batch_size)
        with closing(self.batches.stream(self.state.step)) as stream:
            for sample in stream:
                step = self.state.step
                taken = self.stepper.take(step, self.batches.indexes(step), sample, interrupts.name is not None)
                row = {**_row(step + 1, self.batches.epoch_of(step), taken), **clock.took(stream.waited)}
                self.state.step += 1
                due = self.state.step % self._every == 0 or self.state.step == self.stepper.total
                row |= self._validate() if due else {}
                if records is not None:
                    records.add(row)
                    if due or taken.stop:
                        self._save(records, best=due and self.state.waits == 0)
                bar.update()
                bar.set_postfix(loss=f"{taken.loss:.4g}", refresh=False)
                if self.state.finished:
                    return
                if taken.stop:
                    raise Stopped(self._stopped(interrupts))
                clock.start(stream.waited)

    @property
    def _every(self) -> int:
        return self.settings.every or self.batches.steps_per_epoch

    def _validate(self) -> dict[str, float]:
        """Run the validation split through; note what follows from it."""
        scores = self.validation.scores(self.stepper.micro)
        value, state = scores.get(self.score, math.nan), self.state
        better = math.isnan(state.best) or (value < state.best if self.score in _LESS else value > state.best)
        if better:
            state.best, state.best_step, state.best_scores, state.waits = value, state.step, scores, 0
        else:
            state.waits += 1
        patience = self.settings.patience
        state.finished = state.step == self.stepper.total or (patience is not None and state.waits >= patience)
        return {f"val_{name}": score for name, score in scores.items()}

    def _save(self, records: Records, *, best: bool) -> None:
        self.state.history = records.sync()
        state = {
            "settings": self.settings.numbers(),
            "chips": self.chips.facts.digest,
            "module": learned(self.passes.module),
            "optimizer": self.stepper.optimizer.state_dict(),
            "state": asdict(self.state),
        }
        self.checkpoints.save(state, self.state.step, score=self.state.best, best=best)

    def resume(self) -> None:
        """Be where the last checkpoint is."""
        saved = self.checkpoints.last()
        if saved is None:
            return
        state = self.checkpoints.load(saved)
        _check_same(self.settings, self.chips, state, self.folder)
        put_learned(self.passes.module, state["module"])
        self.stepper.optimizer.load_state_dict(state["optimizer"])
        self.state = _State(**state["state"])

    def result(self) -> TrainResult:
        """Return what the run has come to."""
        self.ranks.barrier()  # until the one that writes is through
        history = read_history(self.folder)
        return TrainResult(self.folder, history, dict(self.state.best_scores), self.state.best_step)

    def _stopped(self, interrupts: Interrupts) -> str:
        return (
            f"stopped by {interrupts.name or 'a signal to another rank'} after step {self.state.step} of "
            f"{self.stepper.total}; a checkpoint is in {self.checkpoints.folder}: the same call goes on from there"
        )


def begin(settings: TrainSettings, ranks: Ranks) -> Run:
    """Prepare a run, as its last checkpoint has it where there is one. Every rank calls this."""
    chips = open_chips(settings.chips)
    _check(settings, chips, ranks)
    keep_memory()
    kind = chips.facts.kind
    losses = Losses(settings.losses(kind), kind, _class_weights(settings, chips)).to(ranks.device)
    torch.manual_seed(settings.seed)
    scale = scale_of(settings, chips)
    module, spec = start_module(settings, chips.facts, scale)
    passes = Passes(module.to(ranks.device), spec, chips, ranks.device, scale)
    passes.bf16 = settings.precision == "bf16" or (settings.precision == "auto" and bf16_is_right(passes))
    if ranks.world > 1:
        passes.module = synchronised(module)
    batches = Batches(
        chips,
        "train",
        settings.batch_size,
        settings.seed,
        _augmentation(settings, spec, chips),
        ranks.rank,
        ranks.world,
        indexes=training_chips(settings, chips),
    )
    folder = Path(settings.folder).expanduser() / CHECKPOINTS
    stepper = Stepper(
        passes=passes,
        optimizer=torch.optim.AdamW(parameter_groups(module, settings), lr=settings.rate),
        losses=losses,
        settings=settings,
        ranks=ranks,
        total=settings.steps or (settings.epochs or EPOCHS) * batches.steps_per_epoch,
        note=folder / "at_once",
    )
    validation = Validation(chips, "val", passes, losses, ranks)
    run = Run(settings, chips, ranks, passes, batches, stepper, validation, Checkpoints(folder, settings.keep))
    run.resume()
    return run


def training_chips(settings: TrainSettings, chips: Chips) -> NDArray[np.int64]:
    """Return the indexes of the chips that a run learns from."""
    indexes: NDArray[np.int64] = chips.indexes("train")
    return indexes[subset(chips.groups(indexes), settings.fraction, settings.seed)]


def scale_of(settings: TrainSettings, chips: Chips) -> Scale:
    """Return the scale on which a run's targets are; of a module that no record describes nothing is known."""
    if chips.facts.kind != "regression" or _registered(settings):
        return Scale()
    return target_scale(chips, training_chips(settings, chips))


def _registered(settings: TrainSettings) -> bool:
    if not isinstance(settings.base, str) or settings.base == SCRATCH:
        return False
    return registry.find(settings.base, settings.base_spec).build is not None


def _augmentation(settings: TrainSettings, spec: TaskSpec, chips: Chips) -> dict[str, Any]:
    """Return the loader's options: of chips that are larger than the model's window, random parts are taken."""
    asked = {"d4": settings.augment} if isinstance(settings.augment, bool) else dict(settings.augment)
    crop = {"crop": spec.window} if spec.window < chips.facts.size else {}
    return {**crop, **asked}


class _Clock:
    """Measures steps, without what is done between them."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.start(0.0)

    def start(self, waited: float) -> None:
        """A step begins; ``waited`` are the seconds that were waited for chips until now."""
        self.begun, self.waited = time.perf_counter(), waited

    def took(self, waited: float) -> dict[str, float]:
        """A step has ended."""
        seconds = time.perf_counter() - self.begun
        share = (waited - self.waited) / seconds
        return {"seconds": seconds, "samples_per_second": self.samples / seconds, "data_wait": share}


def _row(step: int, epoch: int, taken: Taken) -> dict[str, float]:
    return {"step": step, "epoch": epoch, "loss": taken.loss, "lr": taken.lr, "gradient_norm": taken.gradient_norm}


def _class_weights(settings: TrainSettings, chips: Chips) -> tuple[float, ...] | None:
    weights = settings.class_weights
    if weights is None:
        return None
    if weights == "sqrt_inverse":
        return sqrt_inverse(chips.facts.counts["train"])
    count = len(chips.facts.classes)
    if len(weights) != count:
        raise TrainError(f"class_weights has {len(weights)} numbers for {count} classes; give one for each")
    return tuple(weights)


def _check(settings: TrainSettings, chips: Chips, ranks: Ranks) -> None:
    """Refuse what can be refused before weights are opened and pixels are read."""
    for split in ("train", "val"):
        if not len(chips.indexes(split)):
            raise TrainError(f"{settings.chips} has no chips of split {split!r}; write them again with other shares=")
    if settings.batch_size < ranks.world:
        raise TrainError(f"batch_size={settings.batch_size} for {ranks.world} ranks; give at least one chip for each")
    known = {"regression": {"loss", "rmse", "mae"}, "segmentation": {"loss", "mean_iou", "accuracy"}}[chips.facts.kind]
    if settings.monitor not in {"auto", *known}:
        raise TrainError(
            f"monitor={settings.monitor!r} is no score of a {chips.facts.kind}; give one of {sorted(known)}"
        )
    if settings.class_weights is not None and chips.facts.kind == "regression":
        raise TrainError("class_weights= is for classes, and the chips are for a regression; leave it out")


def _check_same(settings: TrainSettings, chips: Chips, state: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with a run that was another one."""
    if state["chips"] != chips.facts.digest:
        raise TrainError(f"{folder} holds a run on other chips than {settings.chips}; give another folder=")
    mine, its = settings.numbers(), state["settings"]
    differ = sorted(key for key in {*mine, *its} if mine.get(key) != its.get(key))
    if differ:
        told = ", ".join(f"{key}: {its.get(key)!r}, not {mine.get(key)!r}" for key in differ)
        raise TrainError(f"{folder} holds a run of other settings ({told}); give another folder=, or those settings")
