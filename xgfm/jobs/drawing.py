"""The map of a job's blocks by outcome, as SVG.

In: areas, and an outcome for each of their blocks. Out: one ``<svg>`` element that needs nothing else. Neighbouring
blocks of one outcome are one shape, so that a hundred thousand blocks are drawn as fast as four. Colours are of the
palette of Okabe and Ito, which people with any colour vision tell apart; failed blocks also differ in shape.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray

from xgfm.jobs.region import project
from xgfm.jobs.summary import FAILED, OUTCOMES

if TYPE_CHECKING:
    from xgfm.jobs.lattice import Area

WIDTH, HEIGHT = 980, 640
"""Most pixels of the map."""
COLOURS = {
    "outside": "#eeeeee",
    "no items": "#999999",
    "too few dates": "#cc79a7",
    "done": "#56b4e9",
    "missing": "#f0e442",
    "failed": "#d55e00",
}
_GRID = 8.0
"""Pixels of a block's side from which on blocks are set apart by lines, and failed ones are crossed out."""
_DOT = 7.0
"""Least pixels of a failed block's side."""
_NAMED = 60
"""Areas up to which their names are written on them."""


@dataclass(frozen=True)
class _Placed:
    """An area on the page."""

    name: str
    outcomes: NDArray[np.uint8]
    xs: NDArray[np.float64]
    ys: NDArray[np.float64]
    """Edges of its columns and rows, in blocks."""
    place: Affine
    """From blocks to pixels of the page."""

    @property
    def cell(self) -> float:
        """Pixels of a block's side."""
        return float(abs(self.place.determinant) ** 0.5)


def map_of(areas: Sequence[Area], outcomes: Mapping[str, NDArray[np.uint8]], region: shapely.Geometry) -> str:
    """Return the map of a job as SVG.

    Parameters
    ----------
    areas
        Of the job. One is drawn as it lies in its CRS, several as they lie on a map of degrees.
    outcomes
        By area: the position in `OUTCOMES` of each block.
    region
        Of the job, in degrees: drawn as a line.
    """
    placed, outline, size = _on_page(areas, outcomes, region)
    # Outcome by outcome, in the order of the colours: where tiles overlap, what is missing must be seen.
    layers = [[_shape(each, OUTCOMES.index(name)) for each in placed] for name in COLOURS]
    layers.append([_lines(each) for each in placed])
    shapes = "".join(_placed(each, shape) for layer in layers for each, shape in zip(placed, layer, strict=True))
    names = "".join(_label(each) for each in placed) if 1 < len(placed) <= _NAMED else ""
    return (
        f'<svg class="map" role="img" aria-label="map of the blocks by outcome" viewBox="0 0 {size[0]:.0f} '
        f'{size[1]:.0f}" width="{size[0]:.0f}" xmlns="http://www.w3.org/2000/svg">{shapes}'
        f'<path d="{_outline(outline)}" fill="none" stroke="#222" stroke-width="1.2"/>{names}</svg>'
    )


def _on_page(
    areas: Sequence[Area], outcomes: Mapping[str, NDArray[np.uint8]], region: shapely.Geometry
) -> tuple[list[_Placed], shapely.Geometry, tuple[float, float]]:
    """Return the areas and the region in pixels of the page, and the page's size."""
    if len(areas) == 1:
        (area,) = areas
        assert area.geobox.crs is not None  # every area has one
        region = project(region, area.geobox.crs)
        planes = [area.geobox.transform * Affine.scale(area.block)]
    else:
        middle = region.centroid
        squeeze = Affine.scale(float(np.cos(np.radians(middle.y))), 1.0)
        region = shapely.transform(region, lambda points: _near(points, middle.x) * [squeeze.a, 1.0])
        planes = [squeeze * _in_degrees(area, middle.x) for area in areas]
    edges = [_edges(area) for area in areas]
    corners = np.array([plane * (x, y) for plane, (xs, ys) in zip(planes, edges, strict=True)
                        for x in (0, xs[-1]) for y in (0, ys[-1])])  # fmt: skip
    (left, bottom), (right, top) = corners.min(axis=0), corners.max(axis=0)
    scale = min(WIDTH / (right - left), HEIGHT / (top - bottom))
    page = Affine.scale(scale, -scale) * Affine.translation(-left, -top)
    placed = [
        _Placed(area.name, outcomes[area.name], xs, ys, page * plane)
        for area, plane, (xs, ys) in zip(areas, planes, edges, strict=True)
    ]
    on_page = shapely.transform(region, lambda points: np.column_stack(page * (points[:, 0], points[:, 1])))
    return placed, on_page, ((right - left) * scale, (top - bottom) * scale)


def _near(points: NDArray[np.float64], middle: float) -> NDArray[np.float64]:
    """Longitudes of points on the turn of the globe that the map shows."""
    return np.column_stack([middle + (points[:, 0] - middle + 180.0) % 360.0 - 180.0, points[:, 1]])


def _in_degrees(area: Area, middle: float) -> Affine:
    """Return about where an area's blocks lie in degrees: as its corners do."""
    from xgfm.jobs.region import DEGREES, transformer

    rows, columns = area.geobox.shape
    ends = [area.geobox.transform * corner for corner in ((0, 0), (columns, 0), (0, rows))]
    points = np.column_stack(transformer(area.geobox.crs, DEGREES).transform(*np.array(ends).T))
    (x, y), (right, right_y), (down_x, down) = _near(points, middle)
    across, along = area.block / columns, area.block / rows
    return Affine((right - x) * across, (down_x - x) * along, x, (right_y - y) * across, (down - y) * along, y)


def _edges(area: Area) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Edges of columns and rows, in blocks; the last ones may be smaller."""
    height, width = area.geobox.shape
    rows, columns = area.shape
    return np.minimum(np.arange(columns + 1), width / area.block), np.minimum(np.arange(rows + 1), height / area.block)


def _placed(placed: _Placed, shape: str) -> str:
    """A shape in blocks of an area, put in its place on the page."""
    if not shape:
        return ""
    matrix = " ".join(f"{placed.place[i]:.6g}" for i in (0, 3, 1, 4, 2, 5))
    return f'<g transform="matrix({matrix})" shape-rendering="crispEdges">{shape}</g>'


def _shape(placed: _Placed, code: int) -> str:
    """All blocks of one outcome."""
    path = "".join(f"M{x:g} {y:g}H{right:g}V{bottom:g}H{x:g}Z" for x, y, right, bottom in _runs(placed, code))
    if not path:
        return ""
    colour, more = COLOURS[OUTCOMES[code]], ""
    if code == FAILED and placed.cell < _DOT:
        more = f' stroke="{colour}" stroke-width="{_DOT - placed.cell:.1f}" vector-effect="non-scaling-stroke"'
    return f'<path d="{path}" fill="{colour}"{more}/>'


def _runs(placed: _Placed, code: int) -> Iterator[tuple[float, float, float, float]]:
    """Left, top, right and bottom of what is one outcome along a row."""
    for row in np.flatnonzero((placed.outcomes == code).any(axis=1)):
        change = np.diff((placed.outcomes[row] == code).astype("int8"), prepend=0, append=0)
        for first, last in zip(np.flatnonzero(change == 1), np.flatnonzero(change == -1), strict=True):
            yield placed.xs[first], placed.ys[row], placed.xs[last], placed.ys[row + 1]


def _lines(placed: _Placed) -> str:
    """What sets large blocks apart, and crosses out failed ones."""
    if placed.cell < _GRID:
        return ""
    xs, ys = placed.xs, placed.ys
    lines = "".join(f"M{x:g} 0V{ys[-1]:g}" for x in xs) + "".join(f"M0 {y:g}H{xs[-1]:g}" for y in ys)
    crosses = "".join(
        f"M{xs[c]:g} {ys[r]:g}L{xs[c + 1]:g} {ys[r + 1]:g}M{xs[c + 1]:g} {ys[r]:g}L{xs[c]:g} {ys[r + 1]:g}"
        for r, c in np.argwhere(placed.outcomes == FAILED).tolist()
    )
    crossed = f'<path d="{crosses}" shape-rendering="auto" stroke-width="1.6"/>' if crosses else ""
    return f'<g stroke="#fff" fill="none" class="lines"><path d="{lines}"/>{crossed}</g>'


def _label(placed: _Placed) -> str:
    x, y = placed.place * (placed.xs[-1] / 2, placed.ys[-1] / 2)
    return f'<text x="{x:.0f}" y="{y:.0f}" class="name">{html.escape(placed.name)}</text>'


def _outline(region: shapely.Geometry) -> str:
    """A region's edges, no finer than the page shows."""
    rings = [
        ring
        for part in shapely.get_parts(region.simplify(0.5))
        if part.geom_type == "Polygon"
        for ring in (part.exterior, *part.interiors)
    ]
    return "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in ring.coords) + "Z" for ring in rings)
