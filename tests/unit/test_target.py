"""The cube's grid against odc-geo's own arithmetic."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

import pytest
from affine import Affine
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from odc.geo import geom
from odc.geo.geobox import GeoBox

from xgfm.cube.items import HlsItem
from xgfm.cube.target import Target, check_bbox, search_box, target_grid
from xgfm.errors import GridError
from xgfm.grid import tile_geobox


def item(tile: str, part: tuple[slice, slice] | None = None) -> HlsItem:
    grid = tile_geobox(tile)
    when = dt.datetime(2024, 5, 2, tzinfo=dt.UTC)
    return HlsItem(
        id=tile, sensor="L30", tile=tile, datetime=when, hrefs={}, geobox=grid if part is None else grid[part]
    )


ONE = [item("15TVM")]
TILES = ["15TVM", "19LDD", "15MXV", "35VLJ", "60HUD", "01GEL"]


@pytest.mark.parametrize("tile", TILES)
def test_by_itself_a_tile_keeps_its_grid(tile: str) -> None:
    assert target_grid([item(tile)], Target()) == tile_geobox(tile)


@settings(deadline=None)
@given(
    tile=st.sampled_from(TILES[:4]),
    west=st.floats(0.1, 0.7),
    south=st.floats(0.1, 0.7),
    width=st.floats(0.001, 0.2),
    height=st.floats(0.001, 0.2),
)
def test_a_box_crops_outward_to_whole_pixels(tile: str, west: float, south: float, width: float, height: float) -> None:
    whole = tile_geobox(tile)
    extent = whole.geographic_extent.boundingbox
    left, bottom = extent.left + west * extent.span_x, extent.bottom + south * extent.span_y
    bbox = (left, bottom, left + width * extent.span_x, bottom + height * extent.span_y)
    asked = geom.box(*bbox, crs="EPSG:4326").to_crs(whole.crs, resolution=0.001)
    assume(whole.extent.contains(asked))  # a tile's corner does not reach the corner of its box in degrees
    grid = target_grid([item(tile)], Target(bbox=bbox))
    # odc-geo's own pixel-aligned box; ours may hold one pixel more where the edge's bulge falls between its samples.
    expected = whole.enclosing(asked)
    got, other = grid.boundingbox, expected.boundingbox
    for ours, theirs in zip(got.bbox, other.bbox, strict=True):
        assert abs(ours - theirs) <= 30
    assert (grid.transform.c - whole.transform.c) % 30 == (grid.transform.f - whole.transform.f) % 30 == 0
    assert grid.extent.buffer(1e-3).contains(asked)


def test_a_box_over_the_edge_ends_at_the_edge() -> None:
    extent = tile_geobox("15TVM").geographic_extent.boundingbox
    grid = target_grid(ONE, Target(bbox=(extent.left - 1, extent.bottom - 1, extent.right + 1, extent.top + 1)))
    assert grid == tile_geobox("15TVM")


def test_two_tiles_of_a_zone_share_a_lattice() -> None:
    grid = target_grid([item("15TVM"), item("15TWM")], Target())
    west, east = tile_geobox("15TVM"), tile_geobox("15TWM")
    assert grid.boundingbox.bbox == (399960, 5090220, 609780, 5200020)
    assert grid[:, :3660] == west
    assert grid[:, -3660:] == east


def test_parts_of_tiles_are_joined() -> None:
    parts = [item("15TVM", (slice(10, 20), slice(30, 50))), item("15TVM", (slice(15, 40), slice(0, 35)))]
    assert target_grid(parts, Target()) == tile_geobox("15TVM")[10:40, :50]


def test_two_zones_ask_for_a_crs() -> None:
    two = [item("15TXM"), item("16TCS")]
    with pytest.raises(
        GridError, match=r"EPSG:32615 \(T15TXM\) and EPSG:32616 \(T16TCS\).*choose it with crs='EPSG:32615'"
    ):
        target_grid(two, Target())
    grid = target_grid(two, Target(crs="EPSG:32615"))
    assert grid.crs.epsg == 32615
    assert (grid.transform.c % 30, grid.transform.f % 30, grid.transform.a) == (0, 0, 30)
    union = grid.extent.buffer(1)
    assert union.contains(tile_geobox("15TXM").extent)
    assert union.contains(tile_geobox("16TCS").extent.to_crs("EPSG:32615", resolution=1000))


def test_a_crs_that_does_not_reach_a_tile() -> None:
    """GOES East does not see New Zealand."""
    with pytest.raises(GridError, match=r"tile T60HUD of item '60HUD' lies where .* does not reach; leave it out"):
        target_grid([item("60HUD"), item("15TVM")], Target(crs="+proj=geos +h=35786023 +lon_0=-75 +sweep=x +units=m"))


def test_a_box_in_one_zone_does_not_ask() -> None:
    middle = tile_geobox("15TVM").geographic_extent.centroid.coords[0]
    box = (middle[0] - 0.01, middle[1] - 0.01, middle[0] + 0.01, middle[1] + 0.01)
    assert target_grid([item("15TVM"), item("16TCS")], Target(bbox=box)).crs.epsg == 32615


@settings(deadline=None)
@example(lon=-3.75, lat=-3.75)  # a quarter of the globe from the zone, where its projection turns back
@given(lon=st.floats(-179, 179), lat=st.floats(-80, 80))
def test_boxes_elsewhere_are_refused(lon: float, lat: float) -> None:
    extent = tile_geobox("15TVM").geographic_extent.boundingbox
    assume(not (extent.left - 0.2 < lon < extent.right + 0.2 and extent.bottom - 0.2 < lat < extent.top + 0.2))
    with pytest.raises(GridError, match=r"lies outside of the items' tiles \(T15TVM\), which reach from -94"):
        target_grid(ONE, Target(bbox=(lon, lat, lon + 0.1, lat + 0.1)))


@pytest.mark.parametrize(
    ("tile", "lon"),
    [("60HUD", 175.3), ("01GEL", -176.3), ("01KAB", 179.9), ("01KAB", -179.85), ("60KZF", 179.9), ("60KZF", -179.5)],
)
def test_tiles_at_the_antimeridian(tile: str, lon: float) -> None:
    """Two of these cross it; either side of them can be opened, and the other side of the world cannot."""
    lat = tile_geobox(tile).center_pixel.extent.to_crs("EPSG:4326").centroid.coords[0][1]
    grid = target_grid([item(tile)], Target(bbox=(lon - 0.02, lat - 0.02, lon + 0.02, lat + 0.02)))
    assert 100 < grid.shape[1] < 200
    with pytest.raises(GridError, match="lies outside"):
        target_grid([item(tile)], Target(bbox=(0, lat, 1, lat + 1)))


def test_bounds_are_taken_as_they_are() -> None:
    grid = target_grid(ONE, Target(bounds=(399960, 5199000, 401010, 5200020)))
    assert grid == tile_geobox("15TVM")[:34, :35]
    beyond = target_grid(ONE, Target(bounds=(399000, 5199000, 401010, 5200020)))
    assert beyond.boundingbox.left == 399000
    with pytest.raises(GridError, match="lies outside"):
        target_grid(ONE, Target(bounds=(0, 0, 300, 300)))


@pytest.mark.parametrize(
    ("crs", "resolution"), [("EPSG:5070", 70), ("EPSG:32616", 70), ("EPSG:32615", 70), ("EPSG:4326", 0.0007)]
)
def test_an_asked_lattice_is_anchored_to_its_crs(crs: str, resolution: float) -> None:
    middle = tile_geobox("15TVM").geographic_extent.centroid.coords[0]
    box = (middle[0], middle[1], middle[0] + 0.02, middle[1] + 0.03)
    grid = target_grid(ONE, Target(bbox=box, crs=crs, resolution=resolution))
    for edge in (grid.transform.c, grid.transform.f):
        assert abs(edge / resolution - round(edge / resolution)) < 1e-6
    asked = geom.box(*box, crs="EPSG:4326").to_crs(crs, resolution=0.001)
    assert grid.extent.buffer(resolution / 100).contains(asked)
    assert grid.extent.area < 1.4 * asked.boundingbox.span_x * asked.boundingbox.span_y


def test_a_crs_in_degrees_asks_for_the_resolution() -> None:
    with pytest.raises(GridError, match=r"EPSG:4326 is in degrees.*give resolution="):
        target_grid(ONE, Target(crs="EPSG:4326"))


def test_a_geobox_is_the_grid() -> None:
    box = GeoBox((10, 20), Affine(10, 0, 450_005, 0, -10, 5_150_007), "EPSG:32615")
    assert target_grid(ONE, Target(geobox=box)) is box
    far = GeoBox((10, 20), Affine(10, 0, 0, 0, -10, 0), "EPSG:32615")
    with pytest.raises(GridError, match="geobox= lies outside of the items' tiles"):
        target_grid(ONE, Target(geobox=far))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bbox": (0, 0, 1, 1), "bounds": (0, 0, 1, 1)}, "bbox= and bounds= each say where the cube lies"),
        ({"geobox": tile_geobox("15TVM"), "crs": "EPSG:4326"}, "leave crs= out"),
        ({"resolution": -30}, "must be a positive number"),
        *(
            ({"resolution": value}, re.escape(f"resolution={value!r} must be a positive number"))
            for value in (0, -30, float("nan"), float("inf"), "30", True, [30])
        ),
        ({"crs": "foo"}, "crs='foo' is no CRS that PROJ knows"),
        ({"crs": 3.5}, "crs=3.5 is no CRS that PROJ knows"),
        ({"crs": 1}, "crs=1 is no CRS that PROJ knows"),
        ({"bounds": (0, 0, 1)}, r"bounds=\(0, 0, 1\) must be four numbers"),
        ({"bounds": 5}, "bounds=5 must be four numbers"),
        ({"bounds": ("a", 0, 1, 1)}, "must be four numbers"),
        ({"bounds": (0, 0, float("inf"), 1)}, r"must be \(left, bottom, right, top\)"),
        ({"geobox": (2, 2)}, "geobox= is a tuple; give a GeoBox"),
        (
            {"geobox": GeoBox((2, 10_000_001), Affine(30, 0, 0, 0, -30, 0), "EPSG:32615")},
            r"geobox= makes an axis of 1e\+07",
        ),
        ({"bounds": (1, 0, 0, 1)}, r"must be \(left, bottom, right, top\)"),
        ({"geobox": GeoBox((2, 2), Affine(30, 0, 0, 0, 30, 0), "EPSG:32615")}, "must be north-up"),
        ({"geobox": GeoBox((2, 2), Affine(30, 0, 0, 0, -30, 0), None)}, "has no CRS"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GridError, match=message):
        Target(**options)


@pytest.mark.parametrize(
    ("bbox", "message"),
    [
        ((179, -17, -179, -16), r"crosses the antimeridian.*bbox=\(179.0, -17.0, 180.0, -16.0\) and bbox=\(-180.0"),
        ((399960, 5090220, 609780, 5200020), "in metres go to bounds="),
        ((10, 50, 11, 50), "is not .west, south, east, north"),
        ((10, 50, 10, 51), "is not .west, south, east, north"),
        ((10, 51, 11, 50), "is not .west, south, east, north"),
        ((10, 51, 11), "must be four numbers"),
        ("15TVM", "must be four numbers"),
        ((10, 50), "must be four numbers"),
        ((10, 50, float("nan"), 52), "is not .west, south, east, north"),
        ((10, float("nan"), 11, 52), "is not .west, south, east, north"),
    ],
)
def test_what_is_no_box_is_refused(bbox: Any, message: str) -> None:
    with pytest.raises(GridError, match=message):
        check_bbox(bbox)
    with pytest.raises(GridError, match=message):
        Target(bbox=bbox)


@pytest.mark.parametrize("options", [{}, {"bbox": (-94.0, 46.0, -93.0, 46.5)}, {"bounds": (4e5, 5.1e6, 5e5, 5.11e6)}])
@pytest.mark.parametrize("resolution", [1e-4, 1e-300])
def test_pixels_beyond_number_are_refused(resolution: float, options: dict[str, Any]) -> None:
    with pytest.raises(GridError, match=f"resolution={resolution} makes an axis of .* give a coarser resolution="):
        target_grid(ONE, Target(resolution=resolution, **options))


def test_where_to_search() -> None:
    assert search_box(Target()) is None
    assert search_box(Target(bbox=(1, 2, 3, 4))) == (1, 2, 3, 4)
    extent = tile_geobox("15TVM").geographic_extent.boundingbox.bbox
    assert search_box(Target(geobox=tile_geobox("15TVM"))) == pytest.approx(extent, abs=1e-3)
    bounds = tile_geobox("15TVM").boundingbox.bbox
    assert search_box(Target(bounds=bounds, crs="EPSG:32615")) == pytest.approx(extent, abs=1e-3)
    with pytest.raises(GridError, match=r"cannot be searched without their CRS; give crs="):
        search_box(Target(bounds=bounds))
