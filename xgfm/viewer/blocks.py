"""What became of the blocks of a job, as outlines on a map.

In: a store, beside which the records of its job are. Out: GeoJSON of the blocks in a view, read from the ledger each
time, so that a running job can be watched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xgfm.store.ledger import Ledger
from xgfm.viewer.sheets import DEGREES, Bounds, project

if TYPE_CHECKING:
    from xgfm.jobs.lattice import Area
    from xgfm.jobs.planned import Plan

COLORS = {
    "outside": "#bbbbbb",
    "no items": "#999999",
    "too few dates": "#ddaa33",
    "missing": "#4477aa",
    "done": "#228833",
    "failed": "#cc3311",
}
"""Of each outcome."""
LISTED = 3000
"""Most outlines of a view; of more, neighbours of one outcome become one."""


class Blocks:
    """The blocks of one job.

    Parameters
    ----------
    store : str
        Whose job it is.
    """

    def __init__(self, store: str) -> None:
        from xgfm.jobs.job import records_of

        self._records = records_of(store)

    @cached_property
    def plan(self) -> Plan:
        """The saved plan."""
        from xgfm.jobs.plan import load_plan

        return load_plan(self._records)

    @property
    def there(self) -> bool:
        """Whether the store is one of a job that was planned."""
        from xgfm.jobs.plan import PLAN

        try:
            self._records.get(PLAN)
        except FileNotFoundError:
            return False
        return True

    def outcomes(self) -> dict[str, NDArray[np.uint8]]:
        """Return by area, ``(row, column)``, what each block is: a position in `xgfm.jobs.summary.OUTCOMES`."""
        from xgfm.jobs.summary import DONE, FAILED

        ledger = Ledger(self._records)
        found = {area.name: self.plan.codes(area).copy() for area in self.plan.areas}
        for names, outcome in ((ledger.done(), DONE), (ledger.failed(), FAILED)):
            for name in names:
                block = self.plan.block(name)
                found[block.area][block.row, block.column] = outcome
        return found

    def geojson(self, degrees: Bounds) -> dict[str, Any]:
        """Return the outlines of the blocks in a view, those outside of the region left out; and `counts` of all."""
        found, features = self.outcomes(), []
        for area in self.plan.areas:
            codes, window = _window(area, found[area.name], degrees)
            merged = bool(np.count_nonzero(codes) > LISTED)
            features += [_feature(area, *run) for run in _runs(codes, window, merged=merged)]
        return {"type": "FeatureCollection", "features": features, "counts": counts(found)}

    def reason(self, area: str, row: int, column: int) -> str | None:
        """Return why a block failed, in the words of its entry; None where it did not."""
        name = self.plan.area(area).at(row, column).id
        entry = next(Ledger(self._records).entries([name])) if name in Ledger(self._records).failed() else None
        return None if entry is None else entry.reason


def counts(outcomes: Mapping[str, NDArray[np.uint8]]) -> list[dict[str, Any]]:
    """Return how many blocks there are of each outcome, with its colour; not of those outside of the region."""
    from xgfm.jobs.summary import OUTCOMES

    total = sum((np.bincount(codes.ravel(), minlength=len(OUTCOMES)) for codes in outcomes.values()), start=0)
    blocks = np.broadcast_to(total, len(OUTCOMES)).tolist()
    named = [{"outcome": k, "blocks": n, "color": COLORS[k]} for k, n in zip(OUTCOMES, blocks, strict=True)]
    return [each for each in named if each["outcome"] != "outside"]


def _window(area: Area, codes: NDArray[np.uint8], degrees: Bounds) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """The blocks of an area that meet a view, and the place of the first."""
    assert area.geobox.crs is not None  # every area has one
    wkt = area.geobox.crs.to_wkt()
    here = project(wkt, DEGREES, area.geobox.boundingbox.bbox)
    part = (*np.maximum(here[:2], degrees[:2]).tolist(), *np.minimum(here[2:], degrees[2:]).tolist())
    if part[0] >= part[2] or part[1] >= part[3]:
        return codes[:0], (0, 0)
    left, bottom, right, top = project(DEGREES, wkt, part)
    a, _, west, _, e, north = tuple(area.geobox.transform)[:6]
    row, last_row = (int(max(0, (edge - north) / e // area.block)) for edge in (top, bottom))
    column, last = (int(max(0, (edge - west) / a // area.block)) for edge in (left, right))
    return codes[row : last_row + 1, column : last + 1], (row, column)


def _runs(codes: NDArray[np.uint8], first: tuple[int, int], *, merged: bool) -> Iterator[tuple[int, int, int, int]]:
    """Yield row, first and last column, and outcome; of neighbours in a row where they are merged."""
    for row, line in enumerate(codes.tolist(), first[0]):
        for (code, _), run in groupby(enumerate(line, first[1]), lambda at: (at[1], 0 if merged else at[0])):
            columns = [column for column, _ in run]
            if code:
                yield row, columns[0], columns[-1], code


def _feature(area: Area, row: int, first: int, last: int, code: int) -> dict[str, Any]:
    from rasterio.warp import transform

    from xgfm.jobs.summary import OUTCOMES

    (height, width), side = area.geobox.shape, area.block
    top, bottom, left, right = row * side, min((row + 1) * side, height), first * side, min((last + 1) * side, width)
    corners = [area.geobox.transform * at for at in ((left, top), (right, top), (right, bottom), (left, bottom))]
    assert area.geobox.crs is not None  # every area has one
    xs, ys = transform(area.geobox.crs.to_wkt(), DEGREES, *map(list, zip(*corners, strict=True)))
    ring = [[round(x, 6), round(y, 6)] for x, y in zip(xs, ys, strict=True)]
    facts = {"area": area.name, "row": row, "column": first, "blocks": last - first + 1, "outcome": OUTCOMES[code]}
    return {
        "type": "Feature",
        "properties": {**facts, "color": COLORS[OUTCOMES[code]]},
        "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
    }
