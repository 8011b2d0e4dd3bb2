"""Low-rank adapters: a few weights beside a large matrix that stays as it is.

In: a module with an encoder. Out: the same one with adapters at each attention of it; and, when training is over, with
the adapters added into the matrices, so that it is an ordinary one again. Nothing is lazy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xgfm.models.prithvi import Attention


class LowRank(nn.Module):
    """A linear layer that is fixed, and a product of two thin matrices that learns what to add (Hu et al. 2022).

    The product begins as zero, so that training begins at what the fixed layer says.
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Parameter(torch.empty(rank, linear.in_features))
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``(..., in)`` to ``(..., out)``."""
        return F.linear(x, self.linear.weight, self.linear.bias) + F.linear(F.linear(x, self.down), self.up)

    def merged(self) -> nn.Linear:
        """Return one linear layer that says the same."""
        with torch.no_grad():
            self.linear.weight += self.up @ self.down
        return self.linear


def adapt(encoder: nn.Module, rank: int) -> None:
    """Put adapters at the projections of every attention; what was there is not to learn any more."""
    for attention in (m for m in encoder.modules() if isinstance(m, Attention)):
        attention.qkv, attention.proj = LowRank(attention.qkv, rank), LowRank(attention.proj, rank)  # type: ignore[assignment]


def merge(module: nn.Module) -> nn.Module:
    """Add all adapters into the layers that they are at; the module is changed and returned."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LowRank):
                setattr(parent, name, child.merged())
    return module
