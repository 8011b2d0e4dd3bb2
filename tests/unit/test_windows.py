"""The window plan: integers, so properties over all sizes rather than examples."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgfm.windows import AxisPlan, WindowPlan


@st.composite
def axes(draw: st.DrawFn) -> AxisPlan:
    window = draw(st.integers(1, 60))
    halo = draw(st.integers(0, (window - 1) // 2))
    near = st.sampled_from([window - 1, window, window + 1, window - 2 * halo + 1])
    size = draw(st.one_of(near, st.integers(1, 400)))
    return AxisPlan(max(size, 1), draw(st.integers(-10_000, 10_000)), window, halo)


@given(axes())
def test_every_pixel_is_kept_once(axis: AxisPlan) -> None:
    windows = axis.windows()
    assert windows[0].inner_start == 0
    assert windows[-1].inner_stop == axis.size
    assert all(a.inner_stop == b.inner_start for a, b in pairwise(windows))
    assert all(w.inner_start < w.inner_stop for w in windows)


@given(axes())
def test_windows_lie_inside_and_hold_their_inner_part(axis: AxisPlan) -> None:
    for w in axis.windows():
        assert 0 <= w.start <= w.inner_start
        assert w.inner_stop <= w.start + axis.window
        assert axis.size <= axis.window or w.start + axis.window <= axis.size


@given(axes())
def test_the_halo_is_kept_clear_except_at_the_arrays_edge(axis: AxisPlan) -> None:
    for w in axis.windows():
        if w.start > 0:
            assert w.inner_start - w.start >= axis.halo
        if w.start + axis.window < axis.size:
            assert w.start + axis.window - w.inner_stop >= axis.halo


@st.composite
def cut_axes(draw: st.DrawFn) -> tuple[AxisPlan, list[int]]:
    axis = draw(axes())
    chunks = draw(st.lists(st.integers(axis.least, 3 * axis.least), max_size=4))
    last = draw(st.integers(axis.least_last, 3 * axis.least))
    cuts = [sum(chunks[:i]) for i in range(len(chunks) + 1)] + [sum(chunks) + last]
    return AxisPlan(cuts[-1], axis.origin, axis.window, axis.halo), cuts


@given(cut_axes(), st.booleans())
def test_a_block_reads_what_its_windows_see(cut: tuple[AxisPlan, list[int]], blend: bool) -> None:
    axis, cuts = replace(cut[0], blend=blend), cut[1]
    edges = axis.snap(cuts)
    assert all(a < b for a, b in pairwise(edges))
    assert all(0 <= c - e < axis.stride for c, e in zip(cuts, edges, strict=True))
    plan = WindowPlan.of((axis, axis), (cuts, cuts))
    for (start, stop), (first, last) in zip(pairwise(edges), plan.reads(0), strict=True):
        seen = {p for w in axis.within(start, stop) for p in range(w.start, min(w.start + axis.window, axis.size))}
        assert seen >= set(range(start, stop))
        assert (first, last) == (min(seen), max(seen) + 1)


@given(cut_axes())
def test_a_window_belongs_to_one_block(cut: tuple[AxisPlan, list[int]]) -> None:
    axis, cuts = cut
    blocks = [(start, stop, axis.within(start, stop)) for start, stop in pairwise(axis.snap(cuts))]
    assert [w for *_, mine in blocks for w in mine] == list(axis.windows())
    assert all(start <= w.inner_start < w.inner_stop <= stop for start, stop, mine in blocks for w in mine)


@given(cut_axes())
def test_a_blended_block_has_every_window_that_reaches_it(cut: tuple[AxisPlan, list[int]]) -> None:
    axis, cuts = replace(cut[0], blend=True), cut[1]
    for start, stop in pairwise(axis.snap(cuts)):
        reaching = [w for w in axis.windows() if set(range(w.start, w.start + axis.window)) & set(range(start, stop))]
        assert list(axis.within(start, stop)) == reaching


@given(axes(), st.integers(0, 150), st.integers(0, 150))
def test_a_smaller_array_has_the_same_windows_inside(axis: AxisPlan, cut: int, end: int) -> None:
    size = axis.size - cut - end
    if size <= axis.window:
        return
    part = AxisPlan(size, axis.origin + cut, axis.window, axis.halo)
    whole = {(w.start, w.inner_start, w.inner_stop) for w in axis.windows()}
    clear = [
        (w.start + cut, w.inner_start + cut, w.inner_stop + cut)
        for w in part.windows()
        if w.inner_start >= axis.stride and w.inner_stop <= size - axis.stride
        if w.start > 0 and w.start + axis.window < size
    ]
    assert set(clear) <= whole


@given(axes())
def test_inner_parts_fall_on_multiples_of_the_stride(axis: AxisPlan) -> None:
    for w in axis.windows()[1:]:
        if axis.stride <= w.inner_start and w.inner_stop < axis.size:
            assert (w.inner_start + axis.origin) % axis.stride == 0


def test_blocks_of_a_plan_tile_the_raster() -> None:
    cuts = [(0, 500, 1000, 1300), (0, 600, 1000)]
    p = WindowPlan.of([AxisPlan(1300, -37, 224, 16), AxisPlan(1000, 4021, 224, 16)], cuts)
    seen = np.zeros((1300, 1000), int)
    for i, j in product(range(3), range(2)):
        block = p.block(i, j)
        for r, c in block.windows():
            assert block.rows.start <= r.inner_start
            assert c.inner_stop <= block.columns.stop
            seen[r.inner_start : r.inner_stop, c.inner_start : c.inner_stop] += 1
    assert (seen == 1).all()


def test_a_halo_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="halo 112"):
        AxisPlan(10, 0, window=224, halo=112)
