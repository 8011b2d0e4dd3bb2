"""Parts of a task's module that training must tell apart: its encoder, and the layer that gives its logits.

In: a module, and the record of its task. Out: some of its own layers. Nothing is lazy.
"""

from __future__ import annotations

from torch import nn

from xgfm.errors import TrainError
from xgfm.models.mmseg import MmsegModel
from xgfm.models.prithvi import PrithviEncoder
from xgfm.models.quirks import published_part
from xgfm.models.spec import TaskSpec


def encoder_of(module: nn.Module) -> tuple[str, PrithviEncoder] | None:
    """Return the encoder of a module and its name in it; None where it has none."""
    return next(((name, m) for name, m in module.named_modules() if isinstance(m, PrithviEncoder)), None)


def output_layers(module: nn.Module, spec: TaskSpec) -> dict[str, nn.Module]:
    """Return the layers that give a task's logits, by name: the last one with as many outputs as there are classes.

    A model with an auxiliary head has two.
    """
    outputs = 1 if spec.kind == "regression" else len(spec.classes)
    part = published_part(module)
    if isinstance(part, MmsegModel):
        return {f"{head}.conv_seg": getattr(part, head).conv_seg for head in ("decode_head", "auxiliary_head")}
    layers = {name: m for name, m in part.named_modules() if _outputs(m) is not None}
    last = next((name for name in reversed(layers) if _outputs(layers[name]) == outputs), None)
    if last is None:
        raise TrainError(f"task {spec.name!r}: no layer has {outputs} outputs, so the last layer is not known")
    return {last: layers[last]}


def _outputs(module: nn.Module) -> int | None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Conv3d):
        return module.out_channels
    return module.out_features if isinstance(module, nn.Linear) else None
