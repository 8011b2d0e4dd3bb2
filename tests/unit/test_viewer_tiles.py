"""Tiles, areas and values of the viewer, against pyproj, Pillow and plain indexing."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from PIL import Image
from pyproj import Geod, Transformer
from results import CLASSES, DEGREES, NORTH, SOUTH, result

from xgfm.errors import BandError, GridError, XgfmError
from xgfm.grid import with_grid
from xgfm.store.overviews import add_overviews
from xgfm.store.write import to_zarr
from xgfm.viewer import tiles
from xgfm.viewer.page import describe, value_at
from xgfm.viewer.sheets import sheets_of
from xgfm.viewer.tiles import Atlas, TooMuchError, tile_bounds

LAEA = GeoBox((90, 60), Affine(500.0, 0, 4_000_000.0, 0, -500.0, 3_000_000.0), "EPSG:3035")
DATES = np.array(["2024-04-03", "2024-07-02"], "datetime64[ns]")
WORLD = 2 * np.pi * 6_378_137


def decoded(png: bytes) -> np.ndarray:
    """Return (y, x, 4) colours."""
    picture = Image.open(io.BytesIO(png))
    assert picture.mode == "RGBA"
    return np.asarray(picture)


def tile_at(lon: float, lat: float, zoom: int) -> tuple[int, int]:
    """Return the tile of a place, by the formula of OpenStreetMap's wiki."""
    y = (1 - np.arcsinh(np.tan(np.radians(lat))) / np.pi) / 2
    return int((lon + 180) / 360 * 2**zoom), int(y * 2**zoom)


def places(zoom: int, x: int, y: int, box: GeoBox) -> tuple[np.ndarray, np.ndarray]:
    """Return row and column, with fractions, of the middle of each pixel of a tile."""
    side = WORLD / 2**zoom
    offsets = (np.arange(256) + 0.5) / 256 * side
    east, north = np.meshgrid(x * side - WORLD / 2 + offsets, WORLD / 2 - y * side - offsets)
    xs, ys = Transformer.from_crs(3857, box.crs.epsg, always_xy=True).transform(east, north)
    xs, ys = (np.where(np.isfinite(v), v, -1e9) for v in (xs, ys))  # where the CRS does not reach
    return (ys - box.affine.f) / box.affine.e, (xs - box.affine.c) / box.affine.a


def expected(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the class at each place, and where it is beyond doubt: GDAL places pixels to an eighth of one."""
    classes = np.full(rows.shape, 255, "uint8")
    inside = (rows >= 0) & (columns >= 0) & (rows < values.shape[0]) & (columns < values.shape[1])
    classes[inside] = values[np.floor(rows[inside]).astype(int), np.floor(columns[inside]).astype(int)]
    sure = [np.abs(v - np.round(v)) > 0.2 for v in (rows, columns)]
    return classes, sure[0] & sure[1]


def colours(classes: np.ndarray) -> np.ndarray:
    table = np.zeros((256, 4), "uint8")
    for i, each in enumerate(CLASSES):
        table[i] = (*bytes.fromhex(each.color[1:]), 255)
    return table[classes]


def atlas_of(box: GeoBox, **kwargs: Any) -> tuple[Atlas, np.ndarray]:
    mapped = result(box, **kwargs)
    return Atlas(mapped), mapped.crop_v1_0.values


@settings(max_examples=25, deadline=None)
@given(
    box=st.sampled_from([NORTH, SOUTH, DEGREES, LAEA]),
    zoom=st.integers(0, 19),
    place=st.tuples(st.floats(-0.1, 1.1), st.floats(-0.1, 1.1)),
)
def test_a_tile_has_the_colours_of_the_array(box: GeoBox, zoom: int, place: tuple[float, float]) -> None:
    atlas, values = atlas_of(box)
    west, south, east, north = box.geographic_extent.boundingbox.bbox
    x, y = tile_at(west + place[0] * (east - west), south + place[1] * (north - south), zoom)
    drawn = decoded(atlas.tile(atlas.layers["crop_v1_0"], zoom, x, y, hidden=frozenset()))
    rows, columns = places(zoom, x, y, box)
    classes, sure = expected(values, rows, columns)
    assert (drawn == colours(classes))[sure].all()


def test_tiles_are_where_web_maps_have_them() -> None:
    import morecantile

    mercator = morecantile.tms.get("WebMercatorQuad")
    for zoom, x, y in ((0, 0, 0), (3, 7, 0), (11, 512, 700), (20, 5, 2**20 - 1)):
        box = mercator.xy_bounds(morecantile.Tile(x, y, zoom))
        np.testing.assert_allclose(tile_bounds(zoom, x, y), box, rtol=0, atol=1e-6)
    for wrong in ((0, 1, 0), (3, 8, 0), (2, 0, -1), (31, 0, 0)):
        with pytest.raises(XgfmError, match="no tile"):
            tile_bounds(*wrong)


def test_hidden_classes_are_transparent_and_the_others_stay() -> None:
    atlas, _ = atlas_of(NORTH)
    layer, (x, y) = atlas.layers["crop_v1_0"], tile_at(*middle(NORTH), 13)
    whole, without = (decoded(atlas.tile(layer, 13, x, y, hidden=frozenset(h))) for h in ((), (1,)))
    wheat = (whole == (*bytes.fromhex(CLASSES[1].color[1:]), 255)).all(-1)
    assert wheat.any()
    assert (without[wheat] == 0).all()
    assert (without[~wheat] == whole[~wheat]).all()


def test_a_store_opened_with_masking_looks_the_same(tmp_path: Path) -> None:
    to_zarr(result(), tmp_path / "map.zarr")
    masked = xr.open_zarr(tmp_path / "map.zarr", decode_coords="all")
    assert masked.crop_v1_0.dtype.kind == "f"
    x, y = tile_at(*middle(NORTH), 12)
    pictures = []
    for source in (masked, tmp_path / "map.zarr"):
        atlas = Atlas(source)
        pictures.append(decoded(atlas.tile(atlas.layers["crop_v1_0"], 12, x, y, hidden=frozenset())))
    assert (pictures[0] == pictures[1]).all()
    assert pictures[0][..., 3].any()
    assert not pictures[0][..., 3].all()


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 900 x 1100 pixels with three levels above it."""
    store = tmp_path_factory.mktemp("pyramid") / "map.zarr"
    box = GeoBox((900, 1100), NORTH.affine, NORTH.crs)
    to_zarr(result(box, chunks=(256, 256), probability=True), store, chunk=128)
    add_overviews(store)
    return store


def test_low_zooms_are_read_from_overviews_and_have_their_colours(pyramid: Path) -> None:
    atlas = Atlas(pyramid)
    sheet, layer = atlas.sheets[0], atlas.layers["crop_v1_0"]
    seen = set()
    for zoom in (8, 9, 10, 11, 12, 13, 15):
        x, y = tile_at(*middle(sheet.base.geobox), zoom)
        left, bottom, right, top = tiles.project("EPSG:3857", sheet.crs, tile_bounds(zoom, x, y))
        level = sheet.fitting(min(right - left, top - bottom) / 256)
        drawn = decoded(atlas.tile(layer, zoom, x, y, hidden=frozenset()))
        classes, sure = expected(level.dataset.crop_v1_0.values, *places(zoom, x, y, level.geobox))
        assert (drawn == colours(classes))[sure].all()
        assert level.pixel <= max(30.0, WORLD / 2**zoom / 256)
        seen.add(level.pixel)
    assert seen == {30.0, 60.0, 120.0, 240.0}


def test_levels_that_are_not_listed_are_not_used(pyramid: Path) -> None:
    assert [len(s.openers) for s in sheets_of(pyramid)] == [5]
    assert len(sheets_of(xr.open_zarr(pyramid, mask_and_scale=False, decode_coords="all"))[0].openers) == 1


def test_probabilities_are_drawn_from_dark_to_bright(pyramid: Path) -> None:
    atlas = Atlas(pyramid)
    layer, (x, y) = atlas.layers["probability"], tile_at(*middle(atlas.sheets[0].base.geobox), 16)
    values = atlas.picture(layer, tile_bounds(16, x, y), (256, 256), number=2)
    drawn = decoded(atlas.tile(layer, 16, x, y, number=2, hidden=frozenset()))
    order = np.argsort(values, axis=None)
    luminance = drawn.reshape(-1, 4)[order, :3] @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(luminance) > -2).all()  # colours are rounded
    other = atlas.picture(layer, tile_bounds(16, x, y), (256, 256), number=0)
    assert (values != other).any()


def middle(box: GeoBox) -> tuple[float, float]:
    west, south, east, north = box.geographic_extent.boundingbox.bbox
    return (west + east) / 2, (south + north) / 2


# ---- without overviews


def test_a_store_without_overviews_is_read_only_as_far_as_that_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "MOST", 1024**2)
    box = GeoBox((4096, 4096), NORTH.affine, NORTH.crs)
    mapped = result(box, chunks=(512, 512))
    atlas = Atlas(mapped)
    least, native = atlas.zooms
    assert 0 < least < native
    assert "add_overviews" in describe(atlas, None)["hint"]
    for x, y in ((dx, dy) for dx in (0, 1) for dy in (0, 1)):
        at = tile_at(*middle(box), least)
        atlas.tile(atlas.layers["crop_v1_0"], least, at[0] + x, at[1] + y, hidden=frozenset())
    with pytest.raises(TooMuchError, match="zoom in"):
        atlas.tile(atlas.layers["crop_v1_0"], least - 2, *tile_at(*middle(box), least - 2), hidden=frozenset())


def test_a_small_store_without_overviews_has_no_hint() -> None:
    atlas, _ = atlas_of(NORTH)
    assert atlas.zooms[0] == 0
    assert describe(atlas, None)["hint"] == ""


# ---- several grids


def test_the_grids_of_a_native_job_make_one_map(tmp_path: Path) -> None:
    zones = {"15TVM": NORTH, "15TWM": GeoBox(NORTH.shape, NORTH.affine * Affine.translation(80, 0), NORTH.crs)}
    for tile, box in zones.items():
        result(box).to_zarr(tmp_path / "map.zarr", group=tile, zarr_format=3, mode="a")
    atlas = Atlas(tmp_path / "map.zarr")
    assert [s.name for s in atlas.sheets] == sorted(zones)
    x, y = tile_at(*middle(zones["15TWM"]), 13)
    drawn = decoded(atlas.tile(atlas.layers["crop_v1_0"], 13, x, y, hidden=frozenset()))
    found = [expected(result(box).crop_v1_0.values, *places(13, x, y, box)) for box in zones.values()]
    classes = np.where(found[0][0] != 255, found[0][0], found[1][0])
    assert (drawn == colours(classes))[found[0][1] & found[1][1]].all()
    assert "2 grids" in describe(atlas, None)["grid"]


# ---- areas


@pytest.mark.parametrize("box", [NORTH, SOUTH, DEGREES, LAEA])
def test_areas_of_a_view_are_those_of_the_ellipsoid(box: GeoBox) -> None:
    mapped = result(box)
    mapped["crop_v1_0"] = mapped.crop_v1_0.copy(data=np.ones(box.shape, "uint8"))
    west, south, east, north = box.geographic_extent.boundingbox.bbox
    lon, lat, wide, high = (west + east) / 2, (south + north) / 2, (east - west) / 5, (north - south) / 5
    view = (lon - wide, lat - high, lon + wide, lat + high)
    xs, ys = np.linspace(view[0], view[2], 200), np.linspace(view[1], view[3], 200)
    ring = [*((x, view[1]) for x in xs), *((view[2], y) for y in ys), *((x, view[3]) for x in xs[::-1]),
            *((view[0], y) for y in ys[::-1])]  # fmt: skip
    area = abs(Geod(ellps="WGS84").polygon_area_perimeter(*zip(*ring, strict=True))[0]) / 1e6
    atlas = Atlas(mapped)
    shares = atlas.areas(atlas.layers["crop_v1_0"], view)
    assert [s.share for s in shares] == [0, 1, 0]
    assert shares[1].km2 == pytest.approx(area, rel=1e-6)


def test_areas_of_classes_are_those_of_their_pixels() -> None:
    atlas, values = atlas_of(NORTH)
    shares = atlas.areas(atlas.layers["crop_v1_0"], NORTH.buffered(300).geographic_extent.boundingbox.bbox)
    for share in shares:
        # UTM has scale 0.9996 squared at the middle of the zone, where this grid is not far from.
        assert share.km2 == pytest.approx((values == share.value).sum() * 900 / 1e6, rel=0.01)
    assert sum(s.share for s in shares) == pytest.approx(1)


@pytest.mark.parametrize("box", [NORTH, SOUTH, DEGREES, LAEA])
@pytest.mark.parametrize("around", [0.01, 3.0, 15.0, 180.0])
def test_areas_do_not_depend_on_how_far_the_view_is_zoomed_out(box: GeoBox, around: float) -> None:
    atlas, values = atlas_of(box)
    west, south, east, north = box.geographic_extent.boundingbox.bbox
    view = (max(west - around, -180), max(south - around, -85), min(east + around, 180), min(north + around, 85))
    for share in atlas.areas(atlas.layers["crop_v1_0"], view):
        assert share.km2 == pytest.approx(geodesic_areas(box)[values == share.value].sum(), rel=0.01)


def geodesic_areas(box: GeoBox) -> np.ndarray:
    """Return km2 of each pixel, as quadrilaterals between their corners."""
    columns, rows = np.meshgrid(np.arange(box.shape[1] + 1), np.arange(box.shape[0] + 1))
    xs, ys = box.affine.c + columns * box.affine.a, box.affine.f + rows * box.affine.e
    lon, lat = Transformer.from_crs(box.crs.epsg, 4326, always_xy=True).transform(xs, ys)
    area = np.empty(tuple(box.shape))
    for i, j in np.ndindex(*box.shape):
        at = ([i, i, i + 1, i + 1], [j, j + 1, j + 1, j])
        area[i, j] = abs(Geod(ellps="WGS84").polygon_area_perimeter(lon[at], lat[at])[0]) / 1e6
    return area


def test_ground_of_two_grids_counts_once_and_grids_far_apart_count_both(tmp_path: Path) -> None:
    shifted = GeoBox(NORTH.shape, NORTH.affine * Affine.translation(60, 0), NORTH.crs)
    for tile, box in {"15TVM": NORTH, "15TWM": shifted, "19LAA": SOUTH}.items():
        result(box).to_zarr(tmp_path / "map.zarr", group=tile, zarr_format=3, mode="a")
    first, second, third = (result(box).crop_v1_0.values for box in (NORTH, shifted, SOUTH))
    covered = np.full(second.shape, 255, "uint8")
    covered[:, :30] = first[:, 60:]
    second = np.where(covered == 255, second, 255)
    pixel = {"north": geodesic_areas(NORTH).mean(), "south": geodesic_areas(SOUTH).mean()}
    atlas = Atlas(tmp_path / "map.zarr")
    for share in atlas.areas(atlas.layers["crop_v1_0"], (-180, -85, 180, 85)):
        north = ((first == share.value).sum() + (second == share.value).sum()) * pixel["north"]
        south = (third == share.value).sum() * pixel["south"]
        assert share.km2 == pytest.approx(north + south, rel=0.01)


# ---- values


@settings(max_examples=30, deadline=None)
@given(
    box=st.sampled_from([NORTH, SOUTH, DEGREES, LAEA]),
    pixel=st.tuples(st.integers(0, 69), st.integers(0, 59)),
    inside=st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99)),
)
def test_a_click_gives_what_the_array_holds(box: GeoBox, pixel: tuple[int, int], inside: tuple[float, float]) -> None:
    row, column = (at + part for at, part in zip(pixel, inside, strict=True))
    mapped = result(box, probability=True)
    there = Transformer.from_crs(box.crs.epsg, 4326, always_xy=True)
    lon, lat = there.transform(*(box.affine * (column, row)))
    x, y = Transformer.from_crs(4326, box.crs.epsg, always_xy=True).transform(lon, lat)
    held = mapped.sel(x=x, y=y, method="nearest")
    said = value_at(Atlas(mapped), None, lon, lat)["values"]
    expected_class = int(held.crop_v1_0)
    assert said["crop_v1_0"] == (None if expected_class == 255 else expected_class)
    if expected_class == 255:
        assert said["probability"] is None
    else:
        np.testing.assert_array_equal(said["probability"], held.probability.values)


def test_a_click_on_a_series_is_of_its_date_and_elsewhere_of_nothing() -> None:
    mapped = result(times=3)
    mapped["crop_v1_0"] = mapped.crop_v1_0 * 0 + xr.DataArray(np.array([0, 1, 2], "uint8"), dims="time")
    mapped.crop_v1_0.attrs = result().crop_v1_0.attrs
    atlas = Atlas(mapped)
    assert atlas.times() == ["2024-04-03", "2024-07-02", "2024-09-25"]
    for time in range(3):
        assert value_at(atlas, None, *middle(NORTH), time=time)["values"] == {"crop_v1_0": time}
    assert value_at(atlas, None, 10.0, 50.0)["values"] == {}


@settings(max_examples=100, deadline=None)
@given(
    box=st.sampled_from([NORTH, SOUTH, DEGREES, LAEA]),
    place=st.tuples(st.floats(-180, 180), st.floats(-90, 90))
    | st.sampled_from([(0.0, 0.0), (87.0, 0.0), (-180.0, 90.0)]),
)
def test_a_click_beside_the_map_gives_nothing_wherever_it_is(box: GeoBox, place: tuple[float, float]) -> None:
    west, south, east, north = box.geographic_extent.boundingbox.bbox
    if not (west - 1 < place[0] < east + 1 and south - 1 < place[1] < north + 1):
        assert value_at(atlas_of(box)[0], None, *place)["values"] == {}


# ---- true colours


def cube(box: GeoBox = NORTH, dtype: str = "int16") -> xr.DataArray:
    """Return a cube whose red grows to the east, with one date without data."""
    values = np.zeros((2, 4, *box.shape), dtype)
    values[:, 0] = 1000
    values[:, 1] = 1000
    values[:, 2] = np.arange(box.shape[1]) * 20
    values[1] = -9999
    array = xr.DataArray(
        da.from_array(values, chunks=(1, 1, 32, 32)),
        dims=("time", "band", "y", "x"),
        coords={"time": DATES, "band": ["blue", "green", "red", "swir16"]},
        name="hls",
        attrs={"nodata": -9999},
    )
    return with_grid(array, box)


def test_true_colours_are_drawn_from_their_bands() -> None:
    atlas = Atlas(result(), under=cube())
    assert atlas.times(under=True) == ["2024-04-03", "2024-07-02"]
    x, y = tile_at(*middle(NORTH), 14)
    first, second = (decoded(atlas.under_tile(14, x, y, time=t)) for t in (0, 1))
    inside = first[..., 3] == 255
    assert inside.any()
    red = first[128][inside[128], 0].astype(int)
    assert (np.diff(red) >= 0).all()
    assert red[-1] > red[0]
    assert not second.any()


def test_true_colours_come_from_a_store_as_well(tmp_path: Path) -> None:
    to_zarr(cube(), tmp_path / "cube.zarr")
    x, y = tile_at(*middle(NORTH), 14)
    drawn = [Atlas(result(), under=u).under_tile(14, x, y) for u in (cube(), tmp_path / "cube.zarr")]
    assert drawn[0] == drawn[1]


def test_classes_without_a_colour_get_one_and_texts_are_no_colours() -> None:
    mapped = result()
    mapped.crop_v1_0.attrs["flag_colors"] = "#112233 url(//x) #445566"
    drawn = [c.color for c in Atlas(mapped).layers["crop_v1_0"].classes]
    assert (drawn[0], drawn[2]) == ("#112233", "#445566")
    del mapped.crop_v1_0.attrs["flag_colors"]
    spare = [c.color for c in Atlas(mapped).layers["crop_v1_0"].classes]
    assert drawn[1] == spare[1]
    assert len(set(spare)) == 3


def test_a_store_of_zarr_v2_can_be_looked_at(tmp_path: Path) -> None:
    plain = result().compute()
    for variable in plain.variables.values():
        variable.encoding = {}
    plain.to_zarr(tmp_path / "old.zarr", zarr_format=2)
    assert value_at(Atlas(tmp_path / "old.zarr"), None, *middle(NORTH)) == value_at(Atlas(plain), None, *middle(NORTH))


# ---- what is refused


def test_bad_input_is_refused_with_what_mends_it(tmp_path: Path) -> None:
    with pytest.raises(XgfmError, match="no Zarr store at"):
        Atlas(tmp_path / "none.zarr")
    with pytest.raises(BandError, match="red, green, blue"):
        Atlas(result(), under=cube().isel(band=[0, 1]))
    with pytest.raises(XgfmError, match="under="):
        Atlas(cube())
    with pytest.raises(GridError, match="no CRS"):
        Atlas(xr.Dataset({"m": (("y", "x"), np.zeros((4, 4), "uint8"))}, {"y": [4.0, 3, 2, 1], "x": [1.0, 2, 3, 4]}))
