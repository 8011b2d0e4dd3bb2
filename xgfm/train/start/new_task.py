"""The record of a new task: what chips and a base make of it.

In: a base's record and the facts of chips. Out: a `TaskSpec` that `build_task` builds a module from. No weights are
opened and torch is not needed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from xgfm.errors import TrainError
from xgfm.models.spec import ModelSpec, Statistics, TaskSpec
from xgfm.train.settings import TaskSettings

if TYPE_CHECKING:
    from xgfm.train.chips.chips import ChipFacts

_OTHER_SENSOR = 0.1
"""Relative difference of pixel sizes from which on chips count as another sensor's than the base's."""
_ANEW = "-from-scratch"
"""End of the name of a model that has a known one's shape alone."""
_LEVELS = 4
"""Feature maps of the decoders that take several."""


def new_task(
    name: str,
    base: TaskSpec | ModelSpec,
    facts: ChipFacts,
    *,
    task: TaskSettings | None = None,
    scratch: bool = False,
) -> TaskSpec:
    """Return the record of a new task.

    Parameters
    ----------
    name
        Of the task.
    base
        A task, whose architecture is kept unless ``task`` asks for another decoder; or a model, which gets a decoder.
    facts
        Of the chips: what they say of classes, frames, pixel size and units is the task's.
    task
        Title, decoder, window, halo, coordinates; by default what follows from base and chips.
    scratch
        Whether weights are random: bands and statistics are then the chips', else the base's. Statistics are the chips'
        too where their pixels are of another size than the base's: another sensor.

    Raises
    ------
    TrainError
        The base's weights are for other bands, frames, or another kind of task.
    """
    task = TaskSettings() if task is None else task
    model = _model(base.model if isinstance(base, TaskSpec) else base, facts, scratch=scratch)
    old = base if isinstance(base, TaskSpec) and task.decoder is None else None
    if old is not None:
        _check_task(old, facts, scratch=scratch)
    window = _window(task, old, model, facts)
    return TaskSpec(
        name=name,
        title=task.title or (name if scratch else f"{name}, fine-tuned from {base.name}"),
        model=model,
        statistics=_statistics(base, facts, scratch=scratch),
        classes=tuple(facts.classes),
        architecture=old.architecture if old is not None else architecture(task.decoder or "unet", model),
        kind=facts.kind,
        frames=facts.frames,
        window=window,
        halo=min(old.halo if old is not None else 16, window // 8) if task.halo is None else task.halo,
        pixel_size=facts.pixel_size,
        composite=base.composite if isinstance(base, TaskSpec) else "median",
        nodata_fill=old.nodata_fill if old is not None else 0.0,
        nodata_units=old.nodata_units if old is not None else "normalised",
        coords=_coords(task, base, model),
        units=facts.units or "1",
        quirks=old.quirks if old is not None and "quirk" in old.architecture else (),
        licence="" if scratch else base.licence,
        paper="" if scratch else base.paper,
    )


def architecture(decoder: str, model: ModelSpec) -> dict[str, Any]:
    """Return the description of a decoder that fits an encoder, as `build_task` takes it.

    Four blocks, evenly spaced, feed ``"unet"`` and ``"upernet"`` through the learned pyramid; the last one alone feeds
    ``"fcn"`` and ``"linear"``. Widths are those of the published fine-tunes, less for narrower encoders.
    """
    several = decoder in ("unet", "upernet")
    if model.depth < 1:
        raise TrainError(f"{model.name!r} has no encoder that decoder={decoder!r} could be put on; leave decoder out")
    if several and model.depth < _LEVELS:
        raise TrainError(
            f"decoder={decoder!r} takes {_LEVELS} blocks and {model.name!r} has {model.depth}; give decoder='fcn'"
        )
    layers = [(k + 1) * model.depth // _LEVELS - 1 for k in range(_LEVELS)] if several else [model.depth - 1]
    necks: list[dict[str, Any]] = [{"name": "SelectIndices", "indices": layers}, {"name": "ReshapeTokensToImage"}]
    width, patch = min(512, model.embed_dim), model.patch_size[1]
    parts: dict[str, dict[str, Any]] = {
        "unet": {"name": "UNetDecoder", "channels": [max(width >> k, 8) for k in range(4)], "last_enlarges": True},
        "upernet": {"name": "UperNetDecoder", "channels": min(256, model.embed_dim)},
        "fcn": {"name": "FCNDecoder", "channels": min(256, model.embed_dim), "num_convs": _doublings(patch)},
        "linear": {"name": "LinearDecoder", "upsampling_size": patch},
    }
    if several:
        necks.append({"name": "LearnedInterpolateToPyramidal"})
    return {"family": "pixelwise", "necks": necks, "decoder": parts[decoder], "head": {}}


def small_encoder(facts: ChipFacts) -> ModelSpec:
    """Return the record of a Prithvi-shaped encoder of a million weights, for the chips' own bands."""
    return ModelSpec(
        name="small-encoder",
        title="Small Prithvi-shaped encoder",
        statistics=_of_chips(facts),
        bands=tuple(facts.bands),
        patch_size=(1, 8, 8),
        frames=facts.frames,
        embed_dim=128,
        depth=4,
        num_heads=4,
        image_size=max(facts.size // 16 * 16, 16),
        pixel_size=facts.pixel_size,
    )


def _model(model: ModelSpec, facts: ChipFacts, *, scratch: bool) -> ModelSpec:
    """Return the encoder's record: of the chips' bands where nothing is known of bands yet."""
    if facts.frames % model.patch_size[0]:
        raise TrainError(
            f"{model.name!r} takes patches of {model.patch_size[0]} frames, chips have {facts.frames}; write chips "
            "of a whole number of these: frames="
        )
    if scratch:
        step = 2 * model.patch_size[1]
        return dataclasses.replace(
            model,
            name=f"{model.name.removesuffix(_ANEW)}{_ANEW}",
            bands=tuple(facts.bands),
            statistics=_of_chips(facts),
            frames=facts.frames,
            image_size=max(facts.size // step * step, step),
            pixel_size=facts.pixel_size,
            weights=None,
            licence="",
            paper="",
        )
    check_bands(model.name, model.bands, facts.bands)
    return model


def check_bands(name: str, bands: Sequence[str], given: Sequence[str]) -> None:
    """Refuse data without a band that the weights of a base are for."""
    if missing := [band for band in bands if band not in given]:
        raise TrainError(
            f"{name!r} was trained on bands {list(bands)}; the data have {list(given)}: {missing} are missing. Take "
            "images with these, rename them as STAC names bands, or give method='scratch'"
        )


def _check_task(base: TaskSpec, facts: ChipFacts, *, scratch: bool) -> None:
    if base.kind != facts.kind:
        raise TrainError(
            f"base task {base.name!r} is a {base.kind}, the chips are for a {facts.kind}; give "
            f"base={base.model.name!r}, or task={{'decoder': ...}} for a new decoder on its encoder"
        )
    if base.frames != facts.frames and not scratch:
        raise TrainError(
            f"base task {base.name!r} takes {base.frames} frames, chips have {facts.frames}; write chips with "
            f"frames={base.frames}, or give task={{'decoder': ...}} for a new decoder on its encoder"
        )


def _statistics(base: TaskSpec | ModelSpec, facts: ChipFacts, *, scratch: bool) -> Statistics:
    own = abs(facts.pixel_size / base.pixel_size - 1) <= _OTHER_SENSOR
    if own and not scratch:
        return base.statistics
    chips, bands = _of_chips(facts), tuple(facts.bands)
    wanted = bands if scratch else (base.model.bands if isinstance(base, TaskSpec) else base.bands)
    order = [bands.index(band) for band in wanted]
    return Statistics(tuple(chips.mean[i] for i in order), tuple(chips.std[i] for i in order), chips.reflectance_scale)


def _of_chips(facts: ChipFacts) -> Statistics:
    return Statistics(facts.statistics.mean, facts.statistics.std, reflectance_scale=facts.reflectance_scale)


def _coords(task: TaskSettings, base: TaskSpec | ModelSpec, model: ModelSpec) -> Any:
    if task.coords is None:
        return tuple(coordinate for coordinate in base.coords if coordinate in model.coords)
    if unknown := [coordinate for coordinate in task.coords if coordinate not in model.coords]:
        raise TrainError(f"coords {unknown} cannot be told to {model.name!r}; it knows {list(model.coords)}")
    return task.coords


def _window(task: TaskSettings, old: TaskSpec | None, model: ModelSpec, facts: ChipFacts) -> int:
    """Return the window: the chips' size, or less where the base has seen less, in whole pairs of patches."""
    if task.window is not None:
        if task.window > facts.size:
            raise TrainError(f"window={task.window} is larger than the chips, {facts.size} pixels; give a smaller one")
        return task.window
    if old is not None:
        return min(facts.size, old.window)
    step, largest = 2 * model.patch_size[1], min(facts.size, max(model.image_size, 2 * model.patch_size[1]))
    return largest // step * step or largest


def _doublings(patch: int) -> int:
    return max(round(math.log2(patch)), 1)
