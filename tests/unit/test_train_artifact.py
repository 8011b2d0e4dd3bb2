"""The folder of a trained task: what it holds, what it hides, and that it goes through the Hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from hub_server import Hub, serving
from huggingface_hub import HfApi, ModelCard
from pyproj import CRS, Transformer
from small import task
from stac_checks import check_model

from xgfm.errors import CheckpointError, MissingExtraError, TaskError
from xgfm.models.build import build_task
from xgfm.models.domain import Domain
from xgfm.models.folder import save_model, save_task
from xgfm.models.handle import load_task
from xgfm.models.registry import find
from xgfm.train.result.artifact import public, push, write_artifact
from xgfm.train.result.origin import extent_of, extent_of_chips
from xgfm.train.scores.metrics import Confusion, Regression

FACTS: dict[str, Any] = {
    "kind": "segmentation",
    "bands": ["blue", "green"],
    "classes": [{"name": n, "color": "#000000"} for n in ("Water", "Forest", "Corn")],
    "counts": {"train": [30, 20, 10], "val": [3, 2, 1], "test": [4, 5, 0]},
    "digest": "d1",
    "failed": [{"chip": 3, "reason": "gone"}],
    "lineage": [
        {
            "crs": "EPSG:32615",
            "shape": [1000, 1000],
            "transform": [30.0, 0.0, 400_000.0, 0.0, -30.0, 4_600_000.0],
            "dates": ["2024-04-03T00:00:00", "2024-10-11T00:00:00"],
            "attribution": "HLS, NASA LP DAAC",
            "items": ["HLS.S30.A", "https://me:secret@catalog.example/a.json?sig=CANARY#x"],
            "folder": "/home/someone/CANARY/cube.zarr",
        },
        {
            "crs": CRS("EPSG:32615").to_wkt(),
            "shape": [10, 10],
            "transform": [30.0, 0.0, 500_000.0, 0.0, -30.0, 4_600_000.0],
            "dates": ["2023-05-01T00:00:00"],
            "frames": [{"window": ["2023-04-01", "2023-06-01"], "dates": []}],
            "simulated": True,
        },
    ],
}
SETTINGS = {
    "chips": "/home/someone/CANARY/chips.zarr",
    "folder": "/scratch/CANARY/run",
    "base": "prithvi-eo-2.0-300m",
    "method": "full",
    "lr": 1e-4,
    "loss": {"dice": 1.0},
    "task": {"name": "small-task"},
}


def scored() -> Confusion:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (24, 8, 8)).astype("uint8")
    said = np.where(rng.random(truth.shape) < 0.7 - 0.4 * truth, truth, 2).astype("uint8")
    confusion = Confusion(["Water", "Forest", "Corn"])
    confusion.add(truth, said, np.arange(24))
    return confusion


def written(folder: Path, **changes: Any) -> tuple[Path, torch.nn.Module]:
    spec = changes.pop("spec", task(licence="Apache-2.0", temperature=1.5))
    torch.manual_seed(0)
    module = build_task(spec)
    kept: dict[str, Any] = {
        "metrics": scored(),
        "calibration": {"before": 0.1, "after": 0.02},
        "facts": FACTS,
        "settings": SETTINGS,
        "history": [{"step": 1, "loss": 0.5}],
        "steps": 7,
    }
    return write_artifact(module, spec, folder, **{**kept, **changes}), module


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(tmp_path / "hub") as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server


def test_folder_is_a_task_with_its_papers(tmp_path: Path) -> None:
    folder, module = written(tmp_path / "deep" / "task")
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md", "config.json", "metrics.json", "mlm.json", "model.safetensors", "training.json",
    ]  # fmt: skip
    handle = load_task(folder)
    assert handle.spec.temperature == 1.5
    x = torch.randn(1, 6, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(handle.load()(x), module.eval()(x))
    scores = json.loads((folder / "metrics.json").read_text())
    assert scores["scores"]["accuracy"]["value"] == pytest.approx(scored().scores()["accuracy"])
    assert scores["calibration"] == {"before": 0.1, "after": 0.02}
    record = json.loads((folder / "training.json").read_text())
    assert record["history"] == [{"step": 1, "loss": 0.5}]
    assert (record["base"], record["steps"]) == ("ibm-nasa-geospatial/Prithvi-EO-2.0-300M", 7)


def test_card_is_what_the_hub_reads(tmp_path: Path) -> None:
    folder, _ = written(tmp_path)
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.base_model == "ibm-nasa-geospatial/Prithvi-EO-2.0-300M"
    assert card.data.library_name == "xgfm"
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values["mean_iou"] == pytest.approx(scored().scores()["mean_iou"], abs=1e-4)
    for words in (
        "1536 labelled pixels of the test split, in 24 spatial group(s)",
        "IoU is under 0.5 for: Forest.",
        "there was no pixel of them: Corn",
        "HLS, NASA LP DAAC",
        "| Forest | 20 | 2 | 5 |",
        "- dates: 2023-04-01 to 2024-10-11",
        "degrees north",
        "- crs: EPSG:32615\n",
        "- simulated: True",
        "- chips that could not be read: 1",
        "logits divided by 1.5",
        "that of the weights of ibm-nasa-geospatial/Prithvi-EO-2.0-300M",
    ):
        assert words in card.text or words in card.content, words


@pytest.mark.parametrize(
    ("licence", "told", "words"),
    [("CC-BY-NC-4.0", {"license": "cc-by-nc-4.0"}, "CC-BY-NC-4.0: that of"),
     ("Etalab-2.0", {"license": "other", "license_name": "Etalab-2.0"}, "Etalab-2.0: that of"),
     ("", {}, "Nobody has said under which licence")],
)  # fmt: skip
def test_licence_of_the_base_is_carried_along(tmp_path: Path, licence: str, told: Any, words: str) -> None:
    folder, _ = written(tmp_path, spec=task(licence=licence))
    data = ModelCard.load(folder / "README.md").data.to_dict()
    assert {k: v for k, v in data.items() if k.startswith("license")} == told
    assert words in (folder / "README.md").read_text()
    assert load_task(folder).spec.licence == licence


def test_item_is_valid_and_points_at_the_files(tmp_path: Path) -> None:
    folder, module = written(tmp_path)
    item = json.loads((folder / "mlm.json").read_text())
    check_model(item)
    for asset in item["assets"].values():
        assert (folder / asset["href"]).is_file()
    assert item["assets"]["model"]["file:size"] == (folder / "model.safetensors").stat().st_size
    assert item["assets"]["model"]["file:checksum"] == "1220" + load_task(folder).digest
    assert item["properties"]["mlm:total_parameters"] == sum(p.numel() for p in module.parameters())
    assert item["properties"]["start_datetime"] == "2023-04-01T00:00:00Z"
    assert item["properties"]["end_datetime"] == "2024-10-11T00:00:00Z"
    assert next(link["href"] for link in item["links"]) == "https://catalog.example/a.json"
    there = Transformer.from_crs("EPSG:32615", "EPSG:4326", always_xy=True).transform
    corners = np.array([there(x, y) for x in (400_000, 500_300) for y in (4_600_000, 4_570_000)])
    west, south, east, north = item["bbox"]
    wanted = [*corners.min(0), *corners.max(0)]
    np.testing.assert_allclose([west, south, east, north], wanted, atol=0.01)
    assert item["geometry"]["coordinates"][0][0] == [west, south]


def test_no_file_holds_a_path_or_a_secret(tmp_path: Path) -> None:
    folder, _ = written(tmp_path)
    for name in ("README.md", "config.json", "metrics.json", "mlm.json", "training.json"):
        text = (folder / name).read_text()
        for secret in ("CANARY", "secret", "/home/", "/scratch/", str(tmp_path)):
            assert secret not in text, f"{secret} in {name}"
    assert "https://catalog.example/a.json" in (folder / "training.json").read_text()


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("/a/b/c.zarr", "c.zarr"),
        ("~/x/", "x"),
        ("C:\\Users\\me\\x.zarr", "x.zarr"),
        ("file:///a/b", "b"),
        ("../b", "b"),
        ("s3://key:word@bucket/a?b=c#d", "s3://bucket/a"),
        ("sqrt_inverse", "sqrt_inverse"),
        ("owner/name", "owner/name"),
        ([{"a": "/x/y"}, 3, None], [{"a": "y"}, 3, None]),
    ],
)
def test_what_is_of_this_machine_is_cut_off(value: Any, kept: Any) -> None:
    assert public(value) == kept


def test_disc_seen_from_space_and_the_date_line_have_a_box() -> None:
    disc = {"crs": "+proj=geos +h=35786023 +lon_0=-75", "shape": [10, 10]}
    west, south, east, north = extent_of([{**disc, "transform": [1e6, 0, -5e6, 0, -1e6, 5e6]}])  # type: ignore[misc]
    assert west < -140 < -10 < east
    assert south < -60 < 60 < north
    assert extent_of([{**disc, "transform": [1e5, 0, 8e6, 0, -1e5, 8e6]}]) is None
    fiji = {"crs": "EPSG:3832", "shape": [10, 10], "transform": [1e5, 0, 3e6, 0, -1e5, -1e6]}
    assert extent_of([fiji])[::2] == [-180, 180]  # type: ignore[index]
    assert extent_of([{"dates": []}]) is None


def test_chips_lie_where_their_outlines_reach() -> None:
    half = 32 * 30 / 2
    to_degrees = Transformer.from_crs("EPSG:32615", "EPSG:4326", always_xy=True)
    centres = np.array([[470_000, 5_100_000], [520_000, 5_150_000]], float)
    lon, lat = to_degrees.transform(*centres.T)
    box = to_degrees.transform_bounds(470_000 - half, 5_100_000 - half, 520_000 + half, 5_150_000 + half)
    found = extent_of_chips(np.append(lat, np.nan), np.append(lon, np.nan), half)
    assert found == pytest.approx(box, abs=6e-3)  # meridians are not quite north there: the box of a square is larger
    assert extent_of_chips(np.array([-17.0, -18.0]), np.array([179.9, -179.9]), half)[::2] == [-180, 180]  # type: ignore[index]
    assert extent_of_chips(np.array([np.nan]), np.array([np.nan]), half) is None


def test_nothing_known_is_said_as_such(tmp_path: Path) -> None:
    spec = task(kind="regression", classes=(), units="t ha-1")
    folder = write_artifact(build_task(spec), spec, tmp_path)
    text = (folder / "README.md").read_text()
    assert "Nothing: there was no labelled pixel that was not trained on" in text
    assert "Nobody has said." in text
    check_model(json.loads((folder / "mlm.json").read_text()))
    ModelCard.load(folder / "README.md")


def test_regression_is_measured_in_its_units(tmp_path: Path) -> None:
    spec = task(kind="regression", classes=(), units="t ha-1")
    regression = Regression("t ha-1")
    regression.add(np.ones((3, 4)), np.full((3, 4), 1.5), np.arange(3))
    text = (write_artifact(build_task(spec), spec, tmp_path, metrics=regression) / "README.md").read_text()
    assert "| rmse | 0.500 [0.500, 0.500] |" in text
    assert "From 3 groups such intervals are too narrow" in text
    assert "score (t ha-1)" in text


def test_scores_of_the_validation_split_are_called_that(tmp_path: Path) -> None:
    folder, _ = written(tmp_path, split="val")
    card = ModelCard.load(folder / "README.md")
    assert "of the val split" in card.content
    assert "so these scores are somewhat too good" in card.content
    assert card.data.eval_results[0].dataset_split == "val"
    assert json.loads((folder / "metrics.json").read_text())["split"] == "val"


def test_regression_says_nothing_of_probabilities(tmp_path: Path) -> None:
    spec = task(kind="regression", classes=(), units="t ha-1")
    folder, _ = written(tmp_path, spec=spec, metrics=Regression("t ha-1"), calibration={})
    assert "robabilities" not in (folder / "README.md").read_text()


def test_base_from_scratch_or_from_a_folder_has_no_repository(tmp_path: Path) -> None:
    for settings, base in (
        ({"base": "scratch"}, None),
        ({"base": {"kind": "model"}, "method": "scratch"}, None),
        ({"base": str(tmp_path)}, tmp_path.name),
        ({"base": "flood"}, "ibm-nasa-geospatial/Prithvi-EO-2.0-300M-TL-Sen1Floods11"),
    ):
        folder, _ = written(tmp_path / "out", settings=settings)
        assert json.loads((folder / "training.json").read_text())["base"] == base


def test_writing_again_leaves_no_papers_of_other_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = written(tmp_path)
    monkeypatch.setattr("xgfm.train.result.artifact.model_item", lambda trained: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        written(tmp_path)
    assert not (folder / "README.md").exists()
    assert not (folder / "mlm.json").exists()
    assert load_task(folder).spec.name == "small-task"


# ---- the Hub


def test_pushed_task_takes_its_training_set_along(tmp_path: Path, hub: Hub) -> None:
    known = Domain(1, torch.randn(3, 32), torch.randn(3, 32, 32), torch.linspace(0, 2, 11))
    folder, _ = written(tmp_path / "task", domain=known)
    push(folder, "me/my-task", api=HfApi(endpoint=hub.url, token="hf_test"))
    again = load_task("me/my-task").load_domain()
    assert torch.equal(again.whiten, known.whiten)
    (folder / "domain.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"domain\.safetensors has SHA-256"):
        push(folder, "me/my-task", api=HfApi(endpoint=hub.url, token="hf_test"))


def test_pushed_task_comes_back_equal(tmp_path: Path, hub: Hub) -> None:
    folder, module = written(tmp_path / "task")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.pt").write_bytes(b"optimizer")
    (folder / "notes.txt").write_text("mine")
    address = push(folder, "me/my-task", api=HfApi(endpoint=hub.url, token="hf_test"))
    assert address == f"{hub.url}/me/my-task/commit/{hub.heads['me/my-task']}"
    assert hub.tokens == {"Bearer hf_test"}
    kept = hub.folder / "me" / "my-task" / hub.heads["me/my-task"]
    assert {p.name: p.read_bytes() for p in kept.iterdir()} == {
        p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != "notes.txt"
    }
    handle = load_task("me/my-task")
    assert handle.source == f"hub:me/my-task/model.safetensors@{hub.heads['me/my-task']}"
    assert handle.spec == load_task(folder).spec
    assert all(torch.equal(a, b) for a, b in zip(handle.load().parameters(), module.parameters(), strict=True))


def test_handle_keeps_to_the_commit_that_it_was_made_from(tmp_path: Path, hub: Hub) -> None:
    api = HfApi(endpoint=hub.url, token="hf_test")
    folder, module = written(tmp_path / "task")
    push(folder, "me/my-task", api=api)
    first, before = hub.heads["me/my-task"], load_task("me/my-task")
    other = build_task(task())
    save_task(other, task(title="Second"), folder)
    push(folder, "me/my-task", api=api)
    now = load_task("me/my-task")
    assert now.spec.title == "Second"
    assert load_task(f"me/my-task@{first}") == before
    assert all(torch.equal(a, b) for a, b in zip(before.load().parameters(), module.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(now.load().parameters(), other.parameters(), strict=True))


def test_task_of_the_hub_is_there_without_the_hub(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = written(tmp_path / "task")
    push(folder, "me/my-task", api=HfApi(endpoint=hub.url, token="hf_test"))
    handle = load_task("me/my-task")
    handle.load()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert load_task("me/my-task") == handle


def test_repository_that_is_not_there_is_an_error_that_says_both(hub: Hub) -> None:
    with pytest.raises(CheckpointError, match=r"no file or folder me/none here, and as a repository .* cannot be down"):
        load_task("me/none")
    hub.commit("me/other", {"config.json": b'{"model_type": "bert"}'})
    with pytest.raises(CheckpointError, match=r"repository of the Hugging Face Hub: .*no readable config\.json"):
        load_task("me/other")


def test_slip_in_a_path_does_not_ask_the_hub(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("runs/my-taks", "me/weights.pt", "a/b/c", "./me/x", "me/"):
        with pytest.raises(CheckpointError, match="no file or folder"):
            find(name)
    assert hub.asked == []


def test_weights_of_another_commit_are_refused(tmp_path: Path, hub: Hub) -> None:
    folder, _ = written(tmp_path / "task", spec=task(title="To be exchanged"))  # no other test has loaded it
    push(folder, "me/my-task", api=HfApi(endpoint=hub.url, token="hf_test"))
    hub.commit("me/my-task", {"model.safetensors": b"other"})
    with pytest.raises(CheckpointError, match="expected"):
        load_task("me/my-task").load()


def test_only_whole_tasks_are_pushed(tmp_path: Path, hub: Hub) -> None:
    api = HfApi(endpoint=hub.url, token="hf_test")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        push(tmp_path, "me/x", api=api)
    folder, _ = written(tmp_path / "task")
    for wrong in ("x", "a/b/c", "me/", "-/x", "https://huggingface.co/me/x"):
        with pytest.raises(TaskError, match="repo_id="):
            push(folder, wrong, api=api)
    from xgfm.models.build import build_model

    save_model(build_model(task().model), task().model, tmp_path / "model")
    with pytest.raises(CheckpointError, match="holds no task"):
        push(tmp_path / "model", "me/x", api=api)
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="expected"):
        push(folder, "me/x", api=api)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        push(folder, "me/x", api=api)
    assert hub.asked == []


def test_pushing_without_the_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = written(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match="uploading to the Hub needs huggingface-hub"):
        push(folder, "me/x")


PREDICT = """
import sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from toys import cube
import xgfm.accessor
layers = ["class", "logits", "probability"]
out = cube(times=3, missing=0.02).gfm.predict(task={task!r}, return_=layers, precision="fp32")
out.to_array().values.tofile({out!r})
print(out.attrs["weights_digest"])
"""


def test_moved_artifact_predicts_bit_equal_in_another_process(tmp_path: Path, hub: Hub) -> None:
    folder, _ = written(tmp_path / "task")
    push(folder, "me/my-task", api=HfApi(endpoint=hub.url, token="hf_test"))
    tests = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_test"}

    def predicted(place: str) -> tuple[str, bytes]:
        """Weights and pixels: of a fresh process each time, since sums depend on how many threads share them."""
        out = tmp_path / "out.bin"
        code = PREDICT.format(tests=tests, task=place, out=str(out))
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip(), out.read_bytes()

    wanted = predicted(str(folder))
    assert wanted[0] == load_task(str(folder)).digest
    moved = folder.rename(tmp_path / "elsewhere")
    assert predicted(str(moved)) == wanted
    assert predicted("me/my-task") == wanted
