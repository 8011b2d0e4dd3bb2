"""Sine and cosine tables, against the formulas written out number by number."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xgfm.errors import TaskError
from xgfm.models.encodings import CoordinateEncoding, position_table, sincos

CPU = torch.device("cpu")
GRIDS = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))


def part(position: int, size: int) -> list[float]:
    angles = [position / 10000 ** (k / (size / 2)) for k in range(size // 2)]
    return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]


@given(GRIDS, st.sampled_from([16, 32, 48]))
@settings(max_examples=30, deadline=None)
def test_table_is_width_then_height_then_time(grid: tuple[int, int, int], width: int) -> None:
    table = position_table(width, grid[1:], grid, CPU)
    rows = [[0.0] * width]
    for t in range(grid[0]):
        for y in range(grid[1]):
            for x in range(grid[2]):
                rows.append(part(x, width // 16 * 6) + part(y, width // 16 * 6) + part(t, width // 16 * 4))
    assert torch.allclose(table, torch.tensor([rows]), atol=1e-6)


@given(GRIDS, st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_time_is_computed_not_interpolated(grid: tuple[int, int, int], frames: int) -> None:
    long = position_table(16, (5, 5), (max(frames, grid[0]), *grid[1:]), CPU)
    short = position_table(16, (5, 5), grid, CPU)
    assert torch.equal(long[:, : short.shape[1]], short)


def test_corners_keep_their_rows_when_resized() -> None:
    small = position_table(32, (4, 4), (1, 4, 4), CPU)[0, 1:].reshape(4, 4, 32)
    large = position_table(32, (4, 4), (1, 9, 6), CPU)[0, 1:].reshape(9, 6, 32)
    for i in (0, -1):
        for j in (0, -1):
            assert torch.allclose(small[i, j], large[i, j], atol=1e-6)


def test_table_is_kept_for_each_size() -> None:
    assert position_table(16, (3, 3), (1, 3, 3), CPU) is position_table(16, (3, 3), (1, 3, 3), CPU)


def test_table_made_in_inference_can_be_trained_with() -> None:
    with torch.inference_mode():
        table = position_table(16, (7, 7), (1, 5, 3), CPU)
    weight = torch.ones(16, requires_grad=True)
    (table * weight).sum().backward()
    assert weight.grad is not None


def test_width_must_divide() -> None:
    with pytest.raises(TaskError, match="multiple of 16"):
        position_table(24, (2, 2), (1, 2, 2), CPU)


@pytest.mark.parametrize("pair", [(2019.0, 213.0), (-33.9, 151.2)])
def test_coordinates_are_encoded_half_and_half(pair: tuple[float, float]) -> None:
    encoding = CoordinateEncoding(32, learned=False)
    ours = encoding(torch.tensor([pair]))[0]
    expected = torch.tensor([math.nan] * 32)
    for half, value in enumerate(pair):
        for k in range(8):
            # the power and the product are rounded to single precision, as the published models did
            omega = torch.tensor(1.0) / torch.tensor(10000.0) ** (k / 8)
            angle = torch.tensor(value) * omega
            expected[half * 16 + k], expected[half * 16 + 8 + k] = angle.sin(), angle.cos()
    assert torch.allclose(ours, expected, atol=2e-4)
    assert ours.dtype == torch.float32


def test_scale_is_learned_or_one() -> None:
    learned, fixed = CoordinateEncoding(16, learned=True), CoordinateEncoding(16, learned=False)
    assert [name for name, _ in learned.named_parameters()] == ["scale"]
    assert learned.scale.item() == pytest.approx(0.1)
    assert not list(fixed.parameters())
    assert fixed.state_dict()["scale"].item() == 1.0


def test_half_precision_cannot_hold_a_year() -> None:
    with pytest.raises(TaskError, match="give them as float32"):
        CoordinateEncoding(16, learned=True)(torch.tensor([[2019.0, 3.0]], dtype=torch.bfloat16))


def test_coordinates_stay_single_precision_in_a_half_precision_model() -> None:
    encoding = CoordinateEncoding(32, learned=False)
    pairs = torch.tensor([[2019.0, 213.0]])
    exact = encoding(pairs)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoding(pairs), exact)
    assert torch.equal(encoding.to(torch.bfloat16)(pairs), exact)


@given(st.floats(-180, 3000, width=32))
@settings(max_examples=30, deadline=None)
def test_sincos_lies_on_the_circle(value: float) -> None:
    encoded = sincos(torch.tensor([value], dtype=torch.float64), 8)[0]
    assert torch.allclose(encoded[:4] ** 2 + encoded[4:] ** 2, torch.ones(4, dtype=torch.float64))
