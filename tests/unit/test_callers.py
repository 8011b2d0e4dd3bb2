"""Several threads that call one model: which models they may, and that nothing but the time tells."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import Handle, Positional, cube, model_spec, task_spec, torch_threads, transformer_task

import xgfm
from xgfm.infer.device import callers, in_order, shareable
from xgfm.models.build import build_model

predict = partial(xgfm.predict, precision="fp32", device="cpu")


@settings(deadline=None, max_examples=10)
@given(
    size=st.tuples(st.integers(5, 90), st.integers(5, 90)),
    chunk=st.integers(33, 90),
    threads=st.sampled_from([2, 3, 8]),
    batch_size=st.sampled_from([None, 1, 5]),
    blend=st.sampled_from([None, "hann"]),
)
def test_any_number_of_threads_gives_the_same_map(
    size: tuple[int, int], chunk: int, threads: int, batch_size: int | None, blend: Any
) -> None:
    c, handle = cube(*size, missing=0.02, chunks=-1), Handle(*transformer_task())
    ask = partial(predict, task=handle, return_=["class", "probability"], blend=blend)
    with torch_threads(1):
        one = ask(c).compute()
    with torch_threads(threads):
        other = ask(c.chunk(x=chunk, y=chunk), batch_size=batch_size).compute()
    np.testing.assert_allclose(one.probability.values, other.probability.values, atol=1e-5)
    np.testing.assert_array_equal(one.toy_task.values, other.toy_task.values)


def test_two_threads_are_in_a_model_of_ours_at_once() -> None:
    spec, module = transformer_task()
    both = threading.Barrier(2, timeout=30)

    def meet(*_: Any) -> None:
        both.wait()

    module.register_forward_hook(meet)
    with torch_threads(2):
        predict(cube(40, 40, chunks=-1), Handle(spec, module)).compute()


def test_one_thread_is_in_a_model_of_others_at_once() -> None:
    class Alone(Positional):
        inside = threading.Lock()

        def forward(self, x: torch.Tensor, time: Any = None, location: Any = None) -> torch.Tensor:
            assert self.inside.acquire(blocking=False)
            try:
                return super().forward(x)
            finally:
                self.inside.release()

    handle = Handle(task_spec(), Alone())
    with torch_threads(4):
        predict(cube(80, 80, chunks=-1), handle, batch_size=1).compute()
    assert len(handle.module.seen) > 10


def test_models_of_ours_may_be_shared_and_others_not() -> None:
    assert shareable(transformer_task()[1])
    assert shareable(build_model(model_spec()))
    assert shareable(xgfm.load_task("crop-demo").load("cpu"))
    assert not shareable(Positional())
    assert not shareable(nn.Sequential(nn.Linear(2, 2), Positional()))


@pytest.mark.parametrize(("threads", "expected"), [(1, 1), (2, 2), (7, 7), (8, 8), (9, 4), (12, 6), (16, 8), (64, 8)])
def test_callers_share_torch_s_threads(threads: int, expected: int) -> None:
    with torch_threads(threads):
        assert callers("cpu") == expected
        assert callers("cuda") == 1


@given(parts=st.integers(0, 30), at_once=st.integers(1, 6), taken=st.integers(0, 30))
def test_answers_come_in_turn_and_few_ahead(parts: int, at_once: int, taken: int) -> None:
    begun: list[int] = []

    def work(part: int) -> int:
        begun.append(part)
        assert torch.is_inference_mode_enabled() or at_once == 1 or parts == 1
        return -part

    with torch_threads(6):
        results = in_order(work, range(parts), at_once)
        seen = [answer for _, answer in zip(range(taken), results, strict=False)]
        assert seen == [-part for part in range(min(parts, taken))]
        assert len(begun) <= taken + at_once
        assert [*seen, *results] == [-part for part in range(parts)]
        assert sorted(begun) == list(range(parts))
        assert torch.get_num_threads() == 6


def test_a_failure_is_raised_and_nothing_more_is_begun() -> None:
    begun: list[int] = []

    def work(part: int) -> int:
        begun.append(part)
        if part == 3:
            raise ValueError("three")
        return part

    with torch_threads(2), pytest.raises(ValueError, match="three"):
        list(in_order(work, range(100), 2))
    assert max(begun) < 10
