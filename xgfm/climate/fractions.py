"""Class fractions on a climate grid.

In: class maps of any size, as results in memory, lazy ones or stores, of one grid or of many tiles. Out: a Dataset on
the climate grid with the share of each class in each cell. Lazy: when it is computed, each block of a map is read once
and becomes a few sums, which are added up in a tree.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from xgfm.climate.cells import Partial, Recipe, block_sums, merged
from xgfm.climate.grids import ClimateGrid, target_grid
from xgfm.climate.inputs import ClassMap, Result, class_map, open_maps
from xgfm.climate.output import described
from xgfm.climate.ownership import claims_of, tile_names
from xgfm.climate.sample_error import cell_errors
from xgfm.climate.sums import CellSums
from xgfm.errors import CubeError, GridError, LabelError

if TYPE_CHECKING:
    from os import PathLike

    import pandas as pd
    from odc.geo.geobox import GeoBox

Array = np.ndarray[Any, Any]
_JOINED = 16
"""Partials that are added up at once."""


def to_climate(
    result: Result | Mapping[str, Result] | Iterable[Result],
    grid: str | PathLike[str] | xr.Dataset | GeoBox | ClimateGrid = "0.05deg",
    *,
    variable: str | None = None,
    tiles: Mapping[str, str] | Sequence[str] | None = None,
    sample: pd.DataFrame | None = None,
    min_valid: float = 0.0,
    mode: Literal["cf", "cmip"] = "cf",
    area_types: Mapping[str, str] | None = None,
    allow: str | Sequence[str] = (),
) -> xr.Dataset:
    """Return the share of each class in the cells of a climate grid.

    Parameters
    ----------
    result : Dataset, path, mapping or iterable of them
        Class maps as `predict` returns them, or stores of them: one, or several that together cover an area. Codes
        ``(y, x)`` or ``(time, y, x)``; 255, or NaN where a store was opened with decoding, is no class. Give the
        Dataset rather than its variable: its attributes say when the map was made.
    grid : str, path, Dataset, GeoBox or ClimateGrid
        ``"0.05deg"`` and the like, a model's grid by its bounds, any GeoBox: see `target_grid`. The cells that the maps
        meet come back, with latitude and longitude increasing.
    variable : str, optional
        The class map, where there are several.
    tiles : mapping or sequence of str, optional
        The MGRS tile of each map, so that ground that several cover counts once: in the tile whose 100 km square it
        lies in. By default a map's attribute ``tile``, or its key where that is a tile's id.
    sample : DataFrame, optional
        Reference sample of the map: what `stratified_sample` drew, with the class that was found at each place in
        ``reference`` (code or name). Gives the standard error of fractions; the maps are then read at once.
    min_valid : float
        Cells of which a smaller share has a class are missing.
    mode : "cf" or "cmip"
        CF-1.11, or the names, units and axes of CMIP6, which needs ``area_types`` and gives percentages of whole cells.
    area_types : mapping of str, optional
        From class name to a name in CF's area type table.
    allow : str or sequence of str
        ``"unfinished"`` sums the store of a job of which blocks are missing.

    Returns
    -------
    Dataset
        ``area_fraction (class, time, lat, lon)``: of the part of a cell that has a class. ``valid_area_fraction``: how
        large that part is. ``number_of_observations``, ``cell_area``; ``soft_area_fraction``, the mean probability,
        where maps have it; a standard error where there is a sample. See `climate.output.described`.

    Raises
    ------
    GridError
        For an unknown grid, one that the maps do not meet, a map without CRS, and maps that cover the same ground
        without naming their tiles.
    LabelError
        For maps without classes, or with different ones. When computed: for codes that are none of them.
    CubeError
        For a store that is not there, or that of a job that is not finished. When computed: for probabilities that do
        not add up to one.
    XgfmError
        Where it is not clear which ``variable`` is meant.

    Examples
    --------
    >>> fractions = xgfm.to_climate("iowa-2024.zarr", "0.25deg")  # doctest: +SKIP
    >>> xgfm.to_climate({"15TVG": west, "15TWG": east}, "0.05deg", min_valid=0.5)  # doctest: +SKIP

    Notes
    -----
    Pixels weigh by their area on the WGS84 ellipsoid. One that lies across the edge of a cell is divided by sixteen
    places in it. Fractions say what is on the map, with the map's errors: see "What the fractions mean".
    """
    allowed = (allow,) if isinstance(allow, str) else tuple(allow)
    if unknown := set(allowed) - {"unfinished"}:
        raise CubeError(f"allow={sorted(unknown)}; expected 'unfinished'")
    sums = cell_sums(result, grid, variable=variable, tiles=tiles, allow=allowed)
    if isinstance(result, xr.DataArray) and np.isnat(sums.times).all():
        warnings.warn(
            f"{result.name!r} alone says no time, so that the fractions have none; give its Dataset, with "
            f"variable={result.name!r}",
            stacklevel=2,
        )
    error = None
    if sample is not None:
        sums = computed(sums)
        error = cell_errors(sums, sample)
    return described(sums, mode=mode, min_valid=min_valid, sample_error=error, area_types=area_types)


def cell_sums(
    result: Result | Mapping[str, Result] | Iterable[Result],
    grid: Any = "0.05deg",
    *,
    variable: str | None = None,
    tiles: Mapping[str, str] | Sequence[str] | None = None,
    allow: tuple[str, ...] = (),
) -> CellSums:
    """Return what maps add up to in the cells of a climate grid; lazy. Parameters are those of `to_climate`."""
    opened = open_maps(result, allow=allow)
    maps = {name: class_map(name, made, variable) for name, made in opened.items()}
    first = next(iter(maps.values()))
    _check_alike(maps)
    boxes = {name: made.box for name, made in maps.items()}
    owned = claims_of(boxes, tile_names(opened, tiles))
    part = target_grid(grid, over=list(boxes.values()))
    _check_fineness(part, maps)
    shares = all(made.share is not None for made in maps.values())
    partials = []
    for name, made in maps.items():
        recipe = Recipe(
            box=made.box,
            grid=part,
            table=made.legend.table,
            classes=len(made.legend.names),
            variable=made.variable,
            probability="probability" if shares else None,
            ownership=owned[name] if owned[name].rivals else None,
        )
        partials.append(_map_partial(made, recipe))
    count = len(first.times)
    arrays = _arrays(_tree(partials), part.shape, count, len(first.legend.names), shares)
    bounds = np.stack([m.time_bounds for m in maps.values()])
    return CellSums(
        grid=part,
        classes=first.legend.names,
        colors=first.legend.colors,
        values=first.legend.values,
        times=first.times if len(maps) == 1 else _middle(bounds),
        time_bounds=np.stack([bounds[..., 0].min(axis=0), bounds[..., 1].max(axis=0)], axis=1),
        cell_area=part.cell_areas(),
        attrs={n: v for n, v in first.attrs.items() if all(m.attrs.get(n) == v for m in maps.values())},
        **arrays,
    )


def computed(sums: CellSums) -> CellSums:
    """Return the sums in memory; every block of the maps is read once."""
    from dask.base import compute

    names = [n for n in ("area", "count", "probability", "valid_area", "seen_area") if getattr(sums, n) is not None]
    values = compute(*(getattr(sums, n) for n in names))
    return replace(sums, **dict(zip(names, values, strict=True)))


def _middle(bounds: Array) -> Array:
    first, last = bounds[..., 0].min(axis=0), bounds[..., 1].max(axis=0)
    return np.asarray(first + (last - first) / 2)


def _check_alike(maps: Mapping[str, ClassMap]) -> None:
    """Refuse maps of different legends, and of different steps of time."""
    (first, one), *others = maps.items()
    for name, other in others:
        if (other.legend.values, other.legend.names) != (one.legend.values, one.legend.names):
            raise LabelError(
                f"the maps {first!r} and {name!r} have different classes: {one.legend.names} and {other.legend.names}; "
                "sum maps of one task"
            )
        days = [m.times.astype("datetime64[D]") for m in (one, other)]
        if len(days[0]) != len(days[1]) or (len(days[0]) > 1 and not (days[0] == days[1]).all()):
            raise CubeError(
                f"the maps {first!r} and {name!r} have different times, {days[0]} and {days[1]}; map the same "
                "periods= for each, or sum one time after the other"
            )


def _check_fineness(grid: ClimateGrid, maps: Mapping[str, ClassMap]) -> None:
    """Refuse cells that are smaller than pixels: a pixel is divided into sixteen at most."""
    from xgfm.grid import pixel_size_m

    smallest = float(grid.cell_areas().min()) ** 0.5
    for name, made in maps.items():
        if smallest < (size := pixel_size_m(made.box)):
            raise GridError(
                f"cells of {grid.name!r} are {smallest:.4g} m wide and pixels of the map {name!r} {size:.4g} m; give a "
                "coarser grid="
            )


def _map_partial(made: ClassMap, recipe: Recipe) -> Any:
    """Return the sums of a map as one delayed partial: a task for each block, and a tree of sums."""
    import dask.array as da

    arrays = [made.codes[:, None]]
    if recipe.probability is not None:
        arrays.append(made.share)
    dense = [a if a.shape[1] == 1 else a.rechunk({1: -1}) for a in arrays]
    one = tuple((1,) * n for n in dense[0].numblocks)
    blocks = da.map_blocks(
        _block, *dense, recipe=recipe, chunks=one, dtype=object, meta=np.empty((0,) * 4, object), name=None
    )
    total = da.reduction(
        blocks,
        chunk=_as_is,
        combine=_combined,
        aggregate=_combined,
        axis=(0, 1, 2, 3),
        keepdims=True,
        concatenate=False,
        split_every=_JOINED,
        dtype=object,
        meta=np.empty((0,) * 4, object),
    )
    return total.to_delayed().ravel()[0]


def _block(
    codes: Array, share: Array | None = None, *, recipe: Recipe, block_info: dict[int | None, Any] | None = None
) -> Array:
    """Sum a block; Dask says where it lies."""
    assert block_info is not None
    places = block_info[0]["array-location"]
    at = (places[0][0], places[2][0], places[3][0])
    return _boxed(block_sums(codes[:, 0], share, recipe, at))


def _boxed(partial: Partial) -> Array:
    out = np.empty((1, 1, 1, 1), object)
    out[0, 0, 0, 0] = partial
    return out


def _as_is(block: Array, **_: Any) -> Array:
    return block


def _combined(blocks: Any, **_: Any) -> Array:
    return _boxed(merged(list(_flat(blocks))))


def _flat(blocks: Any) -> Iterable[Partial]:
    if isinstance(blocks, list):
        for each in blocks:
            yield from _flat(each)
    else:
        yield from blocks.ravel()


def _tree(partials: list[Any]) -> Any:
    """Add up the sums of maps, some at a time."""
    from dask.delayed import delayed

    while len(partials) > 1:
        partials = [delayed(_combined)(partials[i : i + _JOINED]) for i in range(0, len(partials), _JOINED)]
    return partials[0]


def _arrays(total: Any, shape: tuple[int, int], times: int, classes: int, shares: bool) -> dict[str, Any]:
    """Return the fields of `CellSums` as lazy arrays."""
    import dask.array as da
    from dask.delayed import delayed

    fields = 1 + classes * (3 if shares else 2)
    whole = delayed(_dense)(total, (fields, times, *shape))
    sums = da.from_delayed(whole, (fields, times, *shape), "float64")
    area = sums[1 : 1 + classes]
    return {
        "seen_area": sums[0],
        "area": area,
        "valid_area": area.sum(axis=0),
        "count": sums[1 + classes : 1 + 2 * classes],
        "probability": sums[1 + 2 * classes :] if shares else None,
    }


def _dense(total: Array, shape: tuple[int, ...]) -> Array:
    """Spread a partial over the grid."""
    partial = total.ravel()[0]
    out = np.zeros((shape[0], int(np.prod(shape[1:]))))
    out[:, partial.cells] = partial.sums.T
    return out.reshape(shape)
