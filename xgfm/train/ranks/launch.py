"""Training on the workers of a Dask cluster: one rank on each, again from the last checkpoint when one dies.

In: settings, a client, how many ranks. Out: what rank 0 returns. Nothing is lazy. A worker that dies, is taken away or
hangs ends the attempt for all ranks; the next one takes the workers that are there then, and a new port.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from distributed import Client, Future
from distributed.scheduler import KilledWorker

from xgfm.errors import ClusterError, XgfmError
from xgfm.jobs.watch import look
from xgfm.train.ranks.muster import LOOK, Place, muster, rendezvous_of, workers_of
from xgfm.train.ranks.ranks import Ranks, Rendezvous, joined

if TYPE_CHECKING:
    from xgfm.train.loop.trainer import TrainResult
    from xgfm.train.settings import TrainSettings

T = TypeVar("T")
_LOG = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often training is begun, the first time counted in."""
WAIT = 600.0
"""Seconds in which the workers must be there, the first time."""
SETTLE = 60.0
"""Seconds that a worker has to come back before the others go on without it."""
GRACE = 20.0
"""Seconds that the other ranks have to notice that one has failed, before their workers are restarted."""
SILENCE = 60.0
"""Seconds without a heartbeat after which a rank counts as hanging: torch leaves the worker's own threads running."""
RESTART = 30.0
"""Seconds that a restart of workers may take."""
_PEER = re.compile(r"gloo|nccl|connection|peer|socket|timed out|timeout|store", re.IGNORECASE)
"""What torch says, in a plain RuntimeError, to a rank whose peer is gone."""


def launch(
    settings: TrainSettings,
    client: Client,
    ranks: int = 1,
    *,
    attempts: int = ATTEMPTS,
    wait: float = WAIT,
    grace: float = GRACE,
) -> TrainResult:
    """Train on the workers of a cluster.

    Parameters
    ----------
    settings
        What to train. Its folder and its chips must be seen by every worker.
    client
        Of workers that have this package and torch.
    ranks
        How many processes train together, one on each worker; where workers declare a GPU, on each of those.
    attempts, wait, grace
        As of `run_ranks`.

    Returns
    -------
    TrainResult

    Raises
    ------
    ClusterError
        Too few workers, or every attempt ended with a worker that died. The checkpoints are there: the same call
        goes on from them.
    XgfmError
        What training itself refuses; that is not tried again.
    """
    return run_ranks(
        partial(_train, settings),
        client,
        ranks,
        device=settings.device,
        attempts=attempts,
        wait=wait,
        grace=grace,
    )


def _train(settings: TrainSettings, ranks: Ranks) -> TrainResult:  # noqa: ARG001 - `train` finds them itself
    from xgfm.train.loop.trainer import train

    return train(settings)


def on_worker(function: Callable[[], T], client: Client) -> T:
    """Call a function on one worker, with a GPU where any has one, and return its answer.

    Parameters
    ----------
    function
        It can be pickled, and called again where its worker dies.
    client
        Of the cluster.
    """
    return run_ranks(partial(_call, function), client, 1)


def _call(function: Callable[[], T], ranks: Ranks) -> T:  # noqa: ARG001 - there is one
    return function()


def run_ranks(
    function: Callable[[Ranks], T],
    client: Client,
    ranks: int,
    *,
    device: str | None = None,
    attempts: int = ATTEMPTS,
    wait: float = WAIT,
    grace: float = GRACE,
) -> T:
    """Call a function on several workers at once, joined as ranks, and return what rank 0 returns.

    Parameters
    ----------
    function
        Called with the `Ranks`. It can be pickled, and goes on from where an earlier attempt ended.
    client
        Of the cluster.
    ranks
        How many. After a failure fewer will do, where no more are there within `SETTLE` seconds.
    device
        As of `joined`.
    attempts
        How often to begin.
    wait
        Seconds in which so many workers must be there.
    grace
        Seconds that the other ranks have to end by themselves after one has failed; then their workers are restarted.

    Raises
    ------
    ClusterError
        Too few workers, or no attempt came to its end.
    Exception
        Of the function, where it is not the kind that may pass.
    """
    if ranks < 1 or attempts < 1:
        raise ClusterError(f"ranks={ranks}, attempts={attempts}; expected at least 1 of each")
    for attempt in range(1, attempts + 1):
        again = attempt > 1
        places = muster(client, ranks, least=1 if again else ranks, wait=min(wait, SETTLE) if again else wait)
        if len(places) < ranks:
            _LOG.warning("training goes on with %d ranks of %d: no more workers are there", len(places), ranks)
        try:
            return _Attempt(client, function, places, device).run(grace)
        except Exception as error:
            if not _may_pass(error):
                raise
            _LOG.warning("attempt %d of %d to train has failed: %s", attempt, attempts, error)
            failed = error
    raise ClusterError(
        f"training failed {attempts} times, last with: {failed}. What it had reached is in its last checkpoint: the "
        "same call goes on from there; attempts= sets how often it is tried"
    ) from failed


class _Attempt(Generic[T]):
    """One rank on each of some workers, until all are through or one has failed."""

    def __init__(
        self, client: Client, function: Callable[[Ranks], T], places: Sequence[Place], device: str | None
    ) -> None:
        self.client, self.places = client, places
        self.errors: dict[int, BaseException] = {}
        self.answer: list[T] = []
        self.landed: queue.SimpleQueue[Future[T]] = queue.SimpleQueue()
        self.flying: dict[Future[T], int] = {}
        self.prefix = f"xgfm-train-{uuid.uuid4().hex[:8]}-"
        for meeting, place in zip(rendezvous_of(places), places, strict=True):
            future = client.submit(
                _rank,
                function,
                meeting,
                place.pid,
                device,
                key=f"{self.prefix}{meeting.rank}",
                workers=[place.address],
                allow_other_workers=False,
                resources=place.resources,
                retries=0,
                pure=False,
            )
            self.flying[future] = meeting.rank
            future.add_done_callback(self.landed.put)

    def run(self, grace: float) -> T:
        """Wait for the ranks; return what the first one returns."""
        end: float | None = None
        try:
            while self.flying and (end is None or time.monotonic() < end):
                self._land()
                if self.errors and end is None:
                    end = time.monotonic() + grace
        finally:
            self._end()
        if self.errors:
            raise _cause(self.errors)
        return self.answer[0]

    def _land(self) -> None:
        """Take what a rank returned or raised; where none is through, see whether their workers are still there."""
        try:
            future = self.landed.get(timeout=LOOK)
        except queue.Empty:
            self._miss()
            return
        rank = self.flying.pop(future, None)
        if rank is None:
            return
        if future.status == "finished":
            answer = future.result()
            self.answer += [answer] if rank == 0 else []
        else:
            self.errors[rank] = self._error(rank, future)

    def _error(self, rank: int, future: Future[T]) -> BaseException:
        found: BaseException | None = future.exception() if future.status == "error" else None
        if found is None or isinstance(found, KilledWorker):
            return self._gone(rank)
        return found

    def _miss(self) -> None:
        """Note ranks whose workers are gone, or hang as a whole.

        The scheduler itself would wait for ever for a worker of the same address.
        """
        there, silent = workers_of(self.client), look(self.client, self.prefix, SILENCE).silent
        for future, rank in list(self.flying.items()):
            address = self.places[rank].address
            if address not in there:
                self.errors[rank] = self._gone(rank)
                del self.flying[future]
                self.client.cancel([future], force=True)
            elif address in silent:
                self.errors[rank] = ClusterError(f"the worker of rank {rank} hangs: nothing was heard of {address}")

    def _gone(self, rank: int) -> ClusterError:
        place = self.places[rank]
        return ClusterError(
            f"the worker of rank {rank} of {len(self.places)} is gone ({place.address} on {place.machine}, process "
            f"{place.pid}): killed, out of memory, or its time in the queue was over"
        )

    def _end(self) -> None:
        """Restart workers whose ranks do not end: a rank that waits for a dead peer cannot be told."""
        if not self.flying or self.client.status != "running":
            return
        there = workers_of(self.client)
        left = [self.places[rank].address for rank in self.flying.values()]
        self.client.cancel(list(self.flying), force=True)
        self.flying.clear()
        stuck = [address for address in left if address in there]
        _LOG.warning("restarting %d workers whose ranks have not ended: %s", len(stuck), ", ".join(stuck))
        try:
            self.client.restart_workers(stuck, timeout=RESTART, raise_for_error=False)
        except ValueError as error:  # without a nanny; a worker that does not answer is not asked again
            _LOG.warning("they cannot be restarted, and stay as they are: %s", error)


def _rank(function: Callable[[Ranks], Any], meeting: Rendezvous, pid: int, device: str | None) -> Any:
    """Be a rank, on a worker."""
    from xgfm.infer.sharing import set_threads

    if os.getpid() != pid:  # Dask repeats what was on a worker that died
        raise ClusterError(f"the worker of rank {meeting.rank} was started again in the meantime")
    set_threads()
    with joined(meeting, device=device) as ranks:
        answer = function(ranks)
    return answer if meeting.rank == 0 else None


def _cause(errors: dict[int, BaseException]) -> BaseException:
    """Return, of what several ranks say, what the others follow from."""
    said = [errors[rank] for rank in sorted(errors)]
    own = [error for error in said if not _may_pass(error)]
    deaths: list[BaseException] = [error for error in said if isinstance(error, ClusterError)]
    return (own or deaths or said)[0]


def _may_pass(error: BaseException) -> bool:
    """Whether another attempt may go better: workers, networks and devices fail, not what the function does."""
    import torch

    if isinstance(error, XgfmError):
        return isinstance(error, ClusterError)
    if isinstance(error, OSError | torch.AcceleratorError | torch.distributed.DistError):
        return True
    return type(error) is RuntimeError and _PEER.search(str(error)) is not None
