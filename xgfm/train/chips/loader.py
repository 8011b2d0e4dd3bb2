"""Chips to batches: which chips each step takes, how they are augmented, and what a model is fed.

In: `Chips`. Out: batches of tensors, numbers as they are stored. Everything follows from the seed and the step's
number, so a run can go on anywhere and on any number of processes; one thread reads ahead.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xgfm.errors import TrainError
from xgfm.infer.pixels import Pixels, normalise, on_device
from xgfm.models.spec import TaskSpec
from xgfm.train.chips.store import ChipFacts, Chips, Sample

_AHEAD = 3
"""Batches that wait at most for the model."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What is done to a training chip, drawn anew each time that it is seen."""

    d4: bool = True
    """One of the eight flips and quarter turns."""
    crop: int | None = None
    """Pixels a side of a random part of the chip; None for the whole chip."""
    band_dropout: float = 0.0
    """Chance of each band to be missing in all frames; never all of them."""
    frame_dropout: float = 0.0
    """Chance of each frame to be missing; never all of them."""

    @classmethod
    def of(cls, asked: bool | Mapping[str, Any]) -> Augmentation:
        """Return what ``augment=`` means: True for flips and turns, False for none, or options by name."""
        if isinstance(asked, bool):
            return cls(d4=asked)
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(asked) - set(known)):
            raise TrainError(f"augment has {unknown}; expected some of {known}")
        return cls(**asked)

    def check(self, facts: ChipFacts) -> None:
        """Refuse options that cannot be."""
        if self.crop is not None and not 1 <= self.crop <= facts.size:
            raise TrainError(f"augment: crop is {self.crop} for chips of {facts.size} pixels; give 1 to {facts.size}")
        for name in ("band_dropout", "frame_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise TrainError(f"augment: {name} is {getattr(self, name)}; give a chance from 0, below 1")
        if (self.band_dropout or self.frame_dropout) and facts.nodata is None and not facts.floating:
            raise TrainError("augment: dropout makes pixels missing, and these chips have no nodata value for that")


class Batches:
    """The batches of a split.

    Parameters
    ----------
    chips, split
        What is read.
    batch_size
        Chips of one step, over all processes.
    seed
        Of order and augmentation.
    augment
        See `Augmentation.of`.
    rank, world
        This process, and how many there are.
    indexes
        The chips to take, where it is not all of the split's.

    Notes
    -----
    Steps run through one permutation of the chips after the other, so every chip is seen once in each epoch, whatever
    the batch size.
    """

    def __init__(
        self,
        chips: Chips,
        split: str,
        batch_size: int,
        seed: int,
        augment: bool | Mapping[str, Any] = True,
        rank: int = 0,
        world: int = 1,
        *,
        indexes: NDArray[np.int64] | None = None,
    ) -> None:
        self.chips, self.batch_size, self.seed, self.rank, self.world = chips, batch_size, seed, rank, world
        if not 0 <= rank < world <= batch_size:
            raise TrainError(
                f"batch_size={batch_size} cannot be shared by {world} processes, of which this is number {rank}; each "
                "needs a chip of every step"
            )
        self.augmentation = Augmentation.of(augment)
        self.augmentation.check(chips.facts)
        self._all = chips.indexes(split) if indexes is None else np.asarray(indexes, "int64")
        if not len(self._all):
            raise TrainError(f"{chips.path} has no chips of split {split!r}; write them again with other shares=")

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every chip has been seen."""
        return -(-len(self._all) // self.batch_size)

    def epoch_of(self, step: int) -> int:
        """Return the epoch, from 0, that a step begins in."""
        return step * self.batch_size // len(self._all)

    def positions(self, step: int) -> range:
        """Return this process's part of a step, counted over all steps."""
        first = step * self.batch_size
        return range(
            first + self.rank * self.batch_size // self.world, first + (self.rank + 1) * self.batch_size // self.world
        )

    def indexes(self, step: int) -> NDArray[np.int64]:
        """Return the numbers of this process's chips of a step."""
        places = [divmod(position, len(self._all)) for position in self.positions(step)]
        orders = {epoch: self._order(epoch) for epoch in {epoch for epoch, _ in places}}
        return np.array([self._all[orders[epoch][place]] for epoch, place in places], "int64")

    def _order(self, epoch: int) -> NDArray[np.int64]:
        return _permutation(self.seed, epoch, len(self._all))

    def at(self, step: int) -> Sample:
        """Read and augment this process's chips of a step; CPU tensors."""
        sample = self.chips.read(self.indexes(step))
        seeds = [[self.seed, 2, position] for position in self.positions(step)]
        drawn = [
            _augmented(Sample(*(values[k] for values in sample)), np.random.default_rng(seed), self)
            for k, seed in enumerate(seeds)
        ]
        return Sample(*(torch.from_numpy(np.stack(values)) for values in zip(*drawn, strict=True)))

    def stream(self, start: int) -> Stream:
        """Return the batches from a step on, without end, read ahead by a thread."""
        return Stream(self, start)


class Stream(Iterator[Sample]):
    """Batches in order, a few of them read ahead. Close it when no more are wanted."""

    def __init__(self, batches: Batches, start: int) -> None:
        self.waited = 0.0
        """Seconds that were waited for batches so far."""
        self._ready: queue.Queue[Sample | BaseException] = queue.Queue(_AHEAD)
        self._closed = threading.Event()
        self._over: BaseException | None = None
        self._thread = threading.Thread(target=self._read, args=(batches, start), name="chips", daemon=True)
        self._thread.start()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Sample:
        begun = time.perf_counter()
        got = self._over if self._over is not None else self._ready.get()
        self.waited += time.perf_counter() - begun
        if isinstance(got, BaseException):
            self._over = got  # the thread has ended: whoever asks again is told the same
            raise got
        return got

    def close(self) -> None:
        """Stop to read."""
        self._closed.set()
        self._over = self._over or StopIteration()
        while True:  # the thread may wait for a place in the queue
            try:
                self._ready.get_nowait()
            except queue.Empty:
                break
        self._thread.join()

    def _read(self, batches: Batches, step: int) -> None:
        while not self._closed.is_set():
            got: Sample | BaseException
            try:
                got = batches.at(step)
            except BaseException as error:  # noqa: BLE001 - whoever waits for the batch is told
                got = error
            while not self._closed.is_set():
                try:
                    self._ready.put(got, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if isinstance(got, BaseException):
                return
            step += 1


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, 1, epoch]).permutation(count)


def _augmented(chip: Sample, rng: np.random.Generator, batches: Batches) -> Sample:
    """Change one chip: image ``(T, C, H, W)``, label and valid ``(H, W)``."""
    how, facts = batches.augmentation, batches.chips.facts
    planes: tuple[NDArray[Any], ...] = (chip.image, chip.label, chip.valid)
    if how.crop is not None and how.crop < facts.size:
        top, left = rng.integers(facts.size - how.crop + 1, size=2)
        planes = tuple(plane[..., top : top + how.crop, left : left + how.crop] for plane in planes)
    if how.d4:
        turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
        planes = tuple(_turned(plane, turns, mirrored=mirrored) for plane in planes)
    image, label, valid = planes
    if how.band_dropout or how.frame_dropout:
        image = _dropped(image, rng, how, facts)
    return chip._replace(image=image, label=label, valid=valid)


def _turned(array: NDArray[Any], turns: int, *, mirrored: bool) -> NDArray[Any]:
    turned = np.rot90(array, turns, axes=(-2, -1))
    return turned[..., ::-1] if mirrored else turned


def _dropped(image: NDArray[Any], rng: np.random.Generator, how: Augmentation, facts: ChipFacts) -> NDArray[Any]:
    """Make bands and frames missing. Labels stay: the model is to do without."""
    missing = facts.nodata if facts.nodata is not None else np.nan
    dropped = image.copy()
    for axis, chance in ((0, how.frame_dropout), (1, how.band_dropout)):
        gone = np.asarray(rng.random(image.shape[axis]) < chance)
        gone[rng.integers(len(gone))] = False
        dropped[(slice(None),) * axis + (gone,)] = missing
    return dropped


def normalised(sample: Sample, spec: TaskSpec, facts: ChipFacts, device: str) -> Tensor:
    """Turn stored numbers into what a task's model takes, as `predict` does.

    Parameters
    ----------
    sample
        Of CPU tensors.
    spec
        Its bands, statistics, and what a missing pixel becomes.
    facts
        Units and bands of the chips.
    device
        Where the arithmetic is done.

    Returns
    -------
    Tensor
        ``(B, C, T, H, W)`` float32.
    """
    if "time" in spec.coords and sample.time.isnan().any():
        raise TrainError(f"{spec.name} is told the dates of images, and some chips have no dates; give coords=()")
    image = sample.image
    if tuple(spec.bands) != facts.bands:
        image = image[:, :, [facts.bands.index(band) for band in spec.bands]]
    pixels = Pixels(
        mean=spec.statistics.mean,
        std=spec.statistics.std,
        factor=facts.reflectance_scale / spec.statistics.reflectance_scale,
        reflectance_scale=facts.reflectance_scale,
        nodata=facts.nodata,
        fill=spec.nodata_fill,
        fill_units=spec.nodata_units,
    )
    return normalise(on_device(image.flatten(0, 1).numpy(), device, frames=facts.frames), pixels)
