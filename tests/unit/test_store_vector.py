"""Fields of class maps: those of rasterio for the whole map, whatever the blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio.features
import shapely
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Geod, Transformer
from results import DEGREES, NORTH, SOUTH, pixels, result
from shapely.geometry import shape

from xgfm.cf import like
from xgfm.errors import GridError, LabelError, WriteError, XgfmError
from xgfm.grid import with_grid
from xgfm.store.polygons import pieces_of, pixel_areas
from xgfm.store.vector import to_vector
from xgfm.store.write import to_zarr


def class_map(values: np.ndarray, chunks: Any, confidence: np.ndarray | None = None) -> xr.Dataset:
    """A map of three classes with given pixels."""
    box = GeoBox(values.shape, NORTH.affine, NORTH.crs)
    attrs = result().crop_v1_0.attrs
    made = {"m": (("y", "x"), da.from_array(values, chunks=chunks), attrs)}
    if confidence is not None:
        made["confidence"] = (("y", "x"), da.from_array(confidence, chunks=-1), {})
    gridded = with_grid(xr.Dataset(made), box)
    return like(gridded, gridded)


def whole(values: np.ndarray, box: GeoBox) -> list[tuple[int, Any]]:
    """Rasterio's polygons of a map in one piece; a ring that touches itself is made a valid one."""
    found = rasterio.features.shapes(values, mask=values != 255, connectivity=4, transform=box.affine)
    return [(int(value), shapely.make_valid(shape(geometry))) for geometry, value in found]


def same(fields: gpd.GeoDataFrame, expected: list[tuple[int, Any]]) -> None:
    """Fail unless two sets of polygons are the same: class, number, and every one as a set of points."""
    assert len(fields) == len(expected)
    assert fields.geometry.is_valid.all()
    assert set(fields.geometry.geom_type) <= {"Polygon"}

    def ordered(pairs: Any) -> list[tuple[int, str]]:
        return sorted((value, shapely.normalize(polygon).wkt) for value, polygon in pairs)

    assert ordered(zip(fields["class"], fields.geometry, strict=True)) == ordered(expected)


def cuts(size: int) -> st.SearchStrategy[tuple[int, ...]]:
    """All ways of cutting an axis into blocks."""
    places = st.sets(st.integers(1, max(size - 1, 1)), max_size=5)
    return places.map(lambda at: tuple(np.diff([0, *sorted(p for p in at if p < size), size]).tolist()))


@st.composite
def maps(draw: st.DrawFn) -> tuple[np.ndarray, tuple[tuple[int, ...], tuple[int, ...]]]:
    rows, columns = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    seed, classes = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 3))
    values = np.random.default_rng(seed).choice([*range(classes), 255], (rows, columns)).astype("uint8")
    return values, (draw(cuts(rows)), draw(cuts(columns)))


@settings(max_examples=60, deadline=None)
@given(maps())
def test_fields_do_not_depend_on_the_blocks(tmp_path_factory: pytest.TempPathFactory, case: Any) -> None:
    values, chunks = case
    box = GeoBox(values.shape, NORTH.affine, NORTH.crs)
    confidence = np.random.default_rng(0).random(values.shape).astype("float32")
    folder = tmp_path_factory.mktemp("v")
    fields = gpd.read_parquet(to_vector(class_map(values, chunks, confidence), folder / "a.parquet"))
    same(fields, whole(values, box))
    areas = pixel_areas(box, slice(0, values.shape[0]), slice(0, values.shape[1]))
    for polygon, area, mean in zip(fields.geometry, fields["area"], fields.confidence, strict=True):
        inside = rasterio.features.geometry_mask([polygon], values.shape, box.affine, invert=True)
        assert area == pytest.approx(areas[inside].sum(), rel=1e-12)
        assert mean == pytest.approx(confidence[inside].mean(), rel=1e-5)


@pytest.mark.parametrize("pattern", ["spiral", "comb", "frame", "chessboard", "one class"])
def test_fields_that_wind_through_blocks_are_one(pattern: str, tmp_path: Path) -> None:
    values = np.zeros((48, 48), "uint8")
    if pattern == "spiral":
        for ring in range(0, 24, 2):
            values[ring, ring : 48 - ring] = values[ring : 48 - ring, 47 - ring] = 1
            values[47 - ring, ring : 48 - ring] = values[ring + 2 : 48 - ring, ring] = 1
            values[ring + 2, ring : ring + 2] = 1
    elif pattern == "comb":
        values[:, ::2], values[47] = 1, 1
    elif pattern == "frame":
        values[5:43, 5:43], values[6:42, 6:42] = 1, 0
    elif pattern == "chessboard":
        values = (np.indices((48, 48)).sum(0) % 2).astype("uint8")
    same(gpd.read_parquet(to_vector(class_map(values, (7, 5)), tmp_path / "a.parquet")), whole(values, NORTH))


def test_what_stands_in_the_file(tmp_path: Path) -> None:
    path = to_vector(result(probability=True), tmp_path / "a.parquet")
    fields = gpd.read_parquet(path)
    assert list(fields.columns) == ["class", "class_name", "area", "confidence", "geometry"]
    assert fields.crs.to_epsg() == 32615
    assert set(fields.class_name) == {"Natural Vegetation", "Winter Wheat", "Open Water"}
    geo = pq.read_schema(path).metadata[b"geo"].decode()
    assert '"version": "1.1.0"' in geo
    most = result(probability=True).probability.max("class").values
    first = fields.iloc[0]
    inside = rasterio.features.geometry_mask([first.geometry], most.shape, NORTH.affine, invert=True)
    assert first.confidence == pytest.approx(most[inside].mean(), rel=1e-5)
    assert "confidence" not in gpd.read_parquet(to_vector(result(), tmp_path / "b.parquet")).columns


@pytest.mark.parametrize("masked", [False, True])
def test_a_store_opened_again_has_the_same_fields(tmp_path: Path, masked: bool) -> None:
    store = to_zarr(result(), tmp_path / "a.zarr")
    again = xr.open_zarr(store, mask_and_scale=masked, decode_coords="all")
    same(gpd.read_parquet(to_vector(again, tmp_path / "a.parquet")), whole(pixels(NORTH.shape), NORTH))


def test_a_map_in_memory_and_one_of_one_date_are_taken(tmp_path: Path) -> None:
    same(gpd.read_parquet(to_vector(result().compute(), tmp_path / "a.parquet")), whole(pixels(NORTH.shape), NORTH))
    one = result(times=1)
    expected = whole(pixels((1, *NORTH.shape))[0], NORTH)
    same(gpd.read_parquet(to_vector(one, tmp_path / "b.parquet")), expected)


def test_classes_and_small_fields_are_left_out(tmp_path: Path) -> None:
    everything = gpd.read_parquet(to_vector(result(), tmp_path / "all.parquet"))
    for asked in (["Winter Wheat", 2], ["winter_wheat", "open_water"]):
        some = gpd.read_parquet(to_vector(result(), tmp_path / "s.parquet", classes=asked, overwrite=True))
        same(some, [(c, g) for c, g in zip(everything["class"], everything.geometry, strict=True) if c in (1, 2)])
    limit = float(everything["area"].median())
    large = gpd.read_parquet(to_vector(result(), tmp_path / "l.parquet", min_area=limit))
    assert sorted(large["area"]) == sorted(a for a in everything["area"] if a >= limit)
    assert 0 < len(large) < len(everything)


def test_a_map_without_data_gives_an_empty_file(tmp_path: Path) -> None:
    empty = np.full((20, 20), 255, "uint8")
    fields = gpd.read_parquet(to_vector(class_map(empty, 8), tmp_path / "a.parquet"))
    assert len(fields) == 0
    assert fields.crs.to_epsg() == 32615


@pytest.mark.parametrize("box", [NORTH, SOUTH, DEGREES], ids=["north", "south", "degrees"])
def test_areas_are_those_on_the_ellipsoid(box: GeoBox) -> None:
    big = GeoBox((700, 900), box.affine, box.crs)
    dense = shapely.segmentize(big.extent.geom, big.affine.a * 5)
    there = Transformer.from_crs(big.crs.proj, "EPSG:4326", always_xy=True)
    ring = shapely.transform(dense, lambda xy: np.column_stack(there.transform(xy[:, 0], xy[:, 1])))
    geodesic, _ = Geod(ellps="WGS84").geometry_area_perimeter(ring)
    found = pixel_areas(big, slice(0, 700), slice(0, 900))
    assert found.sum() == pytest.approx(abs(geodesic), rel=2e-7)
    part = pixel_areas(big, slice(130, 275), slice(60, 700))
    np.testing.assert_allclose(part, found[130:275, 60:700], rtol=1e-13)


def test_areas_outside_of_a_projection_are_refused() -> None:
    nowhere = GeoBox((10, 10), NORTH.affine.translation(1e9, 1e9) * NORTH.affine, "EPSG:5070")
    with pytest.raises(GridError, match="outside"):
        pixel_areas(nowhere, slice(0, 10), slice(0, 10))


def test_a_block_of_nodata_has_no_pieces() -> None:
    found = pieces_of(np.full((4, 6), 255, "uint8"), np.ones((4, 6)))
    assert len(found) == 0
    assert [len(edge) for edge in found.edges] == [6, 6, 4, 4]


@pytest.mark.parametrize(
    ("change", "options", "error", "said"),
    [
        (lambda r: r, {"classes": ["Corn"]}, LabelError, "Corn.*Winter Wheat"),
        (lambda r: r, {"classes": []}, LabelError, "none"),
        (lambda r: r, {"min_area": -1}, XgfmError, "min_area=-1"),
        (lambda r: r, {"variable": "probability"}, XgfmError, "no class map"),
        (lambda r: r.drop_vars("spatial_ref"), {}, GridError, "no CRS"),
        (lambda r: result(times=3), {}, WriteError, r"isel\(time=0\)"),
    ],
)
def test_bad_input_is_refused_before_anything_is_read(
    change: Any, options: Any, error: type[Exception], said: str, tmp_path: Path
) -> None:
    def refuse(block: Any) -> Any:
        raise AssertionError("read")

    made = change(result(probability=True))
    unread = made.map(
        lambda v: v.copy(data=v.data.map_blocks(refuse, dtype=v.dtype, meta=v.data._meta)), keep_attrs=True
    )
    with pytest.raises(error, match=said):
        to_vector(unread, tmp_path / "a.parquet", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.shp", "a.zarr", "s3://bucket/a.parquet"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(WriteError, match="path="):
        to_vector(result(), name)
