"""A job as one object: planned once, quoted, run, stopped, resumed, verified.

In: a `JobSpec`, its YAML file, or the store of a job that was planned before. Out: a `Job`. Nothing is searched, read
or computed before a method is called, and whatever a method needs of an earlier one stands beside the store.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from xgfm.cube.hrefs import redacted
from xgfm.errors import JobError
from xgfm.jobs.plan import PLAN, SPEC, load_plan, make_plan
from xgfm.jobs.spec import JobSpec
from xgfm.notebook import card
from xgfm.store.ledger import Ledger
from xgfm.store.objects import Objects, local_folder

if TYPE_CHECKING:
    from distributed import Client

    from xgfm.jobs.finish import Finished
    from xgfm.jobs.outcome import Outcome
    from xgfm.jobs.planned import Plan
    from xgfm.jobs.quote import Quote
    from xgfm.jobs.spec import Price

FOLDER = ".job"
"""What is added to a store's URL for the records of its job."""
LOCAL_THREADS = 4


def records_of(store: str) -> Objects:
    """Return the records of the job that writes a store."""
    return Objects(store.rstrip("/") + FOLDER)


def open_job(job: str | os.PathLike[str] | JobSpec) -> Job:
    """Open a job, new or planned before.

    Parameters
    ----------
    job
        A `JobSpec`; a YAML file with one; or the path or URL of a store whose job was planned before.

    Returns
    -------
    Job

    Raises
    ------
    JobError
        Where it is none of them, or a job with another record was planned for the same store.
    """
    if isinstance(job, JobSpec):
        return Job(job)
    text = os.fspath(job)
    if text.endswith((".yaml", ".yml")):
        return Job(JobSpec.read(text))
    objects = records_of(text)
    try:
        saved = objects.get(SPEC)
    except FileNotFoundError as error:
        raise JobError(
            f"{redacted(text)!r} is neither a YAML file nor a store with a job (there is no "
            f"{redacted(objects.url)}/{SPEC}); give job.yaml, or the store of a job that was planned"
        ) from error
    return Job(JobSpec.from_yaml(saved.decode(), name=f"{objects.url}/{SPEC}"))


@dataclass(frozen=True)
class Status:
    """How far a job is, as its ledger says."""

    store: str
    planned: bool
    blocks: int = 0
    """With work."""
    done: int = 0
    failed: tuple[str, ...] = ()
    without: dict[str, int] | None = None
    """Blocks without work, by reason."""

    @property
    def missing(self) -> int:
        """Blocks that are neither done nor failed."""
        return self.blocks - self.done - len(self.failed)

    def __str__(self) -> str:
        if not self.planned:
            return f"{redacted(self.store)}: not planned yet"
        others = ", ".join(f"{count} {state}" for state, count in (self.without or {}).items() if count)
        said = f"{redacted(self.store)}: {self.done} of {self.blocks} blocks done, {self.missing} missing"
        said += f", {len(self.failed)} failed" if self.failed else ""
        return said + (f" ({others})" if others else "")

    def _repr_html_(self) -> str:
        if not self.planned:
            return card("job", {"store": redacted(self.store), "state": "not planned yet"})
        rows = {
            "store": redacted(self.store),
            "done": f"{self.done:,} of {self.blocks:,} blocks",
            "missing": f"{self.missing:,}",
            "failed": f"{len(self.failed):,}: {_listed(self.failed)}" if self.failed else None,
            "without work": ", ".join(f"{count:,} {state}" for state, count in (self.without or {}).items() if count),
        }
        return card("job", rows)


@dataclass(frozen=True)
class Verified:
    """What reading everything again came to."""

    checked: int
    wrong: tuple[str, ...]
    """Blocks that are not as they were recorded."""

    def __bool__(self) -> bool:
        return not self.wrong

    def __str__(self) -> str:
        if not self.wrong:
            return f"{self.checked} blocks read again, all as they were written"
        return f"{len(self.wrong)} of {self.checked} blocks are not as they were written: {_listed(self.wrong)}"

    def _repr_html_(self) -> str:
        return card("job, read again", {"blocks": f"{self.checked:,}", "state": str(self)})


def _listed(blocks: tuple[str, ...]) -> str:
    return ", ".join(blocks[:8]) + (", ..." if len(blocks) > 8 else "")


class Job:
    """One job: see `open_job`.

    Parameters
    ----------
    spec
        What is to be done.
    """

    def __init__(self, spec: JobSpec) -> None:
        # Absolute: workers, and whoever resumes it, may be in another folder.
        folder = local_folder(spec.store)
        self.spec = spec if folder is None else spec.model_copy(update={"store": str(folder)})

    @cached_property
    def objects(self) -> Objects:
        """The job's records."""
        return records_of(self.spec.store)

    @property
    def ledger(self) -> Ledger:
        """What became of each block."""
        return Ledger(self.objects)

    def plan(self, items: Iterable[Any] | None = None) -> Plan:
        """Return the plan: the saved one, or a new one from one search.

        Parameters
        ----------
        items
            STAC items instead of a search, for a job that has no plan yet.

        Raises
        ------
        JobError
            Where a job with another record was planned for the same store, or ``items`` come too late.
        """
        if not self.is_planned:
            self._plan = make_plan(self.spec, items=items, objects=self.objects)
        elif items is not None:
            raise JobError(
                f"the job at {redacted(self.objects.url)} is planned with the items of its first plan; leave items= "
                "out, or give the job another store"
            )
        return self._plan

    @property
    def is_planned(self) -> bool:
        """Whether there is a plan, here or in the records."""
        if "_plan" in self.__dict__:
            return True
        try:
            self.objects.get(PLAN)
        except FileNotFoundError:
            return False
        return True

    @cached_property
    def _plan(self) -> Plan:
        plan = load_plan(self.objects)
        if plan.spec != self.spec:
            changed = [n for n in JobSpec.model_fields if getattr(plan.spec, n) != getattr(self.spec, n)]
            raise JobError(
                f"another job was planned for {redacted(self.spec.store)}: {', '.join(changed)} differ from "
                f"{redacted(self.objects.url)}/{SPEC}; give another store, or run that one: xgfm resume "
                f"{redacted(self.spec.store)}"
            )
        return plan

    def quote(
        self,
        client: Client | None = None,
        *,
        rate: float | None = None,
        measure: bool = False,
        price: Price | None = None,
    ) -> Quote:
        """Return what the job takes, before it runs; it is kept, and the report sets what was taken beside it.

        Parameters
        ----------
        client
            As for `run`: where the rate is measured.
        rate
            Windows per second and device; without it there are no seconds.
        measure
            Whether to measure the rate, for some seconds on one worker.
        price
            Instead of the prices in the job's record.
        """
        from xgfm.jobs.finish import QUOTE
        from xgfm.jobs.quote import quote
        from xgfm.jobs.rate import measure_rate

        plan = self.plan()
        handle = plan.load_task()
        if measure:
            with _workers(client) as workers:
                options = {"options": self.spec.options, "block": self.spec.block}
                rate = workers.submit(measure_rate, handle, **options, pure=False).result()
        made = quote(plan, rate=rate, price=price, handle=handle)
        self.objects.put(QUOTE, made.to_json().encode())
        return made

    def run(self, client: Client | None = None, *, progress: bool = True, grace: float | None = None) -> Outcome:
        """Compute every block that is missing, then do what `finish` does.

        Parameters
        ----------
        client
            Of a Dask cluster, from `xgfm.cluster.open` or anybody else's. None computes in this process, a block at a
            time, with threads that read ahead.
        progress
            Whether to show a bar.
        grace
            Seconds that blocks under way get after Ctrl-C or SIGTERM.

        Returns
        -------
        Outcome
            Of which ``complete`` says whether every block is done.

        Raises
        ------
        Taken, StoreFull, JobError, ClusterError
            As `xgfm.jobs.run.run_plan`.
        """
        from xgfm.jobs.run import GRACE, run_plan

        plan = self.plan()
        with _workers(client) as workers:
            outcome = run_plan(plan, workers, progress=progress, grace=GRACE if grace is None else grace)
            return replace(outcome, report=self.finish(workers).report)

    def finish(self, client: Client | None = None) -> Finished:
        """Write the report, and for a complete job metadata, overviews, STAC Item and provenance: after every run.

        Parameters
        ----------
        client
            Of workers that make the overviews; this process, where there is none.
        """
        from xgfm.jobs.finish import finish_plan

        return finish_plan(self.plan(), client)

    def status(self) -> Status:
        """Return how far the job is."""
        if not self.is_planned:
            return Status(self.spec.store, planned=False)
        states = self.plan().states()
        blocks = states.pop("work")
        done, failed = self.ledger.done(), self.ledger.failed()
        return Status(self.spec.store, True, blocks, len(done), tuple(sorted(failed)), states)

    def verify(self, client: Client | None = None, *, forget: bool = False) -> Verified:
        """Read every block that is done, and compare it with the digest in the ledger.

        Parameters
        ----------
        client
            As for `run`.
        forget
            Whether to strike blocks that differ from the ledger, so that the next run computes them again.
        """
        from xgfm.jobs.verify import verify_plan

        with _workers(client) as workers:
            checked, wrong = verify_plan(self.plan(), workers)
        if forget:
            for block in wrong:
                self.objects.delete(f"done/{block}.json")
        return Verified(checked, wrong)

    def retry_failed(self) -> tuple[str, ...]:
        """Forget which blocks failed, so that the next run tries them again; return their ids."""
        failed = tuple(sorted(self.ledger.failed()))
        self.ledger.forget_failed(failed)
        return failed

    def __repr__(self) -> str:
        return f"<xgfm job {redacted(self.spec.store)}: {self.spec.task}, {self.spec.period}>"

    def _repr_html_(self) -> str:
        rows = {
            "store": redacted(self.spec.store),
            "task": self.spec.task,
            "period": self.spec.period,
            "state": str(self.status()),
        }
        return card("job", rows)


@contextmanager
def _workers(client: Client | None) -> Iterator[Client]:
    """The client that is given, or one whose only worker is this process."""
    if client is not None:
        yield client
        return
    from distributed import Client as LocalClient

    from xgfm.cluster import unprofiled

    unprofiled()
    with LocalClient(
        processes=False, n_workers=1, threads_per_worker=LOCAL_THREADS, memory_limit=0, dashboard_address=":0"
    ) as own:
        yield own
