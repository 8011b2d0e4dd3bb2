"""Writers on neighbouring shards, readers beside them, and writers that are killed: a shard is whole or not there."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import nursery as nursery_module
import pytest
import zarr
from nursery import REGIONS, SHARDS, SIDE, pixels

from xgfm.store.icechunk import IcechunkSink
from xgfm.store.objects import zarr_store
from xgfm.store.region import sweep, write_block

INNER = 64
NOTHING = 255
WRITER = """
import itertools, sys
from nursery import SIDE, pixels
from xgfm.store.objects import zarr_store
from xgfm.store.region import write_block
folder, left, versions = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for turn in itertools.count():
    write_block(zarr_store(folder), "", {"v": pixels(turn % versions)}, slice(0, SIDE), slice(left, left + SIDE))
    print(turn, flush=True)
"""


def empty(store: Any) -> zarr.Array:
    """Return an array of whole shards without pixels."""
    side = SHARDS * SIDE
    group = zarr.create_group(store)
    return group.create_array(
        "v", shape=(side, side), chunks=(INNER, INNER), shards=(SIDE, SIDE), dtype="uint8", fill_value=NOTHING
    )


def known(versions: range, part: Any = ...) -> dict[bytes, int]:
    """Return the versions by what they look like."""
    made = {_hash(pixels(version)[part]): version for version in versions}
    return {**made, _hash(np.full((SIDE, SIDE), NOTHING, "uint8")[part]): -1}


def _hash(array: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(array)).digest()


@pytest.fixture
def writers() -> Iterator[Callable[..., list[subprocess.Popen[str]]]]:
    started: list[subprocess.Popen[str]] = []

    def start(folder: Path, versions: int) -> list[subprocess.Popen[str]]:
        for left in (0, SIDE):
            command = [sys.executable, "-c", WRITER, str(folder), str(left), str(versions)]
            place = Path(nursery_module.__file__).parent
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=place))
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("versions", "part"),
    [(40, (slice(None), slice(None))), (1, (slice(INNER, 2 * INNER), slice(INNER, 2 * INNER)))],
    ids=["whole shards of changing pixels", "inner chunks of the same pixels"],
)
def test_readers_beside_two_writers_see_whole_shards(
    tmp_path: Path, writers: Callable[..., list[subprocess.Popen[str]]], versions: int, part: tuple[slice, slice]
) -> None:
    empty(zarr_store(tmp_path / "a.zarr"))
    looks = known(range(versions), part)
    turns = [-1, -1]

    def follow(number: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            turns[number] = int(line)

    for number, process in enumerate(writers(tmp_path / "a.zarr", versions)):
        threading.Thread(target=follow, args=(number, process), daemon=True).start()
    array = zarr.open_array(zarr_store(tmp_path / "a.zarr"), path="v", mode="r")
    seen: list[set[int]] = [set(), set()]
    during = [set(), set()]  # turns in which something was read
    enough = min(12, versions + 1)
    for _ in range(20_000):
        for number, left in enumerate((0, SIDE)):
            rows, columns = part[0], slice(left + (part[1].start or 0), left + (part[1].stop or SIDE))
            found = _hash(array[rows if rows.start else slice(0, SIDE), columns])
            assert found in looks, f"torn shard in turn {turns[number]}"
            seen[number].add(looks[found])
            during[number].add(turns[number])
        if all(len(s) >= enough for s in seen) and all(len(d) >= 150 for d in during):
            return
    pytest.fail(f"the writers did not write beside the reader: {seen}, {during}")


@pytest.fixture(scope="module")
def nursery() -> Iterator[Callable[..., dict[str, Any]]]:
    """Start a process that ends by itself or is ended by the kernel; return how."""
    command = [sys.executable, nursery_module.__file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def order(**what: Any) -> dict[str, Any]:
            stdin.write(json.dumps(what) + "\n")
            stdin.flush()
            answer: dict[str, Any] = json.loads(stdout.readline())
            return answer

        yield order
        stdin.close()


def test_a_killed_writer_leaves_whole_shards(tmp_path: Path, nursery: Callable[..., dict[str, Any]]) -> None:
    folder = tmp_path / "a.zarr"
    array = empty(zarr_store(folder))
    random = np.random.default_rng(0)
    mixed = 0
    for turn in range(40):
        # Every fourth one is killed between the last byte of a shard and its appearance under its name.
        how = {"renames": turn // 4} if turn % 4 == 0 else {"microseconds": int(random.integers(500, 60_000))}
        ended = nursery(task="write_blocks", folder=str(folder), first=50 * turn, **how)
        assert ended["code"] in (-signal.SIGALRM, -signal.SIGKILL)
        looks = known(range(50 * max(turn - 1, 0), 50 * (turn + 1)))
        found = [_hash(array[rows, columns]) for rows, columns in REGIONS]
        assert set(found) <= set(looks), f"torn shard after kill {turn}"
        versions = [looks[f] for f in found]
        mixed += len(set(versions)) > 1
        if ended["said"]:
            place = (len(ended["said"]) - 1) % len(REGIONS)
            assert versions[place] >= ended["said"][-1]["written"], "a block that was said to be written is not there"
        swept = sweep(folder)
        assert swept == 1 or "renames" not in how
        assert not list(folder.rglob("*.partial"))
        # What is left does not stand in the way of writing everything again.
        for rows, columns in REGIONS:
            write_block(zarr_store(folder), "", {"v": pixels(50 * turn + 49)}, rows, columns)
    assert mixed >= 10  # ended between blocks


def test_a_kill_in_mid_commit_leaves_the_previous_snapshot(
    tmp_path: Path, nursery: Callable[..., dict[str, Any]]
) -> None:
    pytest.importorskip("icechunk", reason="icechunk is not installed")
    sink = IcechunkSink(str(tmp_path / "a.icechunk"))
    session = sink._repository.writable_session("main")
    empty(session.store)
    session.commit("empty")
    inside = 0
    for turn in range(24):
        # The kill comes 0.2 ms after the commit was begun, then a little later each time.
        ended = nursery(
            task="commit", folder=str(tmp_path / "a.icechunk"), first=2 * turn, microseconds=200 + 500 * turn
        )
        said = ended["said"]
        committed = [s for s in said if "committed" in s]
        assert committed, "the commit before the kill did not succeed"
        inside += said[-1] == {"committing": 2 * turn + 1} and ended["code"] == -signal.SIGALRM
        array = zarr.open_array(sink.open_for_reading(), path="v", mode="r")
        looks = known(range(2 * turn + 2))
        versions = {looks[_hash(array[rows, columns])] for rows, columns in REGIONS}
        assert len(versions) == 1, "half a batch is seen"
        assert versions >= {committed[-1]["committed"]} or versions == {2 * turn + 1}
        history = [snapshot.id for snapshot in sink._repository.ancestry(branch="main")]
        assert {s["snapshot"] for s in committed} <= set(history), "an acknowledged commit is lost"
    assert inside >= 3
