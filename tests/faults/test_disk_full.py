"""Results that cannot be written: full disks, limits, read-only places."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray as xr
from results import NORTH, noise, pixels, result

from xgfm.errors import WriteError
from xgfm.store.write import to_cog, to_zarr


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    if shutil.which("mount") is None:
        pytest.skip("a small file system cannot be mounted here: there is no mount command")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def grow(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


WRITERS: dict[str, Callable[..., Any]] = {"map.zarr": to_zarr, "map.tif": to_cog}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_says_what_is_left(disk: Path, name: str) -> None:
    path = disk / name
    with pytest.raises(WriteError, match=r"disk full while writing .*Left on disk: .*there is nothing at") as caught:
        WRITERS[name](noise(), path)
    left = next(disk.iterdir())
    assert f"{left} (incomplete, " in str(caught.value)
    assert "to be deleted" in str(caught.value)
    assert not path.exists()
    assert isinstance(caught.value.__cause__, OSError)
    grow(disk, "16m")
    WRITERS[name](noise(), path)  # what is left does not stand in the way
    assert path.exists()


@pytest.mark.parametrize("size", ["2m", "3m"])
def test_a_disk_that_fills_up_while_gdal_writes(disk: Path, size: str) -> None:
    grow(disk, size)  # room for the blocks, then for the first of two copies
    with pytest.raises(WriteError, match=r"disk full while writing .*GDAL.*Left on disk: .*there is nothing at"):
        to_cog(noise(), disk / "map.tif")
    assert not (disk / "map.tif").exists()


@pytest.mark.parametrize("name", WRITERS)
def test_what_was_there_stays(disk: Path, name: str) -> None:
    path = disk / name
    WRITERS[name](result(), path)
    with pytest.raises(WriteError, match=rf"disk full.*{name} is as it was"):
        WRITERS[name](noise(), path, overwrite=True)
    if name == "map.zarr":
        back = xr.open_zarr(path, mask_and_scale=False).crop_v1_0.values
    else:
        with rasterio.open(path) as file:
            back = file.read(1)
    np.testing.assert_array_equal(back, pixels(NORTH.shape))


@pytest.mark.parametrize("name", WRITERS)
def test_a_read_only_place(disk: Path, name: str) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(WriteError, match=r"read-only file system while writing .*Nothing is left on disk"):
        WRITERS[name](result(), disk / name)


@pytest.mark.parametrize("name", WRITERS)
def test_a_parent_that_is_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"not writable while writing .*Nothing is left on disk"):
        WRITERS[name](result(), tmp_path / "file" / name)


LIMITED = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from results import noise
from xgfm.errors import WriteError
from xgfm.store.write import to_zarr
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    to_zarr(noise(), sys.argv[2])
except WriteError as error:
    print(error)
"""


def test_a_file_size_limit(tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    run = [sys.executable, "-c", LIMITED, str(tests), str(tmp_path / "map.zarr")]
    said = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert said.startswith("file size limit reached while writing")
    assert "Left on disk" in said
    assert not (tmp_path / "map.zarr").exists()
