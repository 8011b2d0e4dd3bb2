"""Weights files as they were published, with random values: the same keys, shapes and wrappers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xgfm.models.spec import TaskSpec

Shapes = dict[str, list[int]]


def expanded(entry: dict[str, Any]) -> Shapes:
    shapes: Shapes = {}
    for key, facts in entry.items():
        names = [key.replace("{i}", str(i)) for i in range(facts["count"])] if "count" in facts else [key]
        shapes.update(dict.fromkeys(names, facts["shape"]))
    return shapes


def mmseg_shapes(*, depth: int, frames: int, classes: int) -> Shapes:
    """Keys of the EO 1.0 fine-tunes, whose files no layout was stored of; counts of both are published."""
    width = 768 * frames
    shapes: Shapes = {
        "backbone.cls_token": [1, 1, 768],
        "backbone.pos_embed": [1, 1 + 196 * frames, 768],
        "backbone.patch_embed.proj.weight": [768, 6, 1, 16, 16],
        "backbone.patch_embed.proj.bias": [768],
        "backbone.norm.weight": [768],
        "backbone.norm.bias": [768],
    }
    for i in range(depth):
        linears = {"attn.qkv": (2304, 768), "attn.proj": (768, 768), "mlp.fc1": (3072, 768), "mlp.fc2": (768, 3072)}
        for name, (out, given) in linears.items():
            shapes[f"backbone.blocks.{i}.{name}.weight"] = [out, given]
            shapes[f"backbone.blocks.{i}.{name}.bias"] = [out]
        for name in ("norm1", "norm2"):
            shapes[f"backbone.blocks.{i}.{name}.weight"] = shapes[f"backbone.blocks.{i}.{name}.bias"] = [768]
    for part in ("neck.fpn1", "neck.fpn2"):
        for layer in ("0", "3"):
            shapes[f"{part}.{layer}.weight"] = [width, width, 2, 2]
            shapes[f"{part}.{layer}.bias"] = [width]
        shapes[f"{part}.1.ln.weight"] = shapes[f"{part}.1.ln.bias"] = [width]
    for head, convs in (("decode_head", 1), ("auxiliary_head", 2)):
        for i in range(convs):
            shapes[f"{head}.convs.{i}.conv.weight"] = [256, width if i == 0 else 256, 3, 3]
            for name in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{head}.convs.{i}.bn.{name}"] = [256]
            shapes[f"{head}.convs.{i}.bn.num_batches_tracked"] = []
        shapes[f"{head}.conv_seg.weight"] = [classes, 256, 1, 1]
        shapes[f"{head}.conv_seg.bias"] = [classes]
    return shapes


OWN_STORAGE = 150_000_000
"""Parameters of the largest file that is written in full; in larger ones the tensors are windows of one storage, which
torch.save writes once: the same keys, shapes and reading, without gigabytes of disk."""


def random_state(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Values that let signals through: small weights, scales near 1, whole step counts; each tensor has its own."""
    counts = {key: int(np.prod(shape)) for key, shape in shapes.items()}
    room = max(counts.values())
    pool = (torch.rand(room + 1000 * len(shapes), generator=torch.Generator().manual_seed(0)) - 0.5) * 0.1
    state = {}
    for index, (key, shape) in enumerate(shapes.items()):
        values = pool[1000 * index :][: counts[key]].reshape(shape)
        if not shape:
            state[key] = torch.tensor(100 + index)
        elif len(shape) == 1 and key.endswith(("weight", "running_var", "scale")):
            state[key] = values + 1
        else:
            state[key] = values.clone() if sum(counts.values()) < OWN_STORAGE else values
    return state


def write_task(folder: Path, spec: TaskSpec, shapes: Shapes) -> Path:
    """Write a fine-tune under its published name, wrapped as its trainer wrapped it."""
    assert spec.weights is not None
    path = folder / str(spec.weights.filename)
    state = random_state(shapes)
    if spec.weights.layout == "mmseg":
        content = {"meta": {"mIoU": np.float64(0.5), "epoch": np.int64(3)}, "state_dict": state, "optimizer": {}}
    else:
        content = {"state_dict": state, "hyper_parameters": {"lr": 1e-4}}
    torch.save(content, path)
    return path


def layouts_of(parity: Path) -> dict[str, Shapes]:
    """Return key and shape of every tensor of the published files, by layout."""
    entries = json.loads((parity / "state_dict_layouts.json").read_text())
    return {name: expanded(entry) for name, entry in entries.items() if not name.startswith("_")}
