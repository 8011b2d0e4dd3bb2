"""The run of a job: blocks to the workers and back, a bounded number at a time, until none is missing.

In: a plan and a client. Out: an `Outcome`; the store and its ledger are filled on the way. What is missing is known
from the ledger alone, so that a run may end at any moment, in any way, and the next one goes on.
"""

from __future__ import annotations

import queue
import signal
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from distributed import Client, Future
from distributed.scheduler import KilledWorker

from xgfm.cube.hrefs import redacted
from xgfm.errors import ClusterError, JobError, ReadError, StoreFull, Taken, WriteError, XgfmError
from xgfm.grid import pixel_size_m
from xgfm.jobs.block import compute_block, item_of, now, plan_digest
from xgfm.jobs.outcome import Outcome
from xgfm.jobs.progress import Progress
from xgfm.jobs.watch import View, Watchdog, look
from xgfm.store.ledger import Entry, Ledger
from xgfm.store.lock import Holder
from xgfm.store.region import sweep
from xgfm.store.sinks import PlainSink, Sink, open_sink

if TYPE_CHECKING:
    from zarr.abc.store import Store

    from xgfm.jobs.lattice import Block
    from xgfm.jobs.planned import Plan
    from xgfm.models.handle import ModelHandle

LEAST = 64
"""Blocks in flight, at least: a worker is never without one."""
PER_THREAD = 4
LOOK = 2.0
"""Seconds between looks at the scheduler."""
GRACE = 20.0
"""Seconds that blocks under way get when a run is stopped."""
SILENCE = 30.0
"""Seconds without a heartbeat before which no worker counts as hanging, however short the job's limit."""
BATCH = 64
"""Blocks of one commit, for sinks that commit."""


@dataclass
class _Trial:
    """A block on its way."""

    block: Block
    attempt: int = 1
    store: Store | None = None


def run_plan(
    plan: Plan,
    client: Client,
    *,
    sink: Sink | None = None,
    progress: bool = True,
    grace: float = GRACE,
    holder: Holder | None = None,
) -> Outcome:
    """Compute every block of a plan that is missing.

    Parameters
    ----------
    plan
        As it was saved.
    client
        Of workers that have this package and see the store.
    sink
        Where the pixels go; the job's own where not given.
    progress
        Whether to show a bar.
    grace
        Seconds that blocks under way get when the run is stopped by a signal.
    holder
        Who runs the job; this process, where not given.

    Returns
    -------
    Outcome

    Raises
    ------
    Taken
        Another process runs the job.
    StoreFull
        The store takes no more.
    JobError
        A block failed for good, and the job's limits say ``on_error: raise``.
    ClusterError
        The scheduler is gone.
    """
    sink = open_sink(plan.spec.store, plan.spec.sink) if sink is None else sink
    with holder or Holder(plan.objects) as held:
        sweep(plan.spec.store)
        handle = plan.load_task()
        templates = {area.group: plan.template(area, handle) for area in plan.areas}
        sink.create(templates, chunk=plan.spec.chunk, shard=plan.spec.shards)
        return _Run(plan, client, sink, held, grace, handle if handle.build is not None else None).run(progress)


class _Run:
    """One run: its blocks in flight, and what becomes of them."""

    def __init__(
        self, plan: Plan, client: Client, sink: Sink, holder: Holder, grace: float, handle: ModelHandle | None
    ) -> None:
        self.plan, self.client, self.sink, self.holder, self.grace = plan, client, sink, holder, grace
        self.handle = handle  # of a task that was registered in this process; others are loaded by name
        self.ledger, self.limits = Ledger(plan.objects), plan.spec.limits
        self.name = f"{now().replace(':', '').replace('+0000', 'Z')}-{uuid.uuid4().hex[:6]}"
        self.prefix, self.digest = f"xgfm-{self.name}-", plan_digest(plan.objects)
        self.flying: dict[Future[Any], _Trial] = {}
        self.landed: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        self.again: deque[_Trial] = deque()
        self.aside: deque[_Trial] = deque()
        self.written: list[tuple[Entry, Store]] = []
        self.failed: set[str] = set()
        self.stopped: str | None = None
        self.error: Exception | None = None
        self.alone = False
        self._number = 0

    def run(self, show: bool) -> Outcome:
        """Go through the blocks."""
        done, self.failed = self.ledger.done(), self.ledger.failed()
        states = self.plan.states()
        missing = (_Trial(b) for b in self.plan.blocks() if b.id not in done and b.id not in self.failed)
        self.progress = Progress(
            self.plan.objects, self.name, total=states["work"], done=len(done), failed=len(self.failed), show=show
        )
        with self.progress, _signals(self.stop):
            self.watchdog = Watchdog(self.client, self.progress.note)
            self.view = self._look()
            try:
                self._fly(missing)
                if self.stopped is None:
                    self.alone = True  # blocks under which workers died: each by itself, to know which it is
                    self._fly(iter(()))
            finally:
                self._commit()
                self._let_go()
            outcome = Outcome(
                states["work"],
                self.progress.done,
                self.progress.done - self.progress.before,
                tuple(sorted(self.failed)),
                self.progress.seconds,
                self.stopped,
            )
            self.progress.note(str(outcome))
        if self.error is not None:
            raise self.error
        return outcome

    def stop(self, why: str) -> None:
        """Submit nothing more; blocks under way are waited for, for a while."""
        self.stopped = self.stopped or why

    def _fly(self, missing: Iterator[_Trial]) -> None:
        """Keep blocks in flight until none is left."""
        looked = self.progress.seconds
        while self._launch(missing) or self.flying:
            self._land(self._wait())
            self.progress.tick()
            if self.progress.seconds - looked > LOOK:
                self.view, looked = self._look(), self.progress.seconds
                self.watchdog.mind(self.view)
            if self.holder.superseded():
                self.error = Taken(
                    "another process has taken over this job; this run has stopped, leave it to that one"
                )
                self.stop("another process has taken over")
                return
            if self.stopped:
                self._wind_up()
                return

    def _launch(self, missing: Iterator[_Trial]) -> bool:
        """Submit as many blocks as may be in flight; return whether there was one."""
        submitted = False
        while not self.stopped and len(self.flying) < self._window():
            trial = self._next(missing)
            if trial is None:
                break
            self._submit(trial)
            submitted = True
        return submitted

    def _window(self) -> int:
        if self.alone:
            return 1
        return self.limits.in_flight or max(LEAST, PER_THREAD * self.view.threads)

    def _next(self, missing: Iterator[_Trial]) -> _Trial | None:
        if self.alone:
            return self.aside.popleft() if self.aside else None
        trial = next(missing, None)  # others first: what made a block fail may have passed when they are through
        return trial or (self.again.popleft() if self.again else None)

    def _submit(self, trial: _Trial) -> None:
        self._number += 1
        if not isinstance(self.sink, PlainSink):
            trial = replace(trial, store=self.sink.open_for_writing())
        future = self.client.submit(
            compute_block,
            self.plan.objects.url,
            trial.block.id,
            digest=self.digest,
            attempt=trial.attempt,
            store=trial.store,
            handle=self.handle,
            key=f"{self.prefix}{trial.block.id}-{self._number}",
            pure=False,
            # A share of nothing: only workers with a GPU are taken, and their threads still read side by side.
            resources={"GPU": 1e-6} if self.view.gpus else None,
        )
        self.flying[future] = trial
        future.add_done_callback(self.landed.put)

    def _wait(self) -> list[Future[Any]]:
        """Return the blocks that have landed, waiting a little for the first."""
        try:
            found = [self.landed.get(timeout=min(LOOK, 1.0))]
        except queue.Empty:
            if self.client.status not in ("running", "connecting"):
                raise self._scheduler_lost() from None
            return []
        while not self.landed.empty():
            found.append(self.landed.get())
        return [future for future in found if future in self.flying]

    def _land(self, futures: list[Future[Any]]) -> None:
        for future in futures:
            trial, status = self.flying.pop(future), future.status
            if status == "finished":
                self._finished(trial, future)
            elif status == "error":
                self._failed(trial, future.exception())
            elif self.client.status != "running":
                raise self._scheduler_lost()
            else:  # cancelled or lost by the scheduler
                self.again.append(trial)
            future.release()

    def _finished(self, trial: _Trial, future: Future[Any]) -> None:
        if trial.store is None:  # the worker has recorded it
            self.progress.finish(self._km2(trial.block))
            return
        self.written.append(future.result())
        if len(self.written) >= BATCH:
            self._commit()

    def _commit(self) -> None:
        """Show readers what was written since the last commit, and record it."""
        if not self.written:
            return
        batch, self.written = self.written, []
        self.sink.commit([store for _, store in batch], f"{len(batch)} blocks, {batch[0][0].block} and others")
        for entry, _ in batch:
            self.ledger.record(entry)
            self.progress.finish(self._km2(self.plan.block(entry.block)))

    def _failed(self, trial: _Trial, error: BaseException) -> None:
        """Try a block again, set it aside, give it up, or stop."""
        said = redacted(str(error))
        if isinstance(error, StoreFull):
            self.error = error
            self.stop("the store is full")
        elif isinstance(error, KilledWorker):
            if trial.block.id in self.ledger.done():  # the last thing that its worker did
                self.progress.finish(self._km2(trial.block))
            elif self.alone:
                self._give_up(trial, f"every worker that computed it died ({said})")
            else:
                self.progress.note(f"{trial.block.id} was on workers that died; it is tried again at the end, alone")
                self.aside.append(trial)
        elif trial.attempt < self.limits.attempts and _may_pass(error):
            self.progress.note(f"{trial.block.id}, attempt {trial.attempt}: {type(error).__name__}: {said}")
            (self.aside if self.alone else self.again).append(replace(trial, attempt=trial.attempt + 1))
        else:
            self._give_up(trial, f"{type(error).__name__}: {said}")

    def _give_up(self, trial: _Trial, reason: str) -> None:
        block = trial.block.id
        self.ledger.record(
            Entry(block, "failed", reason=reason, item=item_of(reason), attempts=trial.attempt, finished=now())
        )
        self.failed.add(block)
        self.progress.fail(block, reason)
        if self.limits.on_error == "raise" and self.error is None:
            self.error = JobError(f"block {block} failed, and the job's limits say on_error: raise. {reason}")
            self.stop(f"{block} failed")

    def _wind_up(self) -> None:
        """Take back what no worker has begun, and wait a while for the rest."""
        self.progress.note(f"stopping ({self.stopped})")
        view = self._look()
        queued = [future for future in self.flying if future.key not in view.executing]
        self.client.cancel(queued)
        for future in queued:
            self.flying.pop(future, None)
        end = self.progress.seconds + self.grace
        while self.flying and self.progress.seconds < end:
            self._land(self._wait())

    def _let_go(self) -> None:
        """Let the scheduler forget what is still in flight."""
        if self.flying and self.client.status == "running":
            self.client.cancel(list(self.flying))
        self.flying.clear()

    def _look(self) -> View:
        try:
            return look(self.client, self.prefix, max(self.limits.read_seconds, SILENCE))
        except (OSError, TimeoutError) as error:
            raise self._scheduler_lost() from error

    def _scheduler_lost(self) -> ClusterError:
        return ClusterError(
            f"the scheduler is gone; {self.progress.line()}. Blocks that are done are recorded: go on with "
            f"xgfm resume {redacted(self.plan.spec.store)}"
        )

    def _km2(self, block: Block) -> float:
        rows, columns = block.shape
        return rows * columns * self._pixel(block.area) ** 2 / 1e6

    def _pixel(self, area: str) -> float:
        if area not in self._pixels:
            self._pixels[area] = pixel_size_m(self.plan.area(area).geobox)
        return self._pixels[area]

    _pixels: dict[str, float] = {}  # noqa: RUF012 - facts of grids


def _may_pass(error: BaseException) -> bool:
    """Whether another attempt may go better: not where the input itself is refused."""
    return isinstance(error, ReadError | WriteError) or not isinstance(error, XgfmError)


@contextmanager
def _signals(stop: Callable[[str], None]) -> Iterator[None]:
    """Stop on the first Ctrl-C or SIGTERM; the second one is Python's own."""
    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.getsignal(number)

                def handle(got: int, _: Any, before: Any = before) -> None:
                    stop(signal.Signals(got).name)
                    signal.signal(got, before)

                signal.signal(number, handle)
                stack.callback(signal.signal, number, before)
        yield
