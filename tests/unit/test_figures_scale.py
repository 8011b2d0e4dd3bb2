"""The scale bar, against distances that pyproj and a sphere give."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from hypothesis import example, given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from results import DEGREES, NORTH, result

from xgfm.figures import plot
from xgfm.figures.scale import ground_widths, label_of, round_length

pytest.importorskip("matplotlib")

MERCATOR = GeoBox((70, 90), Affine(60.0, 0, -10_400_000.0, 0, -60.0, 8_400_000.0), "EPSG:3857")
"""At 60 degrees north, where a metre of the map is half a metre of ground."""
WORLD = GeoBox((180, 360), Affine(1.0, 0, -180.0, 0, -1.0, 90.0), "EPSG:4326")


def bar_of(made: xr.Dataset) -> tuple[float, str] | None:
    """Return the share of the map's width that the bar takes, and what it says."""
    axis = plot(made).axes[-1]
    bars = [a for a in axis.artists if hasattr(a, "size_bar")]
    if not bars:
        return None
    left, right = axis.get_xlim()
    (rectangle,) = bars[0].size_bar.get_children()
    return rectangle.get_width() / (right - left), bars[0].txt_label.get_text()


@example(9999999.999999998)
@given(st.floats(0.5, 1e7))
def test_lengths_are_round_and_the_largest(most: float) -> None:
    length = round_length(most)
    digits = f"{length:.6e}"
    assert digits[0] in "125"
    assert float(digits.split("e")[0]) == int(digits[0])
    assert length <= most * (1 + 1e-12) < 2.5 * length * (1 + 1e-9)


def test_labels() -> None:
    assert [label_of(n) for n in (0.5, 20, 500, 1000, 2000, 100_000)] == [
        "0.5 m", "20 m", "500 m", "1 km", "2 km", "100 km",
    ]  # fmt: skip


@pytest.mark.parametrize(("box", "metres"), [(NORTH, 2700.0), (MERCATOR, 5400 * math.cos(math.radians(60.0)))])
def test_it_is_as_long_as_on_the_ground(box: GeoBox, metres: float) -> None:
    share, label = bar_of(result(box)) or (0.0, "")
    length = float(label.split()[0]) * (1000 if "km" in label else 1)
    # UTM stretches by 4 in 10,000 at most; the ellipsoid differs from a sphere by 0.7 % at most.
    assert share == pytest.approx(length / metres, rel=0.01)
    assert 0.1 < share <= 0.3


def test_degrees_become_metres_along_their_parallel() -> None:
    share, label = bar_of(result(DEGREES)) or (0.0, "")
    middle = math.radians((DEGREES.boundingbox.top + DEGREES.boundingbox.bottom) / 2)
    metres = 90 * 0.00025 * math.pi / 180 * 6_378_137 * math.cos(middle)
    length = float(label.split()[0]) * (1000 if "km" in label else 1)
    assert share == pytest.approx(length / metres, rel=0.005)


def test_none_where_no_length_is_true_of_the_map() -> None:
    assert bar_of(result(WORLD)) is None
    assert np.ptp(ground_widths(WORLD)) > 1e7


def test_only_the_last_picture_has_one() -> None:
    axes = plot(result(times=3)).axes
    assert [sum(hasattr(a, "size_bar") for a in axis.artists) for axis in axes] == [0, 0, 1]
