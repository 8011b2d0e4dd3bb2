"""The items of a job: packed by tile, in any order the same, read back as they were."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import catalogue
import pystac
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xgfm.cube.catalogs import load_items
from xgfm.cube.items import normalise
from xgfm.cube.periods import named_periods
from xgfm.errors import JobError
from xgfm.grid import tile_geobox
from xgfm.jobs.items import BAND_BYTES, WHOLE, Collection, Tile, read_tile
from xgfm.models.spec import PRITHVI_BANDS
from xgfm.store.objects import Objects

UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""What else the machine does is not ours."""

WINDOWS = named_periods(["2024-04", "2024-06", "2024-09"])
ITEMS = catalogue.season(["15TVM", "15TUM", "14TQR"], ["2024-04-10", "2024-04-20", "2024-05-05", "2024-09-30"])


def saved(folder: Path, items: Any, **options: Any) -> tuple[dict[str, Tile], Collection, dict[str, bytes]]:
    objects = Objects(folder)
    collection = Collection(**{"windows": WINDOWS, "keep": lambda tile: True, "bands": PRITHVI_BANDS, **options})
    collection.add(items)
    tiles = dict(collection.save(objects))
    return tiles, collection, {name: objects.get(name) for name in objects.names()}


@settings(UNTIMED, max_examples=20)
@given(st.permutations(ITEMS), st.lists(st.sampled_from(ITEMS), max_size=5))
def test_the_order_and_repetitions_change_no_byte(tmp_path_factory: Any, items: list[Any], again: list[Any]) -> None:
    expected = saved(tmp_path_factory.mktemp("a"), ITEMS)
    assert saved(tmp_path_factory.mktemp("b"), (item for item in [*items, *again]))[::2] == expected[::2]


def test_what_is_kept_opens_as_what_was_found(tmp_path: Path) -> None:
    tiles, _, objects = saved(tmp_path, ITEMS)
    assert sorted(objects) == [f"items/{tile}.json.gz" for tile in ("14TQR", "15TUM", "15TVM")]
    assert list(tiles) == ["14TQR", "15TUM", "15TVM"]
    assert tiles["15TVM"].dates == (2, 0, 1)
    assert tiles["15TVM"].items == 4
    kept = read_tile(Objects(tmp_path), "15TVM")
    found = [item for item in ITEMS if "T15TVM" in item["id"]]
    assert [normalise(item, fmask=True) for item in kept] == [normalise(item, fmask=True) for item in found]
    assert read_tile(Objects(tmp_path), "15TVM") is kept  # read once


def test_it_is_a_collection_that_other_tools_read(tmp_path: Path) -> None:
    _, _, objects = saved(tmp_path, ITEMS)
    (tmp_path / "items.json").write_bytes(gzip.decompress(objects["items/15TVM.json.gz"]))
    assert len(pystac.ItemCollection.from_file(str(tmp_path / "items.json"))) == 4
    assert len(load_items(tmp_path / "items.json")) == 4


def test_no_secret_is_kept(tmp_path: Path) -> None:
    signed = catalogue.item("15TVM", "2024-04-10")
    for asset in signed["assets"].values():
        name = asset["href"].rpartition("/")[2].partition("?")[0]
        asset["href"] = f"https://hls2euwest.blob.core.windows.net/hls2/{name}?sig=hunter2"
    _, collection, objects = saved(tmp_path, [signed, *ITEMS[4:5]])
    assert not collection.left_out
    assert not any(b"hunter2" in gzip.decompress(data) for data in objects.values())
    (item,) = read_tile(Objects(tmp_path), "15TVM")
    assert set(item["assets"]) == {"B02", "B03", "B04", "B05", "B06", "B07", "Fmask"}


def broken(change: str) -> dict[str, Any]:
    item = json.loads(json.dumps(catalogue.item("15TVM", "2024-06-01")))
    if change == "no Fmask":
        del item["assets"]["Fmask"]
    elif change == "no date":
        item["properties"]["datetime"] = None
    elif change == "another tile's grid":
        item["properties"]["proj:code"] = "EPSG:32614"
    elif change == "a signed href":
        item["assets"]["B02"]["href"] += "?sig=hunter2"
    else:
        item["id"], item["assets"] = "S2A_T15TVM", {"B02": {"href": "https://host/B02.tif"}}
    return item


@pytest.mark.parametrize("change", ["no Fmask", "no date", "another tile's grid", "a signed href", "not HLS"])
def test_an_item_that_cannot_be_read_is_left_out_and_told_of(tmp_path: Path, change: str) -> None:
    tiles, collection, _ = saved(tmp_path, [broken(change), *ITEMS])
    assert tiles["15TVM"].items == 4
    assert collection.left_out_count == 1
    (left,) = collection.left_out
    assert left.item == broken(change)["id"]
    assert left.reason
    assert "hunter2" not in left.reason


def test_two_different_items_of_one_id_are_left_out(tmp_path: Path) -> None:
    other = json.loads(json.dumps(ITEMS[0]))
    other["properties"]["datetime"] = "2024-04-11T00:00:00Z"
    tiles, collection, _ = saved(tmp_path, [*ITEMS, other])
    assert tiles["15TVM"].items == 3
    assert collection.left_out[0].reason == "2 different items have this id"


def test_what_is_no_item_is_told_of(tmp_path: Path) -> None:
    _, collection, _ = saved(tmp_path, ["https://host/item.json?sig=hunter2", *ITEMS])
    assert collection.left_out_count == 1
    assert "hunter2" not in str(collection.left_out)


def test_tiles_that_nobody_needs_are_dropped_and_asked_about_once(tmp_path: Path) -> None:
    asked: list[str] = []

    def keep(tile: str) -> bool:
        asked.append(tile)
        return tile.startswith("15")

    tiles, _, _ = saved(tmp_path, ITEMS, keep=keep)
    assert set(tiles) == {"15TVM", "15TUM"}
    assert sorted(asked) == ["14TQR", "15TUM", "15TVM"]


def test_sizes_are_those_that_are_stated_of_items_that_lie_in_a_frame(tmp_path: Path) -> None:
    whole = tile_geobox("15TVM")[100:612, 300:1324]
    stated = {"proj:transform": list(whole.transform)[:6], "proj:shape": [512, 1024]}
    items = [catalogue.item("15TVM", date, **stated) for date in ("2024-04-10", "2024-05-05")]
    for item in items:
        for asset in item["assets"].values():
            asset["file:size"] = 1000
    tiles, _, _ = saved(tmp_path / "stated", items)
    assert tiles["15TVM"] == Tile(2, (1, 0, 0), 7000, (100, 300, 512, 1024))
    tiles, _, _ = saved(tmp_path / "usual", ITEMS)
    assert tiles["15TVM"].extent == WHOLE
    assert tiles["15TVM"].bytes == pytest.approx(3 * (6 * BAND_BYTES * 3660**2 + 1.5e6), rel=1e-6)


def test_many_items_are_packed_as_they_come(tmp_path: Path) -> None:
    dates = [f"{year}-{month:02d}-{day:02d}" for year in (2022, 2023) for month in range(1, 13) for day in range(1, 21)]
    tiles, _, objects = saved(tmp_path, catalogue.season(["15TVM"], dates))
    assert tiles["15TVM"].items == 480
    assert len(read_tile(Objects(tmp_path), "15TVM")) == 480
    assert len(objects["items/15TVM.json.gz"]) < 480 * 100


def test_items_that_are_gone_are_told_of(tmp_path: Path) -> None:
    saved(tmp_path, ITEMS)
    (tmp_path / "items" / "15TUM.json.gz").write_bytes(b"torn")
    for tile in ("15TUM", "33UUP"):
        with pytest.raises(JobError, match=f"items of tile {tile} cannot be read.*plan the job again"):
            read_tile(Objects(tmp_path), tile)
