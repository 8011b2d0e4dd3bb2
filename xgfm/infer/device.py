"""Where and in what precision a model runs: device, threads, number format, batch size.

In: what the user asked for, on the worker that computes. Out: a module ready to be called. What is decided here depends
on the machine, so it is decided when a block is computed and never stands in a graph.
"""

from __future__ import annotations

import ctypes
import os
import platform
import queue
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from xgfm.errors import TaskError
from xgfm.infer.products import products

if TYPE_CHECKING:
    from xgfm.models.handle import ModelHandle

Part = TypeVar("Part")
Result = TypeVar("Result")
Precision = Literal["auto", "fp32", "bf16"]
PRECISIONS = ("auto", "fp32", "bf16")

_ROUGH, _WRONG = 0.05, 0.5
"""Root-mean-square error of bf16 answers, as a share of the fp32 answers' spread, above which fp32 is used instead, and
above which the kernels are wrong.

Published models are near 0.01; one that was trained for a few steps, and says nearly the same of everything, may be too
rough; the wrong bf16 convolution of some CPUs is near 1."""

_KEPT = 1 << 25
"""Bytes of the largest piece of memory that glibc keeps for later when it is freed, if left to itself: 32 MiB."""
_HEAP = 2 * _KEPT
"""Bytes of a heap of a thread that is not the first one (``HEAP_MAX_SIZE`` of glibc's arena.c)."""
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h

_CALLERS = 8
"""Threads that call a model at once, at most: between its operations each needs Python, which serves one at a time."""

_LOCK = threading.RLock()
_DEVICES: dict[str, threading.Lock] = {}
_PLACES: dict[str, queue.SimpleQueue[torch.cuda.Stream | None]] = {}
_CAST: dict[tuple[Any, str], nn.Module] = {}
_FITS: dict[str, int] = {}
_OWN_THREADS = torch.get_num_threads()


def check_precision(precision: str) -> None:
    """Refuse a precision that there is none of."""
    if precision not in PRECISIONS:
        raise TaskError(f"precision={precision!r}: expected one of {list(PRECISIONS)}")


def check_device(device: str | None) -> None:
    """Refuse a name that is no device's. Whether a worker has it is seen there: the client need not have one."""
    try:
        torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError) as error:
        raise TaskError(f"device={device!r} is none that torch knows; expected 'cpu', 'cuda' or 'cuda:1'") from error


def pick(device: str | None) -> str:
    """Return the device asked for, or this process's best: CUDA where there is one, else the CPU."""
    if device is not None:
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def alone(device: str) -> AbstractContextManager[Any]:
    """Return the lock that one block at a time holds while it computes on a device, or is given to it to compute.

    Torch already uses every core or the whole of a GPU.
    """
    with _LOCK:
        return _DEVICES.setdefault(device, threading.Lock())


@contextmanager
def under_way(device: str) -> Iterator[torch.cuda.Stream | None]:
    """Hold one of the few places of blocks that lie in a device's memory.

    A CPU has one. A GPU has two, each with a stream of its own, on which a block is copied and prepared while the other
    one computes.
    """
    with _LOCK:
        if device not in _PLACES:
            _PLACES[device] = queue.SimpleQueue()
            streams = [torch.cuda.Stream(device) for _ in range(2)] if device.startswith("cuda") else [None]  # type: ignore[no-untyped-call]
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


def fetching(answer: Tensor, wrong: Tensor) -> Callable[[], tuple[np.ndarray, bool]]:
    """Begin to copy an answer from its device; return how to wait for it. Other blocks may compute in the meantime."""
    there, failed = answer.to("cpu", non_blocking=True), wrong.to("cpu", non_blocking=True)
    copied = torch.cuda.Event() if answer.is_cuda else None  # type: ignore[no-untyped-call]
    if copied is not None:
        copied.record()

    def wait() -> tuple[np.ndarray, bool]:
        if copied is not None:
            copied.synchronize()
        return there.numpy(), bool(failed)

    return wait


def batch_size(device: str, window_bytes: int) -> int:
    """Return how many windows go through the model at once, where nothing else is asked.

    More than 8 gain nothing on a CPU (measured, with AMX and without), and fewer are faster where the model's largest
    tensor would be more than the C library keeps: see `keep_memory`. A GPU wants more to be busy.

    Parameters
    ----------
    device
        As torch names it.
    window_bytes
        Size of the largest tensor that the model makes of one window; 0 where that is not known.
    """
    if device.startswith("cuda"):
        return 32
    return min(max((_KEPT - 4096) // max(window_bytes, 1), 1), 8)  # a page for the allocator's own notes


def ready(
    handle: ModelHandle, device: str, precision: str, answer: Callable[[nn.Module, Tensor], Tensor], sample: torch.Size
) -> nn.Module:
    """Return a handle's module on a device, its weights in the precision asked for.

    Parameters
    ----------
    handle
        What to load: once per process and device.
    device
        As torch names it.
    precision
        ``"auto"`` is bf16 where the device computes it natively and, tried on noise, right; fp32 elsewhere.
    answer
        Calls the module with an input.
    sample
        Shape ``(B, C, T, H, W)`` of an input to try.

    Notes
    -----
    Weights are cast once: that is faster than autocast, which casts them at every call, at an equal error.
    """
    module = handle.load(device)
    if precision == "fp32" or (precision == "auto" and not native_bf16(device)):
        return module
    with _LOCK:
        place = (handle, device)
        if place not in _CAST:
            cast = deepcopy(module).to(torch.bfloat16)
            _CAST[place] = cast if precision == "bf16" or _right(module, cast, answer, sample, device) else module
        return _CAST[place]


def dtype_of(module: nn.Module) -> torch.dtype:
    """Return the number format of a module's weights; float32 where it has none."""
    return next((p.dtype for p in module.parameters()), torch.float32)


def in_parts(count: int, device: str, work: Callable[[int, int], Tensor]) -> Tensor:
    """Run ``work(start, stop)`` over ``count`` windows at once, or in halves as long as memory does not suffice.

    What fitted is remembered for the device, so that running out happens a few times and not for every batch.
    """
    size = min(count, _FITS.get(device, count))
    while True:
        try:
            parts = [work(i, min(i + size, count)) for i in range(0, count, size)]
            return torch.cat(parts) if len(parts) > 1 else parts[0]
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size = max(size // 2, 1)
            _FITS[device] = size
            if device.startswith("cuda"):
                torch.cuda.empty_cache()


def native_bf16(device: str) -> bool:
    """Tell whether a device computes bf16 itself."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if device == "cpu" else {}
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16"))


def _right(
    module: nn.Module, cast: nn.Module, answer: Callable[[nn.Module, Tensor], Tensor], sample: torch.Size, device: str
) -> bool:
    """Tell whether the cast module's answer to noise is the module's own, within the precision of bf16."""
    noise = torch.randn(sample, generator=torch.Generator().manual_seed(0)).to(device)
    with alone(device), torch.inference_mode(), products(device):
        exact, rough = answer(module, noise).float(), answer(cast, noise.to(torch.bfloat16)).float()
    error = float((rough - exact).square().mean().sqrt() / exact.std().clamp_min(1e-12))
    if error > _WRONG:  # one that is only rough is no news: precision="auto" is there to choose
        warnings.warn(
            f"bf16 on {device} is wrong for this model (error {error:.2f} of the spread of its answers); fp32 is used",
            stacklevel=2,
        )
    return error <= _ROUGH


@cache
def keep_memory() -> None:
    """Let the C library keep freed memory for the next tensor, as it does where nobody has told it otherwise.

    Dask starts workers with ``MALLOC_TRIM_THRESHOLD_=65536``. glibc then hands every tensor of a forward pass back to
    the system and gets it again page by page: 1.6 times the time of a model of 100M or 300M parameters (measured, bf16
    on a CPU). The values are those that glibc comes to by itself (``DEFAULT_MMAP_THRESHOLD_MAX``, and twice that).

    The padding is for Dask's threads, whose memory lies in heaps of 64 MiB. An empty one is unmapped whatever the
    threshold, unless the heap before it has less room than the padding (``heap_trim`` in arena.c): a tenth of the time
    of the same models.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None and platform.libc_ver()[0] == "glibc":
        mallopt(_M_MMAP_THRESHOLD, _KEPT)
        mallopt(_M_TRIM_THRESHOLD, 2 * _KEPT)
        mallopt(_M_TOP_PAD, _HEAP)


def set_threads() -> None:
    """Let torch use the threads of the Dask worker that it runs in.

    Dask starts worker processes with one thread for numerical libraries, for many tasks at once; here one block
    computes at a time and should have them all.
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


def in_order(work: Callable[[Part], Result], parts: Sequence[Part], at_once: int) -> Iterator[Result]:
    """Do some work on each part, on several at once in threads of their own, and yield what comes of them in turn.

    Few are ahead of what was taken. Torch's threads are shared between those at work, and given back at the end.
    """
    at_once = min(at_once, len(parts))
    if at_once < 2:
        yield from map(work, parts)
        return
    threads = torch.get_num_threads()

    def one(part: Part) -> Result:
        torch.set_num_threads(threads // at_once)
        with torch.inference_mode():  # a thread's own, as is what was set before
            return work(part)

    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="xgfm-model")
    try:
        for part in parts:
            waiting.append(pool.submit(one, part))
            if len(waiting) > at_once:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
