"""Every published file layout at full size: random values written as the file, loaded by path, run once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xgfm.errors import CheckpointError
from xgfm.models import handle as handle_module
from xgfm.models.build import build_model, build_task
from xgfm.models.handle import load_model, load_task
from xgfm.models.published import MODELS, TASKS
from xgfm.models.quirks import published_part
from xgfm.models.spec import TaskSpec

FILE = "state_dict_layouts"
Shapes = dict[str, list[int]]

MODEL_LAYOUTS = {
    "prithvi_eo_v1_100": "prithvi-eo-1.0-100m",
    "prithvi_eo_v2_tiny_tl": "prithvi-eo-2.0-tiny-tl",
    "prithvi_eo_v2_100_tl": "prithvi-eo-2.0-100m-tl",
    "prithvi_eo_v2_300": "prithvi-eo-2.0-300m",
    "prithvi_eo_v2_300_tl": "prithvi-eo-2.0-300m-tl",
    "prithvi_eo_v2_600": "prithvi-eo-2.0-600m",
    "prithvi_eo_v2_600_tl": "prithvi-eo-2.0-600m-tl",
}

CROP_V2 = replace(
    TASKS["burn"],
    name="crop-v2",
    model=replace(MODELS["prithvi-eo-2.0-300m-tl"], frames=3),
    classes=TASKS["crop"].classes,
    frames=3,
)
TASK_LAYOUTS = {
    "ft_burnscars_300": TASKS["burn"],
    "ft_sen1floods11_300_tl": TASKS["flood"],
    "ft_multicrop_300_tl_unet_t3": CROP_V2,
}


@pytest.fixture
def layouts(parity: Path, record_property: Any) -> dict[str, Shapes]:
    record_property("parity file", FILE)
    entries = json.loads((parity / f"{FILE}.json").read_text())
    return {name: expanded(entry) for name, entry in entries.items() if not name.startswith("_")}


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Gigabytes of modules and files go when the test does."""
    monkeypatch.setattr(handle_module, "_LOADED", {})
    yield
    for path in tmp_path.iterdir():
        path.unlink()


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


def assert_equal(module: torch.nn.Module, state: dict[str, torch.Tensor], names: Any) -> None:
    """Every tensor of the file is in the module under its own name, apart from the position tables."""
    ours = published_part(module).state_dict()
    kept = {names(key): tensor for key, tensor in state.items() if not key.endswith("pos_embed")}
    assert set(ours) == set(kept)
    for name, tensor in kept.items():
        assert torch.equal(ours[name], tensor), name


def v2_name(key: str) -> str:
    if key.startswith(("encoder.", "decoder.")):
        return key
    return f"decoder.{key}" if "decoder" in key or key == "mask_token" else f"encoder.{key}"


@pytest.mark.parametrize("layout", [*MODEL_LAYOUTS, *TASK_LAYOUTS])
def test_architecture_has_exactly_the_published_keys(layouts: dict[str, Shapes], layout: str) -> None:
    with torch.device("meta"):
        if layout in MODEL_LAYOUTS:
            ours, names = build_model(MODELS[MODEL_LAYOUTS[layout]]), v2_name
        else:
            ours, names = published_part(build_task(TASK_LAYOUTS[layout])), lambda key: key.removeprefix("model.")
    published = {names(key): shape for key, shape in layouts[layout].items() if not key.endswith("pos_embed")}
    assert {key: list(tensor.shape) for key, tensor in ours.state_dict().items()} == published


@pytest.mark.slow
@pytest.mark.parametrize("layout", MODEL_LAYOUTS)
def test_published_models_load_and_run(layouts: dict[str, Shapes], tmp_path: Path, layout: str) -> None:
    spec = MODELS[MODEL_LAYOUTS[layout]]
    path = tmp_path / str(spec.weights and spec.weights.filename)
    state = random_state(layouts[layout])
    torch.save(state, path)
    if spec.weights and spec.weights.sha256:
        with pytest.raises(CheckpointError, match=f"expected {spec.weights.sha256}"):
            load_model(path).load()
    module = load_model(path, spec.name).load()
    assert_equal(module, state, v2_name)
    patch = spec.patch_size[1]
    with torch.inference_mode():
        out = module(torch.randn(1, 6, 1, 2 * patch, 3 * patch), mask_ratio=0.5)
    assert out.prediction.isfinite().all()
    assert out.prediction.std() > 0


@pytest.mark.slow
@pytest.mark.parametrize("layout", TASK_LAYOUTS)
def test_published_fine_tunes_load_and_run(layouts: dict[str, Shapes], tmp_path: Path, layout: str) -> None:
    spec = TASK_LAYOUTS[layout]
    state = random_state(layouts[layout])
    known = spec.name in TASKS
    path = tmp_path / (spec.weights.filename if known and spec.weights else "another.ckpt")
    content = {"state_dict": {**state, "criterion.weight": torch.ones(2)}, "hyper_parameters": {"lr": 1e-4}}
    torch.save(content, path)
    module = (load_task(path) if known else load_task(path, spec)).load()
    assert_equal(module, state, lambda key: key.removeprefix("model."))
    runs(module, spec)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "keys", "elements"),
    [("flood-v1", 184, 99_964_679), ("burn-v1", 184, 99_964_679), ("crop", 112, 140_331_805)],
)
def test_published_v1_fine_tunes_load_and_run(tmp_path: Path, name: str, keys: int, elements: int) -> None:
    spec = TASKS[name]
    shapes = mmseg_shapes(depth=spec.model.depth, frames=spec.frames, classes=len(spec.classes))
    assert len(shapes) == keys
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == elements
    state = random_state(shapes)
    path = tmp_path / str(spec.weights and spec.weights.filename)
    torch.save({"meta": {"mIoU": np.float64(0.5), "epoch": np.int64(3)}, "state_dict": state, "optimizer": {}}, path)
    module = load_task(path).load()
    assert_equal(module, state, lambda key: key)
    runs(module, spec)


def runs(module: torch.nn.Module, spec: TaskSpec) -> None:
    with torch.inference_mode():
        logits = module(torch.randn(1, len(spec.bands), spec.frames, 32, 48))
    assert logits.shape == (1, len(spec.classes), 32, 48)
    assert logits.isfinite().all()
    assert logits.std() > 0
