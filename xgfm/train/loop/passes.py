"""Chips through a model: numbers as they are stored, to what the model says of them and what it should have said.

In: a `Sample` of tensors. Out: logits, and labels on the same device, 255 or NaN where a pixel has no label or is
missing in any frame. Nothing is lazy.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from xgfm.infer.device import native_bf16
from xgfm.models.spec import TaskSpec
from xgfm.train.chips.chips import Chips, Sample
from xgfm.train.chips.loader import normalised
from xgfm.train.loop.losses import IGNORE
from xgfm.train.start.targets import Scale

_WRONG = 0.2
"""Difference of gradients in bf16 from those in fp32, as a share of these, from which on the kernels are wrong.

Right ones are near 0.02; the wrong bf16 convolution of some CPUs is near 1."""


@dataclass
class Passes:
    """How chips go through a module."""

    module: nn.Module
    spec: TaskSpec
    chips: Chips
    device: str
    scale: Scale = field(default_factory=Scale)
    bf16: bool = False
    """Whether activations are bf16; weights stay fp32."""

    @property
    def outputs(self) -> int:
        """Channels of the answer."""
        return 1 if self.spec.kind == "regression" else len(self.spec.classes)

    def logits(self, sample: Sample, module: nn.Module | None = None) -> Tensor:
        """Return what the module, or a wrapper of it, says of chips: ``(B, K, H, W)`` fp32."""
        x = normalised(sample, self.spec, self.chips.facts, self.device)  # (B, C, T, H, W)
        time, location = (
            told.to(self.device, torch.float32) if name in self.spec.coords else None
            for name, told in (("time", sample.time), ("location", sample.location))
        )
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.bf16):
            said: Tensor = (self.module if module is None else module)(x, time, location)
        return said.float()

    def labels(self, sample: Sample) -> Tensor:
        """Return the labels of chips, ``(B, H, W)`` on the device; those of missing pixels are none."""
        label, valid = sample.label.to(self.device), sample.valid.to(self.device)
        if self.spec.kind == "regression":
            return torch.where(valid, (label - self.scale.mean) / self.scale.std, torch.nan)
        return torch.where(valid, label, IGNORE)

    def name_of(self, chip: int) -> str:
        """Return where a chip was cut, for messages."""
        about = self.chips.dataset().isel(chip=chip)
        places = [f"{name} {int(about[name])}" for name in ("source", "row", "column") if name in about]
        return f"chip {chip} ({', '.join(places)})"


def part(sample: Sample, cut: slice) -> Sample:
    """Return some chips of a sample."""
    return Sample(*(values[cut] for values in sample))


def window(sample: Sample, rows: slice, columns: slice) -> Sample:
    """Return some pixels of each chip of a sample."""
    cut = {name: getattr(sample, name)[..., rows, columns] for name in ("image", "label", "valid")}
    return sample._replace(**cut)


def tensors(sample: Sample) -> Sample:
    """Return a sample of arrays as one of tensors."""
    return Sample(*(torch.from_numpy(values) for values in sample))


def bf16_is_right(passes: Passes) -> bool:
    """Tell whether the device computes bf16 itself, and learns from noise in bf16 what it learns in fp32."""
    if not native_bf16(passes.device):
        return False
    if passes.device.startswith("cuda"):
        return True
    spec = passes.spec
    noise = torch.randn(1, len(spec.bands), spec.frames, spec.window, spec.window)
    exact, rough = (_gradient(passes.module, noise, bf16=bf16) for bf16 in (False, True))
    error = float((rough - exact).norm() / exact.norm().clamp_min(1e-12))
    if error > _WRONG:
        warnings.warn(
            f"gradients in bf16 are wrong on this CPU (error {error:.2f} of their size); fp32 is used", stacklevel=2
        )
    return error <= _WRONG


def _gradient(module: nn.Module, noise: Tensor, *, bf16: bool) -> Tensor:
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        answer = module.eval()(noise, None, None)
    found = torch.autograd.grad(answer.float().square().mean(), weights, allow_unused=True)
    return torch.cat([gradient.flatten() for gradient in found if gradient is not None])
