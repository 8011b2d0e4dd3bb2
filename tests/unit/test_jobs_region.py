"""Regions: boxes, GeoJSON and files; what cannot be one; and their outlines in other CRSs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odc.geo.crs import CRS
from pyproj import Geod

from xgfm.errors import GridError, JobError
from xgfm.jobs import region

UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""What else the machine does is not ours."""

RING = [[-95.0, 44.0], [-93.0, 44.0], [-93.0, 45.5], [-95.0, 45.5], [-95.0, 44.0]]
HOLE = [[-94.5, 44.5], [-94.5, 45.0], [-93.5, 45.0], [-93.5, 44.5], [-94.5, 44.5]]
HOLED = {"type": "Polygon", "coordinates": [RING, HOLE]}


def test_boxes_and_geometries() -> None:
    assert region.read([-95, 44, -93, 45.5]).equals(shapely.Polygon(RING))
    assert region.read(HOLED).equals(shapely.Polygon(RING, [HOLE]))
    assert region.check((-95, 44, -93, 45.5)) == (-95.0, 44.0, -93.0, 45.5)
    assert region.check(HOLED) == HOLED


def test_features_are_joined(tmp_path: Path) -> None:
    two = [shapely.box(-95, 44, -94, 45), shapely.box(-94, 44, -93, 45)]
    features = [{"type": "Feature", "properties": {}, "geometry": json.loads(shapely.to_geojson(s))} for s in two]
    path = tmp_path / "counties.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    assert region.read(str(path)).equals(shapely.box(-95, 44, -93, 45))
    assert region.read(features[0]).equals(two[0])


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:5070", "EPSG:32615"])
def test_a_geopackage_in_any_crs(tmp_path: Path, crs: str) -> None:
    geopandas = pytest.importorskip("geopandas")
    pytest.importorskip("pyogrio")
    path = tmp_path / "county.gpkg"
    geopandas.GeoDataFrame(geometry=[shapely.Polygon(RING, [HOLE])], crs="EPSG:4326").to_crs(crs).to_file(path)
    read = region.read(str(path))
    assert shapely.hausdorff_distance(read, shapely.Polygon(RING, [HOLE])) < 0.01
    assert len(read.interiors) == 1
    geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)], crs="EPSG:4326").to_file(path, layer="other")
    with pytest.raises(JobError, match=r"layers \['county', 'other'\]; give a file with one"):
        region.read(str(path))


def polygon(*points: tuple[float, float]) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [[*map(list, points), list(points[0])]]}


REFUSED = {
    "a line": ({"type": "LineString", "coordinates": [[0, 0], [1, 1]]}, "LineString.*buffer"),
    "nothing": ({"type": "Polygon", "coordinates": []}, "no area"),
    "no geometry": ({"type": "Polygons"}, "no GeoJSON geometry"),
    "a bow tie": (polygon((0, 0), (2, 2), (2, 0), (0, 2)), "not valid: Self-intersection.*make_valid"),
    "metres": (polygon((400_000, 5e6), (500_000, 5e6), (500_000, 5.1e6)), "no degrees; reproject"),
    "over 180": (polygon((179, 0), (181, 0), (181, 2), (179, 2)), "over the antimeridian; cut it.*one job for each"),
    "both ends": (
        {"type": "MultiPolygon", "coordinates": [polygon((179, 0), (180, 0), (180, 2))["coordinates"],
                                                 polygon((-180, 0), (-179, 0), (-180, 2))["coordinates"]]},
        "antimeridian",
    ),
    "the long way round": (polygon((-179, 50), (179, 50), (179, 60), (-179, 60)), "antimeridian"),
    "another CRS": ({**HOLED, "crs": {"properties": {"name": "urn:ogc:def:crs:EPSG::3857"}}}, "3857.*reproject"),
    "not finite": (polygon((0, 0), (1, 0), (1, float("nan"))), "no degrees|not valid|no area"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_region_is_refused(name: str) -> None:
    given_, said = REFUSED[name]
    with pytest.raises((JobError, GridError), match=f"(?s){said}"):
        region.check(given_)


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("there.geojson", None, "there is no file.*correct region"),
        ("list.json", "[1]", "holds a JSON list"),
        ("torn.json", "{", "cannot be read as GeoJSON"),
        ("torn.gpkg", "{", "cannot be read as a vector file"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, body: str | None, said: str) -> None:
    if body is not None:
        (tmp_path / name).write_text(body)
    with pytest.raises(JobError, match=said):
        region.read(str(tmp_path / name))


@settings(UNTIMED)
@given(st.floats(-125, -70), st.floats(25, 48), st.floats(0.01, 8), st.floats(0.01, 4))
def test_outlines_keep_their_area(west: float, south: float, wide: float, high: float) -> None:
    """Albers keeps areas, and the area between parallels and meridians has a formula."""
    east, north = west + wide, south + high
    outline = region.project(shapely.box(west, south, east, north), CRS("EPSG:5070"))
    # A box's edges are straight in degrees: parallels, in steps so short that geodesics do as well.
    lon = np.concatenate([np.linspace(west, east, 4000), np.linspace(east, west, 4000)])
    lat = np.concatenate([np.full(4000, south), np.full(4000, north)])
    assert outline.area == pytest.approx(abs(Geod(ellps="GRS80").polygon_area_perimeter(lon, lat)[0]), rel=2e-4)


def test_straight_in_degrees_is_bent_in_albers() -> None:
    outline = region.project(shapely.box(-125, 30, -70, 49), CRS("EPSG:5070"))
    straight = outline.convex_hull.area - outline.area
    assert straight > 0.05 * outline.area  # the southern edge bulges inward
    assert outline.is_valid


def test_a_crs_that_does_not_reach_is_refused() -> None:
    with pytest.raises(GridError, match=r"does not reach the whole region.*choose another crs"):
        region.project(shapely.box(-95, -60, 100, 60), CRS("+proj=gnom +lat_0=45 +lon_0=-96 +datum=WGS84"))
