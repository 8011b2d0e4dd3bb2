"""Workers of a Dask cluster that can be ranks: alive, with a GPU where any has one, each a process of its own.

In: a client and how many are wanted. Out: a `Place` for each, once so many have answered. Nothing is lazy.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distributed import Client, Future

from xgfm.errors import ClusterError
from xgfm.train.ranks.ranks import Rendezvous

LOOK = 1.0
"""Seconds between looks at the scheduler."""
ASK = 10.0
"""Seconds after which the cluster is asked for workers again: some forget those that die twice in a row."""
GPU = "GPU"
"""What workers with a GPU declare as a resource."""


@dataclass(frozen=True)
class Place:
    """A worker that answers."""

    address: str
    """As the scheduler knows it."""
    machine: str
    """Name of the machine."""
    pid: int
    """Of the worker's process."""
    port: int
    """Free on its machine, when it was asked."""
    taken: bool = False
    """Whether the process is a rank of something else."""
    gpu: bool = False
    """Whether the worker declares one."""

    @property
    def resources(self) -> dict[str, float] | None:
        """What a rank takes of the worker: a whole GPU."""
        return {GPU: 1} if self.gpu else None


def muster(client: Client, wanted: int, *, least: int, wait: float) -> list[Place]:
    """Return workers for so many ranks, those of one machine side by side.

    Parameters
    ----------
    client
        Of the cluster. Where some of its workers declare a ``GPU``, only those count.
    wanted
        How many.
    least
        How many will do when the time is over.
    wait
        Seconds.

    Raises
    ------
    ClusterError
        Fewer answer in time; the message says what was there.
    """
    asked: dict[str, Future[Place]] = {}
    answered: queue.SimpleQueue[Future[Place]] = queue.SimpleQueue()
    begun, again = time.monotonic(), False
    end = begun + wait
    try:
        while True:
            _ask(client, asked, answered)
            if not again and time.monotonic() > begun + ASK:
                again = True
                _replenish(client)
            found = [future.result() for future in asked.values() if future.status == "finished"]
            fit = _apart(found)
            if len(fit) >= wanted or (time.monotonic() > end and len(fit) >= least):
                return sorted(fit[:wanted], key=lambda place: (place.machine, place.address))
            if time.monotonic() > end:
                raise ClusterError(_too_few(found, fit, wanted, wait))
            _wait(answered)
    finally:
        if client.status == "running":
            client.cancel(list(asked.values()))


def rendezvous_of(places: Sequence[Place]) -> list[Rendezvous]:
    """Return where ranks on these workers meet: at the first one, under the address that Dask reaches it by."""
    from distributed.comm.addressing import get_address_host

    host = "127.0.0.1" if len(places) == 1 else get_address_host(places[0].address)
    seen: Counter[str] = Counter()
    found = []
    for rank, place in enumerate(places):
        found.append(
            Rendezvous(rank, len(places), seen[place.machine], host, places[0].port, len({p.machine for p in places}))
        )
        seen[place.machine] += 1
    return found


def workers_of(client: Client) -> Mapping[str, Any]:
    """Return what the scheduler says of each worker, by address.

    Raises
    ------
    ClusterError
        It is gone.
    """
    if client.status not in ("running", "connecting"):
        raise ClusterError(
            "the scheduler is gone; training goes on from its last checkpoint when it is called again with a client "
            "of a running cluster"
        )
    found: Mapping[str, Any] = client.scheduler_info()["workers"]
    return found


def _ask(client: Client, asked: dict[str, Future[Place]], answered: queue.SimpleQueue[Future[Place]]) -> None:
    """Ask workers that are new, and those that were taken or failed, to say what they are."""
    workers = workers_of(client)
    gpus = any(GPU in worker["resources"] for worker in workers.values())
    for address, worker in workers.items():
        before = asked.get(address)
        if (gpus and GPU not in worker["resources"]) or (before is not None and not _again(before)):
            continue
        place_of = client.submit(
            _look_round,
            address,
            gpus,
            workers=[address],
            allow_other_workers=False,
            resources={GPU: 1} if gpus else None,
            retries=0,
            pure=False,
        )
        place_of.add_done_callback(answered.put)
        asked[address] = place_of


def _replenish(client: Client) -> None:
    """Ask a cluster that was started here for those of its workers that are missing, and no more."""
    replenish, cluster = getattr(client, "replenish", None), client.cluster
    if replenish is not None:
        replenish()
    elif cluster is not None and getattr(cluster, "worker_spec", None):  # one that knows how many there should be
        cluster.scale(len(cluster.worker_spec))


def _again(future: Future[Place]) -> bool:
    if future.status == "finished":
        return bool(future.result().taken)
    return future.status in ("error", "cancelled", "lost")


def _wait(answered: queue.SimpleQueue[Future[Place]]) -> None:
    """Until a worker answers, or it is time to look again."""
    try:
        future = answered.get(timeout=LOOK)
    except queue.Empty:
        return
    if _again(future):  # not at once: it will still be taken
        time.sleep(LOOK)


def _look_round(address: str, gpu: bool) -> Place:
    """Say, on a worker, what it is."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = int(probe.getsockname()[1])
    together = sys.modules.get("torch.distributed")
    taken = together is not None and together.is_available() and together.is_initialized()
    return Place(address, socket.gethostname(), os.getpid(), port, taken, gpu)


def _apart(found: Sequence[Place]) -> list[Place]:
    """Those that are free, one of each process: two ranks in one process cannot talk to each other."""
    return list({(place.machine, place.pid): place for place in found if not place.taken}.values())


def _too_few(found: Sequence[Place], fit: Sequence[Place], wanted: int, wait: float) -> str:
    taken = sum(place.taken for place in found)
    shared = len(found) - taken - len(fit)
    said = [f"{taken} are ranks of another training"] * bool(taken)
    said += [f"{shared} share a process with another one"] * bool(shared)
    told = f" of {len(found)} that answer ({', '.join(said)})" if said else ""
    return (
        f"ranks={wanted}, but {len(fit)} workers{told} can be ranks after {wait:.0f} s; give fewer ranks=, more "
        "workers, or wait for them before with client.wait_for_workers. Each must be a process of its own"
    )
