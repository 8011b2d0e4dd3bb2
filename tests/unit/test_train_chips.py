"""Chips: what is stored is what the cube and the labels hold, however they are cut."""

from __future__ import annotations

import pickle
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dask.array as da
import field_chips
import numpy as np
import pandas as pd
import pytest
import toys
import xarray as xr
import zarr
from distributed import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyproj import Transformer

import xgfm.train.chips.writing
from xgfm.cf import class_flags
from xgfm.cube.composite import composite
from xgfm.errors import FramesError, LabelError, TrainError, XgfmError
from xgfm.grid import geobox_of, with_grid
from xgfm.train.chips.chips import Chips, open_chips, write_chips
from xgfm.train.sampling.plan import plan_chips

CLASSES = toys.task_spec().classes


def labelled(cube: xr.DataArray, *, seed: int = 0, dates: list[int] | None = None, units: str = "") -> xr.DataArray:
    """Return random labels of a cube, a quarter of them missing; with units, targets."""
    rng = np.random.default_rng(seed)
    shape = ((len(dates),) if dates is not None else ()) + (cube.sizes["y"], cube.sizes["x"])
    none = rng.random(shape) < 0.25
    if units:
        values: np.ndarray = np.where(none, np.nan, rng.normal(size=shape)).astype("float32")
    else:
        values = np.where(none, 255, rng.integers(0, len(CLASSES), shape)).astype("uint8")
    dims, coords = ("y", "x"), {}
    if dates is not None:
        dims, coords = ("time", *dims), {"time": cube.time.values[dates]}
    attrs = {"units": units} if units else class_flags(CLASSES)
    return with_grid(xr.DataArray(values, dims=dims, coords=coords, name="label", attrs=attrs), geobox_of(cube))


def row_of(cube: xr.DataArray, source: int, row: int, column: int, step: int, size: int) -> dict[str, Any]:
    x, y = (cube[d].values[[first, first + size - 1]].mean() for d, first in (("x", column), ("y", row)))
    return {"source": source, "row": row, "column": column, "step": step, "x": x, "y": y}


@dataclass
class Case:
    cubes: list[xr.DataArray]
    labels: list[xr.DataArray]
    plan: pd.DataFrame
    size: int
    each: int
    dated: list[int] | None


@st.composite
def cases(draw: st.DrawFn) -> Case:
    size, times = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    dated = draw(st.none() | st.lists(st.integers(0, times - 1), min_size=1, max_size=3, unique=True).map(sorted))
    kind, cubes, arrays, rows = draw(st.sampled_from(["int16", "float32"])), [], [], []
    for source in range(draw(st.integers(1, 2))):
        shape = [draw(st.integers(size, 40)) for _ in range(2)]
        chunks = (draw(st.integers(1, times)), draw(st.integers(1, 6)), *(draw(st.integers(1, n)) for n in shape))
        cube = toys.cube(*shape, times=times, seed=source, missing=0.02, chunks=chunks, column=9000 + 500 * source)
        if kind == "float32":
            cube = cube.where(cube != -9999, np.nan).astype("float32")
        cubes.append(cube)
        arrays.append(labelled(cube, seed=source, dates=dated))
        place = st.tuples(
            st.integers(0, shape[0] - size), st.integers(0, shape[1] - size), st.integers(0, len(dated or [0]) - 1)
        )
        rows += [row_of(cube, source, *at, size) for at in draw(st.lists(place, min_size=1, max_size=7))]
    splits = [draw(st.sampled_from(["train", "val", "test", "none"])) for _ in rows]
    splits[draw(st.integers(0, len(rows) - 1))] = "train"
    plan = pd.DataFrame(rows).assign(split=splits, group=range(len(rows)))
    plan.attrs["size"] = size
    return Case(cubes, arrays, plan, size, draw(st.integers(1, 5)), dated)


@given(case=cases())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_chips_are_the_pixels_of_cube_and_labels(case: Case) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patched:
        patched.setattr(xgfm.train.chips.writing, "_LOT_CHIPS", case.each)
        try:
            chips = write_chips(case.cubes, case.labels, f"{name}/chips.zarr", case.plan)
        except TrainError as error:
            assert "no training chip has a valid pixel" in str(error)  # noqa: PT017 - small ones may have none
            return
        count = int((case.plan["split"] != "none").sum())
        sample, about = chips.read(np.arange(count)), chips.dataset()
        assert sample.image.dtype == case.cubes[0].dtype
        held = [tuple(about[n].values[k] for n in ("source", "row", "column", "step")) for k in range(count)]
        kept = case.plan[case.plan["split"] != "none"]
        assert sorted(held) == sorted(kept[["source", "row", "column", "step"]].itertuples(index=False, name=None))
        for k, (source, row, column, step) in enumerate(held):
            cube, label = case.cubes[source], case.labels[source]
            cut = {"y": slice(row, row + case.size), "x": slice(column, column + case.size)}
            frames = cube.isel(cut) if case.dated is None else cube.isel(cut).isel(time=[case.dated[step]])
            truth = label.isel(cut) if case.dated is None else label.isel(cut).isel(time=step)
            np.testing.assert_array_equal(sample.image[k], frames.values)
            np.testing.assert_array_equal(sample.label[k], truth.values)
            there = np.isfinite(frames) if frames.dtype.kind == "f" else frames != -9999
            np.testing.assert_array_equal(sample.valid[k], there.all(("time", "band")).values)
            day = pd.DatetimeIndex(frames.time.values)
            np.testing.assert_array_equal(sample.time[k], np.stack([day.year, day.dayofyear - 1], axis=-1))
            mine = kept[(kept[["source", "row", "column", "step"]] == (source, row, column, step)).all(axis=1)]
            number = int(about["group"].values[k])
            assert number in set(mine["group"])
            assert ("train", "val", "test")[int(about["split"].values[k])] == mine.set_index("group")["split"][number]
            x, y = frames.x.values[[0, -1]].mean(), frames.y.values[[0, -1]].mean()
            lon, lat = Transformer.from_crs("EPSG:32615", "EPSG:4326", always_xy=True).transform(x, y)
            np.testing.assert_allclose(sample.location[k], [lat, lon], rtol=1e-6)


def by_xarray(chips: Chips, indexes: np.ndarray) -> tuple[np.ndarray, ...]:
    about = chips.dataset().isel(chip=indexes)
    return about["image"].values, about["label"].values, about["valid"].values


@pytest.mark.parametrize("url", [False, True], ids=["path", "file URL"])
def test_read_is_what_xarray_reads_in_any_order(tmp_path: Path, url: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xgfm.train.chips.writing, "_LOT_CHIPS", 5)
    cube, label = field_chips.field()
    path = f"file://{tmp_path}/chips.zarr" if url else tmp_path / "chips.zarr"
    chips = write_chips(cube, label, path, field_chips.plan_of(label), size=field_chips.SIZE)
    rng = np.random.default_rng(0)
    for _ in range(5):
        asked = rng.integers(0, 12, rng.integers(0, 9))
        sample = chips.read(asked)
        for mine, theirs in zip(sample[:3], by_xarray(chips, asked), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    for beyond in (12, -1):
        with pytest.raises(TrainError, match="12"):
            chips.read(np.array([0, beyond]))


def test_a_store_that_is_not_local_is_read_by_zarr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chips = field_chips.write_small_chips(tmp_path / "chips.zarr")
    expected = chips.read(np.arange(12))
    monkeypatch.setattr("xgfm.train.chips.store.local_folder", lambda path: None)
    shutil.move(tmp_path / "chips.zarr", tmp_path / "moved.zarr")
    again = open_chips(tmp_path / "moved.zarr").read(np.arange(12))
    for mine, theirs in zip(again, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_many_threads_read_at_once(tmp_path: Path) -> None:
    chips = field_chips.write_small_chips(tmp_path / "chips.zarr")
    images = chips.dataset()["image"].values
    asked = [np.random.default_rng(k).integers(0, 12, 4) for k in range(60)]
    with ThreadPoolExecutor(8) as pool:
        for indexes, sample in zip(asked, pool.map(chips.read, asked), strict=True):
            np.testing.assert_array_equal(sample.image, images[indexes])


def test_a_pickle_is_small_and_reads(tmp_path: Path) -> None:
    chips = field_chips.write_small_chips(tmp_path / "chips.zarr")
    chips.read(np.arange(12))
    sent = pickle.dumps(chips)
    assert len(sent) < 10_000
    np.testing.assert_array_equal(pickle.loads(sent).read(np.arange(12)).image, chips.read(np.arange(12)).image)


def test_facts_are_those_of_valid_training_pixels(tmp_path: Path) -> None:
    cube = toys.cube(64, 64, missing=0.1)
    label = labelled(cube)
    chips = write_chips(cube, label, tmp_path / "chips.zarr", size=8, split="random")
    sample, splits = chips.read(np.arange(64)), chips.dataset()["split"].values
    train = splits == 0
    values = sample.image[train].astype("float64").transpose(2, 0, 1, 3, 4)
    there = np.broadcast_to(sample.valid[train][:, None], values.shape[1:])
    np.testing.assert_allclose(chips.facts.statistics.mean, values[:, there].mean(1), rtol=1e-12)
    np.testing.assert_allclose(chips.facts.statistics.std, values[:, there].std(1), rtol=1e-9)
    for number, name in enumerate(("train", "val", "test")):
        mine = splits == number
        known = sample.label[mine][sample.valid[mine]]
        assert chips.facts.counts[name] == tuple(int((known == k).sum()) for k in range(3))
        np.testing.assert_array_equal(chips.indexes(name), np.flatnonzero(mine))
    assert type(chips.facts).from_json(chips.facts.to_json()) == chips.facts


def test_targets_of_a_regression(tmp_path: Path) -> None:
    cube = toys.cube(32, 32)
    label = labelled(cube, units="t ha-1")
    chips = write_chips(cube, label, tmp_path / "chips.zarr", size=8, split="random")
    facts, sample = chips.facts, chips.read(np.arange(16))
    assert (facts.kind, facts.units, facts.classes) == ("regression", "t ha-1", ())
    known = np.isfinite(sample.label) & sample.valid
    splits = chips.dataset()["split"].values
    assert facts.counts == {n: (int(known[splits == k].sum()),) for k, n in enumerate(("train", "val", "test"))}


def test_a_longer_cube_is_composited(tmp_path: Path) -> None:
    cube = toys.cube(32, 32, times=4, missing=0.1)
    label = labelled(cube)
    plan = plan_chips(label, size=8, split="random")
    chips = write_chips(cube, label, tmp_path / "chips.zarr", plan, frames=2)
    expected, about = composite(cube, 2).values, chips.dataset()
    for k in range(16):
        row, column = (int(about[n][k]) for n in ("row", "column"))
        np.testing.assert_array_equal(about["image"].values[k], expected[..., row : row + 8, column : column + 8])
    with pytest.raises(FramesError, match="frames=5"):
        write_chips(cube, label, tmp_path / "other.zarr", plan, frames=5)


def test_chips_without_a_valid_pixel_or_a_label_are_stored_too(tmp_path: Path) -> None:
    cube = toys.cube(16, 32)
    values = cube.values.copy()
    values[..., :16] = -9999
    cube = cube.copy(data=values)
    label = labelled(cube)
    label[:, :16] = 255
    rows = [row_of(cube, 0, 0, column, 0, 16) for column in (0, 16)]
    plan = pd.DataFrame(rows).assign(split="train", group=0)
    plan.attrs["size"] = 16
    chips = write_chips(cube, label, tmp_path / "chips.zarr", plan)
    sample = chips.read(np.array([1, 0]))
    np.testing.assert_array_equal(sample.image, np.stack([values[..., 16:], values[..., :16]]))
    assert sample.valid[0].all()
    assert not sample.valid[1].any()
    zeros = write_chips(cube * 0, label, tmp_path / "zeros.zarr", plan)
    assert not zeros.read(np.array([0, 1])).image.any()


def test_workers_of_a_cluster_write_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xgfm.train.chips.writing, "_LOT_CHIPS", 2)
    alone = field_chips.write_small_chips(tmp_path / "alone.zarr")
    cube, label = field_chips.field()
    with Client(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0") as client:
        plan = field_chips.plan_of(label)
        chips = write_chips(cube, label, tmp_path / "chips.zarr", plan, size=field_chips.SIZE, client=client)
    assert chips.facts == alone.facts
    for mine, theirs in zip(chips.read(np.arange(12)), alone.read(np.arange(12)), strict=True):
        np.testing.assert_array_equal(mine, theirs)


# ---- what is there already


def test_a_finished_store_is_opened_and_nothing_read(tmp_path: Path) -> None:
    chips = field_chips.write_small_chips(tmp_path / "chips.zarr")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert field_chips.write_small_chips(tmp_path / "chips.zarr") == chips
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_store_of_other_chips_is_refused(tmp_path: Path) -> None:
    field_chips.write_small_chips(tmp_path / "chips.zarr")
    cube, label = field_chips.field()
    plan = field_chips.plan_of(label)
    other = label.copy(data=label.values)
    other[5, 5] = (int(label[5, 5]) + 1) % 3
    for c, a, p in (
        (cube, label, plan.assign(split="train")), (cube, label, plan.iloc[1:]), (cube, other, plan),
        (cube.assign_coords(time=cube.time + np.timedelta64(1, "D")), label, plan),
    ):  # fmt: skip
        with pytest.raises(TrainError, match=r"holds other chips.*another store"):
            write_chips(c, a, tmp_path / "chips.zarr", p, size=field_chips.SIZE)


@pytest.mark.parametrize("what", ["group", "array", "another package's"])
def test_a_store_of_something_else_is_left_alone(tmp_path: Path, what: str) -> None:
    path = tmp_path / "chips.zarr"
    if what == "array":
        zarr.create_array(path, shape=(3,), dtype="int16")
    else:
        zarr.create_group(path, attributes={"a": 1})
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    with pytest.raises(TrainError, match="no store of chips"):
        field_chips.write_small_chips(path)
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("records", [True, False], ids=["records left", "records deleted"])
def test_a_deleted_store_is_written_anew(tmp_path: Path, records: bool) -> None:
    path = tmp_path / "chips.zarr"
    old = field_chips.write_small_chips(path, seed=0)
    expected = old.read(np.arange(12)).image
    shutil.rmtree(path)
    if not records:
        shutil.rmtree(f"{path}.lots")
    np.testing.assert_array_equal(field_chips.write_small_chips(path, seed=0).read(np.arange(12)).image, expected)
    shutil.rmtree(path)
    new = field_chips.write_small_chips(path, seed=1).read(np.arange(12))
    assert (new.image != expected).any()
    np.testing.assert_array_equal(new.image, open_chips(path).dataset()["image"].values)
    shutil.rmtree(path)
    cube, label = field_chips.field()
    other = write_chips(cube, label, path, plan_chips(label, size=16, split="random"))
    np.testing.assert_array_equal(other.read(np.arange(48)).image, other.dataset()["image"].values)


def test_a_shard_that_is_lost_or_cut_short(tmp_path: Path) -> None:
    chips = field_chips.write_small_chips(tmp_path / "chips.zarr")
    shard = tmp_path / "chips.zarr/image/c/0/0/0/0/0"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(TrainError, match=r"shard 0 of .*image is not whole"):
        chips.read(np.array([3]))
    shard.unlink()
    with pytest.raises(TrainError, match="is not whole"):
        chips.read(np.array([3]))


@pytest.mark.parametrize("last", [0, 1, -1, 77], ids=str)
@pytest.mark.parametrize("lost", [1, 2, 5])
def test_a_shard_that_lost_whole_chips(tmp_path: Path, lost: int, last: int) -> None:
    """Where the index should be there are pixels then, and pixels of zeros say that every chip is the first one."""
    chips = field_chips.write_small_chips(tmp_path / "chips.zarr")
    shard = tmp_path / "chips.zarr/image/c/0/0/0/0/0"
    held = shard.read_bytes()[: -lost * chips.dataset()["image"][0].nbytes]
    shard.write_bytes(held[: -len(held) // 2] + np.full(len(held) // 2, last, "int8").tobytes())
    with pytest.raises(TrainError, match=r"shard 0 of .*image is not whole"):
        chips.read(np.array([3]))


def test_a_damaged_chunk_of_a_cube_costs_its_chips_alone(tmp_path: Path) -> None:
    cube, label = field_chips.field()
    cube = cube.assign_coords(band=cube["band"].astype(object)).compute()
    layout = {"hls": {"chunks": (1, 6, 32, 64), "grid_mapping": "spatial_ref"}}
    cube.to_dataset().to_zarr(tmp_path / "cube.zarr", consolidated=False, encoding=layout)
    chunk = tmp_path / "cube.zarr/hls/c/1/0/0/2"
    chunk.write_bytes(chunk.read_bytes()[:500])
    stored = xr.open_zarr(tmp_path / "cube.zarr", consolidated=False, decode_coords="all", mask_and_scale=False)["hls"]
    chips = write_chips(stored, label, tmp_path / "chips.zarr", field_chips.plan_of(label), max_failed=0.2, size=32)
    assert [(one["chip"], "ecompress" in one["reason"]) for one in chips.facts.failed] == [(4, True), (5, True)]
    assert len(chips.indexes("train")) == 6


def test_reasons_hold_no_secret(tmp_path: Path) -> None:
    cube, label = field_chips.field()

    def read(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        if block_info[0]["chunk-location"][-1] == 0:
            raise OSError("HTTP 403 for https://host.example/a.tif?sig=CANARY&se=1")
        return block

    broken = cube.copy(data=cube.data.map_blocks(read, dtype=cube.dtype, meta=np.empty((0,) * 4, cube.dtype)))
    chips = write_chips(broken, label, tmp_path / "chips.zarr", field_chips.plan_of(label), max_failed=0.2, size=32)
    assert "host.example/a.tif" in chips.facts.failed[0]["reason"]
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"CANARY" in p.read_bytes()]


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="no store of chips"):
        open_chips(tmp_path / "none.zarr")
    zarr.create_group(tmp_path / "begun.zarr")
    with pytest.raises(TrainError, match="not whole"):
        open_chips(tmp_path / "begun.zarr")


# ---- what is refused, before any pixel is read


def unreadable(cube: xr.DataArray) -> xr.DataArray:
    def read(block: np.ndarray) -> np.ndarray:
        raise AssertionError("a pixel was read")

    lazy = da.map_blocks(read, cube.data, dtype=cube.dtype, meta=np.empty((0,) * 4, cube.dtype))
    return cube.copy(data=lazy)


def refused(tmp_path: Path, match: str, cube: Any, label: Any, plan: Any = None, **options: Any) -> None:
    with pytest.raises(XgfmError, match=match):
        write_chips(cube, label, tmp_path / "chips.zarr", plan, **{"size": 8, **options})
    assert not list(tmp_path.iterdir())


def test_plans_of_other_cubes(tmp_path: Path) -> None:
    cube = unreadable(toys.cube(32, 32))
    label = labelled(cube)
    plan = plan_chips(label, size=8, split="random")
    refused(tmp_path, r"no columns \['group'\]", cube, label, plan.drop(columns="group"))
    refused(tmp_path, r"splits \['dev'\]", cube, label, plan.assign(split="dev"))
    refused(tmp_path, "no chip of any split", cube, label, plan.assign(split="none"))
    refused(tmp_path, "2 cubes, and 1", cube, label, plan.assign(source=1))
    refused(tmp_path, r"row 8 to 32 of cube 0, where 0 to 24", cube, label, plan.assign(row=plan["row"] + 8))
    refused(tmp_path, r"column -8 to", cube, label, plan.assign(column=plan["column"] - 8))
    refused(tmp_path, r"step 1 to 1", cube, label, plan.assign(step=1))
    refused(tmp_path, r"\['split'\] are options of a plan", cube, label, plan, split="random")


def test_cubes_that_are_not_alike(tmp_path: Path) -> None:
    cube = unreadable(toys.cube(32, 32))
    for what, other in (
        ("bands", cube.isel(band=[1, 0, 2, 3, 4, 5])), ("dtype", cube.astype("int32")), ("frames", cube.isel(time=[0])),
        ("units", cube.assign_attrs(nodata=0)), ("units", cube.assign_attrs(reflectance_scale=1e-3)),
    ):  # fmt: skip
        refused(tmp_path, f"cube 1 has {what}", [cube, other], [labelled(cube), labelled(other)])
    labels = [labelled(cube, units="t"), labelled(cube, units="kg")]
    refused(tmp_path, "label units kg", [cube, cube], labels)
    refused(tmp_path, "different classes", [cube, cube], [labelled(cube), labelled(cube, units="t")])
    refused(tmp_path, "2 cubes and 1 label", [cube, cube], [labelled(cube)])
    refused(tmp_path, "0 cubes", [], [])


def test_labels_of_another_grid_or_time(tmp_path: Path) -> None:
    cube = unreadable(toys.cube(32, 32))
    refused(tmp_path, r"labels\(source, cube\)", cube, labelled(toys.cube(32, 32, column=9001)))
    refused(tmp_path, r"labels\(source, cube\)", cube, labelled(toys.cube(32, 32, crs="EPSG:32616")))
    refused(tmp_path, r"labels\(source, cube\)", cube, labelled(cube).isel(x=slice(0, 16)))
    dated = labelled(cube, dates=[0, 2])
    refused(tmp_path, "frames=3", cube, dated, frames=3)
    refused(tmp_path, "no date", cube, dated.assign_coords(time=dated.time + np.timedelta64(1, "h")))
    refused(tmp_path, r"\(time, band, y, x\)", cube.isel(time=0), labelled(cube))


def test_labels_of_another_type_or_with_other_codes(tmp_path: Path) -> None:
    cube = toys.cube(32, 32)
    label = labelled(cube)
    plan = plan_chips(label, size=8, split="random")
    refused(tmp_path, "uint8", unreadable(cube), label.astype("int16"), plan)
    label[5, 5] = 7
    with pytest.raises(LabelError, match=r"labels hold \[7\]"):
        write_chips(cube, label, tmp_path / "chips.zarr", plan)


def test_pixels_of_another_size(tmp_path: Path) -> None:
    from affine import Affine
    from odc.geo.geobox import GeoBox

    cube = unreadable(toys.cube(32, 32))
    box = GeoBox((32, 32), Affine(10.0, 0, 440280, 0, -10.0, 4800000), "EPSG:32615")
    other = unreadable(toys.cube(box=box))
    refused(tmp_path, "pixels of 10.0 m, cube 0 of 30.0 m", [cube, other], [labelled(cube), labelled(other)])


def test_what_is_said_of_chips(tmp_path: Path) -> None:
    chips = field_chips.write_small_chips(tmp_path / "chips.zarr")
    assert "8 train, 2 val, 2 test; 2 x 6 x 32 x 32, segmentation of 3" in repr(chips)
    assert chips.facts.lineage[0]["dates"] == [f"{d}T00:00:00" for d in toys.DATES[:2]]
    assert replace(chips, path="elsewhere") != chips
