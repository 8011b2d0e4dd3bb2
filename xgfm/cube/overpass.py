"""When Landsat and Sentinel-2 pass over a simulated season, and what their swaths cover.

In: a tile, a year, a seed and a filter on clouds, as a search has it. Out: `Overpass` records in order of date. No
pixels. The four orbits are those over tile T15TVM: their phases, times of day and swath edges were taken from NASA's
catalogue for October 2025, and hold for other years because the orbits repeat. Other tiles borrow them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from xgfm.cube.items import Sensor
from xgfm.cube.sky import sun_position
from xgfm.errors import XgfmError
from xgfm.grid import TILE_PIXELS

SEASON = ("04-08", "10-12")
"""First and last day of a season, month and day."""
_HOME = -93.6
"""Longitude of the middle of T15TVM: elsewhere the satellites pass at the same local time."""
_LEAST_IMAGED = 0.25
"""Share of the area that a granule covers at least."""


@dataclass(frozen=True, slots=True)
class Orbit:
    """A repeating ground track."""

    sensor: Sensor
    seen: np.datetime64
    """When the tile was imaged on one pass, UTC."""
    named: np.timedelta64
    """How long before that the time in the granule's name lies: Sentinel-2 names the start of its data take."""
    repeat: int
    """Days, both satellites together."""
    edge: tuple[float, float] | None
    """Column of the swath's edge at the tile's first and last row; None where the tile is all inside."""
    side: Literal["left", "right"]
    """Which side of the edge is imaged."""


def _orbit(sensor: Sensor, seen: str, named: int, repeat: int, edge: tuple[float, float] | None, side: str) -> Orbit:
    kept: Literal["left", "right"] = "left" if side == "left" else "right"
    return Orbit(sensor, np.datetime64(seen, "ms"), np.timedelta64(named, "s"), repeat, edge, kept)


ORBITS = (
    _orbit("L30", "2025-10-02T17:04:39.336", 0, 8, (3504, 2484), "left"),
    _orbit("L30", "2025-10-03T16:58:26.873", 0, 8, (952, 7), "right"),
    _orbit("S30", "2025-10-02T17:11:11.390", 570, 5, (3518, 2622), "right"),
    _orbit("S30", "2025-10-05T17:21:06.947", 535, 5, None, "right"),
)


@dataclass(frozen=True, slots=True)
class Overpass:
    """One granule to be: a pass of one satellite over the area."""

    id: str
    """HLS granule name: ``HLS.L30.T15TVM.2024129T170439.v2.0``."""
    sensor: Sensor
    time: np.datetime64
    """UTC, to the millisecond."""
    key: tuple[int, ...]
    """What, with the season's seed, its randomness is drawn from."""
    cover: float
    """Share of the ground under cloud, 0 to 1."""
    sun: tuple[float, float]
    """Zenith and azimuth, degrees."""
    edge: tuple[float, float] | None
    side: Literal["left", "right"]

    def imaged(self, rows: range, columns: range) -> NDArray[np.bool_]:
        """Return where the swath covers a window of the tile, ``(y, x)``."""
        if self.edge is None:
            return np.ones((len(rows), len(columns)), bool)
        top, bottom = self.edge
        edge = top + (bottom - top) * (np.array(rows) + 0.5) / TILE_PIXELS
        left = np.array(columns) < edge[:, np.newaxis]
        return left if self.side == "left" else ~left


def plan_overpasses(
    tile: str,
    year: int,
    *,
    seed: int,
    window: tuple[range, range],
    place: tuple[float, float],
    granules: int,
    max_cloud_cover: float,
) -> list[Overpass]:
    """Return the granules that a search for a season would find, thinned evenly to a number of them.

    Parameters
    ----------
    tile
        MGRS id without the T, for the names.
    year
        Calendar year.
    seed
        Of the season.
    window
        Rows and columns of the tile that are simulated.
    place
        Longitude and latitude, degrees.
    granules
        How many dates are kept, one granule a day.
    max_cloud_cover
        Percent; cloudier granules are left out, as a search leaves them out.

    Raises
    ------
    XgfmError
        If the season has fewer dates.
    """
    passes: dict[np.datetime64, Overpass] = {}
    for number, orbit in enumerate(ORBITS):
        for time in _times(orbit, year, place[0]):
            candidate = _overpass(
                tile, orbit, time, place, (seed, number, int(time.astype("datetime64[D]").astype(int)))
            )
            clear = candidate.cover * 100 <= max_cloud_cover
            if clear and candidate.imaged(*window).mean() >= _LEAST_IMAGED:
                passes.setdefault(time.astype("datetime64[D]"), candidate)
    if not 1 <= granules <= len(passes):
        raise XgfmError(
            f"{granules} granules were asked for, and the season of {year} has {len(passes)} dates with at most "
            f"{max_cloud_cover:g} % cloud; give fewer granules= or a higher max_cloud_cover="
        )
    kept = np.rint(np.linspace(0, len(passes) - 1, granules)).astype(int)
    return [passes[day] for day in np.array(sorted(passes))[kept]]


def _times(orbit: Orbit, year: int, longitude: float) -> list[np.datetime64]:
    """Moments of the season at which the orbit passes, at its own local time of day."""
    first, last = (np.datetime64(f"{year}-{day}") for day in SEASON)
    seen = orbit.seen + np.timedelta64(round((_HOME - longitude) / 15 * 3600), "s")
    behind = int((seen.astype("datetime64[D]") - first).astype(int)) % orbit.repeat
    days = np.arange(first + behind, last + 1, orbit.repeat)
    return list(days + (seen - seen.astype("datetime64[D]")))


def _overpass(
    tile: str, orbit: Orbit, time: np.datetime64, place: tuple[float, float], key: tuple[int, ...]
) -> Overpass:
    rng = np.random.default_rng([*key, 0])
    moment = time + np.timedelta64(int(rng.integers(-9000, 9000)), "ms")
    named = (moment - orbit.named).astype("datetime64[s]").item()
    drift = rng.normal(0, 20)
    edge = None if orbit.edge is None else (orbit.edge[0] + drift, orbit.edge[1] + drift)
    cover = float(rng.beta(0.45, 0.65))  # mostly clear or mostly overcast, seldom half and half
    name = f"HLS.{orbit.sensor}.T{tile}.{named:%Y%jT%H%M%S}.v2.0"
    return Overpass(name, orbit.sensor, moment, key, cover, sun_position(moment, *place), edge, orbit.side)
