"""Areas from a reference sample: the paper's worked example, another implementation, and simulated truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xgfm.climate.area import estimate_areas
from xgfm.errors import LabelError

COUNTS = [[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]]
MAPPED = [200_000, 150_000, 3_200_000, 6_450_000]
NAMES = ("deforestation", "forest gain", "stable forest", "stable non-forest")
HECTARES = 0.09


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


# ---- properties


@settings(deadline=None)
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
    assert (held[0] / runs > 0.92).all()
    assert (held[1] / runs > 0.87).all()  # of a rare class that hides in a common one they are somewhat too narrow
    assert (held / runs < 0.985).all()


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
