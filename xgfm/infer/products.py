"""Matrix products of a model, on CPUs where torch's usual ones are slow.

In: what a module multiplies while it is inside `products`. Out: the same, by other functions of torch. For float32, and
for every number format in its attention, torch calls MKL, which on AMD's CPUs leaves half of AVX-512's width unused;
oneDNN, which torch brings too, does not. Models need not know.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_SCORES = 4 << 20
"""Bytes of scores of attention that are computed at once: they stay in a core's share of the cache (measured)."""


def products(device: str) -> AbstractContextManager[Any]:
    """Let the modules that this thread calls on a device, without gradients, multiply in the way that suits it.

    Measured on two cores of an EPYC with AVX-512 and bf16: products of float32 take 0.45, attention in bf16 0.45 of the
    time. On other CPUs, and on a GPU, nothing changes.
    """
    return OtherKernels() if device == "cpu" and _mkl_is_slow() else nullcontext()


@cache
def _mkl_is_slow() -> bool:
    capabilities = torch.cpu.get_capabilities()
    amd = "AMD" in str(capabilities.get("cpu_name", ""))
    return bool(amd and capabilities.get("avx512_f") and hasattr(torch.ops.mkldnn, "_linear_pointwise"))


class OtherKernels(TorchFunctionMode):
    """Looks at each call of a function of torch, and answers some of them itself."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call ``func``, or what does the same here."""
        if not (types or kwargs or _said_otherwise()):
            if func is F.linear and _linear_is_ours(*args):
                return _linear(*args)
            if func is F.scaled_dot_product_attention and _attention_is_ours(*args):
                return _attention(*args)
        return func(*args, **(kwargs or {}))


def _said_otherwise() -> bool:
    """Tell whether gradients, another number format or a compiler's own kernels were asked for."""
    return torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()


def _linear_is_ours(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Tell whether it is what layers do: what is laid out in other ways, oneDNN answers with wrong numbers."""
    if bias is not None and not (_are(torch.float32, bias) and bias.shape == weight.shape[:1] and bias.is_contiguous()):
        return False
    dense = weight.ndim == 2 and (weight.is_contiguous() or weight.T.is_contiguous())
    fitting = x.ndim > 1 and x.numel() > 0 and x.shape[-1:] == weight.shape[1:]
    return dense and fitting and _are(torch.float32, x, weight)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def _attention_is_ours(query: Tensor, key: Tensor, value: Tensor, *others: object) -> bool:
    like = query.ndim == 4 and query.shape[:2] == key.shape[:2] == value.shape[:2]
    return like and _are(torch.bfloat16, query, key, value) and query.numel() > 0 and key.numel() > 0 and not others


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend, ``(B, heads, N, D)``, some heads of an image at a time.

    Scores are rounded to bf16, which torch's own attention does not do: the error of a model's answers stays the same
    to 4 % (measured up to scores of a standard deviation of 4).
    """
    batch, heads, count, width = query.shape
    at_once = max(_SCORES // (count * key.shape[-2] * query.element_size()), 1)
    mixed = query.new_empty(batch, count, heads, value.shape[-1]).transpose(1, 2)  # as models go on with it
    query = query * width**-0.5
    for image in range(batch):
        for head in range(0, heads, at_once):
            part = image, slice(head, head + at_once)
            mixed[part] = (query[part] @ key[part].transpose(-1, -2)).softmax(-1) @ value[part]
    return mixed


def _are(dtype: torch.dtype, *tensors: Tensor) -> bool:
    return all(tensor.dtype == dtype and tensor.device.type == "cpu" for tensor in tensors)
