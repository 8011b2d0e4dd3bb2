"""Where MGRS tiles lie in an area, and which of them a block needs.

In: tile ids and an area. Out: their outlines in the area's CRS under a spatial index. Arithmetic on ids alone: no item
is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import shapely
from numpy.typing import NDArray

from xgfm.errors import GridError
from xgfm.grid import TILE_RESOLUTION, crs_name, tile_geobox
from xgfm.jobs.lattice import Area
from xgfm.jobs.region import transformer

REACH = 2
"""Pixels of the file, and of the target, that a warp's kernel may reach beyond a pixel."""

_EDGE_POINTS = 40
"""Points of a tile's side before it is projected: straight to a tenth of a pixel."""
_STRIP = 1 << 15
"""Blocks that are asked for at once."""


def outline(
    tile: str, area: Area, *, reach: bool = True, part: tuple[int, int, int, int] | None = None
) -> shapely.Polygon:
    """Return where the pixels of a tile lie in an area's CRS.

    Parameters
    ----------
    tile
        MGRS id.
    area
        Whose CRS is meant.
    reach
        Whether to add what a warp's kernel reaches beyond them.
    part
        First row, first column, rows and columns of the tile that are meant; all of it by default.

    Raises
    ------
    GridError
        Where the area's CRS does not reach the tile.
    """
    own, target = tile_geobox(tile), area.geobox
    if part is not None:
        own = own[part[0] : part[0] + part[2], part[1] : part[1] + part[3]]
    aligned = own.crs == target.crs and area.geobox.resolution.x == TILE_RESOLUTION
    more = REACH if reach and not aligned else 0
    left, bottom, right, top = own.boundingbox.bbox
    wider = more * TILE_RESOLUTION
    box = shapely.box(left - wider, bottom - wider, right + wider, top + wider)
    if own.crs != target.crs:
        box = shapely.segmentize(box, (right - left) / _EDGE_POINTS)
        assert own.crs is not None  # every tile and every area has one
        assert target.crs is not None
        move = transformer(own.crs, target.crs)
        box = shapely.transform(box, lambda points: np.column_stack(move.transform(points[:, 0], points[:, 1])))
    if not np.isfinite(shapely.get_coordinates(box)).all():
        assert target.crs is not None
        raise GridError(f"tile T{tile} lies where {crs_name(target.crs)} does not reach; choose another crs in grid:")
    return box.buffer(more * target.resolution.x, join_style="mitre") if more else box


@dataclass(frozen=True)
class TileIndex:
    """Some tiles in an area."""

    area: Area
    tiles: tuple[str, ...]
    """In order of their ids."""

    @cached_property
    def outlines(self) -> NDArray[np.object_]:
        """Outline of each tile, with what a warp's kernel reaches."""
        return np.array([outline(tile, self.area) for tile in self.tiles], object)

    @cached_property
    def _tree(self) -> shapely.STRtree:
        shapely.prepare(self.outlines)
        return shapely.STRtree(self.outlines)

    def of(self, box: shapely.Geometry) -> tuple[str, ...]:
        """Return the tiles that may have pixels in a box, in units of the area's CRS."""
        found = self._tree.query(box, predicate="intersects")
        return tuple(self.tiles[i] for i in sorted(found))

    def pairs(
        self, rows: NDArray[np.intp], columns: NDArray[np.intp], halo: int
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Yield (block, tile) positions of blocks and tiles that meet, some blocks at a time, blocks in order."""
        for start in range(0, len(rows), _STRIP):
            some = slice(start, start + _STRIP)
            boxes = self.area.boxes(rows[some], columns[some], halo=halo)
            block, tile = self._tree.query(boxes, predicate="intersects")
            order = np.lexsort((tile, block))
            yield block[order] + start, tile[order]

    def dates(
        self, rows: NDArray[np.intp], columns: NDArray[np.intp], dates: NDArray[np.bool_]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which blocks have a tile, and ``(block, frame)``: in which frames one of its tiles has a date.

        Parameters
        ----------
        rows, columns
            Of the blocks.
        dates
            ``(tile, frame)``: in which frames a tile has a date.
        """
        has_tile = np.zeros(len(rows), bool)
        there = np.zeros((len(rows), dates.shape[1]), bool)
        for block, tile in self.pairs(rows, columns, 0):
            has_tile[block] = True
            np.logical_or.at(there, block, dates[tile])
        return has_tile, there
