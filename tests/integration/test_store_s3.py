"""A job's store and records on S3: the same as in a folder.

The server is moto's, or the one whose address XGFM_TEST_S3 holds; its keys are "TheKeyId" and "TheSecret".
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from stores import blocks, contents, template

from xgfm.errors import Taken, WriteError
from xgfm.store.ledger import Entry, Ledger
from xgfm.store.lock import Holder
from xgfm.store.objects import Objects, zarr_store
from xgfm.store.overviews import add_overviews
from xgfm.store.region import read_digest, sweep, write_block
from xgfm.store.sinks import open_sink
from xgfm.store.template import create_store
from xgfm.store.write import to_zarr

KEYS = {"AWS_ACCESS_KEY_ID": "TheKeyId", "AWS_SECRET_ACCESS_KEY": "TheSecret", "AWS_DEFAULT_REGION": "us-east-1"}
OTHER = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL_S3")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    if "XGFM_TEST_S3" in os.environ:
        yield os.environ["XGFM_TEST_S3"]
        return
    moto = pytest.importorskip("moto.server", reason="moto, which serves S3 here, is not installed")
    running = moto.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    _, port = running.get_host_and_port()
    yield f"http://127.0.0.1:{port}"
    running.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URL of a folder of the test's own."""
    import boto3

    for name in OTHER:
        monkeypatch.delenv(name, raising=False)
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": server}.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="jobs")
    return f"s3://jobs/{uuid.uuid4().hex}"


def stored(url: str) -> dict[str, Any]:
    """Return every object of a store, as `contents` does for a folder."""
    objects = Objects(url)
    return {n: json.loads(objects.get(n)) if n.endswith(".json") else objects.get(n) for n in objects.names()}


def test_objects(bucket: str) -> None:
    objects = pickle.loads(pickle.dumps(Objects(bucket)))
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda i: objects.create("x/1", str(i).encode()), range(16)))
    assert sum(won) == 1
    assert objects.get("x/1") == str(won.index(True)).encode()
    objects.put("x/1", b"new")
    objects.put("xy", b"")
    assert list(objects.names("x/")) == ["x/1"]
    assert objects.modified("xy") >= objects.modified("x/1")
    objects.delete("x/1")
    objects.delete("x/1")
    with pytest.raises(FileNotFoundError):
        objects.get("x/1")
    with pytest.raises(FileNotFoundError):
        objects.modified("x/1")


def test_a_ledger_of_more_than_a_page(bucket: str) -> None:
    ledger = Ledger(Objects(bucket))
    entries = [Entry(f"map-r0000-c{n:04d}", "failed" if n % 7 == 0 else "done", windows=n) for n in range(1100)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ledger.record, entries))
    assert ledger.done() == {e.block for e in entries if e.outcome == "done"}
    assert ledger.failed() == {e.block for e in entries if e.outcome == "failed"}
    assert list(ledger.entries()) == entries


def test_one_of_racing_runs_holds(bucket: str) -> None:
    def hold(_: int) -> Holder | None:
        try:
            return Holder(Objects(bucket), beat=3600).__enter__()
        except Taken:
            return None

    with ThreadPoolExecutor(8) as pool:
        (holder,) = [h for h in pool.map(hold, range(8)) if h is not None]
    with pytest.raises(Taken):
        Holder(Objects(bucket)).__enter__()
    holder.__exit__()
    with Holder(Objects(bucket)) as second:
        assert second.number == 2


WRITE = """
import pickle, sys
from stores import cut, template
from xgfm.store.region import write_block
store, rows, columns = pickle.load(sys.stdin.buffer)
print(write_block(store, "", cut(template((40, 30), 16, probability=True).compute(), rows, columns), rows, columns))
"""


def test_blocks_equal_one_write(bucket: str, tmp_path: Path) -> None:
    lazy = template((40, 30), 16, probability=True)
    to_zarr(lazy, tmp_path / "once.zarr", chunk=8, shard=16)
    for _ in range(2):
        create_store(bucket, {"": lazy}, chunk=8, shard=16)
    store = zarr_store(bucket)
    places = list(blocks(lazy.compute(), 16))
    digests = [write_block(store, "", arrays, rows, columns) for arrays, rows, columns in places]
    # One of them in another process, to which the store travels without keys.
    order = pickle.dumps((store, *places[1][1:]))
    assert not [secret for secret in KEYS.values() if secret.encode() in order and secret != "us-east-1"]
    told = subprocess.run(
        [sys.executable, "-c", WRITE], input=order, capture_output=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert told.stdout.decode().strip() == digests[1]
    assert [read_digest(store, "", arrays, rows, columns) for arrays, rows, columns in places] == digests
    assert stored(bucket) == contents(tmp_path / "once.zarr")
    assert sweep(bucket) == 0
    with pytest.raises(WriteError, match="holds another store"):
        create_store(bucket, {"": lazy}, chunk=4, shard=16)


def test_overviews(bucket: str, tmp_path: Path) -> None:
    lazy = template((40, 30), 16)
    to_zarr(lazy, tmp_path / "a.zarr", chunk=8, shard=16)
    add_overviews(tmp_path / "a.zarr")
    create_store(bucket, {"": lazy}, chunk=8, shard=16)
    for arrays, rows, columns in blocks(lazy.compute(), 16):
        write_block(zarr_store(bucket), "", arrays, rows, columns)
    with ThreadPoolExecutor(4) as pool:
        add_overviews(bucket, run=pool.map, records=Objects(f"{bucket}.job"))
    assert stored(bucket) == contents(tmp_path / "a.zarr")


def test_snapshots(bucket: str) -> None:
    pytest.importorskip("icechunk", reason="icechunk is not installed")
    lazy = template((40, 30), 16, probability=True)
    values = lazy.compute()
    sink = open_sink(bucket, "icechunk")
    sink.create({"": lazy}, chunk=8, shard=16)
    tokens = []
    for arrays, rows, columns in blocks(values, 16):
        order = pickle.dumps(sink.open_for_writing())
        assert not [secret for secret in ("TheKeyId", "TheSecret") if secret.encode() in order]
        tokens.append(pickle.loads(order))
        write_block(tokens[-1], "", arrays, rows, columns)
    before = xr.open_zarr(sink.open_for_reading(), mask_and_scale=False, consolidated=False).crop_v1_0
    assert (before == 255).all()
    assert sink.commit(tokens, "all")
    again = open_sink(bucket, "icechunk").open_for_reading()
    found = xr.open_zarr(again, mask_and_scale=False, decode_coords="all", consolidated=False)
    xr.testing.assert_equal(found.compute(), values)


def test_two_commits_at_once_lose_nothing(bucket: str) -> None:
    pytest.importorskip("icechunk", reason="icechunk is not installed")
    lazy = template((64, 64), 16)
    open_sink(bucket, "icechunk").create({"": lazy}, chunk=16, shard=16)

    def write(place: tuple[dict[str, np.ndarray], slice, slice]) -> None:
        sink = open_sink(bucket, "icechunk")
        token = sink.open_for_writing()
        write_block(token, "", *place)
        sink.commit([token], "one block")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, blocks(lazy.compute(), 16)))
    found = zarr.open_array(open_sink(bucket, "icechunk").open_for_reading(), path="crop_v1_0", mode="r")
    np.testing.assert_array_equal(found[...], lazy.crop_v1_0)


def test_a_bucket_that_is_not_there(bucket: str) -> None:
    with pytest.raises(FileNotFoundError):
        Objects("s3://no-such-bucket/a").get("x")
