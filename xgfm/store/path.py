"""A path that is written whole or not at all.

In: where a result shall stand. Out: a neighbour of that place to write to, which takes the place when everything is
written. A failure leaves what was there before untouched, and becomes an error that says what is left on disk.
"""

from __future__ import annotations

import errno
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from xgfm.cube.hrefs import redacted
from xgfm.errors import WriteError
from xgfm.store.objects import local_folder

_DISK = {
    errno.ENOSPC: "disk full",
    errno.EDQUOT: "quota used up",
    errno.EFBIG: "file size limit reached",
    errno.EROFS: "read-only file system",
}
"""What only a write can meet, whatever file the error names."""
_ZARR = ("zarr.json", ".zgroup", ".zarray")


def check_zarr_name(path: str | PathLike[str]) -> None:
    """Refuse the name of a GeoTIFF for a Zarr store.

    Raises
    ------
    WriteError
        For ``.tif`` and ``.tiff``.
    """
    name = str(path).rstrip("/")
    if name.lower().endswith((".tif", ".tiff")):
        raise WriteError(
            f"path={name!r} is the name of a GeoTIFF, and a Zarr store is to be written; give "
            f"path={name[: name.rindex('.')] + '.zarr'!r}, or write a GeoTIFF with xgfm.to_cog(result, {name!r})"
        )


def check_cog_name(path: str | PathLike[str]) -> None:
    """Refuse the name of a Zarr store for a GeoTIFF.

    Raises
    ------
    WriteError
        For ``.zarr``.
    """
    name = str(path).rstrip("/")
    if name.lower().endswith(".zarr"):
        raise WriteError(
            f"path={name!r} is the name of a Zarr store, and a GeoTIFF is to be written; give "
            f"path={name[: name.rindex('.')] + '.tif'!r}, or write a Zarr store with xgfm.to_zarr(result, {name!r})"
        )


@contextmanager
def written_whole(path: Path, *, overwrite: bool, inside: str = "") -> Iterator[Path]:
    """Give a folder to write beside ``path``, and put it in its place when the block ends well.

    After a failure the folder stays, and the message names it: tasks that were under way may still write to it, so
    that it cannot be said to be gone.

    Parameters
    ----------
    path : Path
        Local; parents are made.
    overwrite : bool
        Whether something of the same kind may be replaced: it stays until the new one is whole.
    inside : str
        Name of what takes the place, where that is one file of the folder and the rest is scratch.

    Raises
    ------
    WriteError
        Where the path is taken, the disk is full or the folder cannot be written to.
    """
    target = path.resolve()
    _refuse_taken(target, overwrite=overwrite)
    partial = target.with_name(f"{target.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir(parents=True)
        yield partial
        _swap(partial, inside, target)
    except BaseException as error:
        left = _left(partial, target)
        if isinstance(error, OSError) and _concerns(error, target):
            raise WriteError(f"{_refusal('path', path, error)}. {left}") from error
        error.add_note(left)
        raise


@contextmanager
def written_into(folder: Path, name: str) -> Iterator[Path]:
    """Give a folder that files are written into one by one, made where it is not there.

    Parameters
    ----------
    folder : Path
        Local.
    name : str
        Of the argument that says which, for the message.

    Raises
    ------
    WriteError
        Where the disk is full or the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        inside = str(error.filename or "").startswith((str(folder), str(folder.absolute())))
        if folder.is_dir() and error.errno not in _DISK and not inside:
            raise  # of something else, such as an input that could not be read
        left = ". What was written before stays there" if folder.is_dir() else ""
        raise WriteError(f"{_refusal(name, folder, error)}{left}") from error


def _refusal(name: str, path: Path, error: OSError) -> str:
    """Say what the disk said, and which argument mends it."""
    said = _DISK.get(error.errno or 0, "not writable")
    return f"{said} while writing {path} ({error}); give a place that can be written as {name}="


def _refuse_taken(target: Path, *, overwrite: bool) -> None:
    """Refuse what exists, and with ``overwrite`` what is neither a file for a file nor a Zarr store."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise WriteError(f"{target} exists; give another path, or overwrite=True to replace it")
    if target.is_dir() and not any((target / name).is_file() for name in _ZARR):
        raise WriteError(
            f"{target} is a folder and no Zarr store, so overwrite=True does not delete it; give another path"
        )


def _swap(partial: Path, inside: str, target: Path) -> None:
    """Put the new in the place of the old, and clear up."""
    old = target.with_name(f"{partial.name}-old")
    if target.is_dir():
        target.rename(old)
    (partial / inside).replace(target)
    for rest in (old, partial):
        if rest.is_dir():
            shutil.rmtree(rest)


def _concerns(error: OSError, target: Path) -> bool:
    """Whether an error is of the place that is written, not of an input that could not be read."""
    return error.errno in _DISK or str(error.filename or "").startswith((str(target), str(target.parent)))


def _left(partial: Path, target: Path) -> str:
    """What a failed write leaves behind, for the message."""
    size = sum(p.stat().st_size for p in partial.rglob("*") if p.is_file())
    there = f"{target} is as it was" if target.exists() else f"there is nothing at {target}"
    if not partial.exists():
        return f"Nothing is left on disk; {there}."
    return f"Left on disk: {partial} (incomplete, {size / 1e6:.1f} MB), to be deleted; {there}."


def local_file(path: str | PathLike[str], kind: str, suffixes: tuple[str, ...]) -> Path:
    """Return the file of a kind that is meant.

    Raises
    ------
    WriteError
        A URL, or the name of another format.
    """
    target, name = local_folder(path), redacted(str(path))
    if target is None:
        raise WriteError(f"path={name!r} is no local file, and {kind} is written to one; give its path")
    if target.suffix.lower() not in suffixes:
        better = str(Path(name).with_suffix(suffixes[0]))
        raise WriteError(f"path={name!r} is not the name of a {kind} file; give path={better!r}")
    return target
