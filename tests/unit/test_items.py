"""Items of every catalogue against what their publishers wrote in them, and against one another."""

from __future__ import annotations

import copy
import datetime as dt
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pystac
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xgfm.cube.items import ASSETS, from_cmr, normalise, normalise_all, tile_of
from xgfm.errors import GridError, ItemError
from xgfm.grid import tile_geobox
from xgfm.models.spec import PRITHVI_BANDS

SUFFIXES = {
    "L30": ["B02", "B03", "B04", "B05", "B06", "B07"],
    "S30": ["B02", "B03", "B04", "B8A", "B11", "B12"],
}
"""Prithvi's six bands in HLS's user guide, written again by hand."""

REFUSED = {"real_cdse_sentinel2_projcode.json", "real_nasasidecar_HLSL30_VI_HLS-VI.L30.T06WVS.2024120T211159.v2.0.json"}


def files(shared: Path) -> dict[str, list[dict[str, Any]]]:
    """The plain items of every file of real and rebuilt metadata."""
    found = {}
    for path in sorted((shared / "stac_items").glob("*.json")):
        document = json.loads(path.read_text())
        found[path.name] = from_cmr(document) if "feed" in document else document.get("features", [document])
    return found


def table(shared: Path) -> list[list[str]]:
    """One row per item: file, id, sensor, tile, date, cloud cover, grid, assets; or why it is refused."""
    rows = []
    for name, items in files(shared).items():
        for item in items:
            try:
                record = normalise(item, fmask=True)
            except ItemError as error:
                rows.append([name[:44], item["id"][:34], "refused", str(error)[:60]])
                continue
            corner = f"{record.geobox.transform.c:.0f}, {record.geobox.transform.f:.0f}"
            assets = " ".join(record.hrefs[b].rsplit(".", 2)[1] for b in (*PRITHVI_BANDS, "fmask"))
            grid = f"{record.geobox.crs.epsg} {corner}"
            date = f"{record.datetime:%Y-%m-%d %H:%M:%S}"
            rows.append(
                [name[:44], record.id, record.sensor, record.tile, date, f"{record.cloud_cover:g}", grid, assets]
            )
    return rows


def test_every_real_and_rebuilt_item_is_read_right(shared_data: Path) -> None:
    read = 0
    for name, items in files(shared_data).items():
        for item in items:
            if name in REFUSED:
                with pytest.raises(ItemError, match="is not an HLS granule of surface reflectance"):
                    normalise(item)
                continue
            check_against_publisher(item)
            read += 1
    for row in table(shared_data):
        print(" | ".join(row))
    assert read == 22


def check_against_publisher(item: dict[str, Any]) -> None:
    """Everything that the item's file names, ``proj:*`` and properties say, without this package's own tables."""
    record = normalise(item, fmask=True)
    names = [record.hrefs[band].rsplit("/", 1)[1] for band in PRITHVI_BANDS]
    _, sensor, tile, stamp = names[0].split(".")[:4]
    assert record.sensor == sensor
    assert record.tile == tile[1:]
    assert [name.split(".")[-2] for name in names] == SUFFIXES[sensor]
    assert record.hrefs["fmask"].endswith(".Fmask.tif")
    assert all(href.startswith("https://") for href in record.hrefs.values())
    assert len({name.split(".v")[0] for name in names}) == 1
    properties = item["properties"]
    # The name holds the start of the pass; datetime may be that of the tile, some minutes later.
    named = dt.datetime.strptime(stamp, "%Y%jT%H%M%S").replace(tzinfo=dt.UTC)
    assert abs(record.datetime - named) < dt.timedelta(minutes=30)
    assert record.datetime.isoformat(timespec="milliseconds")[:23] == properties["datetime"][:23]
    assert record.cloud_cover == properties["eo:cloud_cover"]
    zone = int(tile[1:3])
    assert record.geobox.crs.epsg == properties.get("proj:epsg", 32600 + zone)
    assert list(record.geobox.transform)[:6] == properties.get("proj:transform", list(tile_geobox(tile).transform))[:6]
    assert list(record.geobox.shape) == properties.get("proj:shape", [3660, 3660])
    assert record.notes == ()
    # Published footprints, to a pixel: they are simplified polygons.
    west, south, east, north = record.geobox.geographic_extent.boundingbox.bbox
    box = item["bbox"]
    assert west - 1e-3 <= box[0] < box[2] <= east + 1e-3
    assert south - 1e-3 <= box[1] < box[3] <= north + 1e-3


def test_cmr_and_its_stac_say_the_same(shared_data: Path) -> None:
    """Two routes of NASA to the same six granules."""
    found = files(shared_data)
    direct = normalise_all(found["real_cmr_granules_T15TVM_2025-10.json"])
    stac = normalise_all(found["rebuilt_cmrstac_T15TVM_2025-10.json"])
    assert [(r.id, r.datetime, r.hrefs, r.geobox, r.cloud_cover) for r in direct] == [
        (r.id, r.datetime, r.hrefs, r.geobox, r.cloud_cover) for r in stac
    ]


def test_planetary_computer_and_nasa_say_the_same(shared_data: Path) -> None:
    found = files(shared_data)
    for sensor, rest in (("S30", "T13RCN.2024128T173909.v2.0.json"), ("L30", "T19LBJ.2020239T144556.v2.0.json")):
        nasa = normalise(found[f"rebuilt_nasasidecar_HLS.{sensor}.{rest}"][0])
        azure = normalise(found[f"rebuilt_planetarycomputer_hls2-{sensor.lower()}_HLS.{sensor}.{rest}"][0])
        assert (azure.id, azure.geobox, azure.datetime) == (nasa.id, nasa.geobox, nasa.datetime)
        assert all("hls2euwest.blob.core.windows.net" in href for href in azure.hrefs.values())


def test_pystac_changes_nothing(shared_data: Path) -> None:
    """Pystac moves proj:epsg to proj:code."""
    for name, items in files(shared_data).items():
        for item in items if name.startswith(("real_nasa", "rebuilt_planetary", "rebuilt_nasa")) else []:
            if name not in REFUSED:
                there_and_back = pystac.Item.from_dict(copy.deepcopy(item))
                assert "proj:code" in there_and_back.to_dict(transform_hrefs=False)["properties"]
                assert normalise(there_and_back) == normalise(item)


def test_records_travel(shared_data: Path) -> None:
    record = normalise(files(shared_data)["rebuilt_cmrstac_T15TVM_2025-10.json"][0])
    assert pickle.loads(pickle.dumps(record)) == record


def made(sensor: str = "L30", tile: str = "15TVM", **properties: Any) -> dict[str, Any]:
    name = f"HLS.{sensor}.T{tile}.2024123T170439.v2.0"
    keys = [*SUFFIXES[sensor], "Fmask", "B01", "B10"] + (["B08"] if sensor == "S30" else [])
    return {
        "id": name,
        "properties": {"datetime": "2024-05-02T17:04:39Z", **properties},
        "assets": {key: {"href": f"https://host/{name}.{key}.tif"} for key in keys},
    }


@pytest.mark.parametrize("sensor", ["L30", "S30"])
@pytest.mark.parametrize("band", PRITHVI_BANDS)
def test_a_missing_asset_is_named(sensor: str, band: str) -> None:
    item = made(sensor)
    key = ASSETS[sensor][band]
    del item["assets"][key]
    with pytest.raises(ItemError, match=rf"HLS\.{sensor}\.T15TVM.*has no asset '{key}' \({band} of {sensor}\)"):
        normalise(item)
    rest = [b for b in PRITHVI_BANDS if b != band]
    assert set(normalise(item, bands=rest).hrefs) == {*rest, "fmask"}


def test_b08_does_not_stand_for_b8a() -> None:
    item = made("S30")
    del item["assets"]["B8A"]
    with pytest.raises(ItemError, match="B08 is the broad near infrared and does not replace B8A"):
        normalise(item)
    item["assets"]["B8A"] = item["assets"]["B08"]
    with pytest.raises(ItemError, match=r"asset 'B8A' \(nir08 of S30\) points to the file .*B08.tif"):
        normalise(item)


def test_common_names_are_not_looked_at() -> None:
    item = made("S30")
    for asset in item["assets"].values():
        asset["eo:bands"] = [{"common_name": "nir"}]
    assert normalise(item).hrefs["nir08"].endswith("B8A.tif")


def test_s30_red_edges_are_not_taken_for_l30_bands() -> None:
    item = made("S30")
    for key in ("B05", "B06", "B07"):
        item["assets"][key] = {"href": f"https://host/HLS.S30.T15TVM.2024123T170439.v2.0.{key}.tif"}
    assert [normalise(item).hrefs[b].split(".")[-2] for b in PRITHVI_BANDS] == SUFFIXES["S30"]


def test_fmask_is_asked_for_only_where_needed() -> None:
    item = made()
    del item["assets"]["Fmask"]
    assert "fmask" not in normalise(item).hrefs
    with pytest.raises(ItemError, match=r"has no asset 'Fmask'.*open it unmasked with mask=None"):
        normalise(item, fmask=True)


def test_files_of_another_granule_are_refused() -> None:
    item = made()
    item["assets"]["B04"]["href"] = "https://host/HLS.L30.T16TCA.2024123T170439.v2.0.B04.tif"
    with pytest.raises(ItemError, match=r"points to the file 'HLS.L30.T16TCA"):
        normalise(item)


def test_local_files_may_have_any_name() -> None:
    item = made()
    item["assets"]["B04"]["href"] = "/data/red.tif"
    assert normalise(item).hrefs["red"] == "/data/red.tif"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-05-02T17:04:39.336Z", (17, 4, 39, 336000)),
        ("2024-05-02T17:04:39", (17, 4, 39, 0)),
        ("2024-05-02T19:04:39+02:00", (17, 4, 39, 0)),
    ],
)
def test_dates_are_utc(text: str, expected: tuple[int, ...]) -> None:
    assert normalise(made(datetime=text)).datetime == dt.datetime(2024, 5, 2, *expected, tzinfo=dt.UTC)


def test_null_date_takes_the_start() -> None:
    assert normalise(made(datetime=None, start_datetime="2024-05-02T17:04:39Z")).datetime.hour == 17
    with pytest.raises(ItemError, match="has no date: 'datetime' is None"):
        normalise(made(datetime=None))
    with pytest.raises(ItemError, match="has no date: 'datetime' is 'yesterday'"):
        normalise(made(datetime="yesterday"))


def test_cloud_cover_may_be_unknown() -> None:
    assert math.isnan(normalise(made()).cloud_cover)
    assert normalise(made(**{"eo:cloud_cover": 3})).cloud_cover == 3


@settings(deadline=None)
@given(row=st.integers(0, 3600), column=st.integers(0, 3600), rows=st.integers(1, 60), columns=st.integers(1, 60))
def test_files_that_cover_a_part_of_the_tile(row: int, column: int, rows: int, columns: int) -> None:
    part = tile_geobox("19LDD")[row : row + rows, column : column + columns]
    stated = {"proj:transform": list(part.transform)[:6], "proj:shape": [rows, columns]}
    assert normalise(made(tile="19LDD", **stated, **{"proj:code": "EPSG:32619"})).geobox == part


@settings(deadline=None)
@given(shift=st.sampled_from([1, 10, 20, -29.99, 0.5, 109_830]), axis=st.sampled_from([2, 5]))
def test_a_grid_that_is_not_the_tiles_is_refused(shift: float, axis: int) -> None:
    transform = list(tile_geobox("15TVM").transform)[:6]
    transform[axis] += shift
    with pytest.raises(ItemError, match="does not lie on the grid of tile T15TVM"):
        normalise(made(**{"proj:transform": transform, "proj:shape": [3660, 3660]}))


def test_other_pixel_sizes_are_refused() -> None:
    for shape in ([10980, 10980], [3660, 3660]):
        stated = {"proj:transform": [10, 0, 399960, 0, -10, 5200020], "proj:shape": shape}
        with pytest.raises(ItemError, match="does not lie on the grid"):
            normalise(made(**stated))


def test_another_zone_is_refused() -> None:
    with pytest.raises(ItemError, match="says EPSG:32616, but tile T15TVM lies in EPSG:32615"):
        normalise(made(**{"proj:epsg": 32616}))


def test_the_known_wrong_hemisphere_is_corrected_and_recorded() -> None:
    whole = tile_geobox("32UMF")
    stated = {"proj:epsg": 32732, "proj:transform": list(whole.transform)[:6], "proj:shape": [3660, 3660]}
    with pytest.warns(UserWarning, match=r"says EPSG:32732; HLS tiles are in EPSG:32632"):
        record = normalise(made(tile="32UMF", **stated))
    assert record.geobox == whole
    assert "EPSG:32632" in record.notes[0]


def test_a_southern_false_northing_is_taken_off() -> None:
    whole = tile_geobox("19LDD")
    transform = list(whole.transform)[:6]
    transform[5] += 10_000_000
    stated = {"proj:code": "EPSG:32719", "proj:transform": transform, "proj:shape": [3660, 3660]}
    with pytest.warns(UserWarning, match="EPSG:32719"):
        assert normalise(made(tile="19LDD", **stated)).geobox == whole


def test_projection_on_the_assets_is_read() -> None:
    item = made()
    item["assets"]["B04"]["proj:code"] = "EPSG:32616"
    with pytest.raises(ItemError, match="says EPSG:32616"):
        normalise(item)


def test_a_tile_that_does_not_exist() -> None:
    with pytest.raises(GridError, match="does not exist"):
        normalise(made(tile="15TJM"))


def test_secrets_in_hrefs_are_refused_with_the_item() -> None:
    item = made()
    item["assets"]["B02"]["href"] = "https://host/B02.tif?token=canary"
    with pytest.raises(ItemError, match="is signed or holds a password") as caught:
        normalise(item)
    assert "canary" not in str(caught.value)


def test_normalise_all_sorts_and_drops_repeats() -> None:
    late, early = made("S30", datetime="2024-06-01T00:00:00Z"), made("L30")
    assert [r.sensor for r in normalise_all([late, early, late])] == ["L30", "S30"]


def test_two_different_items_of_one_id_are_refused() -> None:
    one, other = made(), made()
    for name, value in (("B02", "/data/other.tif"), ("B03", "/data/B03.tif")):
        other["assets"][name]["href"] = value
    with pytest.raises(ItemError, match=f"two different items have the id '{one['id']}'.*leave one of them out"):
        normalise_all([one, other])
    with pytest.raises(ItemError, match="two different items have the id"):
        normalise_all([one, made(datetime="2024-06-01T00:00:00Z") | {"id": one["id"]}])


def test_the_same_item_signed_twice_is_one() -> None:
    one, other = made(), made()
    for made_item, signature in ((one, "a"), (other, "b")):
        made_item["assets"]["B02"]["href"] = f"https://hls2euwest.blob.core.windows.net/hls2/x.tif?sig={signature}"
    assert len(normalise_all([one, other])) == 1


def test_one_item_and_collections_are_items_too() -> None:
    stac = {"type": "Feature", "stac_version": "1.0.0", "links": [], "geometry": None, **made()}
    whole = pystac.Item.from_dict(stac)
    for given_items in (made(), whole, [whole], {"type": "FeatureCollection", "features": [made()]}, iter([made()])):
        assert [record.id for record in normalise_all(given_items)] == [made()["id"]]


@pytest.mark.parametrize(
    "items", ["x.json", ["x.json"], [Path("x.json")], Path("x.json"), None, 5, [None], {"features": None}]
)
def test_what_is_no_item_is_refused(items: Any) -> None:
    with pytest.raises(ItemError, match=r"and no STAC item; give dicts or pystac items, or the path of one file"):
        normalise_all(items)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, "a STAC item has an 'id'"),
        ({"properties": None}, "a STAC item has an 'id', and 'properties'"),
        ({"assets": None}, "a STAC item has an 'id', and 'properties' and 'assets'"),
        ({"assets": ["B02"]}, "'assets' that are objects"),
        ({"assets": {"B02": "x.tif"}}, "'assets' that are objects"),
        ({"assets": {"B02": {}}}, "asset 'B02' has no href"),
        ({"assets": {"B02": {"href": 5}}}, "asset 'B02' has no href"),
        ({"properties": {"datetime": "2024-05-02", "eo:cloud_cover": "much"}}, "'eo:cloud_cover' is 'much'"),
        ({"properties": {"datetime": "2024-05-02", "proj:epsg": "utm"}}, "says EPSG:utm, but tile"),
        ({"properties": {"datetime": "2024-05-02", "proj:transform": [30, 0]}}, r"says proj:transform \[30, 0\]"),
        ({"properties": {"datetime": "2024-05-02", "proj:transform": 30}}, "says proj:transform 30"),
        (
            {"properties": {"datetime": "2024-05-02", "proj:transform": [30, 0, 399960, 0, -30, 5200020],
                            "proj:shape": [3660]}},
            r"with proj:shape \[3660\]",
        ),
    ],
)  # fmt: skip
def test_items_that_are_damaged_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ItemError, match=message):
        normalise({**made(), **change})
    lacking = {key: value for key, value in made().items() if key not in change}
    with pytest.raises(ItemError, match="a STAC item has an 'id', and 'properties' and 'assets'"):
        normalise(lacking)
    assert tile_of(lacking) is None


def test_what_is_no_item_is_named_without_its_query() -> None:
    with pytest.raises(ItemError, match=r"'https://host/x.json' is a str and no STAC item") as caught:
        normalise_all([f"https://u:canary{'x' * 80}@host/x.json?sig=canary"])
    assert "canary" not in str(caught.value)


def test_no_items_at_all() -> None:
    with pytest.raises(ItemError, match="there are no items to open"):
        normalise_all([])


def test_tile_of() -> None:
    assert tile_of(made()) == "15TVM"
    assert tile_of({"id": "S2A_36NYH", "properties": {}, "assets": {}}) is None
