"""Blocks are whole shards, read back as written, and have the same digest if and only if they are the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from stores import blocks, cut, template

from xgfm.errors import WriteError
from xgfm.store.objects import zarr_store
from xgfm.store.region import digest, read_digest, sweep, write_block
from xgfm.store.template import create_store

SHAPES = hnp.array_shapes(min_dims=2, max_dims=3, max_side=4)
DTYPES = st.sampled_from(["uint8", "int16", "float32", "float64"])
ARRAYS = st.dictionaries(
    st.sampled_from(["crop", "probability", "entropy"]), DTYPES.flatmap(lambda d: hnp.arrays(d, SHAPES)), max_size=2
)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """What the digest is to tell, said by numpy: names, dtypes, shapes, values and their signs; NaN equals NaN."""
    return one.keys() == other.keys() and all(
        a.dtype == other[n].dtype
        and np.array_equal(a, other[n], equal_nan=a.dtype.kind == "f")
        and (a.dtype.kind != "f" or np.array_equal(np.signbit(a) & ~np.isnan(a), np.signbit(other[n]) & ~np.isnan(a)))
        for n, a in one.items()
    )


@given(ARRAYS, ARRAYS)
@settings(max_examples=200)
def test_digests_are_equal_if_and_only_if_the_data_is(one: dict, other: dict) -> None:
    assert (digest(one) == digest(other)) == same(one, other)
    copied = {n: np.asfortranarray(a[..., ::-1])[..., ::-1] for n, a in reversed(one.items())}
    assert digest(copied) == digest(one)


@given(hnp.arrays(DTYPES, SHAPES), st.data())
def test_one_changed_value_changes_the_digest(array: np.ndarray, data: st.DataObject) -> None:
    place = tuple(data.draw(st.integers(0, size - 1)) for size in array.shape)
    changed = array.copy()
    changed[place] = data.draw(hnp.from_dtype(array.dtype))
    assert (digest({"a": array}) == digest({"a": changed})) == same({"a": array}, {"a": changed})


def test_digests_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).random((5, 7, 11)).astype("float32")
    whole = digest({"a": array})
    monkeypatch.setattr("xgfm.store.region._PIECE", 10)
    assert digest({"a": array}) == whole
    assert digest({"a": array.astype(">f4")}) == whole  # the order of bytes is no fact about the data


def test_the_digest_stays_as_it_is() -> None:
    # Ledgers of earlier versions hold it.
    arrays = {"crop": np.arange(6, dtype="uint8").reshape(2, 3), "p": np.array([[np.nan, 0.5]], "float32")}
    assert digest(arrays) == "ed72196ace7c574b709737f7c10eaabd"


@pytest.fixture
def lazy(tmp_path: Path) -> xr.Dataset:
    made = template((40, 30), 16, probability=True, times=0)
    create_store(tmp_path / "a.zarr", {"": made, "g": made}, chunk=8, shard=16)
    return made


@pytest.mark.parametrize("group", ["", "g"])
def test_the_digest_is_of_what_stands_in_the_store(tmp_path: Path, lazy: xr.Dataset, group: str) -> None:
    store = zarr_store(tmp_path / "a.zarr")
    for arrays, rows, columns in blocks(lazy.compute(), 16):
        given = write_block(store, group, arrays, rows, columns)
        assert given == digest(arrays) == read_digest(store, group, reversed(arrays), rows, columns)
        found = xr.open_zarr(tmp_path / "a.zarr", group=group or None, mask_and_scale=False).isel(y=rows, x=columns)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)


def test_a_changed_pixel_is_found(tmp_path: Path, lazy: xr.Dataset) -> None:
    store = zarr_store(tmp_path / "a.zarr")
    arrays, rows, columns = next(blocks(lazy.compute(), 16))
    given = write_block(store, "", arrays, rows, columns)
    crop = zarr.open_array(store, path="crop_v1_0")
    crop[15, 15] = (int(crop[15, 15]) + 1) % 3
    assert read_digest(store, "", arrays, rows, columns) != given


@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7FC00001])
def test_any_nan_is_no_data(tmp_path: Path, lazy: xr.Dataset, bits: int) -> None:
    store = zarr_store(tmp_path / "a.zarr")
    nan = np.full((3, 16, 16), bits, "uint32").view("float32")
    arrays = {"crop_v1_0": np.full((16, 16), 255, "uint8"), "probability": nan}
    given = write_block(store, "", arrays, slice(0, 16), slice(0, 16))
    assert given == digest({**arrays, "probability": np.full((3, 16, 16), np.nan, "float32")})
    assert not (tmp_path / "a.zarr" / "crop_v1_0" / "c").exists()  # no chunk of nothing


def test_nothing_replaces_something(tmp_path: Path, lazy: xr.Dataset) -> None:
    store = zarr_store(tmp_path / "a.zarr")
    arrays, rows, columns = next(blocks(lazy.compute(), 16))
    write_block(store, "", arrays, rows, columns)
    empty = {"crop_v1_0": np.full((16, 16), 255, "uint8"), "probability": np.full((3, 16, 16), np.nan, "float32")}
    assert write_block(store, "", empty, rows, columns) == digest(empty)


@pytest.mark.parametrize("damage", [lambda data: data[:-4] + b"xxxx", lambda data: data[: len(data) // 2]])
def test_a_damaged_shard_is_written_anew(tmp_path: Path, lazy: xr.Dataset, damage: Callable[[bytes], bytes]) -> None:
    store = zarr_store(tmp_path / "a.zarr")
    arrays, rows, columns = next(blocks(lazy.compute(), 16))
    given = write_block(store, "", arrays, rows, columns)
    shards = [p for p in (tmp_path / "a.zarr").rglob("c/**/*") if p.is_file()]
    assert len(shards) > 1
    for shard in shards:
        shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises((ValueError, RuntimeError)):
        read_digest(store, "", arrays, rows, columns)
    assert write_block(store, "", arrays, rows, columns) == given == read_digest(store, "", arrays, rows, columns)


REGIONS = st.integers(-20, 60)


@given(REGIONS, REGIONS, REGIONS, REGIONS)
@settings(max_examples=50, deadline=None)
def test_only_whole_shards(
    tmp_path_factory: pytest.TempPathFactory, top: int, bottom: int, left: int, right: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "regions.zarr"
    create_store(folder, {"": template((40, 30), 16)}, chunk=8, shard=16)
    allowed = {(0, 16), (16, 32), (0, 32), (0, 40), (16, 40), (32, 40)}, {(0, 16), (0, 30), (16, 30)}
    arrays = {"crop_v1_0": np.zeros((max(bottom - top, 0), max(right - left, 0)), "uint8")}
    region = slice(top, bottom), slice(left, right)
    if (top, bottom) in allowed[0] and (left, right) in allowed[1]:
        write_block(zarr_store(folder), "", arrays, *region)
    else:
        with pytest.raises(WriteError, match=r"is not whole shards of 16 pixels of (40|30), and writers of one shard"):
            write_block(zarr_store(folder), "", arrays, *region)


@pytest.mark.parametrize("rows", [slice(0, 16, 2), slice(None, 16), slice(0, None)])
def test_other_slices_are_refused(tmp_path: Path, lazy: xr.Dataset, rows: slice) -> None:
    with pytest.raises(WriteError, match="not whole shards"):
        write_block(zarr_store(tmp_path / "a.zarr"), "", cut(lazy.compute(), rows, slice(0, 16)), rows, slice(0, 16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {**a, "crop_v1_0": a["crop_v1_0"].astype("int16")}, r"the block is int16 \(16, 16\), .* uint8"),
        (lambda a: {**a, "probability": a["probability"][:2]}, r"\(2, 16, 16\), the template expects .*\(3, 16, 16\)"),
        (lambda a: {**a, "crop_v1_0": a["crop_v1_0"][:15]}, r"\(15, 16\)"),
        (lambda a: {**a, "colour": a["crop_v1_0"]}, r"no array for one of \['colour', 'crop_v1_0', 'probability'\]"),
    ],
)
def test_a_block_that_does_not_fit_the_template_is_refused(
    tmp_path: Path, lazy: xr.Dataset, change: Any, message: str
) -> None:
    arrays, rows, columns = next(blocks(lazy.compute(), 16))
    with pytest.raises(WriteError, match=message):
        write_block(zarr_store(tmp_path / "a.zarr"), "", change(arrays), rows, columns)
    assert not (tmp_path / "a.zarr" / "crop_v1_0" / "c").exists()


def test_a_store_that_loses_a_write_is_found_out(
    tmp_path: Path, lazy: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def forget(self: Any, key: str, value: Any) -> None:
        return None

    monkeypatch.setattr("zarr.storage.LocalStore.set", forget)
    arrays, rows, columns = next(blocks(lazy.compute(), 16))
    with pytest.raises(WriteError, match=r"block '' rows 0-16 columns 0-16 reads back with digest .* was written"):
        write_block(zarr_store(tmp_path / "a.zarr"), "", arrays, rows, columns)


def test_sweeping_takes_only_what_was_given_up(tmp_path: Path, lazy: xr.Dataset) -> None:
    store = zarr_store(tmp_path / "a.zarr")
    arrays, rows, columns = next(blocks(lazy.compute(), 16))
    given = write_block(store, "", arrays, rows, columns)
    for name in ("crop_v1_0/c/0/0.0123abcd.partial", "g/crop_v1_0/c/1/1.0123abcd.partial"):
        (tmp_path / "a.zarr" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a.zarr" / name).write_bytes(b"half")
    assert sweep(tmp_path / "a.zarr") == 2
    assert sweep(tmp_path / "a.zarr") == 0
    assert not list(tmp_path.rglob("*.partial"))
    assert read_digest(store, "", arrays, rows, columns) == given
    assert sweep("s3://bucket/a.zarr") == 0
