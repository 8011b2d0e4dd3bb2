"""Drawing a reference sample: the paper's numbers, equal chances, and no dependence on chunks."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from toys import geobox

from xgfm.climate.area import estimate_areas
from xgfm.climate.sample import allocate, sample_size, stratified_sample
from xgfm.errors import GridError, LabelError
from xgfm.grid import with_grid

MAPPED = [200_000, 150_000, 3_200_000, 6_450_000]
"""Pixels of the classes of the example of Olofsson et al. 2014."""


def classified(codes: Any, *, chunks: Any = None, box: GeoBox | None = None) -> xr.DataArray:
    codes = np.asarray(codes, "uint8")
    data = codes if chunks is None else da.from_array(codes, chunks=chunks)
    array = xr.DataArray(data, dims=("y", "x"), attrs={"class_names": ["water", "forest", "corn", "town"]})
    return with_grid(array, geobox(*codes.shape) if box is None else box)


def test_sample_of_the_paper() -> None:
    """Table 5: expected user's accuracies, and 641 places for a standard error of 0.01."""
    assert sample_size(MAPPED, [0.7, 0.6, 0.9, 0.95], 0.01) == 641
    given = allocate(MAPPED, 640, minimum=75)
    assert given[:2].tolist() == [75, 75]
    np.testing.assert_allclose(given[2:], [165, 325], atol=3)  # the authors rounded to fives
    assert given.sum() == 640


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=8), st.integers(1, 3000), st.integers(0, 200))
def test_every_place_is_given_away(mapped: list[int], n: int, minimum: int) -> None:
    given = allocate(mapped, n, minimum=minimum)
    there = np.array(mapped) > 0
    assert given.sum() == (n if there.any() else 0)
    assert (given[~there] == 0).all()
    assert (given >= 0).all()
    if there.any():
        assert given[there].min() >= min(minimum, n // there.sum())


def stripes(rows: int = 90, columns: int = 110) -> np.ndarray:
    codes = np.zeros((rows, columns), "uint8")
    codes[:, 20:90], codes[:, 90:108], codes[:, 108:] = 1, 2, 255
    codes[:3, :3] = 3
    return codes


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 5))
def test_sample_does_not_depend_on_chunks(rows: int, columns: int, seed: int) -> None:
    whole = stratified_sample(classified(stripes()), 60, seed, minimum=5)
    parts = stratified_sample(classified(stripes(), chunks=(rows + 10, columns + 10)), 60, seed, minimum=5)
    assert whole.equals(parts)
    assert whole.attrs == parts.attrs


def test_sample_does_not_depend_on_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stratified_sample(classified(stripes()), 60, minimum=5)
    monkeypatch.setattr("xgfm.climate.sample._AT_ONCE", 500)
    assert whole.equals(stratified_sample(classified(stripes()), 60, minimum=5))


def test_places_are_of_their_class_and_where_they_say() -> None:
    codes = stripes()
    array = classified(codes, chunks=32)
    table = stratified_sample(array, 200, minimum=9)
    assert (codes[table["row"], table["column"]] == table["code"]).all()
    assert not table.duplicated(["row", "column"]).any()
    np.testing.assert_array_equal(array.x.values[table["column"]], table["x"])
    np.testing.assert_array_equal(array.y.values[table["row"]], table["y"])
    assert table.attrs["mapped"] == {k: float((codes == k).sum() * 900) for k in range(4)}
    assert table["class"].isin(["water", "forest", "corn", "town"]).all()
    assert table["code"].value_counts()[3] == 9  # all there are
    from pyproj import Transformer

    x, y = Transformer.from_crs("EPSG:4326", "EPSG:32615", always_xy=True).transform(table["lon"], table["lat"])
    np.testing.assert_allclose(x, table["x"], atol=1e-3)
    np.testing.assert_allclose(y, table["y"], atol=1e-3)


def test_every_pixel_of_a_class_has_the_same_chance() -> None:
    codes = np.zeros((20, 25), "uint8")
    codes[:, 10:] = 1
    hits = np.zeros(codes.shape)
    for seed in range(600):
        table = stratified_sample(classified(codes), 50, seed, allocation={0: 20, 1: 30})
        hits[table["row"], table["column"]] += 1
    for code, chance in ((0, 20 / 200), (1, 30 / 300)):
        seen = hits[codes == code] / 600
        assert seen.mean() == pytest.approx(chance)
        # of binomial counts, Pearson's statistic is about the number of pixels
        assert ((seen - chance) ** 2 / (chance * (1 - chance) / 600)).mean() == pytest.approx(1, abs=0.2)


def test_order_says_nothing_of_class_or_place() -> None:
    table = stratified_sample(classified(stripes()), 100)
    assert (table["code"].diff() != 0).sum() > 30  # of 100; four where classes follow one another
    assert not table["row"].is_monotonic_increasing


def test_allocations() -> None:
    array = classified(stripes())
    equal = stratified_sample(array, 36, allocation="equal")["code"].value_counts()
    assert equal.to_dict() == {0: 9, 1: 9, 2: 9, 3: 9}
    short = stratified_sample(array, 99, allocation="equal")["code"].value_counts()
    assert short.to_dict() == {0: 30, 1: 30, 2: 30, 3: 9}
    assert len(stratified_sample(array, 9720)) == 9720
    asked = stratified_sample(array, 7, allocation={1: 4, 3: 3})["code"].value_counts()
    assert asked.to_dict() == {1: 4, 3: 3}
    by_area = stratified_sample(array, 300, minimum=9)["code"].value_counts()
    assert by_area[1] > by_area[0] > by_area[3] == 9


def test_sample_and_estimate_find_the_truth() -> None:
    rng = np.random.default_rng(1)
    truth = np.repeat(np.repeat(rng.choice(3, (15, 20), p=[0.2, 0.3, 0.5]), 10, 0), 10, 1)
    mapped = np.where(rng.random(truth.shape) < 0.8, truth, rng.integers(0, 3, truth.shape))
    table = stratified_sample(classified(mapped, chunks=64), 600)
    counts = np.zeros((3, 3))
    np.add.at(counts, (table["code"], truth[table["row"], table["column"]]), 1)
    found = estimate_areas(counts, [table.attrs["mapped"][k] for k in range(3)], confidence=0.999)
    there = np.bincount(truth.ravel(), minlength=3) * 900.0
    assert ((found.interval[:, 0] <= there) & (there <= found.interval[:, 1])).all()


def test_a_store_that_was_opened_with_decoding_gives_the_same_places() -> None:
    codes = stripes()
    codes[:10] = 255
    plain = classified(codes).assign_attrs(flag_values=[0, 1, 2, 3], flag_meanings="water forest corn town")
    pd.testing.assert_frame_equal(stratified_sample(plain.where(plain != 255), 40), stratified_sample(plain, 40))


def test_maps_that_cannot_be_drawn_from_are_refused() -> None:
    array = classified(stripes())
    with pytest.raises(LabelError, match=r"dims \('time', 'y', 'x'\)"):
        stratified_sample(array.expand_dims("time"), 10)
    with pytest.raises(LabelError, match="values of float32 and no flag_values; expected class codes"):
        stratified_sample(array.astype("float32"), 10)
    degrees = GeoBox((90, 110), Affine(0.001, 0, 10.0, 0, -0.001, 50.0), "EPSG:4326")
    with pytest.raises(GridError, match="in degrees"):
        stratified_sample(classified(stripes(), box=degrees), 10)
    with pytest.raises(LabelError, match="10 places of class 3, which has 9 pixels"):
        stratified_sample(array, 10, allocation={3: 10})
    with pytest.raises(LabelError, match="n=9721 places of a map of 9720 pixels"):
        stratified_sample(array, 9721)
    with pytest.raises(LabelError, match="5 places of class 255, which has 0 pixels"):
        stratified_sample(array, 10, allocation={255: 5})
    with pytest.raises(LabelError, match="no pixel of the map has a class"):
        stratified_sample(classified(np.full((4, 4), 255)), 10)
    with pytest.raises(LabelError, match="allocation='area '"):
        stratified_sample(array, 10, allocation="area ")  # type: ignore[arg-type]
    with pytest.raises(LabelError, match="one user's accuracy"):
        sample_size([1, 2], [0.5], 0.01)
