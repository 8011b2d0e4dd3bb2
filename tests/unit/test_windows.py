"""The window plan: integers, so properties over all sizes rather than examples."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgfm.windows import AxisPlan, plan


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


@given(axes(), st.integers(1, 500))
def test_a_block_reads_no_further_than_the_halo(axis: AxisPlan, target: int) -> None:
    edges = axis.block_edges(target)
    assert edges[0] == 0
    assert edges[-1] == axis.size
    for start, stop in pairwise(edges):
        for w in axis.windows():
            if start <= w.inner_start < stop:
                assert w.inner_stop <= stop  # a window belongs to one block
                assert w.start >= start - axis.halo
                assert min(w.start + axis.window, axis.size) <= stop + axis.halo


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
    p = plan((700, 1000), (-37, 4021), window=224, halo=16, block=(300, 400))
    assert sum(p.row_chunks) == 700
    assert sum(p.column_chunks) == 1000
    kept = sum(
        (r.inner_stop - r.inner_start) * (c.inner_stop - c.inner_start)
        for i in range(len(p.row_chunks))
        for j in range(len(p.column_chunks))
        for r, c in p.block(i, j).windows()
    )
    assert kept == 700 * 1000


def test_a_halo_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="halo 112"):
        plan((10, 10), (0, 0), window=224, halo=112)
