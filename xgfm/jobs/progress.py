"""How far a run is: a bar in a terminal or a notebook, and a log file beside the store.

In: what became of each block, as it happens. Out: blocks done and failed, square kilometres per second, and the time
that is left. The log holds a line for everything unusual and one in a while for what is not.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from xgfm.cube.hrefs import redacted
from xgfm.jobs.block import now
from xgfm.store.objects import Objects

_LOG = logging.getLogger(__name__)

EVERY = 30.0
"""Seconds between lines of the log while nothing unusual happens, and between two writings of it."""


class Progress:
    """Counts of one run; a context manager.

    Parameters
    ----------
    objects
        Where the log goes, as ``logs/<run>.log``.
    run
        Name of the run.
    total
        Blocks of the job that have work.
    done, failed
        Blocks that were done, or had failed, before this run.
    show
        Whether to show a bar.
    """

    def __init__(
        self, objects: Objects, run: str, *, total: int, done: int = 0, failed: int = 0, show: bool = True
    ) -> None:
        self.objects, self.name = objects, f"logs/{run}.log"
        self.total, self.before, self.done, self.failed, self.km2 = total, done, done, failed, 0.0
        self.start = self._said = self._written = time.monotonic()
        self._show, self._lines, self._unwritten = show, list[str](), False
        self._bar: Any = None

    def __enter__(self) -> Progress:
        """Show the bar."""
        from tqdm.auto import tqdm

        live = sys.stderr.isatty() or "ipykernel" in sys.modules
        self._bar = tqdm(
            total=self.total,
            initial=self.done,
            unit="block",
            disable=not self._show,
            mininterval=0.5 if live else EVERY,
        )
        self.note(f"{self.total} blocks have work, {self.done} are done, {self.failed} have failed before")
        return self

    def __exit__(self, *exception: object) -> None:
        self.note(self.line())
        self._write()
        self._bar.close()

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self.start

    @property
    def left(self) -> float | None:
        """Seconds that the rest takes at the rate so far; None before the first block."""
        ended = self.done - self.before
        return self.seconds / ended * (self.total - self.done - self.failed) if ended else None

    def finish(self, km2: float) -> None:
        """Count a block that is done."""
        self.done += 1
        self.km2 += km2
        self._bar.update()
        self._bar.set_postfix_str(
            f"{self.failed} failed, {self.km2 / max(self.seconds, 1e-9):.3g} km2/s", refresh=False
        )

    def fail(self, block: str, reason: str) -> None:
        """Count a block that failed for good."""
        self.failed += 1
        self.note(f"{block} failed: {reason}")

    def line(self) -> str:
        """Return the counts in words."""
        left = "" if self.left is None or self.done >= self.total else f", {_duration(self.left)} left"
        rate = self.km2 / max(self.seconds, 1e-9)
        return f"{self.done} of {self.total} blocks done, {self.failed} failed, {rate:.3g} km2/s{left}"

    def note(self, text: str) -> None:
        """Add a line to the log."""
        self._lines.append(f"{now()} {redacted(text)}")
        self._said, self._unwritten = time.monotonic(), True
        _LOG.info("%s", redacted(text))

    def tick(self) -> None:
        """Write the log, and a line of counts, when it is time."""
        moment = time.monotonic()
        if moment - self._said > EVERY:
            self.note(self.line())
        if self._unwritten and moment - self._written > EVERY / 3:
            self._write()

    def _write(self) -> None:
        self._written, self._unwritten = time.monotonic(), False
        try:
            self.objects.put(self.name, ("\n".join(self._lines) + "\n").encode())
        except Exception as error:  # noqa: BLE001 - a full disk must not hide why the run stops
            _LOG.warning("the log %s/%s cannot be written: %s", redacted(self.objects.url), self.name, error)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
