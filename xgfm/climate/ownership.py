"""Which of several maps counts for the ground that more than one of them covers.

In: the grids of maps and the MGRS tiles that they are of. Out: for places in coordinates, whether they are a map's own.
Every place that any map covers is the own place of just one. No pixel is read.

HLS tiles are 109.8 km wide on a grid of 100 km, and overlap again where two UTM zones meet: summed as they are, some
ground counts three times. A place belongs to the tile whose 100 km square it lies in, in the zone of its longitude;
where no such tile is among the maps, to the first of them, by name, that covers it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from xgfm.climate.globe import Extent, extent, fractional_pixels
from xgfm.errors import GridError
from xgfm.grid import mgrs_square, parse_tile

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

Array = np.ndarray[Any, Any]
SQUARE = 100_000
"""Metres along the side of a tile's own square."""


def utm_zone(lon: Array, lat: Array) -> Array:
    """Return the UTM zone of places in degrees, with the wider zones of Norway and Svalbard."""
    east = (np.asarray(lon) + 180) % 360
    zone = np.minimum(east // 6, 59).astype("int16") + 1
    norway = (lat >= 56) & (lat < 64) & (east >= 183) & (east < 192)
    svalbard = (lat >= 72) & (lat < 84) & (east >= 180) & (east < 222)
    zone = np.where(norway, 32, zone)
    wide = 31 + 2 * np.digitize(east, [189, 201, 213])
    return np.where(svalbard, wide, zone)


@dataclass(frozen=True)
class Claim:
    """A map that covers ground."""

    name: str
    """Maps are ordered by it."""
    box: GeoBox
    tile: str | None = None
    """MGRS id, without a leading T."""

    @cached_property
    def square(self) -> tuple[int, int, int]:
        """Zone, easting and northing of the tile's own square; of a map without a tile, no zone."""
        return mgrs_square(self.tile) if self.tile else (0, 0, 0)

    @property
    def square_crs(self) -> str:
        """CRS of the square's numbers: the zone's northern one."""
        return f"EPSG:{32600 + self.square[0]}"

    @property
    def crs(self) -> str:
        """CRS of the map."""
        return str(self.box.crs)

    def covers(self, at: Mapping[str, Array]) -> Array:
        """Return whether places, by CRS ``(x, y)``, lie on the map."""
        left, bottom, right, top = self.box.boundingbox.bbox
        x, y = at[self.crs]
        return np.asarray((x >= left) & (x < right) & (y > bottom) & (y <= top))

    def holds(self, at: Mapping[str, Array], zone: Array) -> Array:
        """Return whether places lie on the map and in its tile's own square and zone."""
        own, east, north = self.square
        if not own:
            return np.zeros(zone.shape, bool)
        x, y = at[self.square_crs]
        inside = (x >= east) & (x < east + SQUARE) & (y >= north) & (y < north + SQUARE)
        return np.asarray(inside & (zone == own) & self.covers(at))


@dataclass(frozen=True)
class Ownership:
    """What is a map's own where others cover the same ground."""

    mine: Claim
    rivals: tuple[Claim, ...]

    @cached_property
    def crss(self) -> tuple[str, ...]:
        """CRSs in which places are asked for."""
        claims = (self.mine, *self.rivals)
        tiled = {c.square_crs for c in claims if c.tile}
        return tuple(sorted({c.crs for c in claims} | tiled))

    def near(self, rows: tuple[int, int], columns: tuple[int, int]) -> Ownership | None:
        """Return the same for a block, with the rivals that reach into it; None where there are none."""
        r, c = (np.linspace(side[0], side[1], 17) for side in (rows, columns))
        grid = np.meshgrid(r, c, indexing="ij")
        places = grid[0].ravel(), grid[1].ravel()
        kept = tuple(rival for rival in self.rivals if _may_meet(rival.box, self.mine.box, places))
        return Ownership(self.mine, kept) if kept else None

    def own(self, lonlat: Array, at: Mapping[str, Array]) -> Array:
        """Return whether places count in this map.

        Parameters
        ----------
        lonlat : ndarray
            ``(2, ...)`` degrees.
        at : mapping of str to ndarray
            The same places ``(2, ...)`` in each of `crss`.
        """
        zone = utm_zone(*lonlat)
        mine = self.mine.holds(at, zone)
        free = ~mine & self.mine.covers(at)
        taken = np.zeros(zone.shape, bool)
        for rival in self.rivals:
            held = rival.holds(at, zone)
            if rival.name < self.mine.name:
                taken |= rival.covers(at)
                mine &= ~held
            free &= ~held
        return np.asarray(mine | (free & ~taken))


def claims_of(boxes: Mapping[str, GeoBox], tiles: Mapping[str, str | None]) -> dict[str, Ownership]:
    """Return what is each map's own.

    Parameters
    ----------
    boxes : mapping of str to GeoBox
        The grid of each map, by name.
    tiles : mapping of str to str
        The MGRS tile of each, None for a map of something else.

    Raises
    ------
    GridError
        Where two maps cover the same ground and either is of no tile, or both are of the same one.
    """
    claims = [Claim(name, box, tiles[name] and parse_tile(str(tiles[name]))) for name, box in boxes.items()]
    extents = [extent([claim.box]) for claim in claims]
    rivals: dict[str, list[Claim]] = {claim.name: [] for claim in claims}
    for i, one in enumerate(claims):
        for j in range(i):
            other = claims[j]
            if _apart(extents[i], extents[j]) or not _may_meet(one.box, other.box, _places(other.box)):
                continue
            if overlap(one.box, other.box):
                _check(one, other)
            rivals[one.name].append(other)
            rivals[other.name].append(one)
    return {claim.name: Ownership(claim, tuple(rivals[claim.name])) for claim in claims}


def overlap(one: GeoBox, other: GeoBox) -> bool:
    """Return whether two grids share ground, more than a pixel's breadth."""
    return any(_inside(a, b, _places(b)) for a, b in ((one, other), (other, one)))


def _places(box: GeoBox) -> tuple[Array, Array]:
    rows, columns = (np.linspace(0, n, 129) for n in box.shape)
    r, c = np.meshgrid(rows, columns, indexing="ij")
    return r.ravel(), c.ravel()


def _inside(target: GeoBox, box: GeoBox, places: tuple[Array, Array]) -> bool:
    """Whether any of the places of a GeoBox lies a pixel deep in another."""
    rows, columns = fractional_pixels(target, box, places)
    height, width = target.shape
    return bool(((rows > 1) & (rows < height - 1) & (columns > 1) & (columns < width - 1)).any())


def _may_meet(target: GeoBox, box: GeoBox, places: tuple[Array, Array]) -> bool:
    """Whether the rectangle around places of a GeoBox comes within two pixels of another."""
    found = fractional_pixels(target, box, places)
    good = np.isfinite(found[0]) & np.isfinite(found[1])
    return bool(good.any()) and all(
        v[good].max() > -2 and v[good].min() < size + 2 for v, size in zip(found, target.shape, strict=True)
    )


def _apart(one: Extent, other: Extent) -> bool:
    turn = 360 * np.round(((one.west + one.east) - (other.west + other.east)) / 720)
    beside = one.west > other.east + turn or other.west + turn > one.east
    return bool(beside or one.south > other.north or other.south > one.north)


def _check(one: Claim, other: Claim) -> None:
    names = f"{other.name!r} and {one.name!r}"
    if one.tile is None or other.tile is None:
        raise GridError(
            f"the maps {names} cover the same ground, which would count twice; name the MGRS tile of each with "
            "tiles=, or give maps that do not overlap. Dates of the same ground belong along time: stack_maps"
        )
    if one.tile == other.tile:
        raise GridError(
            f"the maps {names} are both of tile {one.tile}; give each tile once, and dates along time: stack_maps"
        )


def tile_names(maps: Mapping[str, Any], tiles: Mapping[str, str] | Sequence[str] | None) -> dict[str, str | None]:
    """Return the MGRS tile of each map: from ``tiles``, its attribute ``tile``, or its name where that is one."""
    if tiles is None:
        given: Mapping[str, str] = {}
    elif isinstance(tiles, Mapping):
        given = tiles
    else:
        listed = [tiles] if isinstance(tiles, str) else list(tiles)
        if len(listed) != len(maps):
            raise GridError(f"tiles={listed} names {len(listed)} tiles for {len(maps)} maps; give one for each")
        given = dict(zip(maps, listed, strict=True))
    if unknown := sorted(set(given) - set(maps)):
        raise GridError(f"tiles= names {unknown}, which are no maps; the maps are {sorted(maps)}")
    return {name: _tile(given.get(name, made.attrs.get("tile", name)), name in given) for name, made in maps.items()}


def _tile(name: str, given: bool) -> str | None:
    try:
        return parse_tile(str(name))
    except GridError:
        if given:
            raise
        return None
