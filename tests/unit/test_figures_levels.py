"""Which pixels a picture is made from: an overview of a store where that is the truth, and never where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from results import result

from xgfm.figures.levels import strided, thinned
from xgfm.figures.origin import origin_of
from xgfm.grid import geobox_of
from xgfm.store.overviews import add_overviews
from xgfm.store.write import to_zarr

BOX = GeoBox((300, 421), Affine(30.0, 0, 399_960.0, 0, -30.0, 4_900_020.0), "EPSG:32615")
DASK: dict[str, Any] = {"mask_and_scale": False}
OPENED = ({}, DASK, {"chunks": None}, {"chunks": None, "mask_and_scale": False}, {"chunks": {"y": 50}})


def written(folder: Path, times: int = 0) -> Path:
    path = to_zarr(result(BOX, chunks=(128, 128), times=times, probability=not times), folder / "map.zarr", chunk=32)
    add_overviews(path)
    return Path(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("store"))


def level(store: Path, factor: int) -> xr.DataArray:
    return xr.open_zarr(store, group=f"overviews/{factor}", mask_and_scale=False, decode_coords="all").crop_v1_0


@pytest.mark.parametrize("options", OPENED, ids=str)
@pytest.mark.parametrize(("pixels", "factor"), [(420, 2), (211, 2), (210, 4), (60, 8), (30, 16)])
def test_the_finest_overview_that_is_small_enough(
    store: Path, options: dict[str, Any], pixels: int, factor: int
) -> None:
    made = thinned(xr.open_zarr(store, decode_coords="all", **options).crop_v1_0, pixels)
    should = level(store, factor)
    np.testing.assert_array_equal(made.fillna(255), should)
    assert geobox_of(made) == geobox_of(should)
    assert made.attrs["flag_colors"] == should.attrs["flag_colors"]


def test_beyond_the_coarsest_one_it_is_strided(store: Path) -> None:
    made = thinned(xr.open_zarr(store, decode_coords="all", **DASK).crop_v1_0, 9)
    np.testing.assert_array_equal(made, level(store, 16)[1::3, 1::3])


def test_what_is_small_stays_as_it_is(store: Path) -> None:
    layer = xr.open_zarr(store, decode_coords="all", **DASK).crop_v1_0
    assert thinned(layer, 421) is layer


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_window_is_cut_from_the_overview_where_it_lies(store: Path, data: st.DataObject) -> None:
    top, left = data.draw(st.integers(0, 200)), data.draw(st.integers(0, 300))
    height, width = data.draw(st.integers(40, 300 - top)), data.draw(st.integers(41, 421 - left))
    options = data.draw(st.sampled_from(OPENED))
    window = {"y": slice(top, top + height), "x": slice(left, left + width)}
    layer = xr.open_zarr(store, decode_coords="all", **options).crop_v1_0.isel(window)
    made = thinned(layer, 40)
    # Every pixel drawn is the overview's cell at that place; the picture covers the window, and little more.
    factor = round(geobox_of(made).resolution.x / 30)
    assert factor > 1
    whole = level(store, min(factor, 16))
    step = 1 if factor <= 16 else factor // 16
    same = whole.sel(y=made.y, x=made.x, method="nearest", tolerance=1.0)
    np.testing.assert_array_equal(made.fillna(255), same)
    if step == 1:
        drawn, asked = geobox_of(made).boundingbox, geobox_of(layer).boundingbox
        over = (asked.left - drawn.left, drawn.right - asked.right, asked.bottom - drawn.bottom, drawn.top - asked.top)
        assert all(0 <= o < 30 * factor for o in over)


def test_times_are_those_that_were_taken(tmp_path: Path) -> None:
    store = written(tmp_path, times=3)
    dataset = xr.open_zarr(store, decode_coords="all", **DASK)
    levels = xr.open_zarr(store, group="overviews/4", mask_and_scale=False, decode_coords="all").crop_v1_0
    np.testing.assert_array_equal(thinned(dataset.crop_v1_0.isel(time=1), 106), levels[1])
    np.testing.assert_array_equal(thinned(dataset.crop_v1_0.isel(time=slice(1, 3)), 106), levels[1:])
    apart = dataset.crop_v1_0.isel(time=slice(None, None, 2))
    np.testing.assert_array_equal(thinned(apart, 106), strided(apart, 106))
    later = thinned(dataset.crop_v1_0.assign_coords(time=dataset.time + np.timedelta64(365, "D")), 106)
    np.testing.assert_array_equal(later, levels)
    assert (later.time == dataset.time + np.timedelta64(365, "D")).all()


def test_probabilities_have_overviews_too(store: Path) -> None:
    layer = xr.open_zarr(store, decode_coords="all").probability
    levels = xr.open_zarr(store, group="overviews/4").probability
    np.testing.assert_array_equal(thinned(layer.isel({"class": slice(2, 3)}), 106), levels[[2]])


def test_groups_of_a_store_have_their_own(tmp_path: Path) -> None:
    import zarr

    zarr.open_group(tmp_path / "a.zarr", mode="w")
    for name, seed in (("north", 0), ("south", 3)):
        made = to_zarr(result(BOX, chunks=(128, 128)) if seed == 0 else flipped(), tmp_path / name, chunk=32)
        Path(made).rename(tmp_path / "a.zarr" / name)
    add_overviews(tmp_path / "a.zarr", ["north", "south"])
    for name in ("north", "south"):
        layer = xr.open_zarr(tmp_path / "a.zarr", group=name, decode_coords="all", consolidated=False, **DASK).crop_v1_0
        should = xr.open_zarr(
            tmp_path / "a.zarr", group=f"{name}/overviews/4", mask_and_scale=False, consolidated=False
        )
        np.testing.assert_array_equal(thinned(layer, 106), should.crop_v1_0)


def flipped() -> xr.Dataset:
    made = result(BOX, chunks=(128, 128))
    return made.assign(crop_v1_0=made.crop_v1_0.copy(data=da.flip(made.crop_v1_0.data, 1)))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.crop_v1_0 + 0,
        lambda d: d.crop_v1_0.where(d.y > 4_896_000, 255),
        lambda d: d.crop_v1_0.copy(data=2 - d.crop_v1_0.data),
        lambda d: d.assign(crop_v1_0=d.crop_v1_0.copy(data=d.crop_v1_0.data[::-1])).crop_v1_0,
        lambda d: d.crop_v1_0.compute(),
        lambda d: d.crop_v1_0.isel(y=slice(None, None, 2), x=slice(None, None, 2)),
        lambda d: d.crop_v1_0.fillna(1),
        lambda d: d.crop_v1_0.assign_coords(x=d.x + 300),
        lambda d: d.crop_v1_0.isel(x=slice(0, 300)).copy(data=d.crop_v1_0.data[:, 20:320]),
        lambda d: xr.concat([d.crop_v1_0[:, 200:], d.crop_v1_0[:, :200]], "x").assign_coords(x=d.x),
        lambda d: xr.concat([d.crop_v1_0[:, :99], d.crop_v1_0[:, 99:200] * 0, d.crop_v1_0[:, 200:]], "x"),
        lambda d: d.crop_v1_0.isel(y=list(range(300))[::-1]).assign_coords(y=d.y),
    ],
    ids=[
        "added",
        "masked",
        "recoded",
        "reversed",
        "computed",
        "strided",
        "filled",
        "moved",
        "shifted",
        "rolled",
        "patched",
        "reordered",
    ],
)
@pytest.mark.parametrize("masked", [True, False])
def test_what_was_computed_is_never_drawn_from_an_overview(store: Path, change: Any, masked: bool) -> None:
    dataset = xr.open_zarr(store, decode_coords="all", mask_and_scale=masked)
    layer = change(dataset)
    np.testing.assert_array_equal(thinned(layer, 40), strided(layer, 40))


def test_another_stores_variable_brings_its_own_overviews(store: Path, tmp_path: Path) -> None:
    """The encoding of a Dataset outlives what is put into it."""
    other = to_zarr(flipped(), tmp_path / "other.zarr", chunk=32)
    add_overviews(other)
    one, two = (xr.open_zarr(path, decode_coords="all", **DASK) for path in (store, other))
    mixed = one.assign(crop_v1_0=two.crop_v1_0)
    np.testing.assert_array_equal(thinned(mixed.crop_v1_0, 106), level(Path(other), 4))


def test_stores_without_overviews_are_strided(tmp_path: Path) -> None:
    path = to_zarr(result(BOX, chunks=(128, 128)), tmp_path / "map.zarr")
    layer = xr.open_zarr(path, decode_coords="all", **DASK).crop_v1_0
    assert origin_of(layer) is not None
    np.testing.assert_array_equal(thinned(layer, 100), layer[2::5, 2::5])


def test_only_what_is_drawn_is_read(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zarr

    read: list[str] = []
    original = zarr.Array.__getitem__

    def counting(self: zarr.Array[Any], key: Any) -> Any:
        read.append(self.path)
        return original(self, key)

    monkeypatch.setattr(zarr.Array, "__getitem__", counting)
    layer = xr.open_zarr(store, decode_coords="all", **DASK).crop_v1_0
    read.clear()
    thinned(layer, 60).compute()
    pixels = [path for path in read if path.endswith("crop_v1_0")]
    assert pixels == ["overviews/8/crop_v1_0"]
