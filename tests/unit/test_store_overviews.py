"""Coarser levels: other libraries' modes and means, whatever the order of blocks and after any interruption."""

from __future__ import annotations

import collections
import itertools
import json
import pickle
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
import zarr_cm
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from odc.geo.geobox import GeoBox
from results import NORTH, result
from stores import contents, template

from xgfm.errors import WriteError
from xgfm.grid import geobox_of
from xgfm.store.objects import Objects, zarr_store
from xgfm.store.overviews import Piece, add_overviews, coarser
from xgfm.store.template import template_differences
from xgfm.store.write import to_zarr

NODATA = 255
CLASSES = hnp.arrays(
    "uint8", hnp.array_shapes(min_dims=2, max_dims=3, max_side=9), elements=st.sampled_from([0, 1, 2, NODATA])
)
FLOATS = hnp.arrays(
    "float32",
    hnp.array_shapes(min_dims=2, max_dims=3, max_side=9),
    elements=st.one_of(st.just(float("nan")), st.floats(0, 1, width=32)),
)


def cells(values: np.ndarray, factor: int) -> Iterable[tuple[tuple[int, ...], list[Any]]]:
    """Yield the place of each cell and its values, row by row, in plain Python."""
    *lead, height, width = values.shape
    for index in np.ndindex(*lead, -(-height // factor), -(-width // factor)):
        *front, row, column = index
        part = values[(*front, slice(row * factor, (row + 1) * factor), slice(column * factor, (column + 1) * factor))]
        yield index, part.ravel().tolist()


@given(CLASSES, st.integers(2, 4))
def test_classes_become_the_most_frequent_one(values: np.ndarray, factor: int) -> None:
    made = coarser(values, factor, NODATA)
    assert made.dtype == values.dtype
    for index, cell in cells(values, factor):
        counted = collections.Counter(v for v in cell if v != NODATA)  # of equals, the one met first
        assert made[index] == (counted.most_common(1)[0][0] if counted else NODATA)


@given(FLOATS, st.integers(2, 4))
def test_floats_become_their_mean(values: np.ndarray, factor: int) -> None:
    made = coarser(values, factor, np.nan)
    assert made.dtype == values.dtype
    for index, cell in cells(values, factor):
        valid = [v for v in cell if v == v]
        expected = np.float32(sum(valid) / len(valid)) if valid else np.float32("nan")
        np.testing.assert_allclose(made[index], expected, rtol=1e-6)


def test_as_gdal_does(tmp_path: Path) -> None:
    import rasterio
    from rasterio.enums import Resampling

    random = np.random.default_rng(0)
    classes = random.choice(np.array([0, 1, 2, 3, NODATA], "uint8"), (64, 96), p=[0.6, 0.2, 0.1, 0.05, 0.05])
    shares = np.where(classes == NODATA, np.nan, random.random(classes.shape)).astype("float32")
    for values, nodata, method in ((classes, NODATA, Resampling.mode), (shares, np.nan, Resampling.average)):
        profile = {"driver": "GTiff", "height": 64, "width": 96, "count": 1, "dtype": values.dtype, "nodata": nodata}
        profile["transform"] = Affine(30, 0, 0, 0, -30, 0)
        with rasterio.open(tmp_path / "a.tif", "w", **profile) as file:
            file.write(values, 1)
        with rasterio.open(tmp_path / "a.tif") as file:
            theirs = file.read(1, out_shape=(32, 48), resampling=method)
        ours = coarser(values, 2, nodata)
        if method is Resampling.mode:  # of several most frequent ones, GDAL takes another
            clear = np.array([_is_clear(cell) for _, cell in cells(values, 2)]).reshape(ours.shape)
            assert 0.5 < clear.mean() < 1
            np.testing.assert_array_equal(ours[clear], theirs[clear])
        else:
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def _is_clear(cell: list[int]) -> bool:
    counts = sorted(collections.Counter(v for v in cell if v != NODATA).values())
    return len(counts) < 2 or counts[-1] > counts[-2]


@pytest.fixture(scope="module")
def values() -> xr.Dataset:
    return template((70, 90), 32, probability=True)


def expected(values: xr.Dataset, factor: int) -> dict[str, np.ndarray]:
    made = {str(n): v.values for n, v in values.data_vars.items()}
    for _ in range(int(np.log2(factor))):
        made = {n: coarser(v, 2, NODATA if v.dtype.kind != "f" else np.nan) for n, v in made.items()}
    return made


def written(folder: Path, values: xr.Dataset) -> Path:
    to_zarr(values, folder / "a.zarr", chunk=16, shard=32)
    return folder / "a.zarr"


def test_each_level_stands_in_the_store(tmp_path: Path, values: xr.Dataset) -> None:
    path = written(tmp_path, values)
    add_overviews(path)
    base = geobox_of(values)
    for factor in (2, 4, 8):
        group = f"overviews/{factor}"
        level = xr.open_zarr(path, group=group, mask_and_scale=False, decode_coords="all")
        for name, array in expected(values, factor).items():
            np.testing.assert_array_equal(level[name], array)
            assert level[name].encoding["grid_mapping"] == "spatial_ref"
        box = geobox_of(level)
        assert (box.affine.a, box.affine.c, box.affine.f) == (30 * factor, base.affine.c, base.affine.f)
        assert box.crs == base.crs
        assert level.crop_v1_0.attrs["class_names"] == values.crop_v1_0.attrs["class_names"]
        assert level.crop_v1_0.attrs["spatial:transform"] == list(box.transform[:6])
    assert max(level.sizes["y"], level.sizes["x"]) <= 16 < base.shape[1] / 4
    assert sorted(zarr.open_group(path, path="overviews").group_keys(), key=int) == ["2", "4", "8"]
    assert template_differences(zarr_store(path), {"": values}, chunk=16, shard=32) == []


def test_the_layout_is_of_the_convention(tmp_path: Path, values: xr.Dataset) -> None:
    path = written(tmp_path, values)
    add_overviews(path)
    document = json.loads((path / "zarr.json").read_text())
    zarr_cm.multiscales.validate_group_metadata({k: document[k] for k in ("zarr_format", "node_type", "attributes")})
    layout = document["attributes"]["multiscales"]["layout"]
    assert [entry["asset"] for entry in layout] == ["crop_v1_0", *(f"overviews/{f}" for f in (2, 4, 8))]
    for finer, entry in itertools.pairwise(layout):
        assert entry["derived_from"] == finer["asset"]
        found = zarr.open_group(path, path=entry["asset"])["crop_v1_0"]
        assert list(found.shape) == entry["spatial:shape"]
        assert found.attrs["spatial:transform"] == entry["spatial:transform"]
    assert "overviews/8/crop_v1_0" in document["consolidated_metadata"]["metadata"]


def test_layers_without_classes_and_with_time(tmp_path: Path) -> None:
    values = template((40, 30), 32, times=2)
    values["height"] = (("time", "y", "x"), values.crop_v1_0.data.astype("float32") / 3)
    path = written(tmp_path, values)
    add_overviews(path)
    level = xr.open_zarr(path, group="overviews/2", mask_and_scale=False, decode_coords="all")
    for name, array in expected(values, 2).items():
        np.testing.assert_array_equal(level[name], array)
    np.testing.assert_array_equal(level.time, values.time)
    assert level.crop_v1_0.encoding["shards"][0] == xr.open_zarr(path).crop_v1_0.encoding["shards"][0] == 1


@given(st.randoms(), st.booleans())
@settings(max_examples=2, deadline=None)
def test_the_order_of_blocks_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, values: xr.Dataset, random: Any, threads: bool
) -> None:
    paths = [written(tmp_path_factory.mktemp("order"), values) for _ in range(2)]

    def shuffled(function: Callable[[Piece], Any], pieces: Iterable[Piece]) -> Iterable[Any]:
        mixed = pickle.loads(pickle.dumps((function, list(pieces))))
        random.shuffle(mixed[1])
        if not threads:
            return map(*mixed)
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(*mixed))

    add_overviews(paths[0])
    add_overviews(paths[1], run=shuffled)
    assert contents(paths[0]) == contents(paths[1])


@pytest.mark.parametrize("stop_after", [1, 4, 5])
@pytest.mark.parametrize("recorded", [True, False])
def test_an_interruption_does_not_matter(tmp_path: Path, values: xr.Dataset, stop_after: int, recorded: bool) -> None:
    clean, path = (written(tmp_path / name, values) for name in ("clean", "stopped"))
    records = Objects(tmp_path / "a.zarr.job") if recorded else None
    made: list[Piece] = []

    def stopping(function: Callable[[Piece], Any], pieces: Iterable[Piece]) -> Iterable[Any]:
        for piece in pieces:
            if len(made) == stop_after:
                raise KeyboardInterrupt
            made.append(piece)
            yield function(piece)

    def counting(function: Callable[[Piece], Any], pieces: Iterable[Piece]) -> Iterable[Any]:
        for piece in pieces:
            made.append(piece)
            yield function(piece)

    with pytest.raises(KeyboardInterrupt):
        add_overviews(path, records=records, run=stopping)
    add_overviews(path, records=records, run=counting)
    add_overviews(clean)
    assert contents(path) == contents(clean)
    total = 4 + 1 + 1
    again = 0 if recorded else stop_after - max(whole for whole in (0, 4, 5) if whole <= stop_after)
    assert len(made) == total + again
    add_overviews(path, records=records, run=counting)
    assert len(made) == total + again


def test_pixels_of_another_source_are_made_coarser_anew(tmp_path: Path, values: xr.Dataset) -> None:
    path, records = written(tmp_path, values), Objects(tmp_path / "a.zarr.job")
    add_overviews(path, source="first", records=records)
    crop = zarr.open_array(path, path="crop_v1_0")
    crop[...] = 2 - np.clip(crop[...], 0, 2)
    changed = xr.open_zarr(path, mask_and_scale=False, decode_coords="all").compute()
    add_overviews(path, source="first", records=records)
    stale = zarr.open_array(path, path="overviews/4/crop_v1_0")[...]
    assert not np.array_equal(stale, expected(changed, 4)["crop_v1_0"])
    add_overviews(path, source="second", records=records)
    for factor in (2, 4, 8):
        made = zarr.open_array(path, path=f"overviews/{factor}/crop_v1_0")[...]
        np.testing.assert_array_equal(made, expected(changed, factor)["crop_v1_0"])


def test_a_level_that_is_begun_anew_forgets_its_records(tmp_path: Path, values: xr.Dataset) -> None:
    clean, path = (written(tmp_path / name, values) for name in ("clean", "stopped"))
    records = Objects(tmp_path / "a.zarr.job")

    def stopping(function: Callable[[Piece], Any], pieces: Iterable[Piece]) -> Iterable[Any]:
        for number, piece in enumerate(pieces):
            if number == 2:
                raise KeyboardInterrupt
            yield function(piece)

    with pytest.raises(KeyboardInterrupt):
        add_overviews(path, records=records, run=stopping)
    for one in (clean, path):  # what the level was to say is said otherwise now
        zarr.open_group(one, mode="r+").attrs["title"] = "Another title"
    with pytest.raises(KeyboardInterrupt):
        add_overviews(path, records=records, run=lambda function, pieces: stopping(function, reversed(list(pieces))))
    add_overviews(path, records=records)
    add_overviews(clean)
    assert contents(path) == contents(clean)


def test_groups_each_have_their_own(tmp_path: Path, values: xr.Dataset) -> None:
    for group in ("15TVM", "15TWM"):
        to_zarr(values, tmp_path / f"{group}.zarr", chunk=16, shard=32)
    (tmp_path / "a.zarr").mkdir()
    zarr.create_group(tmp_path / "a.zarr")
    for group in ("15TVM", "15TWM"):
        (tmp_path / f"{group}.zarr").rename(tmp_path / "a.zarr" / group)
    add_overviews(tmp_path / "a.zarr", ["15TVM", "15TWM"], factor=4)
    for group in ("15TVM", "15TWM"):
        level = xr.open_zarr(tmp_path / "a.zarr", group=f"{group}/overviews/4", mask_and_scale=False)
        np.testing.assert_array_equal(level.crop_v1_0, coarser(values.crop_v1_0.values, 4, NODATA))
    root = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert "multiscales" not in root.attrs
    assert root["15TWM/overviews/16/crop_v1_0"].shape == (5, 6)


def test_a_small_map_has_none(tmp_path: Path) -> None:
    path = written(tmp_path, template((16, 16), 32))
    add_overviews(path)
    assert not (path / "overviews").exists()


def test_numbers_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    values = result()
    values["count"] = values.crop_v1_0.astype("int16").assign_attrs(flag_values=None)
    del values["count"].attrs["flag_values"]
    path = written(tmp_path, values)
    with pytest.raises(WriteError, match=r"holds \['count'\]; overviews are made of maps of classes"):
        add_overviews(path)


def test_no_more_than_a_block_is_held(tmp_path: Path) -> None:
    import tracemalloc

    box = GeoBox((2048, 2048), NORTH.affine, "EPSG:32615")
    path = tmp_path / "a.zarr"
    to_zarr(result(box, chunks=(256, 256)), path, chunk=256, shard=256)
    add_overviews(path, factor=4)  # what is imported and cached on the way
    tracemalloc.start()
    add_overviews(path, source="again")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2048 * 2048 / 2  # half of the map; a level at once takes more than all of it
