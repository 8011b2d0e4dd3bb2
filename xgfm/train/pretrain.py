"""Masked pre-training on chips that need no labels: hide most patches, reconstruct their pixels.

In: chips, and the record of a Prithvi-shaped model. Out: a folder that `load_model` reads, to fine-tune from or to
embed with, and its history. What a step computes follows from options and step alone, so a run that was cut off goes on
from its last checkpoint as if nothing had happened. One process; nothing is lazy.
"""

from __future__ import annotations

import math
import os
import time
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from xgfm.errors import TrainError
from xgfm.infer.device import native_bf16, pick
from xgfm.models.folder import save_model
from xgfm.models.mae import PrithviMAE
from xgfm.models.spec import ModelSpec, TaskSpec, to_json
from xgfm.notebook import card
from xgfm.train.chips.chips import Chips, Sample, open_chips
from xgfm.train.chips.loader import Batches, normalised
from xgfm.train.loop.checkpoints import Checkpoints
from xgfm.train.loop.history import History, read_history
from xgfm.train.loop.interrupts import Interrupts, Stopped
from xgfm.train.loop.passes import part, tensors
from xgfm.train.loop.stepping import learning_rate, seeded
from xgfm.train.study.spec import digest_of

MODEL = "model"
"""Folder of the finished model in that of the run."""
_CHECKED = 64
"""Validation chips whose reconstruction is scored."""


@dataclass(frozen=True)
class PretrainResult:
    """What a pre-training has come to."""

    folder: Path
    """Of the run."""
    model: Path
    """Folder that `xgfm.load_model` reads."""
    history: pd.DataFrame
    """By step: ``loss``, ``lr``, ``seconds``, and ``val_loss`` where it was measured: mean squared error of the hidden,
    valid pixels, in units of the bands' variance."""

    def _repr_html_(self) -> str:
        known = [name for name in ("loss", "val_loss") if name in self.history and self.history[name].notna().any()]
        last = {f"last {name}": f"{self.history[name].dropna().iloc[-1]:.4f}" for name in known}
        return card("pre-training", {"folder": self.folder, "model": self.model, "steps": len(self.history), **last})


@dataclass(frozen=True)
class Options:
    """How a model is pre-trained. ``rate``, ``warmup`` and ``min_lr`` are what `learning_rate` asks for."""

    steps: int
    batch_size: int
    rate: float
    weight_decay: float
    warmup: float
    mask_ratio: float
    every: int
    augment: Any
    seed: int
    bf16: bool
    min_lr: float = 0.0
    clip: float = 1.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "every"):
            if getattr(self, name) < 1:
                raise TrainError(f"{name}={getattr(self, name)}; give a whole number from 1 on")
        for name in ("rate", "weight_decay"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise TrainError(f"{'lr' if name == 'rate' else name}={value}; give a number from 0 on")
        if not 0 < self.mask_ratio < 1:
            raise TrainError(f"mask_ratio={self.mask_ratio}; give a share between 0 and 1")


def pretrain(
    chips: Chips | str | os.PathLike[str],
    spec: ModelSpec,
    folder: str | os.PathLike[str],
    *,
    steps: int = 2000,
    batch_size: int = 64,
    lr: float = 1.5e-3,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
    mask_ratio: float | None = None,
    every: int = 200,
    augment: Any = True,
    seed: int = 0,
    precision: str = "auto",
    device: str | None = None,
) -> PretrainResult:
    """Pre-train a masked autoencoder on the training split of chips.

    Parameters
    ----------
    chips : Chips or path
        Their labels are not looked at. Chips of other splits are not trained on; those of the validation split are
        reconstructed from time to time.
    spec : ModelSpec
        Sizes and encodings; `xgfm.train.start.new_task.small_encoder` makes a small one. Its statistics are those that
        images are normalised with, here and in what is fine-tuned from it.
    folder : path
        Of the run. One that holds a run of the same options goes on.
    steps, batch_size : int
        Batches, and chips of each.
    lr, weight_decay, warmup : float
        Of AdamW with betas 0.9 and 0.95 (He et al. 2022): largest learning rate; decay; share of the steps in which the
        rate rises. It ends at 0 along a cosine.
    mask_ratio : float, optional
        Share of the patches that is hidden; the spec's own where not given.
    every : int
        Steps from one validation and checkpoint to the next.
    augment : bool or mapping
        As in `TrainSettings.augment`.
    seed : int
        Of weights, batches and masks.
    precision : "auto", "fp32" or "bf16"
        Number format of activations; auto is bf16 on CUDA where it is native, else fp32.
    device : str, optional
        As in `TrainSettings`.

    Returns
    -------
    PretrainResult

    Raises
    ------
    TrainError
        Chips of other bands than the spec, no training chips, a folder with a run of other options, a loss that is not
        finite, or a signal to stop: the message says where the checkpoint is.

    Notes
    -----
    Missing pixels are fed as the bands' mean and are in no loss: clouds are not learned.
    """
    known = chips if isinstance(chips, Chips) else open_chips(chips)
    _check(known, spec)
    place = pick(device)
    options = Options(
        steps=steps, batch_size=batch_size, rate=lr, weight_decay=weight_decay, warmup=warmup,
        mask_ratio=spec.mask_ratio if mask_ratio is None else mask_ratio, every=every, augment=augment, seed=seed,
        bf16=precision == "bf16" or (precision == "auto" and place.startswith("cuda") and native_bf16(place)),
    )  # fmt: skip
    with torch.random.fork_rng([torch.device(place)] if place.startswith("cuda") else []):
        run = _Run(known, spec, Path(folder), options, place)
        run.work()
        return run.result()


class _Run:
    """A pre-training while it goes on."""

    def __init__(self, chips: Chips, spec: ModelSpec, folder: Path, options: Options, device: str) -> None:
        self.chips, self.spec, self.folder, self.options, self.device = chips, spec, folder, options, device
        self.task = _task(spec)
        torch.manual_seed(options.seed)
        self.module = PrithviMAE(spec).to(device).train()
        self.optimizer = torch.optim.AdamW(_groups(self.module, options), lr=options.rate, betas=(0.9, 0.95))
        self.batches = Batches(chips, "train", options.batch_size, options.seed, options.augment)
        self.checkpoints = Checkpoints(folder / "checkpoints")
        self.identity = digest_of(asdict(options), to_json(spec), chips.facts.digest)
        self.step, self.size = 0, 0
        self._resume()

    def _resume(self) -> None:
        saved = self.checkpoints.last()
        if saved is None:
            return
        state = self.checkpoints.load(saved)
        if state["identity"] != self.identity:
            raise TrainError(
                f"{self.folder} holds a pre-training of other chips, another model or with other options; give another "
                "folder="
            )
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.size = int(state["step"]), int(state["history"])

    def work(self) -> None:
        """Take all steps that are left, and write the model."""
        if self.step < self.options.steps:
            history = History(self.folder, self.size)
            with Interrupts() as interrupts, closing(self.batches.stream(self.step)) as stream:
                self._steps(history, interrupts, stream)
        save_model(self.module, replace(self.spec, weights=None), self.folder / MODEL)

    def _steps(self, history: History, interrupts: Interrupts, stream: Any) -> None:
        name = f"pre-training {self.spec.name}"
        with tqdm(total=self.options.steps, initial=self.step, desc=name, disable=None) as bar:
            for batch in stream:
                start = time.perf_counter()
                loss, rate = self._take(batch)
                self.step += 1
                seconds = time.perf_counter() - start
                row = {"step": self.step, "loss": loss, "lr": rate, "seconds": seconds}
                last = self.step == self.options.steps
                due = last or self.step % self.options.every == 0
                if due and (scored := self._validate()) is not None:
                    row["val_loss"] = scored
                history.add(row)
                bar.update()
                bar.set_postfix(loss=f"{loss:.4g}")
                if due or interrupts.name is not None:
                    self._save(history)
                if last:
                    return
                if interrupts.name is not None:
                    raise Stopped(
                        f"stopped by {interrupts.name} after step {self.step} of {self.options.steps}; the same call "
                        "goes on from there"
                    )

    def _take(self, batch: Sample) -> tuple[float, float]:
        rate = learning_rate(self.options, self.step, self.options.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        seeded(self.options.seed, self.step, 0)
        loss = self._loss(batch)
        said = float(loss.detach())
        if not math.isfinite(said):
            raise TrainError(f"the loss of step {self.step} is {said}; give a smaller lr= or precision='fp32'")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.module.parameters(), self.options.clip)
        self.optimizer.step()
        return said, rate

    def _loss(self, batch: Sample, noise: Tensor | None = None) -> Tensor:
        """Return the mean squared error of the hidden pixels that are there."""
        x = normalised(batch, self.task, self.chips.facts, self.device)  # (B, C, T, H, W)
        time, location = (
            told.to(self.device, torch.float32) if name in self.spec.coords else None
            for name, told in (("time", batch.time), ("location", batch.location))
        )
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.options.bf16):
            said = self.module(x, time, location, mask_ratio=self.options.mask_ratio, noise=noise)
        there = batch.valid.to(self.device)[:, None, None].expand_as(x).float()
        weight = self.module.patchify(there) * said.mask[..., None]  # (B, N, P)
        error = (said.prediction.float() - self._target(x)).square()
        mean: Tensor = (error * weight).sum() / weight.sum().clamp_min(1.0)
        return mean

    def _target(self, x: Tensor) -> Tensor:
        target = self.module.patchify(x)
        if not self.spec.norm_pix_loss:
            return target
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        return (target - mean) / (variance + 1e-6).sqrt()

    @torch.no_grad()
    def _validate(self) -> float | None:
        """Return the loss of some validation chips, hidden in the same places each time; None where there are none."""
        chosen = self.chips.indexes("val")[:_CHECKED]
        if not len(chosen):
            return None
        sample = tensors(self.chips.read(chosen))
        tokens = math.prod(self.module.encoder.grid(sample.image.transpose(1, 2)))
        generator = torch.Generator().manual_seed(self.options.seed)
        noise = torch.rand(len(chosen), tokens, generator=generator).to(self.device)
        self.module.eval()
        losses = []
        for start in range(0, len(chosen), self.options.batch_size):
            cut = slice(start, start + self.options.batch_size)
            losses.append(float(self._loss(part(sample, cut), noise[cut])) * len(chosen[cut]))
        self.module.train()
        return sum(losses) / len(chosen)

    def _save(self, history: History) -> None:
        state = {
            "identity": self.identity,
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "history": history.sync(),
        }
        self.checkpoints.save(state, self.step)

    def result(self) -> PretrainResult:
        """Return what the run has come to."""
        return PretrainResult(self.folder, self.folder / MODEL, read_history(self.folder).dropna(axis=1, how="all"))


def _groups(module: nn.Module, options: Options) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms and tokens do not."""
    decaying = {name: w for name, w in module.named_parameters() if w.ndim > 1 and not name.endswith("_token")}
    others = [w for name, w in module.named_parameters() if name not in decaying]
    return [
        {"params": list(decaying.values()), "weight_decay": options.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def _check(chips: Chips, spec: ModelSpec) -> None:
    facts = chips.facts
    if missing := [band for band in spec.bands if band not in facts.bands]:
        raise TrainError(f"model {spec.name!r} takes bands {list(spec.bands)}; chips have no {missing}")
    if facts.frames != spec.frames:
        raise TrainError(f"model {spec.name!r} takes {spec.frames} frames, chips have {facts.frames}; give its frames=")
    if facts.size % spec.patch_size[1]:
        raise TrainError(
            f"chips of {facts.size} pixels are no whole number of patches of {spec.patch_size[1]}; write chips of "
            "another size="
        )
    if not len(chips.indexes("train")):
        raise TrainError("the chips have no training split; write them with shares= above 0 for it")


def _task(spec: ModelSpec) -> TaskSpec:
    """Return the model's input as a task, which is what chips are normalised for."""
    return TaskSpec(
        name="pre-training",
        title=spec.title,
        model=spec,
        statistics=spec.statistics,
        classes=(),
        kind="regression",
        frames=spec.frames,
        window=spec.image_size,
        halo=0,
        pixel_size=spec.pixel_size,
        coords=spec.coords,
    )
