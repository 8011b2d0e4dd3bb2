"""Climate grids: by name, from a model's bounds, or any GeoBox.

In: a name, a Dataset with latitudes, longitudes and their bounds, or a GeoBox; and the map that is to be summed. Out:
the cells of that grid which meet the map, as a record. No pixel is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class ClimateGrid:
    """Cells of a climate grid: rows and columns of latitude and longitude, or the pixels of a GeoBox."""

    name: str
    """As it was asked for: ``"0.05deg"``, a model's name, or the GeoBox's CRS and resolution."""
    lat: Array
    """``(lat,)`` degrees north, increasing; empty for a GeoBox."""
    lon: Array
    """``(lon,)`` degrees east, increasing, past 180 or 360 where the map crosses the seam; empty for a GeoBox."""
    lat_bounds: Array
    """``(lat, 2)`` float64; each cell begins where the last one ends."""
    lon_bounds: Array
    """``(lon, 2)`` float64."""
    geobox: GeoBox | None = None
    """Where the grid is one."""

    @property
    def dims(self) -> tuple[str, str]:
        """Names of its dimensions."""
        return ("lat", "lon") if self.geobox is None else ("y", "x")

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return (len(self.lat), len(self.lon)) if self.geobox is None else self.geobox.shape
