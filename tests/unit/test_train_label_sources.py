from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pystac
import pytest
import rasterio
import shapely
import toys
import xarray as xr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pystac.extensions.label import LabelClasses, LabelExtension, LabelType
from rasterio.warp import Resampling, reproject

from xgfm.errors import GridError, LabelError
from xgfm.grid import geobox_of, with_grid
from xgfm.train.labels.labels import labels
from xgfm.train.labels.legend import classes_of
from xgfm.train.labels.studio import decode_rle

BOX = toys.geobox(40, 50)
LAZY = toys.cube(chunks=(1, 6, 16, 16))
CUBE = LAZY.compute()
LEFT, BOTTOM, RIGHT, TOP = BOX.boundingbox.bbox


def rectangle(left: float, top: float, right: float, bottom: float) -> shapely.Polygon:
    return shapely.box(LEFT + 30 * left, TOP - 30 * bottom, LEFT + 30 * right, TOP - 30 * top)


FIELDS = gpd.GeoDataFrame(
    {"crop_name_long": ["corn", "wheat", "corn"], "seen": pd.to_datetime(["2024-04-03", "2024-07-02", "2024-09-25"])},
    geometry=[
        rectangle(2, 3, 12, 20),
        shapely.MultiPolygon([rectangle(8, 10, 30, 25), rectangle(40, 1, 44, 3)]),
        shapely.Polygon(rectangle(20, 30, 40, 39).exterior, [rectangle(25, 32, 30, 36).exterior]),
    ],
    crs="EPSG:32615",
)
EXPECTED = labels(FIELDS, CUBE, column="crop_name_long").values


# ---- vector files


@pytest.mark.parametrize("name", ["f.shp", "f.geojson", "f.json", "f.gpkg", "f.fgb", "f.parquet"])
@pytest.mark.parametrize("crs", [32615, 4326])
def test_files_of_every_kind_give_the_same_labels(tmp_path: Path, name: str, crs: int) -> None:
    path = tmp_path / name
    fields = FIELDS.to_crs(crs)
    if path.suffix == ".parquet":
        fields.to_parquet(path)
    elif path.suffix in (".json", ".geojson"):
        fields.assign(seen=fields["seen"].astype(str)).to_crs(4326).to_file(path, driver="GeoJSON")
    elif path.suffix == ".shp":
        with pytest.warns(UserWarning, match="Column names longer than 10"):
            fields.to_file(path)
    else:
        # FlatGeobuf's index would put the rows into another order.
        fields.to_file(path, **({"SPATIAL_INDEX": "NO"} if path.suffix == ".fgb" else {}))
    column = "crop_name_long"[:10] if path.suffix == ".shp" else "crop_name_long"
    found = labels(path, LAZY, column=column)
    np.testing.assert_array_equal(found.values, EXPECTED)
    assert found.attrs["source"] == name
    dated = labels(str(path), LAZY, column=column, time_column="seen")
    assert [len(np.unique(step)) for step in dated.values] == [2, 2, 2]


def test_a_cut_column_name_is_found(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Column names longer than 10"):
        FIELDS.to_file(tmp_path / "f.shp")
    with pytest.raises(LabelError, match="did you mean column='crop_name_'"):
        labels(tmp_path / "f.shp", CUBE, column="crop_name_long")


def test_a_file_of_several_layers_needs_one(tmp_path: Path) -> None:
    path = tmp_path / "f.gpkg"
    FIELDS.to_file(path, layer="fields")
    FIELDS.head(1).to_file(path, layer="plots")
    with pytest.raises(LabelError, match="layers fields, plots; choose one, layer='fields'"):
        labels(path, CUBE, column="crop_name_long")
    with pytest.raises(LabelError, match="no layer 'roads'"):
        labels(path, CUBE, column="crop_name_long", layer="roads")
    assert (labels(path, CUBE, column="crop_name_long", layer="plots").values != 255).sum() == 170


def test_a_shapefile_without_its_projection_needs_a_crs(tmp_path: Path) -> None:
    FIELDS[["geometry"]].assign(crop="a").to_file(tmp_path / "f.shp")
    (tmp_path / "f.prj").unlink()
    with pytest.raises(LabelError, match=r"f.shp does not say its CRS; .*crs="):
        labels(tmp_path / "f.shp", CUBE)
    found = labels(tmp_path / "f.shp", CUBE, crs=32615)
    np.testing.assert_array_equal(found.values == 0, EXPECTED != 255)


def test_geojson_of_2008_may_have_a_crs(tmp_path: Path) -> None:
    document = json.loads(FIELDS.drop(columns="seen").to_json())
    document["crs"] = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32615"}}
    np.testing.assert_array_equal(labels(document, CUBE).values, EXPECTED)
    (tmp_path / "f.geojson").write_text(json.dumps(document))
    np.testing.assert_array_equal(labels(tmp_path / "f.geojson", CUBE).values, EXPECTED)


def test_geoparquet_without_a_crs_is_longitude_and_latitude(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    path = tmp_path / "f.parquet"
    FIELDS.to_crs("OGC:CRS84").to_parquet(path)
    table = pq.read_table(path)
    geo = json.loads(table.schema.metadata[b"geo"])
    del geo["columns"]["geometry"]["crs"]
    pq.write_table(table.replace_schema_metadata({b"geo": json.dumps(geo).encode()}), path)
    np.testing.assert_array_equal(labels(path, CUBE, column="crop_name_long").values, EXPECTED)
    geo["columns"]["geometry"]["crs"] = None
    pq.write_table(table.replace_schema_metadata({b"geo": json.dumps(geo).encode()}), path)
    with pytest.raises(LabelError, match="does not say its CRS"):
        labels(path, CUBE, column="crop_name_long")
    pq.write_table(table.replace_schema_metadata({}), path)
    with pytest.raises(LabelError, match="without 'geo' metadata"):
        labels(path, CUBE)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("f.geojson", "{", "cannot be read as JSON"),
        ("f.json", "[1, 2]", "holds a JSON list; expected GeoJSON, STAC items or Label Studio"),
        ("f.geojson", '{"type": "FeatureCollection", "features": []}', "holds no geometry"),
        ("f.geojson", '{"type": "Feature", "geometry": {"type": "Polygn", "coordinates": []}}', "no GeoJSON geometry"),
        ("f.gpkg", "not a database", "f.gpkg cannot be read as a vector file"),
        ("f.parquet", "not columns", "f.parquet cannot be read as Parquet"),
        ("f.tif", "not an image", "cannot be opened"),
    ],
)
def test_files_that_are_broken_are_refused(tmp_path: Path, name: str, text: str, told: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(LabelError, match=told):
        labels(tmp_path / name, CUBE)


@pytest.mark.parametrize("name", ["f.shp", "f.geojson", "f.tif", "f.parquet"])
def test_files_that_are_not_there_are_refused(name: str) -> None:
    with pytest.raises(LabelError, match="there is no file 'nowhere/f"):
        labels(f"nowhere/{name}", CUBE)


# ---- rasters


def raster(path: Path, values: np.ndarray, transform: Affine, crs: object = "EPSG:32615", **profile: object) -> Path:
    with rasterio.open(
        path, "w", driver="GTiff", height=values.shape[-2], width=values.shape[-1], count=1, dtype=values.dtype,
        crs=crs, transform=transform, **profile,
    ) as file:  # fmt: skip
        file.write(values, 1)
    return path


CODES = np.random.default_rng(0).choice([5, 7, 36], (90, 110)).astype("int16")
LEGEND = {5: "Corn", 7: "Soybeans", 36: "Alfalfa"}


@settings(deadline=None, max_examples=25)
@given(st.floats(7, 70), st.floats(-200, 400), st.floats(-200, 400), st.booleans())
def test_rasters_are_regridded_to_the_nearest_pixel(tmp_path_factory, size, east, south, lazy) -> None:
    transform = Affine(size, 0, LEFT + east, 0, -size, TOP - south)
    path = raster(tmp_path_factory.mktemp("r") / "codes.tif", CODES, transform)
    expected = np.full(BOX.shape, -1, "int16")
    reproject(  # GDAL is the oracle
        CODES, expected, src_transform=transform, src_crs="EPSG:32615", dst_transform=BOX.transform,
        dst_crs="EPSG:32615", resampling=Resampling.nearest, dst_nodata=-1, init_dest_nodata=True, tolerance=0,
    )  # fmt: skip
    found = labels(path, LAZY if lazy else CUBE, legend=LEGEND).values
    indexes = np.select([expected == c for c in LEGEND], [0, 1, 2], 255)
    # Where a centre lies on the edge of two pixels either is the nearest.
    rows = (TOP - 30 * (np.arange(40) + 0.5) - (TOP - south)) / -size
    columns = (LEFT + 30 * (np.arange(50) + 0.5) - LEFT - east) / size
    sure = (np.abs(rows - np.rint(rows)) > 1e-5)[:, None] & (np.abs(columns - np.rint(columns)) > 1e-5)[None]
    np.testing.assert_array_equal(found[sure], indexes[sure])


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32614", "EPSG:3035"])
def test_rasters_of_another_crs_lie_in_the_same_place(tmp_path: Path, crs: str) -> None:
    there = BOX.pad(20).to_crs(crs, resolution="auto")
    codes = np.random.default_rng(1).choice([5, 7, 36], there.shape).astype("uint8")
    path = raster(tmp_path / "codes.tif", codes, there.transform, crs)
    expected = np.zeros(BOX.shape, "uint8")
    reproject(
        codes, expected, src_transform=there.transform, src_crs=crs, dst_transform=BOX.transform,
        dst_crs="EPSG:32615", resampling=Resampling.nearest, tolerance=0,
    )  # fmt: skip
    whole, lazy = (labels(path, cube, legend=LEGEND).values for cube in (CUBE, LAZY))
    np.testing.assert_array_equal(whole, lazy)
    agree = whole == np.select([expected == c for c in LEGEND], [0, 1, 2], 255)
    assert agree.mean() > 0.995  # GDAL and PROJ may differ in the last digit at edges


def test_a_raster_on_the_grid_is_taken_as_it_is(tmp_path: Path) -> None:
    codes = np.random.default_rng(1).choice([5, 7, 36, 0, -1], BOX.shape).astype("int16")
    path = raster(tmp_path / "codes.tif", codes, BOX.transform, nodata=-1)
    found = labels(path, LAZY, legend=LEGEND | {0: None})
    np.testing.assert_array_equal(found.values, np.select([codes == c for c in LEGEND], [0, 1, 2], 255))
    assert [c.name for c in classes_of(found)] == list(LEGEND.values())
    array = with_grid(xr.DataArray(codes, dims=("y", "x"), attrs={"nodata": -1}), BOX)
    np.testing.assert_array_equal(labels(array, LAZY, legend=LEGEND | {0: None}).values, found.values)
    chunked = labels(array.chunk(y=7), CUBE, legend=LEGEND | {0: None})
    np.testing.assert_array_equal(chunked.values, found.values)


def test_a_lazy_raster_is_read_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xgfm.train.labels.rasters import FileWindows

    path = raster(tmp_path / "codes.tif", CODES, BOX.pad(20).transform)
    read, window = [], FileWindows.window
    monkeypatch.setattr(FileWindows, "window", lambda self, r, c: read.append((r, c)) or window(self, r, c))
    found = labels(path, LAZY, legend=LEGEND)
    assert not read
    found[:16, 16:32].compute()
    assert read == [(slice(20, 36), slice(36, 52))]


def test_dated_rasters_lie_at_the_nearest_time() -> None:
    times = np.array(["2024-04-05", "2024-07-01"], "datetime64[ns]")
    codes = np.stack([np.full(BOX.shape, 5), np.full(BOX.shape, 7)]).astype("uint8")
    array = with_grid(xr.DataArray(codes, dims=("time", "y", "x"), coords={"time": times}), BOX)
    for cube in (CUBE, LAZY):
        found = labels(array, cube, legend=LEGEND)
        assert found.dims == ("time", "y", "x")
        assert [np.unique(step).tolist() for step in found.values] == [[0], [1], [255]]


def test_rasters_can_be_targets(tmp_path: Path) -> None:
    values = np.where(np.arange(2000).reshape(BOX.shape) % 3, np.linspace(0, 300, 2000).reshape(BOX.shape), -1)
    path = raster(tmp_path / "agb.tif", values.astype("float32"), BOX.transform, nodata=-9999)
    found = labels(path, LAZY, units="Mg ha-1", target="biomass", nodata=-1)
    assert (found.dtype, found.attrs["units"], found.attrs["long_name"]) == ("float32", "Mg ha-1", "biomass")
    np.testing.assert_array_equal(found.values, np.where(values == -1, np.nan, values).astype("float32"))


def test_the_labels_of_a_simulated_season_come_back(tmp_path: Path) -> None:
    from xgfm.cube.simulate import simulate_cube, simulate_season

    season = simulate_season(tmp_path, seed=1, shape=(64, 80), granules=1)
    cube, truth = simulate_cube(seed=1, shape=(64, 80), granules=1)
    found = labels(season.truth, cube, legend=season.classes)
    np.testing.assert_array_equal(found.values, truth.values)
    assert classes_of(found) == season.classes


@pytest.mark.parametrize(
    ("values", "options", "profile", "told"),
    [
        (CODES, {}, {}, r"the codes of codes.tif mean nothing yet; name them, legend="),
        (CODES, {"legend": {5: "Corn", 7: "Soybeans"}}, {}, "codes.tif: the labels hold 36, which"),
        (CODES, {"legend": LEGEND}, {"crs": None}, "codes.tif has no CRS; name that of its coordinates, crs="),
        (CODES, {"legend": LEGEND}, {"transform": BOX.translate_pix(9e4, 0).transform}, "does not meet the cube: "),
        (CODES, {"legend": LEGEND}, {"crs": "EPSG:32633"}, "does not meet the cube"),
        (CODES * 0 + 5, {"legend": {5: None, 7: "Soybeans"}}, {}, "labels no pixel of the cube"),
    ],
)  # fmt: skip
def test_rasters_that_cannot_be_labels_are_refused(tmp_path: Path, values, options, profile, told: str) -> None:
    path = raster(tmp_path / "codes.tif", values, **({"transform": BOX.transform} | profile))
    with pytest.raises(LabelError, match=told):
        labels(path, CUBE, **options)


def test_unknown_codes_of_a_lazy_raster_are_told_when_it_is_read(tmp_path: Path) -> None:
    path = raster(tmp_path / "codes.tif", CODES, BOX.transform)
    found = labels(path, LAZY, legend={5: "Corn"})
    with pytest.raises(LabelError, match=r"codes.tif: the labels hold (7, 36|36, 7)"):
        found.compute()


def test_images_of_several_bands_and_arrays_of_other_dims_are_refused(tmp_path: Path) -> None:
    with rasterio.open(tmp_path / "rgb.tif", "w", driver="GTiff", height=4, width=4, count=3, dtype="uint8", crs=32615,
                       transform=BOX.transform):  # fmt: skip
        pass
    with pytest.raises(LabelError, match=r"rgb.tif has 3 bands"):
        labels(tmp_path / "rgb.tif", CUBE, legend=LEGEND)
    with pytest.raises(LabelError, match=r"dims \('time', 'band', 'y', 'x'\)"):
        labels(CUBE, CUBE, legend=LEGEND)
    with pytest.raises(GridError, match="no CRS"):
        labels(CUBE[0, 0].drop_vars("spatial_ref"), CUBE, legend=LEGEND)


# ---- STAC label items


def item(name: str, kind: LabelType, href: str, media: str, classes: list | None, column: str | None) -> pystac.Item:
    """Return a label Item as pystac's own extension writes it."""
    made = pystac.Item(name, None, None, datetime(2024, 7, 2, tzinfo=UTC), {})
    extension = LabelExtension.ext(made, add_if_missing=True)
    extension.apply(
        "labels", kind, [column] if column else None, [LabelClasses.create(classes, column)] if classes else None
    )
    made.add_asset("labels", pystac.Asset(href, media_type=media, roles=["data"]))
    made.add_asset("preview", pystac.Asset("preview.png", media_type="image/png"))
    return made


def test_vector_label_items(tmp_path: Path) -> None:
    FIELDS.drop(columns="seen").to_crs(4326).to_file(tmp_path / "fields.geojson", driver="GeoJSON")
    made = item("a", LabelType.VECTOR, "./fields.geojson", "application/geo+json", ["wheat", "corn"], "crop_name_long")
    (tmp_path / "item.json").write_text(json.dumps(made.to_dict(include_self_link=False)))
    found = labels(tmp_path / "item.json", LAZY)
    assert [c.name for c in classes_of(found)] == ["wheat", "corn"]
    np.testing.assert_array_equal(found.values, np.select([EXPECTED == 0, EXPECTED == 1], [1, 0], 255))
    made.assets["labels"].href = str(tmp_path / "fields.geojson")
    dated = labels(made, LAZY, time_column="datetime")
    assert [bool((step != 255).any()) for step in dated.values] == [False, True, False]
    collection = {"type": "FeatureCollection", "features": [made.to_dict(include_self_link=False)]}
    (tmp_path / "items.json").write_text(json.dumps(collection))
    np.testing.assert_array_equal(labels(tmp_path / "items.json", LAZY).values, found.values)


def test_raster_label_items(tmp_path: Path) -> None:
    path = raster(tmp_path / "codes.tif", CODES, BOX.transform)
    made = item("a", LabelType.RASTER, str(path), pystac.MediaType.COG, [5, 7, 36], None)
    found = labels([made], LAZY)
    assert [c.name for c in classes_of(found)] == ["5", "7", "36"]
    np.testing.assert_array_equal(found.values, labels(path, CUBE, legend=LEGEND).values)
    made.assets["labels"].extra_fields["classification:classes"] = [
        {"value": 5, "name": "corn", "color_hint": "FFCC00"}, {"value": 7, "name": "soy"},
        {"value": 36, "name": "none", "nodata": True},
    ]  # fmt: skip
    coloured = labels(made, CUBE)
    assert [c.name for c in classes_of(coloured)] == ["corn", "soy"]
    assert classes_of(coloured)[0].color == "#ffcc00"
    assert (coloured.values == 255).mean() == pytest.approx((CODES[:40, :50] == 36).mean())
    dated = labels(made, CUBE, time_column="datetime")
    np.testing.assert_array_equal(dated.values[1], coloured.values)
    assert (dated.values[[0, 2]] == 255).all()


def test_items_with_names_for_values_of_files() -> None:
    from xgfm.train.labels.items import read_item

    made = item("a", LabelType.RASTER, "/x/codes.tif", pystac.MediaType.COG, ["water", "land"], None)
    assert read_item(made).legend is None  # which value is water nobody says
    made.assets["labels"].extra_fields["file:values"] = [
        {"values": [1], "summary": "water"},
        {"values": [0], "summary": "land"},
    ]
    assert read_item(made).legend.index_of(1) == 0


def test_items_that_say_too_little_are_refused(tmp_path: Path) -> None:
    made = item("a", LabelType.VECTOR, "f.geojson", "application/geo+json", ["a"], "crop")
    made.properties["label:properties"] = ["crop", "quality"]
    with pytest.raises(LabelError, match=r"has the label:properties \['crop', 'quality'\].*column="):
        labels(made, CUBE)
    made.assets.pop("labels")
    with pytest.raises(LabelError, match="no one vector asset of labels among preview"):
        labels(made, CUBE)
    plain = pystac.Item("a", None, None, datetime(2024, 7, 2, tzinfo=UTC), {})
    with pytest.raises(LabelError, match="label:type None"):
        labels(plain, CUBE)
    first, second = (item(n, LabelType.VECTOR, "f.geojson", "", [n], "crop") for n in "ab")
    fields = FIELDS.rename(columns={"crop_name_long": "crop"}).drop(columns="seen")
    fields.to_crs(4326).to_file(tmp_path / "f.geojson")
    for each in (first, second):
        each.assets["labels"].href = str(tmp_path / "f.geojson")
    with pytest.raises(LabelError, match="2 label items name different classes"):
        labels([first, second], CUBE)


# ---- Label Studio

BRUSH = [
    0, 0, 3, 192, 57, 27, 254, 63, 0, 191, 255, 152, 192, 45, 255, 227, 240, 12, 39, 255, 134, 192, 47, 255, 219, 0,
    195, 127, 248, 204, 3, 13, 255, 227, 48, 12, 55, 255, 133, 192, 47, 255, 223, 0, 194, 127, 248, 252, 2, 223, 254,
    111, 0, 191, 255, 167, 192, 0,
]  # fmt: skip
"""Made by ``encode_rle`` of label-studio-brush-rle-rs 0.1.1, which mirrors Label Studio's own encoder."""
ROWS, COLUMNS = np.mgrid[:12, :20]
BRUSHED = ((ROWS - 5) ** 2 + (COLUMNS - 6) ** 2 < 12) | ((COLUMNS > 15) & (ROWS % 3 == 0))
"""What it was made of."""
LONG = [0, 5, 126, 64, 57, 27, 255, 255, 255, 0, 255, 255, 224, 31, 255, 252, 3, 255, 255, 128, 127, 255, 240, 14, 252,
        118, 1, 31, 248]  # fmt: skip
"""The same encoder's of 300 x 300 pixels, of which the last is set."""
PLACE = {"transform": list(BOX.translate_pix(10, 5).transform)[:6], "crs": "EPSG:32615", "size": [20, 12]}


def task(*results: dict, image: str = "/data/upload/1/3f2a91bc-scene.png") -> dict:
    shapes = [{"original_width": 20, "original_height": 12, "image_rotation": 0, **r} for r in results]
    return {"id": 1, "data": {"image": image}, "annotations": [{"was_cancelled": False, "result": shapes}]}


def drawn(kind: str, name: str, **value: object) -> dict:
    return {"type": kind, "value": {**value, kind: [name]}}


def test_brushes_are_decoded_as_label_studio_encodes_them() -> None:
    found = decode_rle(BRUSH).reshape(12, 20, 4)
    for channel in range(4):
        np.testing.assert_array_equal(found[..., channel] == 255, BRUSHED)
    long = decode_rle(LONG)
    assert long.size == 300 * 300 * 4
    assert np.flatnonzero(long).tolist() == list(range(long.size - 4, long.size))


def pack(values: list[int], runs: list[tuple[bool, int]]) -> list[int]:
    """Pack values in the given blocks of (whether a run, length): the format as thi.ng/rle-pack states it."""
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{w - 1:04b}" for w in (3, 4, 8, 16))
    at = 0
    for run, length in runs:
        size = next(i for i, w in enumerate((3, 4, 8, 16)) if length <= 2**w)
        bits += f"{int(run)}{size:02b}{length - 1:0{(3, 4, 8, 16)[size]}b}"
        bits += "".join(f"{v:08b}" for v in (values[at : at + 1] if run else values[at : at + length]))
        at += length
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 300), st.integers(0, 255)), min_size=1, max_size=12))
def test_runs_and_single_values_are_unpacked(blocks) -> None:
    values: list[int] = []
    for run, length, seed in blocks:
        values += [seed] * length if run else [(seed + 7 * i) % 256 for i in range(length)]
    packed = pack(values, [(run, length) for run, length, _ in blocks])
    assert decode_rle(packed).tolist() == values
    with pytest.raises(LabelError, match="ends in the middle of a run"):
        decode_rle(packed[:-2])


def test_what_is_brushed_and_drawn_on_an_image_lies_on_the_ground() -> None:
    export = [
        task(
            drawn("rectanglelabels", "field", x=50, y=50, width=40, height=25, rotation=0),
            drawn("polygonlabels", "pond", points=[[0, 0], [25, 0], [25, 100 / 3], [0, 100 / 3]]),
            drawn("brushlabels", "tree", format="rle", rle=BRUSH),
            {"type": "choices", "value": {"choices": ["clear"]}},
        )
    ]
    legend = ["field", "pond", "tree"]
    for cube in (CUBE, LAZY):
        found = labels(export, cube, legend={n: n for n in legend}, georeference={"scene.png": PLACE}).values
        image = np.full((12, 20), 255)
        image[6:9, 10:18] = 0
        image[:4, :5] = 1
        image[BRUSHED] = 2
        expected = np.full(BOX.shape, 255)
        expected[5:17, 10:30] = image
        np.testing.assert_array_equal(found, expected)


def test_shapes_that_are_turned_and_round() -> None:
    place = {"scene.png": PLACE | {"size": [20, 12]}}
    turned = task(drawn("rectanglelabels", "a", x=50, y=50, width=25, height=25, rotation=90))
    found = labels([turned], CUBE, georeference=place).values[5:17, 10:30] == 0
    rows, columns = np.nonzero(found)  # 5 x 3 pixels, turned clockwise about (10, 6): 3 wide to the left, 5 high
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 10, 7, 9)
    round_one = task(drawn("ellipselabels", "a", x=50, y=50, radiusX=25, radiusY=25, rotation=0))
    found = labels([round_one], CUBE, georeference=place).values[5:17, 10:30] == 0
    assert found.sum() == pytest.approx(np.pi * 5 * 3, rel=0.12)
    point = task(drawn("keypointlabels", "a", x=2.5, y=95, width=1))
    assert labels([point], CUBE, georeference=place).values[16, 10] == 0


def test_images_with_a_place_of_their_own_need_no_sidecar(tmp_path: Path) -> None:
    raster(tmp_path / "scene.tif", np.zeros((12, 20), "uint8"), BOX.translate_pix(10, 5).transform)
    for image in (
        "/data/upload/1/3f2a91bc-scene.tif",
        "/data/local-files/?d=images/scene.tif",
        "s3://bucket/scene.tif",
    ):
        export = [task(drawn("brushlabels", "tree", format="rle", rle=BRUSH), image=image)]
        (tmp_path / "export.json").write_text(json.dumps(export))
        found = labels(tmp_path / "export.json", LAZY).values
        np.testing.assert_array_equal(found[5:17, 10:30] == 0, BRUSHED)
    (tmp_path / "places.json").write_text(json.dumps({"scene.tif": PLACE}))
    found = labels(tmp_path / "export.json", LAZY, georeference=tmp_path / "places.json").values
    np.testing.assert_array_equal(found[5:17, 10:30] == 0, BRUSHED)


def test_the_last_annotation_counts_and_cancelled_ones_do_not() -> None:
    export = task(drawn("rectanglelabels", "old", x=0, y=0, width=50, height=50))
    for cancelled, name in ((False, "new"), (True, "no")):
        again = task(drawn("rectanglelabels", name, x=0, y=0, width=25, height=25))["annotations"][0]
        export["annotations"].append(again | {"was_cancelled": cancelled})
    found = labels([export], CUBE, georeference={"scene.png": PLACE})
    assert [c.name for c in classes_of(found)] == ["new"]


TREE = task(drawn("brushlabels", "a", rle=BRUSH))


@pytest.mark.parametrize(
    ("export", "options", "told"),
    [
        (TREE, {"georeference": {"other.png": PLACE}}, "has no '3f2a91bc-scene.png'"),
        (TREE, {}, "is not in .*say where it lies, georeference="),
        (TREE, {"georeference": {"scene.png": PLACE | {"size": [9, 12]}}}, "20 x 12 pixels, but lies as 9 x 12"),
        (task(drawn("brushlabels", "a", rle=LONG)), {}, "holds 360000 values; expected 20 x 12 x 4"),
        (TREE, {"georeference": {"scene.png": {"crs": 4326}}}, "expected transform"),
        (TREE, {"georeference": "nowhere.json"}, "no file 'nowhere.json'"),
        (task({"type": "brush", "value": {"rle": BRUSH}}), {}, "holds a brush without a label"),
        (task(), {}, "holds no finished annotation"),
        ({"data": {}, "annotations": [{"result": [drawn("brushlabels", "a", rle=BRUSH)]}]}, {}, "names no image"),
    ],
)  # fmt: skip
def test_exports_that_cannot_be_placed_are_refused(export, options, told: str) -> None:
    place = {} if "is not in" in told else {"georeference": {"scene.png": PLACE}}
    with pytest.raises(LabelError, match=told):
        labels([export], CUBE, **(place | options))


def test_geoboxes_of_the_results_are_the_cubes() -> None:
    export = [task(drawn("brushlabels", "tree", format="rle", rle=BRUSH))]
    assert geobox_of(labels(export, LAZY, georeference={"scene.png": PLACE})) == BOX


# ---- real labels


@pytest.mark.parametrize(
    ("name", "options", "counts"),
    [
        ("burn/subsetted_512x512_HLS.S30.T10TGS.2018285.v1.4.mask.tif", {"legend": ["a", "b"]}, [211_640, 50_504, 0]),
        ("flood/Spain_7370579_LabelHand.tif", {"legend": {-1: None, 0: "land", 1: "water"}}, [192_010, 70_035, 99]),
    ],
)
def test_published_masks_are_taken_as_they_are(shared_data: Path, name: str, options: dict, counts: list[int]) -> None:
    path = shared_data / "hls" / name
    with rasterio.open(path) as file:
        codes = file.read(1)
        box = GeoBox(file.shape, Affine(*file.transform[:6]), file.crs.to_wkt())
    found = labels(path, toys.cube(box=box, chunks=(1, 6, 200, 200)), **options).values
    np.testing.assert_array_equal(found, np.where(codes < 0, 255, codes))
    assert [int((found == k).sum()) for k in (0, 1, 255)] == counts


def test_a_published_target_is_taken_as_it_is(shared_data: Path) -> None:
    path = shared_data / "hls" / "chips" / "agb_L30_biomass_label.tif"
    with rasterio.open(path) as file:
        values = file.read(1)
        box = GeoBox(file.shape, Affine(*file.transform[:6]), file.crs.to_wkt())
    found = labels(path, toys.cube(box=box), units="Mg ha-1", nodata=-1)
    np.testing.assert_array_equal(found.values, np.where(values == -1, np.nan, values))
    assert int(np.isfinite(found.values).sum()) == 246
