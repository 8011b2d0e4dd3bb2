"""Where and in what precision a model runs: device, number format, batch size.

In: what the user asked for, on the worker that computes. Out: a module ready to be called. What is decided here depends
on the machine, so it is decided when a block is computed and never stands in a graph.
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading
import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from xgfm.errors import TaskError
from xgfm.infer.products import products
from xgfm.infer.sharing import shared

if TYPE_CHECKING:
    from xgfm.models.handle import ModelHandle

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

_LOCK = threading.RLock()
_CAST: dict[tuple[Any, str], nn.Module] = {}
_FITS: dict[str, int] = {}


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


def fetched(answer: Tensor, wrong: Tensor) -> tuple[np.ndarray, bool]:
    """Copy an answer from its device, and wait for no more than that: other blocks may compute in the meantime."""
    there, failed = answer.to("cpu", non_blocking=True), wrong.to("cpu", non_blocking=True)
    if answer.is_cuda:
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record(torch.cuda.current_stream(answer.device))
        copied.synchronize()
    return there.numpy(), bool(failed)


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
    with shared(device), torch.inference_mode(), products(device):
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
