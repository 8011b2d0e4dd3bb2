"""Where the pixels of a job lie, in degrees.

In: areas, and the outcome of each of their blocks. Out: the outline of the blocks that are done, as one geometry, which
does not reach over the antimeridian.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import shapely
from numpy.typing import NDArray

from xgfm.jobs.region import DEGREES, transformer
from xgfm.jobs.summary import DONE

if TYPE_CHECKING:
    from xgfm.jobs.lattice import Area

_DIGITS = 1e-5
"""Degrees to which an outline is told: a metre."""


def outline_of(areas: Sequence[Area], outcomes: Mapping[str, NDArray[np.uint8]]) -> shapely.Geometry:
    """Return the outline of the blocks that are done.

    Parameters
    ----------
    areas
        Of the job.
    outcomes
        By area, as in `Summary.outcomes`.

    Returns
    -------
    shapely.Geometry
        Polygon or MultiPolygon in degrees; empty where nothing is done.
    """
    parts = [_in_degrees(area, outcomes[area.name] == DONE) for area in areas]
    whole = shapely.union_all([part for part in parts if not part.is_empty])
    return _oriented(shapely.set_precision(_on_one_turn(whole), _DIGITS))


def _oriented(geometry: shapely.Geometry) -> shapely.Geometry:
    """Outer rings against the clock, as GeoJSON has them."""
    from shapely.geometry.polygon import orient

    parts = [orient(part) for part in shapely.get_parts(geometry)]
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


def _in_degrees(area: Area, done: NDArray[np.bool_]) -> shapely.Geometry:
    rows, columns = np.nonzero(done)
    if not len(rows):
        return shapely.Polygon()
    a, _, left, _, e, top = tuple(area.geobox.transform)[:6]
    height, width = area.geobox.shape
    x, right = left + a * columns * area.block, left + a * np.minimum((columns + 1) * area.block, width)
    y, bottom = top + e * rows * area.block, top + e * np.minimum((rows + 1) * area.block, height)
    outline = shapely.union_all(shapely.box(x, bottom, right, y)).simplify(0)
    there = transformer(area.geobox.crs, DEGREES)
    step = abs(a) * max(area.block, 1000)  # an edge that is straight on the grid is bent in degrees
    bent = shapely.transform(
        shapely.segmentize(outline, step), lambda p: np.column_stack(there.transform(p[:, 0], p[:, 1]))
    )
    first = shapely.get_coordinates(bent)[0, 0]
    return shapely.transform(bent, lambda p: np.column_stack([first + (p[:, 0] - first + 180) % 360 - 180, p[:, 1]]))


def _on_one_turn(geometry: shapely.Geometry) -> shapely.Geometry:
    """Cut at the antimeridian what reaches over it."""
    turns = [
        shapely.transform(
            shapely.intersection(geometry, shapely.box(360 * turn - 180, -90, 360 * turn + 180, 90)),
            lambda p, turn=turn: p - [360 * turn, 0],
        )
        for turn in (-1, 0, 1)
    ]
    return shapely.union_all([part for part in turns if part.area > 0])
