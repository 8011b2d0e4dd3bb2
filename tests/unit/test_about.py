"""What paths and names are, in words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import small
from affine import Affine
from field_chips import write_small_chips
from odc.geo.geobox import GeoBox
from results import DEGREES, NORTH, result

from xgfm.about import about
from xgfm.cube.catalogs import save_items
from xgfm.cube.simulate import Season, simulate_season
from xgfm.errors import SearchError, XgfmError
from xgfm.models.build import build_task
from xgfm.models.fetch import sha256_of
from xgfm.models.folder import save_task
from xgfm.store.write import to_cog


@pytest.fixture(scope="module")
def season(tmp_path_factory: pytest.TempPathFactory) -> Season:
    return simulate_season(tmp_path_factory.mktemp("season"), seed=5, shape=(32, 40), granules=5)


def test_a_file_of_items(season: Season, tmp_path: Path) -> None:
    said = dict(about(str(season.items)))
    assert said["items"] == "5"
    assert said["dates"] == season.datetime.replace("/", " to ")
    count = {sensor: sum(f".{sensor}." in name for name in season.granules) for sensor in ("L30", "S30")}
    assert said["sensors"] == f"L30 ({count['L30']}), S30 ({count['S30']})"
    assert said["tiles"] == "T15TVM"
    save_items([], tmp_path / "none.json")
    assert dict(about(str(tmp_path / "none.json")))["dates"] == "-"
    (tmp_path / "other.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(SearchError, match="holds no STAC items"):
        about(str(tmp_path / "other.json"))


def test_a_store_of_chips(tmp_path: Path) -> None:
    chips = write_small_chips(tmp_path / "chips.zarr")
    said = dict(about(chips.path))
    assert {name: said[name] for name in ("train", "val", "test")} == {
        split: f"{len(chips.indexes(split))} chips" for split in ("train", "val", "test")
    }
    assert said["labels"] == ", ".join(c.name for c in chips.facts.classes)
    assert said["digest"] == chips.facts.digest


def test_items_that_are_not_hls(tmp_path: Path) -> None:
    item = {"type": "Feature", "id": "S2A", "properties": {"start_datetime": "2024-05-01T10:00:00Z"}, "assets": {}}
    save_items([item], tmp_path / "s2.json")
    said = dict(about(str(tmp_path / "s2.json")))
    assert (said["sensors"], said["dates"], said["tiles"]) == ("not HLS (1)", "2024-05-01 to 2024-05-01", "-")


@pytest.mark.parametrize(
    ("box", "crs", "pixels"), [(NORTH, "EPSG:32615", "70 x 90 pixels of 30 m"), (DEGREES, "EPSG:4326", "70 x 90")]
)
def test_a_geotiff(tmp_path: Path, box: GeoBox, crs: str, pixels: str) -> None:
    said = dict(about(str(to_cog(result(box), tmp_path / "map.TIF"))))
    assert said["CRS"] == crs
    assert said["size"].startswith(pixels)
    assert said["bands"] == "1 of uint8, nodata 255.0"
    assert said["classes"] == "Natural Vegetation, Winter Wheat, Open Water"
    assert said["task"] == "crop-v1.0"


def test_a_geotiff_of_the_simulation_and_a_picture(season: Season, tmp_path: Path) -> None:
    assert dict(about(str(season.truth)))["classes"].startswith("Natural Vegetation, Forest, Corn")
    with rasterio.open(
        tmp_path / "picture.tif",
        "w",
        driver="GTiff",
        width=3,
        height=2,
        count=3,
        dtype="uint8",
        transform=Affine(1, 0, 0, 0, -1, 0),
    ) as file:
        file.write(np.zeros((3, 2, 3), "uint8"))
        file.update_tags(classes="water; land", SOFTWARE="3")
    said = dict(about(str(tmp_path / "picture.tif")))
    assert (said["CRS"], said["size"], said["bands"]) == ("none", "2 x 3 pixels", "3 of uint8, nodata None")
    assert (said["classes"], said["SOFTWARE"]) == ("water; land", "3")


def test_a_broken_geotiff_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"nothing")
    with pytest.raises(XgfmError, match=r"a\.tif cannot be read as a GeoTIFF"):
        about(str(tmp_path / "a.tif"))


def test_a_task_folder_holds_its_own_weights(tmp_path: Path) -> None:
    record = small.task()
    said = dict(about(str(save_task(build_task(record), record, tmp_path / "mine"))))
    assert said["weights"] == str(tmp_path / "mine")
    assert said["SHA-256"] == sha256_of(tmp_path / "mine" / "model.safetensors")
