"""Regression targets on the scale of the model, and back.

In: the targets of the training chips. Out: their mean and standard deviation, and a last layer whose answers are in
units of the targets, or on that scale. Weights of a new layer are small numbers: a model that has to say 150 t/ha would
first have to learn how large a number that is. Nothing is lazy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from xgfm.errors import TrainError
from xgfm.models.spec import TaskSpec
from xgfm.train.start.layers import output_layers

if TYPE_CHECKING:
    from xgfm.train.chips.chips import Chips

_AT_ONCE = 64
"""Chips whose targets are read together."""


@dataclass(frozen=True)
class Scale:
    """Targets are trained on as ``(value - mean) / std``."""

    mean: float = 0.0
    std: float = 1.0

    def inverse(self) -> Scale:
        """Return what undoes this one."""
        return Scale(-self.mean / self.std, 1 / self.std)


def target_scale(chips: Chips, indexes: np.ndarray) -> Scale:
    """Return mean and standard deviation of the targets of some chips; nothing of the kind for classes."""
    if chips.facts.kind != "regression":
        return Scale()
    count, mean, spread = 0, 0.0, 0.0
    label = chips.dataset()["label"]
    for some in np.array_split(indexes, -(-len(indexes) // _AT_ONCE)):  # sums of Chan, Golub and LeVeque (1983)
        values = label.isel(chip=some).values.astype("float64")
        values = values[np.isfinite(values)]
        if values.size:
            apart, total = values.mean() - mean, count + values.size
            spread += ((values - values.mean()) ** 2).sum() + apart**2 * count * values.size / total
            mean, count = mean + apart * values.size / total, total
    if not count:
        raise TrainError("no training chip has a target; write chips with labels in the training split")
    return Scale(mean, float((spread / count) ** 0.5) or 1.0)


def rescale(module: nn.Module, spec: TaskSpec, scale: Scale) -> nn.Module:
    """Let a module say ``mean + std * x`` where it said x, by its last layer; it is changed and returned.

    With a scale's inverse, a module that answers in units of the targets answers on the scale.
    """
    if scale == Scale():
        return module
    for layer in output_layers(module, spec).values():
        weight, bias = layer.weight, layer.bias
        if not isinstance(weight, torch.Tensor) or not isinstance(bias, torch.Tensor):
            raise TrainError(f"the last layer of task {spec.name!r} has no bias, so its answers cannot be scaled")
        with torch.no_grad():
            weight.mul_(scale.std)
            bias.mul_(scale.std).add_(scale.mean)
    return module
