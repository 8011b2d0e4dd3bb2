"""Handles: small, stable, and loaded once."""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import cloudpickle
import pytest
import torch
from dask.base import tokenize
from small import UNET, model, task
from torch import nn

from xgfm.errors import CheckpointError, TaskError
from xgfm.models import fetch, registry
from xgfm.models import handle as handle_module
from xgfm.models.build import build_model, build_task
from xgfm.models.folder import save_model, save_task
from xgfm.models.handle import ModelHandle, is_cached, load_model, load_task, register_task
from xgfm.models.spec import TaskSpec


@pytest.fixture(autouse=True)
def _nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handle_module, "_LOADED", {})
    monkeypatch.setattr(registry, "_REGISTERED", {})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_task(build_task(task()), task(), tmp_path / "small-task")


def test_module_is_ready_to_predict(folder: Path) -> None:
    module = load_task(folder).load()
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_one_object_for_each_process_and_device(folder: Path) -> None:
    first, second = load_task(folder), load_task(str(folder))
    assert first == second
    assert first.load() is second.load("cpu")
    assert first.load("meta") is not first.load()
    assert first.load("meta") is second.load("meta")


def test_many_threads_load_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    read = ModelHandle._read
    monkeypatch.setattr(ModelHandle, "_read", lambda self: (reads.append(1), read(self))[1])
    handle, got, start = load_task(folder), [], threading.Barrier(8)

    def work() -> None:
        start.wait()
        got.append(handle.load())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == 1
    assert all(module is got[0] for module in got)
    assert len(got) == 8


def test_handle_is_small_and_finds_its_weights_in_another_process(folder: Path) -> None:
    handle = load_task(folder)
    handle.load()
    data = pickle.dumps(handle)
    assert len(data) < 4000
    code = (
        "import sys, pickle, torch; handle = pickle.loads(sys.stdin.buffer.read());"
        "print(repr(handle.load()(torch.ones(1, 6, 3, 32, 32)).double().sum().item()))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert float(done.stdout) == pytest.approx(
        handle.load()(torch.ones(1, 6, 3, 32, 32)).double().sum().item(), rel=1e-5
    )


def test_token_is_that_of_weights_and_record(folder: Path, tmp_path: Path) -> None:
    handle = load_task(folder)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert tokenize(load_task(copy)) == tokenize(handle)  # where the weights are does not matter
    assert hash(load_task(copy)) == hash(handle)
    other = save_task(build_task(task()), task(), tmp_path / "other")
    assert tokenize(load_task(other)) != tokenize(handle)
    renamed = save_task(load_task(folder).load(), task(nodata_fill=1.0), tmp_path / "renamed")
    assert load_task(renamed).digest == handle.digest
    assert tokenize(load_task(renamed)) != tokenize(handle)


def test_file_with_a_record(tmp_path: Path) -> None:
    module = build_task(task())
    torch.save(module.state_dict(), tmp_path / "mine.pt")
    handle = load_task(tmp_path / "mine.pt", task())
    assert handle.digest == fetch.sha256_of(tmp_path / "mine.pt")
    assert torch.equal(handle.load().encoder.cls_token, module.encoder.cls_token)


def test_file_changed_after_the_handle_was_made_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.pt"
    torch.save(build_task(task()).state_dict(), path)
    handle = load_task(path, task())
    torch.save(build_task(task()).state_dict(), path)
    with pytest.raises(CheckpointError, match="another version"):
        handle.load()


def test_damaged_published_file_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "Prithvi_EO_V2_300M.pt"
    path.write_bytes(b"PK\x03\x04 not what was published")
    with pytest.raises(CheckpointError, match="expected faab2c8b776f"):
        load_model(path).load()


def test_model_is_no_task_and_the_reverse(tmp_path: Path) -> None:
    save_model(build_model(model()), model(), tmp_path / "mae")
    with pytest.raises(TaskError, match=r"'small' is no task; use load_model"):
        load_task(tmp_path / "mae")
    with pytest.raises(TaskError, match=r"'crop' is no model; use load_task"):
        load_model("crop")


def test_bundled_task_loads_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "BUNDLED", tmp_path)
    monkeypatch.setattr(fetch, "BUNDLED", tmp_path)
    module = build_task(task(name="tiny-demo"))
    save_task(module, task(name="tiny-demo"), tmp_path / "tiny-demo")
    handle = load_task("tiny-demo")
    assert handle.source == "bundled:tiny-demo"
    assert torch.equal(handle.load().encoder.cls_token, module.encoder.cls_token)
    assert is_cached(handle.spec)


class Brightness(nn.Module):
    """A task of somebody else: two classes by a threshold."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor([threshold]))

    def forward(self, x: torch.Tensor, time: object = None, location: object = None) -> torch.Tensor:
        bright = x.mean(dim=(1, 2)) - self.threshold
        return torch.stack([-bright, bright, bright - 1], dim=1)


def constant(spec: TaskSpec) -> nn.Module:
    return Brightness(float(spec.window))


def random(spec: TaskSpec) -> nn.Module:
    return Brightness(torch.rand(1).item())


def test_any_module_is_a_task() -> None:
    register_task(task({}), build=constant)
    handle = load_task("small-task")
    assert handle.load()(torch.full((1, 6, 3, 2, 2), 40.0)).argmax(1).unique().item() == 1
    assert pickle.loads(pickle.dumps(handle)) == handle


def test_builder_with_weights(tmp_path: Path) -> None:
    torch.save(Brightness(3.0).state_dict(), tmp_path / "mine.pt")
    register_task(task({}), build=constant, weights=tmp_path / "mine.pt")
    assert load_task("small-task").load().threshold.item() == 3.0


def test_builder_of_other_weights_each_time_is_refused() -> None:
    register_task(task({}), build=random)
    with pytest.raises(CheckpointError, match="gives other weights in each process"):
        load_task("small-task").load()


def test_registered_weights_of_a_record(tmp_path: Path) -> None:
    module = build_task(task(UNET))
    torch.save(module.state_dict(), tmp_path / "mine.pt")
    register_task(task(UNET), weights=tmp_path / "mine.pt")
    assert torch.equal(load_task("small-task").load().encoder.cls_token, module.encoder.cls_token)


class Signed(nn.Module):
    """Modules of equal parameters whose answers differ by a sign that no state dict holds."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.sign = sign

    def forward(self, x: torch.Tensor, time: object = None, location: object = None) -> torch.Tensor:
        return self.sign * self.weight * x.mean(dim=2)[:, :3]


class Signs:
    """A builder that is an object, so has no name."""

    def __init__(self, sign: float) -> None:
        self.sign = sign

    def __call__(self, spec: TaskSpec) -> nn.Module:
        return Signed(self.sign)


def signed(spec: TaskSpec, sign: float) -> nn.Module:
    return Signed(sign)


BUILDERS = {
    "lambda": (lambda spec: Signed(1.0), lambda spec: Signed(-1.0)),
    "partial": (functools.partial(signed, sign=1.0), functools.partial(signed, sign=-1.0)),
    "object": (Signs(1.0), Signs(-1.0)),
}


@pytest.mark.parametrize("kind", BUILDERS)
def test_task_registered_again_is_another(kind: str) -> None:
    handles, answers = [], []
    for build in BUILDERS[kind]:
        register_task(task({}), build=build)
        assert load_task("small-task").key == load_task("small-task").key
        handles.append(load_task("small-task"))
        answers.append(handles[-1].load()(torch.ones(1, 6, 3, 2, 2)).mean().item())
    first, second = handles
    assert first.digest == second.digest
    assert first != second
    assert tokenize(first) != tokenize(second)
    assert answers == [1.0, -1.0]


def test_function_of_an_edited_module_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    keys = []
    for scale in (1, 2):
        (tmp_path / "edited_builders.py").write_text(
            f"import torch\ndef build(spec):\n    net = torch.nn.ReLU()\n    net.scale = {scale}\n    return net\n"
        )
        monkeypatch.delitem(sys.modules, "edited_builders", raising=False)
        register_task(task({}), build=__import__("edited_builders").build)
        keys.append(load_task("small-task").key)
    assert keys[0] != keys[1]


def test_key_travels_with_the_handle(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counting(spec: TaskSpec) -> nn.Module:
        seen.append(1)  # what it refers to changes with each call, and so does its pickle
        return Signed(1.0)

    register_task(task({}), build=counting)
    handle = load_task("small-task")
    handle.load()
    monkeypatch.setattr(registry, "builder_digest", lambda build: pytest.fail("computed again"))
    there = cloudpickle.loads(cloudpickle.dumps(handle))
    assert there == handle
    assert there.key == load_task("small-task").key == handle.key


def test_handle_made_by_hand_knows_its_builder() -> None:
    one, other = (ModelHandle(task({}), None, "0" * 64, build=build) for build in BUILDERS["lambda"])
    assert one.key != other.key


def test_builder_that_cannot_be_pickled_is_refused() -> None:
    lock = threading.Lock()
    with pytest.raises(TaskError, match=r"build= cannot be pickled \(TypeError: .*lock.*a function that opens"):
        register_task(task({}), build=lambda spec: Signed(float(lock.locked())))
