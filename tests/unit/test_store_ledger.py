"""The ledger gives back what was recorded, and a listing alone says what is done."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xgfm.errors import XgfmError
from xgfm.store.ledger import Entry, Ledger
from xgfm.store.objects import Objects

BLOCKS = [f"map-r{row:04d}-c{column:04d}" for row in range(3) for column in range(2)]
NUMBERS = st.integers(0, 2**50)
SECONDS = st.floats(0, 1e6)
TEXT = st.one_of(st.none(), st.text(max_size=30))
ENTRIES = st.builds(
    Entry,
    block=st.sampled_from(BLOCKS),
    outcome=st.sampled_from(["done", "failed"]),
    digest=TEXT,
    reason=TEXT,
    item=TEXT,
    attempts=st.integers(1, 9),
    seconds=st.dictionaries(st.sampled_from(["read", "predict", "write"]), SECONDS),
    bytes_read=NUMBERS,
    windows=NUMBERS,
    valid_pixels=NUMBERS,
    worker=st.text(max_size=20),
    finished=st.just("2026-11-21T01:02:03+00:00"),
    facts=st.dictionaries(st.text(max_size=5), st.one_of(st.text(max_size=5), st.integers(), SECONDS)),
)


@given(ENTRIES)
def test_entries_survive_json(entry: Entry) -> None:
    assert Entry.from_json(entry.to_json()) == entry
    assert Entry.from_json(entry.to_json().encode()) == entry
    assert json.loads(entry.to_json())["block"] == entry.block


@given(st.lists(ENTRIES, max_size=12))
@settings(max_examples=40, deadline=None)
def test_read_back_equals_what_was_recorded(tmp_path_factory: pytest.TempPathFactory, made: list[Entry]) -> None:
    ledger = Ledger(Objects(tmp_path_factory.mktemp("ledger") / "x.job"))
    for entry in made:
        ledger.record(entry)
    done = {e.block: e for e in made if e.outcome == "done"}  # the last one of each
    failed = {e.block: e for e in made if e.outcome == "failed" and e.block not in done}
    again = pickle.loads(pickle.dumps(ledger))
    assert again.done() == set(done)
    assert again.failed() == set(failed)
    assert list(again.entries()) == [{**done, **failed}[b] for b in sorted({**done, **failed})]
    backwards = sorted(done, reverse=True)
    assert list(again.entries(backwards)) == [done[b] for b in backwards]


def test_many_entries_come_in_order(tmp_path: Path) -> None:
    ledger = Ledger(Objects(tmp_path))
    names = [f"map-r0000-c{n:04d}" for n in range(300)]
    for number, name in enumerate(names):
        ledger.record(Entry(name, "done", windows=number))
    assert [e.windows for e in ledger.entries(names)] == list(range(300))


def test_what_is_done_is_known_from_the_listing_alone(tmp_path: Path) -> None:
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "map-r0000-c0000.json").write_bytes(b"not looked at")
    (tmp_path / "done" / "map-r0000-c0001.json#1").write_bytes(b"left by a killed process")
    assert Ledger(Objects(tmp_path)).done() == {"map-r0000-c0000"}


def test_forgotten_failures_are_missing_again(tmp_path: Path) -> None:
    ledger = Ledger(Objects(tmp_path))
    for block in BLOCKS:
        ledger.record(Entry(block, "failed", reason="503"))
    ledger.record(Entry(BLOCKS[0], "done"))
    ledger.forget_failed([BLOCKS[0], BLOCKS[1], "never-recorded"])
    assert ledger.done() == {BLOCKS[0]}
    assert ledger.failed() == set(BLOCKS[2:])


def test_a_block_without_an_entry_is_an_error(tmp_path: Path) -> None:
    ledger = Ledger(Objects(tmp_path))
    ledger.record(Entry(BLOCKS[0], "done"))
    with pytest.raises(FileNotFoundError):
        list(ledger.entries([BLOCKS[0], BLOCKS[1]]))


@pytest.mark.parametrize("text", ["", "[]", "3", '{"block": "a"}', '{"block": "a", "outcome": "done", "colour": 1}'])
def test_what_is_no_entry_is_refused(text: str) -> None:
    with pytest.raises(XgfmError, match="not a ledger entry"):
        Entry.from_json(text)
