"""STAC Items of results: valid by the published schemas, and of the same classes as the map's flags."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import jsonschema
import pystac
import pytest
import shapely
import small
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from stac_checks import check

from xgfm.cf import class_attrs
from xgfm.describe.sources import MOST, Source, sources_of
from xgfm.describe.stac import MOST_GROUPS, Result, classes, result_item
from xgfm.grid import tile_geobox
from xgfm.models.spec import ClassInfo

ALBERS = GeoBox((512, 1024), Affine(30, 0, 90_000, 0, -30, 2_400_000), "EPSG:5070")


def result(**changes: Any) -> Result:
    kept: dict[str, Any] = {
        "identity": "map.zarr",
        "store": "../map.zarr",
        "grids": {"": ALBERS},
        "variables": {"small_task": "uint8", "probability": "float32"},
        "task": small.task(),
        "weights": "abc",
        "outline": shapely.box(-93.5, 45, -93, 45.5),
        "period": (datetime(2024, 4, 1, tzinfo=UTC), datetime(2024, 9, 30, 23, 59, 59, tzinfo=UTC)),
        "created": datetime(2025, 1, 1, tzinfo=UTC),
        "software": {"xgfm": "1.0", "torch": "2.6"},
        "sources": [Source("https://host/one", "one"), Source("./items/15TVM.json.gz", "7 items", count=7)],
        "attrs": {"attribution": "HLS, NASA LP DAAC."},
    }
    return Result(**{**kept, **changes})


def item(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = result_item(result(**changes)).to_dict(transform_hrefs=False)
    return json.loads(json.dumps(made))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"grids": {tile: tile_geobox(tile) for tile in ("15TVM", "16TBQ")}},
        {"grids": {"": GeoBox((9, 9), Affine(30, 0, 0, 0, -30, 0), "+proj=laea +lat_0=40 +lon_0=-90 +datum=WGS84")}},
        {"task": small.task(kind="regression", classes=(), units="t ha-1"), "variables": {"small_task": "float32"}},
        {"snapshots": True, "store": "s3://bucket/map"},
        {"outline": shapely.MultiPolygon([shapely.box(179, 0, 180, 1), shapely.box(-180, 0, -179, 1)])},
    ],
    ids=["grid", "tiles", "nameless CRS", "regression", "icechunk", "antimeridian"],
)
def test_items_are_valid(changes: dict[str, Any]) -> None:
    check(item(**changes))


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("properties", "proj:shape"), [1.5, 2]),
        (("properties", "start_datetime"), "last year"),
        (("properties", "processing:software"), {"torch": 2}),
        (("assets", "data", "bands", 0, "classification:classes", 0, "name"), "a b"),
        (("assets", "data", "bands", 0, "classification:classes", 0, "color_hint"), "#000000"),
    ],
)
def test_the_check_can_fail(where: tuple[Any, ...], value: Any) -> None:
    damaged = copy.deepcopy(item())
    place: Any = damaged
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    with pytest.raises((jsonschema.ValidationError, pystac.STACValidationError)):
        check(damaged)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=8, unique=True))
def test_classes_are_those_of_the_flags(names: list[str]) -> None:
    task = small.task(classes=tuple(ClassInfo(name, f"#{i:06x}") for i, name in enumerate(names)))
    listed = classes(task)
    *own, nodata = listed
    attrs = class_attrs(task)
    assert [c["value"] for c in own] == attrs["flag_values"]
    assert [c["title"] for c in own] == attrs["class_names"]
    assert [f"#{c['color_hint'].lower()}" for c in own] == attrs["flag_colors"].split()
    assert (nodata["value"], nodata["nodata"]) == (255, True)
    check(item(task=task))


def test_what_an_item_says() -> None:
    said = item()
    assert said["properties"]["datetime"] is None
    assert said["properties"]["start_datetime"] == "2024-04-01T00:00:00Z"
    assert said["properties"]["proj:code"] == "EPSG:5070"
    assert said["properties"]["proj:transform"] == list(ALBERS.transform)[:6]
    assert said["bbox"] == [-93.5, 45, -93, 45.5]
    assert "8 HLS granules" in said["properties"]["processing:lineage"]
    assert [(link["rel"], link["href"]) for link in said["links"]] == [
        ("derived_from", "https://host/one"),
        ("derived_from", "./items/15TVM.json.gz"),
    ]
    assert said["assets"]["data"]["href"] == "../map.zarr"
    assert "simulated" not in said["properties"]["description"]
    assert "images are simulated" in item(attrs={"simulated": 1})["properties"]["description"]
    assert "nothing real" in item(task=replace(small.task(), demonstration=True))["properties"]["description"]


def test_tiles_have_assets_of_their_own_up_to_a_number() -> None:
    tiles = {tile: tile_geobox(tile) for tile in ("15TVM", "16TBQ")}
    assets = item(grids=tiles)["assets"]
    assert assets["16TBQ"]["href"] == "../map.zarr/16TBQ"
    assert assets["16TBQ"]["proj:code"] == "EPSG:32616"
    many = {f"{i}": ALBERS for i in range(MOST_GROUPS + 1)}
    assert "17" not in item(grids=many)["assets"]


def test_inputs_are_named_one_by_one_up_to_a_number() -> None:
    items = [
        {"id": f"i{n}", "links": [{"rel": "self", "href": f"https://host/i{n}"}] if n % 2 else []} for n in range(4)
    ]
    found = sources_of({"15TVL": 3, "15TVM": 1}, items, folder="items")
    assert [(s.href, s.count) for s in found] == [
        ("https://host/i1", 1), ("./items/15TVL.json.gz", 2), ("https://host/i3", 1),
    ]  # fmt: skip
    assert sum(s.count for s in found) == 4
    many = sources_of({"15TVL": MOST, "15TVM": 1}, iter(()), folder="items")
    assert [(s.href, s.count) for s in many] == [("./items/15TVL.json.gz", MOST), ("./items/15TVM.json.gz", 1)]
