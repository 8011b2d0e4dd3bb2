"""How much of each class there is, with its uncertainty, from a map and a reference sample.

In: a map, and what a reference says at places drawn from it. Out: places to look at, and areas, accuracies and their
standard errors, which correct for the map's mistakes: counting its pixels does not. Olofsson et al. 2014, "Good
practices for estimating area and assessing accuracy of land change", Remote Sensing of Environment 148, 42-57. A lazy
map is read block by block, once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
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


@dataclass(frozen=True, slots=True)
class AreaEstimate:
    """What a stratified reference sample says of a map. Every list is in the order of the classes."""

    classes: tuple[str, ...]
    matrix: Array
    """``(map class, reference class)`` estimated shares of the whole area; equation 4 of the paper."""
    area: Array
    """Of each class, by the reference, in the units of the mapped areas; equations 9 and 11."""
    area_error: Array
    """Standard errors; equations 10 and 11."""
    users: Array
    """User's accuracy: share of what is mapped as a class that is of it; NaN for a class that is not mapped."""
    users_error: Array
    producers: Array
    """Producer's accuracy: share of a class that is mapped as it; NaN for a class that is not there."""
    producers_error: Array
    overall: float
    overall_error: float
    confidence: float
    """Share of samples whose intervals hold the truth."""

    @property
    def factor(self) -> float:
        """Standard errors between an estimate and its bound."""
        return NormalDist().inv_cdf((1 + self.confidence) / 2)

    @property
    def interval(self) -> Array:
        """Bounds of the area of each class, ``(class, 2)``; the lower one is not under 0."""
        half = self.factor * self.area_error
        return np.stack([np.maximum(self.area - half, 0), self.area + half], axis=1)

    def to_pandas(self) -> pd.DataFrame:
        """Return a row for each class: areas and accuracies with half the width of their intervals."""
        import pandas as pd

        columns = {"area": self.area, "users": self.users, "producers": self.producers}
        errors = {"area": self.area_error, "users": self.users_error, "producers": self.producers_error}
        both = {
            n: v for name in columns for n, v in ((name, columns[name]), (f"{name}_ci", self.factor * errors[name]))
        }
        return pd.DataFrame(both, index=pd.Index(self.classes, name="class"))

    def __str__(self) -> str:
        f = self.factor
        rows = [
            f"{name[:24]:24s} {area:16.6g} +- {f * error:<12.6g} {u:.2f} +- {f * ue:.2f}      {p:.2f} +- {f * pe:.2f}"
            for name, area, error, u, ue, p, pe in zip(
                self.classes, self.area, self.area_error, self.users, self.users_error, self.producers,
                self.producers_error, strict=True,
            )
        ]  # fmt: skip
        head = f"{'class':24s} {'area':>16s}    {'':12s} user's            producer's"
        last = f"overall accuracy {self.overall:.3f} +- {f * self.overall_error:.3f} ({self.confidence:.0%} intervals)"
        return "\n".join([head, *rows, last])


def estimate_areas(counts: Any, mapped: Any, *, classes: Sequence[str] = (), confidence: float = 0.95) -> AreaEstimate:
    """Estimate areas and accuracies from a reference sample that was stratified by the map.

    Parameters
    ----------
    counts
        ``(map class, reference class)`` places of the sample. The map is along the first dimension, as in the paper;
        `xgfm.train.metrics.Confusion` has it the other way, and its pixels are no random sample.
    mapped
        Area of each map class ``(class,)``, in any units, or pixels where they are all of one size.
    classes
        Their names.
    confidence
        Of the intervals.

    Returns
    -------
    AreaEstimate

    Raises
    ------
    LabelError
        For other shapes, negative numbers, or a map class with area and fewer than two places: its variance cannot be
        estimated.

    Notes
    -----
    Within each map class, places must have been drawn at random, each with the same chance: see `stratified_sample`.
    """
    n, area = _checked(np.asarray(counts, "float64"), np.asarray(mapped, "float64"))
    if not 0 < confidence < 1:
        raise LabelError(f"confidence={confidence}; give a share between 0 and 1, such as 0.95")
    names = tuple(classes) or tuple(f"class {number}" for number in range(len(area)))
    if len(names) != len(area):
        raise LabelError(f"{len(names)} names for {len(area)} classes; give classes= one name each")
    seen = n.sum(1)
    weight, total = area / area.sum(), area.sum()
    share = n / np.where(seen > 0, seen, 1)[:, None]  # of each map class, by the reference
    matrix = weight[:, None] * share
    spread = share * (1 - share) / np.where(seen > 1, seen - 1, 1)[:, None]  # variance of each share
    truly = matrix.sum(0)
    users = np.where(weight > 0, np.diag(share), np.nan)
    producers = np.divide(np.diag(matrix), truly, out=np.full(len(truly), np.nan), where=truly > 0)
    return AreaEstimate(
        classes=names,
        matrix=matrix,
        area=total * truly,
        area_error=total * np.sqrt((weight[:, None] ** 2 * spread).sum(0)),
        users=users,
        users_error=np.where(weight > 0, np.sqrt(np.diag(spread)), np.nan),
        producers=producers,
        producers_error=_producers_error(weight, spread, truly, producers),
        overall=float(np.trace(matrix)),
        overall_error=float(np.sqrt((weight**2 * np.diag(spread)).sum())),
        confidence=confidence,
    )


def _producers_error(weight: Array, spread: Array, truly: Array, producers: Array) -> Array:
    """Return equation 7 of the paper, in shares of the area instead of pixels."""
    each = weight[:, None] ** 2 * spread
    own = np.diag(each)
    variance = (1 - producers) ** 2 * own + producers**2 * (each.sum(0) - own)
    return np.divide(np.sqrt(variance), truly, out=np.full(len(truly), np.nan), where=truly > 0)


def _checked(n: Array, area: Array) -> tuple[Array, Array]:
    if n.ndim != 2 or n.shape != (len(area),) * 2:
        raise LabelError(f"counts have shape {n.shape} and mapped areas {area.shape}; expected (K, K) and (K,)")
    if not (np.isfinite(n).all() and np.isfinite(area).all() and (n >= 0).all() and (area >= 0).all() and area.any()):
        raise LabelError("counts and mapped areas must be finite numbers from 0 on, and some area above 0")
    few = [number for number, (places, there) in enumerate(zip(n.sum(1), area, strict=True)) if there and places < 2]
    if few:
        raise LabelError(
            f"map classes {few} have area and fewer than two places in the sample; draw more with "
            "stratified_sample(minimum=), or join classes"
        )
    lost = [number for number, (places, there) in enumerate(zip(n.sum(1), area, strict=True)) if places and not there]
    if lost:
        raise LabelError(f"map classes {lost} have places in the sample and no mapped area; give mapped= of this map")
    return n, area


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
        Class codes ``(y, x)``, as `predict` gives them; 255 is no class. On a projected grid. A lazy one is computed,
        block by block.
    n : int
        Places, over all classes.
    seed : int
        The same seed draws the same places, in whatever chunks the map comes.
    allocation : "area", "equal" or mapping
        Places by area with a minimum for small classes, the same number for each class, or the number of each by its
        code.
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
    if map.dims != ("y", "x") or map.dtype.kind not in "iu":
        raise LabelError(
            f"the map has dims {map.dims} of {map.dtype}; expected class codes (y, x): choose with map.isel(time=0)"
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
    from dask import compute, delayed

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
    codes = block.ravel().astype("int64")
    if codes.size and (codes.min() < 0 or codes.max() > NODATA):
        raise LabelError(f"the map holds codes from {codes.min()} to {codes.max()}; class codes are 0 to {NODATA - 1}")
    at = ((row + np.arange(block.shape[0]))[:, None] * width + column + np.arange(block.shape[1])).ravel()
    drawn = np.empty(codes.size, _DRAW)
    drawn["key"], drawn["at"], drawn["code"] = _keys(at, seed), at, codes
    pixels = np.bincount(codes, minlength=NODATA + 1)
    return pixels, _smallest(drawn[codes != NODATA], most)


def _joined(parts: list[tuple[Array, Array]], most: int) -> tuple[Array, Array]:
    return np.sum([pixels for pixels, _ in parts], axis=0), _smallest(np.concatenate([d for _, d in parts]), most)


def _smallest(drawn: Array, most: int) -> Array:
    parts = [_first(drawn[drawn["code"] == code], most) for code in np.unique(drawn["code"])]
    return np.concatenate(parts) if parts else drawn


def _first(drawn: Array, places: int) -> Array:
    if len(drawn) > places:
        drawn = drawn[np.argpartition(drawn["key"], places)[:places]] if places else drawn[:0]
    return drawn[np.argsort(drawn["key"])]


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
        wanted = dict(zip(there, _whole(np.full(len(there), n / len(there)), n).tolist(), strict=True))
    elif allocation == "area":
        wanted = dict(zip(there, allocate(pixels[there], n, minimum=minimum).tolist(), strict=True))
    else:
        raise LabelError(f"allocation={allocation!r}; expected 'area', 'equal' or a mapping of codes to numbers")
    for code, places in wanted.items():
        if not 0 <= places <= (pixels[code] if 0 <= code < NODATA else 0):
            raise LabelError(
                f"{places} places of class {code}, which has {pixels[code] if 0 <= code < NODATA else 0} pixels; ask "
                "for fewer with n= or allocation="
            )
    return wanted


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
