"""Where a job's pixels go: a Zarr store as it is, or one with snapshots.

In: the templates of a job, then the stores in which workers wrote blocks. Out: pixels that readers see. With a plain
store a block is seen as soon as it is written; a `Sink` that commits shows whole batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal, Protocol

from xgfm.errors import XgfmError
from xgfm.store.icechunk import IcechunkSink
from xgfm.store.objects import zarr_store
from xgfm.store.template import create_store

if TYPE_CHECKING:
    import xarray as xr
    from zarr.abc.store import Store


class Sink(Protocol):
    """A place that blocks are written to; used by the one process that holds the job."""

    def create(self, templates: Mapping[str, xr.Dataset], *, chunk: int, shard: int) -> None:
        """Write the metadata of the whole store, as `create_store` does."""

    def open_for_writing(self) -> Store:
        """Return a store for one block, to be sent to the worker that writes it, and back to `commit`."""

    def open_for_reading(self) -> Store:
        """Return a store that shows what is committed; it can be sent to workers."""

    def commit(self, written: Iterable[Store], message: str) -> str | None:
        """Show readers what was written into stores of `open_for_writing`; return the snapshot's id, if there is one.

        A block is to be recorded as done after that, not before.
        """


class PlainSink:
    """A Zarr store as it is, at a folder or a URL: what is written is seen at once."""

    def __init__(self, url: str) -> None:
        self.url = url

    def create(self, templates: Mapping[str, xr.Dataset], *, chunk: int, shard: int) -> None:
        """Write the metadata of the whole store, as `create_store` does."""
        create_store(self.url, templates, chunk=chunk, shard=shard)

    def open_for_writing(self) -> Store:
        """Return the store."""
        return zarr_store(self.url)

    def open_for_reading(self) -> Store:
        """Return the store."""
        return zarr_store(self.url)

    def commit(self, written: Iterable[Store], message: str) -> None:
        """Do nothing: it is there already."""


def open_sink(url: str, kind: Literal["zarr", "icechunk"] = "zarr") -> Sink:
    """Return where a job's pixels go.

    Parameters
    ----------
    url : str
        Folder, or ``s3://bucket/name``.
    kind : str
        ``"zarr"``, or ``"icechunk"``: a repository with one commit per batch of blocks and all earlier snapshots.
    """
    if kind not in ("zarr", "icechunk"):
        raise XgfmError(f"kind={kind!r} is no kind of store; expected 'zarr' or 'icechunk'")
    return PlainSink(url) if kind == "zarr" else IcechunkSink(url)
