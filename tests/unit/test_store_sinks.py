"""A plain store shows blocks at once; one with snapshots shows committed batches, and every earlier one as well."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import blocks, template

from xgfm.errors import MissingExtraError, WriteError, XgfmError
from xgfm.store.region import read_digest, write_block
from xgfm.store.sinks import PlainSink, Sink, open_sink

KINDS = ("zarr", "icechunk")
LAYOUT = {"chunk": 8, "shard": 16}


@pytest.fixture(scope="module")
def lazy() -> xr.Dataset:
    return template((40, 30), 16, probability=True)


@pytest.fixture(params=KINDS)
def sink(request: pytest.FixtureRequest, tmp_path: Path) -> Sink:
    if request.param == "icechunk":
        pytest.importorskip("icechunk", reason="icechunk is not installed")
    return open_sink(str(tmp_path / "a.store"), request.param)


def opened(sink: Sink) -> xr.Dataset:
    """Return what a reader sees."""
    return xr.open_zarr(sink.open_for_reading(), mask_and_scale=False, decode_coords="all", consolidated=False)


def sent(thing: Any) -> Any:
    """Return what arrives at a worker."""
    return pickle.loads(pickle.dumps(thing))


def test_blocks_equal_one_write(sink: Sink, lazy: xr.Dataset) -> None:
    values = lazy.compute()
    for _ in range(2):  # resumed
        sink.create({"": lazy}, **LAYOUT)
    digests, batch = {}, []
    for number, (arrays, rows, columns) in enumerate(blocks(values, 16)):
        token = sent(sink.open_for_writing())
        digests[rows.start, columns.start] = write_block(token, "", arrays, rows, columns)
        batch.append(sent(token))
        if number % 4 == 3:
            sink.commit(batch, f"blocks to {number}")
            batch = []
    sink.commit(batch, "the last ones")
    xr.testing.assert_equal(opened(sink).compute(), values)
    store = sent(sink.open_for_reading())
    for arrays, rows, columns in blocks(values, 16):
        assert read_digest(store, "", arrays, rows, columns) == digests[rows.start, columns.start]


def test_another_template_is_refused(sink: Sink, lazy: xr.Dataset) -> None:
    sink.create({"": lazy}, **LAYOUT)
    with pytest.raises(WriteError, match="holds another store"):
        sink.create({"": lazy[["crop_v1_0"]].isel(y=slice(0, 30))}, **LAYOUT)


def test_a_plain_store_shows_blocks_at_once(tmp_path: Path, lazy: xr.Dataset) -> None:
    sink = open_sink(str(tmp_path / "a.zarr"))
    assert isinstance(sink, PlainSink)
    sink.create({"": lazy}, **LAYOUT)
    arrays, rows, columns = next(blocks(lazy.compute(), 16))
    write_block(sink.open_for_writing(), "", arrays, rows, columns)
    np.testing.assert_array_equal(opened(sink).crop_v1_0[rows, columns], arrays["crop_v1_0"])
    assert sink.commit([], "nothing to do") is None


@given(st.data())
@settings(max_examples=5, deadline=None)
def test_readers_see_what_was_committed_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, lazy: xr.Dataset, data: st.DataObject
) -> None:
    """Forks may be older than other commits, be committed in any order, or never."""
    pytest.importorskip("icechunk", reason="icechunk is not installed")
    sink = open_sink(str(tmp_path_factory.mktemp("ice") / "a"), "icechunk")
    sink.create({"": lazy[["crop_v1_0"]]}, **LAYOUT)
    values = lazy[["crop_v1_0"]].compute()
    expected, snapshots = np.full((40, 30), 255, "uint8"), []
    waiting = []
    for arrays, rows, columns in data.draw(st.permutations(list(blocks(values, 16)))):
        token = sink.open_for_writing()
        write_block(token, "", arrays, rows, columns)
        waiting.append((token, arrays, rows, columns))
        batch = [w for w in waiting if data.draw(st.booleans())]
        waiting = [w for w in waiting if not any(w is b for b in batch)]
        snapshot = sink.commit([w[0] for w in batch], "a batch")
        for _, arrays, rows, columns in batch:
            expected[rows, columns] = arrays["crop_v1_0"]
        np.testing.assert_array_equal(opened(sink).crop_v1_0, expected)
        if snapshot is not None:
            snapshots.append((snapshot, expected.copy()))
    for snapshot, then in snapshots:  # time travel
        old = sink._repository.readonly_session(snapshot_id=snapshot).store  # type: ignore[attr-defined]
        np.testing.assert_array_equal(xr.open_zarr(old, mask_and_scale=False, consolidated=False).crop_v1_0, then)


def test_an_empty_batch_makes_no_snapshot(tmp_path: Path, lazy: xr.Dataset) -> None:
    pytest.importorskip("icechunk", reason="icechunk is not installed")
    sink = open_sink(str(tmp_path / "a"), "icechunk")
    sink.create({"": lazy[["crop_v1_0"]]}, **LAYOUT)
    assert sink.commit([], "nothing") is None
    assert sink.commit([sink.open_for_writing()], "nothing was written") is None


def test_the_extra_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "icechunk", None)
    with pytest.raises(MissingExtraError, match=r'pip install "xgfm\[icechunk\]"'):
        open_sink(str(tmp_path / "a"), "icechunk")


def test_other_kinds_and_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(XgfmError, match="kind='netcdf' is no kind of store; expected 'zarr' or 'icechunk'"):
        open_sink(str(tmp_path / "a"), "netcdf")  # type: ignore[arg-type]
    pytest.importorskip("icechunk", reason="icechunk is not installed")
    with pytest.raises(WriteError, match="stands in a folder or at s3://bucket/name") as caught:
        open_sink("gs://bucket/a?token=secret", "icechunk")
    assert "secret" not in str(caught.value)
