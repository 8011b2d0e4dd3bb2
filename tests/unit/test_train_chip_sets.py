"""Published sets of chips: written here in their own layouts, and read again."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.crs import CRS
from rasterio.transform import from_origin
from rasterio.warp import transform

from xgfm.errors import LabelError, ReadError, TrainError
from xgfm.models.published import TASKS
from xgfm.models.spec import PRITHVI_BANDS
from xgfm.train.chips.loader import normalised
from xgfm.train.chips.published import import_chips
from xgfm.train.chips.store import Chips

SIDE = 16
ALBERS = "EPSG:5070"


def write(
    path: Path,
    values: np.ndarray,
    *,
    left: float = 0.0,
    top: float = 1.6e6,
    crs: Any = ALBERS,
    pixel: float = 30.0,
    nodata: float | None = None,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = values if values.ndim == 3 else values[None]
    profile = {"count": len(values), "height": SIDE, "width": SIDE, "dtype": values.dtype, "crs": crs, "nodata": nodata}
    with rasterio.open(path, "w", driver="GTiff", transform=from_origin(left, top, pixel, pixel), **profile) as file:
        file.write(values)


def crop_set(root: Path, *, dates: bool = True) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng, written, lines = np.random.default_rng(0), {}, ["chip_id,first_img_date,middle_img_date,last_img_date"]
    names = {"training": ("chip_001_002", "chip_003_004", "chip_000_009"), "validation": ("chip_005_006",)}
    for split, chips in names.items():
        for number, name in enumerate(chips):
            image = rng.integers(1, 9000, (18, SIDE, SIDE)).astype("int16")
            mask = rng.integers(0, 14, (SIDE, SIDE)).astype("uint8")
            left = 1e5 * number + (5e5 if split == "validation" else 0)
            write(root / f"{split}_chips" / f"{name}_merged.tif", image, left=left)
            write(root / f"{split}_chips" / f"{name}.mask.tif", mask, left=left)
            lines.append(f"{name},2022-03-{10 + number},2022-06-05,2022-09-01")
            written[name] = image, mask
    if dates:
        (root / "chips_df.csv").write_text("\n".join(lines) + "\n")
    return written


def names_of(chips: Chips) -> list[str]:
    names = list(chips.facts.lineage[0]["names"])
    return [names[source] for source in chips.dataset()["source"].values.tolist()]


def test_multi_temporal_crop(tmp_path: Path) -> None:
    written = crop_set(tmp_path / "set")
    chips = import_chips(tmp_path / "set", "multi-temporal-crop", tmp_path / "chips.zarr")
    assert len(chips.indexes("train")) == 3
    assert len(chips.indexes("val")) == 1
    assert not len(chips.indexes("test"))
    facts, sample = chips.facts, chips.read(np.arange(4))
    assert (facts.bands, facts.frames, facts.size, facts.nodata) == (PRITHVI_BANDS, 3, SIDE, -9999)
    assert (facts.reflectance_scale, facts.pixel_size) == (1e-4, 30.0)
    assert facts.classes == TASKS["crop"].classes
    assert sample.image.dtype == np.int16
    for number, name in enumerate(names_of(chips)):
        image, mask = written[name]
        for date in range(3):
            for band in range(6):
                np.testing.assert_array_equal(sample.image[number, date, band], image[6 * date + band])
        np.testing.assert_array_equal(sample.label[number][mask > 0], mask[mask > 0] - 1)
        assert (sample.label[number][mask == 0] == 255).all()
    assert sample.valid.all()
    first = names_of(chips).index("chip_001_002")
    np.testing.assert_array_equal(sample.time[first], [[2022, 68], [2022, 155], [2022, 243]])
    assert len(set(chips.groups(np.arange(4)))) == 4  # 100 km from each other


def test_places_are_those_of_the_middle(tmp_path: Path) -> None:
    crop_set(tmp_path / "set")
    chips = import_chips(tmp_path / "set", "multi-temporal-crop", tmp_path / "chips.zarr")
    with rasterio.open(tmp_path / "set/training_chips/chip_001_002_merged.tif") as file:
        x, y = file.transform * (SIDE / 2, SIDE / 2)
        lon, lat = transform(file.crs, "EPSG:4326", [x], [y])
    number = names_of(chips).index("chip_001_002")
    np.testing.assert_allclose(chips.read(np.array([number])).location[0], [lat[0], lon[0]], rtol=1e-6)


def flood_set(root: Path, chips: dict[str, str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng, written = np.random.default_rng(1), {}
    hand, lists = root / "data/flood_events/HandLabeled", root / "splits/flood_handlabeled"
    lists.mkdir(parents=True)
    for number, (name, _) in enumerate(chips.items()):
        image = rng.integers(1, 5000, (13, SIDE, SIDE)).astype("int16")
        image[:, 0, 0] = 0
        mask = rng.integers(-1, 2, (SIDE, SIDE)).astype("int16")
        place: dict[str, Any] = {"left": 10.0 + number, "top": 40.0, "crs": "EPSG:4326", "pixel": 9e-5}
        write(hand / "S2Hand" / f"{name}_S2Hand.tif", image, nodata=0, **place)
        write(hand / "LabelHand" / f"{name}_LabelHand.tif", mask, **place)
        written[name] = image, mask
    for listed in ("train", "valid", "test", "bolivia"):
        mine = [f"{name}_S1Hand.tif,{name}_LabelHand.tif" for name, split in chips.items() if split == listed]
        (lists / f"flood_{listed}_data.csv").write_text("\n".join(mine) + "\n")
    return written


FLOODS = {
    "Ghana_1": "train", "Ghana_2": "train", "USA_7": "train", "USA_8": "valid", "Spain_3": "test",
    "Bolivia_9": "bolivia",
}  # fmt: skip


def test_sen1floods11(tmp_path: Path) -> None:
    written = flood_set(tmp_path / "set", FLOODS)
    events = [{"type": "Feature", "geometry": None, "properties": {"location": "Ghana", "s2_date": "2018/9/19"}}]
    (tmp_path / "set/Sen1Floods11_Metadata.geojson").write_text(json.dumps({"features": events}))
    chips = import_chips(tmp_path / "set", "sen1floods11", tmp_path / "chips.zarr")
    names = names_of(chips)
    splits = {
        name: split for split in ("train", "val", "test") for name in np.array(names)[chips.indexes(split)].tolist()
    }
    assert splits == {n: "val" if s == "valid" else s for n, s in FLOODS.items() if n != "Bolivia_9"}
    sample = chips.read(np.arange(len(names)))
    for number, name in enumerate(names):
        image, mask = written[name]
        np.testing.assert_array_equal(sample.image[number, 0], image[[1, 2, 3, 8, 11, 12]])
        np.testing.assert_array_equal(sample.label[number], np.where(mask < 0, 255, mask))
        assert not sample.valid[number, 0, 0]
        assert sample.valid[number].sum() == SIDE**2 - 1
    groups = dict(zip(names, chips.groups(np.arange(len(names))).tolist(), strict=True))
    assert groups["Ghana_1"] == groups["Ghana_2"] != groups["USA_7"] == groups["USA_8"]
    np.testing.assert_array_equal(sample.time[names.index("Ghana_1")], [[2018, 261]])
    assert np.isnan(sample.time[names.index("Spain_3")]).all()
    assert np.isnat(chips.dataset()["date"].values[names.index("Spain_3")]).all()


def test_chips_without_dates_are_not_told_to_a_model_that_asks(tmp_path: Path) -> None:
    crop_set(tmp_path / "set", dates=False)
    chips = import_chips(tmp_path / "set", "multi-temporal-crop", tmp_path / "chips.zarr")
    spec = TASKS["crop"]
    spec = dataclasses.replace(spec, model=dataclasses.replace(spec.model, coords=("time",)), coords=("time",))
    sample = type(chips.read(np.arange(1)))(*map(torch.from_numpy, chips.read(np.arange(1))))
    with pytest.raises(TrainError, match=r"no dates.*coords"):
        normalised(sample, spec, chips.facts, "cpu")


def test_burn_scars(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    utm = CRS.from_wkt(CRS.from_epsg(32610).to_wkt().replace('AUTHORITY["EPSG","32610"]', 'AUTHORITY["",""]'))
    written = {}
    for split, name in (
        ("training", "T10TGS.2018285"),
        ("training", "T10SEH.2020300"),
        ("validation", "T11SKU.2019001"),
    ):
        stem = f"subsetted_512x512_HLS.S30.{name}.v1.4"
        image = rng.uniform(0, 0.6, (6, SIDE, SIDE)).astype("float32")
        image[2, 3, 4] = -9999
        mask = rng.integers(-1, 2, (SIDE, SIDE)).astype("int16")
        write(tmp_path / "set" / split / f"{stem}_merged.tif", image, left=7e5, crs=utm, nodata=-9999)
        write(tmp_path / "set" / split / f"{stem}.mask.tif", mask, left=7e5, crs=utm, nodata=-1)
        written[stem] = image, mask
    chips = import_chips(tmp_path / "set", "hls-burn-scars", tmp_path / "chips.zarr")
    assert (chips.facts.floating, chips.facts.reflectance_scale, chips.facts.frames) == (True, 1.0, 1)
    assert [info.name for info in chips.facts.classes] == ["Not burned", "Burn scar"]
    sample = chips.read(np.arange(3))
    for number, stem in enumerate(names_of(chips)):
        image, mask = written[stem]
        np.testing.assert_array_equal(sample.image[number, 0], image)
        np.testing.assert_array_equal(sample.label[number], np.where(mask < 0, 255, mask))
        assert not sample.valid[number, 3, 4]
    said = dict(zip(names_of(chips), sample.time[:, 0].tolist(), strict=True))
    assert said["subsetted_512x512_HLS.S30.T10TGS.2018285.v1.4"] == [2018, 284]
    assert said["subsetted_512x512_HLS.S30.T11SKU.2019001.v1.4"] == [2019, 0]
    train = np.concatenate([written[s][0][:, written[s][0].min(0) > -1] for s in names_of(chips)[:2]], axis=1)
    np.testing.assert_allclose(chips.facts.statistics.mean, train.mean(1), rtol=1e-5)


def test_the_real_flood_chip(tmp_path: Path, shared_data: Path) -> None:
    """The sample of Sen1Floods11 that its authors published."""
    real = shared_data / "hls" / "flood"
    hand = tmp_path / "set/HandLabeled"
    for kind in ("S2Hand", "LabelHand"):
        (hand / kind).mkdir(parents=True)
        shutil.copy(real / f"Spain_7370579_{kind}.tif", hand / kind)
    for listed in ("train", "valid", "test"):
        (tmp_path / f"set/flood_{listed}_data.csv").write_text("Spain_7370579_S1Hand.tif,Spain_7370579_LabelHand.tif\n")
    chips = import_chips(tmp_path / "set", "sen1floods11", tmp_path / "chips.zarr")
    sample = chips.read(np.array([0]))
    with rasterio.open(hand / "LabelHand/Spain_7370579_LabelHand.tif") as file:
        mask = file.read(1)
    with rasterio.open(hand / "S2Hand/Spain_7370579_S2Hand.tif") as file:
        bands = file.read([file.descriptions.index(name) + 1 for name in ("B2", "B3", "B4", "B8A", "B11", "B12")])
    np.testing.assert_array_equal(sample.image[0, 0], bands)
    np.testing.assert_array_equal(sample.label[0], np.where(mask < 0, 255, mask))
    assert chips.facts.size == 512
    assert chips.facts.counts["train"] == (int((mask == 0).sum()), int((mask == 1).sum()))
    np.testing.assert_allclose(sample.location[0], [38.1058, -0.7589], atol=1e-4)


# ---- what is refused


def test_another_kind_or_folder(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="multi-temporal-crop"):
        import_chips(tmp_path, "crops", tmp_path / "chips.zarr")
    for kind, lacks in (
        ("multi-temporal-crop", "training_chips"), ("hls-burn-scars", "training"), ("sen1floods11", "S2Hand")
    ):  # fmt: skip
        with pytest.raises(TrainError, match=lacks):
            import_chips(tmp_path, kind, tmp_path / "chips.zarr")
    flood_set(tmp_path / "set", FLOODS)
    (tmp_path / "set/splits/flood_handlabeled/flood_valid_data.csv").unlink()
    with pytest.raises(TrainError, match="flood_valid_data"):
        import_chips(tmp_path / "set", "sen1floods11", tmp_path / "chips.zarr")
    assert not (tmp_path / "chips.zarr").exists()


def test_a_mask_that_is_not_there_or_holds_other_codes(tmp_path: Path) -> None:
    crop_set(tmp_path / "set")
    mask = tmp_path / "set/training_chips/chip_003_004.mask.tif"
    write(mask, np.full((SIDE, SIDE), 14, "uint8"))
    with pytest.raises(LabelError, match=r"chip_003_004.mask.tif holds codes \[14\]"):
        import_chips(tmp_path / "set", "multi-temporal-crop", tmp_path / "chips.zarr")
    mask.unlink()
    with pytest.raises(LabelError, match="1 of 4 images have no mask"):
        import_chips(tmp_path / "set", "multi-temporal-crop", tmp_path / "other.zarr")


def test_images_that_are_not_alike(tmp_path: Path) -> None:
    crop_set(tmp_path / "set")
    write(tmp_path / "set/training_chips/chip_003_004_merged.tif", np.ones((6, SIDE, SIDE), "int16"))
    with pytest.raises(TrainError, match=r"chip_003_004_merged\.tif has 6 bands"):
        import_chips(tmp_path / "set", "multi-temporal-crop", tmp_path / "chips.zarr")


def test_a_file_that_is_cut_short(tmp_path: Path) -> None:
    crop_set(tmp_path / "set")
    path = tmp_path / "set/training_chips/chip_003_004_merged.tif"
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(ReadError, match=r"1 of 4 chips.*chip_003_004.*max_failed"):
        import_chips(tmp_path / "set", "multi-temporal-crop", tmp_path / "chips.zarr")
    chips = import_chips(tmp_path / "set", "multi-temporal-crop", tmp_path / "chips.zarr", max_failed=0.3)
    assert len(chips.indexes("train")) == 2
    assert "chip_003_004" in chips.facts.failed[0]["reason"]


def test_a_second_call_opens_what_is_there(tmp_path: Path) -> None:
    crop_set(tmp_path / "set")
    first = import_chips(tmp_path / "set", "multi-temporal-crop", tmp_path / "chips.zarr")
    for path in (tmp_path / "set").rglob("*_merged.tif"):
        with rasterio.open(path) as file:
            assert file.count == 18
    again = import_chips(tmp_path / "set", "multi-temporal-crop", tmp_path / "chips.zarr")
    assert again == first
    shutil.move(tmp_path / "set/validation_chips/chip_005_006.mask.tif", tmp_path / "set/training_chips")
    shutil.move(tmp_path / "set/validation_chips/chip_005_006_merged.tif", tmp_path / "set/training_chips")
    with pytest.raises(TrainError, match="holds other chips"):
        import_chips(tmp_path / "set", "multi-temporal-crop", tmp_path / "chips.zarr")
