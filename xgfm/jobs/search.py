"""Which granules a job wants: where to search, and which tiles its blocks need.

In: a job's region and grid. Out: boxes in degrees, and a test of tile ids. Items are not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from xgfm.cube.catalogs import find
from xgfm.cube.target import Bounds
from xgfm.grid import TILE_PIXELS, TILE_RESOLUTION, tile_geobox
from xgfm.jobs import region as regions
from xgfm.jobs.lattice import Area, tile_area
from xgfm.jobs.spec import JobSpec
from xgfm.jobs.tiles import outline

_TILE_DEGREES = TILE_PIXELS * TILE_RESOLUTION / 111_000
"""Side of a tile in degrees of latitude."""
_MARGIN = 0.1
"""Degrees that are added to a box: its edges are bent."""


@dataclass(frozen=True)
class Wanted:
    """What a job needs items of."""

    spec: JobSpec
    region: shapely.Geometry
    """In degrees."""
    area: Area | None
    """The one grid of the job; None where each tile is its own."""
    halo: int
    """Pixels that a block may need on any side."""

    def boxes(self) -> list[Bounds]:
        """Return the boxes to search: everywhere that a block with work has pixels or may need some.

        Two where that crosses the antimeridian, which a region does not, but its blocks may.
        """
        if self.area is None:
            west, south, east, north = self.region.bounds
            # A pass that misses the region may see another part of a tile that the job maps whole.
            up = _TILE_DEGREES + _MARGIN
            side = up / max(np.cos(np.deg2rad(min(max(abs(south), abs(north)) + up, 89))), 0.05)
            return _split(west - side, south - up, east + side, north + up)
        rows, columns = np.nonzero(self._work)
        assert self.area.geobox.crs is not None  # every area has one
        # By rows of blocks: the box round them all may hold far more, and its corners may lie where the CRS ends.
        found = []
        for row in np.unique(rows):
            boxes = self.area.boxes(rows[rows == row], columns[rows == row], halo=self.halo)
            found.append(regions.to_degrees(shapely.total_bounds(boxes), self.area.geobox.crs))
        return _around(found)

    def needs(self, tile: str) -> bool:
        """Whether some block needs a tile's items."""
        near = region_at(self.region, tile) if self.area is None else None
        if near is not None:
            return not near.is_empty and bool(tile_area(tile, self.spec.block).touched_by(in_tile(near, tile)).any())
        assert self.area is not None
        there = _degrees_of(tile)
        if not any(shapely.box(*box).intersects(there) for box in self._boxes):
            return False
        shape = outline(tile, self.area)
        rows, columns = self._near(shape)
        return bool(shapely.intersects(shape, self.area.boxes(rows, columns, halo=self.halo)).any())

    def items(self) -> Iterator[dict[str, Any]]:
        """Search the catalogue, and yield its items one after the other."""
        for box in self._boxes:
            yield from find(
                box,
                self.spec.period,
                self.spec.catalog,
                collections=self.spec.collections,
                max_cloud_cover=self.spec.max_cloud_cover,
            )

    @cached_property
    def _boxes(self) -> list[Bounds]:
        return self.boxes()

    @cached_property
    def _work(self) -> NDArray[np.bool_]:
        """Blocks of the one area that the region touches."""
        assert self.area is not None
        assert self.area.geobox.crs is not None
        return self.area.touched_by(regions.project(self.region, self.area.geobox.crs))

    def _near(self, shape: shapely.Geometry) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Places of the blocks with work whose neighbourhood may meet a shape."""
        assert self.area is not None
        a, _, left, _, e, top = tuple(self.area.geobox.transform)[:6]
        west, south, east, north = shape.bounds
        first = (top - north) / -e - self.halo, (west - left) / a - self.halo
        last = (top - south) / -e + self.halo, (east - left) / a + self.halo
        low = [max(int(np.floor(v / self.area.block)), 0) for v in first]
        high = [max(int(np.ceil(v / self.area.block)), 0) for v in last]
        rows, columns = np.nonzero(self._work[low[0] : high[0], low[1] : high[1]])
        return rows + low[0], columns + low[1]


def region_at(region: shapely.Geometry, tile: str) -> shapely.Geometry:
    """Return the part of a region, in degrees, that lies about a tile: a continent cannot be put into a UTM zone."""
    return shapely.intersection(region, _degrees_of(tile))


def in_tile(region: shapely.Geometry, tile: str) -> shapely.Geometry:
    """Return a region of degrees in the CRS of a tile."""
    crs = tile_geobox(tile).crs
    assert crs is not None  # every tile has one
    return regions.project(region, crs)


def _degrees_of(tile: str) -> shapely.Geometry:
    """Box, or two at the antimeridian, that holds a tile."""
    own = tile_geobox(tile)
    assert own.crs is not None  # every tile has one
    west, south, east, north = regions.to_degrees(own.boundingbox.bbox, own.crs)
    east = east + 360 if east < west else east
    boxes = _split(west - _MARGIN, south - _MARGIN, east + _MARGIN, north + _MARGIN)
    return shapely.union_all([shapely.box(*box) for box in boxes])


def _around(boxes: list[Bounds]) -> list[Bounds]:
    """One box round some, or two at the antimeridian."""
    wests, souths, easts, norths = zip(*boxes, strict=True)
    if any(east < west for west, east in zip(wests, easts, strict=True)):  # counted from Greenwich eastward
        west, east = min(w % 360 for w in wests), max(e % 360 for e in easts)
    else:
        west, east = min(wests), max(easts)
    return _split(west - _MARGIN, min(souths) - _MARGIN, east + _MARGIN, max(norths) + _MARGIN)


def _split(west: float, south: float, east: float, north: float) -> list[Bounds]:
    """A box whose west is at most its east, cut at the antimeridian and at the poles."""
    south, north = max(south, -90.0), min(north, 90.0)
    if east - west >= 360:
        return [(-180.0, south, 180.0, north)]
    if west < -180:
        return [(-180.0, south, east, north), (west + 360, south, 180.0, north)]
    if east > 180:
        return [(west, south, 180.0, north), (-180.0, south, east - 360, north)]
    return [(west, south, east, north)]
