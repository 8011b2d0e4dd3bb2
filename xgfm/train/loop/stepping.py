"""One step: the gradient of a batch, however it is cut, and what becomes of the weights.

In: the chips of a step. Out: changed weights, and the loss, its gradient's norm and the learning rate. Micro-batches
and ranks add up to the gradient of the whole batch: every sum is divided by the weight of all its labels.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from xgfm.errors import ClusterError, TrainError
from xgfm.train.loop.checkpoints import replace_file
from xgfm.train.loop.losses import Losses
from xgfm.train.loop.passes import Passes, part
from xgfm.train.ranks.ranks import Ranks
from xgfm.train.settings import TrainSettings
from xgfm.train.start.tuning import train_mode

if TYPE_CHECKING:
    from xgfm.train.chips.chips import Sample


@dataclass(frozen=True)
class Taken:
    """What a step came to."""

    loss: float
    lr: float
    gradient_norm: float
    """Before it was clipped."""
    stop: bool
    """Whether any rank was told to stop."""


@dataclass
class Stepper:
    """Takes the steps of a run.

    Parameters
    ----------
    passes
        The module, and how chips go through it.
    optimizer
        Of the weights that learn; its groups have a ``scale``.
    losses, settings, ranks
        Of the run.
    total
        Steps of the run.
    note
        File that says how many chips fit into memory at once, where that has been seen.
    """

    passes: Passes
    optimizer: torch.optim.Optimizer
    losses: Losses
    settings: TrainSettings
    ranks: Ranks
    total: int
    note: Path

    def __post_init__(self) -> None:
        self.micro = min(self.settings.micro_batch or self._share(), self._share(), _noted(self.note))
        self.module: nn.Module = self.passes.module
        if self.ranks.world > 1:
            gpu = [torch.device(self.ranks.device)] if self.ranks.device.startswith("cuda") else None
            self.module = DistributedDataParallel(self.passes.module, device_ids=gpu, broadcast_buffers=False)

    def take(self, step: int, indexes: np.ndarray, sample: Sample, stop: bool) -> Taken:
        """Take a step.

        Parameters
        ----------
        step
            Its number, from 0.
        indexes, sample
            This rank's chips.
        stop
            Whether this rank was told to stop.

        Raises
        ------
        TrainError
            The loss or its gradient is not finite, or one chip alone does not fit into memory.
        ClusterError
            This rank among several has run out of memory.
        """
        train_mode(self.module)
        rate = learning_rate(self.settings, step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        label = self.passes.labels(sample)
        own = self.losses.weights(label, self.passes.outputs)
        said = self.ranks.all_reduce_sum(torch.cat([own, own.new_tensor([float(stop)])]))
        weights, stop = said[:-1], bool(said[-1] > 0)
        sums = self._gradient(step, sample, label, weights)
        learning = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        norm = float(nn.utils.clip_grad_norm_(learning, self.settings.clip or math.inf))
        loss = float(self.losses.together(self.ranks.all_reduce_sum(sums), weights))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainError(self._not_finite(step, indexes, sample, loss, norm))
        self.optimizer.step()
        return Taken(loss, rate, norm, stop)

    def _gradient(self, step: int, sample: Sample, label: Tensor, weights: Tensor) -> Tensor:
        """Leave the gradient of the batch in the weights; return the sum of each loss over this rank's chips.

        Where memory does not suffice, half as many chips are taken at once, the same chips again from the beginning.
        """
        while True:
            kept = [buffer.clone() for buffer in self.passes.module.buffers()]  # running statistics move in a pass
            try:
                return self._accumulate(step, sample, label, weights)
            except torch.OutOfMemoryError as error:
                said = str(error).partition("\n")[0]
            # Outside of the handler, whose error would hold what is to be freed.
            for buffer, before in zip(self.passes.module.buffers(), kept, strict=True):
                buffer.copy_(before)
            self._halve(said)

    def _accumulate(self, step: int, sample: Sample, label: Tensor, weights: Tensor) -> Tensor:
        seeded(self.settings.seed, step, self.ranks.rank)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros(len(self.losses.parts), device=label.device)
        cuts = list(self._cuts(len(label)))
        for cut in cuts:
            with self._adding_up(last=cut is cuts[-1]):
                sums = self.losses.sums(self.passes.logits(part(sample, cut), self.module), label[cut])
                # torch's wrapper divides what the ranks add up by their number
                (self.losses.together(sums, weights) * self.ranks.world).backward()  # type: ignore[no-untyped-call]
            total += sums.detach()
        return total

    def _cuts(self, count: int) -> Iterator[slice]:
        """Cut this rank's chips into parts as even as they can be, as many on every rank."""
        parts = -(-self._share() // self.micro)
        edges = [round(part * count / parts) for part in range(parts + 1)]
        for start, stop in pairwise(edges):
            yield slice(start, stop)

    def _share(self) -> int:
        """Return how many chips of a batch a rank has at most."""
        return -(-self.settings.batch_size // self.ranks.world)

    def _adding_up(self, *, last: bool) -> AbstractContextManager[None]:
        if last or not isinstance(self.module, DistributedDataParallel):
            return nullcontext()
        no_sync: AbstractContextManager[None] = self.module.no_sync()
        return no_sync

    def _halve(self, said: str) -> None:
        """Take half as many chips at once from now on, and when the run goes on another time."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.ranks.device.startswith("cuda"):
            torch.cuda.empty_cache()
        if self.micro == 1:
            raise TrainError(
                f"one chip of {self.passes.spec.window} pixels does not fit into memory ({said}); give a smaller "
                "window=, method='lora' or 'frozen', or precision='bf16'"
            )
        before, self.micro = self.micro, (self.micro + 1) // 2
        replace_file(self.note, str(self.micro).encode())
        what = f"{before} chips at once do not fit into memory ({said}); from now on {self.micro}, of the same batches"
        if self.ranks.world > 1:  # the other ranks are in the middle of theirs
            raise ClusterError(f"rank {self.ranks.rank}: {what}")
        warnings.warn(what, stacklevel=2)

    def _not_finite(self, step: int, indexes: np.ndarray, sample: Sample, loss: float, norm: float) -> str:
        """Say which chips are to blame: those that alone give no finite loss."""
        chips = [int(index) for index, bad in zip(indexes, self._bad(sample), strict=True) if bad]
        named = ", ".join(self.passes.name_of(chip) for chip in chips)
        every = ", ".join(str(int(index)) for index in indexes)
        found = f"alone, these give none: {named}" if chips else f"alone, each of its chips does (chips {every})"
        return (
            f"at step {step} the loss is {loss:g} and the norm of its gradient {norm:g}; of the batch's chips on rank "
            f"{self.ranks.rank}, {found}. Look at them, or give a smaller lr= or precision='fp32'; the last "
            "checkpoint is as it was"
        )

    def _bad(self, sample: Sample) -> list[bool]:
        module = self.passes.module.eval()
        label = self.passes.labels(sample)
        with torch.no_grad():
            sums = [
                self.losses.sums(self.passes.logits(part(sample, slice(i, i + 1)), module), label[i : i + 1])
                for i in range(len(label))
            ]
        return [not bool(one.isfinite().all()) for one in sums]


class Schedule(Protocol):
    """What a learning rate follows from."""

    @property
    def rate(self) -> float:
        """The largest."""

    @property
    def min_lr(self) -> float:
        """That at the end."""

    @property
    def warmup(self) -> float:
        """Share of the steps in which it rises."""


def learning_rate(settings: Schedule, step: int, total: int) -> float:
    """Return the learning rate of a step, counted from 0: a line up to ``lr``, half a cosine down to ``min_lr``."""
    rising = round(settings.warmup * total)
    if step < rising:
        return settings.rate * (step + 1) / rising
    done = (step - rising) / max(total - rising, 1)
    return settings.min_lr + (settings.rate - settings.min_lr) * 0.5 * (1 + math.cos(math.pi * done))


def seeded(seed: int, step: int, rank: int) -> None:
    """Set torch's generators to what belongs to a step on a rank: dropout draws from them."""
    state = np.random.SeedSequence([seed, step, rank]).generate_state(2, np.uint32)
    torch.manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


def _noted(note: Path) -> int:
    try:
        return max(int(note.read_text(encoding="utf-8")), 1)
    except FileNotFoundError:
        return sys.maxsize
    except ValueError as error:
        raise TrainError(f"{note} holds no whole number; delete it") from error
