"""Collections of results: valid by the published schemas, complete on disk, and true to the stores."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pystac.validation
import pytest
import shapely
import small
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from results import DEGREES, NORTH, SOUTH, result
from stac_checks import check

from xgfm.cf import class_attrs
from xgfm.describe.collection import to_stac
from xgfm.describe.sources import Source
from xgfm.describe.stac import Result, result_item
from xgfm.errors import WriteError, XgfmError
from xgfm.store.write import to_zarr


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stores on several grids, of several kinds."""
    folder = tmp_path_factory.mktemp("stores")
    antimeridian = GeoBox((300, 400), Affine(300, 0, 799_980, 0, -300, -1_099_980), "EPSG:32660")
    made = {
        "north": result(NORTH, probability=True),
        "south": result(SOUTH, times=3),
        "degrees": result(DEGREES),
        "antimeridian": result(antimeridian),
    }
    return {name: Path(to_zarr(dataset, folder / f"{name}.zarr")) for name, dataset in made.items()}


def recorded(store: str) -> dict[str, Any]:
    """The Item that a job leaves beside its store."""
    facts = Result(
        identity="job.zarr",
        store=store,
        grids={"": NORTH},
        variables={"small_task": "uint8"},
        task=small.task(),
        weights="abc",
        outline=shapely.box(-93.5, 45, -93, 45.5),
        period=(datetime(2024, 4, 1, tzinfo=UTC), datetime(2024, 9, 30, 23, 59, 59, tzinfo=UTC)),
        created=datetime(2025, 1, 1, tzinfo=UTC),
        software={"xgfm": "1.0"},
        sources=[Source("https://host/one", "one")],
        attrs={},
    )
    made: dict[str, Any] = result_item(facts).to_dict(transform_hrefs=False)
    return made


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def test_collection_and_items_are_valid(stores: dict[str, Path], tmp_path: Path) -> None:
    collection = to_stac(stores.values(), tmp_path / "catalogue", title="Maps of farmland")
    pystac.validation.validate_dict(read(tmp_path / "catalogue" / "collection.json"))
    items = {name: read(tmp_path / "catalogue" / name / f"{name}.json") for name in stores}
    for item in items.values():
        check(item)
    assert collection.id == "maps-of-farmland"
    assert {item.id for item in collection.get_items()} == set(stores)
    boxes = np.array([item["bbox"] for item in items.values()])
    assert collection.extent.spatial.bboxes[0] == pytest.approx([*boxes[:, :2].min(0), *boxes[:, 2:].max(0)])


def test_the_catalogue_can_be_moved_with_its_stores(stores: dict[str, Path], tmp_path: Path) -> None:
    for path in stores.values():
        shutil.copytree(path, tmp_path / "here" / path.name)
    to_stac(sorted((tmp_path / "here").iterdir()), tmp_path / "here" / "catalogue")
    (tmp_path / "here").rename(tmp_path / "there")
    found = pystac.Collection.from_file(str(tmp_path / "there" / "catalogue" / "collection.json"))
    items = list(found.get_items())
    assert len(items) == len(stores)
    for item in items:
        href = item.assets["data"].get_absolute_href()
        assert href is not None
        opened = xr.open_zarr(href)
        bands = {band["name"] for band in item.assets["data"].extra_fields["bands"]}
        assert bands == set(opened.data_vars) - {"spatial_ref"}
        assert str(tmp_path) not in json.dumps(item.to_dict(transform_hrefs=False)["assets"])


def test_what_an_item_says(stores: dict[str, Path], tmp_path: Path) -> None:
    to_stac({"one": stores["north"], "two": stores["south"]}, tmp_path)
    one, two = (read(tmp_path / name / f"{name}.json") for name in ("one", "two"))
    said = one["properties"]
    assert (said["proj:code"], said["proj:shape"]) == ("EPSG:32615", [70, 90])
    assert said["proj:transform"] == list(NORTH.affine)[:6]
    assert said["gsd"] == pytest.approx(30, rel=0.002)
    assert said["xgfm:task"] == "crop-v1.0"
    assert (said["start_datetime"], said["end_datetime"]) == ("2024-04-03T00:00:00Z", "2024-04-03T23:59:59Z")
    assert two["properties"]["end_datetime"] == "2024-09-25T23:59:59Z"
    bands = {band["name"]: band for band in one["assets"]["data"]["bands"]}
    classes = bands["crop_v1_0"]["classification:classes"]
    assert [c["title"] for c in classes] == ["Natural Vegetation", "Winter Wheat", "Open Water", "no data"]
    assert (bands["crop_v1_0"]["nodata"], bands["probability"]["nodata"]) == (255, "nan")


def test_outlines_hold_the_grid_and_turn_the_right_way(stores: dict[str, Path], tmp_path: Path) -> None:
    to_stac(stores.values(), tmp_path)
    for name, box in (("north", NORTH), ("degrees", DEGREES)):
        outline = shapely.geometry.shape(read(tmp_path / name / f"{name}.json")["geometry"])
        assert outline.exterior.is_ccw
        corners = box.extent.to_crs("EPSG:4326").geom
        assert outline.symmetric_difference(corners).area < 1e-3 * corners.area
    outline = shapely.geometry.shape(read(tmp_path / "antimeridian" / "antimeridian.json")["geometry"])
    assert outline.geom_type == "MultiPolygon"
    assert outline.area < 4  # and not the way around the world


def test_the_item_of_a_job_is_taken_over(tmp_path: Path) -> None:
    store = Path(to_zarr(result(), tmp_path / "maps" / "job.zarr"))
    records = Path(f"{store}.job")
    records.mkdir()
    (records / "item.json").write_text(json.dumps(recorded("../job.zarr")))
    to_stac([store], tmp_path / "catalogue")
    item = read(tmp_path / "catalogue" / "job" / "job.json")
    check(item)
    assert item["assets"]["data"]["href"] == "../../maps/job.zarr"
    assert item["assets"]["report"]["href"] == "../../maps/job.zarr.job/report.html"
    assert "https://host/one" in [link["href"] for link in item["links"]]
    classes = item["assets"]["data"]["bands"][0]["classification:classes"]
    assert [c["title"] for c in classes[:-1]] == class_attrs(small.task())["class_names"]


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ([], XgfmError, "empty"),
        (["nowhere.zarr"], XgfmError, "no Zarr store at nowhere"),
        (["a/map.zarr", "b/map.zarr"], XgfmError, "used twice.*mapping"),
        ({"a/b": "map.zarr"}, XgfmError, "no names of files"),
    ],
)
def test_bad_input_is_refused(given: Any, error: type[Exception], said: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=said):
        to_stac(given, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_result_of_no_time_is_refused(tmp_path: Path) -> None:
    timeless = result()
    del timeless.attrs["frames"]
    store = to_zarr(timeless, tmp_path / "a.zarr")
    with pytest.raises(XgfmError, match=r"of which time.*attrs\['dates'\]"):
        to_stac([store], tmp_path / "c")


@pytest.mark.parametrize("name", ["done/a.json", "plan.json"])
def test_a_job_that_is_not_finished_is_told(name: str, tmp_path: Path) -> None:
    result(NORTH).to_zarr(tmp_path / "job.zarr", group="15TVM", zarr_format=3)
    record = tmp_path / "job.zarr.job" / name
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    with pytest.raises(XgfmError, match=rf"not finished: {int('done' in name)} blocks are done.*xgfm resume"):
        to_stac([tmp_path / "job.zarr"], tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("name", ["file", "file/c"])
def test_a_folder_that_cannot_be_written_to(stores: dict[str, Path], tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(WriteError, match=r"not writable while writing .*folder="):
        to_stac([stores["north"]], tmp_path / name)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_collection_is_replaced_on_demand_only(stores: dict[str, Path], tmp_path: Path) -> None:
    to_stac([stores["north"]], tmp_path)
    with pytest.raises(WriteError, match="overwrite=True"):
        to_stac([stores["south"]], tmp_path)
    found = to_stac([stores["south"]], tmp_path, overwrite=True)
    assert [item.id for item in found.get_items()] == ["south"]
    with pytest.raises(WriteError, match="not local"):
        to_stac([stores["north"]], "s3://bucket/catalogue")
