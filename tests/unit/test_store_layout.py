"""What is refused in place of a result, by every verb."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
from results import NORTH, result

import xgfm
from xgfm.errors import CubeError
from xgfm.store.layout import as_dataset

VERBS: dict[str, Callable[[Any, Path], Any]] = {
    "to_netcdf": lambda given, folder: xgfm.to_netcdf(given, folder / "a.nc"),
    "to_vector": lambda given, folder: xgfm.to_vector(given, folder / "a.parquet"),
    "to_zarr": lambda given, folder: xgfm.to_zarr(given, folder / "a.zarr"),
    "to_cog": lambda given, folder: xgfm.to_cog(given, folder / "a.tif"),
    "plot": lambda given, folder: xgfm.plot(given),
    "swipe": lambda given, folder: xgfm.swipe(given, given),
    "change": lambda given, folder: xgfm.change(given, given),
    "stack_maps": lambda given, folder: xgfm.stack_maps([given]),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store as a job on several tiles writes it: nothing at the root."""
    folder = tmp_path_factory.mktemp("job") / "map.zarr"
    for tile in ("15TVM", "15TWM"):
        result(NORTH).to_zarr(folder, group=tile, zarr_format=3, mode="a")
    return folder


@pytest.mark.parametrize("verb", VERBS)
def test_a_path_is_told_how_it_is_opened(verb: str, store: Path, tmp_path: Path) -> None:
    for given in (store, str(store)):
        with pytest.raises(CubeError) as told:
            VERBS[verb](given, tmp_path)
        assert f'give xr.open_zarr({str(store)!r}, decode_coords="all")' in str(told.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", VERBS)
def test_the_root_of_a_store_of_groups_is_told_them(verb: str, store: Path, tmp_path: Path) -> None:
    with pytest.raises(CubeError, match=r"has groups \['15TVM', '15TWM'\].*group='15TVM'"):
        VERBS[verb](xr.open_zarr(store), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_calls_that_are_told_open_a_result(store: Path) -> None:
    with pytest.raises(CubeError) as told:
        as_dataset(xr.open_zarr(store))
    call = str(told.value).partition("open one of them with ")[2]
    assert "crop_v1_0" in as_dataset(eval(call, {"xr": xr}))


def test_secrets_of_a_url_are_not_told() -> None:
    with pytest.raises(CubeError) as told:
        as_dataset("s3://user:secret@bucket/map.zarr")  # type: ignore[arg-type]
    assert "secret" not in str(told.value)


def test_nothing_and_something_else(tmp_path: Path) -> None:
    with pytest.raises(CubeError, match=r"holds no variable.*group="):
        as_dataset(xr.Dataset())
    xr.Dataset(attrs={"a": 1}).to_netcdf(tmp_path / "empty.nc")
    with pytest.raises(CubeError, match=r"holds no variable.*group="), xr.open_dataset(tmp_path / "empty.nc") as empty:
        as_dataset(empty)
    with pytest.raises(CubeError, match="a list is no Dataset"):
        as_dataset([result()])  # type: ignore[arg-type]
