"""Small objects under one URL: the records of a job, beside its store.

In: a folder or an ``s3://`` URL, and bytes. Out: bytes and names. An object is there whole or not at all, for every
reader; credentials and endpoint come from the environment of the process that reads or writes, never from here.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from xgfm.cube.hrefs import redacted
from xgfm.errors import WriteError

if TYPE_CHECKING:
    from zarr.abc.store import Store


def local_folder(url: str | PathLike[str]) -> Path | None:
    """Return the local folder that is meant, ``file:`` and ``~`` resolved; None for the URL of another store."""
    text = str(url)
    parts = urlsplit(text)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(url2pathname(parts.path))
    if "://" in text:
        return None
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise WriteError(f"path={text!r}: there is no such user; give the whole path") from error


def zarr_store(url: str | PathLike[str]) -> Store:
    """Return a Zarr store for a folder or a URL. It can be pickled, and holds no credentials."""
    from zarr.storage import LocalStore, ObjectStore

    folder = local_folder(url)
    return LocalStore(folder) if folder is not None else ObjectStore(_remote(str(url)))


def endpoint() -> str | None:
    """Return the address of the S3 service that the environment names; None for Amazon's own."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _remote(url: str) -> Any:
    """Open the store that a URL names; an endpoint without TLS is allowed where the environment names one."""
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    given: dict[str, Any] = {}
    where = endpoint()
    if where and urlsplit(url).scheme == "s3":
        given = {"endpoint": where, "client_options": {"allow_http": where.startswith("http://")}}
    try:
        return from_url(url, **given)
    except (BaseError, ValueError) as error:
        reason = redacted(str(error).partition("\n")[0])
        message = f"{redacted(url)} cannot be opened ({reason}); expected a folder or s3://bucket/name"
    # Raised outside of the handler, so that the original, which may quote the whole URL, is not its context.
    raise WriteError(message)


@dataclass(frozen=True)
class Objects:
    """Small objects under one URL. It can be pickled: only the URL travels.

    Parameters
    ----------
    url : str or path
        A folder, made when the first object is written, or ``s3://bucket/prefix``.
    """

    url: str

    def __init__(self, url: str | PathLike[str]) -> None:
        object.__setattr__(self, "url", str(url).rstrip("/"))

    def __getstate__(self) -> dict[str, str]:
        return {"url": self.url}

    def put(self, name: str, data: bytes) -> None:
        """Write an object, in place of the one that is there."""
        import obstore

        with self._failures(name):
            obstore.put(self._writing(), name, data, use_multipart=False)

    def create(self, name: str, data: bytes) -> bool:
        """Write an object where there is none; return whether it was written. Of several at once, one succeeds."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self._failures(name):
            try:
                obstore.put(self._writing(), name, data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
        return True

    def get(self, name: str) -> bytes:
        """Return an object; FileNotFoundError where there is none."""
        import obstore

        with self._failures(name):
            return bytes(obstore.get(self._reading(name), name).bytes())

    def modified(self, name: str) -> datetime:
        """Return when an object was last written, by the clock of the store; FileNotFoundError where there is none."""
        import obstore

        with self._failures(name):
            return obstore.head(self._reading(name), name)["last_modified"]

    def names(self, prefix: str = "") -> Iterator[str]:
        """Yield the names of the objects in a folder and below it, in no order; none where there is no folder."""
        import obstore

        if self._folder is not None and not self._folder.is_dir():
            return
        with self._failures(prefix):
            for page in obstore.list(self._store, prefix.rstrip("/") or None):
                yield from (found["path"] for found in page)

    def delete(self, name: str) -> None:
        """Delete an object; nothing happens where there is none."""
        import obstore

        # A folder says that there is none, S3 does not.
        with self._failures(name), suppress(FileNotFoundError):
            obstore.delete(self._reading(name), name)

    @contextmanager
    def _failures(self, name: str) -> Iterator[None]:
        """Raise what the library raises as the OSError that a file would have raised."""
        from obstore.exceptions import BaseError

        try:
            yield
            return
        except BaseError as error:
            reason = redacted(str(error).partition("\n")[0])
        number = re.search(r"os error (\d+)", reason)
        raise OSError(int(number[1]) if number else errno.EIO, reason, f"{redacted(self.url)}/{name}")

    def _writing(self) -> Any:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        return self._store

    def _reading(self, name: str) -> Any:
        if self._folder is not None and not self._folder.is_dir():
            raise FileNotFoundError(f"there is no {name} in {self.url}: there is no such folder")
        return self._store

    @cached_property
    def _folder(self) -> Path | None:
        return local_folder(self.url)

    @cached_property
    def _store(self) -> Any:
        from obstore.store import LocalStore

        return LocalStore(self._folder) if self._folder is not None else _remote(self.url)
