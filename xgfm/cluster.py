"""Somewhere to run: a `distributed.Client` for this machine, its GPUs, a batch queue or a scheduler that is there.

In: a word or an address, and what a worker needs. Out: a client; closing it closes what was started for it. Nothing of
a cluster is done here but choosing the options under which one of many blocks survives: each worker is one process of
several threads, so that one block computes while others read.
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dask
from distributed import Client

from xgfm.errors import ClusterError, MissingExtraError

_LOG = logging.getLogger(__name__)

QUEUES: Mapping[str, str] = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster"}
"""Batch queues, and the classes of dask-jobqueue that speak to them."""
KINDS = ("local", "cuda", *QUEUES)
THREADS = 4
"""Threads of a worker where none are given: one block computes, the others read ahead or write."""
LOGS = "xgfm-logs"
"""Folder of the queue's log files, in the working directory, where none is given."""
LOST_WORKER = "5s"
"""How long a worker of the queue may be gone before it is replaced."""
RESTARTED = "5 minutes"
"""The same on this machine, where a nanny restarts a worker at once: the cluster gives a worker up that is gone when
this time has passed since its first death, and one that dies twice is then just being started."""
DEATHS = 5
"""Workers that may die under a task before the task is blamed: in a queue they are taken away all the time."""
_PROFILER_CRASHES = sys.version_info[:2] == (3, 11)
CONFIG = "xgfm.cluster"
"""Key of Dask's configuration: ``xgfm.cluster.slurm.account`` stands for ``account=`` of ``open("slurm")``."""


class ClusterClient(Client):
    """A client that closes, with itself, the cluster that was started for it.

    Parameters
    ----------
    cluster
        What was started.
    replenish
        Asks it again for the workers that it was started with.
    """

    def __init__(self, cluster: Any, replenish: Callable[[], object], **options: Any) -> None:
        self.replenish = replenish
        super().__init__(cluster, **options)  # type: ignore[no-untyped-call]

    def close(self, *args: Any, **kwargs: Any) -> Any:
        """Close the client, then its cluster: workers end and jobs leave the queue."""
        cluster = self.cluster
        closed = super().close(*args, **kwargs)  # type: ignore[no-untyped-call]
        if cluster is not None:
            cluster.close()
        return closed


def open(
    kind: str = "local",
    *,
    workers: int | None = None,
    threads: int | None = None,
    memory: str | None = None,
    walltime: str | None = None,
    queue: str | None = None,
    account: str | None = None,
    gpus: int | None = None,
    tls: bool | None = None,
    log_directory: str | os.PathLike[str] | None = None,
    **more: Any,
) -> Client:
    """Start workers, or connect to some, and return a client of them.

    Options that are not given are looked up in Dask's configuration under ``xgfm.cluster.<kind>``, which a file
    ``xgfm.yaml`` in ``~/.config/dask`` fills: ``xgfm: {cluster: {slurm: {account: abc, queue: gpu}}}``.

    Parameters
    ----------
    kind
        ``"local"``: processes of this machine. ``"cuda"``: one process for each GPU of this machine.
        ``"slurm"``, ``"pbs"``, ``"lsf"``: jobs of a batch queue, one worker each (``pip install "xgfm[hpc]"``).
        ``"tcp://..."``, ``"tls://..."`` or another address: a scheduler that is there; other options do not apply.
    workers
        Processes, or jobs of the queue; they are replaced when they end. By default 1, or one for each GPU.
    threads
        Of a worker, 4 by default. One block computes at a time, the others read ahead or write: more threads hide
        slower reads and take more memory.
    memory
        Of a worker, ``"16GB"``. Needed for a queue; on this machine, its share where not given.
    walltime
        Of a job in the queue, as the queue takes it: ``"02:00:00"``. Workers retire shortly before and are replaced,
        so that it may be much shorter than the run.
    queue, account
        Partition or queue, and what is billed.
    gpus
        Of a worker in a queue, 0 by default. For ``"cuda"``, how many of this machine's are used; all by default.
    tls
        Encrypt what scheduler and workers say, with certificates made for this cluster alone. On by default in
        queues, whose nodes are shared with others; off on this machine.
    log_directory
        Of the queue's log files; ``xgfm-logs`` in the working directory by default.
    **more
        Further options of ``distributed.LocalCluster``, or of dask-jobqueue's cluster: ``interface="ib0"``,
        ``job_script_prologue=["module load python"]``.

    Returns
    -------
    distributed.Client
        Closing it closes the workers that were started here.

    Raises
    ------
    ClusterError
        No such kind, an option that it does not take, or no GPU.
    MissingExtraError
        dask-jobqueue, or what makes certificates, is not installed.
    """
    given: dict[str, Any] = {
        "workers": workers,
        "threads": threads,
        "memory": memory,
        "walltime": walltime,
        "queue": queue,
        "account": account,
        "gpus": gpus,
        "tls": tls,
        "log_directory": log_directory,
        **more,
    }
    asked = {name: value for name, value in given.items() if value is not None}
    if "://" in kind or re.fullmatch(r"[\w.-]+:\d+", kind):
        return _connect(kind, asked)
    if kind not in KINDS:
        raise ClusterError(f"cluster {kind!r} is not known; give one of {list(KINDS)}, or a scheduler's address")
    options = {**_configured(kind), **asked}
    if kind in QUEUES:
        return _queue(kind, **options)
    _refuse(kind, options, "walltime", "queue", "account", "log_directory")
    return _cuda(**options) if kind == "cuda" else _local(**options)


def _configured(kind: str) -> dict[str, Any]:
    found = dask.config.get(f"{CONFIG}.{kind}", {}) or {}
    if not isinstance(found, Mapping):
        raise ClusterError(f"{CONFIG}.{kind} of Dask's configuration is {found!r}; expected options by name")
    return {str(name).replace("-", "_"): value for name, value in found.items()}


def _refuse(kind: str, options: Mapping[str, Any], *names: str) -> None:
    wrong = [f"{name}=" for name in names if name in options]
    if wrong:
        raise ClusterError(
            f"cluster {kind!r} takes no {', '.join(wrong)}: that is for {', '.join(QUEUES)}; leave it out"
        )


def _connect(address: str, asked: Mapping[str, Any]) -> Client:
    if asked:
        names = ", ".join(f"{name}=" for name in asked)
        raise ClusterError(f"{names} cannot change a scheduler that is there ({address}); leave them out")
    return Client(address)


def unprofiled() -> None:
    """Turn Dask's profiler of tasks off, in this process and in those that it starts, on Python 3.11.

    A hundred times a second it looks at the frames of other threads. In 3.11 that may crash the process (CPython issue
    99110 and its like, seen in 3.11.7): Dask itself leaves its profiler of event loops out there.
    """
    if _PROFILER_CRASHES:
        dask.config.set({"distributed.worker.profile.enabled": False})


def _local(
    *, workers: int = 1, threads: int = THREADS, memory: str = "auto", tls: bool = False, gpus: int = 0, **more: Any
) -> Client:
    from distributed import LocalCluster

    if gpus:
        raise ClusterError(f'gpus={gpus} for cluster "local"; give "cuda", which places one worker on each GPU')
    options = {"dashboard_address": ":0", **more}
    dask.config.set({"distributed.deploy.lost-worker-timeout": RESTARTED})
    unprofiled()
    cluster = LocalCluster(
        n_workers=workers, threads_per_worker=threads, memory_limit=memory, security=_security(tls), **options
    )
    return ClusterClient(cluster, partial(cluster.scale, workers))


def _cuda(
    *,
    gpus: int | None = None,
    workers: int | None = None,
    threads: int = THREADS,
    memory: str = "auto",
    tls: bool = False,
    **more: Any,
) -> Client:
    from distributed import Nanny, Scheduler, SpecCluster
    from distributed.worker_memory import parse_memory_limit

    devices = _devices(gpus if gpus is not None else workers)
    limit = parse_memory_limit(memory, threads, total_cores=threads * len(devices), logger=_LOG)
    security = _security(tls)
    protocol = "tls://" if security else "tcp://"
    common = {"protocol": protocol, "security": security, "host": "127.0.0.1"}
    specs = {
        number: {
            "cls": Nanny,
            "options": {
                "nthreads": threads,
                "memory_limit": limit,
                "resources": {"GPU": 1},
                "env": {"CUDA_VISIBLE_DEVICES": device},
                **common,
            },
        }
        for number, device in enumerate(devices)
    }
    scheduler = {"cls": Scheduler, "options": {"dashboard_address": ":0", **common}}
    dask.config.set({"distributed.deploy.lost-worker-timeout": RESTARTED})
    unprofiled()
    cluster = SpecCluster(workers=specs, scheduler=scheduler, security=security, **more)
    return ClusterClient(cluster, partial(cluster.scale, len(devices)))


def _devices(wanted: int | None) -> list[str]:
    """Names of the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` takes them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",") if name.strip()]
    else:
        import torch

        names = [str(number) for number in range(torch.cuda.device_count())]
    if not names or (wanted or 0) > len(names):
        raise ClusterError(
            f'cluster "cuda" found {len(names)} GPUs, {wanted or "at least 1"} wanted; give fewer gpus=, or "local" to '
            "compute on CPUs"
        )
    return names[:wanted]


def _security(tls: bool) -> Any:
    if not tls:
        return None
    if find_spec("cryptography") is None:
        raise MissingExtraError("cryptography", "hpc", "tls=True")
    from distributed.security import Security

    return Security.temporary()


def _queue(kind: str, *, workers: int = 1, **asked: Any) -> Client:
    if find_spec("dask_jobqueue") is None:
        raise MissingExtraError("dask-jobqueue", "hpc", f'cluster "{kind}"')
    import dask_jobqueue

    options = queue_options(kind, **asked)
    Path(options["log_directory"]).mkdir(parents=True, exist_ok=True)
    dask.config.set({"distributed.deploy.lost-worker-timeout": LOST_WORKER})
    cluster = getattr(dask_jobqueue, QUEUES[kind])(**options)
    # Not scale: a job that is killed would never be replaced.
    replenish = partial(cluster.adapt, minimum_jobs=workers, maximum_jobs=workers, interval="2s")
    replenish()
    return ClusterClient(cluster, replenish)


def queue_options(
    kind: str,
    *,
    threads: int = THREADS,
    memory: str | None = None,
    walltime: str | None = None,
    queue: str | None = None,
    account: str | None = None,
    gpus: int = 0,
    tls: bool = True,
    log_directory: str | os.PathLike[str] = LOGS,
    **more: Any,
) -> dict[str, Any]:
    """Return the options of dask-jobqueue's cluster; parameters as of `open`."""
    if memory is None:
        raise ClusterError(
            f'cluster "{kind}" needs memory= of a worker, "16GB": the queue gives a job what it asks for'
        )
    logs = str(Path(log_directory).expanduser().resolve())
    directives = [*_gpu_directives(kind, gpus), *more.pop("job_extra_directives", [])]
    extra = [*lifetime(walltime), *_resources(gpus), *more.pop("worker_extra_args", [])]
    scheduler = {"dashboard_address": ":0", "allowed_failures": DEATHS, **more.pop("scheduler_options", {})}
    return {
        "queue": queue,
        ("project" if kind == "lsf" else "account"): account,
        "cores": threads,
        "processes": 1,  # with two, the jobs of killed workers are not replaced
        "memory": memory,
        "walltime": walltime,
        "log_directory": logs,
        "shared_temp_directory": logs,  # of the certificates, which only their owner can read
        "security": _security(tls),
        "worker_extra_args": extra,
        "job_script_prologue": _prologue(kind, more.pop("job_script_prologue", None)),
        "scheduler_options": scheduler,
        **({"job_extra_directives": directives} if directives else {}),
        **({"resource_spec": _pbs(threads, memory, gpus)} if gpus and kind == "pbs" else {}),
        **more,
    }


def _gpu_directives(kind: str, gpus: int) -> list[str]:
    """How a queue is asked for GPUs; PBS is asked in its resource specification."""
    asked = {"slurm": f"--gres=gpu:{gpus}", "lsf": f'-gpu "num={gpus}"'}
    return [asked[kind]] if gpus and kind in asked else []


def _prologue(kind: str, given: list[str] | None) -> list[str]:
    """Lines of a job before its worker starts: what was given, or Dask's configuration has, and as `unprofiled`."""
    lines = given if given is not None else dask.config.get(f"jobqueue.{kind}.job-script-prologue", None) or []
    return [*(["export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False"] if _PROFILER_CRASHES else []), *lines]


def _pbs(threads: int, memory: str, gpus: int) -> str:
    mb = math.ceil(dask.utils.parse_bytes(memory) / 2**20)
    return f"select=1:ncpus={threads}:mem={mb}MB:ngpus={gpus}"


def _resources(gpus: int) -> list[str]:
    return ["--resources", f"GPU={gpus}"] if gpus else []


def lifetime(walltime: str | None) -> list[str]:
    """Return a worker's options for retiring before its job is killed, not all at the same time.

    Parameters
    ----------
    walltime
        ``[days-]hours:minutes:seconds``, or ``hours:minutes``, or minutes; None for no limit.

    Raises
    ------
    ClusterError
        Where it is none of them.
    """
    if walltime is None:
        return []
    if not isinstance(walltime, str):  # YAML 1.1 reads 12:00:00 as 43200
        raise ClusterError(f"walltime is the number {walltime!r}: write it in quotes, walltime: '02:00:00'")
    seconds = _seconds(walltime)
    stagger = round(0.05 * seconds)
    kept = round(seconds - max(0.1 * seconds, 30.0) - stagger)
    if kept < 30:
        raise ClusterError(f"walltime={walltime!r} leaves a worker no time to compute; give two minutes or more")
    return ["--lifetime", f"{kept}s", "--lifetime-stagger", f"{stagger}s"]


def _seconds(walltime: str) -> int:
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", walltime.strip())
    if match is None:
        raise ClusterError(f"walltime={walltime!r}: expected '02:00:00' (hours, minutes, seconds) or '1-00:00:00'")
    days, *parts = (None if part is None else int(part) for part in match.groups())
    first, second, third = parts
    if days is not None:  # days-hours[:minutes[:seconds]]
        return 86400 * days + 3600 * (first or 0) + 60 * (second or 0) + (third or 0)
    if second is None:
        return 60 * (first or 0)
    return 3600 * (first or 0) + 60 * second + (third or 0)
