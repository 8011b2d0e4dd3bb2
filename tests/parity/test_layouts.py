"""Every published file layout at full size: random values written as the file, loaded by path, run once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_files import Shapes, layouts_of, mmseg_shapes, random_state, write_task

from xgfm.errors import CheckpointError
from xgfm.models import handle as handle_module
from xgfm.models.build import build_model, build_task
from xgfm.models.handle import load_model, load_task
from xgfm.models.published import MODELS, TASKS
from xgfm.models.quirks import published_part
from xgfm.models.spec import TaskSpec

FILE = "state_dict_layouts"

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
    return layouts_of(parity)


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Gigabytes of modules and files go when the test does."""
    monkeypatch.setattr(handle_module, "_LOADED", {})
    yield
    for path in tmp_path.iterdir():
        path.unlink()


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
    module = load_task(write_task(tmp_path, spec, shapes)).load()
    assert_equal(module, random_state(shapes), lambda key: key)
    runs(module, spec)


def runs(module: torch.nn.Module, spec: TaskSpec) -> None:
    with torch.inference_mode():
        logits = module(torch.randn(1, len(spec.bands), spec.frames, 32, 48))
    assert logits.shape == (1, len(spec.classes), 32, 48)
    assert logits.isfinite().all()
    assert logits.std() > 0
