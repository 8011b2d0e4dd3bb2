"""Which chips to cut, and which of them to train, validate and test on.

In: label arrays. Out: a plan, a table with a row for each chip: where it lies, what is labelled in it, its spatial
group and its split. Labels are computed block by block; a few numbers for each chip come back.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from xgfm.errors import LabelError
from xgfm.grid import geobox_of, pixel_size_m
from xgfm.train.sampling.autocorrelation import Correlogram, correlogram
from xgfm.train.sampling.counts import candidates, common_classes, count_columns
from xgfm.train.sampling.leakage import LeakageReport, LeakageWarning, leakage, report
from xgfm.train.sampling.places import Places, block_ids
from xgfm.train.sampling.split_map import draw_splits
from xgfm.train.sampling.splits import NAMES, NONE, Deal, deal, drawn

__all__ = ["LeakageReport", "LeakageWarning", "count_columns", "draw_splits", "leakage", "plan_chips", "split_table"]

SPLITS = ("blocks", "tile", "year", "random")
_GROUPS = 12
"""Blocks that there should be at least: fewer cannot be dealt out to three splits."""
_SIDES = (4, 3, 2, 1)
"""Sides of a block that are tried, in chips or ranges, whichever is longer."""


def plan_chips(
    labels: xr.DataArray | Sequence[xr.DataArray],
    *,
    size: int,
    stride: int | None = None,
    split: str = "blocks",
    shares: tuple[float, float, float] = (0.7, 0.15, 0.15),
    block: float | None = None,
    buffer: float | None = None,
    balance: float = 0.0,
    chips: int | None = None,
    min_labelled: float = 0.0,
    allow_missing: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """Choose chips and deal them out to train, val and test.

    Parameters
    ----------
    labels : DataArray or sequence of DataArray
        What `labels` gave, of one or several cubes; ``(y, x)`` or ``(time, y, x)``.
    size : int
        Rows and columns of a chip.
    stride : int, optional
        Pixels from one chip to the next; by default `size`.
    split : str
        ``"blocks"``: square blocks of the ground, the same for every tile, zone and date. ``"tile"``: whole label
        arrays. ``"year"``: of the labels' time. ``"random"``: single chips; scores will be too good. Or the name of a
        coordinate of the labels: its values are groups, or are ``train``, ``val`` and ``test`` themselves.
    shares : tuple of float
        Of labelled pixels, for train, val and test; 0 for none.
    block : float, optional
        Side of a block in metres. By default four times the longer of a chip and the labels' autocorrelation range,
        less where that gives fewer than a dozen blocks, but never less than once.
    buffer : float, optional
        Metres: no val or test pixel lies nearer to a train pixel. Chips that do get the split ``"none"``. By default
        the autocorrelation range for blocks and tiles, and 0 otherwise: then only chips that overlap are left out, and
        with ``"random"`` and ``"year"`` none.
    balance : float
        0: chips as they come; 1: train chips drawn so that classes are alike. Needs `chips`.
    chips : int, optional
        How many to draw; by default all.
    min_labelled : float
        Least share of a chip's pixels that is labelled. A chip without a label is never taken.
    allow_missing : bool
        Let a split be without a class.
    seed : int
        The same seed, labels and options give the same plan.

    Returns
    -------
    DataFrame
        source (number of the label array), row, column (first pixel), step (of the labels' time; 0 without), x, y
        (centre, in the source's CRS), group, split (train, val, test, none), and ``n_<class>`` pixels of each class,
        or ``n_labelled``. Options, block, buffer and range in metres are in ``attrs``.

    Raises
    ------
    LabelError
        Options that cannot be, chips that do not fit, nothing labelled, a split without a class.

    Warns
    -----
    LeakageWarning
        Where val or test chips lie nearer to train chips than labels resemble each other.
    """
    arrays = [labels] if isinstance(labels, xr.DataArray) else list(labels)
    stride = size if stride is None else stride
    _check(size, stride, shares, balance, chips, min_labelled, block, buffer)
    names = count_columns(common_classes(arrays))
    table = candidates(arrays, size, stride)
    table = _labelled_enough(table, names, min_labelled * size * size)
    curve = correlogram(arrays)
    places = Places.of(table, [geobox_of(array) for array in arrays], size)
    reach = max(curve.range, size * max(pixel_size_m(box) for box in places.geoboxes))
    group, block = _groups(split, table, arrays, places, block, reach)
    buffer = _buffer(buffer, split, curve)
    near = _near(places, split, buffer)
    counts = table[names].to_numpy("int64")
    given = _given(split, table, arrays)
    number = deal(Deal(group, counts, near, shares), seed) if given is None else given
    table = table.assign(group=group, split=np.array(NAMES)[number])
    table = table[["source", "row", "column", "step", "x", "y", "group", "split", *names]]
    if chips is not None:
        rows = drawn(number, counts, shares, chips, balance, seed)
        table, places = table.iloc[rows].reset_index(drop=True), places.take(rows)
    table.attrs = {
        "size": size, "stride": stride, "split": split, "shares": list(shares), "block": block, "buffer": buffer,
        "balance": balance, "chips": chips, "min_labelled": min_labelled, "seed": seed, "range": curve.range,
    }  # fmt: skip
    _check_classes(table, names, shares, allow_missing=allow_missing)
    found = report(table, places, curve)
    if found.leaks:
        warnings.warn(f"train and test are too near to each other\n{found}", LeakageWarning, stacklevel=2)
    return table


def split_table(plan: pd.DataFrame) -> pd.DataFrame:
    """Return what each split holds: chips, groups, and labelled pixels of each class.

    Parameters
    ----------
    plan : DataFrame
        What `plan_chips` returned.

    Returns
    -------
    DataFrame
        A row for each split, ``none`` last where there is a buffer.
    """
    names = [c for c in plan.columns if str(c).startswith("n_")]
    by = plan.groupby("split")
    table = by[names].sum()
    table.insert(0, "chips", by.size())
    table.insert(1, "groups", by["group"].nunique())
    return table.reindex([n for n in NAMES if n in table.index])


def _check(
    size: int, stride: int, shares: tuple[float, ...], balance: float, chips: int | None, min_labelled: float,
    block: float | None, buffer: float | None,
) -> None:  # fmt: skip
    if size < 1 or stride < 1:
        raise LabelError(f"size is {size} and stride {stride}; both are whole numbers of pixels, at least 1")
    if len(shares) != 3 or min(shares) < 0 or not np.isclose(sum(shares), 1) or not shares[0]:
        raise LabelError(f"shares are {shares}; give those of train, val and test, which sum to 1: (0.7, 0.15, 0.15)")
    if not 0 <= balance <= 1:
        raise LabelError(f"balance is {balance}; it goes from 0, chips as they come, to 1, classes alike")
    if balance and chips is None:
        raise LabelError(f"balance={balance} chooses among chips; say how many of them, chips=")
    if chips is not None and chips < 1:
        raise LabelError(f"chips is {chips}; give at least 1, or leave it out for all")
    if not 0 <= min_labelled <= 1:
        raise LabelError(f"min_labelled is {min_labelled}; it is a share of a chip's pixels, from 0 to 1")
    if (block is not None and not block > 0) or (buffer is not None and not buffer >= 0):
        raise LabelError(f"block is {block} and buffer {buffer}; both are metres, block above 0")


def _labelled_enough(table: pd.DataFrame, names: list[str], least: float) -> pd.DataFrame:
    labelled = table[names].sum(axis=1)
    kept = table[labelled >= least].reset_index(drop=True)
    if not len(kept):
        raise LabelError(
            f"no chip has {least:.0f} labelled pixels, the best has {int(labelled.max())}; lower min_labelled="
        )
    return kept


# ---- groups


def _groups(
    split: str, table: pd.DataFrame, arrays: list[xr.DataArray], places: Places, block: float | None, reach: float
) -> tuple[NDArray[np.int64], float | None]:
    """The group of each chip, and the side of a block."""
    if split == "random":
        return np.arange(len(table)), None
    if split == "tile":
        return _several(table["source"].to_numpy("int64"), "label array; split by blocks"), None
    if split == "year":
        return _several(_years(table, arrays), "year; split by blocks"), None
    if split != "blocks":
        codes, _ = pd.factorize(_coordinate(split, table, arrays), sort=True)
        return _several(codes.astype("int64"), f"value of {split!r}; split by blocks"), None
    lon, lat = places.lonlat()
    if block is not None:
        return _several(block_ids(lon, lat, block), f"block of {block:g} m; give a smaller block="), block
    ids = np.empty(0, "int64")
    for side in _SIDES:
        block = side * reach
        ids = block_ids(lon, lat, block)
        if len(np.unique(ids)) >= _GROUPS:
            break
    return _several(ids, f"block of {block:.0f} m; label more, take smaller chips (size=), or give block="), block


def _several(groups: NDArray[np.int64], what: str) -> NDArray[np.int64]:
    if len(np.unique(groups)) < 2:
        raise LabelError(f"all chips lie in one {what}")
    return groups


def _years(table: pd.DataFrame, arrays: list[xr.DataArray]) -> NDArray[np.int64]:
    years = np.empty(len(table), "int64")
    for number, array in enumerate(arrays):
        if "time" not in array.coords:
            raise LabelError(
                "split='year' needs labels with a time; make them with time_column=, or assign_coords(time=)"
            )
        of_steps = np.atleast_1d(array["time"].dt.year.values)
        mine = table["source"].to_numpy() == number
        years[mine] = of_steps[table.loc[mine, "step"].to_numpy()]
    return years


def _coordinate(name: str, table: pd.DataFrame, arrays: list[xr.DataArray]) -> NDArray[np.object_]:
    """Value of a coordinate for each chip: of its source, its step, or at the pixel nearest to its centre."""
    values = np.empty(len(table), object)
    for number, array in enumerate(arrays):
        if name not in array.coords:
            raise LabelError(
                f"split={name!r} is none of {', '.join(SPLITS)}, and no coordinate of the labels; they have "
                f"{', '.join(map(str, array.coords))}"
            )
        mine = np.flatnonzero(table["source"].to_numpy() == number)
        rows = table.iloc[mine]
        found = array[name]
        if "time" in found.dims:
            found = found.isel(time=xr.DataArray(rows["step"].to_numpy(), dims="chip"))
        at = {d: xr.DataArray(rows[d].to_numpy(), dims="chip") for d in ("y", "x") if d in found.dims}
        values[mine] = found.sel(at, method="nearest").values if at else found.values
    return values


def _given(split: str, table: pd.DataFrame, arrays: list[xr.DataArray]) -> NDArray[np.int8] | None:
    """Splits that a coordinate names itself."""
    if split in SPLITS:
        return None
    values = _coordinate(split, table, arrays)
    if not set(values) <= set(NAMES):
        return None
    return np.array([NAMES.index(v) for v in values], "int8")


# ---- distances


def _buffer(buffer: float | None, split: str, curve: Correlogram) -> float:
    if buffer is not None:
        return buffer
    return curve.range if split in ("blocks", "tile") else 0.0


def _near(places: Places, split: str, buffer: float) -> NDArray[np.int64]:
    """Pairs of chips that no split may part."""
    if split in ("random", "year") and not buffer:
        return np.empty((0, 2), "int64")
    half = min(pixel_size_m(box) for box in places.geoboxes) / 2
    return places.near(max(buffer, half))


def _check_classes(plan: pd.DataFrame, names: list[str], shares: tuple[float, ...], *, allow_missing: bool) -> None:
    """Refuse a split without chips, or without one of the classes."""
    table = split_table(plan)
    nowhere = [n.removeprefix("n_") for n in names if not table[n].sum()]
    if nowhere and not allow_missing:
        raise LabelError(
            f"class {', '.join(map(repr, nowhere))} has no sample in any split: it is labelled nowhere; take it out of "
            f"the legend, legend.merge({{{nowhere[0]!r}: None}}), or pass allow_missing=True"
        )
    for name, share in zip(NAMES[:NONE], shares, strict=True):
        if not share:
            continue
        if name not in table.index:
            raise LabelError(
                f"split {name!r} is empty: {len(plan)} chips in {plan['group'].nunique()} groups with a buffer of "
                f"{plan.attrs['buffer']:.0f} m; give a smaller buffer=, block= or size=, or 0 as its share in shares="
            )
        lacking = [n.removeprefix("n_") for n in names if not table.loc[name, n]]
        if lacking and not allow_missing:
            raise LabelError(
                f"class {', '.join(map(repr, lacking))} has no sample in split {name!r}; label more of it, merge it "
                "(legend.merge), choose a smaller block= or buffer= or another seed=, or pass allow_missing=True"
            )
