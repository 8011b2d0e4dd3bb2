"""What a job reads: bytes of the files' blocks that its own blocks need.

In: a plan. Out: bytes for every block of an area. The model: files are COGs in tiles of 256 pixels; a block needs those
that hold a pixel which its windows see, each once; of tiles that overlap, a later one is read only where the earlier
ones have no pixels; a COG tile's share of a file is its pixels' share, of the three quarters that are no overviews.
The sizes of the files are the items' ``file:size`` where they say it, and else what bands of HLS v2.0 usually have.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import shapely
from numpy.typing import NDArray

from xgfm.grid import TILE_RESOLUTION, tile_geobox
from xgfm.jobs.items import Extent
from xgfm.jobs.lattice import Area
from xgfm.jobs.planned import WORK, Plan
from xgfm.jobs.region import transformer
from xgfm.jobs.tiles import outline

COG_TILE = 256
"""Pixels of a side."""
SQUARE = 256
"""Pixels of the target that are warped at once."""
FULL_SHARE = 0.75
"""Of a file with overviews of 1/2, 1/4 ... of its side, what is not overview: 1 / (1 + 1/4 + 1/16 ...)."""
_STRIP = 1 << 14
"""Blocks that are worked on at once."""


def bytes_of(plan: Plan, area: Area) -> NDArray[np.float64]:
    """Return ``(row, column)``: bytes that each block of an area reads; 0 for those without work."""
    total = np.zeros(area.shape)
    rows, columns = np.nonzero(plan.codes(area) == WORK)
    down, along = (np.array([(r.start, r.stop) for r in reads], int) for reads in plan.axis_reads(area))
    index = plan.index(area)
    weights = _bytes_of_tiles(plan)
    for start in range(0, len(rows), _STRIP):
        some = slice(start, start + _STRIP)
        windows = np.column_stack([down[rows[some]], along[columns[some]]])
        for block, tile, part in _parts(plan, area, windows):
            share = _share(index.tiles[tile], area, part, plan.inventory[index.tiles[tile]].extent)
            np.add.at(total, (rows[some][block], columns[some][block]), share * weights[tile])
    return total


def _bytes_of_tiles(plan: Plan) -> NDArray[np.float64]:
    """Bytes without overviews of all files of each tile that a pixel is read from."""
    found = []
    for tile in plan.inventory.values():
        read = 1.0
        if plan.composite == "clearest":  # one date for each frame
            read = sum(n > 0 for n in tile.dates) / max(sum(tile.dates), 1)
        found.append(tile.bytes * FULL_SHARE * read)
    return np.array(found)


def _parts(
    plan: Plan, area: Area, windows: NDArray[np.int_]
) -> Iterator[tuple[NDArray[np.intp], int, NDArray[np.object_]]]:
    """Yield positions of blocks, a tile's position, and which part of each block is read from it; tile after tile.

    Parameters
    ----------
    plan, area
        The job.
    windows
        ``(block, 4)``: first and end of rows, first and end of columns that each block sees.
    """
    a, _, left, _, e, top = tuple(area.geobox.transform)[:6]
    boxes = shapely.box(
        left + a * windows[:, 2], top + e * windows[:, 1], left + a * windows[:, 3], top + e * windows[:, 0]
    )
    index = plan.index(area)
    if plan.native:
        yield np.arange(len(boxes)), index.tiles.index(area.name), boxes
        return
    seen = np.full(len(boxes), shapely.Polygon(), object)
    tree = shapely.STRtree(boxes)
    for position, tile in enumerate(index.tiles):  # in the order of their ids, as granules of one pass are
        shape = outline(tile, area, reach=False, part=plan.inventory[tile].extent)
        block = np.sort(tree.query(shape, predicate="intersects"))
        part = shapely.intersection(boxes[block], shape)
        rest = shapely.difference(part, seen[block])
        seen[block] = shapely.union(seen[block], part)
        there = shapely.area(rest) > 0
        yield block[there], position, rest[there]


def _share(tile: str, area: Area, parts: NDArray[np.object_], extent: Extent) -> NDArray[np.float64]:
    """Share of a tile's files that is read for each part."""
    grid = tile_geobox(tile)
    bounds = shapely.bounds(parts)  # (part, 4)
    same = grid.crs == area.geobox.crs and area.geobox.resolution.x == TILE_RESOLUTION
    if not same:
        bounds = _warped(bounds, area, tile)
    more = 0 if same else 1
    first_row, first_column, rows, columns = extent
    top = (grid.transform.f - bounds[:, 3]) / TILE_RESOLUTION - more - first_row
    bottom = (grid.transform.f - bounds[:, 1]) / TILE_RESOLUTION + more - first_row
    left = (bounds[:, 0] - grid.transform.c) / TILE_RESOLUTION - more - first_column
    right = (bounds[:, 2] - grid.transform.c) / TILE_RESOLUTION + more - first_column
    read: NDArray[np.float64] = _touched(top, bottom, rows) * _touched(left, right, columns)
    return read / (rows * columns)


def _touched(first: NDArray[np.float64], last: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Pixels along a side of the COG tiles that a stretch of pixels touches."""
    slack = 1e-3  # edges that are whole up to rounding
    start = np.clip(np.floor((first + slack) / COG_TILE) * COG_TILE, 0, size)
    stop = np.clip(np.ceil((last - slack) / COG_TILE) * COG_TILE, 0, size)
    return np.asarray(np.maximum(stop - start, 0))


def _warped(bounds: NDArray[np.float64], area: Area, tile: str) -> NDArray[np.float64]:
    """Bounds in a tile's CRS of what is warped for some bounds in the area's: whole squares of the area's lattice."""
    side = area.geobox.resolution.x * SQUARE
    low, high = np.floor(bounds[:, :2] / side) * side, np.ceil(bounds[:, 2:] / side) * side
    steps = np.linspace(0, 1, 9)
    x = low[:, :1] + (high - low)[:, :1] * steps  # (part, 9)
    y = low[:, 1:] + (high - low)[:, 1:] * steps
    xs = np.concatenate([x, x, np.repeat(low[:, :1], 9, 1), np.repeat(high[:, :1], 9, 1)], axis=1)
    ys = np.concatenate([np.repeat(low[:, 1:], 9, 1), np.repeat(high[:, 1:], 9, 1), y, y], axis=1)
    grid = tile_geobox(tile)
    moved_x, moved_y = transformer(area.geobox.crs, grid.crs).transform(xs, ys)
    return np.column_stack([moved_x.min(1), moved_y.min(1), moved_x.max(1), moved_y.max(1)])
