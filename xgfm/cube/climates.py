"""Other climates for simulated seasons: the covers of `phenology` with other calendars, canopies and soils.

In: the name of a climate. Out: its land covers, in the order of `phenology.CLASSES`. They are there to show what a task
says of ground that it was not trained on, and are no more measured than the others. Nothing is lazy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from difflib import get_close_matches

from xgfm.cube.phenology import COVERS, Cover
from xgfm.errors import CubeError


def covers_of(climate: str) -> tuple[Cover, ...]:
    """Return the land covers of a climate.

    Raises
    ------
    CubeError
        There is no such climate.
    """
    if climate not in CLIMATES:
        near = get_close_matches(str(climate), CLIMATES, n=1, cutoff=0.0)
        raise CubeError(f"climate={climate!r} is none of {sorted(CLIMATES)}; the nearest name is {near[0]!r}")
    return tuple(CLIMATES[climate](cover) for cover in COVERS)


def _moved(cover: Cover, *, rise: float, fall: float) -> Cover:
    """Return a cover with its spring and its autumn moved, in days; what is done in them moves along."""
    return replace(
        cover,
        rise=cover.rise + rise,
        fall=cover.fall + fall,
        harvest=None if cover.harvest is None else cover.harvest + fall,
        tillage=None if cover.tillage is None else cover.tillage + rise,
        cuts=tuple(day + rise for day in cover.cuts),
    )


def _semi_arid(cover: Cover) -> Cover:
    """Half the canopy, over before the summer, straw and light soil under it."""
    dry = replace(cover, high=cover.low + (cover.high - cover.low) / 2, dry="straw", bare=("light soil", "light soil"))
    return cover if cover.name == "Open Water" else _moved(dry, rise=-45, fall=-70)


def _subtropical(cover: Cover) -> Cover:
    """A long season, and green all the winter."""
    evergreen = min(cover.low + 0.25, 0.5) if cover.high > 0 else cover.low
    return _moved(replace(cover, low=evergreen), rise=-40, fall=30)


def _boreal(cover: Cover) -> Cover:
    """A short season, and less of it."""
    return _moved(replace(cover, high=max(cover.low, 0.85 * cover.high)), rise=25, fall=-20)


CLIMATES: Mapping[str, Callable[[Cover], Cover]] = {
    "continental": lambda cover: cover,
    "semi-arid": _semi_arid,
    "subtropical": _subtropical,
    "boreal": _boreal,
}
"""By name, what becomes of a cover of central Minnesota."""
