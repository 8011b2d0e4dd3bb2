"""Products of a model by other kernels: the same numbers, and torch's own wherever something else was asked for."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from toys import Handle, cube, torch_threads, transformer_task

import xgfm
from xgfm.infer import products
from xgfm.infer.products import OtherKernels

sizes = st.integers(1, 70)


def close(seen: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compare with what doubles give."""
    assert seen.shape == expected.shape
    assert (seen.double() - expected).abs().max() <= tolerance


def laid_out(how: str, *shape: int) -> Tensor:
    """Return noise of a shape, in memory one way or another."""
    if how == "strided":
        return torch.randn(*shape, 2)[..., 0]
    if how == "across":
        return torch.randn(*reversed(shape)).permute(*reversed(range(len(shape))))
    if how == "repeated":
        return torch.randn(*shape[:-1], 1).expand(*shape)
    return torch.randn(*shape)


layouts = st.sampled_from(["dense", "strided", "across", "repeated"])


@settings(deadline=None, max_examples=100)
@given(
    lead=st.lists(st.integers(1, 5), min_size=1, max_size=3), inner=sizes, outer=sizes,
    of_x=layouts, of_weight=layouts, of_bias=layouts | st.none(),
)  # fmt: skip
def test_a_linear_layer_says_the_same(
    lead: list[int], inner: int, outer: int, of_x: str, of_weight: str, of_bias: str | None
) -> None:
    x, weight = laid_out(of_x, *lead, inner), laid_out(of_weight, outer, inner)
    bias = None if of_bias is None else laid_out(of_bias, outer)
    with torch.inference_mode(), mock.patch.object(products, "_linear", wraps=products._linear) as ours, OtherKernels():
        seen = F.linear(x, weight, bias)
    assert ours.called or {of_weight, of_bias} & {"strided", "repeated"}
    summed = F.linear(x.abs(), weight.abs(), None if bias is None else bias.abs()).max()  # errors are of this scale
    close(seen, F.linear(x.double(), weight.double(), None if bias is None else bias.double()), 1e-6 * float(summed))


@pytest.mark.parametrize("bias", [5, 1])
@pytest.mark.parametrize("inner", [8, 7])
def test_what_does_not_fit_is_torchs_error(bias: int, inner: int) -> None:
    def ask() -> Tensor:
        return F.linear(torch.zeros(3, inner), torch.zeros(4, 8), torch.zeros(bias))

    said = []
    for kernels in (contextlib.nullcontext(), OtherKernels()):
        with torch.inference_mode(), kernels:
            try:
                said.append(str(tuple(ask().shape)))
            except RuntimeError as error:
                said.append(str(error))
    assert said[0] == said[1]


@settings(deadline=None, max_examples=30)
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 5),
    count=sizes,
    others=sizes,
    width=st.sampled_from([8, 16, 20]),
    at_once=st.sampled_from([1, 1 << 12, 1 << 22]),
)
def test_attention_says_the_same(batch: int, heads: int, count: int, others: int, width: int, at_once: int) -> None:
    query = torch.randn(batch, count, heads, width).bfloat16().transpose(1, 2)
    key, value = (torch.randn(batch, heads, others, width).bfloat16() for _ in range(2))
    with torch.inference_mode(), mock.patch.object(products, "_SCORES", at_once), OtherKernels():
        seen = F.scaled_dot_product_attention(query, key, value)
    exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    close(seen, exact, 0.02 * float(value.abs().max()))  # means of values, by weights of bf16


def images(*shape: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = torch.randn(3, *shape).to(dtype)
    return query, key, value


OTHERWISE: dict[str, Callable[[], Tensor]] = {
    "a mask": lambda: F.scaled_dot_product_attention(*images(2, 3, 9, 8), torch.ones(9, 9).tril().bool()),
    "causal": lambda: F.scaled_dot_product_attention(*images(2, 3, 9, 8), is_causal=True),
    "a scale": lambda: F.scaled_dot_product_attention(*images(2, 3, 9, 8), scale=3.0),
    "no heads": lambda: F.scaled_dot_product_attention(*images(3, 9, 8)),
    "no images": lambda: F.scaled_dot_product_attention(*images(0, 3, 9, 8)),
    "float32": lambda: F.scaled_dot_product_attention(*images(2, 3, 9, 8, dtype=torch.float32)),
    "one row": lambda: F.linear(torch.randn(8), torch.randn(4, 8)),
    "no rows": lambda: F.linear(torch.randn(0, 8), torch.randn(4, 8)),
    "a row of weights": lambda: F.linear(torch.randn(3, 8), torch.randn(8)),
    "double": lambda: F.linear(torch.randn(3, 8).double(), torch.randn(4, 8).double()),
    "bfloat16": lambda: F.linear(torch.randn(3, 8).bfloat16(), torch.randn(4, 8).bfloat16()),
}


@pytest.mark.parametrize("what", OTHERWISE)
def test_what_is_not_meant_is_torchs(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    expected = OTHERWISE[what]()
    for name in ("_linear", "_attention"):
        monkeypatch.setattr(products, name, None)
    torch.manual_seed(0)
    with torch.inference_mode(), OtherKernels():
        seen = OTHERWISE[what]()
    assert torch.equal(seen, expected)


def test_what_is_compiled_is_left_to_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_linear", "_attention"):
        monkeypatch.setattr(products, name, None)
    layer, x = nn.Linear(8, 4), torch.randn(3, 8)
    with torch.inference_mode():
        expected = layer(x)
        with OtherKernels():
            assert torch.equal(torch.compile(layer, backend="aot_eager")(x), expected)


def test_gradients_and_autocast_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = nn.Linear(8, 4), torch.randn(3, 8)
    for name in ("_linear", "_attention"):
        monkeypatch.setattr(products, name, None)
    with OtherKernels():
        layer(x).sum().backward()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
    assert layer.weight.grad is not None


@pytest.mark.parametrize("threads", [1, 2])
def test_maps_are_made_by_them_where_mkl_is_slow(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    c, handle = cube(90, 90, chunks=-1), Handle(*transformer_task())
    predict = partial(xgfm.predict, c, handle, device="cpu", return_="logits", batch_size=2)
    made = {}
    for slow in (False, True):
        monkeypatch.setattr(products, "_mkl_is_slow", lambda slow=slow: slow)
        for precision, name in (("fp32", "_linear"), ("bf16", "_attention")):
            called, inner = set(), getattr(products, name)

            def watched(*args: Any, inner: Any = inner, called: set[int] = called) -> Tensor:
                called.add(threading.get_ident())
                return inner(*args)

            with torch_threads(threads), mock.patch.object(products, name, watched):
                made[precision, slow] = predict(precision=precision).logits.values
            assert bool(called) == slow
            assert threads == 1 or threading.get_ident() not in called
    np.testing.assert_allclose(made["fp32", True], made["fp32", False], atol=1e-5)
    exact = made["fp32", False]
    for slow in (False, True):
        assert 0 < np.abs(made["bf16", slow] - exact).max() < 0.1 * exact.std()


def test_only_amds_cpus_with_avx512_are_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    def meant(name: str, avx512: bool) -> bool:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": name, "avx512_f": avx512})
        products._mkl_is_slow.cache_clear()
        return products._mkl_is_slow()

    try:
        assert meant("AMD EPYC 9655 96-Core Processor", True)
        assert not meant("AMD EPYC 7763 64-Core Processor", False)
        assert not meant("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", True)
        assert not meant("", False)
        assert isinstance(products.products("cuda"), type(products.nullcontext()))
    finally:
        products._mkl_is_slow.cache_clear()
