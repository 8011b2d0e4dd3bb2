"""Areas from a reference sample: the paper's worked example, another implementation, and simulated truth."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from toys import geobox

from xgfm.climate.area import allocate, estimate_areas, sample_size, stratified_sample
from xgfm.errors import GridError, LabelError
from xgfm.grid import with_grid

COUNTS = [[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]]
MAPPED = [200_000, 150_000, 3_200_000, 6_450_000]
NAMES = ("deforestation", "forest gain", "stable forest", "stable non-forest")
HECTARES = 0.09


def classified(codes: Any, *, chunks: Any = None, box: GeoBox | None = None) -> xr.DataArray:
    codes = np.asarray(codes, "uint8")
    data = codes if chunks is None else da.from_array(codes, chunks=chunks)
    array = xr.DataArray(data, dims=("y", "x"), attrs={"class_names": ["water", "forest", "corn", "town"]})
    return with_grid(array, geobox(*codes.shape) if box is None else box)


# ---- Olofsson et al. 2014, section 5


def test_worked_example_of_the_paper() -> None:
    """Table 8 and the numbers on its page, as they are printed there."""
    found = estimate_areas(COUNTS, MAPPED, classes=NAMES)
    hectares, half = found.area * HECTARES, found.factor * found.area_error * HECTARES
    np.testing.assert_allclose(hectares, [21_158, 11_686, 285_770, 581_386], atol=0.5)
    np.testing.assert_allclose(half, [6_158, 3_756, 15_510, 16_282], atol=1)
    np.testing.assert_allclose(found.area[0], 235_086, atol=0.5)
    np.testing.assert_allclose(found.users, [0.88, 0.73, 0.93, 0.96], atol=0.005)
    np.testing.assert_allclose(found.factor * found.users_error, [0.07, 0.10, 0.04, 0.02], atol=0.005)
    np.testing.assert_allclose(found.producers, [0.75, 0.85, 0.93, 0.96], atol=0.005)
    assert found.overall == pytest.approx(0.95, abs=0.005)
    assert found.factor * found.overall_error == pytest.approx(0.02, abs=0.005)
    assert found.matrix.sum() == pytest.approx(1)


def test_other_implementation_gives_the_same_errors() -> None:
    """Standard errors of the same example by `stehman2014` of the R package mapaccuracy 0.1.2, as printed by it."""
    found = estimate_areas(COUNTS, MAPPED, classes=NAMES)
    np.testing.assert_allclose(found.area_error / sum(MAPPED), [0.00349, 0.00213, 0.00879, 0.00923], rtol=3e-3)
    np.testing.assert_allclose(found.users_error, [0.0378, 0.0514, 0.0203, 0.0105], rtol=5e-3)
    np.testing.assert_allclose(found.producers_error, [0.109, 0.130, 0.0175, 0.00937], rtol=5e-3)
    assert found.overall_error == pytest.approx(0.00943, rel=1e-3)


def test_sample_of_the_paper() -> None:
    """Table 5: expected user's accuracies, and 641 places for a standard error of 0.01."""
    assert sample_size(MAPPED, [0.7, 0.6, 0.9, 0.95], 0.01) == 641
    given = allocate(MAPPED, 640, minimum=75)
    assert given[:2].tolist() == [75, 75]
    np.testing.assert_allclose(given[2:], [165, 325], atol=3)  # the authors rounded to fives
    assert given.sum() == 640


# ---- properties


@given(
    st.integers(2, 5).flatmap(
        lambda k: st.tuples(
            st.lists(st.lists(st.integers(0, 40), min_size=k, max_size=k), min_size=k, max_size=k),
            st.lists(st.floats(0.1, 1e6), min_size=k, max_size=k),
        )
    )
)
def test_shares_add_up_and_agree(drawn: Any) -> None:
    counts, mapped = np.array(drawn[0]) + 1, np.array(drawn[1])
    found = estimate_areas(counts, mapped)
    assert found.area.sum() == pytest.approx(mapped.sum())
    np.testing.assert_allclose(found.matrix.sum(1), mapped / mapped.sum())
    np.testing.assert_allclose(found.area, found.matrix.sum(0) * mapped.sum())
    assert found.overall == pytest.approx((found.users * mapped).sum() / mapped.sum())
    assert found.overall == pytest.approx((found.producers * found.area).sum() / mapped.sum())
    order = np.arange(len(mapped))[::-1]
    turned = estimate_areas(counts[order][:, order], mapped[order])
    np.testing.assert_allclose(turned.producers_error[order], found.producers_error)
    larger = estimate_areas(counts, mapped * 900)
    np.testing.assert_allclose(larger.area_error, found.area_error * 900)
    np.testing.assert_allclose(larger.producers_error, found.producers_error)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=8), st.integers(1, 3000), st.integers(0, 200))
def test_every_place_is_given_away(mapped: list[int], n: int, minimum: int) -> None:
    given = allocate(mapped, n, minimum=minimum)
    there = np.array(mapped) > 0
    assert given.sum() == (n if there.any() else 0)
    assert (given[~there] == 0).all()
    assert (given >= 0).all()
    if there.any():
        assert given[there].min() >= min(minimum, n // there.sum())


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    truth = rng.choice(3, 200_000, p=[0.08, 0.3, 0.62])
    mapped = np.where(rng.random(truth.size) < 0.85, truth, rng.integers(0, 3, truth.size))
    areas, there = np.bincount(mapped, minlength=3), np.bincount(truth, minlength=3)
    places = [np.flatnonzero(mapped == k) for k in range(3)]
    right = np.diag(np.histogram2d(mapped, truth, bins=3)[0])
    held, runs = np.zeros((2, 3)), 400
    for _ in range(runs):
        drawn = [rng.choice(p, size, replace=False) for p, size in zip(places, (75, 100, 200), strict=True)]
        counts = np.stack([np.bincount(truth[d], minlength=3) for d in drawn])
        found = estimate_areas(counts, areas)
        held[0] += (found.interval[:, 0] <= there) & (there <= found.interval[:, 1])
        held[1] += np.abs(found.producers - right / there) <= found.factor * found.producers_error
    assert (held / runs > 0.90).all()
    assert (held / runs < 0.99).all()


def test_counting_pixels_is_biased_and_the_estimate_is_not() -> None:
    found = estimate_areas(COUNTS, MAPPED)
    assert found.interval[0, 0] < 235_086 < found.interval[0, 1]
    assert MAPPED[0] < found.area[0] - found.area_error[0]


# ---- edges


def test_class_that_is_not_mapped_is_found_by_the_reference() -> None:
    found = estimate_areas([[40, 10, 5], [2, 30, 0], [0, 0, 0]], [100.0, 50.0, 0.0])
    assert np.isnan(found.users[2])
    assert found.producers[2] == 0
    assert found.area[2] == pytest.approx(100 * 5 / 55)
    assert np.isnan(estimate_areas([[40, 0], [0, 0]], [10.0, 0.0]).producers[1])


def test_lower_bound_is_an_area() -> None:
    assert estimate_areas([[99, 1], [0, 100]], [100.0, 0.0001]).interval.min() == 0


def test_confidence_widens_intervals() -> None:
    narrow, wide = (estimate_areas(COUNTS, MAPPED, confidence=c) for c in (0.8, 0.99))
    assert (narrow.interval[:, 0] > wide.interval[:, 0]).all()
    assert wide.factor == pytest.approx(2.5758, abs=1e-4)


def test_table_has_a_row_for_each_class() -> None:
    found = estimate_areas(COUNTS, MAPPED, classes=NAMES)
    table = found.to_pandas()
    assert table.index.tolist() == list(NAMES)
    assert table.loc["deforestation", "area_ci"] == pytest.approx(68_417, abs=1)
    assert "overall accuracy 0.947 +- 0.018 (95% intervals)" in str(found)


@pytest.mark.parametrize(
    ("counts", "mapped", "options", "words"),
    [
        ([[1, 2]], [1.0], {}, r"counts have shape \(1, 2\)"),
        (COUNTS, MAPPED[:3], {}, r"mapped areas \(3,\)"),
        ([[1, -2], [3, 4]], [1, 1], {}, "numbers from 0 on"),
        ([[5, 5], [5, 5]], [0, 0], {}, "some area above 0"),
        ([[5, 5], [1, 0]], [1, 1], {}, r"map classes \[1\] have area and fewer than two places"),
        ([[5, 5], [5, 0]], [1, 0], {}, r"map classes \[1\] have places in the sample and no mapped area"),
        (COUNTS, MAPPED, {"confidence": 95}, "confidence=95"),
        (COUNTS, MAPPED, {"classes": ["a"]}, "1 names for 4 classes"),
    ],
)
def test_what_cannot_be_estimated_is_refused(counts: Any, mapped: Any, options: Any, words: str) -> None:
    with pytest.raises(LabelError, match=words):
        estimate_areas(counts, mapped, **options)


# ---- drawing the sample


def stripes(rows: int = 90, columns: int = 110) -> np.ndarray:
    codes = np.zeros((rows, columns), "uint8")
    codes[:, 20:90], codes[:, 90:108], codes[:, 108:] = 1, 2, 255
    codes[:3, :3] = 3
    return codes


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 5))
def test_sample_does_not_depend_on_chunks(rows: int, columns: int, seed: int) -> None:
    whole = stratified_sample(classified(stripes()), 60, seed, minimum=5)
    parts = stratified_sample(classified(stripes(), chunks=(rows + 10, columns + 10)), 60, seed, minimum=5)
    assert whole.equals(parts)
    assert whole.attrs == parts.attrs


def test_places_are_of_their_class_and_where_they_say() -> None:
    codes = stripes()
    array = classified(codes, chunks=32)
    table = stratified_sample(array, 200, minimum=9)
    assert (codes[table["row"], table["column"]] == table["code"]).all()
    assert not table.duplicated(["row", "column"]).any()
    np.testing.assert_array_equal(array.x.values[table["column"]], table["x"])
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
    assert table["code"].iloc[:20].nunique() > 1
    assert not table["row"].is_monotonic_increasing


def test_allocations() -> None:
    array = classified(stripes())
    equal = stratified_sample(array, 36, allocation="equal")["code"].value_counts()
    assert equal.to_dict() == {0: 9, 1: 9, 2: 9, 3: 9}
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


def test_maps_that_cannot_be_drawn_from_are_refused() -> None:
    array = classified(stripes())
    with pytest.raises(LabelError, match=r"dims \('time', 'y', 'x'\)"):
        stratified_sample(array.expand_dims("time"), 10)
    with pytest.raises(LabelError, match="of float32; expected class codes"):
        stratified_sample(array.astype("float32"), 10)
    degrees = GeoBox((90, 110), Affine(0.001, 0, 10.0, 0, -0.001, 50.0), "EPSG:4326")
    with pytest.raises(GridError, match="in degrees"):
        stratified_sample(classified(stripes(), box=degrees), 10)
    with pytest.raises(LabelError, match="10 places of class 3, which has 9 pixels"):
        stratified_sample(array, 10, allocation={3: 10})
    with pytest.raises(LabelError, match="5 places of class 255, which has 0 pixels"):
        stratified_sample(array, 10, allocation={255: 5})
    with pytest.raises(LabelError, match="no pixel of the map has a class"):
        stratified_sample(classified(np.full((4, 4), 255)), 10)
    with pytest.raises(LabelError, match="allocation='area '"):
        stratified_sample(array, 10, allocation="area ")  # type: ignore[arg-type]
    with pytest.raises(LabelError, match="one user's accuracy"):
        sample_size([1, 2], [0.5], 0.01)
