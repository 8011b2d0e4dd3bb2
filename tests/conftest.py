"""Fixtures that several folders of tests use."""

from __future__ import annotations

import os
from pathlib import Path

import dask
import pytest
from hypothesis import settings

from xgfm.cluster import RESTARTED, unprofiled

# CI tries the same examples every time, so that a change fails for what it did; everyone else tries new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

# As clusters that xgfm opens have it: tests of killed workers open their own.
dask.config.set({"distributed.deploy.lost-worker-timeout": RESTARTED})
unprofiled()

_SHARED = Path(os.environ.get("XGFM_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def _folder(path: Path) -> Path:
    if not path.is_dir():
        pytest.skip(f"reference data is not here: set XGFM_SHARED to the folder that holds {path.relative_to(_SHARED)}")
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real HLS pixels and STAC items; not part of the repository."""
    return _folder(_SHARED / "data")


@pytest.fixture(scope="session")
def parity() -> Path:
    """Outputs of the reference implementations; not part of the repository."""
    return _folder(_SHARED / "reference" / "prithvi_parity")
