"""Several threads that call one model, of one block or two: which they may, and that nothing but the time tells."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from typing import Any
from unittest import mock

import dask
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import Handle, Positional, cube, model_spec, task_spec, torch_threads, transformer_task

import xgfm
from xgfm.infer import kernel, sharing
from xgfm.infer.sharing import callers, in_order, shareable, shared
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


def test_while_a_block_ends_the_next_one_begins() -> None:
    spec, module = transformer_task()
    begun, third = [], threading.Event()
    inside = threading.Semaphore(2)

    def leave(*_: Any) -> None:
        inside.release()

    def wait(*_: Any) -> None:
        assert inside.acquire(blocking=False), "more than two calls are under way"
        begun.append(None)  # two calls for each block
        if len(begun) == 3:
            third.set()
        if len(begun) == 1:
            assert third.wait(30), "one call of a block is under way, one is done, and no call of another one begins"

    module.register_forward_pre_hook(wait)
    module.register_forward_hook(leave)
    with torch_threads(2), dask.config.set(scheduler="threads", num_workers=2):
        predict(cube(64, 80, chunks=(-1, -1, -1, 40)), Handle(spec, module), batch_size=100).compute()
    assert len(begun) == 4


@pytest.mark.parametrize("chunk", [-1, 40])
def test_one_thread_is_in_a_model_of_others_at_once(chunk: int) -> None:
    class Alone(Positional):
        inside = threading.Lock()

        def forward(self, x: torch.Tensor, time: Any = None, location: Any = None) -> torch.Tensor:
            assert self.inside.acquire(blocking=False)
            try:
                return super().forward(x)
            finally:
                self.inside.release()

    handle = Handle(task_spec(), Alone())
    with torch_threads(4), dask.config.set(scheduler="threads", num_workers=4):
        predict(cube(80, 80, chunks=(-1, -1, chunk, chunk)), handle, batch_size=1).compute()
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


def test_torch_has_its_threads_again_after_a_failure() -> None:
    def work(part: int) -> int:
        raise ValueError(part)

    with torch_threads(2):
        with pytest.raises(ValueError, match="0"):
            list(in_order(work, range(100), 2))
        assert torch.get_num_threads() == 2


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=40))
def test_a_device_is_never_asked_for_more_than_it_has(wanted: list[int]) -> None:
    lock, used = threading.Lock(), [Fraction(0)]

    def compute(by: int) -> None:
        with shared("of a test", by):
            with lock:
                used.append(used[-1] + Fraction(1, by))
            with lock:
                used.append(used[-1] - Fraction(1, by))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(compute, wanted))
    assert max(used) <= 1
    assert used[-1] == 0
    assert len(used) == 2 * len(wanted) + 1


@pytest.mark.parametrize("threads", [1, 2])
def test_a_block_that_is_stopped_gives_the_device_back(threads: int) -> None:
    def stopped(answer: Any, said: Any, *_: Any) -> None:
        next(said)
        raise KeyboardInterrupt

    ask = partial(predict, cube(64, 64, chunks=-1), Handle(*transformer_task()), batch_size=2)
    with torch_threads(threads), dask.config.set(scheduler="synchronous"):
        with mock.patch.object(kernel, "_place", stopped), pytest.raises(KeyboardInterrupt) as kept:
            ask().compute()
        assert sharing._DEVICES["cpu"]._free == 1
        ask().compute()
    assert kept.tb is not None  # as a notebook keeps it, with all that its frames hold


def test_a_device_is_given_back_where_no_thread_can_be_started() -> None:
    class Full(ThreadPoolExecutor):
        def submit(self, *work: Any, **more: Any) -> Any:
            if self._work_queue.qsize() or self._threads:
                raise RuntimeError("can't start new thread")
            return super().submit(*work, **more)

    with (
        torch_threads(2),
        Full(2) as pool,
        mock.patch.object(sharing, "_pool", return_value=pool),
        pytest.raises(RuntimeError, match="can't start new thread"),
    ):
        list(in_order(abs, range(4), 2, "of a test"))
    with shared("of a test"):
        pass


def test_a_thread_has_its_share_of_torch_s_from_its_first_call() -> None:
    begun, go = threading.Barrier(3, timeout=60), threading.Event()

    def work(_: int) -> int:
        begun.wait()
        assert go.wait(60)
        assert (torch.ones(400, 400) @ torch.ones(400, 400)).sum() == 400**3
        return torch.get_num_threads()

    def another_block() -> None:
        begun.wait()
        torch.set_num_threads(4)
        go.set()

    with torch_threads(4), ThreadPoolExecutor(1) as pool:
        sharing._pool.cache_clear()
        pool.submit(another_block)
        assert list(in_order(work, range(2), 2)) == [2, 2]


FORKED = """
import os, signal
import torch
from xgfm.infer.sharing import in_order
torch.set_num_threads(2)
assert list(in_order(abs, [-1, -2, -3], 2)) == [1, 2, 3]
child = os.fork()
if not child:
    signal.alarm(60)  # it would wait for threads that it does not have
    os._exit(list(in_order(abs, [-4, -5, -6], 2)) != [4, 5, 6])
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_has_threads_of_its_own() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], check=True, timeout=300)


def test_threads_stay_from_block_to_block() -> None:
    def which(_: int) -> int:
        return threading.get_ident()

    with torch_threads(2):
        blocks = [set(in_order(which, range(20), 2)) for _ in range(5)]
    assert len(set.union(*blocks)) <= 2


def begun_in_turn(one: Callable[[], Any], pool: ThreadPoolExecutor) -> Any:
    """Begin something that waits for the device, and return when it does."""
    waiting = sharing._DEVICES["of a test"]._waiting
    before = len(waiting)
    future = pool.submit(one)
    while len(waiting) == before:
        assert not future.done()
    return future


def test_nobody_computes_beside_who_has_the_device_alone() -> None:
    begun: list[int] = []
    with torch_threads(2), ThreadPoolExecutor(1) as pool:
        with shared("of a test"):
            future = begun_in_turn(lambda: list(in_order(begun.append, range(4), 2, "of a test")), pool)
            assert begun == []
        future.result()
    assert sorted(begun) == [0, 1, 2, 3]


def test_who_waits_for_a_whole_device_is_not_overtaken() -> None:
    served: list[int] = []

    def have(by: int) -> None:
        with shared("of a test", by):
            served.append(by)

    with ThreadPoolExecutor(2) as pool, shared("of a test", 2):
        begun_in_turn(partial(have, 1), pool)
        begun_in_turn(partial(have, 3), pool)  # there is enough for it, but it came later
        assert served == []
    assert served == [1, 3]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Have Ctrl-C raise KeyboardInterrupt: dask-jobqueue's runner, once imported, makes it end the process."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_who_is_stopped_while_waiting_does_not_stand_in_the_way() -> None:
    def have() -> str:
        with shared("of a test"):
            return "had"

    def stop() -> None:
        while len(sharing._DEVICES["of a test"]._waiting) < 2:
            pass
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    go = threading.Event()

    def hold(held: threading.Event) -> None:
        with shared("of a test"):
            held.set()
            go.wait(60)

    with ThreadPoolExecutor(3) as pool:
        held = threading.Event()
        holding = pool.submit(hold, held)
        assert held.wait(60)
        first = begun_in_turn(have, pool)
        stopping = pool.submit(stop)
        with pytest.raises(KeyboardInterrupt):
            have()
        go.set()
        holding.result()
        stopping.result()
        assert first.result() == "had"
    assert have() == "had"
