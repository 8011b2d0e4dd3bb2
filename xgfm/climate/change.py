"""Change between two maps: how much ground went from which class to which, and where.

In: two maps of one grid and legend. Out: a table of areas, gains and losses, a lazy map of changes, and, from a
reference sample of it, estimates with their uncertainty. Maps are read once, block by block. Gains, losses and net
change after Pontius et al. 2004, "Detecting important categorical land changes while accounting for persistence",
Agriculture, Ecosystems and Environment 101, 251-268.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xgfm import cf
from xgfm.climate.cells import MISSING, UNKNOWN
from xgfm.climate.globe import Surface, area_factor
from xgfm.climate.stack import Classified, Map, check_same, classified
from xgfm.errors import CubeError, LabelError
from xgfm.grid import with_grid

if TYPE_CHECKING:
    import pandas as pd
    from odc.geo.geobox import GeoBox

Array = np.ndarray[Any, Any]
KM2 = 1e6
"""Square metres."""
STRATA = ("other", "loss", "gain", "kept")
"""Of one class: in neither map, in the first alone, in the second alone, in both."""
_STABLE = "#e6e6e6"
"""Colour of what stays: light, so that changes stand out in the colour of what they became."""
_AT_ONCE = 1 << 20
"""Pixels of a block that are counted at once."""
_TOLERANCE = np.array([1e-6])
"""Of a pixel's area, in m2."""


@dataclass(frozen=True)
class Change:
    """What two maps say of the ground that has a class in both."""

    classes: tuple[str, ...]
    table: Array
    """``(from, to)`` m2 on the ground."""
    unseen: float
    """m2 that lack a class in one of the maps."""
    map: xr.DataArray
    """``(y, x)``, lazy: ``from * classes + to``, with flags; 255 (or 65535, for more than 15 classes) without a class
    in one of the maps."""

    @property
    def before(self) -> Array:
        """Area of each class in the first map, m2."""
        return np.asarray(self.table.sum(1))

    @property
    def after(self) -> Array:
        """Area of each class in the second map, m2."""
        return np.asarray(self.table.sum(0))

    @property
    def gain(self) -> Array:
        """Area that became each class, m2."""
        return np.asarray(self.after - np.diag(self.table))

    @property
    def loss(self) -> Array:
        """Area that was each class and is another, m2."""
        return np.asarray(self.before - np.diag(self.table))

    @property
    def net(self) -> Array:
        """Gain less loss of each class, m2."""
        return self.gain - self.loss

    @property
    def gross(self) -> Array:
        """Gain and loss of each class together, m2; twice the smaller of the two is exchange of place."""
        return self.gain + self.loss

    def from_to(self) -> pd.DataFrame:
        """Return the table in km2: from (rows) to (columns)."""
        import pandas as pd

        start, end = (pd.Index(self.classes, name=name) for name in ("from", "to"))
        return pd.DataFrame(self.table / KM2, index=start, columns=end)

    def to_pandas(self) -> pd.DataFrame:
        """Return a row for each class: before, after, gain, loss, net and gross, in km2."""
        import pandas as pd

        names = ("before", "after", "gain", "loss", "net", "gross")
        columns = {name: getattr(self, name) / KM2 for name in names}
        return pd.DataFrame(columns, index=pd.Index(self.classes, name="class"))

    def of(self, name: str) -> xr.DataArray:
        """Return the map of what became of one class: other, loss, gain, kept. Lazy.

        Its four strata are what to draw a reference sample from, `sample.stratified_sample`: of every pair of classes
        there would be too few places.

        Parameters
        ----------
        name
            A class.
        """
        k, count = self._number(name), len(self.classes)
        start, end = np.divmod(np.arange(count * count), count)
        table = np.full(np.iinfo(self.map.dtype).max + 1, cf.NODATA, "uint8")
        table[: count * count] = (start == k) + 2 * (end == k)
        out = self.map.copy(data=self.map.chunk().data.map_blocks(_looked_up, table=table, dtype="uint8"))
        out.attrs = {
            "long_name": f"change of {self.classes[k]}",
            "flag_values": list(range(len(STRATA))),
            "flag_meanings": " ".join(STRATA),
            "flag_colors": f"{_STABLE} #d7191c #2c7bb6 #8c8c8c",
            "class_names": list(STRATA),
        }
        out.encoding = {**cf.fill_encoding(out.dtype), "grid_mapping": cf.GRID_MAPPING}
        return out.rename("change")

    def estimate(self, places: pd.DataFrame, *, of: str | None = None, confidence: float = 0.95) -> pd.DataFrame:
        """Estimate gains, losses and net change from a reference sample: counting pixels adds up a map's mistakes.

        Parameters
        ----------
        places
            Of `sample.stratified_sample` on `map`, or on `of` a class, with two columns more: ``before`` and ``after``,
            the class that the reference says at each date, by name.
        of
            The class whose strata the places were drawn from; None for those of `map`.
        confidence
            Of the intervals.

        Returns
        -------
        DataFrame
            A row for each class (with ``of``, for that class): ``before``, ``after``, ``gain``, ``loss`` and ``net`` in
            km2, and for each half the width of its interval, ``..._ci``.

        Raises
        ------
        LabelError
            For places without a reference, of other classes or strata, or fewer than two in a stratum that has area.

        Notes
        -----
        The stratified estimator of Olofsson et al. 2014 (see `area`) of indicators: for gains and losses it gives the
        numbers of `area.estimate_areas`. Net change has an error of its own: gain and loss come from one sample.
        """
        import pandas as pd

        if not 0 < confidence < 1:
            raise LabelError(f"confidence={confidence}; give a share between 0 and 1, such as 0.95")
        strata = self.table.ravel() if of is None else self._strata(of)
        start, end = (self._reference(places, name) for name in ("before", "after"))
        rows = range(len(self.classes)) if of is None else [self._number(of)]
        said = np.stack([np.array([start == k, end == k]) for k in rows]).astype("float64")
        was, became = said[:, 0], said[:, 1]
        values = {"before": was, "after": became, "gain": became * (1 - was), "loss": was * (1 - became)}
        values["net"] = values["gain"] - values["loss"]
        factor = NormalDist().inv_cdf((1 + confidence) / 2)
        columns: dict[str, Array] = {}
        for name, each in values.items():
            total, error = stratified_total(each.T, places["code"].to_numpy(), strata)
            columns |= {name: total / KM2, f"{name}_ci": factor * error / KM2}
        return pd.DataFrame(columns, index=pd.Index([self.classes[k] for k in rows], name="class"))

    def _strata(self, name: str) -> Array:
        """Return the area of each stratum of a class, m2."""
        k = self._number(name)
        loss, gain, kept = self.loss[k], self.gain[k], self.table[k, k]
        return np.array([self.table.sum() - loss - gain - kept, loss, gain, kept])

    def _number(self, name: str) -> int:
        if name not in self.classes:
            raise LabelError(f"no class {name!r}; the maps have {list(self.classes)}")
        return self.classes.index(name)

    def _reference(self, places: pd.DataFrame, name: str) -> Array:
        if name not in places or "code" not in places:
            raise LabelError(
                f"the places have the columns {list(places)}; expected those of stratified_sample, and the reference's "
                "classes as before and after"
            )
        unknown = sorted({str(v) for v in places[name] if v not in self.classes})
        if unknown:
            raise LabelError(f"the column {name!r} holds {unknown}; expected classes of the maps, {list(self.classes)}")
        return np.array([self.classes.index(v) for v in places[name]])

    def __str__(self) -> str:
        total = self.table.sum()
        changed = total - np.trace(self.table)
        head = f"{changed / KM2:.6g} of {total / KM2:.6g} km2 changed ({changed / max(total, 1e-300):.1%})"
        return f"{head}; {self.unseen / KM2:.6g} km2 lack a class in one of the maps\n{self.to_pandas().to_string()}"


def change(before: Map, after: Map | None = None, *, variable: str | None = None) -> Change:
    """Compare two maps of one grid and legend.

    Parameters
    ----------
    before, after : Dataset or DataArray
        Maps of classes ``(y, x)``. One map of two times (`stack_maps`) alone is both.
    variable : str, optional
        The map of classes, where there are several.

    Returns
    -------
    Change
        The table is computed, block by block, with the area of pixels on the ground; the map is lazy.

    Raises
    ------
    CubeError
        For more or fewer times than two maps have.
    GridError, LabelError
        For maps of different grids or legends.
    """
    one, other = _two(before, after, variable)
    check_same(one, other)
    names = one.legend.names
    table = _table(one, other)
    seen = table[: len(names), : len(names)]
    return Change(names, seen, float(table.sum() - seen.sum()), _change_map(one, other))


def stratified_total(values: Array, codes: Array, strata: Array) -> tuple[Array, Array]:
    """Estimate totals over an area, and their standard errors, from places drawn at random within strata.

    Parameters
    ----------
    values
        ``(place, what)``.
    codes
        Stratum of each place ``(place,)``.
    strata
        Area of each stratum.

    Returns
    -------
    total, error
        ``(what,)``, in units of value times area.

    Raises
    ------
    LabelError
        For a place of no stratum, or a stratum with area and fewer than two places.
    """
    places = np.bincount(codes, minlength=len(strata)) if codes.size and codes.min() >= 0 else np.zeros(0, int)
    if len(places) != len(strata) or ((strata <= 0) & (places > 0)).any():
        raise LabelError(
            f"the places are of the strata {sorted(set(codes.tolist()))}, and those with area are "
            f"{np.flatnonzero(strata > 0).tolist()}; name the class whose strata they are with of="
        )
    few = [int(n) for n in np.flatnonzero((strata > 0) & (places < 2))]
    if few:
        raise LabelError(
            f"the strata {few[:10]} have area and fewer than two places; draw from change.of(name), of four strata"
        )
    total, variance = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    for stratum in np.flatnonzero(strata > 0):
        here = values[codes == stratum]
        total += strata[stratum] * here.mean(0)
        variance += strata[stratum] ** 2 * here.var(0, ddof=1) / len(here)
    return total, np.sqrt(variance)


def _two(before: Map, after: Map | None, variable: str | None) -> tuple[Classified, Classified]:
    first = classified(before, variable)
    if after is not None:
        return _flat(first), _flat(classified(after, variable))
    steps = first.codes.sizes.get("time", 1)
    if steps != 2:
        raise CubeError(f"one map alone needs two times, and this has {steps}; choose with map.isel(time=[0, -1])")
    return _flat(first, 0), _flat(first, 1)


def _flat(map: Classified, step: int = -1) -> Classified:
    if step < 0 and map.codes.sizes.get("time", 1) != 1:
        raise CubeError(f"a map has {map.codes.sizes['time']} times; choose one with map.isel(time=0)")
    codes = map.codes.isel(time=step, drop=True) if "time" in map.codes.dims else map.codes
    return replace(map, codes=codes)


def _indexes(map: Classified) -> Array:
    """Return the number in the legend of each code ``(256,)``; one more for nodata, two more for codes of no class."""
    table, count = map.legend.table, len(map.legend.names)
    return np.select([table == MISSING, table == UNKNOWN], [count, count + 1], table).astype("int64")


def _table(one: Classified, other: Classified) -> Array:
    """Return the area of each pair ``(from, to)``, m2; the last of each is what has no class."""
    import dask.array as da

    count = len(one.legend.names) + 1
    first, second = _aligned(one, other)
    parts = da.map_blocks(
        _table_of_block,
        first,
        second,
        indexes=_indexes(one),
        count=count,
        box=one.box,
        new_axis=[2, 3],
        chunks=(*((1,) * n for n in first.numblocks), (count,), (count,)),
        dtype="float64",
        meta=np.empty((0, 0, 0, 0)),
    )
    return np.asarray(parts.sum(axis=(0, 1)).compute())


def _aligned(one: Classified, other: Classified) -> tuple[Any, Any]:
    """Return the pixels of both as Dask arrays with the chunks of the first."""
    import dask.array as da

    first = one.codes.data if one.codes.chunks else da.from_array(one.codes.values, chunks=4096)
    second = other.codes.data if other.codes.chunks else da.from_array(other.codes.values, chunks=first.chunks)
    return first, second.rechunk(first.chunks)


def _table_of_block(
    first: Array, second: Array, *, indexes: Array, count: int, box: GeoBox, block_info: Any = None
) -> Array:
    (top, bottom), (left, right) = block_info[0]["array-location"]
    areas = Surface(area_factor(box), (top, bottom), (left, right), _TOLERANCE)
    columns = np.arange(left, right) + 0.5
    out = np.zeros(count * count)
    step = max(_AT_ONCE // max(right - left, 1), 1)
    for row in range(0, bottom - top, step):
        start, end = indexes[first[row : row + step]], indexes[second[row : row + step]]
        if max(start.max(initial=0), end.max(initial=0)) >= count:
            raise LabelError("a map holds codes that its flag_values lack; mend its legend, or its nodata value")
        area = areas(top + row + np.arange(len(start)) + 0.5, columns)[0]
        out += np.bincount((start * count + end).ravel(), area.ravel(), count * count)
    return out.reshape(1, 1, count, count)


def _change_map(one: Classified, other: Classified) -> xr.DataArray:
    import dask.array as da

    names = one.legend.names
    count = len(names)
    dtype = np.dtype("uint8" if count * count <= cf.NODATA else "uint16")
    first, second = _aligned(one, other)
    codes = da.map_blocks(_pairs, first, second, indexes=_indexes(one), count=count, dtype=dtype, to=dtype)
    array = with_grid(xr.DataArray(codes, dims=("y", "x"), name="change"), one.box)
    words, places = cf.flag_words(names), range(count)
    colors = one.legend.colors or ("#d7191c",) * count
    array.attrs = {
        "long_name": "change between two maps",
        "flag_values": list(range(count * count)),
        "flag_meanings": " ".join(f"{words[i]}_to_{words[j]}" for i in places for j in places),
        "flag_colors": " ".join(_STABLE if i == j else colors[j] for i in places for j in places),
        "class_names": [f"{names[i]} to {names[j]}" for i in places for j in places],
    }
    fill = np.iinfo(dtype).max
    array.encoding = {"_FillValue": fill, "fill_value": fill, "grid_mapping": cf.GRID_MAPPING}
    return array


def _looked_up(block: Array, *, table: Array) -> Array:
    return np.asarray(table[block])


def _pairs(first: Array, second: Array, *, indexes: Array, count: int, to: np.dtype[Any]) -> Array:
    start, end = indexes[first], indexes[second]
    return np.where((start < count) & (end < count), start * count + end, np.iinfo(to).max).astype(to)
