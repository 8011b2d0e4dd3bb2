"""Tiles of a block: every one that a pixel may be read from, whatever the CRS."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odc.geo.crs import CRS
from rasterio.warp import transform

from xgfm.errors import GridError
from xgfm.grid import TILE_PIXELS, tile_geobox
from xgfm.jobs.lattice import Area, map_area, tile_area
from xgfm.jobs.tiles import TileIndex, outline

UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""What else the machine does is not ours."""

# Round the corner of zones 14, 15 and latitude 45 N, where tiles of two zones overlap.
TILES = ("14TPQ", "14TQQ", "14TPR", "14TQR", "15TTK", "15TUK", "15TTL", "15TUL", "15TVL", "15TVK")
GRIDS = {"EPSG:5070": 30.0, "EPSG:32615": 30.0, "EPSG:32614": 20.0, "EPSG:4326": 0.0003, "EPSG:3857": 40.0}


def area_of(crs: str, block: int) -> Area:
    """An area of blocks over where the tiles meet."""
    west, south, east, north = -97.5, 44.2, -94.5, 45.6
    x, y = transform("EPSG:4326", crs, [west, east, west, east], [south, south, north, north])
    return map_area(shapely.box(min(x), min(y), max(x), max(y)), CRS(crs), GRIDS[crs], block)


AREAS = {crs: area_of(crs, 64) for crs in GRIDS}
INDICES = {crs: TileIndex(area, tuple(sorted(TILES))) for crs, area in AREAS.items()}


def holding(area: Area, rows: slice, columns: slice) -> set[str]:
    """Tiles in which some pixel's centre lies, by GDAL's own transformation of every one."""
    a, _, left, _, e, top = tuple(area.geobox.transform)[:6]
    y, x = np.meshgrid(
        top + e * (np.arange(rows.start, rows.stop) + 0.5), left + a * (np.arange(columns.start, columns.stop) + 0.5),
        indexing="ij",
    )  # fmt: skip
    found = set()
    for zone in ("14", "15"):
        xs, ys = transform(str(area.geobox.crs), f"EPSG:326{zone}", x.ravel(), y.ravel())
        for tile in (t for t in TILES if t.startswith(zone)):
            left, bottom, right, top_ = tile_geobox(tile).boundingbox.bbox
            inside = (np.array(xs) > left) & (np.array(xs) < right) & (np.array(ys) > bottom) & (np.array(ys) < top_)
            if inside.any():
                found.add(tile)
    return found


@settings(UNTIMED, max_examples=60)
@given(st.sampled_from(sorted(GRIDS)), st.integers(0, 10_000), st.integers(0, 10_000), st.integers(0, 40))
def test_every_pixel_of_a_block_and_its_halo_finds_its_tiles(crs: str, row: int, column: int, halo: int) -> None:
    area = AREAS[crs]
    block = area.at(row % area.shape[0], column % area.shape[1])
    rows, columns = (
        slice(max(s.start - halo, 0), min(s.stop + halo, n))
        for s, n in zip((block.rows, block.columns), area.geobox.shape, strict=True)
    )
    found = INDICES[crs].of(shapely.box(*area.geobox[rows, columns].boundingbox.bbox))
    assert holding(area, rows, columns) <= set(found)
    assert list(found) == sorted(found)


def test_the_tiles_do_meet_here() -> None:
    """Else the property above would hold of nothing."""
    area = AREAS["EPSG:5070"]
    counts = [
        len(INDICES["EPSG:5070"].of(shapely.box(*area.geobox[b.rows, b.columns].boundingbox.bbox)))
        for b in (area.at(r, c) for r, c in product(range(0, area.shape[0], 5), range(0, area.shape[1], 5)))
    ]
    assert max(counts) >= 4
    assert min(counts) <= 1


def test_a_tile_far_away_is_not_found() -> None:
    area = AREAS["EPSG:5070"]
    box = shapely.box(*area.geobox[0:64, 0:64].boundingbox.bbox)
    near = set(INDICES["EPSG:5070"].of(box.buffer(30 * 5)))
    assert near < set(TILES)


def test_pairs_are_what_is_found_one_by_one() -> None:
    area, index = AREAS["EPSG:32615"], INDICES["EPSG:32615"]
    rows, columns = (each.ravel()[::7] for each in np.indices(area.shape))
    found: dict[int, list[str]] = {i: [] for i in range(len(rows))}
    for block, tile in index.pairs(rows, columns, 9):
        for b, t in zip(block.tolist(), tile.tolist(), strict=True):
            found[b].append(index.tiles[t])
    for i, box in enumerate(area.boxes(rows, columns, halo=9)):
        assert tuple(found[i]) == index.of(box)


def test_dates_of_blocks_are_those_of_any_tile() -> None:
    area, index = AREAS["EPSG:5070"], INDICES["EPSG:5070"]
    rows, columns = (each.ravel()[::11] for each in np.indices(area.shape))
    dates = np.random.default_rng(0).random((len(TILES), 5)) < 0.3
    has_tile, there = index.dates(rows, columns, dates)
    for i, box in enumerate(area.boxes(rows, columns)):
        tiles = [index.tiles.index(t) for t in index.of(box)]
        assert has_tile[i] == bool(tiles)
        assert (there[i] == dates[tiles].any(axis=0)).all()


def test_on_its_own_lattice_a_tile_is_as_large_as_it_is() -> None:
    assert outline("15TVM", tile_area("15TVM", 512)).bounds == tile_geobox("15TVM").boundingbox.bbox
    bent = outline("15TUL", AREAS["EPSG:5070"], reach=False)
    assert len(bent.exterior.coords) > 100
    assert bent.area == pytest.approx((TILE_PIXELS * 30) ** 2, rel=2e-3)  # Albers keeps areas, UTM nearly
    assert outline("15TUL", AREAS["EPSG:5070"]).contains(bent)


def test_a_crs_that_does_not_reach_a_tile_is_refused() -> None:
    polar = Area("map", "", area_of("EPSG:3857", 64).geobox, 64)
    gnomonic = CRS("+proj=gnom +lat_0=45 +lon_0=-96 +datum=WGS84")
    area = map_area(shapely.box(0, 0, 1000, 1000), gnomonic, 30, 32)
    assert outline("15TUL", polar).is_valid
    with pytest.raises(GridError, match=r"T55HFA lies where .* does not reach; choose another crs"):
        outline("55HFA", area)
