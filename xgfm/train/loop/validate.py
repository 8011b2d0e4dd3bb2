"""A split run through a model, without learning from it.

In: chips, and how they go through a module. Out: logits window by window; or the loss and the scores of the whole
split, added up over the ranks, each of which takes its part. Nothing is lazy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from xgfm.train.loop.losses import IGNORE, Losses
from xgfm.train.loop.passes import Passes, tensors, window
from xgfm.train.ranks.ranks import Ranks
from xgfm.train.scores.metrics import scores_of

if TYPE_CHECKING:
    from xgfm.train.chips.chips import Chips


def windows(size: int, side: int) -> list[tuple[slice, slice]]:
    """Return windows along one axis of a chip, each with the part of it that no earlier window has."""
    if size <= side:
        return [(slice(0, size), slice(0, size))]
    starts = [*range(0, size - side, side), size - side]
    ends = [0, *(start + side for start in starts[:-1])]
    return [(slice(s, s + side), slice(end - s, side)) for s, end in zip(starts, ends, strict=True)]


def said(
    passes: Passes, chips: Chips, indexes: np.ndarray, at_once: int
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """Yield the module's answers to chips: their indexes, logits ``(B, K, h, w)``, labels ``(B, h, w)``.

    Chips larger than the task's window are cut into windows; each pixel comes once.
    """
    module = passes.module.eval()
    for start in range(0, len(indexes), at_once):
        some = indexes[start : start + at_once]
        sample = tensors(chips.read(some))
        cuts = [windows(size, passes.spec.window) for size in sample.image.shape[-2:]]
        for rows, inner_rows in cuts[0]:
            for columns, inner_columns in cuts[1]:
                cut = window(sample, rows, columns)
                with torch.no_grad():
                    logits = passes.logits(cut, module)
                inner = (..., inner_rows, inner_columns)
                yield some, logits[inner], passes.labels(cut)[inner]


@dataclass(frozen=True)
class Validation:
    """One split's loss and scores.

    Parameters
    ----------
    chips, split
        What is run through.
    passes, losses, ranks
        Of the run.
    """

    chips: Chips
    split: str
    passes: Passes
    losses: Losses
    ranks: Ranks

    def scores(self, at_once: int) -> dict[str, float]:
        """Return ``loss``, with ``accuracy`` and ``mean_iou`` of classes, or ``rmse`` and ``mae`` of a regression."""
        indexes = self.chips.indexes(self.split)[self.ranks.rank :: self.ranks.world]
        sums = torch.zeros(len(self.losses.parts), dtype=torch.float64, device=self.ranks.device)
        weights, counts = torch.zeros_like(sums), self._nothing()
        for _, logits, label in said(self.passes, self.chips, indexes, at_once):
            sums += self.losses.sums(logits, label)
            weights += self.losses.weights(label, self.passes.outputs)
            counts += self._count(logits, label)
        sums, weights, counts = (self.ranks.all_reduce_sum(part) for part in (sums, weights, counts))
        return {"loss": float(self.losses.together(sums, weights)), **self._scores(counts.cpu().numpy())}

    def _nothing(self) -> Tensor:
        cells = 3 if self.passes.spec.kind == "regression" else self.passes.outputs**2
        return torch.zeros(cells, dtype=torch.float64, device=self.ranks.device)

    def _count(self, logits: Tensor, label: Tensor) -> Tensor:
        if self.passes.spec.kind == "regression":
            error = (logits[:, 0] - label)[label.isfinite()].double()
            return torch.stack([error.new_tensor(len(error)), error.square().sum(), error.abs().sum()])
        known = label != IGNORE
        pairs = label[known].long() * self.passes.outputs + logits.max(1).indices[known]
        return torch.bincount(pairs, minlength=self.passes.outputs**2).double()

    def _scores(self, counts: np.ndarray) -> dict[str, float]:
        if self.passes.spec.kind == "regression":
            _, squared, absolute = counts / max(counts[0], 1.0)
            std = self.passes.scale.std
            return {"rmse": float(np.sqrt(squared)) * std, "mae": float(absolute) * std}
        matrix = scores_of(counts.reshape(self.passes.outputs, -1))
        return {name: float(matrix[name]) for name in ("accuracy", "mean_iou")}
