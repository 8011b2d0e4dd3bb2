"""What a job has come to, from its ledger alone.

In: the plan and the ledger, read once, entry after entry. Out: a `Summary`: outcomes by block, seconds of each part of
the work, what failed and why, when it began and ended. Entries are not kept: of a continent there are many.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xgfm.jobs.planned import STATES, WORK, Plan
from xgfm.store.ledger import Entry, Ledger

if TYPE_CHECKING:
    from xgfm.jobs.lattice import Area

PARTS = ("read", "wait", "predict", "write")
"""What a block's time goes to: reading, waiting for the device, computing, and writing and reading back."""
OUTCOMES = (*STATES[:WORK], "missing", "done", "failed")
"""What a block can be after a run; before `WORK` as in `STATES`."""
DONE, FAILED = OUTCOMES.index("done"), OUTCOMES.index("failed")


@dataclass
class Summary:
    """A job's ledger, added up."""

    outcomes: Mapping[str, NDArray[np.uint8]]
    """By area, ``(row, column)``: position in `OUTCOMES`."""
    failed: list[Entry] = field(default_factory=list)
    seconds: dict[str, array[float]] = field(default_factory=lambda: {part: array("d") for part in PARTS})
    """Of each block that is done, by part."""
    windows: int = 0
    bytes_read: int = 0
    valid_pixels: int = 0
    repeated: int = 0
    """Blocks that took more than one attempt."""
    workers: set[str] = field(default_factory=set)
    weights: Counter[str] = field(default_factory=Counter)
    """Blocks by digest of the weights."""
    versions: Counter[str] = field(default_factory=Counter)
    """Blocks by version of this package."""
    started: datetime | None = None
    """When the first block was begun."""
    ended: datetime | None = None
    """When the last block was done."""
    digest: str = ""
    """Of the blocks' digests: the same store has the same."""

    @property
    def counts(self) -> dict[str, int]:
        """Blocks by outcome."""
        total = sum((np.bincount(o.ravel(), minlength=len(OUTCOMES)) for o in self.outcomes.values()), start=0)
        return dict(zip(OUTCOMES, np.broadcast_to(total, len(OUTCOMES)).tolist(), strict=True))

    @property
    def blocks(self) -> int:
        """Blocks with work."""
        return sum(self.counts[name] for name in OUTCOMES[WORK:])

    @property
    def complete(self) -> bool:
        """Whether every block with work is done."""
        return self.counts["done"] == self.blocks

    def add(self, entry: Entry) -> None:
        """Take the entry of a block that is done."""
        for part in PARTS:
            self.seconds[part].append(entry.seconds.get(part, 0.0))
        self.windows += entry.windows
        self.bytes_read += entry.bytes_read
        self.valid_pixels += entry.valid_pixels
        self.repeated += entry.attempts > 1
        self.workers.add(entry.worker)
        self.weights[str(entry.facts.get("weights_digest", ""))] += 1
        self.versions[str(entry.facts.get("xgfm_version", ""))] += 1
        ended = datetime.fromisoformat(entry.finished)
        started = ended - timedelta(seconds=sum(entry.seconds.values()))
        self.started = min(self.started or started, started)
        self.ended = max(self.ended or ended, ended)


def summarise(plan: Plan, ledger: Ledger) -> Summary:
    """Add up a ledger.

    Parameters
    ----------
    plan, ledger
        The job, and what became of its blocks.
    """
    done = ledger.done()
    failed = ledger.failed()
    summary = Summary({area.name: _outcomes(plan, area) for area in plan.areas})
    digest = hashlib.blake2b(digest_size=16)
    for entry in ledger.entries(sorted(done)):
        summary.add(entry)
        digest.update(f"{entry.block} {entry.digest}\n".encode())
    summary.digest = digest.hexdigest()
    summary.failed = list(ledger.entries(sorted(failed)))
    _mark(plan, summary, done, DONE)
    _mark(plan, summary, failed, FAILED)
    return summary


def _outcomes(plan: Plan, area: Area) -> NDArray[np.uint8]:
    """Every block with work is missing until the ledger says otherwise; the codes are those of `STATES`."""
    return plan.codes(area).copy()


def _mark(plan: Plan, summary: Summary, names: Iterable[str], outcome: int) -> None:
    for area, row, column in _places(plan, names):
        summary.outcomes[area][row, column] = outcome


def _places(plan: Plan, names: Iterable[str]) -> Iterator[tuple[str, int, int]]:
    for name in names:
        block = plan.block(name)
        yield block.area, block.row, block.column
