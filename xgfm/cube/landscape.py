"""The land of a simulated season: what grows where.

In: a random generator and a shape. Out: a `Land` of arrays ``(y, x)`` at 30 m: class, patch (field, stand, town...),
soil, gravel roads. Plain NumPy. The land is laid out as in the American Midwest: a survey grid of one-mile sections
with gravel roads on it, cut into fields; irregular fields and grassland on hills; centre pivots; woods, lakes with
wetlands round them, a river, towns and a highway.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from xgfm.cube.noise import Field, cells, noise
from xgfm.cube.phenology import CLASSES

Labels = NDArray[np.uint8]
Ids = NDArray[np.int64]

SECTION = 1609.344 / 30
"""Pixels in a mile."""

_CODE = {info.name: code for code, info in enumerate(CLASSES)}
_PLAIN = {"Corn": 0.31, "Soybeans": 0.29, "Winter Wheat": 0.15, "Alfalfa": 0.13, "Natural Vegetation": 0.08,
          "Forest": 0.04}  # fmt: skip
_HILLS = {"Corn": 0.17, "Soybeans": 0.13, "Winter Wheat": 0.10, "Alfalfa": 0.20, "Natural Vegetation": 0.28,
          "Forest": 0.12}  # fmt: skip
_PIVOT = {"Corn": 0.55, "Soybeans": 0.25, "Alfalfa": 0.20}


@dataclass(frozen=True, slots=True)
class Land:
    """What covers the ground, pixel by pixel."""

    label: Labels
    """Class of each pixel, an index into `phenology.CLASSES`."""
    patch: NDArray[np.int32]
    """Number of the patch that each pixel belongs to, 0 to n - 1."""
    patch_class: Labels
    """Class of each patch, ``(patch,)``."""
    soil: Field
    """Brightness of the bare ground against the patch's mean, 1 on average."""
    vigour: Field
    """Green share against the patch's mean, 1 on average."""
    gravel: Field
    """Share of the pixel under a gravel road, 0 to 1."""


def build_land(rng: np.random.Generator, shape: tuple[int, int]) -> Land:
    """Lay out the land of ``shape`` pixels of 30 m."""
    relief = noise(rng, shape, scale=260, slope=2.2)
    hills = relief > np.quantile(relief, 0.72)
    row, column = _surveyed(rng, shape, relief)
    ids, gravel = _fields(rng, row, column)
    irregular = cells(rng, shape, 17)
    first_hill = int(ids.max()) + 1
    patch = np.where(hills, first_hill + irregular, ids)
    label = _plant(rng, patch, first_hill)
    for name, where, stand in (
        *_pivots(rng, row, column, hills),
        *_wilds(rng, shape, relief),
        *_towns(rng, row, column),
        *_waters(rng, shape, relief),
        *_highway(rng, row, column),
    ):
        label = np.where(where, _CODE[name], label).astype("uint8")
        patch = np.where(where, patch.max() + 1 + stand, patch)
    return _describe(rng, label, patch, gravel)


def _surveyed(rng: np.random.Generator, shape: tuple[int, int], relief: Field) -> tuple[Field, Field]:
    """Row and column of each pixel in the survey's own frame: turned by a degree or so, and bent on hills."""
    turn, origin = np.deg2rad(rng.normal(0.0, 0.8)), rng.uniform(0, 4 * SECTION, 2)
    y, x = np.meshgrid(*(np.arange(size, dtype="float32") for size in shape), indexing="ij")
    bend = 1.2 * np.maximum(relief, 0)
    row = origin[0] + y * np.cos(turn) - x * np.sin(turn) + bend * noise(rng, shape, scale=60, slope=2.5)
    column = origin[1] + y * np.sin(turn) + x * np.cos(turn) + bend * noise(rng, shape, scale=60, slope=2.5)
    return row - row.min(), column - column.min()


def _fields(rng: np.random.Generator, row: Field, column: Field) -> tuple[Ids, Field]:
    """Number the fields of the survey, and draw the gravel roads between its sections."""
    plan = np.zeros((int(row.max()) + 1, int(column.max()) + 1), "int64")
    edges_y = np.rint(np.arange(0, plan.shape[0] + SECTION, SECTION)).astype(int)
    edges_x = np.rint(np.arange(0, plan.shape[1] + SECTION, SECTION)).astype(int)
    number = 0
    for top, bottom in pairwise(edges_y.tolist()):
        for left, right in pairwise(edges_x.tolist()):
            for y0, y1, x0, x1 in _split(rng, top, bottom, left, right):
                plan[y0:y1, x0:x1] = number
                number += 1
    ids = plan[row.astype(int), column.astype(int)]
    on_road = (np.abs((axis + SECTION / 2) % SECTION - SECTION / 2) < 0.6 for axis in (row, column))
    return ids, np.where(np.logical_or(*on_road), 0.3, 0).astype("float32")


def _split(rng: np.random.Generator, y0: int, y1: int, x0: int, x1: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut a section into fields of 6 to 65 ha, by halves, thirds and quarters, mostly across the longer side."""
    height, width = y1 - y0, x1 - x0
    if height * width < rng.lognormal(5.75, 0.55) or min(height, width) < 9:
        yield y0, y1, x0, x1
        return
    across = height > width * rng.uniform(0.7, 1.4)
    share = rng.choice([0.5, 0.5, 0.5, 1 / 3, 0.25, 0.6])
    if across:
        cut = y0 + max(4, round(height * share))
        yield from _split(rng, y0, cut, x0, x1)
        yield from _split(rng, cut, y1, x0, x1)
    else:
        cut = x0 + max(4, round(width * share))
        yield from _split(rng, y0, y1, x0, cut)
        yield from _split(rng, y0, y1, cut, x1)


def _plant(rng: np.random.Generator, ids: Ids, first_hill: int) -> Labels:
    """Draw a crop for every field: cash crops on the plain, more hay and grass on the hills."""
    count = int(ids.max()) + 1
    plain, hilly = (rng.choice([_CODE[n] for n in odds], count, p=list(odds.values())) for odds in (_PLAIN, _HILLS))
    crop: Labels = np.where(np.arange(count) >= first_hill, hilly, plain).astype("uint8")
    return crop[ids]


Layer = tuple[str, NDArray[np.bool_], NDArray[np.integer]]
"""Class, where it is, and which stand of it a pixel belongs to."""


def _pivots(rng: np.random.Generator, row: Field, column: Field, hills: NDArray[np.bool_]) -> Iterator[Layer]:
    """Irrigated circles of 400 m in some quarter sections, in a part of the plain; grass in the corners."""
    quarter = SECTION / 2
    square_y, square_x = (row // quarter).astype(int), (column // quarter).astype(int)
    radius = np.hypot(row % quarter - quarter / 2, column % quarter - quarter / 2)
    sandy = noise(rng, row.shape, scale=200, slope=2.5) > 0.9
    squares = (square_y.max() + 1, square_x.max() + 1)
    irrigated = (rng.random(squares) < 0.6)[square_y, square_x]
    crop = rng.choice([_CODE[n] for n in _PIVOT], squares, p=list(_PIVOT.values()))[square_y, square_x]
    stand = square_y * squares[1] + square_x
    whole = _share_of(stand, sandy & ~hills) > 0.7
    circle = whole & irrigated & (radius < quarter / 2 - 0.4)
    yield "Natural Vegetation", whole & irrigated & ~circle, stand
    for name in _PIVOT:
        yield name, circle & (crop == _CODE[name]), stand


def _share_of(stand: Ids, where: NDArray[np.bool_]) -> Field:
    """Share of each pixel's stand that lies in ``where``."""
    size = np.bincount(stand.ravel())
    share = np.bincount(stand.ravel(), weights=where.ravel()) / np.maximum(size, 1)
    return share[stand].astype("float32")


def _wilds(rng: np.random.Generator, shape: tuple[int, int], relief: Field) -> Iterator[Layer]:
    """Woods on the hills and in woodlots, with grassland at their edges."""
    wild = relief + 0.9 * noise(rng, shape, scale=90, slope=1.8)
    stands = cells(rng, shape, 24)
    yield "Natural Vegetation", wild > np.quantile(wild, 0.83), stands
    yield "Forest", wild > np.quantile(wild, 0.875), stands
    lots = noise(rng, shape, scale=25, slope=2.0)
    yield "Forest", lots > np.quantile(lots, 0.985), cells(rng, shape, 30)


def _waters(rng: np.random.Generator, shape: tuple[int, int], relief: Field) -> Iterator[Layer]:
    """Lakes in the hollows, wetlands round them, and a river with woods along it."""
    hollow = noise(rng, shape, scale=70, slope=2.6) - 0.5 * relief
    away = _from_river(rng, shape)
    stands = cells(rng, shape, 28)
    yield "Forest", away < 6, stands
    yield "Wetlands", (hollow > np.quantile(hollow, 0.90)) | (away < 3.2), stands
    yield "Open Water", away < 1.5, np.zeros(shape, "int32")
    yield "Open Water", hollow > np.quantile(hollow, 0.945), cells(rng, shape, 220)


def _from_river(rng: np.random.Generator, shape: tuple[int, int], reach: int = 12) -> Field:
    """Distance in pixels, up to ``reach``, from a river that meanders across the land."""
    steps = 3 * max(shape)
    heading = rng.choice([0, np.pi / 2]) + 0.95 * noise(rng, (1, steps), scale=45, slope=2.6)[0]
    start = rng.uniform(0.2, 0.8, 2) * shape
    y, x = start[0] + np.cumsum(np.sin(heading)), start[1] + np.cumsum(np.cos(heading))
    middle = steps // 2  # the walk goes through the start half way, so that it leaves the land on both sides
    y, x = y - y[middle] + start[0], x - x[middle] + start[1]
    away = np.full((shape[0] + 2 * reach, shape[1] + 2 * reach), float(reach))
    window = np.arange(2 * reach + 1) - reach
    for point_y, point_x in zip(y, x, strict=True):
        row, column = int(point_y), int(point_x)
        if 0 <= row < shape[0] and 0 <= column < shape[1]:
            near = away[row : row + 2 * reach + 1, column : column + 2 * reach + 1]
            np.minimum(near, np.hypot(*np.ix_(window + row - point_y, window + column - point_x)), out=near)
    ragged: Field = (away[reach:-reach, reach:-reach] + 0.6 * noise(rng, shape, scale=12, slope=1.5)).astype("float32")
    return ragged


def _towns(rng: np.random.Generator, row: Field, column: Field) -> Iterator[Layer]:
    """Towns at crossings of section roads."""
    shape = row.shape
    ragged = noise(rng, shape, scale=20, slope=1.5)
    for number in range(max(1, round(shape[0] * shape[1] / 230**2))):
        y, x = (SECTION * round(float(rng.uniform(0.15, 0.85) * axis.max() / SECTION)) for axis in (row, column))
        radius = rng.gamma(6, 2.6)
        distance = np.maximum(np.abs(row - y), np.abs(column - x)) * 0.5 + np.hypot(row - y, column - x) * 0.5
        yield "Developed/Barren", distance + 0.15 * radius * ragged < radius, np.full(shape, number)


def _highway(rng: np.random.Generator, row: Field, column: Field) -> Iterator[Layer]:
    """A paved road along a section line, over rivers and lakes."""
    axis = (row, column)[rng.integers(2)]
    line = SECTION * round(float(rng.uniform(0.2, 0.8) * axis.max() / SECTION))
    yield "Developed/Barren", np.abs(axis - line) < 1.1, np.zeros(row.shape, int)


def _describe(rng: np.random.Generator, label: Labels, patch: Ids, gravel: Field) -> Land:
    """Number the patches from 0, and give every pixel its soil and vigour."""
    shape = label.shape
    built, water = label == _CODE["Developed/Barren"], label == _CODE["Open Water"]
    _, first, numbered = np.unique(patch * 256 + label, return_index=True, return_inverse=True)
    soil = 1 + 0.13 * noise(rng, shape, scale=60, slope=1.6) + 0.04 * noise(rng, shape, scale=3, slope=1)
    soil = np.where(built, 1 + 0.16 * noise(rng, shape, scale=4, slope=1.2), soil)
    vigour = 1 + 0.035 * noise(rng, shape, scale=25, slope=1.6)
    mottled = np.isin(label, [_CODE[n] for n in ("Natural Vegetation", "Forest", "Wetlands")])
    vigour = np.where(mottled, 1 + 0.10 * noise(rng, shape, scale=8, slope=1.2), vigour)
    vigour = np.where(built, 1 + 0.45 * noise(rng, shape, scale=4, slope=1.2), vigour)
    return Land(
        label,
        numbered.reshape(shape).astype("int32"),
        label.ravel()[first],
        np.clip(soil, 0.4, 1.8).astype("float32"),
        np.clip(vigour, 0, 2).astype("float32"),
        np.where(water | built, 0, gravel).astype("float32"),
    )
