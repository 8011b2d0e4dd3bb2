"""Checkpoints: where a run is, on disk, whole or not there.

In: tensors and plain values. Out: files of which a list says the digest; the list is replaced in one go after its files
are on the disk, so that no moment of a crash leaves a torn checkpoint that is taken for a whole one. Nothing is lazy.

    checkpoints/
      checkpoints.json       the last ones, newest first, and the best: file, digest, size, step, score
      step-00000120.pt       module, optimizer, step, scores
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from xgfm.errors import TrainError, WriteError

LIST = "checkpoints.json"
_PART = 1 << 24
"""Bytes that are digested at once."""


@dataclass(frozen=True)
class Saved:
    """One checkpoint."""

    file: str
    """Its name in the folder."""
    sha256: str
    size: int
    """Bytes."""
    step: int
    """Steps that were taken."""
    score: float | None = None
    """Of the validation at this step, where there was one."""


@dataclass(frozen=True)
class _Listed:
    last: tuple[Saved, ...] = ()
    best: Saved | None = None

    def files(self) -> set[str]:
        return {saved.file for saved in (*self.last, *([self.best] if self.best else []))}


@dataclass
class Checkpoints:
    """The checkpoints of a run.

    One process writes; any may read.
    """

    folder: Path
    keep: int = 2
    """How many are kept beside the best."""

    def save(self, state: dict[str, Any], step: int, *, score: float | None = None, best: bool = False) -> Saved:
        """Write a checkpoint; the ones that are too many are deleted after it is safe.

        Parameters
        ----------
        state
            Tensors, numbers, texts, and dicts and lists of them.
        step
            Steps that were taken.
        score
            Of the validation at this step.
        best
            Whether it is the best so far.

        Raises
        ------
        WriteError
            The disk is full, or does not take it: the checkpoints that were there are as they were.
        """
        listed = self._listed()
        name = f"step-{step:08d}.pt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            saved = self._write(name, state, step, score)
            kept = tuple(one for one in listed.last if one.step < step)[: self.keep - 1]
            listed = _Listed((saved, *kept), saved if best else listed.best)
            replace_file(self.folder / LIST, json.dumps(asdict(listed), indent=1).encode())
        except OSError as error:
            raise self._full(error, step) from error
        self._delete_all_but(listed.files())
        return saved

    def last(self) -> Saved | None:
        """Return the newest whole checkpoint, None where there is none.

        A damaged one is told of, and an older one taken.
        """
        listed = self._listed().last
        for saved in listed:
            if self._whole(saved):
                return saved
            warnings.warn(f"checkpoint {self.folder / saved.file} is damaged; an older one is taken", stacklevel=2)
        if listed:
            raise TrainError(f"every checkpoint in {self.folder} is damaged; delete this folder to begin anew")
        return None

    def best(self) -> Saved | None:
        """Return the checkpoint of the best score, None where there is none yet.

        Raises
        ------
        TrainError
            It is damaged.
        """
        saved = self._listed().best
        if saved is not None and not self._whole(saved):
            raise TrainError(f"the best checkpoint {self.folder / saved.file} is damaged: its digest is another one")
        return saved

    def load(self, saved: Saved) -> dict[str, Any]:
        """Return what was saved, on the CPU."""
        state: dict[str, Any] = torch.load(self.folder / saved.file, map_location="cpu", weights_only=True)
        return state

    def _write(self, name: str, state: dict[str, Any], step: int, score: float | None) -> Saved:
        path = self.folder / name
        with path.open("wb") as file:
            watched = _Watched(file)
            try:
                torch.save(state, watched)  # type: ignore[arg-type]
            except RuntimeError:  # torch's own for a file that takes no more
                if watched.failed is None:
                    raise
            if watched.failed is not None:
                raise watched.failed
            file.flush()
            os.fsync(file.fileno())
        return Saved(name, _digest(path), path.stat().st_size, step, score)

    def _whole(self, saved: Saved) -> bool:
        path = self.folder / saved.file
        return path.is_file() and path.stat().st_size == saved.size and _digest(path) == saved.sha256

    def _listed(self) -> _Listed:
        path = self.folder / LIST
        if not path.exists():
            return _Listed()
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            best = values["best"]
            return _Listed(tuple(Saved(**one) for one in values["last"]), None if best is None else Saved(**best))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise TrainError(
                f"{path} cannot be read ({type(error).__name__}: {error}); delete {self.folder} to begin anew"
            ) from error

    def _delete_all_but(self, kept: Iterable[str]) -> None:
        names = set(kept)
        for path in self.folder.glob("step-*.pt"):
            if path.name not in names:
                with suppress(FileNotFoundError):
                    path.unlink()

    def _full(self, error: OSError, step: int) -> WriteError:
        listed = self._listed()
        with suppress(OSError):
            self._delete_all_but(listed.files())
        left = f"the last whole one is of step {listed.last[0].step}" if listed.last else "there is no earlier one"
        return WriteError(
            f"the checkpoint of step {step} cannot be written to {self.folder} ({error.strerror or error}); {left}. "
            "Make room, and the same call goes on from there"
        )


class _Watched:
    """A file that remembers why it took no more: torch says only that it did not."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.failed: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.failed = error
            raise

    def flush(self) -> None:
        self.file.flush()


def replace_file(path: Path, data: bytes) -> None:
    """Write a file in one go, and see it on the disk: a crash leaves the old one or the new one."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """See a folder's names on the disk."""
    if os.name == "nt":  # has no such call
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_PART):
            digest.update(part)
    return digest.hexdigest()
