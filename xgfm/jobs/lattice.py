"""Areas and blocks: the grids that a job writes, and the squares that they are cut into.

In: a region's outline in a CRS, a resolution and the side of a block; or an MGRS tile. Out: integers and GeoBoxes.
A block is known by its place in the lattice of its area, and nothing is stored for it.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from xgfm.errors import GridError, JobError
from xgfm.grid import crs_name, tile_geobox
from xgfm.windows import AxisPlan

if TYPE_CHECKING:
    from odc.geo.crs import CRS

MAP = "map"
"""Name of the one area of a cross-zone grid."""

_MOST = 20_000_000
"""Blocks of an area: more is a resolution in the wrong units, and each takes a byte of memory."""
_INSET = 1e-6
"""Pixels by which a block's outline is drawn in."""
_STRIP = 1 << 16
"""Blocks that are compared with the region at once."""


@dataclass(frozen=True)
class Area:
    """One grid that a job writes: the whole region, or one MGRS tile."""

    name: str
    """``"map"``, or the tile's id."""
    group: str
    """Of the Zarr store: ``""`` is its root."""
    geobox: GeoBox
    """North-up; its edges lie on the lattice of blocks, or are a tile's own."""
    block: int
    """Side of a block, in pixels; the last of a row or column may be smaller."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        rows, columns = self.geobox.shape
        return -(-rows // self.block), -(-columns // self.block)

    @cached_property
    def origin(self) -> tuple[int, int]:
        """Row and column of the first pixel, counted from the origin of the CRS."""
        from xgfm.infer.inputs import lattice_origin

        return lattice_origin(self.geobox)

    def at(self, row: int, column: int) -> Block:
        """Return a block by its place among the blocks.

        Raises
        ------
        JobError
            Where there is none.
        """
        if not (0 <= row < self.shape[0] and 0 <= column < self.shape[1]):
            raise JobError(
                f"area {self.name!r} has {self.shape[0]} x {self.shape[1]} blocks and none at {row}, {column}"
            )
        rows, columns = (
            slice(i * self.block, min((i + 1) * self.block, size))
            for i, size in zip((row, column), self.geobox.shape, strict=True)
        )
        return Block(f"{self.name}-r{row:04d}-c{column:04d}", self.name, row, column, rows, columns)

    def boxes(self, rows: NDArray[np.intp], columns: NDArray[np.intp], *, halo: int = 0) -> NDArray[np.object_]:
        """Return the outlines of blocks, in units of the CRS, ``halo`` pixels wider but not beyond the area.

        They are a millionth of a pixel smaller, so that what intersects one shares more than an edge with it.
        """
        a, _, left, _, e, top = tuple(self.geobox.transform)[:6]
        (height, width), more = self.geobox.shape, halo - _INSET
        first = np.maximum(columns * self.block - more, _INSET), np.maximum(rows * self.block - more, _INSET)
        last = (
            np.minimum((columns + 1) * self.block + more, width - _INSET),
            np.minimum((rows + 1) * self.block + more, height - _INSET),
        )
        boxes: NDArray[np.object_] = shapely.box(
            left + a * first[0], top + e * last[1], left + a * last[0], top + e * first[1]
        )
        return boxes

    def touched_by(self, region: shapely.Geometry) -> NDArray[np.bool_]:
        """Return ``(row, column)``: which blocks share some area with a region in the area's CRS."""
        inside = np.zeros(self.shape, bool)
        shapely.prepare(region)
        for start in range(0, inside.size, _STRIP):
            rows, columns = np.unravel_index(np.arange(start, min(start + _STRIP, inside.size)), self.shape)
            inside[rows, columns] = shapely.intersects(region, self.boxes(rows, columns))
        return inside


@dataclass(frozen=True, slots=True)
class Block:
    """One square of an area: what a worker does at once."""

    id: str
    """``map-r0003-c0012``."""
    area: str
    row: int
    column: int
    """Its place among the blocks of its area."""
    rows: slice
    columns: slice
    """Its pixels in the area."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of pixels."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


def tile_area(tile: str, block: int) -> Area:
    """Return the area of an MGRS tile: the tile's own grid, in a group of its name."""
    return Area(tile, tile, tile_geobox(tile), block)


def map_area(outline: shapely.Geometry, crs: CRS, resolution: float, block: int) -> Area:
    """Return the area of a region: whole blocks of the lattice that begins at the origin of the CRS.

    Parameters
    ----------
    outline
        The region, in units of the CRS.
    crs
        Of the area.
    resolution
        Side of a pixel, in units of the CRS.
    block
        Side of a block, in pixels.

    Raises
    ------
    GridError
        Where it would have more blocks than a resolution in the right units gives.
    """
    side = resolution * block
    slack = 1e-6 / block  # of a block: an edge that misses the lattice by rounding alone takes no further one
    left, bottom, right, top = (edge / side for edge in outline.bounds)
    west, south = math.floor(left + slack), math.floor(bottom + slack)
    east, north = max(math.ceil(right - slack), west + 1), max(math.ceil(top - slack), south + 1)
    if (east - west) * (north - south) > _MOST:
        raise GridError(
            f"resolution {resolution:g} in units of {crs_name(crs)} makes {(east - west) * (north - south):.3g} blocks "
            f"of {block} pixels; give a coarser resolution or a larger block"
        )
    transform = Affine(resolution, 0, west * block * resolution, 0, -resolution, north * block * resolution)
    return Area(MAP, "", GeoBox(((north - south) * block, (east - west) * block), transform, crs), block)


@dataclass(frozen=True, slots=True)
class Reads:
    """What a block needs along one axis."""

    start: int
    stop: int
    """The pixels of the area that its windows see."""
    windows: int
    """How many windows that are."""


def axis_reads(axis: AxisPlan, block: int) -> list[Reads]:
    """Return what each block along an axis needs, so that its pixels come out as in the whole area.

    A crop from the first to the last of these pixels has just these windows: what lies beyond them in the crop falls
    into the same windows, since windows shift inward at an edge.
    """
    windows = axis.windows()
    if axis.blend:  # a pixel takes something from every window that reaches it
        first, last = [w.start for w in windows], [w.start + axis.window for w in windows]
    else:
        first, last = [w.inner_start for w in windows], [w.inner_stop for w in windows]
    found = []
    for start in range(0, axis.size, block):
        stop = min(start + block, axis.size)
        seen = windows[bisect_right(last, start) : bisect_left(first, stop)]
        found.append(Reads(seen[0].start, min(seen[-1].start + axis.window, axis.size), len(seen)))
    return found
