"""Small parts of the kernel against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from xgfm.infer.inputs import lattice_origin
from xgfm.infer.kernel import pad_to


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 40))
def test_small_blocks_are_mirrored(rows: int, columns: int, size: int) -> None:
    x = np.arange(rows * columns).reshape(1, rows, columns)
    wanted = np.pad(x, ((0, 0), (0, max(size - rows, 0)), (0, max(size - columns, 0))), mode="reflect")
    np.testing.assert_array_equal(pad_to(torch.from_numpy(x), size).numpy(), wanted)


@pytest.mark.parametrize(
    ("left", "step", "column"),
    [(440_280.0, 30.0, 14_676), (0.3, 0.1, 3), (0.7, 0.1, 7), (15.0, 30.0, 0), (-15.0, 30.0, -1), (28.0, 30.0, 0)],
)
def test_the_lattice_is_counted_from_the_origin(left: float, step: float, column: int) -> None:
    """0.3 / 0.1 is a hair less than 3; a lattice half a pixel off the origin is counted downward, everywhere."""
    box = GeoBox((5, 5), Affine(step, 0, left, 0, -step, -left), "EPSG:32614")
    assert lattice_origin(box) == (column, column)
