"""From items to a cube: what stands on it, how granules are grouped, what is refused before any read."""

from __future__ import annotations

import datetime as dt
import json
import math
from pathlib import Path
from typing import Any

import dask
import numpy as np
import odc.geo.xr  # noqa: F401  (registers .odc)
import pystac
import pytest
import rasterio
import rioxarray  # noqa: F401  (registers .rio)
import xarray as xr
from affine import Affine
from granules import granule, read_own
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from xgfm.cube import open as opening
from xgfm.cube.catalogs import save_items
from xgfm.cube.items import ASSETS, HlsItem
from xgfm.cube.mask import mask
from xgfm.cube.open import open_hls, open_items, time_steps
from xgfm.errors import BandError, GridError, ItemError, SearchError, XgfmError
from xgfm.grid import geobox_of, tile_geobox
from xgfm.models.spec import PRITHVI_BANDS


@pytest.fixture(scope="module")
def season(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Two L30 dates and an S30 date of one tile."""
    folder = tmp_path_factory.mktemp("season")
    where = {"window": (1000, 1200, 70, 60), "projection": True}
    return [
        granule(folder, time="2024-05-02T17:04:39Z", seed=1, cloud_cover=10, **where),
        granule(folder, time="2024-05-03T17:11:11Z", seed=2, cloud_cover=30, sensor="S30", **where),
        granule(folder, time="2024-06-10T17:04:40Z", seed=3, cloud_cover=50, **where),
    ]


class NoCompute:
    """A scheduler that nothing may reach."""

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("pixels were read")


@pytest.fixture
def no_read(monkeypatch: pytest.MonkeyPatch) -> Any:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a file was opened")

    monkeypatch.setattr(rasterio, "open", refuse)
    with dask.config.set(scheduler=NoCompute()):
        yield


@pytest.mark.usefixtures("no_read")
def test_the_cube_says_what_it_is(season: list[dict[str, Any]]) -> None:
    cube = open_items(season, mask=None)
    assert cube.dims == ("time", "band", "y", "x")
    assert cube.dtype == np.int16
    assert cube.name == "hls"
    assert cube.band.values.tolist() == list(PRITHVI_BANDS)
    assert cube.time.values.astype("datetime64[s]").astype(str).tolist() == [
        "2024-05-02T17:04:39", "2024-05-03T17:11:11", "2024-06-10T17:04:40",
    ]  # fmt: skip
    assert cube["sensor"].values.tolist() == ["L30", "S30", "L30"]
    assert cube["item"].values.tolist() == [item["id"] for item in season]
    assert cube["eo:cloud_cover"].values.tolist() == [10, 30, 50]
    assert cube.attrs["nodata"] == -9999
    assert cube.attrs["reflectance_scale"] == 1e-4
    assert "nir08=B8A" in cube.attrs["assets"]
    assert not {"scale_factor", "_FillValue", "add_offset"} & set(cube.attrs)
    assert json.loads(json.dumps(cube.attrs)) == cube.attrs
    assert cube.encoding["grid_mapping"] == "spatial_ref"
    assert cube.fmask.dims == ("time", "y", "x")
    assert cube.fmask.dtype == np.uint8


@pytest.mark.usefixtures("no_read")
def test_the_grid_is_the_files(season: list[dict[str, Any]]) -> None:
    cube = open_items(season)
    grid = tile_geobox("15TVM")[1000:1070, 1200:1260]
    assert geobox_of(cube) == cube.odc.geobox == grid
    assert cube.isel(time=0).rio.transform() == grid.transform
    assert cube.y.attrs["standard_name"] == "projection_y_coordinate"


@pytest.mark.parametrize("loader", ["stackstac", "odc"])
def test_loaders_give_the_same_cube(loader: str, season: list[dict[str, Any]]) -> None:
    """Pixels and coordinates against rasterio, and the two cubes against one another."""
    cube = open_items(season, mask=None, loader=loader, chunks=(32, 40))
    for step, item in zip(cube.values, season, strict=True):
        assert (step == read_own(item, [*ASSETS[item["id"][4:7]].values()])).all()
    assert (cube.fmask.values == np.concatenate([read_own(item, ["Fmask"]) for item in season])).all()
    with rasterio.open(season[0]["assets"]["B02"]["href"]) as file:
        xs = [file.xy(0, column)[0] for column in range(60)]
        ys = [file.xy(row, 0)[1] for row in range(70)]
    assert cube.x.values.tolist() == xs
    assert cube.y.values.tolist() == ys
    xr.testing.assert_identical(cube.compute(), open_items(season, mask=None, chunks=17).compute())


def test_masked_by_default(season: list[dict[str, Any]]) -> None:
    cube = open_items(season)
    assert cube.attrs["masked_by"] == ["cloud", "adjacent", "shadow"]
    assert "fmask" not in cube.coords
    xr.testing.assert_identical(cube.compute(), mask(open_items(season, mask=None)).compute())
    raw = open_items(season, mask=None)
    bad = np.isin(raw.fmask.values, [66, 68, 72, 255])[:, np.newaxis]
    assert (cube.values == np.where(bad, -9999, raw.values)).all()
    snow = open_items(season, mask=("snow",))
    assert (snow.values != cube.values).any()


def test_without_fmask(season: list[dict[str, Any]]) -> None:
    """Two of three have one: no coordinate, and a mask is refused."""
    bare = [{**season[0], "assets": {k: a for k, a in season[0]["assets"].items() if k != "Fmask"}}, *season[1:]]
    cube = open_items(bare, mask=None)
    assert "fmask" not in cube.coords
    assert (cube.values[0] == read_own(season[0], [*ASSETS["L30"].values()])).all()
    with pytest.raises(ItemError, match="has no asset 'Fmask'"):
        open_items(bare)


def test_bands_in_the_asked_order(season: list[dict[str, Any]]) -> None:
    cube = open_items(season, mask=None, bands=("swir22", "nir08"))
    assert cube.band.values.tolist() == ["swir22", "nir08"]
    assert (cube.values[1] == read_own(season[1], ["B12", "B8A"])).all()


@pytest.mark.parametrize("bands", [("nir", "red"), ("red", "red"), (), "B8A"])
def test_unknown_or_repeated_bands(bands: Any, season: list[dict[str, Any]]) -> None:
    with pytest.raises(BandError, match=r"each must be one of \['blue', 'green', 'red', 'nir08'"):
        open_items(season, bands=bands)


def test_shapes_that_items_come_in(season: list[dict[str, Any]]) -> None:
    expected = open_items(season[:2], mask=None)
    collection = {"type": "FeatureCollection", "features": season[:2]}
    for items in (collection, pystac.ItemCollection(season[:2]), [pystac.Item.from_dict(i) for i in season[:2]]):
        xr.testing.assert_identical(open_items(items, mask=None).compute(), expected.compute())
    assert open_items(season[0]).sizes["time"] == 1


def test_a_box_crops(season: list[dict[str, Any]]) -> None:
    whole = open_items(season, mask=None)
    west, south, east, north = geobox_of(whole).geographic_extent.boundingbox.bbox
    part = open_items(season, mask=None, bbox=(west - 0.01, south - 0.01, (west + east) / 2, (south + north) / 2))
    expected = whole.sel(x=part.x, y=part.y)
    xr.testing.assert_identical(part.drop_vars("spatial_ref").compute(), expected.drop_vars("spatial_ref").compute())
    assert 0 < part.sizes["x"] < 60
    assert part.x.values[0] == whole.x.values[0]


def test_own_target_grid(season: list[dict[str, Any]]) -> None:
    box = GeoBox((20, 30), Affine(60, 0, 436_000, 0, -60, 5_170_000), "EPSG:32615")
    cube = open_items(season, geobox=box)
    assert geobox_of(cube) == box
    assert (cube.values != -9999).any()
    albers = open_items(season, crs="EPSG:5070")
    assert geobox_of(albers).crs.epsg == 5070
    assert geobox_of(albers).resolution.x == 30
    assert (albers.values != -9999).any()


def test_time_is_of_the_first_granule_and_ids_of_all(tmp_path: Path) -> None:
    where = {"window": (10, 20, 30, 40), "sensor": "S30"}
    late = granule(tmp_path, time="2025-10-07T17:21:07Z", seed=1, cloud_cover=4, **where)
    early = granule(tmp_path, time="2025-10-07T17:10:54Z", seed=2, cloud_cover=1, **where)
    cube = open_items([late, early], mask=None)
    assert cube.sizes["time"] == 1
    assert str(cube.time.values[0])[:19] == "2025-10-07T17:10:54"
    assert cube["item"].values[0] == f"{early['id']} {late['id']}"
    assert cube["eo:cloud_cover"].values[0] == 2.5
    first, second = (read_own(i, [*ASSETS["S30"].values()]) for i in (early, late))
    assert (cube.values[0] == np.where(first == -9999, second, first)).all()


def test_unknown_cloud_cover_is_nan(season: list[dict[str, Any]]) -> None:
    item = {**season[0], "properties": {**season[0]["properties"], "eo:cloud_cover": None}}
    assert math.isnan(open_items([item])["eo:cloud_cover"].values[0])


def record(tile: str, when: dt.datetime, sensor: str = "S30") -> HlsItem:
    return HlsItem(
        id=f"{tile}{when.isoformat()}{sensor}", sensor=sensor, tile=tile, datetime=when, hrefs={},  # type: ignore[arg-type]
        geobox=tile_geobox("15TVM"),
    )  # fmt: skip


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["15TVM", "15TWM", "56KKC", "60HUD", "01GEL"]),
            st.datetimes(dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 6)),
            st.sampled_from(["L30", "S30"]),
        ),
        max_size=12,
    )
)
def test_steps_are_a_partition_by_local_day_and_sensor(made: list[tuple[str, dt.datetime, str]]) -> None:
    items = [record(tile, when.replace(tzinfo=dt.UTC), sensor) for tile, when, sensor in made]
    steps = time_steps(items)
    assert sorted(item.id for step in steps for item in step) == sorted(item.id for item in items)
    assert [step[0].datetime for step in steps] == sorted(step[0].datetime for step in steps)
    for step in steps:
        assert len({item.sensor for item in step}) == 1
        assert [item.datetime for item in step] == sorted(item.datetime for item in step)


def test_a_pass_over_utc_midnight_is_one_step() -> None:
    """56KKC, north-east of Brisbane: Landsat passes at 23:58 and 00:01 UTC, which is 10 in the morning of one day."""
    midnight = dt.datetime(2024, 5, 3, tzinfo=dt.UTC)
    items = [record("56KKC", midnight + dt.timedelta(minutes=m), "L30") for m in (-2, 1)]
    assert len(time_steps(items)) == 1
    assert len(time_steps([items[0], record("56KKC", items[0].datetime + dt.timedelta(days=1), "L30")])) == 2


def test_l30_and_s30_of_one_day_stay_apart() -> None:
    noon = dt.datetime(2024, 5, 3, 17, tzinfo=dt.UTC)
    assert len(time_steps([record("15TVM", noon, "L30"), record("15TVM", noon, "S30")])) == 2


@pytest.mark.usefixtures("no_read")
def test_two_zones_are_refused_before_any_read(season: list[dict[str, Any]]) -> None:
    other = {
        **season[0],
        "id": season[0]["id"].replace("15TVM", "16TCS"),
        "properties": {"datetime": "2024-05-02T17:00:00Z"},
    }
    other["assets"] = {k: {"href": f"/nowhere/{k}.tif"} for k in season[0]["assets"]}
    with pytest.raises(
        GridError, match=r"2 UTM zones: EPSG:32615 \(T15TVM\) and EPSG:32616 \(T16TCS\).*crs='EPSG:32615'"
    ):
        open_items([season[0], other])
    assert open_items([season[0], other], tile="T15TVM").sizes["time"] == 1
    assert geobox_of(open_items([season[0], other], crs="EPSG:32616")).crs.epsg == 32616


@pytest.mark.usefixtures("no_read")
def test_refusals_before_any_read(season: list[dict[str, Any]]) -> None:
    with pytest.raises(GridError, match=r"bbox=\(10.0, 50.0, 11.0, 51.0\) lies outside of the items' tiles \(T15TVM\)"):
        open_items(season, bbox=(10, 50, 11, 51))
    with pytest.raises(GridError, match="crosses the antimeridian"):
        open_items(season, bbox=(179, -17, -179, -16))
    with pytest.raises(ItemError, match="there are no items to open"):
        open_items([])
    with pytest.raises(SearchError, match=r"there is no file 'items\.json'"):
        open_items("items.json")
    with pytest.raises(ItemError, match="no item lies on tile='T16TCS'; the items are of T15TVM"):
        open_items(season, tile="T16TCS")
    with pytest.raises(XgfmError, match="loader='stackstak' is not known"):
        open_items(season, loader="stackstak")
    with pytest.raises(XgfmError, match=r"gdal= holds \['GDAL_HTTP_BEARER'\]"):
        open_items(season, gdal={"GDAL_HTTP_BEARER": "x"})
    with pytest.raises(XgfmError, match=r"Fmask has no bit \['clouds'\]"):
        open_items(season, mask=("clouds",))


def test_steps_outside_of_the_box_are_left_out(season: list[dict[str, Any]], tmp_path: Path) -> None:
    east = granule(tmp_path, tile="15TWM", window=(1000, 1200, 20, 20), time="2024-05-20T17:04:39Z")
    box = geobox_of(open_items(season)).geographic_extent.boundingbox.bbox
    assert open_items([*season, east], bbox=box).sizes["time"] == 3


def test_corrections_are_recorded(season: list[dict[str, Any]]) -> None:
    properties = {**season[0]["properties"], "proj:epsg": 32715}
    with pytest.warns(UserWarning, match="EPSG:32715"):
        cube = open_items([{**season[0], "properties": properties}], mask=None)
    assert "EPSG:32615, which was taken" in cube.attrs["item_corrections"][0]
    assert (cube.values[0] == read_own(season[0], [*ASSETS["L30"].values()])).all()


def test_a_loader_of_ones_own(season: list[dict[str, Any]]) -> None:
    """The protocol is all that is asked of a loader."""
    import dask.array as da

    def flat(steps: Any, bands: Any, geobox: Any, layer: Any, *, chunks: Any, gdal: Any) -> da.Array:
        assert gdal["GDAL_HTTP_MAX_RETRY"] == "5"
        return da.full((len(steps), len(bands), *geobox.shape), 7, dtype=layer.dtype, chunks=(1, -1, *chunks))

    cube = open_items(season, mask=None, loader=flat)
    assert (cube.values == 7).all()
    assert (cube.fmask.values == 7).all()


def test_open_hls_is_search_and_open(season: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "items.json"
    save_items(season, path)
    box = geobox_of(open_items(season)).geographic_extent.boundingbox.bbox
    cube = open_hls(box, "2024-05", path, mask=None)
    assert cube.sizes["time"] == 2
    xr.testing.assert_identical(cube.compute(), open_items(season[:2], mask=None, bbox=box).compute())
    assert open_hls(box, catalog=path, max_cloud_cover=20).sizes["time"] == 1
    assert open_hls(catalog=path, tile="15TVM").sizes["time"] == 3
    assert open_hls(catalog=path, geobox=geobox_of(cube)).shape[2:] == cube.shape[2:]
    with pytest.raises(SearchError, match=r"no HLS granule in catalog=.*datetime='2023'"):
        open_hls(box, "2023", path)


def test_open_hls_passes_everything_on(monkeypatch: pytest.MonkeyPatch, season: list[dict[str, Any]]) -> None:
    asked: dict[str, Any] = {}

    def search(bbox: Any, datetime: Any, catalog: Any, **options: Any) -> Any:
        asked.update(bbox=bbox, datetime=datetime, catalog=catalog, **options)
        return season

    monkeypatch.setattr(opening, "search", search)
    box = geobox_of(open_items(season)).geographic_extent.boundingbox.bbox
    open_hls(box, "2024", "planetary-computer", collections=["hls2-l30"], max_cloud_cover=5, tile="15TVM")
    assert asked == {
        "bbox": box, "datetime": "2024", "catalog": "planetary-computer", "collections": ["hls2-l30"],
        "max_cloud_cover": 5, "tile": "15TVM",
    }  # fmt: skip


def test_it_writes_to_zarr_as_it_is(season: list[dict[str, Any]], tmp_path: Path) -> None:
    cube = open_items(season)
    cube.to_zarr(tmp_path / "cube.zarr")
    back = xr.open_zarr(tmp_path / "cube.zarr", decode_coords="all")["hls"]
    assert (back.values == cube.values).all()
    assert geobox_of(back) == geobox_of(cube)


@pytest.mark.usefixtures("no_read")
def test_a_file_of_items_is_opened(season: list[dict[str, Any]], tmp_path: Path) -> None:
    save_items(season, tmp_path / "items.json")
    expected = open_items(season)
    for path in (tmp_path / "items.json", str(tmp_path / "items.json")):
        assert open_items(path)["item"].values.tolist() == expected["item"].values.tolist()


@pytest.mark.usefixtures("no_read")
def test_attribution_names_who_made_it(season: list[dict[str, Any]]) -> None:
    archive = "HLS, NASA LP DAAC. Contains modified Copernicus Sentinel data 2024."
    real = open_items(season).attrs
    assert real["attribution"] == archive
    assert "simulated" not in real
    made = [{**item, "properties": {**item["properties"], "xgfm:simulated": True}} for item in season]
    attrs = open_items(made).attrs
    assert attrs["attribution"] == "simulated by xgfm; not an observation."
    assert attrs["simulated"] == 1
    assert attrs["long_name"].startswith("simulated HLS")
    both = open_items([*season[:2], made[2]]).attrs
    assert both["attribution"] == f"{archive} simulated by xgfm; not an observation."
    assert both["simulated"] == 1
    older = {**season[2], "properties": {**season[2]["properties"], "datetime": "2022-06-10T17:04:40Z"}}
    assert "Sentinel data 2022-2024." in open_items([*season[:2], older]).attrs["attribution"]
