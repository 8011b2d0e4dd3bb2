"""Ground that several maps cover counts once: tiles of one zone, of two zones, and parts of tiles."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import shapely
import xarray as xr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from mgrs import MGRS
from odc.geo.geobox import GeoBox
from pyproj import Geod, Transformer
from results import spec

from xgfm import cf
from xgfm.climate.fractions import cell_sums, computed, to_climate
from xgfm.climate.ownership import claims_of, overlap, tile_names, utm_zone
from xgfm.climate.sums import CellSums
from xgfm.errors import GridError
from xgfm.grid import geobox_of, tile_geobox, with_grid

WEST, EAST = tile_geobox("15TVG"), tile_geobox("15TWG")
"""Neighbours in one zone: 326 columns of them are the same ground."""


def covers(box: GeoBox) -> np.ndarray:
    """Return three classes that depend on where a pixel of zone 15 lies, not on whose tile it is."""
    column = np.rint(box.transform.c / 30) + np.arange(box.shape[1])
    row = np.rint(box.transform.f / 30) - np.arange(box.shape[0])
    x, y = np.meshgrid(column // 11, row // 11)
    codes = ((x * 7 + y * 13) % 3).astype("uint8")
    codes[(x + 3 * y) % 23 == 0] = 255
    return codes


def class_map(box: GeoBox, codes: np.ndarray | None = None, **attrs: Any) -> xr.Dataset:
    values = covers(box) if codes is None else codes
    made = with_grid(xr.Dataset({"crop_v1_0": (("y", "x"), da.from_array(values, chunks=512))}), box)
    return cf.like(made, made, spec(), attrs)


def sums_of(*args: Any, **kwargs: Any) -> CellSums:
    return computed(cell_sums(*args, **kwargs))


def assert_same(found: CellSums, expected: CellSums) -> None:
    np.testing.assert_array_equal(found.count, expected.count)
    np.testing.assert_allclose(found.area, expected.area, rtol=1e-6, atol=1e-3)
    np.testing.assert_allclose(found.seen_area, expected.seen_area, rtol=1e-6, atol=1e-3)


def parts(rows: slice = slice(1000, 1300)) -> tuple[dict[str, xr.Dataset], xr.Dataset]:
    """Return the neighbours' own parts of a strip, 700 columns each, and the same ground in one map."""
    west, east = WEST[rows, 2960:], EAST[rows, :700]
    right = east.boundingbox.right
    whole = GeoBox((west.shape[0], round((right - west.boundingbox.left) / 30)), west.transform, west.crs)
    return {"15TVG": class_map(west), "15TWG": class_map(east)}, class_map(whole)


def test_two_tiles_of_a_zone_add_up_to_the_ground_that_they_cover() -> None:
    tiles, whole = parts()
    assert overlap(*(geobox_of(t) for t in tiles.values()))
    expected = sums_of(whole, "0.02deg")
    for order in permutations(tiles):
        assert_same(sums_of({name: tiles[name] for name in order}, "0.02deg"), expected)
    assert_same(sums_of(list(tiles.values()), "0.02deg", tiles=list(tiles)), expected)
    named = [made.assign_attrs(tile=f"T{name}") for name, made in tiles.items()]
    assert_same(sums_of(named, "0.02deg"), expected)
    alone = [sums_of(made, "0.02deg").seen_area.sum() for made in tiles.values()]
    assert sum(alone) > 1.3 * expected.seen_area.sum()


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_any_windows_of_tiles_add_up_to_the_ground_that_they_cover(data: st.DataObject) -> None:
    """Also where a window ends before its tile's own square does: then another tile counts there."""
    corner = tile_geobox("15TWH")
    names = {"15TVG": WEST, "15TWG": EAST, "15TVH": tile_geobox("15TVH"), "15TWH": corner}
    left, top = int(corner.transform.c // 30), int(EAST.transform.f // 30)
    ground = np.zeros((240, 240), bool)
    maps = {}
    for name, box in names.items():
        across, down = (
            sorted(data.draw(st.lists(st.integers(0, 240), min_size=2, max_size=2, unique=True))) for _ in "ab"
        )
        column, row = left - round(box.transform.c / 30), round(box.transform.f / 30) - top
        columns = [min(max(a + column + 100, 0), 3660) for a in across]
        rows = [min(max(d + row + 100, 0), 3660) for d in down]
        if columns[0] >= columns[1] or rows[0] >= rows[1]:
            continue
        maps[name] = class_map(box[rows[0] : rows[1], columns[0] : columns[1]])
        ground[rows[0] - row - 100 : rows[1] - row - 100, columns[0] - column - 100 : columns[1] - column - 100] = True
    if not maps:
        return
    transform = Affine(30, 0, (left + 100) * 30, 0, -30, (top - 100) * 30)
    box = GeoBox((240, 240), transform, WEST.crs)
    codes = covers(box)
    found = sums_of(maps, "0.02deg")
    for number in range(3):
        assert found.count[number].sum() == ((codes == number) & ground).sum()


def test_two_tiles_across_a_zone_border_count_once() -> None:
    """Tiles of zones 15 and 16 whose grids lie across each other by 4 degrees, at 90 W."""
    east, west = tile_geobox("16TBM")[1200:2100, 900:2300], tile_geobox("15TYG")[1300:2200, 1000:2600]
    assert overlap(west, east)
    constant = [class_map(box, np.ones(box.shape, "uint8")) for box in (west, east)]
    sums = sums_of({"15TYG": constant[0], "16TBM": constant[1]}, "0.05deg")
    outlines = []
    for box in (west, east):
        ring = shapely.get_coordinates(shapely.segmentize(shapely.box(*box.boundingbox.bbox), 300))
        lon, lat = Transformer.from_crs(str(box.crs), "EPSG:4326", always_xy=True).transform(*ring.T)
        outlines.append(shapely.Polygon(np.stack([lon, lat], axis=1)))
    both = shapely.segmentize(outlines[0].union(outlines[1]), 0.002)
    expected = abs(Geod(ellps="WGS84").geometry_area_perimeter(both)[0])
    assert sums.area.sum() == pytest.approx(expected, rel=1e-6)
    assert sum(o.area for o in outlines) > 1.2 * both.area
    assert (sums.seen_area[0] / sums.cell_area).max() < 1.001


def test_classes_across_a_zone_border_do_not_change_sides() -> None:
    """Each ground counts from the tile of the zone of its longitude."""
    east, west = tile_geobox("16TBM")[1200:1700, 900:2300], tile_geobox("15TYG")[1300:1800, 1000:2600]
    maps = {
        "15TYG": class_map(west, np.zeros(west.shape, "uint8")),
        "16TBM": class_map(east, np.ones(east.shape, "uint8")),
    }
    frame = GeoBox((20, 40), Affine(0.05, 0, -91, 0, -0.05, 42.5), "EPSG:4326")
    sums = sums_of(maps, frame)
    whole = {name: sums_of(made, frame) for name, made in maps.items()}
    covered = [
        xr.DataArray(
            s.seen_area[0] / s.cell_area,
            dims=("lat", "lon"),
            coords={"lat": s.grid.lat.round(4), "lon": s.grid.lon.round(4)},
        )
        for s in (sums, *whole.values())
    ]
    _, *alone = xr.align(*covered, join="left", fill_value=0.0)
    both = np.min(alone, axis=0) > 0.99
    first, second = sums.area[0, 0][both], sums.area[1, 0][both]
    beyond = np.broadcast_to(sums.grid.lon > -90, both.shape)[both]
    assert beyond.any()
    assert not beyond.all()
    np.testing.assert_array_equal(first[beyond], 0)
    np.testing.assert_array_equal(second[~beyond], 0)


def test_store_with_a_map_for_each_tile_counts_ground_once(tmp_path: Path) -> None:
    """As jobs on the tiles' own grids write them."""
    tiles, whole = parts(slice(1000, 1100))
    for name, made in tiles.items():
        made.chunk(100).drop_encoding().to_zarr(tmp_path / "map.zarr", group=name, zarr_format=3)
    assert_same(sums_of(tmp_path / "map.zarr", "0.02deg"), sums_of(whole, "0.02deg"))


def test_one_tile_counts_whole() -> None:
    made = class_map(WEST[:200, :200])
    assert_same(sums_of(made, tiles=["15TVG"]), sums_of(made))


@settings(max_examples=200, deadline=None)
@given(st.integers(-1800, 1799), st.integers(-799, 838))
def test_zones_are_those_of_mgrs(tenth: int, up: int) -> None:
    lon, lat = tenth / 10 + 0.05, up / 10 + 0.05  # the library rounds at borders
    assert int(utm_zone(np.array(lon), np.array(lat))) == int(MGRS().toMGRS(lat, lon, MGRSPrecision=0)[:-3])


@pytest.mark.parametrize("tile", ["15TVG", "16TBM", "19LCH", "33XWH"])
def test_own_squares_are_those_of_mgrs(tile: str) -> None:
    box = tile_geobox(tile)
    rng = np.random.default_rng(0)
    row, column = rng.uniform(0, 3660, (2, 300))
    x, y = box.transform * (column, row)
    lon, lat = Transformer.from_crs(str(box.crs), "EPSG:4326", always_xy=True).transform(x, y)
    claim = claims_of({tile: box}, {tile: tile})[tile].mine
    held = claim.holds({claim.crs: np.stack([x, y]), claim.square_crs: np.stack([x, y])}, utm_zone(lon, lat))
    squares = [MGRS().toMGRS(b, a, MGRSPrecision=0) for a, b in zip(lon, lat, strict=True)]
    # The band letter changes inside a square: zone and square letters decide.
    expected = [s[:-3].zfill(2) + s[-2:] == tile[:2] + tile[3:] for s in squares]
    np.testing.assert_array_equal(held, expected)


def test_overlapping_maps_without_tiles_are_refused() -> None:
    tiles, _ = parts()
    maps = {"a": tiles["15TVG"], "b": tiles["15TWG"]}
    with pytest.raises(GridError, match=r"'a' and 'b' cover the same ground.*tiles=.*stack_maps"):
        to_climate(maps)
    with pytest.raises(GridError, match="cover the same ground"):
        to_climate([tiles["15TVG"], tiles["15TVG"].isel(x=slice(0, 100))])
    with pytest.raises(GridError, match="both of tile 15TVG"):
        to_climate(maps, tiles={"a": "T15TVG", "b": "15TVG"})
    with pytest.raises(GridError, match="names 1 tiles for 2 maps"):
        to_climate(maps, tiles=["15TVG"])
    with pytest.raises(GridError, match=r"names \['c'\], which are no maps"):
        to_climate(maps, tiles={"c": "15TVG"})
    with pytest.raises(GridError, match="not an MGRS tile id"):
        to_climate(maps, tiles={"a": "north", "b": "15TVG"})


def test_maps_beside_each_other_need_no_tiles() -> None:
    _, whole = parts()
    cut = [whole.isel(x=slice(0, 411)), whole.isel(x=slice(411, None))]
    assert_same(sums_of(cut, "0.02deg"), sums_of(whole, "0.02deg"))


def test_tiles_are_named_by_argument_attribute_or_key() -> None:
    tiles, _ = parts()
    made = tiles["15TVG"]
    assert tile_names({"T15TVG": made}, None) == {"T15TVG": "15TVG"}
    assert tile_names({"a": made.assign_attrs(tile="15TWG")}, None) == {"a": "15TWG"}
    assert tile_names({"15TVG": made}, {"15TVG": "15TWG"}) == {"15TVG": "15TWG"}
    assert tile_names({"a": made}, "15TVG") == {"a": "15TVG"}
    assert tile_names({"a": made}, None) == {"a": None}
