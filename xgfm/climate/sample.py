"""Places of a map to be looked at in a reference: how many, of which class, and where.

In: a map of classes. Out: a table of places, drawn at random within each class, from which `area.estimate_areas` tells
what there really is. A lazy map is read block by block, once. Olofsson et al. 2014, "Good practices for estimating area
and assessing accuracy of land change", Remote Sensing of Environment 148, 42-57.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from xgfm.cf import NODATA
from xgfm.errors import GridError, LabelError
from xgfm.grid import geobox_of

if TYPE_CHECKING:
    import pandas as pd

Array = np.ndarray[Any, Any]
MINIMUM = 50
"""Places of a small class: under some 50 its accuracy says little."""
_JOINED = 16
"""Blocks whose draws are put together at once."""
_AT_ONCE = 1 << 20
"""Pixels of a block that are drawn from at once."""


def sample_size(mapped: Any, users: Any, standard_error: float = 0.01) -> int:
    """Return how many places a sample needs for a standard error of the overall accuracy; equation 13 of the paper.

    Parameters
    ----------
    mapped
        Area of each map class.
    users
        User's accuracy of each, as one expects it.
    standard_error
        Of the overall accuracy that is wanted.
    """
    area, expected = np.asarray(mapped, "float64"), np.asarray(users, "float64")
    if area.shape != expected.shape or not ((expected >= 0) & (expected <= 1)).all() or not standard_error > 0:
        raise LabelError("give one user's accuracy from 0 to 1 for each mapped area, and a standard error above 0")
    return math.ceil(float(((area / area.sum()) * np.sqrt(expected * (1 - expected))).sum() / standard_error) ** 2)


def allocate(mapped: Any, n: int, *, minimum: int = MINIMUM) -> Array:
    """Divide places among map classes by their area, with no class under a minimum; whole numbers ``(class,)``.

    Classes that would get fewer than ``minimum`` get just that, and the others what is left, by area. Classes without
    area get none.
    """
    area = np.asarray(mapped, "float64")
    there = area > 0
    least = min(minimum, n // max(int(there.sum()), 1))
    small = np.zeros(len(area), bool)
    while True:
        large = there & ~small
        left = n - least * int((there & small).sum())
        given = np.where(large, left * area / max(area[large].sum(), 1e-300), np.where(there, float(least), 0.0))
        under = large & (given < least)
        if not under.any():
            return _whole(given, n if there.any() else 0)
        small |= under


def _whole(shares: Array, n: int) -> Array:
    """Round to whole numbers that add up to ``n``: the largest remainders are rounded up."""
    low = np.floor(shares + 1e-9).astype("int64")
    order = np.argsort(-(shares - low), kind="stable")
    low[order[: n - int(low.sum())]] += 1
    return low


def stratified_sample(
    map: xr.DataArray,
    n: int,
    seed: int = 0,
    *,
    allocation: Literal["area", "equal"] | Mapping[int, int] = "area",
    minimum: int = MINIMUM,
) -> pd.DataFrame:
    """Draw places of a map at random, class by class, to be looked at in a reference.

    Parameters
    ----------
    map : DataArray
        Class codes ``(y, x)``, as `predict` gives them; 255, or NaN of a store that was opened with decoding, is no
        class. On a projected grid. A lazy one is computed, block by block.
    n : int
        Places, over all classes.
    seed : int
        The same seed draws the same places, in whatever chunks the map comes.
    allocation : "area", "equal" or mapping
        Places by area with a minimum for small classes, the same number for each class, or the number of each by its
        code. Of a class with fewer pixels than that, all are taken.
    minimum : int
        Of ``allocation="area"``.

    Returns
    -------
    DataFrame
        A row for each place, shuffled: ``row``, ``column``, ``x``, ``y``, ``lon``, ``lat``, ``code``, ``class``. Its
        ``attrs["mapped"]`` are the areas of the classes in square metres, by code, for `estimate_areas`. Hide ``code``
        and ``class`` from who labels the places.

    Raises
    ------
    GridError
        On a grid in degrees, where pixels have no one area.
    LabelError
        For other dims, or more places asked for than a class has pixels.
    """
    if map.dims != ("y", "x"):
        raise LabelError(f"the map has dims {map.dims}; expected class codes (y, x): choose with map.isel(time=0)")
    if map.dtype.kind == "f" and "flag_values" in map.attrs:  # a store that was opened with decoding
        map = map.fillna(NODATA).astype("uint8").assign_attrs(map.attrs)
    if map.dtype.kind not in "iu":
        raise LabelError(
            f"the map {map.name!r} has values of {map.dtype} and no flag_values; expected class codes, as predict "
            "gives them"
        )
    box = geobox_of(map)
    if box.crs is None or box.crs.geographic:
        raise GridError(
            "the map is on a grid in degrees, whose pixels differ in area; draw from one on a projected grid: "
            "map.odc.reproject(crs, resampling='nearest')"
        )
    most = n if isinstance(allocation, str) else max([*allocation.values(), 0])
    pixels, drawn = _draws(map, most, seed)
    wanted = _wanted(pixels, n, allocation, minimum)
    chosen = np.concatenate([_first(drawn[drawn["code"] == code], places) for code, places in wanted.items()])
    return _table(map, chosen[np.argsort(_keys(chosen["at"], seed + 1))], pixels)


_DRAW = np.dtype([("key", "uint64"), ("at", "int64"), ("code", "int64")])
"""A drawn pixel: its random number, its place counted along the rows, its class."""


def _draws(map: xr.DataArray, most: int, seed: int) -> tuple[Array, Array]:
    """Return the pixels of every class ``(256,)``, and for each the ``most`` draws of the smallest keys."""
    import dask.array as da
    from dask.base import compute
    from dask.delayed import delayed

    data = map.data if isinstance(map.data, da.Array) else da.from_array(map.values, chunks=4096)
    rows, columns = (np.cumsum([0, *sizes]) for sizes in data.chunks)
    blocks = data.to_delayed()
    parts = [
        delayed(_of_block)(blocks[i, j], int(rows[i]), int(columns[j]), map.sizes["x"], most, seed)
        for i in range(blocks.shape[0])
        for j in range(blocks.shape[1])
    ]
    while len(parts) > 1:
        parts = [delayed(_joined)(parts[k : k + _JOINED], most) for k in range(0, len(parts), _JOINED)]
    pixels, drawn = compute(parts[0])[0]
    return pixels, drawn


def _of_block(block: Array, row: int, column: int, width: int, most: int, seed: int) -> tuple[Array, Array]:
    """Draw from a block, strip by strip: a draw takes sixty times the memory of a code."""
    rows = max(_AT_ONCE // max(block.shape[1], 1), 1)
    strips = range(0, len(block), rows)
    return _joined([_of_strip(block[r : r + rows], row + r, column, width, most, seed) for r in strips], most)


def _of_strip(block: Array, row: int, column: int, width: int, most: int, seed: int) -> tuple[Array, Array]:
    codes = block.ravel()
    if codes.size and (codes.min() < 0 or codes.max() > NODATA):
        raise LabelError(f"the map holds codes from {codes.min()} to {codes.max()}; class codes are 0 to {NODATA - 1}")
    at = ((row + np.arange(block.shape[0]))[:, None] * width + column + np.arange(block.shape[1])).ravel()
    keys, pixels = _keys(at, seed), np.bincount(codes, minlength=NODATA + 1)
    parts = [np.empty(0, _DRAW)]
    for code in np.flatnonzero(pixels[:NODATA]):
        here = np.flatnonzero(codes == code)
        here = here[_smallest(keys[here], most)]
        drawn = np.empty(len(here), _DRAW)
        drawn["key"], drawn["at"], drawn["code"] = keys[here], at[here], code
        parts.append(drawn)
    return pixels, np.concatenate(parts)


def _joined(parts: list[tuple[Array, Array]], most: int) -> tuple[Array, Array]:
    drawn = np.concatenate([drawn for _, drawn in parts])
    kept = [_first(drawn[drawn["code"] == code], most) for code in np.unique(drawn["code"])]
    return np.sum([pixels for pixels, _ in parts], axis=0), np.concatenate([drawn[:0], *kept])


def _first(drawn: Array, places: int) -> Array:
    return drawn[_smallest(drawn["key"], places)]


def _smallest(keys: Array, count: int) -> Array:
    """Return where the smallest keys are, so many at most."""
    return np.argpartition(keys, count)[:count] if 0 < count < len(keys) else np.arange(min(count, len(keys)))


def _keys(at: Array, seed: int) -> Array:
    """Return a random number for each pixel that depends on its place and the seed alone (splitmix64)."""
    start = np.random.SeedSequence(seed).generate_state(1, "uint64")[0]
    with np.errstate(over="ignore"):
        z = start + at.astype("uint64") * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: Array = z ^ (z >> np.uint64(31))
    return mixed


def _wanted(pixels: Array, n: int, allocation: Any, minimum: int) -> dict[int, int]:
    """Return the places of each class, by code."""
    there = [int(code) for code in np.flatnonzero(pixels[:NODATA])]
    if not there:
        raise LabelError("no pixel of the map has a class, so there is nothing to draw from")
    if isinstance(allocation, Mapping):
        wanted = {int(code): int(places) for code, places in allocation.items()}
    elif allocation == "equal":
        wanted = _within(pixels, there, n, lambda area, left: _whole(np.full(len(area), left / len(area)), left))
    elif allocation == "area":
        wanted = _within(pixels, there, n, lambda area, left: allocate(area, left, minimum=minimum))
    else:
        raise LabelError(f"allocation={allocation!r}; expected 'area', 'equal' or a mapping of codes to numbers")
    for code, places in wanted.items():
        if not 0 <= places <= (pixels[code] if 0 <= code < NODATA else 0):
            raise LabelError(
                f"{places} places of class {code}, which has {pixels[code] if 0 <= code < NODATA else 0} pixels; ask "
                "for fewer with n= or allocation="
            )
    return wanted


def _within(pixels: Array, there: list[int], n: int, give: Callable[[Array, int], Array]) -> dict[int, int]:
    """Divide places among classes; one that has fewer pixels than it would get is taken whole."""
    whole: dict[int, int] = {}
    while rest := [code for code in there if code not in whole]:
        given = dict(zip(rest, give(pixels[rest], n - sum(whole.values())).tolist(), strict=True))
        short = {code: int(pixels[code]) for code, places in given.items() if places > pixels[code]}
        if not short:
            return whole | given
        whole |= short
    raise LabelError(f"n={n} places of a map of {pixels[there].sum()} pixels; ask for fewer")


def _table(map: xr.DataArray, chosen: Array, pixels: Array) -> pd.DataFrame:
    import pandas as pd
    from pyproj import Transformer

    box = geobox_of(map)
    row, column = np.divmod(chosen["at"], map.sizes["x"])
    x, y = map["x"].values[column], map["y"].values[row]
    lon, lat = Transformer.from_crs(str(box.crs), "EPSG:4326", always_xy=True).transform(x, y)
    names = map.attrs.get("class_names", [])
    table = pd.DataFrame({"row": row, "column": column, "x": x, "y": y, "lon": lon, "lat": lat, "code": chosen["code"]})
    table["class"] = [names[code] if code < len(names) else str(code) for code in chosen["code"]]
    size = abs(box.resolution.x * box.resolution.y)
    table.attrs["mapped"] = {int(code): float(pixels[code] * size) for code in np.flatnonzero(pixels[:NODATA])}
    return table
