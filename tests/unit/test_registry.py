"""Names and paths to records."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small import task

from xgfm.errors import CheckpointError, TaskError
from xgfm.models import registry
from xgfm.models.build import build_task
from xgfm.models.folder import save_task
from xgfm.models.registry import find, models, register_task, spec_of, tasks


@pytest.fixture(autouse=True)
def _own_registrations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", {})


def test_published_names() -> None:
    assert {"crop", "flood", "flood-v1", "burn", "burn-v1"} <= {spec.name for spec in tasks()}
    assert [spec.name for spec in models()] == [
        "prithvi-eo-1.0-100m",
        "prithvi-eo-2.0-tiny-tl",
        "prithvi-eo-2.0-100m-tl",
        "prithvi-eo-2.0-300m",
        "prithvi-eo-2.0-300m-tl",
        "prithvi-eo-2.0-600m",
        "prithvi-eo-2.0-600m-tl",
    ]


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("corp", "crop"), ("flod", "flood"), ("Burn_v1", "burn-v1"), ("prithvi-2.0-300m", "prithvi-eo-2.0-300m")],
)
def test_unknown_name_suggests_the_nearest(given: str, nearest: str) -> None:
    with pytest.raises(TaskError, match=f"'{given}'; the nearest name is '{nearest}'"):
        find(given)


@pytest.mark.parametrize("given", ["weights/crop.pt", "crop.safetensors", "./crop"])
def test_path_without_anything_is_no_name(given: str) -> None:
    with pytest.raises(CheckpointError, match="no file or folder"):
        find(given)


def test_file_of_a_published_name_says_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "burn_scars_Prithvi_100M.pth"
    path.touch()
    entry = find(path)
    assert entry.spec.name == "burn-v1"
    assert entry.source == f"file:{path}"
    assert entry.layout == "mmseg"


def test_published_digest_holds_for_a_local_copy_too(tmp_path: Path) -> None:
    path = tmp_path / "Prithvi_EO_V2_300M.pt"
    path.touch()
    assert find(path).sha256 == "faab2c8b776f0723f93431747603a7ec586a54fc45473613b4322c29752486e7"
    assert find(path, "prithvi-eo-2.0-300m").sha256 is None


def test_file_of_another_name_needs_a_record(tmp_path: Path) -> None:
    path = tmp_path / "mine.pt"
    path.touch()
    with pytest.raises(CheckpointError, match="give spec="):
        find(path)
    assert find(path, "flood-v1").layout == "mmseg"
    assert find(path, task()).spec == task()
    assert find(path, task()).layout == "xgfm"


def test_folder_is_read_without_its_weights(tmp_path: Path) -> None:
    folder = save_task(build_task(task()), task(), tmp_path / "mine")
    (folder / "model.safetensors").unlink()
    assert spec_of(folder) == task()


def test_folder_without_a_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no readable config"):
        find(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="KeyError: 'kind'"):
        find(tmp_path)


HOSTILE = {
    "mean": ("statistics.mean", [float("nan")] * 6),
    "std": ("statistics.std", ["1"] * 6),
    "reflectance_scale": ("statistics.reflectance_scale", 10**400),
    "frames": ("frames", "3"),
    "window": ("window", 32.5),
    "architecture": ("architecture", "unet"),
    "necks": ("architecture.necks", [1e400]),
    "classes": ("classes", "water"),
    "quirks": ("quirks", "One."),
    "patch_size": ("model.patch_size", [1, 0, 8]),
    "embed_dim": ("model.embed_dim", 10**9),
    "depth": ("model.depth", 10**8),
    "layout": ("weights", {"layout": "evil"}),
    "AttributeError|TypeError|ValueError": ("model", "prithvi"),
}


@pytest.mark.parametrize("named", HOSTILE)
def test_hostile_configuration_is_refused_by_field(tmp_path: Path, named: str) -> None:
    save_task(build_task(task()), task(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    place, value = HOSTILE[named]
    *outer, last = place.split(".")
    inner = config["spec"]
    for name in outer:
        inner = inner[name]
    inner[last] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"config\.json \(.*({named})\b"):
        find(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000 + "]" * 100_000, '{"kind": [], "spec": 1}', '{"kind": "task", "spec": []}', "[]", "NaN", "null", ""],
    ids=["deep", "kind", "spec", "list", "nan", "null", "empty"],
)
def test_configuration_that_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="no readable config"):
        find(tmp_path)


def test_bundled_folder_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "BUNDLED", tmp_path)
    with pytest.raises(TaskError, match="unknown task or model 'small-demo'"):
        find("small-demo")
    save_task(build_task(task(name="small-demo")), task(name="small-demo"), tmp_path / "small-demo")
    assert find("small-demo").source == "bundled:small-demo"
    assert task(name="small-demo") in tasks()


def test_registered_task_is_a_name() -> None:
    register_task(task(), build=build_task)
    assert spec_of("small-task") == task()
    assert task() in tasks()


@pytest.mark.parametrize("name", ["crop", "prithvi-eo-2.0-300m"])
def test_taken_name_is_refused(name: str) -> None:
    with pytest.raises(TaskError, match="is taken"):
        register_task(task(name=name), build=build_task)


def test_task_without_builder_and_weights_is_refused() -> None:
    with pytest.raises(TaskError, match="give build= or weights="):
        register_task(task())


def test_empty_name_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_task(build_task(task()), task(), tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TaskError, match="name of a task or model is empty; give a path, or one of"):
        find("")


def test_records_need_no_torch() -> None:
    code = "import sys; from xgfm.models.handle import tasks; assert tasks(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
