"""Workers, clients and schedulers killed at random times: a few of the many of ``benchmarks/random_kills.py``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import random_kills


@pytest.mark.slow
def test_nothing_is_wrong_or_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path(random_kills.__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(here), os.environ.get("PYTHONPATH")])))
    found = random_kills.rounds(tmp_path, kills=3, seed=1, side=256)
    assert found["kills"] == 3
    assert found["blocks"] > 10
    assert (found["wrong"], found["lost"], found["differing"]) == (0, 0, 0)
