"""What became of each block of a job, and where that is written down.

In: an `Entry` per block, when it has been written or has failed for good. Out: which blocks are done, by one listing,
and the entries. Nothing is inferred from the pixels that are stored.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from xgfm.errors import XgfmError
from xgfm.store.objects import Objects

READERS = 64
"""Entries that are fetched at once: on S3 all of the time is waiting."""


@dataclass(frozen=True)
class Entry:
    """What became of one block."""

    block: str
    """Its id."""
    outcome: Literal["done", "failed"]
    digest: str | None = None
    """Of the pixels, as `write_block` read them back."""
    reason: str | None = None
    """Why it failed."""
    item: str | None = None
    """The item that could not be read, where it was that."""
    attempts: int = 1
    seconds: dict[str, float] = field(default_factory=dict)
    """Of each part of the work: read, predict, write."""
    bytes_read: int = 0
    windows: int = 0
    valid_pixels: int = 0
    worker: str = ""
    finished: str = ""
    """UTC, ISO 8601."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What it was made with: digest of the weights, version."""

    def to_json(self) -> str:
        """Return the entry as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Entry:
        """Return the entry that `to_json` wrote.

        Raises
        ------
        XgfmError
            Where it is not one.
        """
        try:
            values = json.loads(text)
            return cls(**values)
        except (ValueError, TypeError) as error:
            names = [f.name for f in fields(cls)]
            raise XgfmError(f"not a ledger entry: {text[:80]!r} ({error}); expected JSON with {names}") from error


@dataclass(frozen=True)
class Ledger:
    """The entries of a job: ``done/<block>.json`` and ``failed/<block>.json``. It can be pickled.

    An entry of a failure is void as soon as the block is done, so that no order of writing matters.
    """

    objects: Objects

    def record(self, entry: Entry) -> None:
        """Write an entry, in place of an earlier one of the same block and outcome."""
        self.objects.put(f"{entry.outcome}/{entry.block}.json", entry.to_json().encode())

    def done(self) -> set[str]:
        """Return the ids of the blocks that are done, by listing alone."""
        return self._listed("done")

    def failed(self) -> set[str]:
        """Return the ids of the blocks that failed and were not done since."""
        return self._listed("failed") - self.done()

    def entries(self, names: Iterable[str] | None = None) -> Iterator[Entry]:
        """Yield entries in the order of the names, fetched several at once.

        Parameters
        ----------
        names : iterable of str, optional
            Block ids; by default of all that are done or failed, sorted.

        Raises
        ------
        FileNotFoundError
            Where a named block has no entry.
        """
        wanted = iter(sorted(self._listed("done") | self._listed("failed")) if names is None else names)
        pending: deque[Future[Entry]] = deque()
        with ThreadPoolExecutor(READERS) as pool:
            for name in wanted:
                pending.append(pool.submit(self._entry, name))
                if len(pending) >= 4 * READERS:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def forget_failed(self, names: Iterable[str]) -> None:
        """Delete the entries of failures, so that the blocks are missing again."""
        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(lambda name: self.objects.delete(f"failed/{name}.json"), names))

    def _listed(self, outcome: str) -> set[str]:
        listed = self.objects.names(f"{outcome}/")
        return {name.rpartition("/")[2].removesuffix(".json") for name in listed if name.endswith(".json")}

    def _entry(self, name: str) -> Entry:
        try:
            text = self.objects.get(f"done/{name}.json")
        except FileNotFoundError:
            text = self.objects.get(f"failed/{name}.json")
        return Entry.from_json(text)
