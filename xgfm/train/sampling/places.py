"""Where chips lie on the ground: their outlines, how far they are from each other, and the block they belong to.

In: the table of chips and the grids of their sources. Out: pairs of chips that are near, distances to the nearest, and
block numbers. Distances are those between the centres of the outermost pixels: 0 for chips that overlap, one pixel for
neighbours. Arithmetic on coordinates alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from xgfm.jobs.region import DEGREES, transformer
from xgfm.train.labels.grid import applied, grid_crs

_RADIUS = 6_371_007.2
"""Metres: of the sphere with the Earth's surface."""


@dataclass(frozen=True, slots=True)
class Places:
    """Outlines of chips in their own CRS, and frames to compare them in."""

    corners: NDArray[np.float64]
    """``(chip, 4, 2)``, x and y of the centres of the outermost pixels."""
    source: NDArray[np.int64]
    geoboxes: tuple[GeoBox, ...]

    @classmethod
    def of(cls, table: pd.DataFrame, geoboxes: Sequence[GeoBox], size: int) -> Places:
        """Return the places of a table of chips."""
        corners = np.empty((len(table), 4, 2))
        source = table["source"].to_numpy("int64")
        for number, geobox in enumerate(geoboxes):
            mine = source == number
            row, column = (table.loc[mine, name].to_numpy("float64")[:, None] + 0.5 for name in ("row", "column"))
            away = float(size - 1)
            x, y = applied(geobox.transform, column + np.array([0, away, away, 0]), row + np.array([0, 0, away, away]))
            corners[mine] = np.stack(np.broadcast_arrays(x, y), axis=-1)
        return cls(corners, source, tuple(geoboxes))

    def take(self, rows: NDArray[np.int64]) -> Places:
        """Return the places of some chips."""
        return Places(self.corners[rows], self.source[rows], self.geoboxes)

    def lonlat(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return longitude and latitude of the centres, in degrees."""
        centre = self.corners.mean(axis=1)
        lon, lat = np.empty(len(centre)), np.empty(len(centre))
        for number, geobox in enumerate(self.geoboxes):
            mine = self.source == number
            lon[mine], lat[mine] = transformer(geobox.crs, DEGREES).transform(centre[mine, 0], centre[mine, 1])
        return lon, lat

    def near(self, metres: float) -> NDArray[np.int64]:
        """Return the pairs of chips less than so far from each other, ``(pair, 2)``; each pair once or twice."""
        found = [np.empty((0, 2), "int64")]
        for native, outlines in self._frames():
            tree = shapely.STRtree(outlines)
            here = np.flatnonzero(native)
            # dwithin counts the limit itself as near; a chip that lies exactly there is far enough.
            pairs = tree.query(outlines[here], predicate="dwithin", distance=metres * (1 - 1e-9))
            found.append(np.column_stack([here[pairs[0]], pairs[1]]))
        together = np.concatenate(found)
        others: NDArray[np.int64] = together[together[:, 0] != together[:, 1]]
        return others

    def nearest(self, of: NDArray[np.bool_], to: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return metres from each chip of one set to the nearest of another; infinite where there is none."""
        out = np.full(len(self.source), np.inf)
        for native, outlines in self._frames():
            here, there = np.flatnonzero(native & of), np.flatnonzero(to & ~shapely.is_empty(outlines))
            if here.size and there.size:
                rows, metres = shapely.STRtree(outlines[there]).query_nearest(
                    outlines[here], return_distance=True, all_matches=False
                )
                out[here[rows[0]]] = metres
        return out[of]

    def _frames(self) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.object_]]]:
        """Planes in metres: which chips each is made for, and the outlines of all chips on it.

        Sources of one projected CRS share its plane; one in degrees has a plane of its own, round its centre.
        """
        done: list[CRS] = []
        systems = [grid_crs(geobox) for geobox in self.geoboxes]
        for number, crs in enumerate(systems):
            if crs.geographic:
                yield self.source == number, self._outlines(_plane(self.geoboxes[number]))
            elif crs not in done:
                done.append(crs)
                same = [i for i, other in enumerate(systems) if other == crs]
                yield np.isin(self.source, same), self._outlines(crs)

    def _outlines(self, crs: CRS) -> NDArray[np.object_]:
        moved = self.corners.copy()
        for number, geobox in enumerate(self.geoboxes):
            mine = self.source == number
            if geobox.crs != crs and mine.any():
                there = transformer(geobox.crs, crs)
                x, y = there.transform(self.corners[mine, :, 0], self.corners[mine, :, 1])
                moved[mine] = np.stack([x, y], axis=-1)
        known = np.isfinite(moved).all(axis=(1, 2))
        outlines = np.full(len(moved), shapely.Polygon(), object)
        outlines[known] = _hulls(moved[known])
        return outlines


def _hulls(corners: NDArray[np.float64]) -> Any:
    """Rectangles; of one pixel, points: polygons without an inside are not valid."""
    return shapely.convex_hull(shapely.multipoints(corners))


def _plane(geobox: GeoBox) -> CRS:
    """An azimuthal equidistant plane round the centre of a grid: distances across a tile are right to a thousandth."""
    centre = geobox.extent.geom.centroid
    lon, lat = transformer(geobox.crs, DEGREES).transform(centre.x, centre.y)
    return CRS(f"+proj=aeqd +lat_0={lat:.6f} +lon_0={lon:.6f} +datum=WGS84 +units=m")


def block_ids(lon: NDArray[np.float64], lat: NDArray[np.float64], metres: float) -> NDArray[np.int64]:
    """Return the number of the block that each place belongs to.

    Parameters
    ----------
    lon, lat : ndarray
        Degrees.
    metres : float
        Side of a block.

    Returns
    -------
    ndarray
        int64. Blocks are those of a global equal-area grid (an integerised sinusoidal one): rows of equal latitude
        height, each cut into the whole number of columns that makes its blocks most nearly square on the ground. So a
        number depends on the place and the side alone, not on tile, zone or cube.
    """
    rows = max(1, round(np.pi * _RADIUS / metres))
    height = 180 / rows
    row = np.clip(np.floor((lat + 90) / height), 0, rows - 1).astype("int64")
    middle = np.deg2rad((row + 0.5) * height - 90)
    columns = np.maximum(1, np.rint(2 * np.pi * _RADIUS * np.cos(middle) / metres)).astype("int64")
    column = np.floor((lon + 180) % 360 / 360 * columns).astype("int64")
    number: NDArray[np.int64] = row * (1 << 31) + np.minimum(column, columns - 1)
    return number
