"""Where training data come from, in a few words.

In: the lineage of chips, as JSON values: CRS, grid, dates, items and credits of each cube. Out: the box and the period
that hold them all, addresses of items, whom to name. Nothing is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from xgfm.cf import frames_of

Lineage = Iterable[Mapping[str, Any]]
_DEGREE = 111_195.0
"""Metres of a degree of latitude on a sphere of 6371 km."""


def extent_of(lineage: Lineage) -> list[float] | None:
    """Return west, south, east, north of all cubes, in degrees; None where no cube says.

    A box that crosses 180 degrees is all the way around.
    """
    boxes = [_box(cube) for cube in lineage if {"shape", "transform", "crs"} <= cube.keys()]
    edges = [box for box in boxes if all(map(math.isfinite, box))]  # some places of a disc are not on Earth
    if not edges:
        return None
    west, south, east, north = zip(*edges, strict=True)
    return [round(edge, 6) for edge in (min(west), min(south), max(east), max(north))]


def extent_of_chips(lat: NDArray[np.float64], lon: NDArray[np.float64], half: float) -> list[float] | None:
    """Return west, south, east, north of chips, in degrees, from their centres and half a side in metres.

    None where no chip has a place; all the way around where they lie on both sides of 180 degrees.
    """
    there = np.isfinite(lat) & np.isfinite(lon)
    if not there.any():
        return None
    up = half / _DEGREE
    along = up / np.cos(np.radians(np.minimum(np.abs(lat[there]), 89)))
    south, north = max(lat[there].min() - up, -90.0), min(lat[there].max() + up, 90.0)
    west, east = (lon[there] - along).min(), (lon[there] + along).max()
    if east - west > 180:
        west, east = -180.0, 180.0
    return [round(float(edge), 6) for edge in (west, south, east, north)]


def _box(cube: Mapping[str, Any]) -> tuple[float, float, float, float]:
    rows, columns = cube["shape"]
    width, _, left, _, height, top = cube["transform"]  # of the grids of cubes, which are not turned
    right, bottom = left + columns * width, top + rows * height
    to_degrees = Transformer.from_crs(cube["crs"], "EPSG:4326", always_xy=True)
    west, south, east, north = to_degrees.transform_bounds(
        min(left, right), min(top, bottom), max(left, right), max(top, bottom)
    )
    return (west, south, east, north) if west <= east else (-180.0, south, 180.0, north)


def period_of(lineage: Lineage) -> list[str] | None:
    """Return the first and the last date of all cubes, as text; None where no cube says.

    Of composites, the windows count that their dates were taken from.
    """
    dates = [str(date) for cube in lineage for date in (_windows(cube) or cube.get("dates") or ())]
    return [min(dates), max(dates)] if dates else None


def _windows(cube: Mapping[str, Any]) -> list[Any]:
    return [date for frame in frames_of(cube) for date in frame.get("window", ())]


def grids_of(lineage: Lineage) -> list[str]:
    """Return the CRS of all cubes, each once, as short as they can be said: ``EPSG:32615``, or a name."""
    return sorted({_short(str(cube["crs"])) for cube in lineage if cube.get("crs")})


def _short(crs: str) -> str:
    read = CRS.from_user_input(crs)
    authority = read.to_authority()
    return ":".join(authority) if authority else read.name


def addresses_of(lineage: Lineage) -> list[str]:
    """Return the items that have an address, each once, in order."""
    items = [str(item) for cube in lineage for item in cube.get("items") or ()]
    return [item for item in dict.fromkeys(items) if "://" in item]


def credits_of(lineage: Lineage) -> list[str]:
    """Return whom to name, each once."""
    return sorted({str(cube["attribution"]) for cube in lineage if cube.get("attribution")})
