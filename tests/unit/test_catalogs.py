"""Searching a STAC API on 127.0.0.1, static catalogues and files."""

from __future__ import annotations

import copy
import datetime as dt
import json
from pathlib import Path
from typing import Any

import pystac
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pystac_client import Client
from serving import StacApi, serve

from xgfm.cube import catalogs
from xgfm.cube.catalogs import Catalog, Query, load_items, save_items, search
from xgfm.cube.interval import parse_interval
from xgfm.cube.items import normalise
from xgfm.errors import GridError, ItemError, MissingExtraError, SearchError, WriteError

BOX = (-94.2, 46.0, -93.2, 46.9)


def item(sensor: str, day: int, tile: str = "15TVM", cover: float | None = 10, west: float = -94.3) -> dict[str, Any]:
    date = dt.datetime(2024, 1, 1, 17, 4, 39) + dt.timedelta(days=day - 1)
    name = f"HLS.{sensor}.T{tile}.{date:%Y%jT%H%M%S}.v2.0"
    keys = ["B02", "B03", "B04", "B05", "B06", "B07", "B8A", "B11", "B12", "Fmask"]
    box = [west, 45.95, west + 1.4, 46.95]
    ring = [[box[0], box[1]], [box[2], box[1]], [box[2], box[3]], [box[0], box[3]], [box[0], box[1]]]
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [],
        "id": name,
        "collection": f"HLS{sensor}_2.0",
        "bbox": box,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"datetime": f"{date:%Y-%m-%dT%H:%M:%SZ}", "eo:cloud_cover": cover, "proj:epsg": 32615},
        "assets": {key: {"href": f"https://host/{name}.{key}.tif"} for key in keys},
        "links": [],
    }


ITEMS = [
    item("L30", 10), item("L30", 26, cover=80), item("S30", 12), item("S30", 150, cover=None),
    item("S30", 151, tile="15TWM", west=-93.4), item("L30", 300, west=-60.0),
]  # fmt: skip


def ids(found: list[dict[str, Any]]) -> list[str]:
    return [f["id"] for f in found]


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Any:
    with serve(StacApi(items=ITEMS)) as server:
        assert isinstance(server, StacApi)
        monkeypatch.setattr(catalogs, "CATALOGS", {"lpcloud": Catalog(server.url, ("HLSL30_2.0", "HLSS30_2.0"))})
        yield server


def test_search_pages_through_an_api_and_leaves_items_as_they_are(api: StacApi) -> None:
    found = search(BOX)
    assert ids(found) == ids([ITEMS[i] for i in (0, 1, 2, 3, 4)])
    assert found[0] == ITEMS[0]
    assert found[0]["properties"]["proj:epsg"] == 32615  # pystac would have moved it
    bodies = [json.loads(r.body) for r in api.asked("/search")]
    assert len(bodies) == 3
    assert bodies[0]["collections"] == ["HLSL30_2.0", "HLSS30_2.0"]
    assert bodies[0]["bbox"] == list(BOX)


def test_search_filters(api: StacApi) -> None:
    assert ids(search(BOX, "2024-01")) == ids(ITEMS[:3])
    assert ids(search(BOX, max_cloud_cover=10)) == ids([ITEMS[0], ITEMS[2], ITEMS[4]])
    assert ids(search(BOX, collections=["HLSL30_2.0"])) == ids(ITEMS[:2])
    assert ids(search(BOX, tile="T15TWM")) == ids([ITEMS[4]])
    assert ids(search((-93.5, 46.0, -92.8, 46.9), tile="15TWM")) == ids([ITEMS[4]])


def test_filters_are_asked_of_the_api_too(api: StacApi) -> None:
    search(BOX, "2024-01-05/2024-01", max_cloud_cover=50)
    body = json.loads(api.asked("/search")[0].body)
    assert body["datetime"] == "2024-01-05T00:00:00Z/2024-01-31T23:59:59Z"
    assert body["query"] == {"eo:cloud_cover": {"lte": 50}}
    api.conforms = api.conforms[:3]
    api.requests.clear()
    assert len(search(BOX, max_cloud_cover=50)) == 3
    assert "query" not in json.loads(api.asked("/search")[0].body)


def test_a_tile_says_where(api: StacApi) -> None:
    assert len(search(tile="15TVM", datetime="2024")) == 4
    west, south, east, north = json.loads(api.asked("/search")[0].body)["bbox"]
    assert west < -94.2 < -93.0 < east
    assert south < 46 < 46.9 < north


def test_any_api_by_url(api: StacApi) -> None:
    assert ids(search(BOX, catalog=api.url)) == ids(ITEMS[:5])
    api.items = [{**ITEMS[0], "collection": "other"}]
    with pytest.raises(SearchError, match=r"has no collection that is known as HLS; name it, collections="):
        search(BOX, catalog=api.url)
    assert len(search(BOX, catalog=api.url, collections=["other"])) == 1


def test_an_empty_search(api: StacApi) -> None:
    with pytest.raises(
        SearchError,
        match=r"no HLS granule in catalog='lpcloud' for bbox=[^=]*, datetime='2023'; widen bbox= or widen datetime=$",
    ):
        search(BOX, "2023")


@pytest.mark.parametrize("api", [None], indirect=True)
def test_refused_before_the_api_is_asked(api: StacApi) -> None:
    with pytest.raises(GridError, match="crosses the antimeridian"):
        search((179, -17, -179, -16))
    with pytest.raises(SearchError, match=r"give bbox=.west, south, east, north. or tile='T15TVM'"):
        search(datetime="2024")
    with pytest.raises(GridError, match="is not an MGRS tile id"):
        search(tile="Iowa")
    with pytest.raises(SearchError, match=r"catalog='lpclod' is not known; give one of \['lpcloud'\]"):
        search(BOX, catalog="lpclod")
    assert api.requests == []


def test_an_api_that_fails(api: StacApi) -> None:
    api.scripts["/search"] = [503, 200]
    assert len(search(BOX)) == 5
    api.scripts["/search"] = [-400]
    with pytest.raises(SearchError, match=r"the STAC API http://127.0.0.1:\d+ did not answer the search"):
        search(BOX)


def test_nobody_answers() -> None:
    with serve(StacApi()) as server:
        url = server.url
    with pytest.raises(SearchError, match="cannot be read as STAC JSON"):
        search(BOX, catalog=url)


def test_items_are_saved_and_loaded(tmp_path: Path) -> None:
    save_items(ITEMS, tmp_path / "items.json")
    assert load_items(tmp_path / "items.json") == ITEMS
    assert ids(search(BOX, "2024-01", tmp_path / "items.json")) == ids(ITEMS[:3])
    assert ids(search(catalog=tmp_path / "items.json", max_cloud_cover=20)) == ids([ITEMS[0], *ITEMS[2:3], *ITEMS[4:]])
    assert len(pystac.ItemCollection.from_file(str(tmp_path / "items.json"))) == len(ITEMS)


def test_saved_items_hold_no_signature(tmp_path: Path) -> None:
    signed = copy.deepcopy(ITEMS[0])
    signed["assets"]["B02"]["href"] = "https://hls2euwest.blob.core.windows.net/hls2/x.B02.tif?sig=canary"
    save_items([pystac.Item.from_dict(signed)], tmp_path / "items.json")
    assert "canary" not in (tmp_path / "items.json").read_text()
    assert signed["assets"]["B02"]["href"].endswith("canary")


def test_relative_hrefs_are_taken_from_the_files_folder(tmp_path: Path) -> None:
    near = copy.deepcopy(ITEMS[0])
    near["assets"]["B02"]["href"] = "./granule/B02.tif"
    near["assets"]["B03"]["href"] = "/data/B03.tif"
    (tmp_path / "item.json").write_text(json.dumps(near))
    assets = load_items(tmp_path / "item.json")[0]["assets"]
    assert assets["B02"]["href"] == str(tmp_path / "granule" / "B02.tif")
    assert assets["B03"]["href"] == "/data/B03.tif"
    assert assets["B04"]["href"].startswith("https://host/")


def test_item_collections_by_url() -> None:
    near = copy.deepcopy(ITEMS[0])
    near["assets"]["B02"]["href"] = "granule/B02.tif"
    document = json.dumps({"type": "FeatureCollection", "features": [near]}).encode()
    with serve(StacApi()) as server:
        server.answer = lambda request: (200, {"Content-Type": "application/json"}, document)  # type: ignore[method-assign]
        found = search(BOX, catalog=f"{server.url}/a/items.json")
        assert found[0]["assets"]["B02"]["href"] == f"{server.url}/a/granule/B02.tif"


def test_what_is_no_stac_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("<html>")
    with pytest.raises(SearchError, match=r"text\.json' cannot be read as STAC JSON"):
        search(BOX, catalog=tmp_path / "text.json")
    (tmp_path / "other.json").write_text('{"type": "Polygon"}')
    with pytest.raises(SearchError, match="holds no STAC items"):
        load_items(tmp_path / "other.json")


def test_static_catalogues(tmp_path: Path) -> None:
    root = pystac.Catalog("root", "test")
    child = pystac.Catalog("child", "test")
    root.add_child(child)
    for number, one in enumerate(ITEMS):
        (child if number % 2 else root).add_item(pystac.Item.from_dict({**one, "collection": None}))
    root.normalize_and_save(str(tmp_path), pystac.CatalogType.SELF_CONTAINED)
    found = search(BOX, "2024-01", tmp_path / "catalog.json")
    assert sorted(ids(found)) == sorted(ids(ITEMS[:3]))
    by_id = {one["id"]: one for one in ITEMS}
    assert all(normalise(one).hrefs == normalise(by_id[one["id"]]).hrefs for one in found)


def test_geoparquet(tmp_path: Path) -> None:
    """Written by stac-geoparquet, as NASA's archive is."""
    arrow = pytest.importorskip("stac_geoparquet.arrow")
    arrow.parse_stac_items_to_parquet(ITEMS, output_path=tmp_path / "items.parquet")
    found = search(BOX, "2024-01", tmp_path / "items.parquet")
    assert ids(found) == ids(ITEMS[:3])
    assert [normalise(one) for one in found] == [normalise(one) for one in ITEMS[:3]]
    assert ids(load_items(tmp_path / "items.parquet")) == ids(ITEMS)


def test_geoparquet_of_the_real_archive_item(shared_data: Path, tmp_path: Path) -> None:
    arrow = pytest.importorskip("stac_geoparquet.arrow")
    path = next((shared_data / "stac_items").glob("real_nasasidecar_HLSS30*.json"))
    real = json.loads(path.read_text())
    arrow.parse_stac_items_to_parquet([copy.deepcopy(real)], output_path=tmp_path / "HLSS30_2.0-2015-11.parquet")
    (found,) = search((-91.8, -0.5, -91.5, -0.2), "2015-11", tmp_path / "HLSS30_2.0-2015-11.parquet")
    assert normalise(found) == normalise(real)


def test_geoparquet_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "stac_geoparquet.arrow", None)
    (tmp_path / "items.parquet").touch()
    with pytest.raises(MissingExtraError, match=r'needs stac-geoparquet.*pip install "xgfm\[geoparquet\]"'):
        search(BOX, catalog=tmp_path / "items.parquet")


def test_cmr_answers_are_searched_too(shared_data: Path) -> None:
    path = shared_data / "stac_items" / "real_cmr_granules_T15TVM_2025-10.json"
    assert len(load_items(path)) == 6
    assert len(search(BOX, "2025-10-07", path)) == 2
    assert len(search(BOX, catalog=path, max_cloud_cover=10)) == 4


DATES = st.dates(dt.date(2014, 1, 1), dt.date(2030, 12, 31))
PERIODS = DATES.flatmap(
    lambda d: st.sampled_from([f"{d:%Y}", f"{d:%Y-%m}", f"{d:%Y-%m-%d}", f"{d:%Y-%m-%d}T10:20:30Z"])
)


@settings(deadline=None)
@given(first=PERIODS, last=PERIODS | st.just(".."))
def test_intervals_are_those_of_pystac_client(first: str, last: str) -> None:
    """Its own expansion of '2024-05', which every STAC user knows."""
    expected = Client(id="x", description="x")  # no network: formatting alone
    text = f"{first}/{last}"
    wanted = pystac_client_interval(expected, text)
    start, end = wanted
    if start is not None and end is not None and end < start:
        with pytest.raises(SearchError, match="ends before it starts"):
            parse_interval(text)
        return
    got = parse_interval(text)
    assert tuple(None if t is None else t.replace(microsecond=0) for t in got) == (start, end)
    assert parse_interval((first, None if last == ".." else last)) == got


def pystac_client_interval(client: Client, text: str) -> tuple[dt.datetime | None, dt.datetime | None]:
    from pystac_client.item_search import ItemSearch

    formatted = ItemSearch("https://host", datetime=text, client=client)._parameters["datetime"]
    parts = formatted.split("/")
    return tuple(None if p == ".." else dt.datetime.fromisoformat(p) for p in parts)  # type: ignore[return-value]


def test_intervals_of_dates_and_single_periods() -> None:
    day = parse_interval(dt.date(2024, 5, 2))
    assert (day[0], day[1]) == parse_interval("2024-05-02")
    assert parse_interval(("2024-05", "2024-06")) == parse_interval("2024-05/2024-06")
    assert parse_interval(None) == (None, None)


@pytest.mark.parametrize(
    "text",
    ["2024-05-02T17:00:00+02:00", "2024-05-02 00:30:00-0700", "2024-05-02T17:00:00.5+05:30", "20240502T170000+02"],
)
def test_times_with_an_offset_are_converted(text: str) -> None:
    instant = dt.datetime.fromisoformat(text).astimezone(dt.UTC)
    first, last = parse_interval(text)
    assert first == instant
    assert last is not None
    assert instant <= last < instant + dt.timedelta(seconds=1)
    assert parse_interval(f"{text}/..") == (instant, None)
    assert parse_interval(dt.datetime.fromisoformat(text))[0] == instant


@pytest.mark.parametrize("text", ["spring", "2024-13", ("2024", "x"), "2024/2025/2026"])
def test_what_is_no_period_is_refused(text: Any) -> None:
    with pytest.raises(SearchError, match=r"is not a period; write '2024', '2024-05'"):
        parse_interval(text)


@pytest.mark.parametrize(
    ("box", "footprint", "touch"),
    [
        ((0, 0, 1, 1), [0.5, 0.5, 2, 2], True),
        ((0, 0, 1, 1), [1.5, 0, 2, 1], False),
        ((0, 0, 1, 1), [0, 2, 1, 3], False),
        ((179, 0, 180, 1), [179.5, 0, -179.5, 1], True),  # the footprint crosses the antimeridian
        ((-180, 0, -179.8, 1), [179.5, 0, -179.5, 1], True),
        ((0, 0, 1, 1), [179.5, 0, -179.5, 1], False),
        ((0, 0, 1, 1), [0.5, 0.5, 10, 2, 2, 20], True),  # with heights
    ],
)
def test_boxes(box: Any, footprint: list[float], touch: bool) -> None:
    query = Query(box, (None, None), None, None, None)
    assert query.matches({"id": "x", "properties": {}, "assets": {}, "bbox": footprint}) is touch


@pytest.mark.parametrize("name", ["items.json", "Items.GeoJSON", "items.parquet", "items.geoparquet"])
def test_a_file_that_is_not_there_is_refused_as_such(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    for read in (load_items, lambda where: search(catalog=where), lambda where: search(BOX, catalog=str(where))):
        with pytest.raises(SearchError, match=f"there is no file '{path}'.*catalog= a file of items that is there"):
            read(path)


def test_an_empty_search_of_a_file_says_what_was_asked(tmp_path: Path) -> None:
    save_items([], tmp_path / "none.json")
    with pytest.raises(SearchError, match=r"no HLS granule in catalog='.*none.json'; give another catalog=$"):
        search(catalog=tmp_path / "none.json")
    asked = {"tile": "T15TVM", "max_cloud_cover": 5, "collections": ["a"]}
    mends = "check tile= or raise max_cloud_cover= or name other collections="
    with pytest.raises(SearchError, match=f"for tile='T15TVM', max_cloud_cover=5, .*; {mends}$"):
        search(catalog=tmp_path / "none.json", **asked)


def test_one_collection_may_be_given_by_itself(tmp_path: Path) -> None:
    save_items(ITEMS, tmp_path / "items.json")
    found = search(catalog=tmp_path / "items.json", collections="HLSL30_2.0")
    assert ids(found) == [i["id"] for i in ITEMS if i["collection"] == "HLSL30_2.0"]
    for wrong in (5, [None], [["HLSL30_2.0"]]):
        with pytest.raises(SearchError, match=r"collections=.* must be ids"):
            search(catalog=tmp_path / "items.json", collections=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("cover", ["20", -1, 101, float("nan"), True, [20]])
def test_cloud_cover_is_percent(cover: Any) -> None:
    with pytest.raises(SearchError, match=r"max_cloud_cover=.* must be a number, percent"):
        search(BOX, max_cloud_cover=cover)


def test_items_whose_cover_is_no_number_are_left_out() -> None:
    odd = item("L30", 10, cover="much")  # type: ignore[arg-type]
    assert not Query(None, (None, None), None, 20, None).matches(odd)


@pytest.mark.parametrize("box", [[1, 2], [1, 2, 3, "4"], "here", 5])
def test_items_whose_box_is_none_are_refused(box: Any) -> None:
    with pytest.raises(ItemError, match=r"has bbox .*; expected 4 numbers in degrees"):
        Query(BOX, (None, None), None, None, None).matches({**ITEMS[0], "bbox": box})


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (json.dumps(ITEMS[:1]), SearchError, "holds a JSON list; give an item, an item collection"),
        ("5", SearchError, "holds a JSON int"),
        ("null", SearchError, "holds a JSON NoneType"),
        ("\x00garbage", SearchError, "cannot be read as STAC JSON"),
        ('{"feed": 1}', SearchError, "is no answer of CMR's granule search"),
        ('{"feed": {"entry": [{"title": "x"}]}}', SearchError, "is no answer of CMR's granule search"),
        ('{"features": 5}', SearchError, "holds no STAC items"),
        ('{"features": ["x"]}', ItemError, "is a str and no STAC item"),
        ('{"features": [{"id": "x"}]}', ItemError, "a STAC item has an 'id', and 'properties' and 'assets'"),
        ('{"features": [{"id": "x", "properties": {}, "assets": {"B02": 5}}]}', ItemError, "a STAC item has an 'id'"),
    ],
)
def test_files_that_hold_no_items_are_refused(text: str, error: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(error, match=message):
        load_items(tmp_path / "x.json")
    with pytest.raises(error, match=message):
        search(catalog=tmp_path / "x.json")


def test_an_asset_without_href_is_loaded_as_it_is(tmp_path: Path) -> None:
    lacking = copy.deepcopy(ITEMS[0])
    lacking["assets"]["B02"] = {}
    (tmp_path / "x.json").write_text(json.dumps(lacking))
    with pytest.raises(ItemError, match="asset 'B02' has no href"):
        normalise(load_items(tmp_path / "x.json")[0])


def test_a_damaged_geoparquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"garbage")
    with pytest.raises(SearchError, match=r"x.parquet' cannot be read as GeoParquet of STAC items"):
        load_items(tmp_path / "x.parquet")


def test_items_are_saved_where_there_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"items cannot be written to .*No such file.*in a folder that is there"):
        save_items(ITEMS, tmp_path / "gone" / "items.json")
    with pytest.raises(ItemError, match="no STAC item"):
        save_items(["x.json"], tmp_path / "items.json")
    save_items(ITEMS[0], tmp_path / "one.json")
    assert load_items(tmp_path / "one.json") == ITEMS[:1]


def test_previews_with_a_query_are_not_saved_and_bands_are_refused(tmp_path: Path) -> None:
    item = copy.deepcopy(ITEMS[0])
    item["assets"]["tilejson"] = {"href": "https://host/tilejson.json?item=canary"}
    save_items([item], tmp_path / "items.json")
    assert load_items(tmp_path / "items.json") == ITEMS[:1]
    item["assets"]["B02"]["href"] += "?jwt=canary"
    with pytest.raises(ItemError, match="is signed or holds a password"):
        save_items([item], tmp_path / "items.json")


def test_an_item_whose_date_is_none_is_refused() -> None:
    odd = {**ITEMS[0], "properties": {"datetime": "spring"}}
    with pytest.raises(ItemError, match="has the date 'spring'; expected ISO 8601"):
        Query(None, parse_interval("2024"), None, None, None).matches(odd)
