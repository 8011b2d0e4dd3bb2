"""Small objects in a folder: whole or not there, one of several creators wins, and only the URL is pickled."""

from __future__ import annotations

import errno
import pickle
import resource
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgfm.errors import WriteError
from xgfm.store.objects import Objects, local_folder, zarr_store

NAMES = st.lists(st.from_regex(r"[a-z0-9-]{1,12}", fullmatch=True), min_size=1, max_size=3).map("/".join)


@given(st.dictionaries(NAMES, st.binary(max_size=300), max_size=8))
def test_what_was_put_is_there_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, made: dict[str, bytes]
) -> None:
    tree = {n: d for n, d in made.items() if not any(o != n and o.startswith(f"{n}/") for o in made)}
    folder = tmp_path_factory.mktemp("objects")
    objects = Objects(folder / "a b.zarr.job")
    for name, data in tree.items():
        objects.put(name, data)
    again = pickle.loads(pickle.dumps(objects))
    assert {name: again.get(name) for name in again.names()} == tree
    # Another library's view: plain files.
    files = {p.relative_to(objects.url).as_posix(): p.read_bytes() for p in Path(objects.url).rglob("*") if p.is_file()}
    assert files == tree


def test_put_replaces_and_create_does_not(tmp_path: Path) -> None:
    objects = Objects(tmp_path)
    objects.put("a", b"first")
    objects.put("a", b"second")
    assert not objects.create("a", b"third")
    assert objects.get("a") == b"second"
    assert objects.create("b", b"new")
    assert objects.get("b") == b"new"


def test_one_of_many_creators_wins(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        for n in range(20):
            won = list(pool.map(lambda i, n=n: Objects(tmp_path).create(f"x/{n}", str(i).encode()), range(16)))  # type: ignore[misc]
            assert sum(won) == 1
            assert Objects(tmp_path).get(f"x/{n}") == str(won.index(True)).encode()


def test_names_are_of_a_folder(tmp_path: Path) -> None:
    objects = Objects(tmp_path)
    for name in ("done/a.json", "done/b/c.json", "done2/d.json", "e.json"):
        objects.put(name, b"")
    assert set(objects.names("done/")) == {"done/a.json", "done/b/c.json"}
    assert set(objects.names()) == {"done/a.json", "done/b/c.json", "done2/d.json", "e.json"}


def test_a_folder_that_is_not_there_is_empty_and_stays_away(tmp_path: Path) -> None:
    objects = Objects(tmp_path / "no.job")
    assert list(objects.names("done/")) == []
    objects.delete("a")
    for read in (objects.get, objects.modified):
        with pytest.raises(FileNotFoundError, match="there is no a"):
            read("a")
    assert not (tmp_path / "no.job").exists()


def test_what_is_deleted_is_gone(tmp_path: Path) -> None:
    objects = Objects(tmp_path)
    objects.put("a", b"1")
    objects.delete("a")
    objects.delete("a")
    with pytest.raises(FileNotFoundError):
        objects.get("a")


def test_modified_moves_on(tmp_path: Path) -> None:
    objects = Objects(tmp_path)
    objects.put("a", b"1")
    first = objects.modified("a")
    objects.put("b", b"1")
    assert first.tzinfo is not None
    assert objects.modified("b") >= first


@pytest.mark.parametrize("url", ["nowhere://user:secret@x/y?sig=secret", "s3:///a"])
def test_other_urls_are_refused_without_their_secrets(url: str) -> None:
    with pytest.raises(WriteError, match="expected a folder or s3://bucket/name") as caught:
        Objects(url).put("a", b"")
    assert "secret" not in str(caught.value)
    assert caught.value.__context__ is None


def test_a_full_disk_is_told_as_for_a_file(tmp_path: Path) -> None:
    objects = Objects(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            objects.put("a/b", bytes(20_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == f"{tmp_path}/a/b"
    assert list(objects.names()) == []


def test_folders(tmp_path: Path) -> None:
    assert local_folder(tmp_path) == tmp_path
    assert local_folder(tmp_path.as_uri()) == tmp_path
    assert local_folder("~/x") == Path.home() / "x"
    assert local_folder("s3://bucket/x") is None
    with pytest.raises(WriteError, match="no such user"):
        local_folder("~nobody-at-all/x")


def test_pickles_hold_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "TheKeyId")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "TheSecret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "TheToken")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    objects = Objects("s3://bucket/x.zarr.job")
    assert objects._store is not None
    assert pickle.dumps(objects) == pickle.dumps(Objects("s3://bucket/x.zarr.job"))  # used or not: the URL alone
    for thing in (objects, zarr_store("s3://bucket/x.zarr")):
        sent = pickle.dumps(thing)
        assert b"bucket" in sent
        assert not [secret for secret in (b"TheKeyId", b"TheSecret", b"TheToken") if secret in sent]
