"""Who computes on a device when: blocks that are under way, and threads that call a model at once.

In: blocks of several Dask threads of one process. Out: a device that is always busy, and never asked for more than it
has: windows of two blocks take turns, so that no thread waits for the last ones of either.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, nn

Part = TypeVar("Part")
Result = TypeVar("Result")

_CALLERS = 8
"""Threads that call a model at once, at most: between its operations each needs Python, which serves one at a time."""

_LOCK = threading.Lock()
_DEVICES: dict[str, _Device] = {}
_PLACES: dict[str, queue.SimpleQueue[torch.cuda.Stream | None]] = {}
_OWN_THREADS = torch.get_num_threads()


class _Device:
    """A device between those that compute on it, each with a share: who asks first is served first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._free = Fraction(1)
        self._waiting: deque[object] = deque()

    @contextmanager
    def shared(self, share: Fraction) -> Iterator[None]:
        """Wait for a share of the device, and have it."""
        me = object()
        with self._changed:
            self._waiting.append(me)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is me and share <= self._free)
                self._free -= share
            finally:
                self._waiting.remove(me)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += share
                self._changed.notify_all()


def shared(device: str, by: int = 1) -> AbstractContextManager[None]:
    """Return what waits for one of ``by`` equal shares of a device, and has it: by default the device alone.

    Torch already uses every core or the whole of a GPU.
    """
    with _LOCK:
        return _DEVICES.setdefault(device, _Device()).shared(Fraction(1, by))


@contextmanager
def under_way(device: str) -> Iterator[torch.cuda.Stream | None]:
    """Hold one of the few places of blocks that lie in a device's memory.

    There are two: no thread waits for the last windows of one block while the other one has some. On a GPU each has a
    stream of its own, on which a block is copied and prepared while the other one computes.
    """
    with _LOCK:
        if device not in _PLACES:
            streams = [torch.cuda.Stream(device) if device.startswith("cuda") else None for _ in range(2)]  # type: ignore[no-untyped-call]
            _PLACES[device] = queue.SimpleQueue()
            for one in streams:
                _PLACES[device].put(one)
    stream = _PLACES[device].get()
    try:
        yield stream
    finally:
        _PLACES[device].put(stream)


@contextmanager
def beside(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Copy and prepare on a block's own stream, and wait for that at the end."""
    with torch.cuda.stream(stream):  # None: no stream, nothing to wait for
        yield
    if stream is not None:
        stream.synchronize()


def used_here(tensor: Tensor) -> None:
    """Keep a tensor's memory, which belongs to the stream that it was made on, until the present stream is done."""
    if tensor.is_cuda:
        tensor.record_stream(torch.cuda.current_stream(tensor.device))


def set_threads() -> None:
    """Let torch use the threads of the Dask worker that it runs in.

    Dask starts worker processes with one thread for numerical libraries, for many tasks at once; here blocks share all
    of them.
    """
    from distributed import get_worker

    try:
        threads = get_worker().state.nthreads
    except ValueError:  # not in a worker: torch's own choice stands, also where a worker of this process has ended
        threads = _OWN_THREADS
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def shareable(module: nn.Module) -> bool:
    """Tell whether several threads may call a module at once.

    What is made of this package's and torch's own layers keeps nothing of a call. Of others that is not known.
    """
    return all(type(part).__module__.startswith(("xgfm.", "torch.nn.modules.")) for part in module.modules())


def callers(device: str) -> int:
    """Return how many threads call a model at once on a device, each with its share of torch's threads.

    On a CPU, windows that go through the model beside each other take less time than the same windows one call after
    the other, each operation shared by all threads: they need not wait for each other after every operation. A map
    takes 8 to 14 % less (measured on two cores, tiny, 100M and 300M, bf16; tiny, fp32).
    """
    threads = torch.get_num_threads() if device == "cpu" else 1
    return threads // -(-threads // _CALLERS)


def in_order(
    work: Callable[[Part], Result], parts: Sequence[Part], at_once: int, device: str = "cpu"
) -> Generator[Result, None, None]:
    """Do some work on each part, on several at once in threads of their own, and yield what comes of them in turn.

    Few are ahead of what was taken, and those of two blocks take turns. Torch's threads are shared between those at
    work, and given back at the end. Close what this returns, or it keeps the device when an error is kept that came
    while somebody took from it.
    """
    if not parts:
        return
    pool, at_once = _pool(at_once), min(at_once, len(parts))
    if at_once == 1:
        with shared(device):
            yield from map(work, parts)
        return
    threads = torch.get_num_threads()

    def one(part: Part) -> Result:
        with shared(device, at_once), torch.inference_mode():
            torch.set_num_threads(max(threads // at_once, 1))  # a thread's own, as is the mode
            return work(part)

    waiting: deque[Future[Result]] = deque()
    try:
        for part in parts:
            waiting.append(pool.submit(one, part))
            if len(waiting) > at_once:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        wait([future for future in waiting if not future.cancel()])
        torch.set_num_threads(threads)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Return the threads that call models. They stay, as does the memory that the C library keeps for each of them."""
    # What torch is asked first in a thread: before, it would take the process's number of threads, whatever is set.
    return ThreadPoolExecutor(threads, thread_name_prefix="xgfm-model", initializer=torch.get_num_threads)


def _forget() -> None:
    """Begin anew in a forked process, which has no thread but one, and none that could give back what it has."""
    _pool.cache_clear()
    _DEVICES.clear()
    _PLACES.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
