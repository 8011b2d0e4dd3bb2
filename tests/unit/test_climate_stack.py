"""Maps along time: whose pixels, which periods, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import results
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from xgfm.climate.stack import stack_maps
from xgfm.errors import CubeError, FramesError, GridError, LabelError
from xgfm.store.write import to_zarr


def year(number: int, **changes: Any) -> xr.Dataset:
    """Return a map of a season of that year, as predict says it."""
    made = results.result(**changes)
    made["crop_v1_0"] = made["crop_v1_0"].copy(
        data=results.da.from_array(results.pixels(made["crop_v1_0"].shape, number), chunks=(32, 32))
    )
    frames = [{"window": [f"{number}-04-01", f"{number}-06-30"], "dates": [f"{number}-05-01"]},
              {"window": [f"{number}-07-01", f"{number}-09-30"], "dates": [f"{number}-08-01"]}]  # fmt: skip
    return made.assign_attrs(frames=json.dumps(frames), weights_digest=f"{number:064d}")


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1990, 2090), min_size=1, max_size=4, unique=True))
def test_every_map_stands_at_its_own_time(years: list[int]) -> None:
    maps = {number: year(number) for number in years}
    out = stack_maps(maps)
    assert out["crop_v1_0"].dims == ("time", "y", "x")
    assert out["crop_v1_0"].chunks is not None
    assert out["time"].to_index().year.tolist() == sorted(years)
    for number, made in maps.items():
        there = out["crop_v1_0"].sel(time=str(number)).squeeze("time")
        np.testing.assert_array_equal(there, made["crop_v1_0"])
    for number, ends in zip(sorted(years), out["time_bnds"].values, strict=True):
        assert [str(e)[:10] for e in ends] == [f"{number}-01-01", f"{number + 1}-01-01"]


@pytest.mark.parametrize(
    ("time", "start", "stop"),
    [
        (2024, "2024-01-01", "2025-01-01"),
        ("2024-02", "2024-02-01", "2024-03-01"),
        ("2024-04/2024-10", "2024-04-01", "2024-11-01"),
        (("2024-04-15", "2024-10-15"), "2024-04-15", "2024-10-16"),
        (np.datetime64("2024-07-01"), "2024-07-01", "2024-07-02"),
        (pd.Timestamp("2024-07-01T10:30"), "2024-07-01", "2024-07-02"),
        (slice("2023-12", "2024-02"), "2023-12-01", "2024-03-01"),
    ],
)
def test_periods_as_people_write_them(time: Any, start: str, stop: str) -> None:
    out = stack_maps([year(2024)], times=[time])
    assert [str(e)[:10] for e in out["time_bnds"].values[0]] == [start, stop]
    middle = pd.Timestamp(start) + (pd.Timestamp(stop) - pd.Timestamp(start)) / 2
    assert out["time"].values[0] == middle.to_datetime64()


def test_a_map_says_its_own_time() -> None:
    season = stack_maps([year(2024)])
    assert [str(e)[:10] for e in season["time_bnds"].values[0]] == ["2024-04-01", "2024-10-01"]
    again = stack_maps([season, stack_maps([year(2023)])])
    np.testing.assert_array_equal(again["time_bnds"][1], season["time_bnds"][0])
    dated = year(2022).assign_attrs(dates=["2022-05-01", "2022-08-03"])
    del dated.attrs["frames"]
    assert [str(e)[:10] for e in stack_maps([dated])["time_bnds"].values[0]] == ["2022-05-01", "2022-08-04"]
    flood = results.result(times=1)
    del flood.attrs["frames"]
    assert [str(e)[:10] for e in stack_maps([flood])["time_bnds"].values[0]] == ["2024-04-03", "2024-04-04"]
    del dated.attrs["dates"]
    with pytest.raises(CubeError, match=r"map 0 says no time.*times=\[2023, 2024\]"):
        stack_maps([dated])


def test_frames_are_joined_and_what_differs_is_listed() -> None:
    out = stack_maps([year(2024), year(2023)])
    assert [f["window"][0] for f in json.loads(out.attrs["frames"])] == [
        "2023-04-01", "2023-07-01", "2024-04-01", "2024-07-01",
    ]  # fmt: skip
    assert out.attrs["weights_digest"] == [f"{2023:064d}", f"{2024:064d}"]
    assert out.attrs["task"] == "crop-v1.0"


def test_variables_that_all_have_are_kept() -> None:
    out = stack_maps([year(2023, probability=True), year(2024, probability=True)])
    assert out["probability"].dims == ("time", "class", "y", "x")
    assert "probability" not in stack_maps([year(2023, probability=True), year(2024)])


def test_reopened_stores_are_stacked_with_masking_or_without(tmp_path: Path) -> None:
    expected = stack_maps([year(2023), year(2024)])
    for number in (2023, 2024):
        to_zarr(year(number), tmp_path / f"{number}.zarr")
    for masked in (True, False):
        maps = [
            xr.open_zarr(tmp_path / f"{n}.zarr", mask_and_scale=masked, decode_coords="all" if masked else True)
            for n in (2023, 2024)
        ]
        out = stack_maps(maps)
        assert out["crop_v1_0"].dtype == np.uint8
        np.testing.assert_array_equal(out["crop_v1_0"], expected["crop_v1_0"])


def test_it_is_written_and_read_again(tmp_path: Path) -> None:
    out = stack_maps([year(2023), year(2024)])
    to_zarr(out, tmp_path / "years.zarr")
    back = xr.open_zarr(tmp_path / "years.zarr", decode_coords="all", mask_and_scale=False)
    np.testing.assert_array_equal(back["time_bnds"], out["time_bnds"])
    np.testing.assert_array_equal(back["time"], out["time"])
    np.testing.assert_array_equal(back["crop_v1_0"], out["crop_v1_0"])


def legend(made: xr.Dataset, names: list[str]) -> xr.Dataset:
    words = " ".join(name.lower() for name in names)
    return made.assign(crop_v1_0=made["crop_v1_0"].assign_attrs(class_names=names, flag_meanings=words))


def test_maps_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(CubeError, match="no map to stack"):
        stack_maps([])
    for alone in ("2024.zarr", year(2024)):
        with pytest.raises(CubeError, match=rf"maps= is one {type(alone).__name__}; give several"):
            stack_maps(alone)  # type: ignore[arg-type]
    with pytest.raises(FramesError, match="1 periods for 2 maps"):
        stack_maps([year(2023), year(2024)], times=[2023])
    with pytest.raises(FramesError, match=r"2023-01-01.*times="):
        stack_maps([year(2023), year(2024)], times=[2023, "2023"])
    with pytest.raises(FramesError, match="as keys"):
        stack_maps({2023: year(2023)}, times=[2023])
    with pytest.raises(FramesError, match="not a date"):
        stack_maps([year(2023)], times=["summer"])
    with pytest.raises(GridError, match=r"different grids.*EPSG:32615.*EPSG:32619"):
        stack_maps([year(2023), year(2024, box=results.SOUTH)])
    with pytest.raises(GridError, match=r"different grids"):
        stack_maps([year(2023), year(2024, box=results.NORTH.translate_pix(1, 0))])
    east = GeoBox(results.NORTH.shape, results.NORTH.affine, "EPSG:32616")
    with pytest.raises(GridError, match=r"EPSG:32615.*EPSG:32616"):
        stack_maps([year(2023), year(2024, box=east)])
    with pytest.raises(LabelError, match=r"different legends.*Rye"):
        stack_maps([year(2023), legend(year(2024), ["Grass", "Rye", "Water"])])
    bare = year(2024)
    del bare["crop_v1_0"].attrs["flag_values"]
    with pytest.raises(LabelError, match="flag_values"):
        stack_maps([bare])
    with pytest.raises(CubeError, match=r"map 0 has 2 times"):
        stack_maps([results.result(times=2)])
