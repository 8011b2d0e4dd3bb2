"""Necks, decoders, heads and whole tasks against the reference outputs of the EO 2.0 fine-tuning library."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from xgfm.models.build import build_task
from xgfm.models.checkpoint import load_into, rename
from xgfm.models.necks import (
    AggregateTokens,
    InterpolateToPyramidal,
    MaxpoolToPyramidal,
    ReshapeTokensToImage,
)
from xgfm.models.pixelwise import pad_to_even_grid
from xgfm.models.spec import ClassInfo, Statistics, TaskSpec

from .test_mae import spec_of

FILES = (
    "seg_upernet_pyramid",
    "seg_upernet_scale_modules_tl",
    "seg_unet_burnscars_like",
    "seg_unet_t3_headmlp",
    "seg_fcn_t3",
    "seg_linear",
    "reg_fcn_pixelshuffle",
)


def task_of(reference: Any, **decoder: Any) -> TaskSpec:
    config = reference.json("config")
    necks = [{k: v for k, v in neck.items() if k != "effective_time_dim"} for neck in config["necks"]]
    model = spec_of(config["encoder"], eps=float(reference.facts["layernorm_eps"]))
    return TaskSpec(
        name="fixture",
        title="",
        model=model,
        statistics=Statistics((0.0,) * 6, (1.0,) * 6),
        classes=tuple(ClassInfo(str(k), "#000000") for k in range(config["num_classes"] or 0)),
        kind=config["task"],
        frames=model.frames,
        window=model.image_size,
        architecture={
            "family": "pixelwise",
            "necks": necks,
            "decoder": {"name": config["decoder"], **config["decoder_kwargs"], **decoder},
            "head": config["head_kwargs"],
        },
    )


def module_of(reference: Any, task: TaskSpec) -> nn.Module:
    module = build_task(task)
    load_into(module, rename(reference.under("state/"), "terratorch"), "fixture")
    return module.eval()


def images(x: torch.Tensor) -> torch.Tensor:
    return x if x.ndim == 5 else x[:, :, None]


def logits(module: nn.Module, given: dict[str, torch.Tensor], regression: bool) -> torch.Tensor:
    out = module(images(given["x"]), given.get("temporal_coords"), given.get("location_coords"))
    return out.squeeze(1) if regression else out


@pytest.mark.parametrize("file", FILES)
def test_whole_tasks_match(reference: Any, same: Any, file: str) -> None:
    unet = "unet" in file
    module = module_of(reference, task_of(reference, **({"last_enlarges": False} if unet else {})))
    base = reference.under("base/")
    maps = module.feature_maps(images(base["x"]), base.get("temporal_coords"), base.get("location_coords"))
    for index, ours in enumerate(maps):
        same("necks, decoders, logits", ours, base[f"neck/{index}"])
    same("necks, decoders, logits", module.decoder(maps), base["decoder"])
    for case in ("base", "pad", "bigger"):
        given = reference.under(f"{case}/")
        if given:
            same("necks, decoders, logits", logits(module, given, "reg" in file), given["logits"])
        if "x_padded" in given:
            same("exact", pad_to_even_grid(images(given["x"]), (1, 8, 8))[:, :, 0], given["x_padded"])


@pytest.mark.parametrize("file", [name for name in FILES if "unet" in name])
def test_unet_of_the_older_library_matches(reference: Any, same: Any, file: str) -> None:
    module = module_of(reference, task_of(reference, last_enlarges=True))
    for case in ("base", "pad", "bigger"):
        given = reference.under(f"{case}/")
        if not given:
            continue
        maps = module.feature_maps(pad_to_even_grid(images(given["x"]), (1, 8, 8)))
        same("necks, decoders, logits", module.decoder(maps), given["decoder_x2_last"])
        same("necks, decoders, logits", logits(module, given, False), given["logits_x2_last"])


@pytest.mark.parametrize("file", ["necks"])
def test_necks_match(reference: Any, same: Any, file: str) -> None:
    tokens = [reference[f"in/tokens/{index}"] for index in range(4)]
    grid = (3, 4, 4)
    maps = ReshapeTokensToImage([8] * 4, 3)(tokens, grid)
    for index, ours in enumerate(maps):
        same("exact", ours, reference[f"out/reshape_t3/{index}"])
    same("exact", ReshapeTokensToImage([8], 3)(tokens[:1], (3, 2, 8))[0], reference["out/reshape_t3_h2/0"])
    first = [m[:1] for m in maps]
    for index, ours in enumerate(InterpolateToPyramidal([24] * 4, 3)(first, grid)):
        same("necks, decoders, logits", ours, reference[f"out/interpolate_pyramidal/{index}"])
    doubled = [F.interpolate(m, scale_factor=2, mode="nearest") for m in first]
    for index, ours in enumerate(MaxpoolToPyramidal([24] * 4, 3)(doubled, (3, 8, 8))):
        same("necks, decoders, logits", ours, reference[f"out/maxpool_pyramidal/{index}"])
    for pooling in ("mean", "max", "min", "CLS"):
        ours = AggregateTokens([8] * 4, 3, pooling=pooling)(tokens, grid)[0]
        same("necks, decoders, logits", ours, reference[f"out/aggregate_{pooling}"])


@pytest.mark.parametrize("file", ["seg_unet_burnscars_like"])
def test_the_two_unets_differ(reference: Any, file: str) -> None:
    task = task_of(reference, last_enlarges=True)
    older = module_of(reference, task)
    decoder = {**task.architecture["decoder"], "last_enlarges": False}
    newer = module_of(reference, dataclasses.replace(task, architecture={**task.architecture, "decoder": decoder}))
    x = images(reference["base/x"])
    assert (older(x) - newer(x)).abs().max() > 1e-3
