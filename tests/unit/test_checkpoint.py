"""Weights files: every layout, and what is refused."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small import MMSEG, UNET, model, task
from torch import Tensor, nn

from xgfm.errors import CheckpointError
from xgfm.models.build import build_model, build_task
from xgfm.models.checkpoint import load_into, read_state, rename


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(ours: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


TABLES = {"encoder.pos_embed": torch.zeros(1, 49, 32), "decoder.decoder_pos_embed": torch.zeros(1, 49, 16)}


def test_v2_layout(tmp_path: Path) -> None:
    state = state_of(build_model(model(coords=("time", "location"), coords_scale_learned=True)))
    module = build_model(model(coords=("time", "location"), coords_scale_learned=True))
    load_into(module, read_state(saved(tmp_path / "a.pt", {**state, **TABLES}), "v2"), "a.pt")
    assert same(module, state)


def test_v1_layout_has_no_prefixes(tmp_path: Path) -> None:
    state = state_of(build_model(model()))
    flat = {name.split(".", 1)[1]: tensor for name, tensor in {**state, **TABLES}.items()}
    module = build_model(model())
    load_into(module, read_state(saved(tmp_path / "a.pt", flat), "v1"), "a.pt")
    assert same(module, state)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_terratorch_layout_and_its_wrappers(tmp_path: Path, wrapper: str | None) -> None:
    state = state_of(build_task(task()))
    file: dict[str, Any] = {f"model.{name}": tensor for name, tensor in state.items()}
    file["model.encoder.pos_embed"] = torch.zeros(1, 49, 32)
    file["model.aux_heads.fcn.0.weight"] = torch.zeros(3)
    file["criterion.weight"] = torch.ones(3)
    content = file if wrapper is None else {wrapper: file, "epoch": 3, "hyper_parameters": {"lr": 1e-4}}
    module = build_task(task())
    load_into(module, read_state(saved(tmp_path / "a.ckpt", content), "terratorch"), "a.ckpt")
    assert same(module, state)


def test_older_terratorch_segment_is_removed() -> None:
    assert list(rename({"encoder._timm_module.norm.weight": torch.zeros(1)}, "v2")) == ["encoder.norm.weight"]


def test_mmseg_layout_with_numpy_numbers(tmp_path: Path) -> None:
    spec = task({**MMSEG, "quirk": {"name": "PlanesDateByDate"}})
    state = state_of(build_task(spec).model)
    content = {
        "meta": {"epoch": np.int64(80), "mIoU": np.float64(0.4269), "acc": np.float32(0.6), "ok": np.bool_(True)},
        "state_dict": {**state, "backbone.pos_embed": torch.zeros(1, 49, 32)},
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(1.5e-5)}]},
    }
    path = saved(tmp_path / "a.pth", content)
    module = build_task(spec)
    load_into(module, read_state(path, "mmseg"), "a.pth")
    assert same(module.model, state)
    with pytest.raises(CheckpointError, match="multiarray"):
        read_state(path, "terratorch")


def test_numpy_numbers_under_their_older_name(tmp_path: Path) -> None:
    """NumPy 1 wrote numpy.core; the names in the file are replaced, at equal length of the pickled text."""
    path = saved(tmp_path / "a.pth", {"state_dict": {"w": torch.ones(2)}, "meta": np.float64(1.0)})
    with zipfile.ZipFile(path) as file:
        content = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, data in content.items():
            file.writestr(name, data.replace(b"numpy._core", b"numpy.core") if name.endswith("data.pkl") else data)
    assert b"numpy.core" in path.read_bytes()
    assert list(read_state(path, "mmseg")) == ["w"]


def test_safetensors(tmp_path: Path) -> None:
    state = state_of(build_task(task()))
    save_file(state, tmp_path / "a.safetensors")
    module = build_task(task())
    load_into(module, read_state(tmp_path / "a.safetensors", "xgfm"), "a")
    assert same(module, state)


def test_weights_are_copied_out_of_the_file(tmp_path: Path) -> None:
    state = state_of(build_task(task()))
    path = saved(tmp_path / "a.pt", state)
    with torch.device("meta"):
        module = build_task(task())
    load_into(module, read_state(path, "xgfm"), "a.pt")
    path.write_bytes(b"\0" * path.stat().st_size)
    assert same(module, state)
    assert {p.device.type for p in module.parameters()} == {"cpu"}


def test_half_precision_file_is_converted() -> None:
    module = build_task(task())
    half = {name: t.half() if t.is_floating_point() else t for name, t in state_of(module).items()}
    load_into(module, half, "half")
    assert {t.dtype for t in module.state_dict().values()} == {torch.float32, torch.int64}


def archive(**members: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, text in members.items():
            file.writestr(name, text)
    return buffer.getvalue()


EMPTY_ARCHIVE = archive(readme="none")


class Hostile:
    """Runs a command when unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch hacked",)


def test_hostile_pickle_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "a.pt", {"state_dict": {"w": torch.ones(2)}, "hook": Hostile()})
    for layout in ("v1", "v2", "terratorch", "mmseg", "xgfm"):
        with pytest.raises(CheckpointError, match=r"holds (posix|nt|os)\.system besides tensors; .* can run code"):
            read_state(path, layout)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_bare_pickle_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pt"
    path.write_bytes(pickle.dumps(Hostile(), protocol=protocol))
    with pytest.raises(CheckpointError, match=r"is (a bare pickle|none of the formats)"):
        read_state(path, "v2")
    assert not (tmp_path / "hacked").exists()


def test_legacy_torch_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"w": torch.ones(2)}, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="a bare pickle, which can run code"):
        read_state(path, "v2")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(tmp_path / "a.pt"))
    with pytest.raises(CheckpointError, match="TorchScript program, not weights"):
        read_state(tmp_path / "a.pt", "v2")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_file_cut_short_is_refused(tmp_path: Path, form: str, share: float) -> None:
    path, state = tmp_path / f"a.{form}", {"w": torch.randn(500, 40)}
    save_file(state, path) if form == "safetensors" else torch.save(state, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=r"fetch it again|none of the formats"):
        read_state(path, "v2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>Not found</html>", "web page"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (EMPTY_ARCHIVE, "zip archive without weights"),
        (b"PK\x03\x04 and then nothing of use", "cut off or corrupt"),
    ],
)
def test_what_holds_no_weights_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_state(path, "v2")


@pytest.mark.parametrize(
    ("content", "message"),
    [([torch.ones(1)], "holds a list"), ({}, "holds a dict"), ({"w": torch.ones(1), "lr": 0.1}, "lr are no tensors")],
)
def test_what_is_no_dict_of_tensors_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_state(saved(tmp_path / "a.pt", content), "v2")


def test_missing_unexpected_and_reshaped_keys_are_listed() -> None:
    module = build_task(task())
    before, state = state_of(module), state_of(module)
    del state["encoder.cls_token"], state["encoder.norm.bias"]
    state["decoder.extra"] = torch.zeros(1)
    state["head.head.2.bias"] = torch.zeros(7)
    with pytest.raises(CheckpointError) as caught:
        load_into(module, state, "mine.pt")
    message = str(caught.value)
    assert message.startswith("mine.pt is not the weights of this architecture")
    assert "2 missing (encoder.cls_token, encoder.norm.bias)" in message
    assert "1 unexpected (decoder.extra)" in message
    assert "1 of another shape (head.head.2.bias is (7,) where (3,) is needed)" in message
    assert same(module, before)


def test_long_lists_are_cut() -> None:
    with pytest.raises(CheckpointError, match=r"and \d+ more\)"):
        load_into(build_task(task()), {"a": torch.zeros(1)}, "mine.pt")


def test_wrong_prefix_is_an_error_not_a_random_encoder() -> None:
    module = build_task(task())
    state = {name.replace("encoder.", "backbone."): t for name, t in state_of(module).items()}
    with pytest.raises(CheckpointError, match=r"missing \(encoder\.cls_token"):
        load_into(module, state, "mine.pt")


def test_numbers_of_another_kind_are_refused() -> None:
    module = build_task(task())
    state = state_of(module)
    state["encoder.norm.bias"] = torch.zeros(32, dtype=torch.complex64)
    with pytest.raises(CheckpointError, match=r"encoder\.norm\.bias is complex64 strided where real is needed"):
        load_into(module, state, "mine.pt")


def test_another_head_count_cannot_be_seen() -> None:
    """Why the record holds it: the same file fills models of 2 and of 4 heads, with other answers."""
    two = build_task(task(UNET, model=model(num_heads=2))).eval()
    four = build_task(task(UNET, model=model(num_heads=4))).eval()
    load_into(four, {name: t * 4 if "qkv" in name else t for name, t in state_of(two).items()}, "mine.pt")
    load_into(two, state_of(four), "mine.pt")
    x = torch.randn(1, 6, 3, 32, 32)
    assert not torch.allclose(two.encoder(x), four.encoder(x), atol=0.1)


@pytest.mark.parametrize(
    ("number", "dtype"),
    [(float("nan"), torch.float32), (float("-inf"), torch.float16), (1e300, torch.float64)],
    ids=["nan", "infinite", "beyond float32"],
)
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, number: float, dtype: torch.dtype) -> None:
    module = build_task(task())
    before, state = state_of(module), state_of(module)
    for name in ("encoder.cls_token", "head.head.2.bias"):
        state[name] = state[name].to(dtype)
        state[name].view(-1)[-1] = number
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"NaN or infinite numbers in encoder\.cls_token, head\.head\.2\.bias:"):
        load_into(module, read_state(tmp_path / "a.safetensors", "xgfm"), "a.safetensors")
    assert same(module, before)


def test_refusal_does_not_pass_on_advice_to_run_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"w": torch.ones(2)})
    with zipfile.ZipFile(path) as file:
        content = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, data in content.items():
            file.writestr(name, b"\x80\x02garbage" if name.endswith("data.pkl") else data)
    with pytest.raises(CheckpointError, match=r"corrupt \(its pickle cannot be read\); fetch it again") as caught:
        read_state(path, "v2")
    assert "weights_only" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", ["meta", "nested"])
def test_tensors_without_values_or_shape_are_refused(tmp_path: Path, kind: str) -> None:
    odd = torch.empty(2, device="meta") if kind == "meta" else torch.nested.nested_tensor([torch.ones(2)])
    with pytest.raises(CheckpointError, match=r"a\.pt: odd have no values or no shape"):
        read_state(saved(tmp_path / "a.pt", {"w": torch.ones(2), "odd": odd}), "v2")
