"""Where training begins: bases of every kind, methods, groups of parameters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import small
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from xgfm.errors import TaskError, TrainError
from xgfm.models import registry
from xgfm.models.build import build_model, build_task
from xgfm.models.folder import save_model, save_task
from xgfm.models.handle import load_model, load_task, register_task
from xgfm.models.mae import PrithviMAE
from xgfm.models.spec import PRITHVI_BANDS, ClassInfo, Statistics, WeightsSource, to_json
from xgfm.train.settings import TaskSettings, TrainSettings
from xgfm.train.start.layers import encoder_of, output_layers
from xgfm.train.start.lora import LowRank, merge
from xgfm.train.start.new_task import architecture, new_task
from xgfm.train.start.targets import Scale, rescale
from xgfm.train.start.tuning import learned, parameter_groups, put_learned, start_module, train_mode

OTHER = (ClassInfo("Bare", "#aaaaaa"), ClassInfo("Crop", "#00ff00"))


def facts(**changes: Any) -> Any:
    """Return what chips say of themselves."""
    kept: dict[str, Any] = {
        "bands": PRITHVI_BANDS,
        "reflectance_scale": 1e-4,
        "pixel_size": 30.0,
        "frames": 3,
        "size": 32,
        "kind": "segmentation",
        "classes": small.CLASSES,
        "units": "1",
        "statistics": SimpleNamespace(mean=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0), std=(7.0,) * 6),
    }
    return SimpleNamespace(**{**kept, **changes})


def settings(base: Any, **changes: Any) -> TrainSettings:
    return TrainSettings(chips="chips", folder="run", base=base if isinstance(base, dict) else str(base), **changes)


@pytest.fixture
def registered() -> Iterator[None]:
    before = dict(registry._REGISTERED)
    yield
    registry._REGISTERED.clear()
    registry._REGISTERED.update(before)


@pytest.fixture
def a_task(tmp_path: Path) -> Path:
    return save_task(build_task(small.task()), small.task(), tmp_path / "task")


@pytest.fixture
def a_model(tmp_path: Path) -> Path:
    return save_model(build_model(small.model()), small.model(), tmp_path / "model")


def states_equal(one: nn.Module, other: nn.Module, *, without: str = "\0") -> bool:
    mine, its = one.state_dict(), other.state_dict()
    return mine.keys() == its.keys() and all(torch.equal(mine[k], its[k]) for k in mine if not k.startswith(without))


# ---- bases


def test_a_model_gives_its_encoder(a_model: Path) -> None:
    module, spec = start_module(settings(a_model), facts())
    mae = registry.find(a_model)
    assert spec.model == mae.spec
    found = encoder_of(module)
    assert found is not None
    loaded = load_model(a_model).load()
    assert isinstance(loaded, PrithviMAE)
    assert states_equal(found[1], loaded.encoder)
    assert spec.statistics == small.model().statistics
    assert module(torch.zeros(2, 6, 3, 32, 32)).shape == (2, 3, 32, 32)


def test_a_task_gives_everything(a_task: Path) -> None:
    module, spec = start_module(settings(a_task), facts())
    assert states_equal(module, load_task(a_task).load())
    assert spec.architecture == small.task().architecture
    assert module.training
    assert all(p.requires_grad for p in module.parameters())


def test_another_legend_gets_a_new_last_layer(a_task: Path) -> None:
    module, spec = start_module(settings(a_task), facts(classes=OTHER))
    assert spec.classes == OTHER
    (name,) = output_layers(module, spec)
    loaded = load_task(a_task).load()
    differ = {k for k, v in module.state_dict().items() if v.shape != loaded.state_dict()[k].shape}
    assert differ == {f"{name}.weight", f"{name}.bias"}
    kept = {k: v for k, v in module.state_dict().items() if not k.startswith(name)}
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in kept.items())


def test_as_many_classes_of_other_names_get_a_new_last_layer_too(a_task: Path) -> None:
    renamed = tuple(ClassInfo(f"other {c.name}", c.color) for c in small.CLASSES)
    module, spec = start_module(settings(a_task), facts(classes=renamed))
    (name,) = output_layers(module, spec)
    loaded = load_task(a_task).load()
    assert not torch.equal(module.state_dict()[f"{name}.weight"], loaded.state_dict()[f"{name}.weight"])
    assert states_equal(module, loaded, without=name)


@pytest.mark.parametrize(
    ("layout", "content"),
    [
        ("terratorch", lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()}, "epoch": 3}),
        ("xgfm", lambda state: state),
    ],
)
@pytest.mark.usefixtures("registered")
def test_files_of_other_libraries_are_bases(tmp_path: Path, layout: Any, content: Any) -> None:
    spec = small.task(name="theirs", weights=WeightsSource(layout))
    source = build_task(spec)
    torch.save(content(source.state_dict()), tmp_path / "theirs.ckpt")
    register_task(spec, weights=tmp_path / "theirs.ckpt")
    module, made = start_module(settings("theirs"), facts())
    assert states_equal(module, source)
    assert made.weights is None
    by_path, _ = start_module(settings(tmp_path / "theirs.ckpt", base_spec="theirs"), facts())
    assert states_equal(by_path, source)


@pytest.mark.usefixtures("registered")
def test_mmseg_with_its_quirk_is_a_base(tmp_path: Path) -> None:
    spec = small.task(
        {**small.MMSEG, "quirk": {"name": "PlanesDateByDate"}}, name="theirs", quirks=("Mixed.",),
        weights=WeightsSource("mmseg"),
    )  # fmt: skip
    source = build_task(spec)
    torch.save({"meta": {}, "state_dict": source.model.state_dict()}, tmp_path / "theirs.pth")  # type: ignore[union-attr]
    register_task(spec, weights=tmp_path / "theirs.pth")
    module, made = start_module(settings("theirs"), facts(classes=OTHER))
    assert made.quirks == ("Mixed.",)
    assert set(output_layers(module, made)) == {"decode_head.conv_seg", "auxiliary_head.conv_seg"}
    assert states_equal(module.model.backbone, source.model.backbone)  # type: ignore[union-attr,arg-type]
    assert not any(p.requires_grad for p in module.model.auxiliary_head.parameters())  # type: ignore[union-attr]
    assert module(torch.zeros(1, 6, 3, 32, 32)).shape == (1, 2, 32, 32)


def test_a_new_decoder_on_a_tasks_encoder(a_task: Path) -> None:
    module, spec = start_module(settings(a_task, task={"decoder": "fcn"}), facts(frames=3, classes=OTHER))
    assert spec.architecture["decoder"]["name"] == "FCNDecoder"
    mine, theirs = encoder_of(module), encoder_of(load_task(a_task).load())
    assert mine is not None
    assert theirs is not None
    assert states_equal(mine[1], theirs[1])


def test_scratch_takes_the_shape_alone(a_model: Path) -> None:
    two = facts(bands=("red", "nir08"), frames=2, statistics=SimpleNamespace(mean=(1.0, 2.0), std=(1.0, 1.0)))
    torch.manual_seed(0)
    module, spec = start_module(settings(a_model, method="scratch"), two)
    assert spec.bands == ("red", "nir08")
    assert spec.model.name == "small-from-scratch"
    assert spec.licence == ""
    torch.manual_seed(0)
    again, _ = start_module(settings(a_model, method="scratch"), two)
    assert states_equal(module, again)
    assert module(torch.zeros(1, 2, 2, 32, 32)).shape == (1, 3, 32, 32)


def test_scratch_alone_is_a_small_encoder_of_the_chips_bands() -> None:
    channels = tuple(f"C{k:02d}" for k in range(1, 17))
    statistics = SimpleNamespace(mean=(1.0,) * 16, std=(2.0,) * 16)
    sensor = facts(bands=channels, frames=1, pixel_size=2000.0, statistics=statistics)
    module, spec = start_module(settings("scratch", method="scratch"), sensor)
    assert spec.statistics.mean == (1.0,) * 16
    assert spec.pixel_size == 2000.0
    assert module(torch.zeros(1, 16, 1, 32, 32)).shape == (1, 3, 32, 32)


@pytest.mark.usefixtures("registered")
def test_a_unet_is_a_base() -> None:
    record = small.task({"family": "unet", "widths": [8, 16]}, model=small.model(embed_dim=0, depth=0, num_heads=0))
    base = {"kind": "task", "spec": to_json(record)}
    module, _ = start_module(settings(base, method="scratch"), facts(classes=OTHER))
    assert encoder_of(module) is None
    assert module(torch.zeros(1, 6, 3, 32, 32)).shape == (1, 2, 32, 32)


def test_what_has_no_encoder_has_none_to_fix(tmp_path: Path) -> None:
    record = small.task({"family": "unet", "widths": [8, 16]}, model=small.model(embed_dim=0, depth=0, num_heads=0))
    folder = save_task(build_task(record), record, tmp_path / "unet")
    for method in ("frozen", "lora"):
        with pytest.raises(TrainError, match="fixes a Prithvi encoder; 'fine-tuned' has none, give method='full'"):
            start_module(settings(folder, method=method), facts())
    with pytest.raises(TrainError, match="has no encoder that decoder='fcn' could be put on"):
        start_module(settings(folder, task={"decoder": "fcn"}), facts())


# ---- what does not fit


def test_what_does_not_fit_is_refused(a_task: Path, a_model: Path) -> None:
    wrong = [
        (
            settings(a_model),
            facts(bands=("red", "nir08")),
            r"was trained on bands .*missing. Take images",
        ),
        (settings(a_task), facts(frames=1), "takes 3 frames, chips have 1; write chips with frames=3, or"),
        (settings(a_task), facts(kind="regression", classes=()), "is a segmentation, the chips are for a regression"),
        (settings(a_model, method="head"), facts(), "method='head' would leave a new unet decoder at its random"),
        (settings(a_model, task={"window": 64}), facts(), "window=64 is larger than the chips, 32 pixels"),
        (settings(a_model, task={"coords": ("time",)}), facts(), r"coords \['time'\] cannot be told to 'small'"),
    ]
    for given_settings, given_facts, said in wrong:
        with pytest.raises(TrainError, match=said):
            start_module(given_settings, given_facts)
    with pytest.raises(TaskError, match="unknown task or model"):
        start_module(settings("smal"), facts())


def test_decoders_need_blocks() -> None:
    with pytest.raises(TrainError, match="takes 4 blocks and 'small' has 2; give decoder='fcn'"):
        architecture("unet", small.model(depth=2))


# ---- the record


@pytest.mark.parametrize("decoder", ["unet", "upernet", "fcn", "linear"])
@pytest.mark.parametrize("kind", ["segmentation", "regression"])
def test_every_decoder_can_be_built(decoder: str, kind: str) -> None:
    classes = small.CLASSES if kind == "segmentation" else ()
    spec = new_task("new", small.model(), facts(kind=kind, classes=classes), task=TaskSettings(decoder=decoder))  # type: ignore[arg-type]
    answer = build_task(spec).eval()(torch.zeros(1, 6, 3, 32, 32))
    assert answer.shape == (1, 3 if kind == "segmentation" else 1, 32, 32)


def test_published_decoders_have_published_blocks() -> None:
    published = {12: [2, 5, 8, 11], 24: [5, 11, 17, 23], 32: [7, 15, 23, 31]}
    for depth, layers in published.items():
        assert architecture("unet", small.model(depth=depth))["necks"][0]["indices"] == layers


def test_statistics_are_the_bases_unless_it_is_another_sensor() -> None:
    theirs, chips = small.model().statistics, Statistics((1.0, 2.0, 3.0, 4.0, 5.0, 6.0), (7.0,) * 6, 1e-4)
    assert new_task("new", small.model(), facts()).statistics == theirs
    assert new_task("new", small.model(), facts(pixel_size=10.0)).statistics == chips
    assert new_task("new", small.model(), facts(), scratch=True).statistics == chips
    turned = facts(bands=tuple(reversed(PRITHVI_BANDS)), pixel_size=10.0)
    assert new_task("new", small.model(), turned).statistics.mean == (6.0, 5.0, 4.0, 3.0, 2.0, 1.0)


@given(size=st.integers(8, 600), image=st.sampled_from([32, 64, 224]))
def test_windows_fit_chips_and_patches(size: int, image: int) -> None:
    spec = new_task("new", small.model(image_size=image), facts(size=size))
    assert spec.window <= size
    assert spec.window % 16 == 0 or spec.window == size < 16
    assert spec.window - 2 * spec.halo > 0


def test_coordinates_are_told_where_the_encoder_knows_them() -> None:
    knows = small.model(coords=("time", "location"))
    assert new_task("new", knows, facts()).coords == ("time", "location")
    assert new_task("new", knows, facts(), task=TaskSettings(coords=("time",))).coords == ("time",)
    assert new_task("new", small.model(), facts()).coords == ()


def test_licence_goes_with_the_weights() -> None:
    licensed = small.model(licence="Apache-2.0", paper="arXiv")
    assert new_task("new", licensed, facts()).licence == "Apache-2.0"
    assert new_task("new", licensed, facts(), scratch=True).licence == ""


# ---- which weights learn


def step(module: nn.Module, given_settings: TrainSettings) -> dict[str, bool]:
    """Take a step with large gradients; return which weights and buffers have changed."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    train_mode(module)
    optimizer = torch.optim.AdamW(parameter_groups(module, given_settings), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    module(torch.randn(2, 6, 3, 32, 32, generator=generator)).square().sum().backward()
    optimizer.step()
    return {name: not torch.equal(value, before[name]) for name, value in module.state_dict().items()}


def test_full_changes_everything(a_task: Path) -> None:
    module, _ = start_module(settings(a_task), facts())
    changed = step(module, settings(a_task))
    assert all(changed.values()), [name for name, value in changed.items() if not value]


def test_frozen_keeps_the_encoder(a_task: Path) -> None:
    module, _ = start_module(settings(a_task, method="frozen"), facts())
    changed = step(module, settings(a_task, method="frozen"))
    assert {name for name, value in changed.items() if not value} == {n for n in changed if n.startswith("encoder.")}


def test_head_keeps_all_but_the_last_layer_and_the_statistics(a_task: Path) -> None:
    module, spec = start_module(settings(a_task, method="head"), facts())
    (name,) = output_layers(module, spec)
    changed = step(module, settings(a_task, method="head"))
    assert {n for n, value in changed.items() if value} == {f"{name}.weight", f"{name}.bias"}


def test_lora_begins_as_the_base_and_ends_as_an_ordinary_module(a_task: Path) -> None:
    given_settings = settings(a_task, method="lora", lora_rank=2)
    module, spec = start_module(given_settings, facts())
    x = torch.randn(1, 6, 3, 32, 32)
    plain = load_task(a_task).load()
    torch.testing.assert_close(module.eval()(x), plain(x))
    changed = step(module, given_settings)
    still = {n for n, value in changed.items() if not value and n.startswith("encoder.")}
    assert still == {n for n in changed if n.startswith("encoder.") and not n.endswith((".up", ".down"))} | {
        n for n, value in changed.items() if n.endswith(".down") and not value
    }
    step(module, given_settings)
    said = module.double().eval()(x.double())
    merged = merge(module)
    assert not any(isinstance(m, LowRank) for m in merged.modules())
    build_task(spec).load_state_dict(merged.state_dict())
    torch.testing.assert_close(merged(x.double()), said, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(said.float(), plain(x))


@pytest.mark.parametrize("method", ["full", "frozen", "head", "lora"])
def test_what_is_saved_is_enough_to_go_on(a_task: Path, method: Any) -> None:
    module, _ = start_module(settings(a_task, method=method), facts())
    step(module, settings(a_task, method=method))
    again, _ = start_module(settings(a_task, method=method), facts())
    put_learned(again, learned(module))
    assert states_equal(again, module)
    with pytest.raises(TrainError, match="a checkpoint of other weights"):
        put_learned(again, {"x": torch.zeros(1)})


def test_parts_without_a_say_do_not_learn(a_model: Path) -> None:
    """Torch's wrapper for ranks waits for the gradient of everything that learns."""
    knows = small.task(
        {**small.FCN, "necks": [{"name": "SelectIndices", "indices": [1]}, {"name": "ReshapeTokensToImage"}]},
        model=small.model(coords=("time", "location"), coords_scale_learned=True), coords=("time",),
    )  # fmt: skip
    given_settings = settings({"kind": "task", "spec": to_json(knows)}, method="scratch")
    module, _ = start_module(given_settings, facts())
    learning = [p for group in parameter_groups(module, given_settings) for p in group["params"]]
    module(torch.randn(1, 6, 3, 32, 32), torch.zeros(1, 3, 2)).sum().backward()
    assert all(weight.grad is not None for weight in learning)
    assert sum(p.requires_grad for p in module.parameters()) == len(learning)


def test_layers_learn_by_their_depth(a_model: Path) -> None:
    given_settings = settings(a_model, layer_decay=0.5, weight_decay=0.1)
    module, _ = start_module(given_settings, facts())
    names = {id(p): name for name, p in module.named_parameters()}
    scale, decay = {}, {}
    for group in parameter_groups(module, given_settings):
        for weight in group["params"]:
            scale[names[id(weight)]], decay[names[id(weight)]] = group["scale"], group["weight_decay"]
    assert set(scale) == set(names.values())
    assert scale["head.head.2.weight"] == 1
    for block in range(4):
        assert scale[f"encoder.blocks.{block}.attn.qkv.weight"] == 0.5 ** (4 - block)
    assert scale["encoder.norm.weight"] == scale["encoder.blocks.3.mlp.fc1.bias"] == 0.5
    assert scale["encoder.patch_embed.proj.weight"] == scale["encoder.cls_token"] == 0.5**5
    assert decay["encoder.cls_token"] == decay["head.head.2.bias"] == decay["encoder.blocks.0.norm1.weight"] == 0
    assert decay["encoder.patch_embed.proj.weight"] == decay["head.head.2.weight"] == 0.1


# ---- regression


@given(mean=st.floats(-300, 300), std=st.floats(0.1, 300))
def test_rescaling_and_back(mean: float, std: float) -> None:
    spec = small.task(kind="regression", classes=())
    torch.manual_seed(0)
    module = build_task(spec).eval()
    x = torch.randn(1, 6, 3, 32, 32)
    with torch.no_grad():
        before = module(x)
        after = rescale(module, spec, Scale(mean, std))(x)
        torch.testing.assert_close(after, before * std + mean, rtol=1e-3, atol=1e-3 * (abs(mean) + std))
        back = rescale(module, spec, Scale(mean, std).inverse())(x)
    torch.testing.assert_close(back, before, rtol=1e-2, atol=1e-3 * (1 + abs(mean) / std))


def test_a_regression_is_gone_on_with_on_the_scale(tmp_path: Path) -> None:
    record = small.task(kind="regression", classes=(), units="t/ha")
    source = build_task(record).eval()
    folder = save_task(source, record, tmp_path / "task")
    known = facts(kind="regression", classes=(), units="t/ha")
    x = torch.randn(1, 6, 3, 32, 32)
    module, _ = start_module(settings(folder), known, Scale(100.0, 50.0))
    torch.testing.assert_close(module.eval()(x), (source(x) - 100) / 50, rtol=1e-4, atol=1e-4)
    fresh, _ = start_module(settings(folder), facts(kind="regression", classes=(), units="m"), Scale(100.0, 50.0))
    assert not torch.allclose(fresh.eval()(x), (source(x) - 100) / 50)
