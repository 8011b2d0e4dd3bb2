"""Training killed at random moments: a few of the twenty of ``benchmarks/train_kills.py``."""

from __future__ import annotations

from pathlib import Path

import pytest
import train_kills
from field_chips import write_small_chips


@pytest.mark.slow
def test_nothing_is_torn_or_different(tmp_path: Path) -> None:
    chips = write_small_chips(tmp_path / "chips.zarr")
    found = train_kills.rounds(train_kills.run_of(str(chips.path), str(tmp_path / "runs"), kills=4), kills=4, seed=1)
    assert sum(found["at"].values()) == 4
    assert found["torn"] == 0
    assert found["curves"]
    assert found["weights"]
