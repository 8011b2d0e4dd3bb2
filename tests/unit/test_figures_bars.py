"""Bars of areas: lengths, intervals, colours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from results import CLASSES, result

from xgfm.climate.area import AreaEstimate, estimate_areas
from xgfm.figures import plot_areas
from xgfm.palette import COLORS

matplotlib = pytest.importorskip("matplotlib")

COUNTS = np.array([[66, 0, 5], [0, 55, 8], [1, 0, 153]])
MAPPED = np.array([20.0, 15.0, 320.0])


def estimate(names: tuple[str, ...] = tuple(c.name for c in CLASSES)) -> AreaEstimate:
    return estimate_areas(COUNTS, MAPPED, classes=names)


def drawn(figure: Any) -> tuple[list[Any], Any, Any]:
    (axis,) = figure.axes
    bars, (points,) = axis.containers[0].patches, [one for one in axis.lines if one.get_marker() == "D"]
    return bars, axis, points


def test_bars_intervals_and_pixels_counted() -> None:
    made = estimate()
    bars, axis, points = drawn(plot_areas(made, units="km²"))
    np.testing.assert_allclose([bar.get_width() for bar in bars], made.area)
    (segments,) = (c.get_segments() for c in axis.collections)
    np.testing.assert_allclose([s[:, 0] for s in segments], made.interval)
    np.testing.assert_allclose(points.get_xdata(), MAPPED)
    assert [t.get_text() for t in axis.get_yticklabels()] == list(made.classes)
    assert axis.get_ylim()[0] > axis.get_ylim()[1]  # the first class on top
    assert axis.get_xlabel() == "area (km²)"
    assert axis.get_xlim()[0] == 0


def test_colours_are_the_maps_else_the_palettes() -> None:
    def colors(figure: Any) -> list[str]:
        return [matplotlib.colors.to_hex(bar.get_facecolor()) for bar in drawn(figure)[0]]

    assert colors(plot_areas(estimate(), result())) == [c.color for c in CLASSES]
    assert colors(plot_areas(estimate())) == list(COLORS[:3])
    other = estimate(("Open Water", "Moss", "Winter Wheat"))
    assert colors(plot_areas(other, result())) == [CLASSES[2].color, COLORS[1], CLASSES[1].color]
