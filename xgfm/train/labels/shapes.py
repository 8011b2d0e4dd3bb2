"""Features made ready to be burned: checked, in the CRS of the grid, buffered.

In: features as read, and the grid. Out: those that touch the grid, in its CRS. What is empty, invalid, or lies
elsewhere is refused here, before anything is drawn.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj import Geod

from xgfm.errors import LabelError
from xgfm.grid import crs_name
from xgfm.jobs.region import DEGREES, transformer
from xgfm.train.labels.files import Features, crs_of
from xgfm.train.labels.grid import applied, grid_crs

Invalid = Literal["raise", "mend"]

_LONG_EDGE = 10_000.0
"""Metres: edges that are longer get points between before they are projected; straight to 2 m at middle latitudes."""
_METRES_PER_DEGREE = 111_320.0
_EARTH = Geod(ellps="WGS84")


def placed(features: Features, geobox: GeoBox, *, crs: Any, buffer: float, invalid: Invalid) -> Features:
    """Return the features that may touch a grid, in its CRS.

    Parameters
    ----------
    features : Features
    geobox : GeoBox
    crs : optional
        Instead of the features' own.
    buffer : float
        Metres outward, negative inward; polygons that vanish are left out.
    invalid : str
        ``"raise"``, or ``"mend"``: repair what is invalid, leave out what is empty.

    Returns
    -------
    Features
        Maybe none.

    Raises
    ------
    LabelError
        No CRS or a wrong one; empty or invalid geometries.
    """
    own = features.crs if crs is None else crs_of(crs, features.name)
    if own is None:
        raise LabelError(f"{features.name} does not say its CRS; name that of its coordinates, crs='EPSG:4326'")
    features = _without_empty(features, invalid)
    _check_units(features, own)
    near = features.take(np.flatnonzero(_near(features.geometry, own, geobox, abs(buffer))))
    near = _valid(near, invalid)
    geometry = _projected(near.geometry, own, grid_crs(geobox))
    geometry = _buffered(geometry, buffer, geobox) if buffer else geometry
    kept = shapely.intersects(geometry, geobox.pad(1).extent.geom)
    return Features(geometry, near.columns, geobox.crs, near.name).take(np.flatnonzero(kept))


def extent(features: Features, crs: Any = None) -> str:
    """Return where features lie, for an error."""
    own = features.crs if crs is None else crs_of(crs, features.name)
    left, bottom, right, top = shapely.total_bounds(features.geometry)
    return f"x {left:.6g} to {right:.6g}, y {bottom:.6g} to {top:.6g} in {crs_name(own) if own else 'no CRS'}"


def place_of(geobox: GeoBox) -> str:
    """Return where a grid lies, in its CRS and in degrees, for an error."""
    box = geobox.boundingbox
    west, south, east, north = transformer(geobox.crs, DEGREES).transform_bounds(*box.bbox)
    return (
        f"x {box.left:.6g} to {box.right:.6g}, y {box.bottom:.6g} to {box.top:.6g} in {crs_name(grid_crs(geobox))} "
        f"({west:.4f} to {east:.4f} E, {south:.4f} to {north:.4f} N)"
    )


def _without_empty(features: Features, invalid: Invalid) -> Features:
    empty = shapely.is_missing(features.geometry) | shapely.is_empty(features.geometry)
    if not len(features) or empty.all():
        raise LabelError(f"{features.name} holds no geometry; give a file of polygons, lines or points")
    if empty.any() and invalid == "raise":
        raise LabelError(
            f"{int(empty.sum())} of {len(features)} geometries of {features.name} are empty ({_rows(empty)}); leave "
            "them out with invalid='mend'"
        )
    return features.take(np.flatnonzero(~empty))


def _valid(features: Features, invalid: Invalid) -> Features:
    wrong = ~shapely.is_valid(features.geometry)
    if not wrong.any():
        return features
    if invalid == "raise":
        reason = shapely.is_valid_reason(features.geometry[wrong][0])
        raise LabelError(
            f"{int(wrong.sum())} geometries of {features.name} are not valid ({reason}); repair them with "
            "invalid='mend'"
        )
    geometry = features.geometry.copy()
    geometry[wrong] = shapely.make_valid(geometry[wrong])
    return Features(geometry, features.columns, features.crs, features.name)


def _rows(which: NDArray[np.bool_]) -> str:
    rows = np.flatnonzero(which)
    return f"rows {', '.join(map(str, rows[:5]))}{' ...' if len(rows) > 5 else ''}"


def _check_units(features: Features, crs: CRS) -> None:
    """Refuse metres under a geographic CRS, and degrees under a projected one."""
    left, bottom, right, top = shapely.total_bounds(features.geometry)
    degrees = max(abs(left), abs(right)) <= 360.5 and max(abs(bottom), abs(top)) <= 90.5
    if crs.geographic and not degrees:
        raise LabelError(
            f"{features.name} lies at {extent(features, crs)}, which are no degrees; name the CRS of these "
            "coordinates, crs='EPSG:326..'"
        )
    if not crs.geographic and degrees:
        raise LabelError(
            f"{features.name} lies at {extent(features, crs)}, which look like degrees, but this CRS is projected; "
            "name the CRS of these coordinates, crs='EPSG:4326'"
        )


def _near(geometry: NDArray[np.object_], crs: CRS, geobox: GeoBox, buffer: float) -> NDArray[np.bool_]:
    """Which geometries' boxes meet that of the grid, in the CRS of the geometries."""
    there = transformer(geobox.crs, crs)
    reach = 2 + math.ceil(buffer / min(pixel_metres(geobox)))
    left, bottom, right, top = there.transform_bounds(*geobox.pad(reach).boundingbox.bbox, densify_pts=51)
    bounds = shapely.bounds(geometry)
    high = (bounds[:, 3] >= bottom) & (bounds[:, 1] <= top)
    if left > right:  # over the antimeridian
        wide = (bounds[:, 2] >= left) | (bounds[:, 0] <= right)
    else:
        wide = (bounds[:, 2] >= left) & (bounds[:, 0] <= right)
    near: NDArray[np.bool_] = high & wide
    return near


def _projected(geometry: NDArray[np.object_], source: CRS, target: CRS) -> NDArray[np.object_]:
    if source == target or not len(geometry):
        return geometry
    there = transformer(source, target)
    longest = _LONG_EDGE / (_METRES_PER_DEGREE if source.geographic else 1.0)
    dense = shapely.segmentize(geometry, longest)
    moved: NDArray[np.object_] = shapely.transform(dense, lambda p: np.column_stack(there.transform(p[:, 0], p[:, 1])))
    bounds = shapely.bounds(moved)
    lost = ~np.isfinite(bounds).all(axis=1)
    if lost.any():
        raise LabelError(
            f"{int(lost.sum())} geometries reach out of {crs_name(target)} ({_rows(lost)}); cut them to the region"
        )
    return moved


def _buffered(geometry: NDArray[np.object_], metres: float, geobox: GeoBox) -> NDArray[np.object_]:
    """Geometries widened by metres on the ground; round in metres, also where the CRS is in degrees."""
    height, width = pixel_metres(geobox)
    per_x, per_y = width / abs(geobox.resolution.x), height / abs(geobox.resolution.y)
    scale, back = np.array([per_x, per_y]), np.array([1 / per_x, 1 / per_y])
    wide = shapely.buffer(shapely.transform(geometry, lambda p: p * scale), metres)
    out: NDArray[np.object_] = shapely.transform(wide, lambda p: p * back)
    return out


def pixel_metres(geobox: GeoBox) -> tuple[float, float]:
    """Return height and width of a pixel at the grid's centre, in metres on the ground."""
    rows, columns = (size / 2 for size in geobox.shape)
    offsets = np.array([[0, 0], [1, 0], [0, 1]]) - 0.5
    x, y = applied(geobox.transform, columns + offsets[:, 1], rows + offsets[:, 0])
    lon, lat = transformer(geobox.crs, DEGREES).transform(x, y)
    _, _, metres = _EARTH.inv(lon[[0, 0]], lat[[0, 0]], lon[1:], lat[1:])
    return float(metres[0]), float(metres[1])
