"""The grid of a cube: the tiles' own lattice, or the one that was asked for.

In: granules, and what the user said of region and grid. Out: one north-up GeoBox. Arithmetic on metadata; whatever is
wrong is refused here, before any read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from xgfm.cube.items import HlsItem
from xgfm.errors import GridError
from xgfm.grid import TILE_RESOLUTION, crs_name

if TYPE_CHECKING:
    from odc.geo.crs import CRS
    from odc.geo.geobox import GeoBox

Bounds = tuple[float, float, float, float]

_LONLAT = "EPSG:4326"
_LONGEST = 10_000_000
"""Pixels along an axis; more is a resolution in the wrong units, and its coordinates alone fill a memory."""


@dataclass(frozen=True, slots=True)
class Target:
    """What was asked of the grid; all None means the tiles' own, whole."""

    bbox: Sequence[float] | None = None
    """West, south, east, north in degrees."""
    crs: Any = None
    """Anything that odc-geo takes for a CRS; None for the tiles' own."""
    resolution: float | None = None
    """Side of a pixel in units of the CRS; None for 30 m."""
    bounds: Sequence[float] | None = None
    """Left, bottom, right, top in units of the CRS."""
    geobox: GeoBox | None = None
    """The whole grid."""

    def __post_init__(self) -> None:
        extents = [name for name in ("bbox", "bounds", "geobox") if getattr(self, name) is not None]
        if len(extents) > 1:
            raise GridError(f"{'= and '.join(extents)}= each say where the cube lies; give one of them")
        lattice = [name for name in ("crs", "resolution") if getattr(self, name) is not None]
        if self.geobox is not None and lattice:
            raise GridError(f"geobox= says the whole grid; leave {'= and '.join(lattice)}= out")
        if self.resolution is not None and not _is_size(self.resolution):
            raise GridError(f"resolution={self.resolution!r} must be a positive number in units of the CRS")
        if self.crs is not None:
            _asked_crs(self.crs)
        if self.bbox is not None:
            check_bbox(self.bbox)
        if self.bounds is not None:
            _check_bounds(self.bounds)
        if self.geobox is not None:
            _check_north_up(self.geobox)


def check_bbox(bbox: Sequence[float]) -> Bounds:
    """Return a bounding box that can be searched and opened.

    Raises
    ------
    GridError
        Where it is not (west, south, east, north) in degrees, or crosses the antimeridian.
    """
    try:
        west, south, east, north = (float(v) for v in bbox)
    except (TypeError, ValueError) as error:
        raise GridError(f"bbox={bbox!r} must be four numbers: (west, south, east, north) in degrees") from error
    in_range = abs(west) <= 180 and abs(east) <= 180 and abs(south) <= 90 and abs(north) <= 90
    if not in_range or not south < north or west == east:
        raise GridError(
            f"bbox={(west, south, east, north)} is not (west, south, east, north) in degrees; "
            "coordinates in metres go to bounds= with their crs="
        )
    if west > east:
        raise GridError(
            f"bbox={(west, south, east, north)} crosses the antimeridian (west > east); open the two sides one by one, "
            f"bbox={(west, south, 180.0, north)} and bbox={(-180.0, south, east, north)}"
        )
    return west, south, east, north


def boxes_touch(one: Bounds, other: Sequence[float]) -> bool:
    """Whether a box in degrees touches another, which may cross the antimeridian and may hold heights."""
    west, south, east, north = other if len(other) == 4 else (*other[:2], *other[3:5])
    beside = one[2] < west and one[0] > east if west > east else one[2] < west or one[0] > east
    return not beside and one[1] <= north and one[3] >= south


def target_grid(items: Sequence[HlsItem], target: Target) -> GeoBox:
    """Choose the grid of a cube.

    Parameters
    ----------
    items : sequence of HlsItem
        At least one.
    target : Target
        What was asked.

    Returns
    -------
    GeoBox
        North-up. Its pixel edges lie on the tiles' lattice where CRS and resolution are theirs, else on multiples of
        the resolution, so that cubes of neighbouring regions fit together.

    Raises
    ------
    GridError
        Two UTM zones and no ``crs=``; a region outside of the items' tiles; a grid that cannot be.
    """
    if target.geobox is not None:
        _check_overlap(items, target, _crs(target.geobox), target.geobox.boundingbox.bbox)
        return target.geobox
    crs = _common_crs(items, target) if target.crs is None else _asked_crs(target.crs)
    resolution = target.resolution or _own_resolution(crs)
    own = crs == _crs(items[0].geobox) and resolution == TILE_RESOLUTION
    anchor = (items[0].geobox.transform.c, items[0].geobox.transform.f) if own else (0.0, 0.0)
    covered = _union([_tile_in(item, crs) for item in items])
    wanted = _wanted(target, crs)
    if wanted is None:
        return _snap(covered, crs, resolution, anchor)
    _check_overlap(items, target, crs, wanted)
    grid = _snap(wanted, crs, resolution, anchor)
    # A box reaches over the tiles' edge: what lies there was not observed, and is cut off.
    return grid if target.bounds is not None else _intersect(grid, _snap(covered, crs, resolution, anchor))


def search_box(target: Target) -> Bounds | None:
    """Return the box in degrees to search for granules, from whichever of bbox, bounds and geobox was given.

    Raises
    ------
    GridError
        Where bounds are given without the CRS that they are in.
    """
    if target.bbox is not None:
        return check_bbox(target.bbox)
    if target.geobox is not None:
        return check_bbox(_reproject(target.geobox.boundingbox.bbox, _crs(target.geobox), _lonlat()))
    if target.bounds is None:
        return None
    if target.crs is None:
        raise GridError(f"bounds={tuple(target.bounds)} cannot be searched without their CRS; give crs='EPSG:...'")
    return check_bbox(_reproject(_four(target.bounds), _asked_crs(target.crs), _lonlat()))


def _lonlat() -> CRS:
    from odc.geo.crs import CRS

    return CRS(_LONLAT)


def _asked_crs(crs: Any) -> CRS:
    """What ``crs=`` names."""
    from odc.geo.crs import CRS

    try:
        return CRS(crs)
    except (ValueError, TypeError, RuntimeError) as error:
        raise GridError(f"crs={crs!r} is no CRS that PROJ knows; give crs='EPSG:32615' or the like") from error


def _is_size(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < math.inf


def _check_bounds(bounds: Any) -> None:
    try:
        left, bottom, right, top = _four(bounds)
    except (TypeError, ValueError) as error:
        raise GridError(
            f"bounds={bounds!r} must be four numbers: (left, bottom, right, top) in units of the CRS"
        ) from error
    if not (left < right and bottom < top and all(map(math.isfinite, (left, bottom, right, top)))):
        raise GridError(f"bounds={tuple(bounds)} must be (left, bottom, right, top) in units of the CRS")


def _check_length(pixels: float, says: str) -> None:
    if not pixels <= _LONGEST:
        raise GridError(
            f"{says} makes an axis of {pixels:.3g} pixels, and at most {_LONGEST} can be opened; give a coarser "
            "resolution= in units of the CRS, or a smaller region"
        )


def _four(values: Sequence[float]) -> Bounds:
    left, bottom, right, top = (float(v) for v in values)
    return left, bottom, right, top


def _wanted(target: Target, crs: CRS) -> Bounds | None:
    """Asked extent in the target's CRS."""
    if target.bounds is not None:
        return _four(target.bounds)
    return None if target.bbox is None else _reproject(check_bbox(target.bbox), _lonlat(), crs)


def _common_crs(items: Sequence[HlsItem], target: Target) -> CRS:
    """The one CRS of all items; in a box, of those that lie in it."""
    if target.bbox is not None:
        items = [item for item in items if _touches_box(item, check_bbox(target.bbox))] or items
    tiles: dict[str, set[str]] = {}
    for item in items:
        tiles.setdefault(crs_name(_crs(item.geobox)), set()).add(f"T{item.tile}")
    if len(tiles) > 1:
        zones = " and ".join(f"{crs} ({', '.join(sorted(names))})" for crs, names in sorted(tiles.items()))
        raise GridError(
            f"the items lie in {len(tiles)} UTM zones: {zones}, and a cube has one CRS; choose it with "
            f"crs={min(tiles)!r} (the others are warped to it), or keep one tile with tile="
        )
    return _crs(items[0].geobox)


def _touches_box(item: HlsItem, bbox: Bounds) -> bool:
    """Whether a box in degrees touches a granule's tile; in degrees first, since UTM folds up far from its zone."""
    if not boxes_touch(bbox, _reproject(item.geobox.boundingbox.bbox, _crs(item.geobox), _lonlat())):
        return False
    return _overlap(_reproject(bbox, _lonlat(), _crs(item.geobox)), item.geobox.boundingbox.bbox)


def _own_resolution(crs: CRS) -> float:
    if crs.geographic or set(crs.units) != {"metre"}:
        raise GridError(
            f"{crs_name(crs)} is in {crs.units[0]}s, so a pixel of {TILE_RESOLUTION} m has no natural size there; "
            "give resolution= in those units"
        )
    return float(TILE_RESOLUTION)


def _reproject(bounds: Bounds, source: CRS, destination: CRS) -> Bounds:
    """Bounds in another CRS, edges densified; infinite where the CRS does not reach."""
    if source == destination:
        return bounds
    from pyproj import Transformer

    transformer = Transformer.from_crs(source.proj, destination.proj, always_xy=True)
    return transformer.transform_bounds(*bounds, densify_pts=41)


def _tile_in(item: HlsItem, crs: CRS) -> Bounds:
    """Bounds of a granule's tile in a CRS."""
    bounds = _reproject(item.geobox.boundingbox.bbox, _crs(item.geobox), crs)
    if not all(map(math.isfinite, bounds)):
        raise GridError(
            f"tile T{item.tile} of item {item.id!r} lies where {crs_name(crs)} does not reach; leave it out with tile= "
            "or bbox=, or choose another crs="
        )
    return bounds


def _union(boxes: Sequence[Bounds]) -> Bounds:
    lefts, bottoms, rights, tops = zip(*boxes, strict=True)
    return min(lefts), min(bottoms), max(rights), max(tops)


def _overlap(one: Bounds, other: Bounds) -> bool:
    """Whether two boxes share some area."""
    finite = all(map(math.isfinite, (*one, *other)))
    return finite and one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _check_overlap(items: Sequence[HlsItem], target: Target, crs: CRS, wanted: Bounds) -> None:
    """Refuse a region that no granule's tile touches."""
    if target.bbox is not None:
        box = check_bbox(target.bbox)
        name, there = f"bbox={box}", any(_touches_box(item, box) for item in items)
    else:
        name = "geobox=" if target.bounds is None else f"bounds={_four(target.bounds)}"
        there = any(_overlap(wanted, _tile_in(item, crs)) for item in items)
    if there:
        return
    tiles = ", ".join(sorted({f"T{item.tile}" for item in items}))
    west, south, east, north = _union(
        [_reproject(item.geobox.boundingbox.bbox, _crs(item.geobox), _lonlat()) for item in items]
    )
    raise GridError(
        f"{name} lies outside of the items' tiles ({tiles}), which reach from {west:.3f} to {east:.3f} E and "
        f"{south:.3f} to {north:.3f} N; give a box inside, or items of the tiles there"
    )


def _snap(bounds: Bounds, crs: CRS, resolution: float, anchor: tuple[float, float]) -> GeoBox:
    """The smallest grid of whole pixels of a lattice that covers some bounds."""
    from affine import Affine
    from odc.geo.geobox import GeoBox

    for low, high in (bounds[::2], bounds[1::2]):
        _check_length((high - low) / resolution, f"resolution={resolution}")
    slack = 1e-6  # of a pixel: an edge that misses the lattice by rounding alone takes no further pixel
    first = math.floor((bounds[0] - anchor[0]) / resolution + slack)
    last = math.ceil((bounds[2] - anchor[0]) / resolution - slack)
    lowest = math.floor((bounds[1] - anchor[1]) / resolution + slack)
    highest = math.ceil((bounds[3] - anchor[1]) / resolution - slack)
    left, top = anchor[0] + first * resolution, anchor[1] + highest * resolution
    return GeoBox(
        (max(highest - lowest, 1), max(last - first, 1)), Affine(resolution, 0, left, 0, -resolution, top), crs
    )


def _intersect(grid: GeoBox, other: GeoBox) -> GeoBox:
    """The part of a grid that lies in another of the same lattice."""
    row = round((other.transform.f - grid.transform.f) / grid.transform.e)
    column = round((other.transform.c - grid.transform.c) / grid.transform.a)
    rows = slice(max(row, 0), min(row + other.shape[0], grid.shape[0]))
    columns = slice(max(column, 0), min(column + other.shape[1], grid.shape[1]))
    return grid[rows, columns]


def _crs(geobox: GeoBox) -> CRS:
    if geobox.crs is None:
        raise GridError("geobox= has no CRS; make it with one, GeoBox(shape, affine, 'EPSG:...')")
    return geobox.crs


def _check_north_up(geobox: GeoBox) -> None:
    from odc.geo.geobox import GeoBox

    if not isinstance(geobox, GeoBox):
        raise GridError(f"geobox= is a {type(geobox).__name__}; give a GeoBox of odc.geo, GeoBox(shape, affine, crs)")
    transform = geobox.transform
    _crs(geobox)
    if transform.b or transform.d or transform.a <= 0 or transform.e >= 0:
        raise GridError(f"geobox= must be north-up: x increasing, y decreasing, not rotated; its affine is {transform}")
    _check_length(max(geobox.shape), "geobox=")
