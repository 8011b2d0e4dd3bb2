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
from itertools import pairwise


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
    """Pixels at each end of a window whose output is thrown away."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.stride < 1 or self.halo < 0:
            raise ValueError(f"no window plan for size {self.size}, window {self.window}, halo {self.halo}")

    @property
    def stride(self) -> int:
        """Pixels between the inner parts of neighbouring windows."""
        return self.window - 2 * self.halo

    def windows(self) -> list[Window]:
        """Return every window, in order; their inner parts cover each pixel of the array once."""
        if self.size <= self.window:
            return [Window(0, 0, self.size)]
        found: list[Window] = []
        for inner_start, inner_stop in pairwise(self._cell_edges()):
            start = min(max(inner_start - self._offset(inner_start) - self.halo, 0), self.size - self.window)
            if found and found[-1].start == start:  # two cells that the edge pushed into one window
                inner_start = found.pop().inner_start
            found.append(Window(start, inner_start, inner_stop))
        return found

    def block_edges(self, target: int) -> tuple[int, ...]:
        """Cut the axis into blocks of whole windows, near ``target`` pixels each.

        A block needs no pixel further than ``halo`` beyond its own: the shorter pieces at the array's ends, where
        windows shift inward, are merged with their neighbours.
        """
        cells = max(1, -(-max(target - self.stride // 2, self.halo, 1) // self.stride))
        period = cells * self.stride
        first = -(self.origin % period)
        edges = [e for e in range(first, self.size, period) if 0 < e < self.size]
        least = self.window - self.halo
        while edges and edges[0] < least:
            edges.pop(0)
        while edges and self.size - edges[-1] < least:
            edges.pop()
        return (0, *edges, self.size)

    def _offset(self, pixel: int) -> int:
        """Pixels between the anchored start of a pixel's cell and the pixel."""
        return (self.origin + pixel) % self.stride

    def _cell_edges(self) -> list[int]:
        first = self.stride - self._offset(0)
        return [0, *range(first, self.size, self.stride), self.size]


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """The windows of a raster, and the blocks that they are computed in."""

    rows: AxisPlan
    columns: AxisPlan
    row_edges: tuple[int, ...]
    """Array rows where blocks meet, ends included."""
    column_edges: tuple[int, ...]

    @property
    def window(self) -> int:
        """Rows and columns, in pixels, that the model sees at once."""
        return self.rows.window

    @property
    def halo(self) -> int:
        """Pixels beyond its own that a block reads."""
        return self.rows.halo

    @property
    def row_chunks(self) -> tuple[int, ...]:
        """Rows of each block."""
        return tuple(b - a for a, b in pairwise(self.row_edges))

    @property
    def column_chunks(self) -> tuple[int, ...]:
        """Columns of each block."""
        return tuple(b - a for a, b in pairwise(self.column_edges))

    def block(self, row: int, column: int) -> Block:
        """Return one block by its place among the blocks."""
        return Block(
            BlockAxis.of(self.rows, self.row_edges[row], self.row_edges[row + 1]),
            BlockAxis.of(self.columns, self.column_edges[column], self.column_edges[column + 1]),
        )


@dataclass(frozen=True, slots=True)
class BlockAxis:
    """One axis of a block: its pixels with the halo, and its windows within them."""

    read_start: int
    """First pixel, in the array, that the block reads."""
    read_stop: int
    start: int
    """First pixel, in the array, that the block writes."""
    stop: int
    windows: tuple[Window, ...]
    """In array pixels."""

    @classmethod
    def of(cls, axis: AxisPlan, start: int, stop: int) -> BlockAxis:
        """Return the part of an axis between two block edges."""
        mine = tuple(w for w in axis.windows() if start <= w.inner_start < stop)
        return cls(max(start - axis.halo, 0), min(stop + axis.halo, axis.size), start, stop, mine)


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a plan."""

    rows: BlockAxis
    columns: BlockAxis

    def windows(self) -> Iterator[tuple[Window, Window]]:
        """Yield (row, column) windows, rows slowest."""
        for row in self.rows.windows:
            for column in self.columns.windows:
                yield row, column


def plan(
    shape: Sequence[int], origin: Sequence[int], *, window: int, halo: int, block: Sequence[int] = (1024, 1024)
) -> WindowPlan:
    """Plan the windows of a raster.

    Parameters
    ----------
    shape
        Rows and columns of the raster.
    origin
        Row and column of its first pixel on the lattice counted from the CRS origin.
    window, halo
        Pixels that the model sees at once, and pixels at each edge whose output is thrown away.
    block
        Rows and columns that a block should have; it gets whole windows near that.
    """
    rows = AxisPlan(shape[0], origin[0], window, halo)
    columns = AxisPlan(shape[1], origin[1], window, halo)
    return WindowPlan(rows, columns, rows.block_edges(block[0]), columns.block_edges(block[1]))
