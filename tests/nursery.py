"""Processes that write and are killed; started by the fault tests, and quick to start because all is imported once.

Reads a JSON line per process from standard input, ``{"task": ..., "folder": ..., ...}``; forks, lets the child work
until the kernel ends it or it is done, and answers with a line: how it ended, and what it had said until then.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray  # noqa: F401 - before the fork
import zarr

from xgfm.store.icechunk import IcechunkSink
from xgfm.store.objects import zarr_store
from xgfm.store.region import write_block

SIDE = 256
"""Rows and columns of a shard."""
SHARDS = 2
"""In each direction."""
REGIONS = [
    (slice(top, top + SIDE), slice(left, left + SIDE))
    for top in range(0, SHARDS * SIDE, SIDE)
    for left in range(0, SHARDS * SIDE, SIDE)
]


def pixels(version: int) -> np.ndarray:
    """Return a shard that differs from every other version in its pixels and in its size on disk."""
    random = np.random.default_rng(version)
    return random.integers(0, 1 + version % 7, (SIDE, SIDE)).astype("uint8")


def fatal(microseconds: int) -> None:
    """Let the kernel end this process in a while, as by SIGKILL: no handler, no clearing up."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, microseconds / 1e6)


def fatal_rename(number: int) -> None:
    """Let this process end between the writing of a file and its appearance under its name."""
    replace, left = Path.replace, itertools.count(number, -1)

    def last(self: Path, target: Any) -> Path:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    Path.replace = last  # type: ignore[method-assign]


def write_blocks(folder: str, first: int, microseconds: int = 0, renames: int | None = None, **_: Any) -> None:
    """Write versions from the first on, block by block, until the end."""
    store = zarr_store(folder)
    fatal(microseconds) if renames is None else fatal_rename(renames)
    for version in range(first, first + 50):
        for rows, columns in REGIONS:
            write_block(store, "", {"v": pixels(version)}, rows, columns)
            print(json.dumps({"written": version}), flush=True)


def commit(folder: str, first: int, microseconds: int, **_: Any) -> None:
    """Commit two versions; the end comes after the second one was begun."""
    sink = IcechunkSink(folder)
    for version in (first, first + 1):
        token = sink.open_for_writing()
        for rows, columns in REGIONS:
            zarr.open_array(token, path="v", mode="r+")[rows, columns] = pixels(version)
        if version > first:
            fatal(microseconds)
        print(json.dumps({"committing": version}), flush=True)
        snapshot = sink.commit([token], str(version))
        print(json.dumps({"committed": version, "snapshot": snapshot}), flush=True)


TASKS: dict[str, Callable[..., None]] = {"write_blocks": write_blocks, "commit": commit}


def run(order: dict[str, Any]) -> dict[str, Any]:
    """Run one task in a child and return how it ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        os.dup2(writing, 1)
        TASKS[order["task"]](**order)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as said:
        lines = said.read().splitlines()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"code": code, "said": [json.loads(line) for line in lines if line.endswith("}")]}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
