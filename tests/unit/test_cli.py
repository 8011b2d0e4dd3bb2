"""The command line, as a shell sees it."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from results import NORTH, result, task_folder
from typer.testing import CliRunner

import xgfm
from xgfm.cli import app
from xgfm.cube.simulate import Season, simulate_season
from xgfm.errors import WriteError
from xgfm.store.write import to_zarr

COMMANDS = ("search", "predict", "demo", "tasks", "info")


def run(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(w) for w in words])


def fails(*words: Any) -> str:
    """The one line that a failing command says."""
    ended = run(*words)
    assert ended.exit_code == 1
    lines = ended.stderr.strip().splitlines()
    assert "Traceback" not in ended.output
    assert lines[-1].startswith("error: ")
    assert not any(line.startswith("error") for line in lines[:-1])
    return lines[-1]


@pytest.fixture(scope="module")
def season(tmp_path_factory: pytest.TempPathFactory) -> Season:
    return simulate_season(tmp_path_factory.mktemp("season"), seed=5, shape=(64, 80), granules=6)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return task_folder(tmp_path_factory.mktemp("task"))


# ---- help


def test_help_lists_commands_and_shows_how_to_begin() -> None:
    said = run("--help").stdout
    assert all(name in said for name in COMMANDS)
    assert "xgfm demo" in said
    assert "EARTHDATA_TOKEN" in said
    assert run().stderr == said


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_is_explained(command: str) -> None:
    import typer

    ended = run(command, "--help")
    assert ended.exit_code == 0
    parameters = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    assert parameters
    for parameter in parameters:
        assert parameter.help, parameter.name
        assert parameter.opts[0] in ended.stdout or parameter.name.upper() in ended.stdout


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from xgfm.cli import app\n"
        "assert CliRunner().invoke(app, ['predict', '--help']).exit_code == 0\n"
        "print([m for m in ('torch', 'rasterio', 'odc', 'stackstac', 'distributed', 'dask.array', 'matplotlib',"
        " 'pystac_client', 'zarr') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


def test_installed_command_and_version() -> None:
    said = subprocess.run([Path(sys.executable).with_name("xgfm"), "--version"], capture_output=True, text=True)
    assert (said.returncode, said.stdout.strip()) == (0, xgfm.__version__)


# ---- search


def test_search_shows_and_saves_items(season: Season, tmp_path: Path) -> None:
    ended = run("search", "--catalog", season.items, "--save", tmp_path / "kept.json")
    assert ended.exit_code == 0
    rows = ended.stdout.splitlines()
    assert rows[0].split() == ["DATE", "(UTC)", "TILE", "CLOUD", "GRANULE"]
    assert [row.split()[-1] for row in rows[1:]] == list(season.granules)
    assert all(row.split()[1] == "15TVM" for row in rows[1:])
    assert [item["id"] for item in xgfm.load_items(tmp_path / "kept.json")] == list(season.granules)


def test_search_passes_its_filters_on(season: Season) -> None:
    west, south, east, north = season.bbox
    day = season.datetime.split("/")[0]
    options = ("--bbox", west, south, east, north, "--datetime", day)
    rows = run("search", "--catalog", season.items, *options).stdout.splitlines()
    assert [row.split()[-1] for row in rows[1:]] == [season.granules[0]]
    said = fails("search", "--catalog", season.items, "--max-cloud-cover", 0, "--datetime", "2019")
    assert said == (
        f"error: no HLS granule in --catalog {season.items} for --datetime 2019, --max-cloud-cover 0.0; "
        "widen --datetime or raise --max-cloud-cover"
    )
    assert "--max-cloud-cover -1.0 must be a number" in fails(
        "search", "--catalog", season.items, "--max-cloud-cover", -1
    )
    said = fails("search", "--catalog", season.items, "--tile", "T15TWM", *options[:5], "--datetime", "2019")
    assert "for --bbox " + " ".join(map(str, season.bbox)) + ", --datetime 2019, --tile T15TWM; widen --bbox or" in said


def test_search_has_to_know_where() -> None:
    assert "say where: give --bbox W S E N, --tile T15TVM" in fails("search", "--datetime", "2024")


def test_search_of_an_unknown_catalogue() -> None:
    assert "lpcloud" in fails("search", "--tile", "T15TVM", "--catalog", "lpclod")


@pytest.mark.parametrize("name", ["items.json", "items.geojson", "items.parquet"])
def test_a_file_of_items_that_is_not_there(tmp_path: Path, name: str) -> None:
    words = ("--catalog", tmp_path / name)
    for command in (("search",), ("predict", "--task", "crop", "--out", tmp_path / "map.zarr")):
        assert f"there is no file '{tmp_path / name}'" in fails(*command, *words)
        assert "give --catalog a file of items that is there" in fails(*command, *words, "--tile", "T15TVM")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("give bbox=(west, south, east, north) or tile='T15TVM'", "give --bbox west south east north or --tile T15TVM"),
        ("bbox=(-93.5, 42.0, -93, 42.1) is", "--bbox -93.5 42.0 -93 42.1 is"),
        ("catalog='a b.json'; widen datetime=, or", "--catalog 'a b.json'; widen --datetime, or"),
        ("or overwrite=True to replace it", "or --overwrite to replace it"),
        ("with resolution=30, or (crs=) or crs='EPSG:32615'.", "with --resolution 30, or (--crs) or --crs EPSG:32615."),
        # Python stays Python: no option, a call, another name, a comparison.
        ("windows=[1] f(bbox=(1, 2, 3, 4)) my_tile='x' cube.tile=3 tile=='x'",) * 2,
    ],
)  # fmt: skip
def test_arguments_are_named_as_options(said: str, expected: str) -> None:
    import typer

    from xgfm.cli.base import with_options

    command = typer.main.get_command(app).commands["predict"]  # type: ignore[attr-defined]
    assert with_options(said, {p.name: p.opts[0] for p in command.params}) == expected
    assert with_options(said, {}) == said


# ---- predict


def area(season: Season) -> tuple[str, ...]:
    return ("--catalog", str(season.items), "--bbox", *map(str, season.bbox))


@pytest.fixture(scope="module")
def store(season: Season, task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    ended = run("predict", "--task", task, "--out", out / "map.zarr", "--png", out / "map.png", *area(season))
    assert ended.exit_code == 0, ended.output
    assert "map.zarr: written in" in ended.stdout
    assert "6 dates" in ended.stderr
    assert (out / "map.png").read_bytes().startswith(b"\x89PNG")
    return out / "map.zarr"


def test_predict_is_the_same_as_in_python(store: Path, season: Season, task: Path) -> None:
    cube = xgfm.open_items(xgfm.load_items(season.items), bbox=season.bbox)
    expected = cube.gfm.predict(task=str(task))
    stored = xr.open_zarr(store, mask_and_scale=False, decode_coords="all")
    np.testing.assert_array_equal(stored.crop_small, expected.crop_small)
    assert stored.attrs["weights_digest"] == expected.attrs["weights_digest"]
    assert len(np.unique(stored.crop_small)) > 2


def test_predict_on_a_local_cluster(store: Path, season: Season, task: Path, tmp_path: Path) -> None:
    ended = run("predict", "--task", task, "--out", tmp_path / "map.zarr", "--workers", 1, *area(season))
    assert ended.exit_code == 0, ended.output
    same = [xr.open_zarr(s, mask_and_scale=False).crop_small for s in (store, tmp_path / "map.zarr")]
    np.testing.assert_array_equal(*same)


def test_predict_on_a_running_scheduler(season: Season, task: Path, tmp_path: Path) -> None:
    from distributed import LocalCluster

    with LocalCluster(processes=False, n_workers=1, dashboard_address="127.0.0.1:0") as cluster:
        where = ("--scheduler", cluster.scheduler_address)
        ended = run("predict", "--task", task, "--out", tmp_path / "map.zarr", *where, *area(season))
        assert ended.exit_code == 0, ended.output
        assert cluster.scheduler.computations  # it was done there
    assert "exclude each other" in fails(
        "predict", "--task", task, "--out", "x.zarr", *where, "--workers", 2, *area(season)
    )


def test_predict_refuses_a_taken_path(store: Path, season: Season, task: Path) -> None:
    words = ("predict", "--task", task, "--out", store, *area(season))
    assert "map.zarr exists; give another path, or --overwrite to replace it" in fails(*words)
    assert isinstance(run("--debug", *words).exception, WriteError)
    assert run(*words, "--overwrite").exit_code == 0


def test_predict_refuses_the_name_of_a_geotiff(tmp_path: Path) -> None:
    words = ("predict", "--task", "crop", "--tile", "T15TVM", "--out", tmp_path / "map.tif")
    said = fails(*words)  # before any search
    assert f"--out {tmp_path}/map.tif is the name of a GeoTIFF" in said
    assert f"give --out {tmp_path}/map.zarr, or write a GeoTIFF with xgfm.to_cog(" in said


def test_predict_suggests_the_nearest_task(season: Season, tmp_path: Path) -> None:
    said = fails("predict", "--task", "crap", "--out", tmp_path / "map.zarr", *area(season))
    assert "unknown task or model 'crap'; the nearest name is 'crop'" in said
    assert not (tmp_path / "map.zarr").exists()


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("xgfm.about.about", bug)
    assert isinstance(run("info", "x").exception, ZeroDivisionError)


def test_without_torch_the_extra_is_named(season: Season) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from xgfm.cli import app; app(sys.argv[1:])"
    )  # fmt: skip
    words = ["predict", "--task", "crop", "--out", "x.zarr", *area(season)]
    ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.strip().endswith('needs torch, which is not installed: pip install "xgfm[torch]"')
    assert "Traceback" not in ended.stderr


# ---- demo


def test_demo_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("xgfm.demo.main", lambda *args, **options: seen.append((args, options)))
    ended = run("demo", "--out", tmp_path, "--seed", 7, "--size", 99)
    assert seen == [((tmp_path,), {"seed": 7, "size": 99})]
    assert str(tmp_path / "map.png") in ended.stdout


# ---- tasks, info


def test_tasks_is_a_table_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xgfm.models.handle.is_cached", lambda spec: spec.name == "flood")
    rows = run("tasks").stdout.splitlines()
    assert rows[0].split() == ["TASK", "FRAMES", "BANDS", "PIXEL", "CLASSES", "LICENCE", "CACHED", "SOURCE"]
    assert [row.split()[0] for row in rows[1:]] == [spec.name for spec in xgfm.tasks()]
    crop, flood = rows[1].split("  "), rows[2]
    assert [c.strip() for c in crop if c.strip()][:5] == ["crop", "3", "HLS, all six", "30 m", "13"]
    assert "no" in rows[1].split()
    assert "yes" in flood.split()
    assert "10 m" in flood
    assert "ibm-nasa-geospatial/Prithvi-EO-2.0-300M-TL-Sen1Floods11" in flood


def test_one_task_in_full(task: Path) -> None:
    said = run("tasks", "crop").stdout
    for spec in xgfm.tasks()[0].classes:
        assert f"{spec.name} {spec.color}" in said
    assert "https://arxiv.org/abs/2310.18660" in said
    assert "a map of nothing real" in run("tasks", task).stdout
    assert "nearest name is 'flood'" in fails("tasks", "floods")


def test_info_of_a_store(store: Path, tmp_path: Path) -> None:
    said = run("info", store).stdout
    assert "EPSG:32615" in said
    assert "pixels of 30 m" in said
    assert "Natural Vegetation, Forest, Corn" in said
    assert xr.open_zarr(store).attrs["weights_digest"] in said
    made = Path(to_zarr(result(NORTH, probability=True), tmp_path / "a.zarr"))
    said = run("info", made).stdout
    assert "70 x 90 pixels of 30 m, 2.1 x 2.7 km" in said
    assert "399960, 4900020" in said
    assert "chunks (1, 32, 32) in shards (3, 32, 32)" in said


def test_info_of_tasks_and_weights(task: Path, tmp_path: Path) -> None:
    assert "Random crops" in run("info", task).stdout
    said = run("info", task / "model.safetensors").stdout
    digest = xgfm.load_task(task).digest
    assert digest in said
    assert "crop-small: Random crops; the digest agrees" in said
    assert "parameters" in said
    (tmp_path / "mine.safetensors").write_bytes((task / "model.safetensors").read_bytes())
    assert "no published name" in run("info", tmp_path / "mine.safetensors").stdout
    assert "prithvi-eo-1.0-100m" in run("info", "prithvi-eo-1.0-100m").stdout


def test_info_reads_a_published_file_in_its_layout(tmp_path: Path) -> None:
    import torch

    source = next(spec for spec in xgfm.tasks() if spec.name == "burn-v1").weights
    assert source is not None
    assert source.filename is not None
    kept = {"state_dict": {"decode_head.conv_seg.weight": torch.zeros(2, 3)}, "meta": {"lr": np.float64(0.1)}}
    torch.save(kept, tmp_path / source.filename)  # NumPy numbers are allowed in this layout alone
    said = run("info", tmp_path / source.filename).stdout
    assert "burn-v1: " in said
    assert "1, 6 parameters" in said


def test_info_of_what_is_nothing(tmp_path: Path) -> None:
    assert "'nonsense' is neither a path that exists nor one of the names ['crop'," in fails("info", "nonsense")
    assert "no readable config.json" in fails("info", tmp_path)
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"a": 1}))
    assert "a bare pickle, which can run code when opened" in fails("info", tmp_path / "evil.pt")
    assert "no Zarr store at memory://nothing/here.zarr" in fails("info", "memory://nothing/here.zarr")
