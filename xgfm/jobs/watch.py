"""What the scheduler knows of a run: which blocks are being computed, and whether anybody is there to do it.

In: a client. Out: a `View` of the moment, and what can be done about workers that are silent or gone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from distributed import Client

_LOG = logging.getLogger(__name__)

EMPTY = 30.0
"""Seconds without any worker after which the cluster is asked for workers again."""


@dataclass(frozen=True)
class View:
    """The scheduler's view of a run."""

    workers: int
    threads: int
    executing: frozenset[str]
    """Keys of blocks that are being computed, as of the workers' last heartbeats."""
    silent: tuple[str, ...]
    """Addresses of workers that hold blocks of this run and have not been heard of for too long."""
    gpus: bool
    """Whether some worker declares a GPU."""


def look(client: Client, prefix: str, silence: float) -> View:
    """Ask the scheduler.

    Parameters
    ----------
    client
        Of the scheduler.
    prefix
        What the keys of this run's blocks begin with.
    silence
        Seconds without a heartbeat after which a worker is silent.
    """
    found: Mapping[str, Any] = client.run_on_scheduler(_probe(prefix, silence))
    return View(
        found["workers"], found["threads"], frozenset(found["executing"]), tuple(found["silent"]), found["gpus"]
    )


def _probe(prefix: str, silence: float) -> Callable[..., dict[str, Any]]:
    """A function that is pickled with its code: the scheduler need not have this package."""

    def probe(dask_scheduler: Any) -> dict[str, Any]:
        import time

        now, states = time.time(), dask_scheduler.workers.values()
        mine = [ws for ws in states if any(str(ts.key).startswith(prefix) for ts in ws.processing)]
        return {
            "workers": len(dask_scheduler.workers),
            "threads": sum(ws.nthreads for ws in states),
            "executing": [ts.key for ws in mine for ts in ws.executing if str(ts.key).startswith(prefix)],
            "silent": [ws.address for ws in mine if now - ws.last_seen > silence],
            "gpus": any("GPU" in ws.resources for ws in states),
        }

    return probe


class Watchdog:
    """Sees that somebody works: restarts workers that hang as a whole, and asks the cluster for workers again.

    Parameters
    ----------
    client
        Of the scheduler.
    say
        Told of what is done.
    """

    def __init__(self, client: Client, say: Callable[[str], None]) -> None:
        self.client, self.say = client, say
        self._most, self._empty = 0, 0.0

    def mind(self, view: View) -> None:
        """Do what a view asks for."""
        if view.silent:
            self._restart(view.silent)
        if view.workers:
            self._most, self._empty = max(self._most, view.workers), 0.0
            return
        moment = time.monotonic()
        self._empty = self._empty or moment
        if moment - self._empty > EMPTY:
            self._empty = moment
            self._ask_again()

    def _restart(self, workers: tuple[str, ...]) -> None:
        self.say(f"restarting {len(workers)} workers that hang: {', '.join(workers)}")
        self.client.restart_workers(list(workers), raise_for_error=False, timeout=60)

    def _ask_again(self) -> None:
        replenish = getattr(self.client, "replenish", None)
        cluster = self.client.cluster
        if replenish is not None:
            self.say("no workers; asking the cluster for them again")
            replenish()
        elif cluster is not None and hasattr(cluster, "scale") and self._most:
            self.say(f"no workers; asking the cluster for {self._most} again")
            cluster.scale(self._most)
        else:
            self.say("no workers; waiting for some to join")
