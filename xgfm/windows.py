"""The window plan: which pixels a model sees at once, and which of its outputs are kept.

In: the size of an array, where it lies on the CRS's pixel lattice, a window and its halo. Out: integers only. Nothing
here knows of arrays or CRS objects.

Inner parts tile the plane at multiples of the stride counted from the CRS origin, so a pixel falls into the same window
whatever array it is cut out of. At the array's own edge a window shifts inward until it fits; an array smaller than a
window has one window along that axis, which the kernel pads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product


@dataclass(frozen=True, slots=True)
class Window:
    """One window along one axis, in array pixels."""

    start: int
    """First pixel that the model sees."""
    inner_start: int
    """First pixel whose output is kept."""
    inner_stop: int
    """One past the last pixel whose output is kept."""


@dataclass(frozen=True, slots=True)
class AxisPlan:
    """The windows of one axis of an array."""

    size: int
    """Pixels of the array."""
    origin: int
    """Index, on the lattice counted from the CRS origin, of the array's first pixel."""
    window: int
    """Pixels that the model sees at once."""
    halo: int
    """Pixels at each end of a window whose output is thrown away, or blended with the next window's."""
    blend: bool = False
    """Whether a pixel takes something from every window that reaches it."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.stride < 1 or self.halo < 0:
            raise ValueError(f"no window plan for size {self.size}, window {self.window}, halo {self.halo}")

    @property
    def stride(self) -> int:
        """Pixels between the inner parts of neighbouring windows."""
        return self.window - 2 * self.halo

    def windows(self) -> tuple[Window, ...]:
        """Return every window, in order; their inner parts cover each pixel of the array once."""
        return _windows(self)

    def within(self, start: int, stop: int) -> tuple[Window, ...]:
        """Return the windows of a block: those whose inner part it holds, or all that reach it where they blend."""
        if self.blend:
            return tuple(w for w in self.windows() if w.start < stop and w.start + self.window > start)
        return tuple(w for w in self.windows() if start <= w.inner_start < stop)

    def snap(self, cuts: Sequence[int]) -> tuple[int, ...]:
        """Move where blocks meet back to where windows meet.

        Parameters
        ----------
        cuts
            Where the chunks of an array begin, then its end. Every chunk but the last has to be of `least` pixels, the
            last of `least_last`.

        Returns
        -------
        tuple of int
            As many numbers, each at most ``stride - 1`` less: a block between two of them is made of whole windows.
        """
        return (0, *(self.cell(c) for c in cuts[1:-1]), self.size)

    @property
    def least(self) -> int:
        """Pixels of a chunk under which a block might hold no window, or little more."""
        return 2 * self.window

    @property
    def least_last(self) -> int:
        """Pixels of the last chunk under which it is better added to the chunk before."""
        return self.window

    def cell(self, pixel: int) -> int:
        """Return where the anchored cell that holds a pixel begins."""
        return pixel - (self.origin + pixel) % self.stride


@lru_cache(maxsize=16)
def _windows(plan: AxisPlan) -> tuple[Window, ...]:
    if plan.size <= plan.window:
        return (Window(0, 0, plan.size),)
    found: list[Window] = []
    edges = [0, *range(plan.cell(0) + plan.stride, plan.size, plan.stride), plan.size]
    for inner_start, inner_stop in pairwise(edges):
        start = min(max(plan.cell(inner_start) - plan.halo, 0), plan.size - plan.window)
        if found and found[-1].start == start:  # two cells that the edge pushed into one window
            inner_start = found.pop().inner_start
        found.append(Window(start, inner_start, inner_stop))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class BlockAxis:
    """One axis of a block: the pixels that it reads and writes, and its windows, all in array pixels."""

    read_start: int
    read_stop: int
    start: int
    """First pixel that the block writes."""
    stop: int
    windows: tuple[Window, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a plan."""

    rows: BlockAxis
    columns: BlockAxis

    def windows(self) -> Iterator[tuple[Window, Window]]:
        """Yield (row, column) windows, rows slowest."""
        return product(self.rows.windows, self.columns.windows)


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """The windows of a raster, and the blocks that they are computed in: one for each chunk of the input."""

    axes: tuple[AxisPlan, AxisPlan]
    """Of rows and of columns."""
    cuts: tuple[tuple[int, ...], tuple[int, ...]]
    """Where the chunks of the input begin, and its end."""
    edges: tuple[tuple[int, ...], tuple[int, ...]]
    """Where the blocks of the output begin, and its end: `cuts`, snapped."""

    @classmethod
    def of(cls, axes: Sequence[AxisPlan], cuts: Sequence[Sequence[int]]) -> WindowPlan:
        """Plan the blocks of a raster.

        Parameters
        ----------
        axes
            The windows of its rows and of its columns.
        cuts
            Where its chunks begin along rows and along columns, and their ends: see `AxisPlan.snap`.
        """
        (rows, columns), (row_cuts, column_cuts) = axes, (tuple(c) for c in cuts)
        return cls((rows, columns), (row_cuts, column_cuts), (rows.snap(row_cuts), columns.snap(column_cuts)))

    def block(self, row: int, column: int) -> Block:
        """Return one block by its place among the blocks."""
        return Block(self._axis(0, row), self._axis(1, column))

    def reads(self, axis: int) -> list[tuple[int, int]]:
        """Return where what each block looks at begins and ends along rows (0) or columns (1), in array pixels."""
        blocks = (self._axis(axis, index) for index in range(len(self.cuts[axis]) - 1))
        return [(block.read_start, block.read_stop) for block in blocks]

    def _axis(self, axis: int, index: int) -> BlockAxis:
        plan, edges = self.axes[axis], self.edges[axis]
        start, stop = edges[index : index + 2]
        windows = plan.within(start, stop)
        return BlockAxis(windows[0].start, min(windows[-1].start + plan.window, plan.size), start, stop, windows)
