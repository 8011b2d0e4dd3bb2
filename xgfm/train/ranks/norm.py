"""Batch normalisation over the batch of all ranks, as if one process had seen it.

In: a module. Out: the same one, in which every batch norm counts over all ranks, forward and backward; and back. Names
and weights stay what they are, so that a checkpoint does not tell how many ranks there were. Nothing is lazy.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _Sum(torch.autograd.Function):
    """Sum over the ranks. What each rank's loss owes to the sum is added up on the way back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ARG004 - torch's own signature
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004 - torch's own signature
        total = gradients[0].clone()  # contiguous, and not another function's
        dist.all_reduce(total)
        return total


class SynchronisedNorm(_BatchNorm):
    """A batch norm whose mean and variance, in training, are those of the batch of all ranks.

    Ranks may hold different numbers of samples, also none. The variance is the mean square distance from the mean, in
    two sums: the difference of two large sums would lose digits. Torch's own ``SyncBatchNorm`` does this on CUDA only.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta"
        )
        self.plain = type(norm)
        _share(norm, self)

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised (B, C, ...) input, in its own dtype."""
        if not (self.training or self.running_mean is None):
            return super().forward(input)
        axes = [axis for axis in range(input.dim()) if axis != 1]
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        here = x.new_full((1,), input.numel() / input.shape[1])
        sums = _all(torch.cat([x.sum(axes), here]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x - _along(mean, x)
        variance = _all(centred.square().sum(axes)) / count
        if self.training:
            self._remember(mean, variance, count)
        scale = torch.rsqrt(variance + self.eps)
        scale = scale if self.weight is None else scale * self.weight
        out = centred * _along(scale, x)
        return (out if self.bias is None else out + _along(self.bias, x)).to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics, as torch does: their variance is that of a sample of a larger whole."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        unbiased = variance * count / (count - 1).clamp_min(1)  # on the device: nobody waits for the count
        self.running_var.lerp_(unbiased.to(self.running_var), share)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"input of {input.dim()} dimensions; expected (B, C, ...)")


def synchronised(module: nn.Module) -> nn.Module:
    """Return a module whose batch norms count over all ranks; parameters and buffers are the same objects.

    Call it only where there are several ranks. The module is changed; where it is itself a batch norm, another one is
    returned.
    """
    return _replaced(module, PLAIN, SynchronisedNorm)


def plain(module: nn.Module) -> nn.Module:
    """Undo `synchronised`."""
    return _replaced(module, (SynchronisedNorm,), _plain)


def _plain(norm: SynchronisedNorm) -> _BatchNorm:
    made = norm.plain(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta")
    _share(norm, made)
    return made


def _replaced(module: nn.Module, kinds: tuple[type, ...], make: Any) -> nn.Module:
    if type(module) in kinds:
        return make(module)  # type: ignore[no-any-return]
    for name, child in module.named_children():
        setattr(module, name, _replaced(child, kinds, make))
    return module


def _share(source: _BatchNorm, target: _BatchNorm) -> None:
    """Let two norms hold the same parameters, buffers and mode."""
    target._parameters.update(source._parameters)
    target._buffers.update(source._buffers)
    target.train(source.training)


def _all(values: Tensor) -> Tensor:
    return _Sum.apply(values)  # type: ignore[no-any-return,no-untyped-call]


def _along(values: Tensor, x: Tensor) -> Tensor:
    """One value for each channel, for a (B, C, ...) tensor."""
    return values.view(1, -1, *[1] * (x.dim() - 2))
