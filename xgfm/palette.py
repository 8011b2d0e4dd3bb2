"""Colours for classes that have none of their own, told apart with any colour vision.

In: how many classes there are, or their flags. Out: ``#rrggbb``. Nothing is computed.
"""

from __future__ import annotations

import colorsys

EMPTY = "#d4d4d4"
"""Pixels without data."""

COLORS = (
    "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7",
    "#691e3c", "#a50000", "#4b2d78", "#785a69", "#78ffa5", "#1e00e1", "#96c378",
    "#9678ff", "#c3e1ff", "#2d693c", "#963c87", "#d2a5b4", "#78000f", "#873cff",
    "#a5784b", "#004b4b", "#698787",
)  # fmt: skip
"""The palette of Okabe and Ito without its black, and as many again that are farthest from all before them, from white
and from `EMPTY`, in the worst of four kinds of colour vision: any two are some 10 or more apart in CAM02-UCS."""


def class_colors(count: int) -> list[str]:
    """Return a colour for each of some classes.

    Parameters
    ----------
    count : int
        How many. Two of the first 24 are told apart by people with any colour vision; more are different colours, but
        nobody tells so many apart.
    """
    return [COLORS[number] if number < len(COLORS) else _further(number) for number in range(count)]


def _further(number: int) -> str:
    """Hues a golden angle apart, in three shades."""
    hue = (0.08 + number * 0.618034) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.65, 0.45, 0.85)[number % 3], (0.85, 0.7, 0.6)[number // 3 % 3])
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
