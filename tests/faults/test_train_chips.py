"""Chips of which some cannot be read or written, and calls that are killed on the way."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import dask.array as da
import field_chips
import numpy as np
import pytest
import toys
import xarray as xr
from distributed import Client

import xgfm.train.chips.writing
from xgfm.cf import class_flags
from xgfm.cube.catalogs import load_items
from xgfm.cube.open import open_items
from xgfm.cube.simulate import simulate_season
from xgfm.errors import ReadError, WriteError
from xgfm.grid import geobox_of, with_grid
from xgfm.train.chips.chips import Chips, open_chips, write_chips
from xgfm.train.sampling.plan import plan_chips

TESTS = Path(__file__).parents[1]
LOT = 3
"""Chips of a shard: four shards."""

KILLED = """
import itertools, json, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import dask, field_chips, zarr, xgfm.train.chips.writing as writing
from xgfm.store.ledger import Ledger

writing._LOT_CHIPS = int(sys.argv[2])

def child(folder, last):
    events = itertools.count()
    def counted(holder, name):
        work = getattr(holder, name)
        def wrapper(*args, **options):
            if next(events) == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return work(*args, **options)
        setattr(holder, name, wrapper)
    counted(Path, "replace")  # between the writing of a file and its appearance
    counted(Ledger, "record")
    field_chips.write_small_chips(Path(folder))
    print(json.dumps({"events": next(events)}), flush=True)

for line in sys.stdin:
    order = json.loads(line)
    process = os.fork()
    if not process:
        child(**order)
        os._exit(0)
    print(json.dumps({"code": os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])}), flush=True)
"""


class Killer:
    """Runs `write_chips` in children that end at one of the files that they write."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", KILLED, str(TESTS), str(LOT)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, folder: Path, last: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"folder": str(folder), "last": last}) + "\n")
        self.process.stdin.flush()
        said: dict[str, Any] = {}
        while "code" not in said:
            said |= json.loads(self.process.stdout.readline())
        return said


@pytest.fixture
def killer() -> Iterator[Killer]:
    killer = Killer()
    yield killer
    killer.process.communicate(timeout=60)


@pytest.fixture(autouse=True)
def small_lots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xgfm.train.chips.writing, "_LOT_CHIPS", LOT)


def files(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()}


def test_a_killed_call_is_finished_by_the_next(killer: Killer, tmp_path: Path) -> None:
    """Whichever file it was killed at, the store comes out byte by byte as that of an uninterrupted call."""
    whole = killer.run(tmp_path / "whole.zarr", -1)
    assert whole["code"] == 0
    expected = files(tmp_path / "whole.zarr")
    assert whole["events"] > 30
    written = []
    for last in [*range(0, whole["events"] - 16, 9), *range(whole["events"] - 16, whole["events"])]:
        path = tmp_path / f"{last}.zarr"
        assert killer.run(path, last)["code"] == -9
        shards = {p: p.stat().st_mtime_ns for p in path.glob("image/c/*/0/0/0/0")}
        chips = field_chips.write_small_chips(path)
        assert files(path) == expected, last
        assert chips.facts == open_chips(tmp_path / "whole.zarr").facts
        written.append(sum(p.stat().st_mtime_ns != t for p, t in shards.items()))
        shutil.rmtree(path)
    assert max(written) <= 1  # of the shards that were there, only the one without a record is written again


# ---- assets that cannot be read


def with_holes(holes: set[int], tries: dict[int, int] | None = None) -> xr.DataArray:
    """Return the cube of `field`, a chunk for each chip; some of them cannot be read, some not the first times."""
    cube, _ = field_chips.field()
    side, values, left = field_chips.SIZE, cube.values, dict(tries or {})

    def read(block_info: Any = None) -> np.ndarray:
        place = block_info[None]["array-location"]
        number = place[3][0] // side
        if left.get(number, 0) > 0:
            left[number] -= 1
            raise ReadError(f"cannot read asset 'B04' of item 'granule {number}'")
        if number in holes:
            raise ReadError(f"cannot read asset 'B04' of item 'granule {number}'")
        return values[tuple(slice(*edge) for edge in place)]

    chunks = ((2,), (6,), (side,), (side,) * (values.shape[3] // side))
    return cube.copy(data=da.map_blocks(read, chunks=chunks, dtype="int16", meta=np.empty((0,) * 4, "int16")))


def write(path: Path, cube: xr.DataArray, **options: Any) -> Chips:
    _, label = field_chips.field()
    return write_chips(cube, label, path, field_chips.plan_of(label), size=field_chips.SIZE, **options)


@pytest.mark.parametrize("workers", [False, True], ids=["threads", "workers"])
def test_chips_that_cannot_be_read_are_left_out_and_listed(tmp_path: Path, workers: bool) -> None:
    cube, expected = with_holes({1, 9}), field_chips.write_small_chips(tmp_path / "whole.zarr")
    cluster = Client(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0") if workers else None
    with cluster or nullcontext() as client:
        chips = write(tmp_path / "chips.zarr", cube, max_failed=0.2, client=client)
    failed = [(one["chip"], one["column"], one["reason"]) for one in chips.facts.failed]
    assert failed == [(k, k * 32, f"cannot read asset 'B04' of item 'granule {k}'") for k in (1, 9)]
    assert chips.indexes("train").tolist() == [0, 2, 3, 4, 5, 6, 7]
    assert chips.indexes("val").tolist() == [8]
    others = np.array([k for k in range(12) if k not in (1, 9)])
    for mine, theirs in zip(chips.read(others), expected.read(others), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert not chips.read(np.array([1])).valid.any()
    train = expected.read(chips.indexes("train"))
    there = np.broadcast_to(train.valid[:, None], (7, 2, 32, 32))
    means = train.image.astype("float64").transpose(2, 0, 1, 3, 4)[:, there].mean(1)
    np.testing.assert_allclose(chips.facts.statistics.mean, means, rtol=1e-12)


def test_too_many_of_them_are_an_error_and_read_again_by_the_next_call(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"1 of 12 chips cannot be read; the first, chip 4: .*granule 4.*max_failed="):
        write(tmp_path / "chips.zarr", with_holes({4}))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "chips.zarr").glob("image/c/*/0/0/0/0")}
    write(tmp_path / "chips.zarr", with_holes(set()))
    after = {p: p.stat().st_mtime_ns for p in before}
    assert [p.parts[-5] for p in before if before[p] != after[p]] == ["1"]
    field_chips.write_small_chips(tmp_path / "whole.zarr")
    ours, theirs = (open_chips(tmp_path / n).read(np.arange(12)) for n in ("chips.zarr", "whole.zarr"))
    np.testing.assert_array_equal(ours.image, theirs.image)


def test_an_asset_that_is_read_at_the_third_attempt(tmp_path: Path) -> None:
    assert not write(tmp_path / "chips.zarr", with_holes(set(), {2: 2, 7: 1})).facts.failed
    with pytest.raises(ReadError, match="1 of 12"):
        write(tmp_path / "other.zarr", with_holes(set(), {2: 2}), attempts=1)


def test_a_granule_that_is_cut_short_and_downloaded_again(tmp_path: Path) -> None:
    season = simulate_season(tmp_path / "season", seed=5, shape=(96, 96), granules=3)

    def opened() -> xr.DataArray:
        return open_items(load_items(season.items), geobox=season.geobox, chunks=64, mask=None)

    cube = opened()
    codes = np.random.default_rng(0).integers(0, 3, (96, 96)).astype("uint8")
    attrs = class_flags(toys.task_spec().classes)
    label = with_grid(xr.DataArray(codes, dims=("y", "x"), name="label", attrs=attrs), geobox_of(cube))
    plan = plan_chips(label, size=32, split="random")
    path = sorted((tmp_path / "season").rglob("*B04.tif"))[1]
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ReadError, match=rf"9 of 9 chips cannot be read; .*'B04' of item '{path.parent.name}'"):
        write_chips(cube, label, tmp_path / "chips.zarr", plan)
    path.write_bytes(data)
    chips = write_chips(opened(), label, tmp_path / "chips.zarr", plan)
    about = chips.dataset()
    for k in range(9):
        row, column = (int(about[n][k]) for n in ("row", "column"))
        np.testing.assert_array_equal(
            chips.read(np.array([k])).image[0], cube[..., row : row + 32, column : column + 32]
        )


# ---- disks that are full


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB."""
    if shutil.which("mount") is None:
        pytest.skip("a small file system cannot be mounted here: there is no mount command")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("workers", [False, True], ids=["threads", "workers"])
def test_a_full_disk_keeps_what_is_whole(disk: Path, tmp_path: Path, workers: bool) -> None:
    whole = field_chips.write_small_chips(tmp_path / "whole.zarr")
    cube, _ = field_chips.field()
    cluster = Client(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0") if workers else None
    with (
        cluster or nullcontext() as client,
        pytest.raises(WriteError, match=r"chips cannot be written to .*chips.zarr .*No space left.*call again"),
    ):
        write(disk / "chips.zarr", cube, client=client)
    with pytest.raises(ValueError, match="not whole"):
        open_chips(disk / "chips.zarr")
    done = sorted((disk / "chips.zarr.lots/done").iterdir())
    assert 0 < len(done) < 4
    subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
    chips = write(disk / "chips.zarr", cube)
    assert chips.facts == whole.facts
    np.testing.assert_array_equal(chips.read(np.arange(12)).image, whole.read(np.arange(12)).image)
    assert not list(disk.rglob("*.partial"))


def test_a_read_only_place(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(WriteError, match="Read-only file system"):
        field_chips.write_small_chips(disk / "chips.zarr")


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="chips cannot be written to"):
        field_chips.write_small_chips(tmp_path / "file" / "chips.zarr")
