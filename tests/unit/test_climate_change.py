"""Change between maps: tables against a count by hand, invariance, and estimates against those of `area`."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import results
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import Geod

from xgfm import cf
from xgfm.climate.area import estimate_areas
from xgfm.climate.change import STRATA, change, stratified_total
from xgfm.climate.sample import stratified_sample
from xgfm.climate.stack import stack_maps
from xgfm.errors import CubeError, GridError, LabelError
from xgfm.grid import with_grid

NAMES = ["Natural Vegetation", "Winter Wheat", "Open Water"]


def mapped(
    codes: NDArray[Any], box: GeoBox = results.NORTH, chunks: Any = None, numbers: Any = (0, 1, 2)
) -> xr.Dataset:
    """Return a map of three classes."""
    data = codes if chunks is None else da.from_array(codes, chunks=chunks)
    made = with_grid(xr.Dataset({"crop": (("y", "x"), data)}), box)
    made["crop"].attrs = {"flag_values": list(numbers), "flag_meanings": " ".join(cf.flag_words(NAMES)),
                          "class_names": NAMES, "flag_colors": "#00ff00 #aa7700 #0000ff"}  # fmt: skip
    return made


def codes(seed: int, shape: tuple[int, int] = (70, 90)) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return rng.choice(np.array([0, 1, 2, 255], "uint8"), shape, p=[0.4, 0.3, 0.2, 0.1])


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([None, (7, 11), (70, 90), (64, 30)]), st.sampled_from([None, (13, 90)]))
def test_the_table_is_a_count_of_pixels_by_their_area(seed: int, first: Any, second: Any) -> None:
    before, after = codes(seed), codes(seed + 1)
    found = change(mapped(before, chunks=first), mapped(after, chunks=second))
    counts = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            counts[i, j] = ((before == i) & (after == j)).sum()
    pixel = found.table.sum() / counts.sum()
    # On this grid pixels are alike to 1e-6 and 0.9996 squared of 900 m2, by the scale of UTM in its middle.
    assert 900 < pixel < 902
    np.testing.assert_allclose(found.table, counts * pixel, rtol=2e-5)
    missing = ((before == 255) | (after == 255)).sum()
    assert found.unseen == pytest.approx(missing * pixel, rel=2e-5)
    pairs = np.where((before == 255) | (after == 255), 255, before.astype(int) * 3 + after)
    np.testing.assert_array_equal(found.map, pairs)


@pytest.mark.parametrize("box", [results.NORTH, results.SOUTH, results.DEGREES], ids=["north", "south", "degrees"])
def test_areas_are_those_on_the_ground(box: GeoBox) -> None:
    """The whole map's area, against the geodesic polygon of its outline."""
    every = np.zeros(box.shape, "uint8")
    found = change(mapped(every, box, chunks=(32, 32)), mapped(every, box))
    lon, lat = box.extent.to_crs("EPSG:4326", resolution=abs(box.resolution.x) * 2).exterior.xy
    area, _ = Geod(ellps="WGS84").polygon_area_perimeter(lon, lat)
    assert found.table[0, 0] == pytest.approx(abs(area), rel=1e-6)
    assert found.net.tolist() == [0, 0, 0]


def test_gains_less_losses_are_the_difference() -> None:
    found = change(mapped(codes(1)), mapped(codes(2)))
    np.testing.assert_allclose(found.net, found.after - found.before)
    assert found.net.sum() == pytest.approx(0, abs=1e-3)
    assert found.gain.sum() == pytest.approx(found.loss.sum())
    np.testing.assert_allclose(found.gross, found.gain + found.loss)
    table = found.from_to()
    assert table.loc["Winter Wheat", "Open Water"] == pytest.approx(found.table[1, 2] / 1e6)
    assert (table.index.name, table.columns.name) == ("from", "to")
    assert found.to_pandas().loc["Open Water", "gain"] == pytest.approx(found.gain[2] / 1e6)
    assert "Winter Wheat" in str(found)


def test_two_dates_of_one_map_are_two_maps() -> None:
    maps = [mapped(codes(1), chunks=(32, 32)), mapped(codes(2), chunks=(32, 32))]
    both = change(stack_maps(maps, times=[2023, 2024]))
    np.testing.assert_allclose(both.table, change(*maps).table)
    with pytest.raises(CubeError, match=r"two times, and this has 1"):
        change(maps[0])
    with pytest.raises(CubeError, match=r"has 2 times; choose one"):
        change(stack_maps(maps, times=[2023, 2024]), maps[0])


def test_codes_need_not_count_from_0_and_may_be_masked() -> None:
    table = np.array([10, 20, 200] + [255] * 253, "uint8")
    before, after = codes(1), codes(2)
    plain = change(mapped(before), mapped(after))
    numbered = [mapped(table[c], numbers=(10, 20, 200)) for c in (before, after)]
    np.testing.assert_allclose(change(*numbered).table, plain.table)
    masked = [m.where(m != 255).astype("float32") for m in numbered]
    for one, other in zip(masked, numbered, strict=True):
        one["crop"].attrs = other["crop"].attrs
    np.testing.assert_allclose(change(*masked).table, plain.table)
    np.testing.assert_array_equal(change(*masked).map, plain.map)


def test_the_map_of_changes_is_lazy_and_says_what_it_means() -> None:
    found = change(mapped(codes(1), chunks=(32, 32)), mapped(codes(2), chunks=(32, 32)))
    assert isinstance(found.map.data, da.Array)
    words = found.map.attrs["flag_meanings"].split()
    assert words[1 * 3 + 2] == "winter_wheat_to_open_water"
    assert len(words) == len(found.map.attrs["flag_values"]) == len(found.map.attrs["flag_colors"].split()) == 9
    assert found.map.odc.geobox == results.NORTH
    wheat = found.of("Winter Wheat")
    assert isinstance(wheat.data, da.Array)
    before, after = codes(1), codes(2)
    seen = (before != 255) & (after != 255)
    expected = np.where(seen, (before == 1).astype(int) + 2 * (after == 1), 255)
    np.testing.assert_array_equal(wheat, expected)
    assert wheat.attrs["class_names"] == list(STRATA)
    with pytest.raises(LabelError, match="no class 'Rye'"):
        found.of("Rye")


def test_sixteen_classes_take_two_bytes() -> None:
    rng = np.random.default_rng(0)
    names = [f"c{k}" for k in range(20)]
    maps = []
    for _ in range(2):
        made = mapped(rng.choice(np.array([*range(20), 255], "uint8"), (70, 90)), chunks=(40, 40))
        made["crop"].attrs = {"flag_values": list(range(20)), "flag_meanings": " ".join(names)}
        maps.append(made)
    found = change(*maps)
    before, after = (m["crop"].values.astype(int) for m in maps)
    seen = (before != 255) & (after != 255)
    np.testing.assert_array_equal(found.map, np.where(seen, before * 20 + after, 65535))
    assert found.map.encoding["_FillValue"] == 65535
    np.testing.assert_array_equal(found.of("c3") == 255, ~seen)


def referenced(seed: int = 0, of: str | None = "Winter Wheat", n: int = 300) -> tuple[Any, pd.DataFrame]:
    """Return a change and a sample of it, with a reference that mostly agrees."""
    rng = np.random.default_rng(seed)
    fields = [np.kron(rng.integers(0, 3, (7, 9)), np.ones((10, 10))).astype("uint8") for _ in range(2)]
    found = change(mapped(fields[0]), mapped(fields[1]))
    places = stratified_sample(found.map if of is None else found.of(of), n, seed=seed, minimum=20)
    for name, field in zip(("before", "after"), fields, strict=True):
        true = field[places["row"], places["column"]]
        true = np.where(rng.random(len(true)) < 0.1, rng.integers(0, 3, len(true)), true)
        places[name] = [NAMES[k] for k in true]
    return found, places


def test_gains_and_losses_are_those_of_the_papers_estimator() -> None:
    found, places = referenced()
    wheat = [(places[name] == "Winter Wheat").to_numpy().astype(int) for name in ("before", "after")]
    stratum = wheat[0] + 2 * wheat[1]
    counts = np.zeros((4, 4))
    np.add.at(counts, (places["code"].to_numpy(), stratum), 1)
    k = 1
    strata = [found.table.sum() - found.loss[k] - found.gain[k] - found.table[k, k], found.loss[k], found.gain[k],
              found.table[k, k]]  # fmt: skip
    paper = estimate_areas(counts, strata, classes=STRATA)
    row = found.estimate(places, of="Winter Wheat").loc["Winter Wheat"]
    assert row["loss"] == pytest.approx(paper.area[1] / 1e6)
    assert row["gain"] == pytest.approx(paper.area[2] / 1e6)
    assert row["loss_ci"] == pytest.approx(paper.factor * paper.area_error[1] / 1e6)
    assert row["gain_ci"] == pytest.approx(paper.factor * paper.area_error[2] / 1e6)
    assert row["net"] == pytest.approx(row["gain"] - row["loss"])
    assert row["after"] - row["before"] == pytest.approx(row["net"])


def test_every_class_is_estimated_from_the_whole_map() -> None:
    found, places = referenced(of=None)
    rows = found.estimate(places)
    assert rows.index.tolist() == NAMES
    assert rows["before"].sum() == pytest.approx(found.table.sum() / 1e6)
    assert rows["net"].sum() == pytest.approx(0, abs=1e-9)


def test_a_perfect_map_has_no_error() -> None:
    found, places = referenced()
    start, end = np.divmod(found.map.values[places["row"], places["column"]], 3)
    places["before"], places["after"] = [NAMES[k] for k in start], [NAMES[k] for k in end]
    row = found.estimate(places, of="Winter Wheat").loc["Winter Wheat"]
    assert row["net"] == pytest.approx(found.net[1] / 1e6)
    assert row["net_ci"] == pytest.approx(0, abs=1e-9)


def test_intervals_of_the_net_change_hold_the_truth() -> None:
    """Of 300 repeated samples of a wrong map, about 95 in 100 have the true net change in their interval."""
    rng = np.random.default_rng(0)
    count = 20_000
    truth = rng.random((2, count)) < [[0.30], [0.36]]
    wrong = rng.random((2, count)) < 0.08
    stratum = (truth ^ wrong)[0] + 2 * (truth ^ wrong)[1]
    values = (truth[1].astype(float) - truth[0])[:, None]
    areas = np.bincount(stratum, minlength=4).astype(float)
    inside = 0
    for _ in range(300):
        drawn = np.concatenate([rng.choice(np.flatnonzero(stratum == h), 60, replace=False) for h in range(4)])
        total, error = stratified_total(values[drawn], stratum[drawn], areas)
        inside += bool(abs(total[0] - values.sum()) <= 1.96 * error[0])
    assert 0.91 <= inside / 300 <= 0.985


def test_samples_that_do_not_fit_are_refused() -> None:
    found, places = referenced()
    with pytest.raises(LabelError, match="before and after"):
        found.estimate(places.drop(columns="after"), of="Winter Wheat")
    with pytest.raises(LabelError, match=r"'before' holds \['Rye'\]"):
        found.estimate(places.assign(before="Rye"), of="Winter Wheat")
    with pytest.raises(LabelError, match="fewer than two places"):
        found.estimate(places[places["code"] != 2], of="Winter Wheat")
    with pytest.raises(LabelError, match="of="):
        found.estimate(places.assign(code=7), of="Winter Wheat")
    with pytest.raises(LabelError, match="confidence=95"):
        found.estimate(places, of="Winter Wheat", confidence=95)


def test_maps_that_cannot_be_compared_are_refused() -> None:
    one = mapped(codes(1))
    with pytest.raises(GridError, match=r"different grids.*reproject"):
        change(one, mapped(codes(2), results.SOUTH))
    with pytest.raises(LabelError, match="different legends"):
        change(one, mapped(codes(2), numbers=(0, 1, 3)))
    other = mapped(codes(2))
    other["crop"][3, 4] = 77
    with pytest.raises(LabelError, match="flag_values lack"):
        change(one, other)
    for chunks in (None, (32, 32)):
        with pytest.raises(GridError):
            change(mapped(codes(1), chunks=chunks).drop_vars("spatial_ref"), one)
