"""What a map adds up to in each cell of a climate grid.

In: sums of the blocks of a map. Out: a record of them on the grid, from which fractions, their metadata and files are
made. The arrays may be NumPy's or Dask's; nothing here computes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xgfm.climate.grids import ClimateGrid
from xgfm.errors import GridError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class CellSums:
    """Sums over the pixels of each cell: they add up over blocks, tiles, zones and workers.

    Last two dimensions are the grid's: ``(lat, lon)``, or ``(y, x)`` where it is a GeoBox (`ClimateGrid.dims`).
    """

    grid: ClimateGrid
    """The part of the grid that meets the map; ``lat`` and ``lon`` increase."""
    classes: tuple[str, ...]
    """Readable names, in the order of the first dimension of `area`; words for CF: `xgfm.cf.flag_words`."""
    colors: tuple[str, ...]
    """``#rrggbb`` of each class; empty where the map has none."""
    values: tuple[int, ...]
    """Number of each class in the map."""
    times: Array
    """``(time,)`` datetime64[ns]; NaT where the map does not say. A map without ``time`` has one."""
    time_bounds: Array
    """``(time, 2)`` datetime64[ns], from when to when the map was made from, the end excluded; twice the same for a
    moment, NaT where it does not say."""
    area: Any
    """``(class, time, lat, lon)`` float64, m2 on the ground that are mapped as the class."""
    count: Any
    """``(class, time, lat, lon)`` float64, pixels; those on a cell's edge count in sixteenths."""
    probability: Any | None
    """``(class, time, lat, lon)`` float64, m2 weighted by the probability of the class; None where there is none."""
    valid_area: Any
    """``(time, lat, lon)`` float64, m2 that have any class: the sum of `area` over the classes."""
    seen_area: Any
    """``(time, lat, lon)`` float64, m2 that the map covers, missing pixels included."""
    cell_area: Array
    """``(lat, lon)`` float64, m2 of the whole cell on the WGS84 ellipsoid."""
    attrs: Mapping[str, Any] = field(default_factory=dict)
    """Of the map that are true of its sums too: title, task, model, weights_digest, comment, attribution ..."""

    def __post_init__(self) -> None:
        """Check that the sizes are of one grid, one legend and one time axis."""
        flat = (len(self.times), *self.grid.shape)
        full = (len(self.classes), *flat)
        found = {"area": full, "count": full, "valid_area": flat, "seen_area": flat, "cell_area": self.grid.shape}
        if self.probability is not None:
            found["probability"] = full
        for name, expected in found.items():
            if (shape := tuple(getattr(self, name).shape)) != expected:
                raise GridError(f"{name} of the sums has shape {shape}; expected {expected}")
