"""Where a job works: a region in degrees, and its outline in the CRS of a grid.

In: a bounding box, a GeoJSON geometry, or the path of a vector file. Out: one shapely polygon or multipolygon. A region
is refused where it cannot be worked on: crossing the antimeridian, not in degrees, without area.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import shapely.geometry
from numpy.typing import NDArray
from odc.geo.crs import CRS
from pyproj import Transformer

from xgfm.cube.target import Bounds, check_bbox
from xgfm.errors import GridError, JobError, MissingExtraError
from xgfm.grid import crs_name

GEOJSON_FILES = (".geojson", ".json")
VECTOR_FILES = (*GEOJSON_FILES, ".gpkg")
"""Suffixes of files that hold a region."""

_STEP = 0.1
"""Degrees between the points of an edge before it is projected: straight to 3 m at middle latitudes."""
DEGREES = CRS("EPSG:4326")
_DEGREES = ("EPSG:4326", "OGC:CRS84")


@lru_cache(maxsize=512)
def transformer(source: CRS, target: CRS) -> Transformer:
    """Return what takes (x, y) from one CRS to another; PROJ takes 10 ms to find it."""
    return Transformer.from_crs(source.proj, target.proj, always_xy=True)


def check(region: Any) -> Any:
    """Return a region as it stands in a job's record; a file is not opened.

    Raises
    ------
    JobError, GridError
        Where it is none.
    """
    if isinstance(region, str):
        if not region.lower().endswith(VECTOR_FILES):
            raise JobError(f"{region!r} is no vector file; give the path of one of {', '.join(VECTOR_FILES)}")
        return region
    if isinstance(region, Mapping):
        shape(region)
        return dict(region)
    if isinstance(region, list | tuple) and len(region) == 4 and all(_is_number(v) for v in region):
        return check_bbox(region)
    raise JobError(
        f"{str(region)[:80]!r} is no region; give [west, south, east, north] in degrees, a GeoJSON geometry, or the "
        f"path of a file ({', '.join(VECTOR_FILES)})"
    )


def read(region: Any) -> shapely.Geometry:
    """Return a region as a polygon or multipolygon in degrees.

    Parameters
    ----------
    region : sequence, mapping or str
        As in a job's record.

    Raises
    ------
    JobError
        A file that cannot be read, or a shape that cannot be worked on.
    """
    if isinstance(region, str):
        path = Path(region).expanduser()
        if not path.is_file():
            raise JobError(f"there is no file {region!r} (in {path.resolve().parent}); correct region:")
        geojson = path.suffix.lower() in GEOJSON_FILES
        return shape(_read_json(path)) if geojson else _read_vector(path)
    return shape(region) if isinstance(region, Mapping) else shapely.box(*check_bbox(region))


def shape(document: Mapping[str, Any]) -> shapely.Geometry:
    """Return the polygons of a GeoJSON geometry, feature or feature collection, as one."""
    crs = str(document.get("crs", "CRS84"))
    if not any(name in crs for name in ("CRS84", "4326")):
        raise JobError(f"the region is in {crs[:80]}; GeoJSON is in degrees (WGS 84): reproject it first")
    kind = document.get("type")
    geometries = [f.get("geometry") for f in document.get("features", [])] if kind == "FeatureCollection" else []
    geometries = geometries or [document.get("geometry") if kind == "Feature" else document]
    try:
        shapes = [shapely.geometry.shape(geometry) for geometry in geometries]
    except Exception as error:  # shapely and GEOS raise many kinds for what is no geometry
        raise JobError(f"the region is no GeoJSON geometry ({type(error).__name__}: {str(error)[:120]})") from error
    return checked(shapes)


def checked(shapes: list[shapely.Geometry]) -> shapely.Geometry:
    """Join polygons, and refuse what cannot be a region."""
    for each in shapes:
        if each.geom_type not in ("Polygon", "MultiPolygon"):
            raise JobError(f"the region holds a {each.geom_type}; give polygons (buffer points and lines first)")
        if not each.is_valid:
            raise JobError(
                f"a polygon of the region is not valid: {shapely.is_valid_reason(each)}; mend it, shapely.make_valid"
            )
    joined = shapely.union_all(shapes)
    if joined.is_empty or not joined.area:
        raise JobError("the region has no area; give a polygon with an inside, in degrees")
    west, south, east, north = joined.bounds
    if (
        not all(map(math.isfinite, joined.bounds))
        or max(abs(south), abs(north)) > 90
        or max(abs(west), abs(east)) > 360
    ):
        raise JobError(
            f"the region reaches from {west:g} to {east:g} and {south:g} to {north:g}, which are no degrees; reproject "
            "it to EPSG:4326"
        )
    if max(abs(west), abs(east)) > 180 or east - west > 180:
        raise JobError(
            f"the region reaches from {west:g} to {east:g} degrees, over the antimeridian; cut it there and make one "
            "job for each side"
        )
    return joined


def project(region: shapely.Geometry, crs: CRS) -> shapely.Geometry:
    """Return a region of degrees in another CRS; its edges, straight in degrees, are bent as they must be.

    Raises
    ------
    GridError
        Where the CRS does not reach.
    """
    there = transformer(DEGREES, crs)

    def bend(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack(there.transform(points[:, 0], points[:, 1]))

    bent = shapely.transform(shapely.segmentize(region, _STEP), bend)
    if not np.isfinite(shapely.get_coordinates(bent)).all():
        raise GridError(
            f"{crs_name(crs)} does not reach the whole region ({', '.join(f'{v:g}' for v in region.bounds)}); choose "
            "another crs in grid:, or a smaller region"
        )
    return bent if bent.is_valid else shapely.make_valid(bent)  # bending may make two edges touch


def to_degrees(bounds: Sequence[float], crs: CRS) -> Bounds:
    """Return west, south, east and north of a box in a CRS; west is more than east over the antimeridian."""
    left, bottom, right, top = bounds
    return transformer(crs, DEGREES).transform_bounds(left, bottom, right, top, densify_pts=101)


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobError(f"{str(path)!r} cannot be read as GeoJSON ({error}); give another region:") from error
    if not isinstance(document, Mapping):
        raise JobError(f"{str(path)!r} holds a JSON {type(document).__name__}; expected a GeoJSON object")
    return document


def _read_vector(path: Path) -> shapely.Geometry:
    """All polygons of a file's only layer."""
    try:
        import pyogrio
    except ImportError as error:
        raise MissingExtraError("pyogrio", "vector", f"region {str(path)!r}") from error
    try:
        layers = [str(name) for name, _ in pyogrio.list_layers(path)]
        if len(layers) != 1:
            raise JobError(f"{str(path)!r} has the layers {layers}; give a file with one layer")
        meta, _, geometries, _ = pyogrio.raw.read(path, columns=[])
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as error:
        raise JobError(f"{str(path)!r} cannot be read as a vector file ({error})") from error
    shapes = [each for each in shapely.from_wkb(geometries) if each is not None]
    if meta["crs"] not in _DEGREES:
        if not meta["crs"]:
            raise JobError(f"{str(path)!r} does not say its CRS; write it with one")
        back = CRS(meta["crs"])
        shapes = [_from_crs(each, back) for each in shapes]
    return checked(shapes)


def _from_crs(each: shapely.Geometry, crs: CRS) -> shapely.Geometry:
    """A polygon of another CRS in degrees."""
    there = transformer(crs, DEGREES)
    longest = max(each.bounds[2] - each.bounds[0], each.bounds[3] - each.bounds[1]) / 100 or 1.0
    dense = shapely.segmentize(each, longest)
    moved: shapely.Geometry = shapely.transform(dense, lambda p: np.column_stack(there.transform(p[:, 0], p[:, 1])))
    return moved


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
