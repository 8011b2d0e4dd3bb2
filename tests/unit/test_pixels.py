"""Stored numbers to a model's input, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xgfm.infer.pixels import Pixels, normalise, on_device, valid_in

KINDS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64", ">i2"]
MEAN, STD = (1.5, -20.0), (2.0, 0.3)


def pixels_of(nodata: float | None, fill_units: str = "normalised") -> Pixels:
    return Pixels(MEAN, STD, 0.5, 1e-4, nodata, 0.25, fill_units)


def fits(number: float, dtype: np.dtype) -> bool:
    return number.is_integer() and np.iinfo(dtype).min <= number <= np.iinfo(dtype).max


@given(
    kind=st.sampled_from(KINDS),
    nodata=st.sampled_from([None, float("nan"), -9999.0, 0.0, 3.0, 2.5, 255.0, 70_000.0, 1e20]),
    fill_units=st.sampled_from(["normalised", "input"]),
    seed=st.integers(0, 1000),
)
def test_missing_numbers_of_any_kind_are_filled(kind: str, nodata: float | None, fill_units: str, seed: int) -> None:
    rng, dtype = np.random.default_rng(seed), np.dtype(kind)
    block = rng.choice([0, 1, 3, 100], (4, 2, 5, 6)).astype(dtype)
    if nodata is not None and (dtype.kind == "f" or fits(nodata, dtype)):
        block[rng.random(block.shape) < 0.3] = nodata
    if dtype.kind == "f":
        block[rng.random(block.shape) < 0.1] = np.nan
        block[rng.random(block.shape) < 0.1] = -np.inf
    values = block.astype("float64")
    valid = np.isfinite(values) & (block != (np.nan if nodata is None else nodata))
    pixels = pixels_of(nodata, fill_units)

    raw = on_device(block, "cpu", frames=2)
    x = normalise(raw, pixels).numpy()

    grouped = valid.reshape(2, 2, 2, 5, 6)
    np.testing.assert_array_equal(valid_in(raw, nodata).numpy(), grouped.all(axis=(1, 2)))
    mean, std = (np.array(v)[:, None, None] for v in (MEAN, STD))
    fill = 0.25 if fill_units == "normalised" else (0.25 - mean) / std
    with np.errstate(invalid="ignore"):
        wanted = np.where(valid, (values * 0.5 - mean) / std, fill).reshape(2, 2, 2, 5, 6).swapaxes(1, 2)
    np.testing.assert_allclose(x, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_whole_need_not_be_looked_through(dtype: torch.dtype) -> None:
    block = np.random.default_rng(0).integers(1, 4000, (6, 2, 7, 9), "int16")
    raw, pixels = on_device(block, "cpu", frames=3), pixels_of(-9999.0)
    assert torch.equal(normalise(raw, pixels, dtype), normalise(raw, pixels, dtype, whole=True))
