"""Who runs a job: one process at a time.

In: the objects of a job. Out: a `Holder` that is held, or `Taken`. Holders are numbered objects that can be created
once only; the highest number holds. A holder shows that it lives by rewriting its own object; one that has stopped to
do so is superseded by the next number, and learns so itself at its next beat.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import platform
import threading
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from xgfm.cube.hrefs import redacted
from xgfm.errors import Taken
from xgfm.store.objects import Objects

_LOG = logging.getLogger(__name__)


class Holder:
    """The one process that runs a job; a context manager.

    Parameters
    ----------
    objects : Objects
        Of the job.
    beat : float
        Seconds between signs of life.
    stale : float
        Seconds without one after which another process may take over. A process of this machine that has ended is
        known to have, and is superseded at once.
    """

    def __init__(self, objects: Objects, *, beat: float = 10.0, stale: float = 60.0) -> None:
        self.objects, self.beat, self.stale = objects, beat, stale
        self.number = 0
        self._facts = {"token": uuid.uuid4().hex, "user": _user(), **_process(), "started": _now()}
        self._superseded, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beats, name="xgfm-holder", daemon=True)

    def __enter__(self) -> Holder:
        """Hold the job.

        Raises
        ------
        Taken
            Where another process does.
        """
        while not self.number:
            last = self._highest()
            if last:
                self._refuse_living(last)
            if self.objects.create(_name(last + 1), self._state("running")) or self._mine(last + 1):
                self.number = last + 1
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()
        try:
            self.objects.put(_name(self.number), self._state("released"))
        except Exception as error:  # noqa: BLE001 - a full disk, say: it must not hide why the run ended
            _LOG.warning("%s is released by deleting its holder: %s", redacted(self.objects.url), redacted(str(error)))
            self.objects.delete(_name(self.number))

    def superseded(self) -> bool:
        """Return whether another process has taken over, as far as the last beat told: this one is to stop."""
        return self._superseded.is_set()

    def _beats(self) -> None:
        while not self._ended.wait(self.beat):
            try:
                if self._highest() > self.number:
                    self._superseded.set()
                    return
                self.objects.put(_name(self.number), self._state("running"))
            except Exception as error:  # noqa: BLE001 - a store that is away for a while must not end the run
                _LOG.warning("no sign of life written to %s: %s", redacted(self.objects.url), redacted(str(error)))

    def _state(self, state: str) -> bytes:
        return json.dumps({**self._facts, "state": state, "beat": _now()}).encode()

    def _highest(self) -> int:
        listed = (name.rpartition("/")[2].removesuffix(".json") for name in self.objects.names("holder/"))
        return max((int(stem) for stem in listed if stem.isdecimal()), default=0)

    def _mine(self, number: int) -> bool:
        """Whether the object is ours after all: a request that is sent again finds what the first one made."""
        found: dict[str, Any] = json.loads(self.objects.get(_name(number)))
        return bool(found["token"] == self._facts["token"])

    def _refuse_living(self, number: int) -> None:
        other = json.loads(self.objects.get(_name(number)))
        if other["state"] == "released" or _has_ended(other):
            return
        silent = self._silent(number)
        if silent < self.stale:
            raise Taken(
                f"{redacted(self.objects.url)} is run by {other['user']}, process {other['pid']} on {other['host']}, "
                f"since {other['started']}, last sign of life {max(silent, 0):.0f} s ago; stop that run, or if it is "
                f"dead, try again when it has been silent for {self.stale:.0f} s"
            )

    def _silent(self, number: int) -> float:
        """Seconds since a holder's last sign of life, both ends by the clock of the store."""
        probe = f"holder/probe-{self._facts['token']}"
        self.objects.put(probe, b"")
        now = self.objects.modified(probe)
        self.objects.delete(probe)
        return (now - self.objects.modified(_name(number))).total_seconds()


def _name(number: int) -> str:
    return f"holder/{number:06d}.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no such user in the container
        return "somebody"


def _process() -> dict[str, Any]:
    """What tells a process from all others of this machine, and the machine from all others, as far as it says."""
    import psutil

    return {
        "host": platform.node(),
        "machine": _machine(),
        "pid": os.getpid(),
        "created": psutil.Process().create_time(),
    }


def _machine() -> str | None:
    """Name the boot of the machine and the space of process ids; None where the system does not say."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116 - a link that is not to be resolved
    return None


def _has_ended(other: dict[str, Any]) -> bool:
    """Whether a process is known to have ended: one of this machine that is not there any more."""
    import psutil

    if not other["machine"] or other["machine"] != _machine():
        return False
    try:
        process = psutil.Process(other["pid"])
        return process.create_time() != other["created"] or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
