"""Areas and blocks: whole, apart, anchored; and what each reads."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from xgfm.errors import GridError, JobError
from xgfm.grid import tile_geobox
from xgfm.jobs.lattice import Area, axis_reads, map_area, tile_area
from xgfm.windows import AxisPlan

UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""What else the machine does is not ours."""

ALBERS = CRS("EPSG:5070")


@st.composite
def boxes(draw: st.DrawFn, side: float = 3e5) -> shapely.Polygon:
    left, bottom = draw(st.floats(-2e6, 2e6)), draw(st.floats(3e5, 3e6))
    return shapely.box(left, bottom, left + draw(st.floats(1, side)), bottom + draw(st.floats(1, side)))


@st.composite
def areas(draw: st.DrawFn) -> Area:
    if draw(st.booleans()):
        return tile_area("15TVM", draw(st.integers(100, 4000)))
    return map_area(draw(boxes(5e4)), ALBERS, draw(st.sampled_from([30.0, 100.0, 0.7e3])), draw(st.integers(16, 200)))


@settings(UNTIMED)
@given(areas())
def test_blocks_partition_an_area_exactly(area: Area) -> None:
    assume(np.prod(area.geobox.shape) < 4_000_000)
    times = np.zeros(area.geobox.shape, "uint8")
    for row in range(area.shape[0]):
        for column in range(area.shape[1]):
            block = area.at(row, column)
            times[block.rows, block.columns] += 1
            assert times[block.rows, block.columns].shape == block.shape
            assert max(block.shape) <= area.block
    assert (times == 1).all()


@settings(UNTIMED)
@given(boxes(), boxes(), st.sampled_from([30.0, 10.0, 250.0]), st.integers(16, 2048))
def test_two_jobs_share_the_lattice(one: shapely.Polygon, other: shapely.Polygon, side: float, block: int) -> None:
    first, second = (map_area(each, ALBERS, side, block) for each in (one, other))
    for area, box in ((first, one), (second, other)):
        left, bottom, right, top = area.geobox.boundingbox.bbox
        for edge in (left, bottom, right, top):
            assert edge / (side * block) == pytest.approx(round(edge / (side * block)), abs=1e-9)
        assert shapely.box(left, bottom, right, top).buffer(1e-5 * side).covers(box)
        # No row or column of blocks is there in vain.
        assert box.bounds[0] - left < side * block
        assert right - box.bounds[2] < side * block
        assert box.bounds[1] - bottom < side * block
        assert top - box.bounds[3] < side * block
    # A block's place in the one is its place in the other, moved by whole blocks; so its pixels are the same.
    rows = (second.geobox.transform.f - first.geobox.transform.f) / (side * block)
    columns = (first.geobox.transform.c - second.geobox.transform.c) / (side * block)
    assert rows == pytest.approx(round(rows), abs=1e-9)
    assert columns == pytest.approx(round(columns), abs=1e-9)


def test_a_block_is_the_same_in_a_county_and_in_a_country() -> None:
    county, country = shapely.box(10_000, 2e6, 90_000, 2.1e6), shapely.box(-1e6, 1e6, 1e6, 2.5e6)
    small, large = (map_area(each, ALBERS, 30, 512) for each in (county, country))
    block = small.at(1, 2)
    grid = small.geobox[block.rows, block.columns]
    found = [
        large.geobox[b.rows, b.columns]
        for b in (large.at(r, c) for r in range(large.shape[0]) for c in range(large.shape[1]))
    ]
    assert sum(grid == each for each in found) == 1


@st.composite
def polygons(draw: st.DrawFn) -> shapely.Geometry:
    """Stars with holes, and boxes whose edges lie on those of blocks."""
    if draw(st.booleans()):
        left, top = draw(st.integers(-4, 4)) * 3000, draw(st.integers(300, 304)) * 3000
        return shapely.box(left, top - draw(st.integers(1, 4)) * 3000, left + draw(st.integers(1, 4)) * 3000, top)
    angles = np.linspace(0, 2 * np.pi, draw(st.integers(3, 9)), endpoint=False)
    radii = np.array([draw(st.floats(2000, 20_000)) for _ in angles])
    ring = np.column_stack([radii * np.cos(angles), 9e5 + radii * np.sin(angles)])
    hole = shapely.Polygon(np.column_stack([radii * np.cos(angles) * 0.7, 9e5 + radii * np.sin(angles) * 0.7]))
    star = shapely.Polygon(ring)
    return shapely.difference(star, hole) if draw(st.booleans()) else star


@settings(UNTIMED)
@given(polygons())
def test_blocks_of_a_region_are_those_that_share_area_with_it(region: shapely.Geometry) -> None:
    assume(region.is_valid and region.area > 1)
    area = map_area(region, ALBERS, 30.0, 100)
    touched = area.touched_by(region)
    for row, column in np.ndindex(*area.shape):
        block = area.at(row, column)
        shared = region.intersection(shapely.box(*area.geobox[block.rows, block.columns].boundingbox.bbox)).area
        if shared > 1:  # square metres; less is an edge that misses the lattice by rounding
            assert touched[row, column]
        if shared == 0:
            assert not touched[row, column]


def test_a_block_in_a_hole_is_outside() -> None:
    ring = shapely.Polygon(
        shapely.box(0, 0, 30_000, 30_000).exterior, [shapely.box(5000, 5000, 25_000, 25_000).exterior]
    )
    touched = map_area(ring, ALBERS, 30, 100).touched_by(ring)
    assert touched.shape == (10, 10)
    assert touched.sum() == 100 - 36
    assert not touched[2:8, 2:8].any()


@st.composite
def axes(draw: st.DrawFn) -> tuple[AxisPlan, int]:
    window = draw(st.integers(1, 40))
    halo = draw(st.integers(0, (window - 1) // 2))
    axis = AxisPlan(draw(st.integers(1, 300)), draw(st.integers(-1000, 1000)), window, halo, draw(st.booleans()))
    return axis, draw(st.integers(1, 120))


def seen(axis: AxisPlan, pixel: int) -> set[int]:
    """Where the windows start that a pixel takes something from."""
    if axis.blend:
        return {w.start for w in axis.windows() if w.start <= pixel < w.start + axis.window}
    return {w.start for w in axis.windows() if w.inner_start <= pixel < w.inner_stop}


@settings(UNTIMED)
@given(axes())
def test_a_crop_of_what_a_block_reads_has_the_areas_windows(given_: tuple[AxisPlan, int]) -> None:
    axis, block = given_
    reads = axis_reads(axis, block)
    assert len(reads) == -(-axis.size // block)
    for start, read in zip(range(0, axis.size, block), reads, strict=True):
        stop = min(start + block, axis.size)
        assert 0 <= read.start <= start
        assert stop <= read.stop <= axis.size
        crop = AxisPlan(read.stop - read.start, axis.origin + read.start, axis.window, axis.halo, axis.blend)
        assert len(crop.windows()) == read.windows
        for pixel in range(start, stop):
            assert {s + read.start for s in seen(crop, pixel - read.start)} == seen(axis, pixel)


def test_ids_and_places() -> None:
    area = tile_area("15TVM", 2048)
    assert area.geobox == tile_geobox("15TVM")
    assert area.shape == (2, 2)
    assert area.at(0, 1).id == "15TVM-r0000-c0001"
    assert area.at(1, 1).shape == (1612, 1612)
    with pytest.raises(JobError, match="2 x 2 blocks and none at 2, 0"):
        area.at(2, 0)


def test_a_resolution_in_the_wrong_units_is_refused() -> None:
    with pytest.raises(GridError, match="coarser resolution or a larger block"):
        map_area(shapely.box(-2e6, 1e6, 2e6, 3e6), ALBERS, 0.0003, 512)


def test_boxes_of_blocks_are_their_grids() -> None:
    area = Area("map", "", GeoBox.from_bbox((0, 0, 700, 500), "EPSG:32615", resolution=10), 30)
    rows, columns = (each.ravel() for each in np.indices(area.shape))
    for halo in (0, 7):
        for row, column, box in zip(rows, columns, area.boxes(rows, columns, halo=halo), strict=True):
            block = area.at(int(row), int(column))
            own = area.geobox[
                max(block.rows.start - halo, 0) : min(block.rows.stop + halo, area.geobox.shape[0]),
                max(block.columns.start - halo, 0) : min(block.columns.stop + halo, area.geobox.shape[1]),
            ]
            assert box.bounds == pytest.approx(own.boundingbox.bbox, abs=2e-5)
