"""Where chips can lie, and what is labelled in each.

In: label arrays and the size and stride of chips. Out: a table with a row for each chip that holds a label. Labels are
computed, block by block; what comes back is a few numbers for each chip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from xgfm.cf import NODATA
from xgfm.errors import LabelError
from xgfm.models.spec import ClassInfo
from xgfm.train.labels.legend import classes_of

LABELLED = "labelled"
_BLOCK = 2048
"""Pixels a side of the blocks that are counted at once."""


def count_columns(classes: Sequence[ClassInfo]) -> list[str]:
    """Return the names of the columns that hold pixel counts: ``n_<class>``, ``n_labelled`` for a regression."""
    return [f"n_{info.name}" for info in classes] or [f"n_{LABELLED}"]


def common_classes(labels: Sequence[xr.DataArray]) -> tuple[ClassInfo, ...]:
    """Return the classes of all label arrays, which must be the same.

    Raises
    ------
    LabelError
        Where they are not, or an array is none of labels.
    """
    if not labels:
        raise LabelError("no labels were given; make them with labels(source, cube)")
    for array in labels:
        if array.dims not in (("y", "x"), ("time", "y", "x")):
            raise LabelError(f"labels have dims {array.dims}; expected (y, x) or (time, y, x)")
    first = classes_of(labels[0])
    for number, array in enumerate(labels[1:], 1):
        if [c.name for c in classes_of(array)] != [c.name for c in first]:
            raise LabelError(
                f"labels 0 and {number} have different classes, {[c.name for c in first]} and "
                f"{[c.name for c in classes_of(array)]}; make both with the same legend="
            )
    return first


def candidates(labels: Sequence[xr.DataArray], size: int, stride: int) -> pd.DataFrame:
    """Return every chip that holds a label.

    Parameters
    ----------
    labels : sequence of DataArray
        ``(y, x)`` or ``(time, y, x)``.
    size, stride : int
        Pixels. Chips start at the upper left corner of each array.

    Returns
    -------
    DataFrame
        source, row, column, step, x, y (centre, in the CRS of the source), and pixel counts by class.

    Raises
    ------
    LabelError
        Chips that fit into no array, or labels without a labelled pixel.
    """
    classes = common_classes(labels)
    tables = [_of_source(number, array, size, stride, len(classes)) for number, array in enumerate(labels)]
    if not any(map(len, tables)):
        shapes = ", ".join(f"{a.sizes['y']} x {a.sizes['x']}" for a in labels[:5])
        raise LabelError(f"chips of {size} x {size} pixels do not fit into labels of {shapes}; choose a smaller size=")
    table = pd.concat([t for t in tables if len(t)], ignore_index=True)
    table.columns = pd.Index([*table.columns[:6], *count_columns(classes)])
    kept = table[table[count_columns(classes)].sum(axis=1) > 0].reset_index(drop=True)
    if not len(kept):
        raise LabelError("no pixel is labelled in any chip; look at the labels' place, dates and legend")
    return kept


def _of_source(number: int, labels: xr.DataArray, size: int, stride: int, classes: int) -> pd.DataFrame:
    steps = [labels] if "time" not in labels.dims else [labels.isel(time=t) for t in range(labels.sizes["time"])]
    tables = [_of_step(step, size, stride, classes).assign(step=index) for index, step in enumerate(steps)]
    table = pd.concat(tables, ignore_index=True)
    table.insert(0, "source", number)
    counts = [c for c in table.columns if str(c).startswith("n_")]
    return table[["source", "row", "column", "step", "x", "y", *counts]]


def _of_step(labels: xr.DataArray, size: int, stride: int, classes: int) -> pd.DataFrame:
    counts = _sliding(_cells(labels, math.gcd(size, stride), classes), size, stride)
    rows, columns = np.meshgrid(*(np.arange(n) * stride for n in counts.shape[:2]), indexing="ij")
    y, x = labels["y"].values.astype("float64"), labels["x"].values.astype("float64")
    last = size - 1
    table = {
        "row": rows.ravel(),
        "column": columns.ravel(),
        "x": ((x[columns] + x[columns + last]) / 2).ravel(),
        "y": ((y[rows] + y[rows + last]) / 2).ravel(),
    }
    return pd.DataFrame(table | {f"n_{k}": counts[..., k].ravel() for k in range(counts.shape[2])})


def _sliding(cells: NDArray[np.int64], size: int, stride: int) -> NDArray[np.int64]:
    """Counts of chips ``(row, column, class)`` from those of cells."""
    cell = math.gcd(size, stride)
    width, step = size // cell, stride // cell
    total = np.zeros((cells.shape[0] + 1, cells.shape[1] + 1, cells.shape[2]), "int64")
    total[1:, 1:] = cells.cumsum(0).cumsum(1)
    low, high = total[:-width:step, :, :], total[width::step, :, :]
    count = min(len(low), len(high))
    down = high[:count] - low[:count]
    low, high = down[:, :-width:step], down[:, width::step]
    count = min(low.shape[1], high.shape[1])
    counts: NDArray[np.int64] = high[:, :count] - low[:, :count]
    return counts


def _cells(labels: xr.DataArray, cell: int, classes: int) -> NDArray[np.int64]:
    """Pixels of each class in square cells, ``(row, column, class)``."""
    high, wide = (labels.sizes[d] // cell for d in ("y", "x"))
    whole = labels.isel(y=slice(0, high * cell), x=slice(0, wide * cell)).data
    if isinstance(whole, np.ndarray):
        return _counted(whole, cell, classes)
    import dask.array as da

    block = max(1, _BLOCK // cell) * cell
    lazy = whole.rechunk((block, block))
    chunks = (*(tuple(c // cell for c in sizes) for sizes in lazy.chunks), (max(classes, 1),))
    counted = da.map_blocks(
        _counted, lazy, cell, classes, chunks=chunks, new_axis=2, dtype="int64", meta=np.empty((0, 0, 0), "int64")
    )
    return np.asarray(counted.compute())


def _counted(values: NDArray[Any], cell: int, classes: int) -> NDArray[np.int64]:
    high, wide = (size // cell for size in values.shape)
    cut = values.reshape(high, cell, wide, cell)
    if not classes:
        labelled: NDArray[np.int64] = (~np.isnan(cut)).sum(axis=(1, 3))[..., None]
        return labelled
    strange = np.setdiff1d(np.unique(values), [*range(classes), NODATA])
    if strange.size:
        raise LabelError(
            f"labels hold {strange.tolist()}, but have {classes} classes; make them with labels(source, cube)"
        )
    return np.stack([(cut == k).sum(axis=(1, 3)) for k in range(classes)], axis=-1)
