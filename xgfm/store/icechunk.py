"""A store with snapshots: an Icechunk repository, one commit per batch of blocks.

In: stores in which workers wrote, each a fork of its own. Out: snapshots, each whole, of which every earlier one can
still be read. One process commits; a fork that is never committed leaves no trace that a reader could see.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from xgfm.cube.hrefs import redacted
from xgfm.errors import MissingExtraError, WriteError
from xgfm.store.objects import endpoint, local_folder
from xgfm.store.template import refuse_differing, write_metadata

if TYPE_CHECKING:
    import xarray as xr
    from zarr.abc.store import Store

BRANCH = "main"


class IcechunkSink:
    """An Icechunk repository at a folder or an ``s3://`` URL, made where there is none.

    On a file system, exactly one process may commit: two lose each other's commits silently.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._repository = _opened(url)

    def create(self, templates: Mapping[str, xr.Dataset], *, chunk: int, shard: int) -> None:
        """Write the metadata of the whole store in one commit; nothing happens where it is there already."""
        if refuse_differing(self.url, self.open_for_reading(), templates, chunk=chunk, shard=shard):
            return
        session = self._repository.writable_session(BRANCH)
        write_metadata(session.store, templates, chunk=chunk, shard=shard, consolidated=False)
        session.commit("template")

    def open_for_writing(self) -> Store:
        """Return a fork of the newest snapshot for one block; commits in the meantime do not spoil it."""
        fork: Store = self._repository.writable_session(BRANCH).fork().store
        return fork

    def open_for_reading(self) -> Store:
        """Return the newest snapshot."""
        newest: Store = self._repository.readonly_session(BRANCH).store
        return newest

    def commit(self, written: Iterable[Any], message: str) -> str | None:
        """Make one snapshot of everything that was written into forks; None where that is nothing."""
        from icechunk import ConflictDetector

        session = self._repository.writable_session(BRANCH)
        session.merge(*(store.session for store in written))
        if not session.has_uncommitted_changes:
            return None
        snapshot: str = session.commit(message, rebase_with=ConflictDetector())
        return snapshot


def _opened(url: str) -> Any:
    try:
        import icechunk
    except ImportError as error:
        raise MissingExtraError("icechunk", "icechunk", "a store with snapshots") from error
    folder = local_folder(url)
    if folder is not None:
        return icechunk.Repository.open_or_create(icechunk.local_filesystem_storage(str(folder)))
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc:
        raise WriteError(f"{redacted(url)}: a store with snapshots stands in a folder or at s3://bucket/name")
    where = endpoint()
    storage = icechunk.s3_storage(
        bucket=parts.netloc,
        prefix=parts.path.strip("/"),
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        endpoint_url=where,
        allow_http=bool(where and where.startswith("http://")),
        force_path_style=where is not None,
        from_env=True,
    )
    return icechunk.Repository.open_or_create(storage)
