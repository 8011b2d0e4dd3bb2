"""Sums of one block of a map in the cells of a climate grid.

In: class codes of a block, and probabilities where there are any, in memory. Out: a `Partial`: additive sums in the few
cells that the block meets. Sums add up in any order, so blocks may be summed by any number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from xgfm.cf import NODATA
from xgfm.climate.globe import WGS84, Surface, area_factor, to_crs
from xgfm.errors import CubeError, LabelError
from xgfm.grid import pixel_size_m

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

    from xgfm.climate.grids import ClimateGrid
    from xgfm.climate.ownership import Ownership

Array = np.ndarray[Any, Any]
MISSING, UNKNOWN = -1, -2
"""In a legend's table: no class, and a code that the map does not explain."""
PARTS = 16
"""Places in a pixel that lies across the edge of a cell; a power of two."""
_STRIP = 1 << 19
"""Pixels that are summed at once: some 60 bytes are needed for each."""
_TOLERANCE = 1e-4
"""Pixels by which a place may be wrong."""
_SUM_TOLERANCE = 0.02
"""By which probabilities may miss a sum of one: they are stored as float16 or integers too."""


@dataclass(frozen=True)
class Recipe:
    """What every block of a map needs to be summed. It can be pickled, and holds no pixels."""

    box: GeoBox
    """Of the whole map."""
    grid: ClimateGrid
    table: Array
    """``(256,)`` the place of a class in the legend for each code, or `MISSING`, or `UNKNOWN`."""
    classes: int
    variable: str
    """Name of the map, for messages."""
    probability: str | None = None
    """Name of the probabilities."""
    ownership: Ownership | None = None
    """Where other maps cover the same ground."""

    @property
    def fields(self) -> int:
        """Columns of a partial's sums: seen area; area, pixels and probability of each class."""
        return 1 + self.classes * (3 if self.probability else 2)


@dataclass(frozen=True)
class Partial:
    """Sums in some of a grid's cells."""

    cells: Array
    """``(n,)`` int64, increasing: number of the cell, rows first; times go on where the last one's cells end."""
    sums: Array
    """``(n, fields)`` float64, as `Recipe.fields` says."""


def merged(partials: Sequence[Partial]) -> Partial:
    """Add partials up."""
    cells = np.concatenate([p.cells for p in partials])
    sums = np.concatenate([p.sums for p in partials])
    if not len(cells):
        return partials[0]
    order = np.argsort(cells, kind="stable")
    cells = cells[order]
    first = np.flatnonzero(np.append(True, cells[1:] != cells[:-1]))
    return Partial(cells[first], np.add.reduceat(sums[order], first, axis=0))


def block_sums(codes: Array, share: Array | None, recipe: Recipe, at: tuple[int, int, int]) -> Partial:
    """Return the sums of one block.

    Parameters
    ----------
    codes : ndarray
        ``(time, y, x)``: integers with 255 for none, or floats with NaN.
    share : ndarray or None
        ``(time, class, y, x)`` probabilities.
    recipe : Recipe
    at : tuple of int
        First time, row and column of the block in the map.

    Raises
    ------
    LabelError
        For a code that is none of the map's classes.
    CubeError
        For probabilities that do not add up to one, or that are missing where there is a class.
    """
    places = Places(recipe, (at[1], at[1] + codes.shape[1]), (at[2], at[2] + codes.shape[2]))
    parts = [Partial(np.empty(0, "int64"), np.empty((0, recipe.fields)))]
    for top, bottom in _strips(*codes.shape[1:]):
        strip = places.strip(at[1] + top, at[1] + bottom)
        for time in range(len(codes)):
            numbers = class_numbers(codes[time, top:bottom], recipe)
            part = None if share is None else _checked(share[time, :, top:bottom], numbers, recipe)
            first = (at[0] + time) * places.cells
            parts += [Partial(p.cells + first, p.sums) for p in strip.sums(numbers, part, recipe)]
    return merged(parts)


def _strips(height: int, width: int) -> Iterator[tuple[int, int]]:
    rows = max(_STRIP // max(width, 1), 1)
    return ((top, min(top + rows, height)) for top in range(0, height, rows))


def class_numbers(codes: Array, recipe: Recipe) -> Array:
    """Return the place in the legend of each pixel's class; `MISSING` for none."""
    if codes.dtype.kind == "f":
        whole = np.where(np.isnan(codes), NODATA, codes)
        wrong = whole != np.round(whole)
        if wrong.any():
            raise LabelError(f"the map {recipe.variable!r} holds {codes[wrong][0]}, which is no class code")
        codes = whole
    if codes.dtype != np.uint8:
        if codes.size and (codes.min() < 0 or codes.max() > NODATA):
            raise LabelError(
                f"the map {recipe.variable!r} holds codes from {codes.min():g} to {codes.max():g}; class codes are "
                f"0 to {NODATA - 1}"
            )
        codes = codes.astype("uint8")
    numbers: Array = recipe.table[codes]
    if (unknown := numbers == UNKNOWN).any():
        known = np.flatnonzero(recipe.table >= 0).tolist()
        raise LabelError(
            f"the map {recipe.variable!r} holds code {codes[unknown][0]}, which its flag_values {known} do not name; "
            f"correct them, or set such pixels to {NODATA}"
        )
    return numbers


def _checked(share: Array, numbers: Array, recipe: Recipe) -> Array:
    """Refuse what are no probabilities where there is a class."""
    there = numbers >= 0
    total = share.sum(axis=0, dtype="float64")
    good = (np.abs(total - 1) <= _SUM_TOLERANCE) & (share.min(axis=0) >= -1e-6)
    if (wrong := there & ~good).any():
        row, column = (int(v[0]) for v in np.nonzero(wrong))
        values = np.array2string(share[:, row, column], precision=3, threshold=6)
        raise CubeError(
            f"{recipe.probability!r} of the map is {values} in a pixel, which adds up to {total[row, column]:.3g}; "
            "expected probabilities from 0 to 1 that add up to one over the classes (return_=['probability'], not "
            "'logits'), or drop the variable"
        )
    return share


class Places:
    """Where a block's pixels lie in a grid."""

    def __init__(self, recipe: Recipe, rows: tuple[int, int], columns: tuple[int, int]) -> None:
        self.recipe, self.columns = recipe, columns
        self.ownership = recipe.ownership and recipe.ownership.near(rows, columns)
        near = _TOLERANCE * pixel_size_m(recipe.box)
        self.surfaces = {}
        for crs in dict.fromkeys([self.target, *(() if self.ownership is None else (WGS84, *self.ownership.crss))]):
            unit = near / 111_000 if crs == WGS84 or _degrees(crs) else near
            self.surfaces[crs] = Surface(to_crs(recipe.box, crs), rows, columns, np.full(2, unit))
        self.area = Surface(area_factor(recipe.box), rows, columns, np.full(1, 1e-7 * near**2 / _TOLERANCE**2))

    @cached_property
    def target(self) -> str:
        """CRS of the grid."""
        box = self.recipe.grid.geobox
        return WGS84 if box is None else str(box.crs)

    @cached_property
    def cells(self) -> int:
        """Number of cells of the grid."""
        rows, columns = self.recipe.grid.shape
        return rows * columns

    def strip(self, top: int, bottom: int) -> Strip:
        """Return the places of some rows."""
        rows, columns = np.arange(top, bottom + 1.0), np.arange(self.columns[0], self.columns[1] + 1.0)
        middles = rows[:-1] + 0.5, columns[:-1] + 0.5
        corners = {crs: surface(rows, columns) for crs, surface in self.surfaces.items()}
        cell = self.cell(corners)
        own = cell[:-1, :-1]
        edge = (own != cell[:-1, 1:]) | (own != cell[1:, :-1]) | (own != cell[1:, 1:])
        if self.ownership is not None:
            # Maps end where pixels do: corners may fall on either side, and what is left to a map be one pixel wide.
            edge |= own != self.cell({crs: surface(*middles) for crs, surface in self.surfaces.items()})
        return Strip(self, corners, np.where(edge, -1, own), np.flatnonzero(edge), self.area(*middles)[0])

    def cell(self, at: dict[str, Array]) -> Array:
        """Return the number of the cell of each place; -1 off the grid, off the Earth, or where another map counts."""
        row, column = self._row_column(*at[self.target])
        rows, columns = self.recipe.grid.shape
        good = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        if self.ownership is not None:
            good &= self.ownership.own(at[WGS84], at)
        return np.where(good, row * columns + column, -1)

    def _row_column(self, x: Array, y: Array) -> tuple[Array, Array]:
        grid = self.recipe.grid
        if grid.geobox is None:
            lon, lat = grid.lon_edges, grid.lat_edges
            west = (lon[0] + lon[-1]) / 2 - 180
            if not (x.size and west <= x.min() and x.max() < west + 360):
                x = west + (x - west) % 360
            return _bin(lat, y), _bin(lon, x)
        back = ~grid.geobox.transform
        with np.errstate(invalid="ignore"):
            found = (np.floor(v) for v in (back.d * x + back.e * y + back.f, back.a * x + back.b * y + back.c))
            row, column = (np.where(np.abs(v) < 2**31, v, -1).astype("int64") for v in found)
        return row, column


def _bin(edges: Array, values: Array) -> Array:
    """Return the number of the interval of each value; what is not finite is past the end."""
    return np.searchsorted(edges, values.ravel(), "right").reshape(values.shape) - 1


def _degrees(crs: str) -> bool:
    from odc.geo.crs import CRS

    return bool(CRS(crs).geographic)


def _inside() -> tuple[Array, Array]:
    """Return `PARTS` places in a pixel, 0 to 1: spread evenly over it.

    Hammersley's points (bits of the number read backwards): as even as four by four, and four times finer where a
    cell's edge runs along the rows or columns, which on a UTM grid it nearly does.
    """
    number = np.arange(PARTS)
    backwards = sum(((number >> bit) & 1) * (PARTS >> (bit + 1)) for bit in range(PARTS.bit_length() - 1))
    return (number + 0.5) / PARTS, (np.asarray(backwards) + 0.5) / PARTS


_DOWN, _ACROSS = _inside()
_WEIGHTS = np.stack([r * c for r in (1 - _DOWN, _DOWN) for c in (1 - _ACROSS, _ACROSS)])  # (4 corners, places)


class Strip:
    """Some rows of a block: the cell of each pixel, or of parts of it, and its area."""

    def __init__(self, places: Places, corners: dict[str, Array], own: Array, edge: Array, area: Array) -> None:
        self.area = np.where(np.isfinite(area), area, 0.0)
        self.inner, self.number = _renumbered(own)
        self.edge = edge
        parted = _between(corners, *np.divmod(edge, own.shape[1]))
        self.parts = places.cell(parted) if len(edge) else np.empty((0, PARTS), "int64")

    def sums(self, numbers: Array, share: Array | None, recipe: Recipe) -> Iterator[Partial]:
        """Yield the sums of pixels within cells, and of those on edges, given the class of each pixel."""
        flat = None if share is None else share.reshape(recipe.classes, -1)
        area = self.area.ravel()
        yield _summed(self.inner, self.number.ravel(), numbers.ravel(), area, 1.0, flat, recipe)
        if len(self.edge):
            inner, number = _renumbered(self.parts)
            times = self.parts.shape[1]
            each = None if flat is None else flat[:, self.edge].repeat(times, axis=1)
            codes, size = (v.ravel()[self.edge].repeat(times) for v in (numbers, area))
            yield _summed(inner, number.ravel(), codes, size / times, 1.0 / times, each, recipe)


def _between(corners: dict[str, Array], row: Array, column: Array) -> dict[str, Array]:
    """Return places inside pixels ``(2, pixels, places)``, bilinear between their corners."""
    out = {}
    for crs, values in corners.items():
        four = np.stack([values[:, row + r, column + c] for r in (0, 1) for c in (0, 1)], axis=-1)
        if crs == WGS84:
            # A pixel may lie across the seam of longitudes.
            four[0] = four[0, :, :1] + (four[0] - four[0, :, :1] + 180) % 360 - 180
        out[crs] = four @ _WEIGHTS
    return out


def _renumbered(cell: Array) -> tuple[Array, Array]:
    """Return the cells that occur, and for each place the number of its cell among them; past the end for none."""
    low, high = int(cell.max(initial=-1)), int(cell.max(initial=-1))
    if high < 0:
        return np.empty(0, "int64"), np.zeros(cell.shape, "int64")
    low = int(cell.min(initial=high, where=cell >= 0))
    shifted = np.where(cell < 0, high + 1, cell) - low
    there = np.bincount(shifted.ravel(), minlength=high - low + 2)[:-1] > 0
    lookup = np.append(np.cumsum(there) - 1, there.sum())
    return np.flatnonzero(there) + low, lookup[shifted]


def _summed(
    cells: Array, number: Array, codes: Array, area: Array, pixel: float, share: Array | None, recipe: Recipe
) -> Partial:
    """Add up the pixels of each cell and class; those without a class count as seen."""
    count, width = len(cells), recipe.classes + 1
    key = number * width + np.where(codes < 0, recipe.classes, codes)
    total, pixels = (
        np.bincount(key, weights=w, minlength=(count + 1) * width)[: count * width].reshape(count, width)
        for w in (area, None)
    )
    sums = [total.sum(axis=1, keepdims=True), total[:, :-1], pixels[:, :-1] * pixel]
    if share is not None:
        valid = np.where(codes < 0, 0.0, area)
        weighted = (np.where(codes < 0, 0.0, s) * valid for s in share)
        sums.append(np.stack([np.bincount(number, w, count + 1)[:count] for w in weighted], axis=1))
    return Partial(cells, np.concatenate(sums, axis=1))
