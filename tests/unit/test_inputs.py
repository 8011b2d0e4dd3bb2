from __future__ import annotations

from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from xgfm.infer.inputs import lattice_origin

STEPS = (30.0, 56e-6 * 35_786_023.0, 1 / 3600, 0.0000898315284119521, 10.0, 463.3127165)
"""HLS, the fixed grid of ABI, a second of arc, 10 m in degrees, Sentinel-2, MODIS."""


@given(
    step=st.sampled_from(STEPS),
    row=st.integers(-200_000, 200_000),
    column=st.integers(-200_000, 200_000),
    remainder=st.sampled_from((0.0, 0.25, 0.5)),
    down=st.integers(0, 5000),
    along=st.integers(0, 5000),
)
def test_every_cut_of_a_lattice_counts_alike(
    step: float, row: int, column: int, remainder: float, down: int, along: int
) -> None:
    """Steps that binary fractions cannot hold round now up, now down; a pixel's number must not."""
    corner = Affine(step, 0, (column + remainder) * step, 0, -step, -(row + remainder) * step)
    box = GeoBox((6000, 6000), corner, "EPSG:32615")
    assert lattice_origin(box) == (row, column)
    assert lattice_origin(box[down:, along:]) == (row + down, column + along)
    edges = box[down:, along:].boundingbox  # as a file that states them to a billionth
    again = Affine(step, 0, round(edges.left, 9), 0, -step, round(edges.top, 9))
    assert lattice_origin(GeoBox((8, 8), again, "EPSG:32615")) == (row + down, column + along)
