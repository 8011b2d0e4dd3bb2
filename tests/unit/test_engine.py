"""Blending, augmentation, precision and memory: the engine's options, with models whose answers are known."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import Handle, Positional, cube, model_spec, task_spec

import xgfm
from xgfm.errors import TaskError
from xgfm.infer import device
from xgfm.infer.augment import averaged_over_d4
from xgfm.infer.inputs import window_values
from xgfm.infer.kernel import taper
from xgfm.models.build import build_model, build_task
from xgfm.models.published import MODELS
from xgfm.models.spec import TaskSpec

predict = partial(xgfm.predict, precision="fp32")


def small_task() -> tuple[TaskSpec, nn.Module]:
    torch.manual_seed(3)
    spec = task_spec(
        model=model_spec(depth=4),
        halo=4,
        architecture={
            "family": "pixelwise",
            "necks": [
                {"name": "SelectIndices", "indices": [0, 1, 2, 3]},
                {"name": "ReshapeTokensToImage"},
                {"name": "LearnedInterpolateToPyramidal"},
            ],
            "decoder": {"name": "UNetDecoder", "channels": [32, 16, 8, 8], "last_enlarges": True},
            "head": {"dropout": 0.1, "channel_list": []},
        },
    )
    return spec, build_task(spec).eval().requires_grad_(False)


@settings(deadline=None, max_examples=10)
@given(
    size=st.tuples(st.integers(5, 90), st.integers(5, 90)),
    chunk=st.integers(33, 90),
    blend=st.sampled_from([None, "hann"]),
)
def test_a_transformer_gives_the_same_map_in_any_chunking(size: tuple[int, int], chunk: int, blend: Any) -> None:
    handle = Handle(*small_task())
    c = cube(*size, missing=0.02, chunks=-1)
    ask = partial(predict, task=handle, return_=["class", "probability"], blend=blend)
    one, other = ask(c).compute(), ask(c.chunk(x=chunk, y=chunk)).compute()
    np.testing.assert_allclose(one.probability.values, other.probability.values, atol=1e-5)
    np.testing.assert_array_equal(one.toy_task.values, other.toy_task.values)


def test_blending_is_the_weighted_mean_of_all_windows_that_reach_a_pixel() -> None:
    spec, module = task_spec(halo=4, window=16), Positional(strength=3.0)
    rows, columns, row, column = 41, 50, -160_000, 14_676
    c = cube(rows, columns, row=row, column=column)
    x = torch.from_numpy((c.values.astype("float32") - 1000) / 500).movedim(0, 1)
    total, weights = np.zeros((3, rows, columns)), np.zeros((rows, columns))
    ramp = np.minimum(1, np.sin(np.pi / 2 * np.minimum((np.arange(16) + 0.5) / 8, (15.5 - np.arange(16)) / 8)) ** 2)
    cells = [range((o // 8 - 2) * 8 - o - 4, n, 8) for o, n in ((row, rows), (column, columns))]
    tops, lefts = (
        sorted({min(max(s, 0), n - 16) for s in starts if s + 12 > 0 and s + 4 < n})
        for starts, n in zip(cells, (rows, columns), strict=True)
    )
    for top in tops:
        for left in lefts:
            where = (slice(top, top + 16), slice(left, left + 16))
            total[(slice(None), *where)] += module(x[(None, ..., *where)])[0].numpy() * np.outer(ramp, ramp)
            weights[where] += np.outer(ramp, ramp)
    seen = predict(c, Handle(spec, module), blend="hann", return_="logits")
    np.testing.assert_allclose(seen.logits.values, total / weights, atol=1e-4)


@given(window=st.integers(4, 60), data=st.data())
def test_neighbouring_tapers_add_up_to_one(window: int, data: st.DataObject) -> None:
    blend = data.draw(st.integers(1, window // 2))
    weights = taper(window, blend).double()
    assert (weights > 0).all()
    np.testing.assert_allclose(weights[:blend] + weights[window - blend :], 1, atol=1e-6)
    assert (weights[blend : window - blend] == 1).all()


def test_blending_lowers_the_steps_at_seams() -> None:
    class Edgy(Positional):
        def forward(self, x: torch.Tensor, time: Any = None, location: Any = None) -> torch.Tensor:
            ramp = torch.linspace(-1, 1, x.shape[-1])  # right in the middle only
            return x.mean(2)[:, :3] * 0 + (ramp[:, None] + ramp)[None, None]

    c, handle = cube(80, 80), Handle(task_spec(halo=3), Edgy())
    steps = {}
    for name, options in {"none": {"halo": 0}, "halo": {}, "hann": {"blend": "hann"}}.items():
        logits = predict(c, handle, return_="logits", **options).logits.values[0]
        steps[name] = np.abs(np.diff(logits, axis=1)).max()
    assert steps["hann"] < 0.5 * steps["halo"]
    assert steps["halo"] < 0.8 * steps["none"]


def test_augmentation_is_the_mean_over_the_eight_symmetries() -> None:
    x = torch.randn(2, 6, 3, 8, 8)

    def ask(x: torch.Tensor) -> torch.Tensor:
        return x.mean(2)[:, :3] * torch.arange(64.0).reshape(8, 8)

    seen = averaged_over_d4(ask, x)
    turns: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda t: t,
        lambda t: t.flip(-1),
        lambda t: t.flip(-2),
        lambda t: t.flip(-1).flip(-2),
        lambda t: t.transpose(-1, -2),
        lambda t: t.flip(-1).flip(-2).transpose(-1, -2),
    ]
    quarter: list[tuple[Any, Any]] = [
        (lambda t: t.transpose(-1, -2).flip(-1), lambda t: t.flip(-1).transpose(-1, -2)),
        (lambda t: t.flip(-1).transpose(-1, -2), lambda t: t.transpose(-1, -2).flip(-1)),
    ]
    expected = sum(back(ask(to(x))) for to, back in [*((t, t) for t in turns), *quarter]) / 8
    torch.testing.assert_close(seen, expected)


def test_augmentation_reaches_the_map() -> None:
    c, handle = cube(), Handle(task_spec(), Positional(strength=3.0))
    plain, averaged = (predict(c, handle, return_="logits", tta=t).logits.values for t in (False, True))
    assert np.abs(plain - averaged).max() > 0.5
    pixelwise = Handle(task_spec(), Positional(strength=0.0))
    plain, averaged = (predict(c, pixelwise, return_="logits", tta=t).logits.values for t in (False, True))
    np.testing.assert_allclose(plain, averaged, atol=1e-5)


def test_bf16_changes_a_map_only_where_classes_are_nearly_equal() -> None:
    c, handle = cube(96, 96), Handle(*small_task())
    exact = predict(c, handle, return_=["class", "logits"]).compute()
    rough = xgfm.predict(c, handle, precision="bf16", return_=["class", "logits"]).compute()
    error = np.abs(rough.logits.values - exact.logits.values).max()
    assert 0 < error < 0.1 * exact.logits.values.std()
    top = np.sort(exact.logits.values, axis=0)
    differ = rough.toy_task.values != exact.toy_task.values
    assert ((top[-1] - top[-2])[differ] <= 2 * error).all()


class Broken(nn.Module):
    """Right in float32, wrong in bfloat16, as a faulty kernel is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor, time: Any = None, location: Any = None) -> torch.Tensor:
        right = x.mean(2)[:, :3] * self.weight
        return right if self.weight.dtype == torch.float32 else right.flip(-1)


def test_a_device_whose_bf16_is_wrong_falls_back_to_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "native_bf16", lambda _: True)
    c, spec = cube(), task_spec(name="broken")
    expected = predict(c, Handle(spec, Broken())).broken.values
    with pytest.warns(UserWarning, match="bf16 on cpu is wrong for this model .* fp32 is used"):
        seen = xgfm.predict(c, Handle(spec, Broken(), digest="1" * 64)).broken.values
    np.testing.assert_array_equal(seen, expected)


def test_running_out_of_memory_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_FITS", {})

    class Small(Positional):
        def forward(self, x: torch.Tensor, time: Any = None, location: Any = None) -> torch.Tensor:
            if len(x) > 3:
                raise torch.OutOfMemoryError("out of memory")
            return super().forward(x)

    c, handle = cube(70, 70, chunks=-1), Handle(task_spec(), Small())
    seen = predict(c, handle, batch_size=16).toy_task.values
    np.testing.assert_array_equal(seen, predict(c, Handle(task_spec())).toy_task.values)
    assert device._FITS == {"cpu": 3}  # of 25 windows 13, then 6, then 3
    assert max(shape[0] for shape in handle.module.seen) == 3


def test_a_window_that_does_not_fit_alone_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_FITS", {})

    class Huge(Positional):
        def forward(self, x: torch.Tensor, time: Any = None, location: Any = None) -> torch.Tensor:
            raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        predict(cube(), Handle(task_spec(), Huge())).compute()


def test_batches_run_over_dates() -> None:
    handle = Handle(task_spec(frames=1, halo=0))
    c = cube(16, 16, times=4, row=0, column=0, chunks=-1)  # one window a date
    predict(c, handle).compute(scheduler="sync")
    assert [shape[0] for shape in handle.module.seen] == [4]


def test_integer_features_keep_directions() -> None:
    torch.manual_seed(0)
    handle = Handle(model_spec(), build_model(model_spec()).eval())
    c = cube(40, 40, missing=0.02)
    floats, bytes_ = (xgfm.embed(c, handle, dtype=d, precision="fp32") for d in ("float32", "int8"))
    assert bytes_.dtype == "int8"
    q = bytes_.values.astype("float64")
    decoded = np.sign(q) * (q / 127) ** 2
    cosine = (decoded * floats.values).sum(0) / np.linalg.norm(decoded, axis=0) / np.linalg.norm(floats.values, axis=0)
    assert cosine.min() > 0.999
    half = xgfm.embed(c, handle, dtype="float16", precision="fp32")
    np.testing.assert_allclose(half.values, floats.values, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blend": "linear"}, "blend='linear' with halo=3: expected 'hann'"),
        ({"blend": "hann", "halo": 0}, "blend='hann' with halo=0: expected 'hann' with a halo"),
        ({"precision": "fp16"}, r"precision='fp16': expected one of \['auto', 'fp32', 'bf16'\]"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        xgfm.predict(cube(), Handle(task_spec()), **options)


@pytest.mark.parametrize("window_more", [-1, 0, 1, 11])
def test_unlucky_sizes_have_no_holes(window_more: int) -> None:
    size = 16 + window_more
    for shape in ((size, size), (size, 40), (40, size)):
        seen: xr.Dataset = predict(cube(*shape), Handle(*small_task()))
        assert (seen.toy_task.values != 255).all()


def test_batches_are_few_of_like_size_and_small_enough_to_be_kept() -> None:
    spec = task_spec(frames=1)
    sizes: list[int] = []

    class Counting(Positional):
        def forward(self, x: torch.Tensor, *_: Any) -> torch.Tensor:
            sizes.append(len(x))
            return super().forward(x)

    predict(cube(50, 50, times=1), Handle(spec, Counting())).compute()
    assert sum(sizes) > 8
    assert max(sizes) <= 8
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-sum(sizes) // 8)
    assert sizes == sorted(sizes, reverse=True)  # with several callers, these end at about one time

    encoder = MODELS["prithvi-eo-2.0-300m"]
    assert device.batch_size("cpu", 2 * window_values(encoder, 1, 224)) == 8
    assert device.batch_size("cpu", 2 * window_values(encoder, 4, 224)) == 5
    assert device.batch_size("cpu", 1 << 23) == 3  # 24 MiB of 32
    assert device.batch_size("cpu", 1 << 27) == 1
    assert device.batch_size("cuda", 1 << 27) == 32


FAULTS = """
import resource, sys, threading
import numpy as np
from xgfm.infer.device import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
def touch():
    for _ in range(20):
        kept = [np.ones(1 << 20) for _ in range(int(sys.argv[2]))]
def count():
    touch()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    touch()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
if sys.argv[3] == "thread":
    thread = threading.Thread(target=count)
    thread.start()
    thread.join()
else:
    count()
"""


def faults(how: str, arrays: int, where: str) -> int:
    """Page faults of arrays of 8 MiB, made and dropped twenty times, in a process as Dask's nanny starts it."""
    command = [sys.executable, "-c", FAULTS, how, str(arrays), where]
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"}
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize(("arrays", "where"), [(1, "first thread"), (20, "thread")])
def test_memory_is_kept_where_dask_had_it_trimmed(arrays: int, where: str) -> None:
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("the C library is not glibc: there is nothing to set")
    kept, trimmed = faults("keep", arrays, where), faults("as it is", arrays, where)
    if not trimmed:
        pytest.skip("this system does not count page faults")
    assert kept < trimmed / 10
