"""The Dask layer that gives each block the pixels around it that its windows look at.

In: a lazy array ``(time, band, y, x)`` and a window plan whose cuts are the array's chunks. Out: the same as one block
per chunk, each with its surroundings. The layer is described, and its tasks are listed only where it is run.

`dask.array.overlap` would do, but what it cuts off a neighbour are views: each keeps the whole of the neighbour in
memory until the block that it is for is computed, a row of chunks later. Here they are copies, and no larger than
needed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import dask.array as da
import numpy as np
from dask._task_spec import List, Task, TaskRef
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph, Layer
from dask.typing import Key

from xgfm.windows import WindowPlan

Place = tuple[Any, ...]
Cut = tuple[int, slice]
"""A chunk along an axis, and the part of it that is meant."""


def with_surroundings(data: da.Array, plan: WindowPlan) -> da.Array:
    """Return the blocks of a plan as a lazy array ``(time, band, y, x)``, whose chunks overlap in what they show."""
    name = f"surroundings-{tokenize(data.name, plan)}"
    layer = _Surroundings(name, data.name, data.numblocks, plan)
    graph = HighLevelGraph.from_collections(name, layer, dependencies=[data])  # type: ignore[list-item]
    sizes = tuple(tuple(stop - start for start, stop in plan.reads(axis)) for axis in (0, 1))
    return da.Array(graph, name, (*data.chunks[:2], *sizes), dtype=data.dtype, meta=data._meta)


class _Surroundings(Layer):
    """The tasks of every block: copies of parts of its neighbours, and the block put together."""

    def __init__(self, name: str, source: str, numblocks: Sequence[int], plan: WindowPlan) -> None:
        super().__init__()
        self.name, self.source, self.numblocks, self.plan = name, source, tuple(numblocks), plan
        self._listed: dict[Key, Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.source, self.numblocks, self.plan)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def is_materialized(self) -> bool:
        return self._listed is not None

    def get_output_keys(self) -> set[Key]:
        return {(self.name, *place) for place in product(*map(range, self.numblocks))}

    def __getitem__(self, key: Key) -> Any:
        return self._tasks[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def _tasks(self) -> dict[Key, Any]:
        if self._listed is None:
            cuts = [
                [_parts(self.plan.cuts[axis], *read) for read in self.plan.reads(axis)]  # of every block along the axis
                for axis in (0, 1)
            ]
            self._listed = {}
            for time, band, row, column in product(*map(range, self.numblocks)):
                self._list_block((time, band), (row, column), cuts[0][row], cuts[1][column])
        return self._listed

    def _list_block(self, lead: Place, place: Place, rows: Sequence[Cut], columns: Sequence[Cut]) -> None:
        assert self._listed is not None
        pieces: list[list[Place]] = []
        for row, row_part in rows:
            pieces.append([])
            for column, column_part in columns:
                key = (self.source, *lead, row, column)
                piece = (f"part-{self.name}", *lead, *place, row, column)
                cut = _own if (row, column) == place else _copied
                self._listed[piece] = Task(piece, cut, TaskRef(key), row_part, column_part)
                pieces[-1].append(piece)
        whole = (self.name, *lead, *place)
        self._listed[whole] = Task(whole, _joined, List(*(List(*map(TaskRef, line)) for line in pieces)))


def _parts(cuts: Sequence[int], start: int, stop: int) -> list[Cut]:
    """Return the chunks that hold some pixels of an axis, and which part of each."""
    chunks = range(bisect_right(cuts, start) - 1, bisect_left(cuts, stop))
    return [(i, slice(max(start - cuts[i], 0), min(stop, cuts[i + 1]) - cuts[i])) for i in chunks]


def _own(chunk: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    return chunk[:, :, rows, columns]


def _copied(chunk: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    return chunk[:, :, rows, columns].copy()


def _joined(pieces: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    if len(pieces) == 1 and len(pieces[0]) == 1:
        return pieces[0][0]
    joined: np.ndarray = np.block([[*row] for row in pieces])
    return joined
