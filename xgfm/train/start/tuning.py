"""What is trained: from a base and chips to a module, the record of its task, and which weights learn how fast.

In: settings, and the facts of the chips. Out: a module on the CPU, a `TaskSpec` that `build_task` builds its like from,
groups of parameters. Weights of the base are opened here, chips are not. Nothing is lazy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from xgfm.errors import TrainError
from xgfm.models import registry
from xgfm.models.build import build_task
from xgfm.models.handle import ModelHandle, load_model, load_task
from xgfm.models.mae import PrithviMAE
from xgfm.models.mmseg import MmsegModel
from xgfm.models.pixelwise import PixelwiseModel
from xgfm.models.quirks import published_part
from xgfm.models.spec import ModelSpec, TaskSpec
from xgfm.train.settings import SCRATCH, TrainSettings, record_of
from xgfm.train.start.layers import encoder_of, output_layers
from xgfm.train.start.lora import adapt
from xgfm.train.start.new_task import new_task, small_encoder
from xgfm.train.start.targets import Scale, rescale

if TYPE_CHECKING:
    from xgfm.train.chips.chips import ChipFacts


def start_module(settings: TrainSettings, facts: ChipFacts, scale: Scale | None = None) -> tuple[nn.Module, TaskSpec]:
    """Make the module that a run begins with.

    Random weights are drawn from torch's global generator. Weights are those of a model's encoder; or of a task's
    encoder, neck, decoder and head, the last layer drawn anew where classes differ.

    Parameters
    ----------
    settings
        Base, method and task.
    facts
        Of the chips: bands, frames, size, classes, statistics.
    scale
        On which a regression is trained; the last layer of a base that is kept answers on it from now on.

    Returns
    -------
    module, spec
        In training mode, fp32. ``requires_grad`` says which weights learn; adapters are in place.

    Raises
    ------
    TaskError, CheckpointError
        As `load_task`.
    TrainError
        Base, chips and method do not fit together.
    """
    base, handle = _base(settings, facts)
    spec = task_of(settings, base, facts)
    _check_method(settings, base)
    module = build_task(spec) if handle is None or handle.build is None else _redrawn(handle.build(spec))
    if handle is not None and not settings.from_scratch:
        kept = _take_weights(module, spec, handle, new_decoder=settings.task.decoder is not None)
        if kept and scale is not None:
            rescale(module, spec, scale.inverse())
    _choose(module, spec, settings)
    return module.train(), spec


def task_of(settings: TrainSettings, base: TaskSpec | ModelSpec, facts: ChipFacts) -> TaskSpec:
    """Return the record of the task that settings and chips make of a base."""
    return new_task(settings.task.name, base, facts, task=settings.task, scratch=settings.from_scratch)


# ---- which base


def _base(settings: TrainSettings, facts: ChipFacts) -> tuple[TaskSpec | ModelSpec, ModelHandle | None]:
    """Return the record that training begins with, and the handle of its weights where there are any."""
    if settings.base == SCRATCH:
        return small_encoder(facts), None
    if isinstance(settings.base, Mapping):
        return record_of(settings.base), None
    entry = registry.find(settings.base, settings.base_spec)
    if settings.from_scratch and entry.build is None:
        return entry.spec, None
    load = load_task if isinstance(entry.spec, TaskSpec) else load_model
    handle = load(settings.base, settings.base_spec)
    return handle.spec, handle


def _redrawn(module: nn.Module) -> nn.Module:
    """Draw the weights of a builder's module anew: it may have loaded some."""
    for part in module.modules():
        if callable(reset := getattr(part, "reset_parameters", None)):
            reset()
    return module.requires_grad_(True)


def _check_method(settings: TrainSettings, base: TaskSpec | ModelSpec) -> None:
    new = settings.task.decoder or ("unet" if isinstance(base, ModelSpec) else None)
    if settings.method == "head" and new not in (None, "linear"):
        raise TrainError(
            f"method='head' would leave a new {new} decoder at its random weights; give base= a task, "
            "decoder='linear', or method='frozen', which trains the decoder too"
        )


# ---- weights of the base


def _take_weights(module: nn.Module, spec: TaskSpec, handle: ModelHandle, *, new_decoder: bool) -> bool:
    """Copy a base's weights into a module; return whether those of the last layer are among them."""
    source = published_part(handle.load())
    if isinstance(source, PrithviMAE) or new_decoder:
        found = encoder_of(source)
        mine = encoder_of(published_part(module))
        if found is None or mine is None:
            raise TrainError(f"{handle.spec.name!r} has no encoder for a new decoder; leave decoder out")
        mine[1].load_state_dict(found[1].state_dict())
        return False
    target = published_part(module)
    state, own = source.state_dict(), target.state_dict()
    fresh = set(_output_keys(target, spec)) if _classes_differ(handle.spec, spec) else set()
    wrong = [key for key in own if key not in fresh and (key not in state or state[key].shape != own[key].shape)]
    if wrong:
        raise TrainError(f"weights of {handle.spec.name!r} do not fit its own record: {wrong[:3]}; load_task says more")
    target.load_state_dict({key: own[key] if key in fresh else state[key] for key in own})
    return not fresh


def _classes_differ(base: TaskSpec, spec: TaskSpec) -> bool:
    return [c.name for c in base.classes] != [c.name for c in spec.classes] or base.units != spec.units


def _output_keys(module: nn.Module, spec: TaskSpec) -> list[str]:
    return [f"{name}.{key}" for name, layer in output_layers(module, spec).items() for key in layer.state_dict()]


# ---- which weights learn


def _choose(module: nn.Module, spec: TaskSpec, settings: TrainSettings) -> None:
    """Let those weights learn that the method says, and that have a part in the answer."""
    found, method = encoder_of(module), settings.method
    if method in ("frozen", "lora"):
        if found is None:
            raise TrainError(f"method={method!r} fixes a Prithvi encoder; {spec.name!r} has none, give method='full'")
        found[1].requires_grad_(False)
        if method == "lora":
            adapt(found[1], settings.lora_rank)
    elif method == "head":
        module.requires_grad_(False)
        for layer in output_layers(module, spec).values():
            layer.requires_grad_(True)
    for idle in _idle(module, spec):
        idle.requires_grad_(False)


def _idle(module: nn.Module, spec: TaskSpec) -> Iterator[nn.Module]:
    """Yield the parts that have no say in the answer: of ranks, torch wants a gradient for all that learns."""
    found, part = encoder_of(module), published_part(module)
    if isinstance(part, MmsegModel):
        yield part.auxiliary_head
    if found is None:
        return
    told = {"time": found[1].temporal_embed_enc, "location": found[1].location_embed_enc}
    yield from (coding for name, coding in told.items() if coding is not None and name not in spec.coords)
    if isinstance(part, PixelwiseModel) and part.layers is not None and part.layers[-1] < len(found[1].blocks) - 1:
        yield from found[1].blocks[part.layers[-1] + 1 :]
        yield found[1].norm


def train_mode(module: nn.Module) -> None:
    """Put a module in training mode, but not what does not learn: its batch norms keep their statistics."""
    module.train()
    for part in module.modules():
        weights = list(part.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            part.eval()


def parameter_groups(module: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
    """Return the weights that learn, in groups of equal learning rate and weight decay, as an optimizer takes them.

    The learning rate of block k of n of the encoder is ``layer_decay ** (n - k)`` times that of the decoder, that of
    its embedding ``layer_decay ** (n + 1)`` (Clark et al. 2020, as in BEiT). Biases, norms and tokens do not decay.
    ``scale`` is a group's learning rate as a share of the run's.
    """
    found = encoder_of(module)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    top = 0 if found is None else len(found[1].blocks) + 1
    for name, weight in module.named_parameters():
        if not weight.requires_grad:
            continue
        depth = top if found is None else _depth(name, found[0], top)
        decays = weight.ndim > 1 and not name.endswith("_token")
        group = groups.setdefault(
            (depth, decays),
            {
                "params": [],
                "scale": settings.layer_decay ** (top - depth),
                "weight_decay": settings.weight_decay if decays else 0.0,
            },
        )
        group["params"].append(weight)
    if not groups:
        raise TrainError(f"method={settings.method!r} leaves no weight to learn; give method='full'")
    return [groups[key] for key in sorted(groups)]


def _depth(name: str, encoder: str, top: int) -> int:
    """Return how deep a parameter lies: 0 for the embedding, 1 for the first block, ``top`` behind the encoder."""
    if not name.startswith(f"{encoder}."):
        return top
    inner = name.removeprefix(f"{encoder}.").split(".")
    if inner[0] == "blocks":
        return int(inner[1]) + 1
    return top - 1 if inner[0] == "norm" else 0


def learned(module: nn.Module) -> dict[str, Tensor]:
    """Return what training changes in a module: the weights that learn, and running statistics."""
    fixed = {name for name, weight in module.named_parameters() if not weight.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in fixed}


def put_learned(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back what `learned` returned of a module that was started alike."""
    expected = set(learned(module))
    if expected != set(state):
        raise TrainError(f"a checkpoint of other weights: {sorted(expected ^ set(state))[:3]} are not in both")
    module.load_state_dict(state, strict=False)
