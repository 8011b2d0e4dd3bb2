"""Where pixels lie on the globe, and how large they are there.

In: GeoBoxes, and rows and columns of theirs. Out: longitudes and latitudes on WGS84, coordinates in another CRS, areas
in m2. A block is projected at a few points and a polynomial goes through them; no pixel is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from xgfm.errors import GridError

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox
    from pyproj import Transformer

Array = np.ndarray[Any, Any]
Place = Callable[[Array, Array], Array]
"""Of rows and columns of a GeoBox ``(n,)``, fractional, from the outer corner: any values of them ``(what, n)``."""

_SEMI_MAJOR, _FLATTENING = 6_378_137.0, 1 / 298.257223563
_E2 = _FLATTENING * (2 - _FLATTENING)
_NODES = (6, 12, 24)
"""Points along each side of a block that are tried in turn."""
WGS84 = "EPSG:4326"
_NO_CRS = "the map has no CRS; attach one with result.odc.assign_crs('EPSG:...')"


@dataclass(frozen=True)
class Extent:
    """Of maps, in degrees; ``east`` is larger than ``west``, past 180 where it crosses the dateline."""

    west: float
    south: float
    north: float
    east: float

    def __str__(self) -> str:
        return f"longitude {self.west:.4g} to {self.east:.4g}, latitude {self.south:.4g} to {self.north:.4g}"


def zone_areas(lat: Array) -> Array:
    """Return the area between the equator and latitudes (degrees), in m2 for each radian of longitude.

    On the WGS84 ellipsoid; Snyder 1987, "Map projections: a working manual", equation 3-12.
    """
    e = np.sqrt(_E2)
    sine = np.sin(np.deg2rad(lat))
    q = (1 - _E2) * (sine / (1 - _E2 * sine**2) + np.arctanh(e * sine) / e)
    out: Array = _SEMI_MAJOR**2 * q / 2
    return out


def to_crs(box: GeoBox, crs: str) -> Place:
    """Return what gives the coordinates ``(x, y)`` in a CRS of places of a GeoBox; infinite off the Earth.

    Longitudes of a GeoBox in degrees go on as its own do, past 180.
    """
    transform, own = box.transform, _wkt(box)

    def place(rows: Array, columns: Array) -> Array:
        x = transform.a * columns + transform.b * rows + transform.c
        y = transform.d * columns + transform.e * rows + transform.f
        to = transformer(own, crs)
        out = np.stack(to.transform(x, y))
        if crs == WGS84 and box.crs is not None and box.crs.geographic:
            out[0] += 360 * np.round((x - out[0]) / 360)
        return out

    return place


def area_factor(box: GeoBox) -> Place:
    """Return what gives the ground area of a pixel ``(1, n)`` at places of a GeoBox, in m2.

    The nominal area over the areal scale of the projection; for degrees the ellipsoid's own.
    """
    transform, crs = box.transform, box.crs
    if crs is None:
        raise GridError(_NO_CRS)
    nominal = abs(transform.a * transform.e - transform.b * transform.d)
    if crs.geographic:

        def degrees(rows: Array, columns: Array) -> Array:
            lat: Array = np.deg2rad(transform.d * columns + transform.e * rows + transform.f)
            scale = _SEMI_MAJOR**2 * (1 - _E2) * np.cos(lat) / (1 - _E2 * np.sin(lat) ** 2) ** 2
            return np.asarray(nominal * np.deg2rad(1) ** 2 * scale)[None]

        return degrees
    metres = float(crs.proj.axis_info[0].unit_conversion_factor) ** 2
    own = _wkt(box)
    to_degrees = to_crs(box, WGS84)

    def projected(rows: Array, columns: Array) -> Array:
        lon, lat = to_degrees(rows, columns)
        scale = _projection(own).get_factors(lon, lat).areal_scale
        return np.asarray(nominal * metres / scale)[None]

    return projected


@lru_cache(maxsize=256)
def transformer(source: str, target: str) -> Transformer:
    """Return the way from a CRS to another, x and longitude first."""
    from pyproj import Transformer

    return Transformer.from_crs(source, target, always_xy=True)


@lru_cache(maxsize=64)
def _projection(wkt: str) -> Any:
    from pyproj import Proj

    return Proj(wkt)


def _wkt(box: GeoBox) -> str:
    if box.crs is None:
        raise GridError(_NO_CRS)
    return str(box.crs)


class Surface:
    """Values of places over a block, from a polynomial through a few of them.

    Chebyshev points of the block's rows and columns, checked between them; where a polynomial does not fit (a pole,
    a seam), each place is asked for.
    """

    def __init__(self, place: Place, rows: tuple[float, float], columns: tuple[float, float], tolerance: Array) -> None:
        self.place, self.rows, self.columns = place, rows, columns
        self.values: Array | None = None
        for count in _NODES:
            values = _lattice(place, _points(count, rows), _points(count, columns))
            if not np.isfinite(values).all():
                break
            self.values = values
            between = [np.linspace(*side, 7) + 1e-3 * (side[1] - side[0]) * np.array([0, 1, -1, 1, -1, 1, 0])
                       for side in (rows, columns)]  # fmt: skip
            wrong = np.abs(self(*between) - _lattice(place, *between)).max(axis=(1, 2))
            if (wrong <= tolerance).all():
                return
        self.values = None

    def __call__(self, rows: Array, columns: Array) -> Array:
        """Return the values ``(what, rows, columns)`` at every pair of fractional rows and columns."""
        if self.values is None:
            return _lattice(self.place, rows, columns)
        count = self.values.shape[-1]
        return np.asarray(_weights(count, self.rows, rows) @ self.values @ _weights(count, self.columns, columns).T)


def _lattice(place: Place, rows: Array, columns: Array) -> Array:
    r, c = np.meshgrid(rows, columns, indexing="ij")
    return place(r.ravel(), c.ravel()).reshape(-1, *r.shape)


def _points(count: int, side: tuple[float, float]) -> Array:
    middle, half = (side[0] + side[1]) / 2, (side[1] - side[0]) / 2
    return np.asarray(middle - half * np.cos(np.pi * (np.arange(count) + 0.5) / count))


def _weights(count: int, side: tuple[float, float], at: Array) -> Array:
    """Return what each Chebyshev point weighs at places ``(at, points)``, by the cosine series of degree count - 1."""
    half = max((side[1] - side[0]) / 2, 1e-300)
    angles = np.pi * (np.arange(count) + 0.5) / count
    series = np.polynomial.chebyshev.chebvander((at - (side[0] + side[1]) / 2) / half, count - 1)
    # Points go from low to high, cosines from high to low.
    basis = np.cos(np.arange(count)[:, None] * (np.pi - angles)[None, :]) * 2 / count
    basis[0] /= 2
    return np.asarray(series @ basis)


def outline(box: GeoBox) -> tuple[Array, Array]:
    """Return the rows and columns of the pixel corners around a GeoBox, first to last, up to 20,001 on a side."""
    height, width = box.shape
    down, across = (np.linspace(0, n, min(n, 20_000) + 1) for n in (height, width))
    rows = [down, down, np.zeros_like(across), np.full_like(across, height)]
    columns = [np.zeros_like(down), np.full_like(down, width), across, across]
    return np.concatenate(rows), np.concatenate(columns)


def fractional_pixels(target: GeoBox, box: GeoBox, places: tuple[Array, Array]) -> tuple[Array, Array]:
    """Return the rows and columns in another GeoBox of places of a GeoBox."""
    x, y = to_crs(box, _wkt(target))(*places)
    back = ~target.transform
    return back.d * x + back.e * y + back.f, back.a * x + back.b * y + back.c


def extent(boxes: Sequence[GeoBox]) -> Extent:
    """Return the smallest extent of maps in longitude and latitude.

    Raises
    ------
    GridError
        Where none of them lies on the Earth.
    """
    found = [_extent(box) for box in boxes]
    first = (found[0].west + found[0].east) / 2
    west, east = [], []
    for each in found:
        turn = 360 * np.round((first - (each.west + each.east) / 2) / 360)
        west.append(each.west + turn)
        east.append(each.east + turn)
    low, high = min(west), max(east)
    south, north = min(e.south for e in found), max(e.north for e in found)
    return Extent(low, south, north, min(high, low + 360))


def _extent(box: GeoBox) -> Extent:
    lon, lat = to_crs(box, WGS84)(*outline(box))
    good = np.isfinite(lon) & np.isfinite(lat)
    inner = np.linspace(0, box.shape[0], 33), np.linspace(0, box.shape[1], 33)
    inside = _lattice(to_crs(box, WGS84), *inner).reshape(2, -1)
    inside = inside[:, np.isfinite(inside).all(axis=0)]
    if not inside.size and not good.any():
        raise GridError(f"no pixel of the map lies on the Earth by its CRS {_wkt(box)}; name the right one")
    lon, lat = np.append(lon[good], inside[0]), np.append(lat[good], inside[1])
    south, north = float(lat.min()), float(lat.max())
    if box.crs is None or not box.crs.geographic:
        poles = [pole for pole in (-90.0, 90.0) if _holds(box, pole)]
        if poles or np.ptp(_unwrapped(lon)) > 350:
            return Extent(-180.0, min([south, *poles]), max([north, *poles]), 180.0)
        lon = _unwrapped(lon)
    return Extent(float(lon.min()), south, north, float(lon.max()))


def _unwrapped(lon: Array) -> Array:
    """Return longitudes on one side of the seam that is opposite to their mean."""
    radians = np.deg2rad(lon)
    middle = np.rad2deg(np.arctan2(np.sin(radians).mean(), np.cos(radians).mean()))
    out: Array = middle + (lon - middle + 180) % 360 - 180
    return out


def _holds(box: GeoBox, lat: float) -> bool:
    """Whether a pole lies in a GeoBox."""
    x, y = transformer(WGS84, _wkt(box)).transform(0.0, lat)
    if not np.isfinite([x, y]).all():
        return False
    column, row = ~box.transform * (x, y)
    return bool(0 <= row <= box.shape[0] and 0 <= column <= box.shape[1])


def pixel_areas(box: GeoBox) -> Array:
    """Return the area of each pixel of a GeoBox ``(y, x)`` in m2: the areal scale at three by three points of each."""
    points, weights = np.polynomial.legendre.leggauss(3)
    place = area_factor(box)
    height, width = box.shape
    total = np.zeros((height, width))
    for dy, wy in zip(points, weights, strict=True):
        for dx, wx in zip(points, weights, strict=True):
            total += wy * wx / 4 * _lattice(place, np.arange(height) + 0.5 + dy / 2, np.arange(width) + 0.5 + dx / 2)[0]
    return total
