"""How a run of a job ended.

In: counts. Out: an `Outcome`, told in a line of text or as a table of a notebook.
"""

from __future__ import annotations

from dataclasses import dataclass

from xgfm.notebook import card

_LISTED = 8


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    blocks: int
    """Of the job, with work."""
    done: int
    """In all runs so far."""
    computed: int
    """In this run."""
    failed: tuple[str, ...]
    """That failed for good, in all runs so far."""
    seconds: float
    stopped: str | None = None
    """Why the run ended before its time; None where it went through."""
    report: str | None = None
    """Address of the report."""

    @property
    def missing(self) -> int:
        """Blocks that are neither done nor failed."""
        return self.blocks - self.done - len(self.failed)

    @property
    def complete(self) -> bool:
        """Whether every block is done."""
        return self.done == self.blocks

    def __str__(self) -> str:
        said = f"{self.done} of {self.blocks} blocks done, {self.computed} of them in this run, in {self.seconds:.0f} s"
        if self.failed:
            said += f"; {len(self.failed)} failed: {self._listed()}"
        if self.missing:
            said += f"; {self.missing} missing"
        return said + (f". Stopped: {self.stopped}" if self.stopped else "")

    def _listed(self) -> str:
        return ", ".join(self.failed[:_LISTED]) + (", ..." if len(self.failed) > _LISTED else "")

    def _repr_html_(self) -> str:
        rows = {
            "blocks": f"{self.done:,} of {self.blocks:,} done, {self.computed:,} of them in this run",
            "failed": f"{len(self.failed):,}: {self._listed()}" if self.failed else "",
            "missing": f"{self.missing:,}" if self.missing else "",
            "stopped": self.stopped or "",
            "time": f"{self.seconds:,.0f} s",
            "report": self.report or "",
        }
        return card("a run of a job", rows)
