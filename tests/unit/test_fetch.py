"""Where weights are found, and their digests."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from xgfm.errors import CheckpointError
from xgfm.models import fetch
from xgfm.models.spec import WeightsSource

WEIGHTS = WeightsSource("v2", "owner/name", "folder/file.pt", revision="abc")
SOURCE = "hub:owner/name/folder/file.pt@abc"


class Hub:
    """Stands for the Hub: remembers what it was asked, and has the file in the cache, outside or nowhere."""

    def __init__(self, path: Path, place: str) -> None:
        self.path, self.place, self.asked = path, place, []

    def __call__(self, repo: str, filename: str, *, revision: str, local_files_only: bool = False) -> str:
        self.asked.append((repo, filename, revision, local_files_only))
        if self.place == "cache" or (self.place == "hub" and not local_files_only):
            return str(self.path)
        if local_files_only:
            raise LocalEntryNotFoundError("not here")
        raise ConnectionError("no route\nto host")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any) -> Hub:
    hub = Hub(tmp_path / "file.pt", request.param)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub)
    return hub


def test_source_of_published_weights() -> None:
    assert fetch.hub_source(WEIGHTS) == SOURCE


@pytest.mark.parametrize("hub", ["cache"], indirect=True)
def test_cache_is_asked_first_and_the_hub_not_at_all(hub: Hub) -> None:
    assert fetch.local_file(SOURCE) == hub.path
    assert hub.asked == [("owner/name", "folder/file.pt", "abc", True)]


@pytest.mark.parametrize("hub", ["hub"], indirect=True)
def test_hub_is_asked_when_the_cache_has_nothing(hub: Hub) -> None:
    assert fetch.local_file(SOURCE) == hub.path
    assert [asked[3] for asked in hub.asked] == [True, False]


@pytest.mark.parametrize("hub", ["nowhere"], indirect=True)
def test_failed_download_says_how_to_go_on(hub: Hub) -> None:
    message = r"cannot be downloaded \(ConnectionError: no route\).*huggingface.co/owner/name .*give the path"
    with pytest.raises(CheckpointError, match=message):
        fetch.local_file(SOURCE)


def test_file_that_is_not_here_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="on this machine; put them where every worker sees them"):
        fetch.local_file(f"file:{tmp_path / 'none.pt'}")
    with pytest.raises(CheckpointError, match="no-such-task"):
        fetch.local_file("bundled:no-such-task")


def test_digest_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert fetch.sha256_of(path) == digest
    fetch.require_digest(path, digest)


def test_changed_file_gets_a_new_digest(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"weights")
    before = fetch.sha256_of(path)
    path.write_bytes(b"more weights")
    assert fetch.sha256_of(path) != before


def test_wrong_digest_shows_both(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(CheckpointError, match=f"SHA-256 {digest}, expected {'0' * 64}"):
        fetch.require_digest(path, "0" * 64)


def test_only_the_hub_can_lack_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetch.is_cached("bundled:any")
    found: list[Any] = [None]
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a, **k: found[0])
    assert not fetch.is_cached(SOURCE)
    found[0] = "/cache/file.pt"
    assert fetch.is_cached(SOURCE)
