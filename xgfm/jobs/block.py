"""One block of a job on a worker: read, predict, write, read back, record.

In: the URL of a job's records and the id of a block. Out: the block in the store, and its `Entry`. Everything else is
looked up in the records, so that a task of the scheduler is two short texts. Several threads of a worker may do this at
once: they read side by side, and one at a time computes.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import xarray as xr

from xgfm.cube.items import normalise
from xgfm.cube.loaders import place
from xgfm.cube.open import open_items
from xgfm.errors import JobError, ReadError, StoreFull
from xgfm.jobs.plan import PLAN, load_plan
from xgfm.jobs.reading import GDAL, PatientLoader, Tally
from xgfm.models.spec import PRITHVI_BANDS
from xgfm.store.ledger import Entry, Ledger
from xgfm.store.objects import Objects, zarr_store
from xgfm.store.region import read_digest, write_block

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox
    from zarr.abc.store import Store

    from xgfm.jobs.lattice import Block
    from xgfm.jobs.planned import Plan
    from xgfm.models.handle import ModelHandle

T = TypeVar("T")

READERS = 8
"""Files that a block reads at once."""
STRIP = 1024
"""Rows that are composited at once: as wide as the block, so that few tiles of a file are read twice."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_ITEM = re.compile(r"item '([^']+)'")


_LOADING = threading.Lock()
_TURNS = threading.Semaphore(2)  # of blocks that predict: their windows take turns


@lru_cache(maxsize=2)
def _plan(url: str, digest: str) -> Plan:  # noqa: ARG001 - another plan at the same place is another
    return load_plan(Objects(url))


@lru_cache(maxsize=2)
def _task(url: str, digest: str) -> ModelHandle:
    return _plan(url, digest).load_task()


def open_plan(url: str, digest: str) -> Plan:
    """Return the plan of a job, read once per process; threads that ask at once wait for one of them."""
    with _LOADING:
        return _plan(url, digest)


def _open_task(url: str, digest: str) -> ModelHandle:
    with _LOADING:
        return _task(url, digest)


def plan_digest(objects: Objects) -> str:
    """Return what tells the plan of a job from another one at the same place."""
    import hashlib

    return hashlib.blake2b(objects.get(PLAN), digest_size=8).hexdigest()


def compute_block(
    url: str,
    block: str,
    *,
    digest: str = "",
    attempt: int = 1,
    store: Store | None = None,
    handle: ModelHandle | None = None,
) -> tuple[Entry, Store | None]:
    """Read, predict and write one block, and record that it is done.

    Parameters
    ----------
    url
        Of the job's records.
    block
        Its id.
    digest
        From `plan_digest`.
    attempt
        How many times it has been tried, with this one.
    store
        Where to write, as `Sink.open_for_writing` gives it, for a sink that commits: the block is then recorded by who
        commits. None writes into the job's own store and records.
    handle
        The task, where only the process that planned knows it by its name.

    Returns
    -------
    Entry
        What is recorded.
    store
        What was written into, to be committed; None where that is not needed.

    Raises
    ------
    ReadError
        A file that cannot be read, or reads that take longer than the job's limit.
    StoreFull
        The store takes no more: every further block would fail as well.
    """
    plan = open_plan(url, digest)
    handle = _open_task(url, digest) if handle is None else handle
    where, tally, clock = plan.block(block), Tally(), Clock()
    with clock("read"):
        framed = read_frames(plan, where, tally)
    arrays = answer(plan, where, framed, handle, clock)
    target = zarr_store(plan.spec.store) if store is None else store
    with clock("write"), _said_when_full(plan.spec.store):
        stored = write_block(target, plan.area(where.area).group, arrays, where.rows, where.columns)
    entry = Entry(
        block,
        "done",
        digest=stored,
        attempts=attempt,
        seconds=clock.seconds,
        bytes_read=tally.bytes,
        windows=_windows(plan, where, framed),
        valid_pixels=_valid(arrays),
        worker=worker_name(),
        finished=now(),
        facts=_facts(handle),
    )
    if store is None:
        with _said_when_full(url):
            Ledger(plan.objects).record(entry)
    return entry, store


def read_frames(plan: Plan, block: Block, tally: Tally) -> xr.DataArray | None:
    """Read what a block's windows see, composited into frames, in memory.

    Parameters
    ----------
    plan, block
        The job, and which block of it.
    tally
        Told of every read.

    Returns
    -------
    DataArray or None
        ``(time, band, y, x)``; None where the items turn out to miss the block.

    Raises
    ------
    ReadError
        As `compute_block`.
    """
    rows, columns = plan.reads(block)
    grid = plan.area(block.area).geobox[rows.start : rows.stop, columns.start : columns.stop]
    items = _touching(plan.items_of(block), grid)
    if not items:
        return None
    cube = open_items(
        items,
        geobox=grid,
        mask=plan.spec.mask,
        chunks=(STRIP, grid.shape[1]),
        loader=PatientLoader(tally),
        gdal=GDAL,
    )
    try:
        framed = plan.frames(cube)
    except JobError:
        return None
    return _within(plan.spec.limits.read_seconds, lambda pool: framed.compute(scheduler="threads", pool=pool), tally)


def _touching(items: list[dict[str, Any]], grid: GeoBox) -> list[dict[str, Any]]:
    """Leave out the items of tiles that reach the block's outline, but none of its pixels."""
    touch: dict[str, bool] = {}
    kept = []
    for item in items:
        record = normalise(item, bands=PRITHVI_BANDS[:1], fmask=False)
        if record.tile not in touch:
            touch[record.tile] = place(record, PRITHVI_BANDS[0], grid).overlap(0, 0, *grid.shape) is not None
        if touch[record.tile]:
            kept.append(item)
    return kept


def _within(seconds: float, work: Callable[[Any], T], tally: Tally) -> T:
    """Run a read in threads of its own; after too long a time, leave them to themselves.

    No thread can be stopped that waits for a file, and GDAL gives up in the end.
    """
    from multiprocessing.pool import ThreadPool

    pool = ThreadPool(READERS)  # its threads do not keep a process from ending
    ended: list[Any] = []

    def run() -> None:
        try:
            ended.append((work(pool), None))
        except BaseException as error:  # noqa: BLE001 - handed over to who waits
            ended.append((None, error))

    thread = threading.Thread(target=run, name="xgfm-read", daemon=True)
    thread.start()
    thread.join(seconds)
    pool.close()
    if not ended:
        pending = tally.pending or "no read"
        tally.abandon()
        raise ReadError(
            f"the block was not read within {seconds:g} s; under way for longest is {pending}. Give limits: "
            "read_seconds: a longer time, or leave the item out"
        )
    value, error = ended[0]
    if error is not None:
        raise error
    result: T = value
    return result


def answer(
    plan: Plan, block: Block, framed: xr.DataArray | None, handle: ModelHandle, clock: Clock
) -> dict[str, np.ndarray]:
    """Return the arrays of a block, ``(..., y, x)`` by name; two of a process predict at a time."""
    if framed is None:
        return _nothing(plan, block, handle)
    rows, columns = plan.reads(block)
    own = {
        "y": slice(block.rows.start - rows.start, block.rows.stop - rows.start),
        "x": slice(block.columns.start - columns.start, block.columns.stop - columns.start),
    }
    result = plan.predict(framed, handle).isel(own)
    with clock("wait"):
        _TURNS.acquire()
    try:
        with clock("predict"):
            computed = result.compute(scheduler="synchronous")
    finally:
        _TURNS.release()
    return {str(name): np.asarray(variable.values) for name, variable in computed.data_vars.items()}


def _nothing(plan: Plan, block: Block, handle: ModelHandle) -> dict[str, np.ndarray]:
    """Return what a block without data is: nodata."""
    template = plan.template(plan.area(block.area), handle)
    return {
        str(name): np.full((*v.shape[:-2], *block.shape), 255 if v.dtype.kind == "u" else np.nan, v.dtype)
        for name, v in template.data_vars.items()
    }


def check_block(
    url: str, block: str, expected: str, *, names: Sequence[str], digest: str = "", store: Store | None = None
) -> bool:
    """Return whether a block still stands in the store as it was recorded.

    Parameters
    ----------
    url, block, digest
        As for `compute_block`.
    expected
        Digest in the ledger.
    names
        Of the arrays.
    store
        As `Sink.open_for_reading` gives it; None for the job's own store.
    """
    plan = open_plan(url, digest)
    where = plan.block(block)
    source = zarr_store(plan.spec.store) if store is None else store
    try:
        found = read_digest(source, plan.area(where.area).group, names, where.rows, where.columns)
    except (ValueError, RuntimeError):  # what is damaged cannot be decoded
        return False
    return found == expected


class Clock:
    """Seconds of each part of the work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Time a part."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = round(self.seconds.get(part, 0.0) + time.perf_counter() - start, 4)


@contextmanager
def _said_when_full(url: str) -> Iterator[None]:
    """Tell a store that takes no more from any other trouble with it."""
    try:
        yield
    except Exception as error:
        number = next((e.errno for e in _chain(error) if isinstance(e, OSError) and e.errno in _FULL), None)
        if number is None:
            raise
        raise StoreFull(
            f"{url} takes no more data ({os.strerror(number)}); make room, then go on with xgfm resume"
        ) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def item_of(reason: str) -> str | None:
    """Return the item that the text of an error names."""
    found = _ITEM.search(reason)
    return found[1] if found else None


def worker_name() -> str:
    """Return which process this is."""
    from distributed import get_worker

    try:
        return str(get_worker().address)
    except ValueError:
        return f"{platform.node()}:{os.getpid()}"


def now() -> str:
    """Return the time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _facts(handle: ModelHandle) -> dict[str, Any]:
    from xgfm.infer.inputs import model_facts

    return dict(model_facts(handle))


def _windows(plan: Plan, block: Block, framed: xr.DataArray | None) -> int:
    if framed is None:
        return 0
    rows, columns = plan.reads(block)
    return rows.windows * columns.windows * (framed.sizes["time"] // plan.task.spec.frames)


def _valid(arrays: Mapping[str, np.ndarray]) -> int:
    """Pixels with data, of the first array."""
    first = next(iter(arrays.values()))
    there = first != 255 if first.dtype.kind == "u" else ~np.isnan(first)
    return int(there.any(axis=tuple(range(there.ndim - 2))).sum())
