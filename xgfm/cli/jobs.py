"""Commands of jobs: quote, run, status, resume, verify, retry, report.

In: a YAML file, or the store of a job. Out: text; exit code 0 where every block is done, else 1. Each command calls
public functions and imports them when it runs, so that help is quick.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xgfm.cli.base import app
from xgfm.cli.words import busy
from xgfm.errors import ClusterError, JobError, XgfmError

if TYPE_CHECKING:
    from distributed import Client

    from xgfm.jobs.job import Job

LISTED = 20
"""Failed blocks that status tells of."""

JobName = Annotated[
    str, typer.Argument(help="YAML file of a job, or the store of one.", metavar="JOB", show_default=False)
]
Store = Annotated[
    str, typer.Argument(help="Store of a job that was planned: a folder or a URL.", metavar="STORE", show_default=False)
]
Cluster = Annotated[
    str | None,
    typer.Option(
        help="local, cuda, slurm, pbs, lsf, or the address of a Dask scheduler, tcp://...; by default this process.",
        metavar="KIND",
    ),
]
Workers = Annotated[int | None, typer.Option(help="Processes, or jobs of the queue.")]
Threads = Annotated[int | None, typer.Option(help="Of a worker; one computes, the others read ahead.")]
Memory = Annotated[str | None, typer.Option(help="Of a worker, 16GB.", metavar="SIZE")]
Walltime = Annotated[str | None, typer.Option(help="Of a job in the queue, 04:00:00; it may be short.", metavar="TIME")]
Queue = Annotated[str | None, typer.Option(help="Partition or queue.", metavar="NAME")]
Account = Annotated[str | None, typer.Option(help="What is billed.", metavar="NAME")]
Gpus = Annotated[int | None, typer.Option(help="Of a worker in the queue; with cuda, how many of this machine's.")]
Tls = Annotated[bool | None, typer.Option("--tls/--no-tls", help="Encrypt what scheduler and workers say.")]


@app.command()
def quote(
    job: JobName,
    rate: Annotated[float | None, typer.Option(help="Windows per second that a device predicts.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure the rate, for some seconds on a worker.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    cluster: Cluster = None,
    threads: Threads = None,
    memory: Memory = None,
    walltime: Walltime = None,
    queue: Queue = None,
    account: Account = None,
    gpus: Gpus = None,
    tls: Tls = None,
) -> None:
    """Say what a job takes, before it runs: blocks, bytes, windows, time, memory, price.

    Plans the job where it has no plan: one search, kept beside the store.
    """
    if rate is not None and measure:
        raise XgfmError("--rate and --measure exclude each other: a rate is given, or measured")
    opened = _opened(job)
    with busy(f"planning {job}"):
        opened.plan()
    with (
        workers_for(cluster, threads=threads, memory=memory, walltime=walltime, queue=queue, account=account, gpus=gpus,
                tls=tls) as client,
        busy("measuring" if measure else "counting"),
    ):  # fmt: skip
        said = opened.quote(client, rate=rate, measure=measure)
    typer.echo(said.to_json() if json else str(said))


@app.command()
def run(
    job: JobName,
    cluster: Cluster = None,
    workers: Workers = None,
    threads: Threads = None,
    memory: Memory = None,
    walltime: Walltime = None,
    queue: Queue = None,
    account: Account = None,
    gpus: Gpus = None,
    tls: Tls = None,
) -> None:
    """Plan a job where it has no plan, and compute every block that is missing.

    Ctrl-C stops cleanly; what is done stays done. A report.html lies among the job's records, in STORE.job.
    """
    opened = _opened(job)
    with busy(f"planning {job}"):
        opened.plan()
    with workers_for(cluster, workers=workers, threads=threads, memory=memory, walltime=walltime, queue=queue,
                 account=account, gpus=gpus, tls=tls) as client:  # fmt: skip
        _run(opened, client)


@app.command()
def status(store: Store) -> None:
    """Say how far a job is, and what failed."""
    job = _planned(store)
    said = job.status()
    typer.echo(str(said))
    for entry in job.ledger.entries(said.failed[:LISTED]):
        typer.echo(f"{entry.block} failed: {entry.reason}")
    if len(said.failed) > LISTED:
        typer.echo(f"... and {len(said.failed) - LISTED} more: xgfm report {store}")


@app.command()
def resume(
    store: Store,
    cluster: Cluster = None,
    workers: Workers = None,
    threads: Threads = None,
    memory: Memory = None,
    walltime: Walltime = None,
    queue: Queue = None,
    account: Account = None,
    gpus: Gpus = None,
    tls: Tls = None,
) -> None:
    """Go on with a job that was interrupted: compute what is missing."""
    job = _planned(store)
    with workers_for(cluster, workers=workers, threads=threads, memory=memory, walltime=walltime, queue=queue,
                 account=account, gpus=gpus, tls=tls) as client:  # fmt: skip
        _run(job, client)


@app.command()
def verify(
    store: Store,
    forget: Annotated[bool, typer.Option("--forget", help="Let resume compute blocks again that differ.")] = False,
    cluster: Cluster = None,
    workers: Workers = None,
    threads: Threads = None,
    memory: Memory = None,
) -> None:
    """Read every block again, and compare it with the digest in the ledger."""
    job = _planned(store)
    with workers_for(cluster, workers=workers, threads=threads, memory=memory) as client, busy(f"reading {store}"):
        found = job.verify(client, forget=forget)
    typer.echo(str(found))
    if not found:
        typer.echo(f"compute them again: xgfm verify {store} --forget, xgfm resume {store}", err=True)
        raise typer.Exit(1)


@app.command()
def retry(
    store: Store,
    failed: Annotated[bool, typer.Option("--failed", help="The blocks that failed.")] = False,
    cluster: Cluster = None,
    workers: Workers = None,
    threads: Threads = None,
    memory: Memory = None,
    walltime: Walltime = None,
    queue: Queue = None,
    account: Account = None,
    gpus: Gpus = None,
    tls: Tls = None,
) -> None:
    """Try blocks again that failed for good, and compute what else is missing."""
    if not failed:
        raise XgfmError("say which blocks: --failed")
    job = _planned(store)
    with workers_for(cluster, workers=workers, threads=threads, memory=memory, walltime=walltime, queue=queue,
                 account=account, gpus=gpus, tls=tls) as client:  # fmt: skip
        typer.echo(f"{len(job.retry_failed())} blocks are tried again", err=True)
        _run(job, client)


@app.command()
def report(store: Store) -> None:
    """Write a job's report.html anew, and for a complete job its STAC Item and provenance."""
    finished = _planned(store).finish()
    for address in (finished.report, finished.item, finished.provenance):
        if address is not None:
            typer.echo(address)


# ---- what commands share


def _opened(job: str) -> Job:
    from xgfm.jobs.job import open_job

    return open_job(job)


def _planned(store: str) -> Job:
    job = _opened(store)
    if not job.is_planned:
        raise JobError(f"{store} is not planned yet; begin with xgfm run {store}")
    return job


def _run(job: Job, client: Client | None) -> None:
    """Run a job, and say how it ended."""
    outcome = job.run(client)
    typer.echo(str(outcome))
    typer.echo(f"report: {outcome.report}")
    if outcome.complete:
        return
    if outcome.missing:
        typer.echo(f"go on: xgfm resume {job.spec.store}", err=True)
    if outcome.failed:
        typer.echo(f"try again what failed: xgfm retry {job.spec.store} --failed", err=True)
    raise typer.Exit(1)


@contextmanager
def workers_for(cluster: str | None, **options: Any) -> Iterator[Client | None]:
    """Workers as the options ask for them; none where this process computes."""
    given = {name: value for name, value in options.items() if value is not None}
    if cluster is None:
        if given:
            raise XgfmError(f"{', '.join(f'--{name}' for name in given)}: of which workers? Give --cluster")
        yield None
        return
    from xgfm.cluster import open as open_cluster

    try:
        client = open_cluster(cluster, **given)
    except OSError as error:
        raise ClusterError(f"no scheduler answers at --cluster {cluster} ({error})") from error
    with client:
        yield client
