"""The training set as an encoder sees it: against scikit-learn, SciPy and the encoder's own features."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from field_chips import FRAMES, SIZE, field, plan_of, write_small_chips
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import percentileofscore
from sklearn.covariance import LedoitWolf, ledoit_wolf

from xgfm.errors import CheckpointError, TaskError, TrainError
from xgfm.models import fetch
from xgfm.models.build import build_task
from xgfm.models.domain import Domain, encoder_in, enlarged, load_domain, save_domain, watched
from xgfm.models.folder import add_domain, save_task
from xgfm.models.handle import load_task, register_task
from xgfm.models.spec import TaskSpec
from xgfm.train.chips.chips import Chips, write_chips
from xgfm.train.loop.passes import Passes
from xgfm.train.result import domain as domain_module
from xgfm.train.result.domain import _normal, fit_domain, shrunk_covariance

LAYER = 2
UNET = {"family": "unet", "widths": [4, 8]}
PROBE = {"family": "probe", "head": "linear", "layer": 1}
FAMILIES: dict[str, TaskSpec] = {
    "unet on an encoder": small.task(),
    "one block": small.task(small.FCN),
    "mmseg, scrambled": small.task({**small.MMSEG, "quirk": {"name": "PlanesDateByDate"}}),
    "enlarged": small.task({**small.FCN, "quirk": {"name": "Resized", "window": 32, "resized": 48}}),
    "probe": small.task(PROBE),
}


def seeded(spec: TaskSpec) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_task(spec).eval().requires_grad_(False)


def two_frames(**changes: Any) -> TaskSpec:
    return small.task(model=small.model(frames=FRAMES), frames=FRAMES, **changes)


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Chips:
    return write_small_chips(tmp_path_factory.mktemp("chips") / "chips.zarr")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_task(seeded(two_frames()), two_frames(), tmp_path / "task")


def toy_domain(frames: int = 2, width: int = 3, seed: int = 0) -> Domain:
    rng = np.random.default_rng(seed)
    nearer = np.sort(rng.random(11))
    parts = (rng.normal(size=(frames, width)), rng.normal(size=(frames, width, width)), nearer)
    return Domain(1, *(torch.from_numpy(part).float() for part in parts))


# ---- the distance


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.integers(2, 60), st.integers(1, 12))
def test_covariance_is_shrunk_as_by_scikit_learn(seed: int, count: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(count, width)) @ rng.normal(size=(width, width))
    values -= values.mean(0)
    expected, _ = ledoit_wolf(values, assume_centered=True)
    np.testing.assert_allclose(shrunk_covariance(values), expected, atol=1e-9 * np.abs(expected).max())


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.integers(1, 3))
def test_distance_is_that_of_mahalanobis(seed: int, frames: int) -> None:
    rng = np.random.default_rng(seed)
    known = rng.normal(size=(200, frames, 5)) @ rng.normal(size=(5, 5)) * [1, 10, 100, 0.1, 1] + 3
    means, whitens = zip(*(_normal(known[:, t].astype("float32")) for t in range(frames)), strict=True)
    domain = Domain(0, *(torch.tensor(np.stack(p)).float() for p in (means, whitens)), torch.zeros(2))
    others = rng.normal(size=(7, frames, 5)) * 20
    squares = []
    for t in range(frames):
        mean, spread = known[:, t].mean(0), known[:, t].std(0)
        oracle = LedoitWolf(assume_centered=True).fit((known[:, t] - mean) / spread)
        squares.append(oracle.mahalanobis((others[:, t] - mean) / spread) / 5)
    said = domain.distance(torch.tensor(others).float()[:, :, None, None])[:, 0, 0]
    np.testing.assert_allclose(said, np.sqrt(np.mean(squares, axis=0)), rtol=1e-3)


def test_feature_that_never_changes_is_no_division_by_zero() -> None:
    features = np.random.default_rng(0).normal(size=(50, 3)).astype("float32")
    features[:, 1] = 7
    mean, whiten = _normal(features)
    assert np.isfinite(mean).all()
    assert np.isfinite(whiten).all()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 10, width=32), min_size=1, max_size=20), st.integers(2, 30), st.integers(0, 9))
def test_share_is_the_percentile_among_held_out_patches(asked: list[float], levels: int, seed: int) -> None:
    nearer = np.sort(np.random.default_rng(seed).gamma(2, 2, levels)).astype("float32")
    domain = Domain(0, torch.zeros(1, 1), torch.ones(1, 1, 1), torch.from_numpy(nearer))
    said = domain.share(torch.tensor(asked, dtype=torch.float32)).numpy()
    expected = np.interp(np.float32(asked), nearer, np.linspace(0, 1, levels))
    np.testing.assert_allclose(said, expected, atol=2e-4)
    assert ((said >= 0) & (said <= 1)).all()
    order = np.argsort(asked)
    assert (np.diff(said[order]) >= 0).all()


def test_share_where_many_patches_lie_equally_far_is_between_0_and_1() -> None:
    domain = Domain(0, torch.zeros(1, 1), torch.ones(1, 1, 1), torch.tensor([1.0, 1.0, 1.0]))
    said = domain.share(torch.tensor([0.5, 1.0, 2.0])).tolist()
    assert said[0] == 0.0
    assert said[2] == 1.0
    assert 0 <= said[1] <= 1


# ---- what is watched


@pytest.mark.parametrize("spec", FAMILIES.values(), ids=list(FAMILIES))
@pytest.mark.parametrize("layer", [0, 1])
def test_tokens_are_the_features_of_the_encoder(spec: TaskSpec, layer: int) -> None:
    module, x = seeded(spec), torch.randn(2, 6, 3, 32, 32)
    with watched(module, layer) as seen:
        module(x)
        module(torch.randn(1, 6, 3, 32, 32))  # as test-time augmentation does: the first call counts
    encoder = encoder_in(module)
    assert encoder is not None
    given: list[torch.Tensor] = []
    hook = encoder.patch_embed.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    module(x)
    hook.remove()
    (tokens,) = encoder.forward_features(given[0], layers=[layer])
    side = 6 if "quirk" in spec.architecture and spec.architecture["quirk"]["name"] == "Resized" else 4
    assert seen[0].shape == (2, 3, side, side, 32)
    torch.testing.assert_close(seen[0].flatten(1, 3), tokens[:, 1:])
    assert len(seen) == 1
    assert not encoder.blocks[layer]._forward_hooks


def test_last_block_is_normalised_as_by_embed() -> None:
    module, x = seeded(small.task()), torch.randn(1, 6, 3, 32, 32)
    with watched(module, 3) as seen:
        module(x)
    torch.testing.assert_close(seen[0].flatten(1, 3), module.encoder(x)[:, 1:])


def test_each_pixel_has_the_value_of_its_patch() -> None:
    plain, resized = seeded(small.task()), seeded(FAMILIES["enlarged"])
    values = torch.arange(36.0).reshape(1, 6, 6)
    blocks = values[:, :4, :4].repeat_interleave(8, 1).repeat_interleave(8, 2)
    torch.testing.assert_close(enlarged(plain, values[:, :4, :4], (32, 32)), blocks)
    torch.testing.assert_close(enlarged(plain, values[:, :4, :4], (29, 26)), blocks[:, :29, :26])  # was padded
    pixel = (torch.arange(32) * 1.5).long() // 8  # of the enlarged window
    torch.testing.assert_close(enlarged(resized, values, (32, 32)), values[:, pixel[:, None], pixel])


# ---- files


def test_domain_comes_back_equal(tmp_path: Path) -> None:
    domain, spec = toy_domain(), small.task()
    handle = load_task(save_task(seeded(spec), spec, tmp_path, domain=domain))
    again = handle.load_domain()
    assert again.layer == domain.layer
    for name in ("mean", "whiten", "nearer"):
        torch.testing.assert_close(getattr(again, name), getattr(domain, name), rtol=0, atol=0)
    assert handle.load_domain() is again
    assert json.loads((tmp_path / "config.json").read_text())["domain"]["sha256"] == handle.domain
    assert (tmp_path / "domain.safetensors").stat().st_mode & 0o077 == (tmp_path / "config.json").stat().st_mode & 0o077


def test_folder_of_before_loads_without(tmp_path: Path) -> None:
    handle = load_task(save_task(seeded(small.task()), small.task(), tmp_path))
    assert handle.domain == ""
    with pytest.raises(TaskError, match=r"xgfm\.fit_domain\(task, chips\)"):
        handle.load_domain()


def test_domain_is_part_of_what_a_graph_is_named_by(tmp_path: Path) -> None:
    spec, module = small.task(), seeded(small.task())
    one, other = (
        load_task(save_task(module, spec, tmp_path / str(k), domain=toy_domain(seed=k))).__dask_tokenize__()
        for k in (0, 1)
    )
    assert one[:2] == other[:2]
    assert one != other


def test_new_weights_drop_the_domain_of_the_old_ones(tmp_path: Path) -> None:
    save_task(seeded(small.task()), small.task(), tmp_path, domain=toy_domain())
    handle = load_task(save_task(seeded(small.task()), small.task(), tmp_path))
    assert handle.domain == ""
    assert not (tmp_path / "domain.safetensors").exists()


def test_another_file_is_refused(tmp_path: Path) -> None:
    spec, module = small.task(), seeded(small.task())
    save_task(module, spec, tmp_path / "a", domain=toy_domain(seed=1))
    save_task(module, spec, tmp_path / "b", domain=toy_domain(seed=2))
    shutil.copy(tmp_path / "a" / "domain.safetensors", tmp_path / "b")
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_task(tmp_path / "b").load_domain()


def test_domain_of_other_weights_is_refused(tmp_path: Path) -> None:
    save_domain(toy_domain(), tmp_path / "domain.safetensors", "a" * 64)
    (tmp_path / "model.safetensors").touch()
    digest = fetch.sha256_of(tmp_path / "domain.safetensors")
    with pytest.raises(CheckpointError, match=r"fitted to weights aaaaaaaaaaaa\.\.\., these are bbbbbbbbbbbb"):
        load_domain(f"file:{tmp_path / 'model.safetensors'}", digest, "b" * 64, "cpu")


@pytest.mark.parametrize("content", [b"", b"nonsense" * 10, None], ids=["empty", "no safetensors", "other tensors"])
def test_file_that_is_no_domain_is_refused(tmp_path: Path, content: bytes | None) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "domain.safetensors"
    if content is None:
        save_file({"x": torch.zeros(2)}, path, metadata={"xgfm": "{}"})
    else:
        path.write_bytes(content)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="is no readable domain"):
        load_domain(f"file:{tmp_path / 'model.safetensors'}", fetch.sha256_of(path), "b" * 64, "cpu")


def test_folder_whose_domain_was_left_behind_says_so(tmp_path: Path) -> None:
    handle = load_task(save_task(seeded(small.task()), small.task(), tmp_path, domain=toy_domain(seed=7)))
    (tmp_path / "domain.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no domain\.safetensors beside the weights"):
        handle.load_domain()


@pytest.mark.parametrize("domain", ["text", [], {"sha": 1}])
def test_configuration_with_a_bad_domain_is_refused(tmp_path: Path, domain: Any) -> None:
    save_task(seeded(small.task()), small.task(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "domain": domain}))
    with pytest.raises(CheckpointError, match=r"no readable config\.json"):
        load_task(tmp_path)


def test_hub_is_asked_for_the_file_of_the_same_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(fetch, "_from_hub", lambda source: asked.append(source) or Path("here"))
    fetch.beside("hub:owner/name/model.safetensors@abc", "domain.safetensors")
    assert asked == ["hub:owner/name/domain.safetensors@abc"]


# ---- fitting


def features_of(task: Path, chips: Chips, split: str, layer: int) -> np.ndarray:
    """``(patch, T, D)`` of chips of the window's size, from the encoder alone; of patches with data inside the halo."""
    handle, sample = load_task(task), chips.read(chips.indexes(split))
    spec = handle.spec
    mean, std = (np.array(v)[:, None, None] for v in (spec.statistics.mean, spec.statistics.std))
    x = np.where(sample.image == -9999, 0, (sample.image - mean) / std).astype("float32").swapaxes(1, 2)
    with torch.no_grad():
        (tokens,) = handle.load().encoder.forward_features(torch.from_numpy(x), layers=[layer])
    grid = tokens[:, 1:].reshape(len(x), FRAMES, 4, 4, 32).permute(0, 2, 3, 1, 4).numpy()
    shown = sample.valid.copy()
    shown[:, : spec.halo] = shown[:, -spec.halo :] = shown[:, :, : spec.halo] = shown[:, :, -spec.halo :] = False
    return grid[shown.reshape(-1, 4, 8, 4, 8).any((2, 4))]


def test_domain_is_that_of_the_training_split_and_far_is_what_the_held_out_say(folder: Path, chips: Chips) -> None:
    handle = fit_domain(folder, chips)
    domain = handle.load_domain()
    assert domain.layer == 2  # three quarters of four blocks
    training, held_out = (features_of(folder, chips, split, 2) for split in ("train", "val"))
    assert len(training) == 8 * 16 - 4  # of the first chip, the first rows are missing but for the halo
    np.testing.assert_allclose(domain.mean, training.mean(0), atol=1e-4)
    squares = []
    for t in range(FRAMES):
        mean, spread = training[:, t].mean(0), training[:, t].std(0)
        oracle = LedoitWolf(assume_centered=True).fit((training[:, t] - mean) / spread)
        squares.append(oracle.mahalanobis((held_out[:, t] - mean) / spread) / 32)
    distances = np.sqrt(np.mean(squares, axis=0))
    np.testing.assert_allclose(domain.nearer[[0, -1]], [distances.min(), distances.max()], rtol=1e-3)
    shares = domain.share(torch.from_numpy(distances).float()).numpy()
    ranks = [percentileofscore(distances, d, kind="mean") / 100 for d in distances]
    np.testing.assert_allclose(shares, ranks, atol=1 / len(distances))


def test_probe_is_watched_where_it_ends(tmp_path: Path, chips: Chips) -> None:
    spec = two_frames(architecture={**PROBE, "layer": 0})
    handle = fit_domain(save_task(seeded(spec), spec, tmp_path), chips)
    assert handle.load_domain().layer == 0


def test_seed_draws_the_same_domain(folder: Path, chips: Chips) -> None:
    assert fit_domain(folder, chips).domain == fit_domain(folder, chips, seed=0).domain


def test_training_chips_are_parted_where_none_are_held_out(tmp_path: Path, folder: Path) -> None:
    cube, label = field()
    plan = plan_of(label).assign(split="train")
    chips = write_chips(cube, label, tmp_path / "chips.zarr", plan, size=SIZE)
    domain = fit_domain(folder, chips).load_domain()
    assert bool((domain.nearer > 0).all())


def test_more_patches_than_are_kept_are_drawn_from(folder: Path, chips: Chips, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = load_task(folder)
    passes = Passes(handle.load(), handle.spec, chips, "cpu")
    everything = domain_module._features(passes, LAYER, chips.indexes("train"), 0)
    monkeypatch.setattr(domain_module, "_PATCHES", 9)
    monkeypatch.setattr(domain_module, "_AT_ONCE", 1)  # so that there is something to drop on the way
    some, others = (domain_module._features(passes, LAYER, chips.indexes("train"), seed) for seed in (0, 1))
    assert some.shape == others.shape == (9, FRAMES, 32)
    assert not np.array_equal(some, others)
    away = np.abs(some[:, None] - everything[None]).max((2, 3))
    assert (away.min(1) < 1e-4).all()  # each is one of all
    assert len(set(away.argmin(1))) == 9


def test_chips_of_one_place_are_refused(tmp_path: Path, folder: Path) -> None:
    cube, label = field()
    plan = plan_of(label).assign(split="train", group=0)
    chips = write_chips(cube, label, tmp_path / "chips.zarr", plan, size=SIZE)
    with pytest.raises(TrainError, match="of one place only; cut more chips, with a validation split"):
        fit_domain(folder, chips)


def test_task_without_a_folder_of_its_own_is_written_into_one(tmp_path: Path, chips: Chips) -> None:
    spec = two_frames(name="registered")
    register_task(spec, build=seeded)
    with pytest.raises(TaskError, match="give folder="):
        fit_domain("registered", chips)
    handle = fit_domain("registered", chips, folder=tmp_path / "task")
    assert handle.load_domain().mean.shape == (FRAMES, 32)
    assert handle.spec == spec


def test_task_without_an_encoder_is_refused(tmp_path: Path, chips: Chips) -> None:
    spec = two_frames(architecture=UNET)
    with pytest.raises(TaskError, match="no Prithvi-shaped encoder"):
        fit_domain(save_task(seeded(spec), spec, tmp_path), chips)


def test_chips_of_other_frames_or_bands_are_refused(tmp_path: Path, chips: Chips) -> None:
    three = save_task(seeded(small.task()), small.task(), tmp_path / "three")
    with pytest.raises(TrainError, match="takes 3 frames, the chips have 2"):
        fit_domain(three, chips)
    bands = ("blue", "green", "red", "nir08", "swir16", "rededge1")
    other = small.task(model=small.model(frames=FRAMES, bands=bands), frames=FRAMES)
    with pytest.raises(TrainError, match=r"\['rededge1'\] are missing"):
        fit_domain(save_task(seeded(other), other, tmp_path / "bands"), chips)


def test_added_domain_leaves_everything_else(folder: Path, chips: Chips) -> None:
    before = json.loads((folder / "config.json").read_text())
    add_domain(toy_domain(), folder)
    fit_domain(folder, chips)  # replaces it
    after = json.loads((folder / "config.json").read_text())
    assert {name: value for name, value in after.items() if name != "domain"} == before
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "domain.safetensors", "model.safetensors"]
