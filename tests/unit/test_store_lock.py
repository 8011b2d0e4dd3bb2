"""One process runs a job: of many that want to, and after one that ended, was released or fell silent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from xgfm.errors import Taken
from xgfm.store import lock
from xgfm.store.lock import Holder
from xgfm.store.objects import Objects

HOLD = """
import sys
from xgfm.errors import Taken
from xgfm.store.lock import Holder
from xgfm.store.objects import Objects
sys.stdin.readline()
try:
    with Holder(Objects(sys.argv[1])) as holder:
        print("holds", holder.number, flush=True)
        sys.stdin.readline()
except Taken:
    print("taken", flush=True)
"""


def started(folder: Path, number: int) -> list[subprocess.Popen[str]]:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return [subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], **pipes) for _ in range(number)]


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    made = started(tmp_path, 4)
    yield made
    for process in made:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def age(folder: Path, number: int, seconds: float) -> None:
    """Make a holder's last sign of life older."""
    then = datetime.now(UTC).timestamp() - seconds
    os.utime(folder / "holder" / f"{number:06d}.json", (then, then))


def elsewhere(folder: Path, number: int) -> None:
    """Make a holder one of another machine."""
    path = folder / "holder" / f"{number:06d}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "machine": "another"}))


def test_one_of_racing_processes_holds_and_the_next_follows_a_kill(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    for process in processes:
        tell(process)
    outcomes = [said(process) for process in processes]
    assert sorted(outcomes) == ["holds 1", "taken", "taken", "taken"]
    winner = processes[outcomes.index("holds 1")]
    with pytest.raises(Taken, match=f"process {winner.pid} on .* last sign of life . s ago; stop that run"):
        Holder(Objects(tmp_path)).__enter__()
    winner.kill()
    os.waitid(os.P_PID, winner.pid, os.WEXITED | os.WNOWAIT)  # ended, and not yet waited for: a zombie
    with Holder(Objects(tmp_path)) as holder:
        assert holder.number == 2


def test_one_of_racing_threads_holds(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)

    def hold(_: int) -> int:
        holder = Holder(Objects(tmp_path), beat=60)
        barrier.wait()
        try:
            holder.__enter__()
        except Taken:
            return 0
        return holder.number

    for turn in range(1, 6):
        with ThreadPoolExecutor(8) as pool:
            assert sorted(pool.map(hold, range(8))) == [0] * 7 + [turn]
        elsewhere(tmp_path, turn)
        age(tmp_path, turn, 100)


def test_a_released_job_is_free(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        with Holder(Objects(tmp_path)) as holder:
            assert holder.number == number


def test_a_failure_releases_too(tmp_path: Path) -> None:
    with pytest.raises(KeyError), Holder(Objects(tmp_path)):
        raise KeyError
    with Holder(Objects(tmp_path)) as holder:
        assert holder.number == 2


def test_silence_of_another_machine_is_waited_out(tmp_path: Path) -> None:
    first = Holder(Objects(tmp_path), beat=3600)
    first.__enter__()
    elsewhere(tmp_path, 1)
    age(tmp_path, 1, 50)
    with pytest.raises(Taken, match=r"sign of life 5\d s ago.*silent for 60 s"):
        Holder(Objects(tmp_path)).__enter__()
    age(tmp_path, 1, 61)
    with Holder(Objects(tmp_path)) as second:
        assert second.number == 2


def test_the_superseded_one_learns_so_and_does_not_disturb(tmp_path: Path) -> None:
    with Holder(Objects(tmp_path), beat=0.01) as first:
        assert not first.superseded()
        Objects(tmp_path).create("holder/000002.json", b"{}")
        assert first._superseded.wait(30)
        assert first.superseded()
    assert Objects(tmp_path).get("holder/000002.json") == b"{}"


def test_a_beat_renews_the_sign_of_life(tmp_path: Path) -> None:
    beats = threading.Semaphore(0)

    class Counted(Objects):
        def put(self, name: str, data: bytes) -> None:
            super().put(name, data)
            beats.release()

    with Holder(Counted(tmp_path), beat=0.01):
        before = Objects(tmp_path).modified("holder/000001.json")
        for _ in range(2):
            assert beats.acquire(timeout=30)
        assert Objects(tmp_path).modified("holder/000001.json") > before


def test_a_store_that_is_away_for_a_while_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failed, recovered = threading.Event(), threading.Event()

    class Flaky(Objects):
        def put(self, name: str, data: bytes) -> None:
            if not failed.is_set():
                failed.set()
                raise OSError("503 from https://u:secret@host")
            super().put(name, data)
            recovered.set()

    with Holder(Flaky(tmp_path), beat=0.01) as holder:
        assert recovered.wait(30)
        assert not holder.superseded()
    assert "no sign of life written" in caplog.text
    assert "secret" not in caplog.text


def test_a_clock_that_is_wrong_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = (datetime.now(UTC) + timedelta(hours=5)).isoformat()
    with Holder(Objects(tmp_path), beat=3600):
        elsewhere(tmp_path, 1)
        monkeypatch.setattr(lock, "_now", lambda: late)
        with pytest.raises(Taken):
            Holder(Objects(tmp_path)).__enter__()


def test_a_create_that_was_sent_twice_is_ours(tmp_path: Path) -> None:
    class Repeating(Objects):
        def create(self, name: str, data: bytes) -> bool:
            super().create(name, data)
            return super().create(name, data)  # the answer to the first was lost

    with Holder(Repeating(tmp_path)) as holder:
        assert holder.number == 1


def test_another_process_with_the_same_id_is_not_the_holder(tmp_path: Path) -> None:
    Holder(Objects(tmp_path), beat=3600).__enter__()
    path = tmp_path / "holder" / "000001.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "created": 1.0}))
    with Holder(Objects(tmp_path)) as holder:
        assert holder.number == 2
