"""Records to modules: `build_model` makes a masked autoencoder, `build_task` encoder, decoder and head of a task.

In: a `ModelSpec` or a `TaskSpec`. Out: a module with random weights, in training mode, float32, on the default device.

``TaskSpec.architecture`` is JSON. A task of three frames with the learned pyramid and a UNet:

.. code-block:: python

    architecture = {
        "family": "pixelwise",
        "necks": [
            {"name": "SelectIndices", "indices": [1, 2, 4, 5]},  # blocks of the encoder, from 0, shallow to deep
            {"name": "ReshapeTokensToImage"},                    # frames join the channels
            {"name": "LearnedInterpolateToPyramidal"},           # strides 1/4, 1/2, 1 and 2 patches
        ],
        "decoder": {"name": "UNetDecoder", "channels": [128, 64, 32, 16], "last_enlarges": True},
        "head": {"dropout": 0.1, "channel_list": []},
    }

with ``TaskSpec(frames=3, model=ModelSpec(patch_size=(1, 8, 8), frames=3, image_size=112, embed_dim=128, depth=6,
num_heads=4, ...), window=112, ...)``. The names are those of `xgfm.models.necks` and `xgfm.models.decoders`, the other
entries their keyword arguments. Other families: ``"mmseg"``, the fine-tunes of Prithvi EO 1.0, ``{"family": "mmseg",
"neck_channels": 768, "head_channels": 256}``; ``"unet"``, a U-Net without a foundation model, of any bands and frames,
``{"family": "unet", "widths": [32, 64, 128]}``; ``"probe"``, an encoder with what `xgfm.probe` fitted to its features.
An entry ``"quirk"`` names a wrapper of `xgfm.models.quirks`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from xgfm.errors import TaskError
from xgfm.models.decoders import DECODERS, Decoder, LinearDecoder
from xgfm.models.fields import listed
from xgfm.models.heads import RegressionHead, SegmentationHead
from xgfm.models.mae import PrithviMAE
from xgfm.models.mmseg import MmsegModel
from xgfm.models.necks import NECKS, Neck
from xgfm.models.pixelwise import PixelwiseModel
from xgfm.models.prithvi import PrithviEncoder
from xgfm.models.probed import ProbedEncoder
from xgfm.models.quirks import PlanesDateByDate, Quirk, Resized
from xgfm.models.spec import ModelSpec, TaskSpec
from xgfm.models.unet import UNet

Part = TypeVar("Part")

QUIRKS: dict[str, type[Quirk]] = {quirk.__name__: quirk for quirk in (PlanesDateByDate, Resized)}


def build_model(spec: ModelSpec) -> PrithviMAE:
    """Build the masked autoencoder of a spec, with random weights.

    Parameters
    ----------
    spec
        Sizes and encodings.

    Returns
    -------
    PrithviMAE
    """
    return PrithviMAE(spec)


def build_task(spec: TaskSpec) -> nn.Module:
    """Build the module of a task, with random weights.

    Parameters
    ----------
    spec
        Encoder and architecture; see the module's docstring.

    Returns
    -------
    torch.nn.Module
        ``module(x, time=None, location=None)``: x ``(B, C, T, H, W)`` normalised, time ``(B, T, 2)`` year and 0-based
        day of year, location ``(B, 2)`` latitude and longitude; returns ``(B, K, H, W)``.

    Raises
    ------
    TaskError
        When the architecture names an unknown part or option.
    """
    families: dict[str, Callable[[TaskSpec], nn.Module]] = {
        "pixelwise": _pixelwise,
        "mmseg": _mmseg,
        "unet": _unet,
        "probe": _probe,
    }
    family = spec.architecture.get("family")
    if not isinstance(family, str) or family not in families:
        raise TaskError(
            f"task {spec.name!r}: architecture has family {family!r}; {sorted(families)} can be built from a record. "
            "For a module of your own give register_task(spec, build=...)"
        )
    module = families[family](spec)
    quirk = spec.architecture.get("quirk")
    return module if quirk is None else _named(QUIRKS, quirk, spec, module)


def _pixelwise(spec: TaskSpec) -> PixelwiseModel:
    frames = spec.frames // spec.model.patch_size[0]
    channels = [spec.model.embed_dim] * spec.model.depth
    necks: list[Neck] = []
    for entry in listed("necks", spec.architecture.get("necks", ())):
        necks.append(_named(NECKS, entry, spec, channels, frames))
        channels = necks[-1].channels
    decoder = _decoder(spec, channels)
    return PixelwiseModel(PrithviEncoder(spec.model), necks, decoder, _head(spec, decoder))


def _decoder(spec: TaskSpec, channels: list[int]) -> Decoder:
    entry = spec.architecture.get("decoder", {})
    if isinstance(entry, Mapping) and entry.get("name") == LinearDecoder.__name__:
        entry = {**entry, "classes": _outputs(spec)}
    return _named(DECODERS, entry, spec, channels)


def _head(spec: TaskSpec, decoder: Decoder) -> nn.Module | None:
    if not decoder.has_head:
        return None
    options = spec.architecture.get("head", {})
    if spec.kind == "regression":
        return _checked(spec, RegressionHead, options, decoder.out_channels)
    return _checked(spec, SegmentationHead, options, decoder.out_channels, _outputs(spec))


def _outputs(spec: TaskSpec) -> int:
    return 1 if spec.kind == "regression" else len(spec.classes)


def _mmseg(spec: TaskSpec) -> MmsegModel:
    frames = spec.frames // spec.model.patch_size[0]
    return _checked(spec, MmsegModel, _options(spec), PrithviEncoder(spec.model), frames, _outputs(spec))


def _unet(spec: TaskSpec) -> UNet:
    return _checked(spec, UNet, _options(spec), len(spec.bands) * spec.frames, _outputs(spec))


def _probe(spec: TaskSpec) -> ProbedEncoder:
    return _checked(spec, ProbedEncoder, _options(spec), PrithviEncoder(spec.model), _outputs(spec))


def _options(spec: TaskSpec) -> dict[str, Any]:
    return {name: value for name, value in spec.architecture.items() if name not in ("family", "quirk")}


def _named(parts: Mapping[str, Callable[..., Part]], entry: Any, spec: TaskSpec, *given: Any) -> Part:
    if not isinstance(entry, Mapping):
        raise TaskError(
            f"task {spec.name!r}: architecture has {entry!r} where a part is described by its name and options"
        )
    name = str(entry.get("name"))
    if name not in parts:
        raise TaskError(f"task {spec.name!r}: architecture names {name!r}; there are {sorted(parts)}")
    return _checked(spec, parts[name], {key: value for key, value in entry.items() if key != "name"}, *given)


def _checked(spec: TaskSpec, part: Callable[..., Part], options: Any, *given: Any) -> Part:
    try:
        return part(*given, **options)
    except TaskError:
        raise
    except (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError) as error:  # as torch refuses sizes
        reason = str(error).partition("\n")[0]  # torch adds its stack
        raise TaskError(f"task {spec.name!r}: options {options} of its architecture: {reason}") from error
