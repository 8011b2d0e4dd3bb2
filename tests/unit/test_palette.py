"""Colours that nobody confuses, by colorspacious' simulation of colour vision deficiencies (Machado et al. 2009)."""

from __future__ import annotations

import numpy as np
import pytest
from colorspacious import cspace_convert

from xgfm.palette import COLORS, EMPTY, class_colors

VISIONS = ("normal", "deuteranomaly", "protanomaly", "tritanomaly")


def seen(colors: list[str], vision: str) -> np.ndarray:
    """Return colours in CAM02-UCS, where distances are those that people see."""
    srgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in colors])
    if vision != "normal":
        blind = {"name": "sRGB1+CVD", "cvd_type": vision, "severity": 100}
        srgb = np.clip(cspace_convert(srgb, blind, "sRGB1"), 0, 1)
    return np.asarray(cspace_convert(srgb, "sRGB1", "CAM02-UCS"))


def closest(colors: list[str], vision: str) -> float:
    places = seen(colors, vision)
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    return float(apart[~np.eye(len(colors), dtype=bool)].min())


@pytest.mark.parametrize("vision", VISIONS)
def test_any_two_classes_are_told_apart(vision: str) -> None:
    assert closest(list(COLORS), vision) >= 9.9
    assert closest([*COLORS, EMPTY, "#ffffff"], vision) >= 9.9  # and from pixels without data, and the paper


def test_hues_alone_would_fail() -> None:
    """The yardstick can say no: matplotlib's usual ten colours are too near for some."""
    tab10 = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22"]
    assert min(closest(tab10, vision) for vision in VISIONS) < 6


def test_as_many_as_are_wanted_and_no_two_alike() -> None:
    for count in (0, 1, 24, 25, 60):
        colors = class_colors(count)
        assert len(set(colors)) == len(colors) == count
    assert class_colors(30)[:24] == class_colors(24) == list(COLORS)  # a class keeps its colour when others come
