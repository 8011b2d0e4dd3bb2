"""How far mapped fractions are from the truth, by a reference sample.

In: sums on a climate grid, and places of a map with the class that a reference gives them. Out: a standard error for
every class and cell. Errors of neighbouring pixels go together, so pixels are never counted as independent trials.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xgfm.climate.globe import WGS84, transformer
from xgfm.climate.sums import CellSums
from xgfm.errors import LabelError

if TYPE_CHECKING:
    import pandas as pd

Array = np.ndarray[Any, Any]
PAIRS = 100
"""Pairs of places in one cell below which nothing is said of how errors go together."""
_COLUMNS = ("lon", "lat", "code", "reference")


def cell_errors(sums: CellSums, sample: pd.DataFrame) -> Array:
    """Return the standard error of the mapped fractions ``(class, time, lat, lon)``.

    Parameters
    ----------
    sums
        In memory.
    sample
        Of `stratified_sample`, with the class at each place in ``reference``: a code or a name.

    Returns
    -------
    ndarray
        Root of three squares. What the map's mean error is in a cell of these classes (by the error matrix); how well
        the sample knows that; and how much a cell's own mean error strays from it: the covariance of the errors of two
        places in one cell, over all such pairs, weighted by the area that places stand for.

    Raises
    ------
    LabelError
        For missing columns, unknown classes, a mapped class with fewer than two places, or too few pairs of places in
        one cell to tell how errors go together.
    """
    mapped, truly, cell, weight = _read(sums, sample)
    count = len(sums.classes)
    seen = np.bincount(mapped, minlength=count)
    area = sums.area.sum(axis=(1, 2, 3))
    if few := [sums.classes[i] for i in np.flatnonzero((area > 0) & (seen < 2))]:
        raise LabelError(f"the sample has fewer than two places on {few}; draw more: stratified_sample(minimum=)")
    matrix = np.zeros((count, count))
    np.add.at(matrix, (mapped, truly), 1)
    rates = matrix / np.maximum(seen, 1)[:, None]
    rates[seen == 0] = np.eye(count)[seen == 0]
    spread = rates * (1 - rates) / np.maximum(seen - 1, 1)[:, None]
    share = sums.area / np.where(sums.valid_area > 0, sums.valid_area, np.nan)
    mean = np.einsum("itab,ik->ktab", share, rates - np.eye(count))
    known = np.einsum("itab,ik->ktab", share**2, spread)
    residual = (truly[:, None] == np.arange(count)) - rates[mapped]
    return np.asarray(np.sqrt(mean**2 + known + _between(residual, cell, weight)[:, None, None, None]))


def _between(residual: Array, cell: Array, weight: Array) -> Array:
    """Return the variance between cells of the mean error of each class ``(class,)``: pairs of places in one cell."""
    weighted = residual * weight[:, None]
    cells, number = np.unique(cell, return_inverse=True)
    places = np.bincount(number)
    pairs = int((places * (places - 1) // 2).sum())
    if pairs < PAIRS:
        raise LabelError(
            f"{len(residual)} places lie in {len(cells)} cells, {pairs} pairs of them in one cell; {PAIRS} are needed "
            "to tell how errors go together. Draw more places, or give a coarser grid="
        )
    total = np.stack([np.bincount(number, w) for w in weighted.T], axis=1)
    alone = np.stack([np.bincount(number, w) for w in (weighted**2).T], axis=1)
    norm = np.bincount(number, weight) ** 2 - np.bincount(number, weight**2)
    return np.asarray(np.maximum((total**2 - alone).sum(axis=0) / norm.sum(), 0.0))


def _read(sums: CellSums, sample: pd.DataFrame) -> tuple[Array, Array, Array, Array]:
    """Return of each place: class on the map, class in the reference, cell, and the area that it stands for."""
    if missing := [n for n in _COLUMNS if n not in sample.columns]:
        raise LabelError(
            f"the sample lacks the columns {missing}; expected what stratified_sample drew, and in 'reference' the "
            "class that was found at each place"
        )
    code = {v: i for i, v in enumerate(sums.values)} | {n: i for i, n in enumerate(sums.classes)}
    mapped, truly = (np.array([code.get(v, -1) for v in sample[n].tolist()]) for n in ("code", "reference"))
    if (wrong := (mapped < 0) | (truly < 0)).any():
        row = sample.iloc[int(np.flatnonzero(wrong)[0])]
        raise LabelError(
            f"a place of the sample has code {row['code']!r} and reference {row['reference']!r}; expected classes of "
            f"the map: {dict(zip(sums.values, sums.classes, strict=True))}"
        )
    cell = _cells(sums, sample["lon"].to_numpy("float64"), sample["lat"].to_numpy("float64"))
    if (outside := cell < 0).any():
        raise LabelError(f"{outside.sum()} of {len(cell)} places of the sample lie off the map's cells; draw from it")
    seen = np.bincount(mapped, minlength=len(sums.classes))
    area = sums.area.sum(axis=(1, 2, 3))
    return mapped, truly, cell, np.asarray((area / np.maximum(seen, 1))[mapped])


def _cells(sums: CellSums, lon: Array, lat: Array) -> Array:
    """Return the number of the cell of each place; -1 off the grid."""
    grid = sums.grid
    rows, columns = grid.shape
    if grid.geobox is None:
        edges = grid.lon_edges
        west = (edges[0] + edges[-1]) / 2 - 180
        row = np.searchsorted(grid.lat_edges, lat, "right") - 1
        column = np.searchsorted(edges, west + (lon - west) % 360, "right") - 1
    else:
        x, y = transformer(WGS84, str(grid.geobox.crs)).transform(lon, lat)
        at = ~grid.geobox.transform
        row, column = (np.floor(v).astype("int64") for v in (at.d * x + at.e * y + at.f, at.a * x + at.b * y + at.c))
    good = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    return np.where(good, row * columns + column, -1)
