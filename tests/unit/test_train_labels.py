from __future__ import annotations

import warnings
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import toys
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from xgfm.errors import GridError, LabelError
from xgfm.grid import geobox_of
from xgfm.train.labels.labels import labels
from xgfm.train.labels.legend import Legend, classes_of
from xgfm.train.labels.order import LabelWarning

BOX = toys.geobox(40, 50)
LAZY = toys.cube(chunks=(1, 6, 16, 16))
CUBE = LAZY.compute()
LEFT, BOTTOM, RIGHT, TOP = BOX.boundingbox.bbox


def at(column: float, row: float) -> tuple[float, float]:
    """Coordinates of a place given in pixels from the upper left corner."""
    return LEFT + 30 * column, TOP - 30 * row


def rectangle(left: float, top: float, right: float, bottom: float) -> shapely.Polygon:
    return shapely.box(*at(left, bottom), *at(right, top))


def frame(*rows: tuple[object, shapely.Geometry], crs: object = "EPSG:32615", **columns: object) -> gpd.GeoDataFrame:
    values, shapes = zip(*rows, strict=True)
    return gpd.GeoDataFrame({"crop": list(values), **columns, "geometry": list(shapes)}, crs=crs)


FIELDS = frame(
    ("corn", rectangle(2, 3, 12, 20)), ("wheat", rectangle(8, 10, 30, 25)), ("corn", shapely.Point(at(45.5, 35.5)))
)

places = st.tuples(st.floats(-10, 60), st.floats(-10, 50))
shapes = st.one_of(
    st.lists(places, min_size=3, max_size=6).map(lambda p: shapely.Polygon([at(*q) for q in p]).buffer(0)),
    st.lists(places, min_size=2, max_size=5, unique=True).map(lambda p: shapely.LineString([at(*q) for q in p])),
    places.map(lambda p: shapely.Point(at(*p))),
).filter(lambda s: s.is_valid and not s.is_empty)


def centres(box: GeoBox) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.meshgrid(np.arange(box.shape[0]) + 0.5, np.arange(box.shape[1]) + 0.5, indexing="ij")
    return LEFT + 30 * columns, TOP - 30 * rows


# ---- shapes


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abc"), shapes), min_size=1, max_size=5))
def test_a_pixel_has_the_class_of_the_last_polygon_that_holds_its_centre(rows) -> None:
    rows = [(c, s) for c, s in rows if s.geom_type == "Polygon"] + [("a", rectangle(20, 20, 22, 22))]
    legend = ["a", "b", "c"]
    found = labels(frame(*rows), CUBE, legend={n: n for n in legend}).values
    expected = np.full(BOX.shape, 255)
    x, y = centres(BOX)
    unsure = np.zeros(BOX.shape, bool)
    points = shapely.points(x, y)
    for name, shape in rows:  # GEOS is the oracle of GDAL
        expected[shapely.contains_xy(shape, x, y)] = legend.index(name)
        unsure |= shapely.distance(shape.boundary, points) < 1e-6
    np.testing.assert_array_equal(found[~unsure], expected[~unsure])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), shapes), min_size=1, max_size=5),
    st.integers(7, 60),
    st.integers(7, 60),
    st.booleans(),
)
def test_blocks_are_pieces_of_the_whole(rows, high: int, wide: int, all_touched: bool) -> None:
    rows = [*rows, ("b", rectangle(20, 20, 22, 22))]
    options = {"legend": {n: n for n in "abc"}, "all_touched": all_touched}
    whole = labels(frame(*rows), CUBE, **options)
    pieces = labels(frame(*rows), CUBE.chunk(y=high, x=wide), **options)
    assert pieces.chunksizes == CUBE.chunk(y=high, x=wide).isel(time=0, band=0).chunksizes
    # GDAL is free where a shape meets a pixel only along its edge or at its corner.
    sure = ~edges([shape for _, shape in rows]) if all_touched else np.ones(BOX.shape, bool)
    np.testing.assert_array_equal(pieces.values[sure], whole.values[sure])


def edges(found: list[shapely.Geometry]) -> np.ndarray:
    """Return which pixels a shape meets only along their edges."""
    x, y = centres(BOX)
    wide, narrow = (shapely.box(x - r, y - r, x + r, y + r) for r in (15 + 1e-3, 15 - 1e-3))
    return np.any([shapely.intersects(s, wide) & ~shapely.intersects(s, narrow) for s in found], axis=0)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("ab"), shapes), min_size=1, max_size=4))
def test_all_touched_adds_pixels_that_a_polygon_reaches(rows) -> None:
    rows = [(c, s) for c, s in rows if s.geom_type == "Polygon"] + [("a", rectangle(20.2, 20.2, 22.7, 22.7))]
    plain, touched = (labels(frame(*rows), CUBE, all_touched=t).values != 255 for t in (False, True))
    assert (touched | ~plain).all()
    x, y = centres(BOX)
    pixels = shapely.box(x - 15, y - 15, x + 15, y + 15)
    reached = np.any([shapely.intersects(shape.buffer(1e-6), pixels) for _, shape in rows], axis=0)
    inside = np.any([shapely.area(shapely.intersection(shape, pixels)) > 0.5 for _, shape in rows], axis=0)
    assert not (touched & ~reached).any()
    assert not (inside & ~touched).any()


def test_labels_lie_on_the_grid_of_the_cube_and_say_what_they_are() -> None:
    found = labels(FIELDS, LAZY)
    assert geobox_of(found) == geobox_of(LAZY)
    assert (found.name, found.dtype, found.dims) == ("label", "uint8", ("y", "x"))
    assert [c.name for c in classes_of(found)] == ["corn", "wheat"]
    assert found.attrs["flag_values"] == [0, 1]
    assert found.encoding["_FillValue"] == 255
    assert found.encoding["grid_mapping"] == "spatial_ref"
    counts = dict(zip(*np.unique(found.values, return_counts=True), strict=True))
    assert counts == {0: 10 * 17 - 4 * 10 + 1, 1: 22 * 15, 255: 2000 - 130 - 1 - 330}


def test_labels_go_through_netcdf_and_zarr(tmp_path: Path) -> None:
    found = labels(FIELDS, LAZY)
    found.to_netcdf(tmp_path / "labels.nc")
    found.to_zarr(tmp_path / "labels.zarr")
    for back in (
        xr.open_dataarray(tmp_path / "labels.nc", decode_coords="all", mask_and_scale=False),
        xr.open_dataset(tmp_path / "labels.zarr", engine="zarr", decode_coords="all", mask_and_scale=False)["label"],
    ):
        np.testing.assert_array_equal(back.values, found.values)
        assert classes_of(back) == classes_of(found)
        np.testing.assert_array_equal(labels(back, CUBE).values, found.values)


def test_nothing_is_drawn_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from xgfm.train.labels import grid as label_grid

    drawn = []
    monkeypatch.setattr(
        label_grid.BurnedPart, "read", lambda self: drawn.append(self) or np.zeros(self.geobox.shape, "uint8")
    )
    found = labels(FIELDS, LAZY)
    assert not drawn
    found[:16, :16].compute()
    # One block, with the two fields that reach into it.
    assert [len(part.geometry) for part in drawn] == [2]


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32614", "EPSG:3857", "EPSG:3035"])
def test_shapes_of_another_crs_lie_in_the_same_place(crs: str) -> None:
    # Fields a hundredth of a pixel larger: what projecting moves is less than that.
    fields = FIELDS.assign(geometry=FIELDS.buffer(0.3))
    np.testing.assert_array_equal(labels(fields.to_crs(crs), CUBE).values, labels(fields, CUBE).values)


def test_long_edges_are_bent() -> None:
    parallel = shapely.LineString([(-120, 43.2), (-70, 43.2)])  # a parallel is no straight line in UTM
    box = GeoBox.from_bbox((499_000, 4_780_000, 520_000, 4_790_000), "EPSG:32615", resolution=30)
    found = labels(frame(("road", parallel.buffer(0.001)), crs=4326), toys.cube(box=box))
    lat = xr.apply_ufunc(lambda x, y: box.crs.proj and _lat(box, x, y), found.x, found.y, vectorize=False).T
    assert np.abs(lat.values[found.values == 0] - 43.2).max() < 0.0012


def _lat(box: GeoBox, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    from pyproj import Transformer

    return Transformer.from_crs(box.crs.proj, 4326, always_xy=True).transform(*np.broadcast_arrays(x, y))[1]


def test_a_buffer_is_in_metres_on_the_ground_in_any_crs() -> None:
    degrees = GeoBox.from_bbox((-93.02, 59.98, -92.98, 60.02), "EPSG:4326", resolution=0.0002)
    centre = gpd.GeoSeries([shapely.Point(-93.0, 60.0)], crs=4326)
    point = frame(("a", centre.iloc[0]), crs=4326)
    found = labels(point, toys.cube(box=degrees), buffer=500.0).values == 0
    high, wide = found.any(axis=1).sum() * 0.0002, found.any(axis=0).sum() * 0.0002
    assert high * 111_412 == pytest.approx(1000, abs=40)
    assert wide * 55_800 == pytest.approx(1000, abs=40)
    shrunk = labels(frame(("a", rectangle(10, 10, 20, 20))), CUBE, buffer=-30.0).values == 0
    assert shrunk.sum() == 64


# ---- classes


def test_without_a_legend_the_values_of_the_whole_file_are_the_classes() -> None:
    far = frame(("beet", shapely.Point(at(5000, 5000))), ("oats", rectangle(1, 1, 5, 5)))
    assert [c.name for c in classes_of(labels(far, CUBE))] == ["beet", "oats"]
    numbers = frame((10, rectangle(1, 1, 5, 5)), (9, rectangle(6, 6, 8, 8)))
    found = labels(numbers, CUBE)
    assert [c.name for c in classes_of(found)] == ["9", "10"]
    assert found.values[2, 2] == 1


def test_a_legend_decides_on_classes_and_none_takes_labels_away() -> None:
    fields = frame(
        ("corn", rectangle(0, 0, 20, 20)), ("cloud", rectangle(5, 5, 10, 10)), ("soy", rectangle(30, 30, 40, 40))
    )
    legend = Legend.of({"soy": "Soybeans", "corn": "Corn", "cloud": None, "rice": "Rice"})
    found = labels(fields, CUBE, legend=legend)
    assert [c.name for c in classes_of(found)] == ["Soybeans", "Corn", "Rice"]
    assert (found.values[1, 1], found.values[7, 7], found.values[35, 35]) == (1, 255, 0)
    merged = labels(fields, CUBE, legend=legend.merge({"soy": "Crop", "corn": "Crop", "rice": "Crop"}))
    assert set(np.unique(merged)) == {0, 255}


def test_later_rows_lie_on_top_unless_a_priority_says_otherwise() -> None:
    fields = frame(
        ("a", rectangle(0, 0, 10, 10)), ("b", rectangle(0, 0, 10, 10)), ("c", rectangle(0, 0, 10, 10)), rank=[5, 9, 1]
    )
    top = [
        labels(fields, CUBE, column="crop", priority=p).values[5, 5]
        for p in (None, "rank", ["a"], ["c", "a"], ["b", "c"])
    ]
    assert top == [2, 1, 0, 2, 1]


def test_features_without_a_class_are_left_out_with_a_warning() -> None:
    fields = frame(("a", rectangle(0, 0, 10, 10)), (None, rectangle(0, 0, 30, 30)))
    with pytest.warns(LabelWarning, match="1 of 2 features of GeoDataFrame have no 'crop'"):
        found = labels(fields, CUBE)
    assert (found.values == 0).sum() == 100


# ---- targets


def test_a_target_is_a_number_with_units() -> None:
    plots = frame(("x", rectangle(0, 0, 2, 2)), ("y", rectangle(5, 5, 6, 6)), agb=[120.5, 80])
    found = labels(plots, LAZY, target="agb", units="Mg ha-1")
    assert (found.dtype, found.attrs["units"], found.attrs["long_name"]) == ("float32", "Mg ha-1", "agb")
    assert classes_of(found) == ()
    assert np.nansum(found.values) == 4 * 120.5 + 80
    assert np.isnan(found.values).sum() == 2000 - 5
    with pytest.raises(LabelError, match="does not hold numbers"):
        labels(plots, CUBE, target="crop")


# ---- dates


DATED = frame(
    ("a", rectangle(0, 0, 10, 10)), ("b", rectangle(20, 20, 30, 30)), ("b", rectangle(0, 0, 4, 4)),
    seen=["2024-04-01", "2024-07-09", "2024-07-04T10:00:00Z"],
)  # fmt: skip


@pytest.mark.parametrize("cube", [CUBE, LAZY], ids=["memory", "lazy"])
def test_dated_labels_lie_at_the_nearest_time(cube: xr.DataArray) -> None:
    found = labels(DATED, cube, column="crop", time_column="seen")
    assert found.dims == ("time", "y", "x")
    np.testing.assert_array_equal(found.time.values, cube.time.values)
    counts = [[int((step == k).sum()) for k in (0, 1)] for step in found.values]
    assert counts == [[100, 0], [0, 116], [0, 0]]


def test_dates_of_columns_of_dates_and_strings_are_the_same() -> None:
    stamps = DATED.assign(seen=pd.to_datetime(DATED["seen"], utc=True, format="ISO8601"))
    naive = stamps.assign(seen=stamps["seen"].dt.tz_localize(None))
    first = labels(DATED, CUBE, column="crop", time_column="seen")
    for other in (stamps, naive):
        np.testing.assert_array_equal(labels(other, CUBE, column="crop", time_column="seen"), first)


def test_dates_too_far_from_the_cube_are_told() -> None:
    with pytest.warns(LabelWarning, match="1 of 3 labels of GeoDataFrame lie more than 5 days"):
        found = labels(DATED, CUBE, column="crop", time_column="seen", tolerance="5D")
    assert (found.values[1] == 1).sum() == 16
    old = CUBE.isel(time=[0]).assign_coords(time=[np.datetime64("2019-01-01", "ns")])
    with pytest.raises(LabelError, match=r"\(2024-04-01 to 2024-07-09\) do not meet the cube \(2019-01-01 to 2019"):
        labels(DATED, old, column="crop", time_column="seen")
    with pytest.raises(LabelError, match="cube has no time"):
        labels(DATED, CUBE.isel(time=0, drop=True), column="crop", time_column="seen")
    for wrong, told in ([2024, 2024, 2023], "holds numbers"), (["spring", "", "x"], "does not hold dates"):
        with pytest.raises(LabelError, match=told):
            labels(DATED.assign(seen=wrong), CUBE, column="crop", time_column="seen")


# ---- what is refused


@pytest.mark.parametrize(
    ("fields", "options", "told"),
    [
        (frame(("a", shapely.Point(at(900, 900)))), {}, r"no feature of GeoDataFrame lies in the cube: .*crs="),
        (frame(("a", rectangle(0, 0, 9, 9)), crs=None), {}, r"does not say its CRS; .*crs='EPSG:4326'"),
        (frame(("a", rectangle(0, 0, 9, 9)), crs=4326), {}, r"no degrees; name the CRS .*crs='EPSG:326"),
        (frame(("a", shapely.box(-93, 43, -92, 44))), {}, "look like degrees, but this CRS is projected"),
        (frame(("a", rectangle(0, 0, 9, 9))), {"crs": "EPSG:99999"}, "CRS of GeoDataFrame cannot be read"),
        (frame(("a", shapely.Polygon()), ("a", rectangle(0, 0, 9, 9))), {}, r"1 of 2 .* empty \(rows 0\).*mend"),
        (frame(("a", None), ("a", rectangle(0, 0, 9, 9))), {}, "1 of 2 geometries"),
        (frame(("a", shapely.Polygon())), {}, "holds no geometry"),
        (frame(("a", shapely.Polygon([at(0, 0), at(9, 9), at(9, 0), at(0, 9)]))), {}, "not valid .Self-intersection"),
        (FIELDS, {"column": "corp"}, r"no column 'corp'; did you mean column='crop'\? it has crop"),
        (FIELDS.assign(x=1), {}, "has the columns crop, x; say which one holds the class, column="),
        (FIELDS, {"legend": {"wheat": "Wheat"}}, "column 'crop' of GeoDataFrame: the labels hold 'corn'"),
        (FIELDS, {"priority": ["rice"]}, "no code or class 'rice'"),
        (frame(("a", rectangle(3.6, 3.6, 4.4, 4.4))), {}, "labels no pixel .* all_touched=True"),
        (FIELDS, {"legend": {"corn": None, "wheat": None, "rice": "Rice"}}, "labels no pixel"),
        (frame((None, rectangle(0, 0, 9, 9))), {}, "column 'crop' of GeoDataFrame is empty"),
        (FIELDS, {"target": "yield"}, "no column 'yield'"),
        ({"a": 1}, {}, "dict is no source of labels"),
    ],
)  # fmt: skip
def test_what_cannot_be_labels_is_refused(fields, options: dict, told: str) -> None:
    with pytest.raises(LabelError, match=told):
        labels(fields, CUBE, **options)


def test_what_was_refused_can_be_mended() -> None:
    bow = shapely.Polygon([at(0, 0), at(10, 10), at(10, 0), at(0, 10)])
    broken = frame(("a", bow), ("a", shapely.Polygon()), ("a", None))
    assert (labels(broken, CUBE, invalid="mend").values == 0).sum() > 30
    unnamed = frame(("a", rectangle(0, 0, 9, 9)), crs=None)
    assert (labels(unnamed, CUBE, crs="EPSG:32615").values == 0).sum() == 81
    small = frame(("a", rectangle(3.6, 3.6, 4.4, 4.4)))
    assert (labels(small, CUBE, all_touched=True).values == 0).sum() == 4


def test_a_broken_shape_far_away_does_not_matter() -> None:
    far = shapely.Polygon([at(900, 0), at(910, 10), at(910, 0), at(900, 10)])
    assert (labels(frame(("a", far), ("a", rectangle(0, 0, 9, 9))), CUBE).values == 0).sum() == 81


def test_a_cube_without_a_place_is_refused() -> None:
    with pytest.raises(GridError, match="no CRS"):
        labels(FIELDS, CUBE.drop_vars("spatial_ref"))


def test_no_warning_for_what_is_in_order() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Use `@` matmul", PendingDeprecationWarning)
        labels(FIELDS, LAZY).compute()
