"""Fields of a class map as polygons: of one block, and of many blocks without their seams.

In: blocks of a class map, row by row. Out: one polygon for each 4-connected region of one class, with its area and its
mean confidence, the same whatever the blocks. What no later block can touch is given out at once, so that memory holds
one row of blocks and the regions that are still open. Nothing is lazy here; polygons are in pixels of the whole map.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from xgfm.cf import NODATA
from xgfm.errors import GridError

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

LATTICE = 64
"""Pixels between the points where the scale of the projection is asked for."""


@dataclass(frozen=True)
class Pieces:
    """Regions of one block."""

    shapes: np.ndarray
    """Polygons, in columns and rows of the whole map."""
    classes: np.ndarray
    area: np.ndarray
    """Square metres."""
    trust: np.ndarray
    """Sum of the confidence of the pixels that have one."""
    trusted: np.ndarray
    """Number of those pixels."""
    edges: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    """Number of the piece that each pixel of the top, bottom, left and right side belongs to; -1 for none."""

    def __len__(self) -> int:
        return len(self.classes)


def pieces_of(
    values: np.ndarray,
    areas: np.ndarray,
    confidence: np.ndarray | None = None,
    *,
    classes: Sequence[int] | None = None,
    row: int = 0,
    column: int = 0,
) -> Pieces:
    """Return the regions of one block.

    Parameters
    ----------
    values : ndarray
        ``(y, x)``, uint8, 255 where there is none.
    areas : ndarray
        Square metres of each pixel.
    confidence : ndarray, optional
        Of each pixel; NaN is not counted.
    classes : sequence of int, optional
        Those that are wanted.
    row, column : int
        Of the block's first pixel in the map.
    """
    from affine import Affine
    from rasterio.features import rasterize, shapes

    place = {"transform": Affine(1, 0, column, 0, 1, row)}
    wanted = values != NODATA if classes is None else np.isin(values, classes)
    found = list(shapes(values, mask=wanted, connectivity=4, **place))
    if not found:
        none = np.empty(0)
        sides = (np.full(n, -1) for n in (values.shape[1], values.shape[1], values.shape[0], values.shape[0]))
        return Pieces(none, none.astype("uint8"), none, none, none.astype("int64"), tuple(sides))  # type: ignore[arg-type]
    numbered = ((shape, i) for i, (shape, _) in enumerate(found, 1))
    numbers: np.ndarray = rasterize(numbered, out_shape=values.shape, dtype="int32", **place) - 1
    labels, count = numbers[wanted], len(found)
    seen = np.ones(labels.shape, bool) if confidence is None else ~np.isnan(confidence[wanted])
    trust = np.zeros(count) if confidence is None else _sums(labels[seen], confidence[wanted][seen], count)
    return Pieces(
        shapes=_polygons([shape["coordinates"] for shape, _ in found]),
        classes=np.array([value for _, value in found], "uint8"),
        area=_sums(labels, areas[wanted], count),
        trust=trust,
        trusted=np.bincount(labels[seen], minlength=count) * (confidence is not None),
        edges=(numbers[0], numbers[-1], numbers[:, 0], numbers[:, -1]),
    )


def _sums(labels: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    sums: np.ndarray = np.bincount(labels, weights=values.astype("float64"), minlength=count)
    return sums


def _polygons(coordinates: list[Any]) -> np.ndarray:
    """Return GeoJSON coordinates as polygons: rings that touch themselves become holes."""
    rings = [ring for polygon in coordinates for ring in polygon]
    points = np.concatenate([np.asarray(ring, "float64") for ring in rings])
    closed = shapely.linearrings(points, indices=np.repeat(np.arange(len(rings)), [len(ring) for ring in rings]))
    owners = np.repeat(np.arange(len(coordinates)), [len(polygon) for polygon in coordinates])
    made: np.ndarray = shapely.polygons(closed, indices=owners)
    broken = ~shapely.is_valid(made)
    made[broken] = shapely.make_valid(made[broken])
    return made


def pixel_areas(geobox: GeoBox, rows: slice, columns: slice) -> np.ndarray:
    """Return the true area of each pixel of a part of a grid, in square metres, on the ellipsoid of its CRS.

    A pixel's nominal area divided by the areal scale of the projection (PROJ's ``proj_factors``), which is asked for
    every `LATTICE` pixels of the whole grid and interpolated between; of geographic grids, its degrees times the radii
    of curvature. A pixel has the same area whatever the part.

    Parameters
    ----------
    geobox
        Of the whole map; north-up.
    rows, columns
        Of the part.

    Raises
    ------
    GridError
        Where the grid has no CRS, or one without an ellipsoid, or lies outside of it.
    """
    crs = geobox.crs
    if crs is None or crs.proj.ellipsoid is None:
        raise GridError("areas need a CRS that is tied to an ellipsoid; attach one with assign_crs('EPSG:...')")
    y, x = np.arange(rows.start, rows.stop) + 0.5, np.arange(columns.start, columns.stop) + 0.5
    if crs.geographic:
        return np.repeat(_geographic_areas(geobox, y)[:, None], len(x), axis=1)
    nodes = [_nodes(part) for part in (rows, columns)]
    scale = _areal_scale(geobox, *nodes)
    unit = crs.proj.axis_info[0].unit_conversion_factor
    return abs(geobox.affine.a * geobox.affine.e) * unit**2 / _bilinear(scale, nodes, y, x)


def _geographic_areas(geobox: GeoBox, rows: np.ndarray) -> np.ndarray:
    ellipsoid: Any = geobox.crs.proj.ellipsoid  # type: ignore[union-attr]
    affine = geobox.affine
    sine, cosine = (f(np.deg2rad(affine.f + affine.e * rows)) for f in (np.sin, np.cos))
    a, b = ellipsoid.semi_major_metre, ellipsoid.semi_minor_metre
    square = 1 - (b / a) ** 2
    radii = a**2 * (1 - square) / (1 - square * sine**2) ** 2  # of the meridian times of the prime vertical
    sides: float = abs(np.deg2rad(affine.a) * np.deg2rad(affine.e))
    areas: np.ndarray = sides * radii * cosine
    return areas


def _nodes(part: slice) -> np.ndarray:
    """Return the lattice's rows or columns around a part, of the lattice that begins at the map's first pixel."""
    return np.arange(part.start // LATTICE, -(-part.stop // LATTICE) + 1) * float(LATTICE)


def _areal_scale(geobox: GeoBox, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    from pyproj import Proj, Transformer

    crs, affine = geobox.crs.proj, geobox.affine  # type: ignore[union-attr]
    x, y = np.meshgrid(affine.c + affine.a * columns, affine.f + affine.e * rows)
    lon, lat = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform(x, y)
    scale: np.ndarray = np.asarray(Proj(crs).get_factors(lon, lat).areal_scale).reshape(x.shape)
    if not np.isfinite(scale).all():
        raise GridError(f"the grid reaches outside of where its CRS is defined ({crs.name}); give the CRS it is in")
    return scale


def _bilinear(values: np.ndarray, nodes: Sequence[np.ndarray], y: np.ndarray, x: np.ndarray) -> np.ndarray:
    weights = [
        np.array([np.interp(at, n, unit) for unit in np.eye(len(n))]) for n, at in zip(nodes, (y, x), strict=True)
    ]
    out: np.ndarray = weights[0].T @ values @ weights[1]
    return out


@dataclass
class Regions:
    """Whole regions that are given out: polygons in pixels of the map, classes, areas and mean confidence."""

    shapes: np.ndarray
    classes: np.ndarray
    area: np.ndarray
    confidence: np.ndarray
    """NaN where no pixel has one."""


@dataclass
class Seams:
    """Joins pieces across the borders of blocks, one row of blocks after the other.

    Two pieces are joined where two of their pixels of one class share an edge.
    """

    parents: dict[int, int] = field(default_factory=dict)
    """Of open pieces, by number: a forest, one tree for each region."""
    open: dict[int, tuple[Any, int, float, float, int]] = field(default_factory=dict)
    """Shape, class, area, trust and trusted pixels of open pieces."""
    last: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    """Numbers and classes along the lower border of the row before, block by block."""
    used: int = 0

    def add(self, blocks: Sequence[Pieces], *, final: bool) -> Iterator[Regions]:
        """Take a row of blocks, from left to right, and yield the regions that are whole.

        Parameters
        ----------
        blocks
            All blocks of the row.
        final
            Whether it is the last row.
        """
        sides = []
        for block in blocks:
            inner, border = self._number(block)
            yield _regions(block, inner)
            sides.append(border)
        for left, right in pairwise(sides):
            self._join(left[3], right[2])
        for above, border in zip(self.last, sides, strict=False):  # above the first row there is none
            self._join(above, border[0])
        self.last = [] if final else [border[1] for border in sides]
        yield self._close()

    def _number(self, block: Pieces) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
        """Open the pieces at the border of a block; return the others, and number and class along each side."""
        touching = np.unique(np.concatenate(block.edges))
        touching = touching[touching >= 0]
        numbers = np.full(len(block) + 1, -1)  # the last one stands for -1, no piece
        numbers[touching] = np.arange(self.used, self.used + len(touching))
        self.used += len(touching)
        for piece in touching:
            number = int(numbers[piece])
            self.parents[number] = number
            self.open[number] = (
                block.shapes[piece], int(block.classes[piece]), float(block.area[piece]), float(block.trust[piece]),
                int(block.trusted[piece]),
            )  # fmt: skip
        classes = np.append(block.classes, NODATA)
        inner = np.setdiff1d(np.arange(len(block)), touching, assume_unique=True)
        return inner, [(numbers[edge], classes[edge]) for edge in block.edges]

    def _join(self, one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> None:
        same = (one[1] == other[1]) & (one[0] >= 0) & (other[0] >= 0)
        for first, second in np.unique(np.stack([one[0][same], other[0][same]]), axis=1).T.tolist():
            self.parents[self._root(first)] = self._root(second)

    def _root(self, number: int) -> int:
        while self.parents[number] != number:
            self.parents[number] = self.parents[self.parents[number]]
            number = self.parents[number]
        return number

    def _close(self) -> Regions:
        """Take out and return the regions that do not reach the lower border of the present row."""
        waiting = {self._root(n) for side in self.last for n in np.unique(side[0]).tolist() if n >= 0}
        groups: dict[int, list[int]] = defaultdict(list)
        for number in self.parents:
            root = self._root(number)
            if root not in waiting:
                groups[root].append(number)
        made = [_joined([self.open.pop(number) for number in members]) for members in groups.values()]
        for members in groups.values():
            for number in members:
                del self.parents[number]
        return _table(made)


def _joined(pieces: list[tuple[Any, int, float, float, int]]) -> tuple[Any, int, float, float]:
    shapes, classes, area, trust, trusted = zip(*pieces, strict=True)
    whole = shapes[0] if len(shapes) == 1 else _plain(shapely.union_all(shapes))
    return whole, classes[0], sum(area), sum(trust) / sum(trusted) if sum(trusted) else np.nan


def _plain(polygon: Any) -> Any:
    """Return a polygon without the points where seams met its sides: only corners are left."""
    rings = [_corners(shapely.get_coordinates(ring)) for ring in (polygon.exterior, *polygon.interiors)]
    return shapely.Polygon(rings[0], rings[1:])


def _corners(ring: np.ndarray) -> np.ndarray:
    points = ring[:-1]
    # At a corner one axis changes on the way in and the other on the way out.
    straight = (np.roll(points, 1, axis=0) != points) & (points != np.roll(points, -1, axis=0))
    corners: np.ndarray = points[~straight.any(axis=1)]
    return corners


def _table(made: Iterable[tuple[Any, int, float, float]]) -> Regions:
    rows = list(made)
    shapes = np.empty(len(rows), object)
    shapes[:] = [row[0] for row in rows]
    columns = [np.array([row[i] for row in rows], kind) for i, kind in ((1, "uint8"), (2, "float64"), (3, "float64"))]
    return Regions(shapes, *columns)


def _regions(block: Pieces, inner: np.ndarray) -> Regions:
    trusted = block.trusted[inner]
    mean = np.divide(block.trust[inner], trusted, out=np.full(len(inner), np.nan), where=trusted > 0)
    return Regions(block.shapes[inner], block.classes[inner], block.area[inner], mean)
