"""Checkpoints: whole or not there, whatever is cut off where."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xgfm.errors import TrainError, WriteError
from xgfm.train.loop import checkpoints as module
from xgfm.train.loop.checkpoints import LIST, Checkpoints, replace_file


def state(step: int, size: int = 100) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    return {
        "module": {"weight": torch.randn(size, generator=generator)},
        "state": {"step": step, "scores": {"loss": 0.5}},
    }


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one["state"] == other["state"] and torch.equal(one["module"]["weight"], other["module"]["weight"])


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.last() is None
    assert checkpoints.best() is None
    checkpoints.save(state(3), 3, score=0.5, best=True)
    saved = Checkpoints(tmp_path).last()
    assert saved is not None
    assert (saved.step, saved.score) == (3, 0.5)
    assert equal(checkpoints.load(saved), state(3))
    assert checkpoints.best() == saved


@settings(max_examples=25, deadline=None)
@given(bests=st.lists(st.booleans(), min_size=1, max_size=6), keep=st.integers(1, 3))
def test_the_last_and_the_best_are_kept_and_no_others(
    tmp_path_factory: pytest.TempPathFactory, bests: list[bool], keep: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(folder, keep)
    for step, best in enumerate(bests, 1):
        checkpoints.save(state(step), step, best=best)
    last, best_one = checkpoints.last(), checkpoints.best()
    assert last is not None
    assert last.step == len(bests)
    assert (best_one.step if best_one else 0) == max((s for s, b in enumerate(bests, 1) if b), default=0)
    steps = {*range(max(len(bests) - keep, 0) + 1, len(bests) + 1), *([best_one.step] if best_one else [])}
    assert {p.name for p in folder.iterdir()} == {LIST, *(f"step-{step:08d}.pt" for step in steps)}


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 3000), flip=st.booleans())
def test_a_torn_file_is_never_read_as_a_whole_one(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flip: bool
) -> None:
    checkpoints = Checkpoints(tmp_path_factory.mktemp("run"))
    checkpoints.save(state(1), 1, best=True)
    newest = checkpoints.save(state(2), 2, best=True)
    path = checkpoints.folder / newest.file
    data = path.read_bytes()
    cut %= len(data)
    path.write_bytes(data[:cut] + bytes([data[cut] ^ 1]) + data[cut + 1 :] if flip else data[:cut])
    with pytest.warns(UserWarning, match="damaged; an older one is taken"):
        saved = checkpoints.last()
    assert saved is not None
    assert equal(checkpoints.load(saved), state(1))
    with pytest.raises(TrainError, match="its digest is another one"):
        checkpoints.best()


def test_where_all_are_damaged_nothing_begins_anew_by_itself(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    saved = checkpoints.save(state(1), 1)
    (tmp_path / saved.file).unlink()
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(TrainError, match=r"every checkpoint .* is damaged"):
        checkpoints.last()
    (tmp_path / LIST).write_text('{"last": [')
    with pytest.raises(TrainError, match=rf"{LIST} cannot be read"):
        checkpoints.last()


class Died(BaseException):
    """Stands for a process that is no more."""


@pytest.mark.parametrize("call", range(9))
def test_a_crash_between_any_two_calls_leaves_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Every call to the file system that makes something last is one where the process may end."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(state(1), 1, best=True)
    made: list[str] = []

    def dying(name: str, call_on: Any) -> Any:
        def wrapper(*args: Any, **options: Any) -> Any:
            made.append(name)
            if len(made) > call:
                raise Died
            return call_on(*args, **options)

        return wrapper

    monkeypatch.setattr(os, "fsync", dying("fsync", os.fsync))
    monkeypatch.setattr(Path, "replace", dying("replace", Path.replace))
    monkeypatch.setattr(Path, "unlink", dying("unlink", Path.unlink))
    try:
        checkpoints.save(state(2), 2, best=True)
    except Died:
        pass
    else:
        assert call >= len(made) >= 5  # nothing was cut off: there are no calls left
    monkeypatch.undo()
    for saved in (checkpoints.last(), checkpoints.best()):
        assert saved is not None
        assert equal(checkpoints.load(saved), state(saved.step))
    checkpoints.save(state(3), 3, best=True)  # what was left does not stand in the way
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000003.pt"]


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_takes_no_more(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1), 1, best=True)
    with files_up_to(20_000), pytest.raises(WriteError, match=r"step 2 cannot be .*the last whole one is of step 1"):
        checkpoints.save(state(2, 100_000), 2, best=True)
    assert {p.name for p in tmp_path.iterdir()} == {LIST, "step-00000001.pt"}
    last = checkpoints.last()
    assert last is not None
    assert last.step == 1


def test_the_first_one_does_not_fit(tmp_path: Path) -> None:
    with files_up_to(20_000), pytest.raises(WriteError, match="there is no earlier one"):
        Checkpoints(tmp_path / "new").save(state(1, 100_000), 1)


def test_files_are_replaced_in_one_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "note"
    replace_file(path, b"old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
