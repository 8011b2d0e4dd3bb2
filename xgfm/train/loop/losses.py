"""Losses that add up: over pixels, samples, micro-batches and processes.

In: logits ``(B, K, H, W)`` and labels ``(B, H, W)``, 255 or NaN where there is none. Out: a sum and its weight; a loss
is the sum of all sums over the sum of all weights, however the batch was cut. Nothing is lazy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from xgfm.errors import TrainError

IGNORE = 255
"""Class code of a pixel without label."""
FOCUS = 2.0
"""Exponent of the focal loss, as its authors chose it."""
_SMOOTH = 1e-6
"""Keeps Dice defined where a class fills no pixel."""

Sum = tuple[Tensor, Tensor]
"""What a part of a batch adds: sum and weight, both scalars."""


def cross_entropy(logits: Tensor, label: Tensor, class_weights: Tensor | None = None) -> Sum:
    """Return the cross-entropy summed over labelled pixels, and the sum of their weights.

    Their quotient is ``torch.nn.functional.cross_entropy`` with ``ignore_index=255``.
    """
    each = F.cross_entropy(logits, label.long(), weight=class_weights, ignore_index=IGNORE, reduction="sum")
    return each, _pixel_weight(label, class_weights)


def focal(logits: Tensor, label: Tensor, class_weights: Tensor | None = None) -> Sum:
    """Return the focal loss (Lin et al. 2017, over a softmax), summed, and the sum of the labelled pixels' weights.

    A pixel's cross-entropy is multiplied by ``(1 - p) ** 2``, p being the probability of its class.
    """
    known = label != IGNORE
    target = torch.where(known, label, 0).long()
    log_p = F.log_softmax(logits, dim=1).gather(1, target[:, None])[:, 0]
    each = -((1 - log_p.exp()) ** FOCUS) * log_p
    weight = known.to(each.dtype) if class_weights is None else class_weights[target] * known
    return (each * weight).sum(), _pixel_weight(label, class_weights)


def dice(logits: Tensor, label: Tensor) -> Sum:
    """Return the soft Dice loss, summed over each sample's classes, and how many there are.

    Of each sample and each class that is labelled in it: ``1 - 2 |P T| / (|P| + |T|)`` over its labelled pixels, P the
    probability and T the truth (Milletari et al. 2016, without squares). Classes that a sample has no pixel of are left
    out: a mistaken pixel of theirs is one that another class lacks.
    """
    known = (label != IGNORE)[:, None]
    truth = _one_hot(label, logits.shape[1]).to(logits.dtype)
    probability = logits.softmax(1) * known
    both, either = (probability * truth).sum((2, 3)), (probability + truth).sum((2, 3))
    present = truth.amax((2, 3))
    each = 1 - (2 * both + _SMOOTH) / (either + _SMOOTH)
    return (each * present).sum(), present.sum()


def squared_error(values: Tensor, target: Tensor) -> Sum:
    """Return the squared error of ``(B, 1, H, W)`` summed over pixels with a target, and how many these are."""
    return _regression(values, target, lambda error: error.square())


def absolute_error(values: Tensor, target: Tensor) -> Sum:
    """Return the absolute error of ``(B, 1, H, W)`` summed over pixels with a target, and how many these are."""
    return _regression(values, target, torch.abs)


def huber(values: Tensor, target: Tensor) -> Sum:
    """Return the Huber loss summed over pixels with a target, and how many these are; linear from 1 on."""
    return _regression(values, target, lambda error: F.huber_loss(error, torch.zeros_like(error), reduction="none"))


CLASSIFICATION: dict[str, Callable[..., Sum]] = {"cross_entropy": cross_entropy, "focal": focal, "dice": dice}
REGRESSION: dict[str, Callable[..., Sum]] = {"mse": squared_error, "mae": absolute_error, "huber": huber}

_BY_PIXEL = frozenset({"cross_entropy", "focal"})
"""Those whose pixels have the weights of their classes."""


class Losses:
    """One loss, or a weighted sum of several.

    Parameters
    ----------
    parts
        Names and their weights.
    kind
        Of the task, ``"segmentation"`` or ``"regression"``.
    class_weights
        Of cross-entropy and focal loss, one for each class.

    Raises
    ------
    TrainError
        A loss of the other kind.
    """

    def __init__(self, parts: Mapping[str, float], kind: str, class_weights: Sequence[float] | None = None) -> None:
        known = REGRESSION if kind == "regression" else CLASSIFICATION
        if wrong := sorted(set(parts) - set(known)):
            raise TrainError(f"loss {wrong[0]!r} does not fit a {kind}; give loss= one of {sorted(known)}")
        if class_weights is not None and not _BY_PIXEL & set(parts):
            raise TrainError(f"class_weights= has no effect on loss {sorted(parts)}; leave it out")
        self.parts = {name: known[name] for name in parts}
        self.shares = torch.tensor(list(parts.values()), dtype=torch.float32)
        self.class_weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)

    def to(self, device: str) -> Losses:
        """Move what is needed to a device; return the same losses."""
        self.shares = self.shares.to(device)
        self.class_weights = None if self.class_weights is None else self.class_weights.to(device)
        return self

    def sums(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the sum of each loss over a part of a batch, ``(loss,)`` float32."""
        return torch.stack([total for total, _ in self._each(logits.float(), label)])

    def weights(self, label: Tensor, outputs: int) -> Tensor:
        """Return the weight of each loss over a part of a batch, ``(loss,)`` float64: labels alone decide."""
        return torch.stack([self._weight(name, label, outputs).double() for name in self.parts])

    def together(self, sums: Tensor, weights: Tensor) -> Tensor:
        """Return the loss of a batch from the sums of a part of it and the weights of the whole: a scalar.

        Parts of a batch give parts of the loss, which add up; so do their gradients. A batch without labels gives 0.
        """
        return (self.shares * sums / weights.clamp_min(_SMOOTH).to(sums.dtype)).sum()

    def _each(self, logits: Tensor, label: Tensor) -> list[Sum]:
        return [
            loss(logits, label, self.class_weights) if name in _BY_PIXEL else loss(logits, label)
            for name, loss in self.parts.items()
        ]

    def _weight(self, name: str, label: Tensor, outputs: int) -> Tensor:
        if name in REGRESSION:
            return label.isfinite().sum()
        return (
            _pixel_weight(label, self.class_weights)
            if name in _BY_PIXEL
            else _one_hot(label, outputs).any(3).any(2).sum()
        )


def sqrt_inverse(counts: Sequence[float]) -> tuple[float, ...]:
    """Return weights of classes, one over the square root of each one's share, 1 on average over pixels.

    A class without pixels has the weight 0.
    """
    total = sum(counts)
    if total <= 0:
        raise TrainError("class_weights='sqrt_inverse' needs labelled training pixels, and the chips have none")
    raw = [(total / count) ** 0.5 if count else 0.0 for count in counts]
    mean = sum(weight * count for weight, count in zip(raw, counts, strict=True)) / total
    return tuple(weight / mean for weight in raw)


def _regression(values: Tensor, target: Tensor, measure: Callable[[Tensor], Tensor]) -> Sum:
    known = target.isfinite()
    error = torch.where(known, values[:, 0] - torch.where(known, target, 0), 0)
    return measure(error).sum(), known.sum()


def _pixel_weight(label: Tensor, class_weights: Tensor | None) -> Tensor:
    known = label != IGNORE
    if class_weights is None:
        return known.sum()
    return (class_weights[torch.where(known, label, 0).long()] * known).sum(dtype=torch.float64)


def _one_hot(label: Tensor, classes: int) -> Tensor:
    """Return ``(B, K, H, W)``, True for the class of a labelled pixel."""
    return label[:, None] == torch.arange(classes, device=label.device, dtype=label.dtype)[:, None, None]
