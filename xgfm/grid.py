"""The pixel grid of a cube and of an HLS tile.

In: an MGRS tile id, an xarray object or a GeoBox. Out: an odc-geo ``GeoBox``, or the same array with CF coordinates on
it. Nothing here reads a pixel: coordinates are looked at, data stays as lazy as it came.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import xarray as xr

from xgfm.cf import GRID_MAPPING, axis_attrs
from xgfm.errors import GridError

if TYPE_CHECKING:
    from affine import Affine
    from odc.geo.crs import CRS
    from odc.geo.geobox import GeoBox

Obj = TypeVar("Obj", xr.DataArray, xr.Dataset)

TILE_PIXELS = 3660
"""Rows and columns of an HLS tile."""
TILE_RESOLUTION = 30
"""Metres."""

_SQUARE = 100_000
_BANDS = "CDEFGHJKLMNPQRSTUVWX"
_COLUMNS = ("ABCDEFGH", "JKLMNPQR", "STUVWXYZ")
_ROWS = "ABCDEFGHJKLMNPQRSTUV"
_METRES_PER_DEGREE = 0.9996 * 10_001_966 / 90
"""Northing of one degree of latitude in UTM, on average from the equator to the pole."""


def parse_tile(tile: str) -> str:
    """Return an MGRS tile id as ``15TVM``, without the leading T that HLS writes.

    Raises
    ------
    GridError
        Where it is not an id of the form ``T15TVM`` or ``15TVM``.
    """
    match = re.fullmatch(r"T?(\d{2}[C-HJ-NP-X][A-HJ-NP-Z][A-HJ-NP-V])", tile)
    if match is None:
        raise GridError(f"tile {tile!r} is not an MGRS tile id; expected two digits and three letters, tile='T15TVM'")
    return match[1]


def mgrs_square(tile: str) -> tuple[int, int, int]:
    """Return zone, easting and northing (negative to the south) of the south-west corner of an MGRS 100 km square."""
    zone, band, column, row = int(tile[:2]), tile[2], tile[3], tile[4]
    columns = _COLUMNS[(zone - 1) % 3]
    if not 1 <= zone <= 60 or column not in columns:
        raise GridError(f"tile {tile!r} does not exist: zones are 01-60, and this zone's columns are {columns}")
    south = 8.0 * _BANDS.index(band) - 80.0
    height = 12.0 if band == "X" else 8.0
    middle = (south + height / 2) * _METRES_PER_DEGREE
    # Row letters repeat every 2,000 km, begin at F in even zones, and the latitude band says which repeat is meant.
    first = (_ROWS.index(row) - (0 if zone % 2 else 5)) % 20 * _SQUARE
    north = first + 20 * _SQUARE * round((middle - first - _SQUARE / 2) / (20 * _SQUARE))
    # 120 km: half a square, and how far a parallel bends away from its northing at the zone's edge.
    if abs(north + _SQUARE / 2 - middle) > height / 2 * _METRES_PER_DEGREE + 120_000:
        raise GridError(f"tile {tile!r} does not exist: no square {column}{row} in latitude band {band} of zone {zone}")
    return zone, (columns.index(column) + 1) * _SQUARE, north


def tile_geobox(tile: str) -> GeoBox:
    """Return the grid of an HLS tile, from its id alone.

    Southern tiles keep the northern UTM zone (EPSG:326zz) and negative northings, as HLS files do.

    Parameters
    ----------
    tile : str
        MGRS tile id, ``"T15TVM"`` or ``"15TVM"``.

    Returns
    -------
    GeoBox
        3660 x 3660 pixels of 30 m.

    Raises
    ------
    GridError
        Where there is no such tile.

    Notes
    -----
    The upper left corner is the square's, moved out to a multiple of 60 m: HLS follows the Sentinel-2 tiling grid. The
    rule was inferred from published geotransforms of both hemispheres, which are among this project's tests.
    """
    return _tile_geobox(parse_tile(tile))


@lru_cache(maxsize=4096)  # a catalogue answers with many items of each tile
def _tile_geobox(tile: str) -> GeoBox:
    from affine import Affine
    from odc.geo.geobox import GeoBox

    zone, east, north = mgrs_square(tile)
    left, top = math.floor(east / 60) * 60, math.ceil((north + _SQUARE) / 60) * 60
    transform = Affine(TILE_RESOLUTION, 0, left, 0, -TILE_RESOLUTION, top)
    return GeoBox((TILE_PIXELS, TILE_PIXELS), transform, f"EPSG:{32600 + zone}")


def geobox_of(cube: xr.DataArray | xr.Dataset) -> GeoBox:
    """Return the grid that a cube lies on.

    The coordinates decide. The grid mapping's ``GeoTransform`` lends its exact numbers where it describes the same
    lattice, and the pixel size where an axis has a single pixel; after slicing it may hold an older origin.

    Parameters
    ----------
    cube : DataArray or Dataset
        With one-dimensional ``y`` and ``x`` coordinates of pixel centres and a CF grid mapping coordinate.

    Returns
    -------
    GeoBox

    Raises
    ------
    GridError
        No CRS; no coordinates; irregular, rotated or south-up coordinates; coordinates that do not fit the CRS.
    """
    from affine import Affine
    from odc.geo.geobox import GeoBox

    crs = _crs_of(cube)
    stored = _geo_transform(cube)
    if stored is not None and (stored.b or stored.d):
        raise GridError(f"the cube's grid is rotated or sheared ({stored}); warp it to a north-up grid first")
    left, width = _axis(cube, "x", None if stored is None else (stored.c, stored.a))
    top, height = _axis(cube, "y", None if stored is None else (stored.f, stored.e))
    if width < 0 or height > 0:
        raise GridError(
            f"the cube is not north-up: steps are x {width:g}, y {height:g}; "
            "expected x increasing and y decreasing, cube.sortby('x').sortby('y', ascending=False)"
        )
    shape = (cube.sizes["y"], cube.sizes["x"])
    _check_fit(crs, left, top, width * shape[1], height * shape[0], width)
    return GeoBox(shape, Affine(width, 0, left, 0, height, top), crs)


def pixel_size_m(geobox: GeoBox) -> float:
    """Return the size of a pixel on the ground, in metres: the square root of its area at the grid's centre.

    The area is geodesic (on the CRS's own ellipsoid), so it is right for geographic and for distorted CRSs; a 30 m
    pixel of UTM comes out within 0.2 % of 30.
    """
    from pyproj import Transformer

    crs = geobox.crs
    if crs is None:
        raise GridError("the grid has no CRS, so its pixels have no size; give one with crs='EPSG:...'")
    rows = geobox.shape[0] / 2 + np.array([-0.5, -0.5, 0.5, 0.5])
    columns = geobox.shape[1] / 2 + np.array([-0.5, 0.5, 0.5, -0.5])
    to_crs = geobox.transform
    xs = to_crs.a * columns + to_crs.b * rows + to_crs.c
    ys = to_crs.d * columns + to_crs.e * rows + to_crs.f
    geographic = crs.proj.geodetic_crs
    geod = crs.proj.get_geod()
    if geographic is None or geod is None:
        raise GridError(f"the CRS {crs_name(crs)} is not tied to an ellipsoid; give one that is, crs='EPSG:...'")
    lon, lat = Transformer.from_crs(crs.proj, geographic, always_xy=True).transform(xs, ys)
    area = abs(geod.polygon_area_perimeter(lon, lat)[0])
    if not math.isfinite(area) or area <= 0:
        raise GridError(
            f"the grid's centre ({xs[0]:g}, {ys[0]:g}) lies outside of its CRS {crs_name(crs)}; "
            "check that crs= is the CRS of these coordinates"
        )
    return math.sqrt(area)


def crs_name(crs: CRS) -> str:
    """Return a CRS as people write it: ``EPSG:32615``, or the name in its WKT where it has no code."""
    return f"EPSG:{crs.epsg}" if crs.epsg else repr(crs.proj.name)


def with_grid(array: Obj, geobox: GeoBox) -> Obj:
    """Attach ``y``, ``x`` and ``spatial_ref`` to an array whose dims ``y`` and ``x`` lie on ``geobox``.

    Parameters
    ----------
    array : DataArray or Dataset
        Of the grid's shape in ``(y, x)``; stays lazy.
    geobox : GeoBox
        North-up.

    Returns
    -------
    DataArray or Dataset
        With pixel centres, CF attributes, and ``grid_mapping`` in the encoding of every variable on the grid.
    """
    from odc.geo.xr import xr_coords

    shape = (array.sizes.get("y"), array.sizes.get("x"))
    if shape != tuple(geobox.shape):
        raise GridError(
            f"an array of (y, x) = {shape} does not lie on a grid of {tuple(geobox.shape)}; give its geobox"
        )
    coords = xr_coords(geobox, crs_coord_name=GRID_MAPPING, always_yx=True)
    geographic = geobox.crs is not None and geobox.crs.geographic
    for axis in ("y", "x"):
        coords[axis].attrs = axis_attrs(axis, geographic=geographic)
    out = array.assign_coords(coords)
    variables = out.data_vars.values() if isinstance(out, xr.Dataset) else (out,)
    for variable in variables:
        if {"y", "x"} <= set(variable.dims):
            variable.encoding["grid_mapping"] = GRID_MAPPING
    return out


def _grid_mapping_attrs(cube: xr.DataArray | xr.Dataset) -> dict[str, Any]:
    """Attributes of the grid mapping coordinate: the one that is named, else one that holds a CRS."""
    named = cube.encoding.get("grid_mapping", cube.attrs.get("grid_mapping"))
    for name in (named, GRID_MAPPING, "crs", *cube.coords):
        if name in cube.coords and {"crs_wkt", "spatial_ref"} & set(cube.coords[name].attrs):
            return dict(cube.coords[name].attrs)
    return {}


def _crs_of(cube: xr.DataArray | xr.Dataset) -> CRS:
    from odc.geo.crs import CRS
    from pyproj.exceptions import CRSError

    attrs = _grid_mapping_attrs(cube)
    text = attrs.get("crs_wkt") or attrs.get("spatial_ref") or cube.attrs.get("crs")
    if not text:
        raise GridError(
            "the cube has no CRS: there is no 'spatial_ref' coordinate with crs_wkt; "
            "reopen a store with decode_coords='all', or attach one with cube.odc.assign_crs('EPSG:...')"
        )
    try:
        return CRS(text)
    except CRSError as error:
        raise GridError(f"the cube's CRS cannot be read: {str(text)[:120]!r}; give another with assign_crs") from error


def _geo_transform(cube: xr.DataArray | xr.Dataset) -> Affine | None:
    """The grid mapping's ``GeoTransform`` (GDAL's order) as an affine, where it holds one."""
    from affine import Affine

    text = _grid_mapping_attrs(cube).get("GeoTransform")
    if not isinstance(text, str):
        return None
    values = [float(v) for v in text.split()]
    return Affine.from_gdal(*values) if len(values) == 6 else None


def _axis(cube: xr.DataArray | xr.Dataset, name: str, stored: tuple[float, float] | None) -> tuple[float, float]:
    """Outer edge and signed step of one axis, from its centres and the (edge, step) that the file stored."""
    if name not in cube.coords or cube.coords[name].dims != (name,):
        if {"lat", "lon"} <= set(cube.dims):
            raise GridError(
                "it lies on 'lat' and 'lon', and pixels on 'y' and 'x' are needed. Fractions of climate cells are "
                "written with gfm.to_netcdf or xarray's own to_zarr, and drawn with xarray's own plot; a cube of "
                "pixels in degrees is renamed: cube.rename(lat='y', lon='x')"
            )
        raise GridError(
            f"the cube has no one-dimensional coordinate {name!r}; pixel centres are needed: with_grid(cube, geobox)"
        )
    values = cube.coords[name].values
    if values.size == 0:
        raise GridError(f"the cube has no pixels along {name!r}")
    if values.size == 1 and stored is None:
        raise GridError(
            f"one pixel along {name!r} and no GeoTransform: its size is unknown, use with_grid(cube, geobox)"
        )
    centres = values.astype("float64")
    step = stored[1] if values.size == 1 and stored else float(centres[-1] - centres[0]) / max(values.size - 1, 1)
    precision = np.spacing(np.abs(values).max()) if values.dtype.kind == "f" else 0.0
    strayed = np.abs(centres - (centres[0] + step * np.arange(values.size))).max()
    if not (step and strayed <= max(0.01 * abs(step), 2 * float(precision))):
        raise GridError(
            f"coordinate {name!r} is not regular: a centre lies {strayed:g} from where a step of {step:g} puts it; "
            "expected evenly spaced pixel centres, reproject or sort the cube first"
        )
    return _snap(float(centres[0]) - step / 2, step, values.size, stored)


def _snap(edge: float, step: float, size: int, stored: tuple[float, float] | None) -> tuple[float, float]:
    """Exact numbers of the stored lattice where the coordinates lie on it."""
    if stored is None or abs(stored[1] - step) * size > 0.01 * abs(step):
        return edge, step
    whole = round((edge - stored[0]) / stored[1])
    exact = stored[0] + whole * stored[1]
    return (exact if abs(exact - edge) < 0.02 * abs(step) else edge), stored[1]


def _check_fit(crs: CRS, left: float, top: float, width: float, height: float, step: float) -> None:
    """Refuse metres under a geographic CRS and degrees under a projected one."""
    right, bottom = left + width, top + height
    degrees = max(abs(left), abs(right)) <= 360.5 and max(abs(top), abs(bottom)) <= 90.5
    if crs.geographic and not degrees:
        raise GridError(
            f"x from {left:g} to {right:g} and y from {bottom:g} to {top:g} are not degrees under {crs_name(crs)}; "
            "name the CRS of these coordinates with assign_crs('EPSG:326..')"
        )
    if not crs.geographic and degrees and abs(step) < 0.01:
        raise GridError(
            f"x from {left:g} to {right:g} in steps of {step:g} look like degrees, but the CRS is projected "
            f"({crs_name(crs)}); name the CRS of these coordinates with assign_crs('EPSG:4326')"
        )
