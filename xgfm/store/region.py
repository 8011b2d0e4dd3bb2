"""One block of a result on disk: whole shards, written, read back, and known by their digest.

In: the arrays of a block in memory, and where they belong. Out: the digest of what the store gives back. Two blocks
never share a shard, so that any number of processes may write at once, and a block may be written twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from itertools import product
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from xgfm.errors import WriteError
from xgfm.store.objects import local_folder

if TYPE_CHECKING:
    import zarr
    from zarr.abc.store import Store

_PIECE = 1 << 22
"""Values that are hashed at once."""


def write_block(store: Store, group: str, arrays: Mapping[str, np.ndarray], rows: slice, columns: slice) -> str:
    """Write a block, read it back and return its digest.

    Parameters
    ----------
    store : zarr Store
        As `zarr_store` or `Sink.open_for_writing` gives it; the template stands in it.
    group : str
        Of the block's area; ``""`` is the root.
    arrays : mapping of str to ndarray
        By name, of dims ``(..., y, x)``, the leading dims whole, of the dtype of the template.
    rows, columns : slice
        Where: whole shards, or up to the edge of the array.

    Returns
    -------
    str
        Digest of names, shapes, dtypes and values, as `digest` gives it.

    Raises
    ------
    WriteError
        Where the region is not whole shards, an array does not fit the template, or what is read back is not what was
        written.
    """
    targets = _targets(store, group, arrays, mode="r+")
    for name, target in targets.items():
        _check(name, target, arrays[name], rows, columns)
    expected = digest(arrays)
    for name, target in targets.items():
        _write(target, arrays[name], rows, columns)
    found = _digest_of(targets, rows, columns)
    if found != expected:
        raise WriteError(
            f"{_where(group, rows, columns)} reads back with digest {found}, and {expected} was written; "
            "the store lost or changed it: write the block again, and check the disk if it happens twice"
        )
    return found


def read_digest(store: Store, group: str, names: Iterable[str], rows: slice, columns: slice) -> str:
    """Return the digest of a block as it stands in a store.

    Parameters
    ----------
    store, group, rows, columns
        As for `write_block`.
    names : iterable of str
        Of the arrays, in any order.
    """
    return _digest_of(_targets(store, group, names, mode="r"), rows, columns)


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the BLAKE2b digest of named arrays: equal where names, shapes, dtypes and values are.

    NaN is NaN, whatever its bits: a chunk without data is not stored, and gives back the fill value's.
    """
    state = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = arrays[name]
        little = array.dtype.newbyteorder("<")
        state.update(repr((name, array.shape, little.str)).encode())
        flat = array.reshape(-1)
        for first in range(0, flat.size, _PIECE):
            piece = np.ascontiguousarray(flat[first : first + _PIECE], dtype=little)
            state.update(_plain(piece).data)
    return state.hexdigest()


def sweep(url: str | PathLike[str]) -> int:
    """Delete what processes killed in the middle of a write have left in a local store; return the number of files.

    Only the holder of the job may do so: the file of a write under way is not told from one that was given up.
    Elsewhere nothing is left that a reader or a listing could see.
    """
    folder = local_folder(url)
    left = [] if folder is None else list(folder.rglob("*.partial"))
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


def _plain(values: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(values), values.dtype.type(np.nan), values) if values.dtype.kind == "f" else values


def _digest_of(targets: Mapping[str, zarr.Array[Any]], rows: slice, columns: slice) -> str:
    return digest({name: np.asarray(target[..., rows, columns]) for name, target in targets.items()})


def _targets(store: Store, group: str, names: Iterable[str], *, mode: Any) -> dict[str, zarr.Array[Any]]:
    import zarr

    try:
        return {n: zarr.open_array(store, path=f"{group}/{n}".strip("/"), mode=mode, zarr_format=3) for n in names}
    except FileNotFoundError as error:
        raise WriteError(
            f"the store has no array for one of {sorted(names)} in group {group!r}; write its template first"
        ) from error


def _check(name: str, target: zarr.Array[Any], array: np.ndarray, rows: slice, columns: slice) -> None:
    shards = target.shards or target.chunks
    for axis, part, size, shard in zip("yx", (rows, columns), target.shape[-2:], shards[-2:], strict=True):
        plain = None not in (part.start, part.stop) and part.step in (None, 1)
        inside = plain and 0 <= part.start < part.stop <= size
        if not (inside and part.start % shard == 0 and (part.stop % shard == 0 or part.stop == size)):
            raise WriteError(
                f"{name!r}: {axis} from {part.start} to {part.stop} is not whole shards of {shard} pixels of {size}, "
                "and writers of one shard lose each other's pixels; give blocks of whole shards"
            )
    shape = (*target.shape[:-2], rows.stop - rows.start, columns.stop - columns.start)
    if array.shape != shape or array.dtype != target.dtype:
        raise WriteError(
            f"{name!r}: the block is {array.dtype} {array.shape}, the template expects {target.dtype} {shape}"
        )


def _write(target: zarr.Array[Any], array: np.ndarray, rows: slice, columns: slice) -> None:
    try:
        target[..., rows, columns] = array
    except (ValueError, RuntimeError):
        # A damaged shard stands there: zarr reads its index even where all of it is written.
        _delete(target, rows, columns)
        target[..., rows, columns] = array


def _delete(target: zarr.Array[Any], rows: slice, columns: slice) -> None:
    """Delete the shards of a region, without reading them."""
    from zarr.core.sync import sync

    sides = target.shards or target.chunks
    leading = (range(-(-n // side)) for n, side in zip(target.shape[:-2], sides, strict=False))
    within = (
        range(part.start // side, -(-part.stop // side)) for part, side in zip((rows, columns), sides[-2:], strict=True)
    )
    for place in product(*leading, *within):
        sync((target.store_path / target.metadata.encode_chunk_key(place)).delete())


def _where(group: str, rows: slice, columns: slice) -> str:
    return f"block {group!r} rows {rows.start}-{rows.stop} columns {columns.start}-{columns.stop}"
