"""Records of models and tasks of a few thousand parameters, for tests that build them."""

from __future__ import annotations

from typing import Any

from xgfm.models.spec import ClassInfo, ModelSpec, Statistics, TaskSpec

CLASSES = tuple(ClassInfo(name, f"#{index:06x}") for index, name in enumerate(("Water", "Forest", "Corn")))


def model(**changes: Any) -> ModelSpec:
    """Return the record of a model of four blocks with patches of 8 pixels."""
    kept: dict[str, Any] = {
        "name": "small",
        "title": "A small model",
        "patch_size": (1, 8, 8),
        "frames": 3,
        "embed_dim": 32,
        "depth": 4,
        "num_heads": 2,
        "decoder_embed_dim": 16,
        "decoder_depth": 1,
        "decoder_num_heads": 2,
        "image_size": 32,
        "statistics": Statistics((1000.0,) * 6, (500.0,) * 6),
    }
    return ModelSpec(**{**kept, **changes})


UNET = {
    "family": "pixelwise",
    "necks": [
        {"name": "SelectIndices", "indices": [0, 1, 2, 3]},
        {"name": "ReshapeTokensToImage"},
        {"name": "LearnedInterpolateToPyramidal"},
    ],
    "decoder": {"name": "UNetDecoder", "channels": [16, 16, 8, 8], "last_enlarges": True},
    "head": {"dropout": 0.1},
}
FCN = {
    "family": "pixelwise",
    "necks": [{"name": "SelectIndices", "indices": [3]}, {"name": "ReshapeTokensToImage"}],
    "decoder": {"name": "FCNDecoder", "channels": 8, "num_convs": 2},
    "head": {},
}
MMSEG = {"family": "mmseg", "neck_channels": 16, "head_channels": 8}


def task(architecture: dict[str, Any] | None = None, **changes: Any) -> TaskSpec:
    """Return the record of a task of three frames and three classes; a UNet unless another architecture is given."""
    kept: dict[str, Any] = {
        "name": "small-task",
        "title": "A small task",
        "model": model(),
        "statistics": Statistics((1000.0,) * 6, (500.0,) * 6),
        "classes": CLASSES,
        "architecture": UNET if architecture is None else architecture,
        "frames": 3,
        "window": 32,
        "halo": 4,
    }
    return TaskSpec(**{**kept, **changes})
