"""Faults that strike a worker in the middle of a block: a plugin that breaks one step of the work, once or always."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed import WorkerPlugin


def kill() -> None:
    """SIGKILL this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def segfault() -> None:
    """Read the address 0."""
    ctypes.string_at(0)


def freeze() -> None:
    """Hang and hold Python's lock, as some calls into C do: no thread of this process goes on."""
    ctypes.PyDLL(None).sleep(600)


def poison() -> None:
    """Fail as a program does."""
    raise ArithmeticError("this block cannot be computed")


def _half_written(strike: Callable[[], None]) -> Callable[..., Any]:
    """Write half of a shard to the file that zarr would rename, then strike."""

    def set_half(path: Path, value: Any, *_: Any, **__: Any) -> None:
        data = value.as_numpy_array().tobytes()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f"{path.name}.0123.partial").write_bytes(data[: len(data) // 2])
        strike()

    return set_half


@dataclass
class Break(WorkerPlugin):
    """Break one step of a block.

    Parameters
    ----------
    step
        ``"read"``: after the block's third read; ``"predict"``: on the device; ``"write"``: half of a shard is on disk;
        ``"record"``: the block is written and not yet recorded; ``"recorded"``: it is, and nobody has been told.
    block
        Which one.
    marker
        File that the fault leaves, with the process's id and the time, one line for each.
    how
        What happens.
    once
        Whether the fault strikes a single time.
    """

    step: str
    block: str
    marker: str
    how: Callable[[], None] = kill
    once: bool = True
    name: str = "break"
    _undo: list[Callable[[], None]] = field(default_factory=list)
    _now: str = ""
    _reads: int = 0

    def setup(self, worker: Any) -> None:
        from xgfm.infer import predict
        from xgfm.jobs import block, reading
        from xgfm.store.ledger import Ledger

        self._around(block, "read_frames", self._note_block)
        if self.step == "read":
            self._around(reading, "read_part", self._third_read)
        if self.step == "predict":
            self._around(predict, "run", lambda work, *a, **k: (self._strike(), work(*a, **k))[1])
        if self.step == "write":
            self._around(block, "write_block", self._write_half)
        if self.step in ("record", "recorded"):
            self._around(Ledger, "record", self._at_record)

    def teardown(self, worker: Any) -> None:
        while self._undo:
            self._undo.pop()()

    def _around(self, place: Any, name: str, instead: Callable[..., Any]) -> None:
        work = getattr(place, name)
        setattr(place, name, lambda *args, **kwargs: instead(work, *args, **kwargs))
        self._undo.append(lambda: setattr(place, name, work))

    def _note_block(self, work: Any, plan: Any, block: Any, tally: Any) -> Any:
        self._now = block.id if block.id == self.block else ""  # workers of one thread: one block at a time
        return work(plan, block, tally)

    def _third_read(self, work: Any, *args: Any) -> Any:
        pixels = work(*args)
        if self._now:
            self._reads += 1
            if self._reads >= 3:
                self._strike()
        return pixels

    def _write_half(self, work: Any, store: Any, group: str, arrays: Any, rows: slice, columns: slice) -> Any:
        from zarr.storage import _local

        if not self._now or self._struck():
            return work(store, group, arrays, rows, columns)
        before = _local._put
        _local._put = _half_written(self._strike)
        try:
            return work(store, group, arrays, rows, columns)
        finally:
            _local._put = before

    def _at_record(self, work: Any, ledger: Any, entry: Any) -> None:
        if self.step == "recorded":
            work(ledger, entry)
        if entry.block == self.block and entry.outcome == "done":
            self._strike()
        if self.step == "record":
            work(ledger, entry)

    def _struck(self) -> bool:
        return self.once and Path(self.marker).exists()

    def _strike(self) -> None:
        if not self._now or self._struck():
            return
        with Path(self.marker).open("a") as file:
            file.write(f"{os.getpid()} {time.time()}\n")
            file.flush()
            os.fsync(file.fileno())
        self.how()
