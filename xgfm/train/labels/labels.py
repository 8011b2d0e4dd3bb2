"""Labels on a cube's own grid.

In: polygons, lines, points or rasters with classes or a target, and a cube. Out: a label array ``(y, x)``, or
``(time, y, x)`` where labels have dates: uint8 indexes of classes with 255 where unlabelled, or float32 with NaN. It
is lazy where the cube is: then a block is drawn, or its window read, when it is computed.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import shapely
import xarray as xr
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from xgfm.cf import NODATA, class_flags, fill_encoding
from xgfm.errors import LabelError
from xgfm.grid import geobox_of, with_grid
from xgfm.jobs.region import transformer
from xgfm.train.labels.files import Features, joined
from xgfm.train.labels.grid import Chunks, RasterPart, Shapes, burn, gridded
from xgfm.train.labels.legend import Legend, LegendEntry
from xgfm.train.labels.order import LabelWarning, dates_of, drawing_order, steps_of
from xgfm.train.labels.rasters import Raster
from xgfm.train.labels.shapes import Invalid, extent, place_of, placed
from xgfm.train.labels.sources import Hints, Opened, opened

NAME = "label"


@dataclass(frozen=True, slots=True)
class _Rules:
    """How labels are drawn."""

    column: str | None
    legend: Legend | None
    time_column: str | None
    tolerance: pd.Timedelta
    target: str | None
    regression: bool
    all_touched: bool
    priority: str | Sequence[str] | None
    buffer: float
    crs: Any
    invalid: Invalid


def labels(
    source: Any,
    cube: xr.DataArray | xr.Dataset,
    *,
    column: str | None = None,
    legend: Any = None,
    time_column: str | None = None,
    tolerance: str | pd.Timedelta = "8D",
    target: str | None = None,
    units: str | None = None,
    all_touched: bool = False,
    priority: str | Sequence[str] | None = None,
    buffer: float = 0.0,
    crs: Any = None,
    nodata: float | None = None,
    layer: str | None = None,
    georeference: Any = None,
    invalid: Invalid = "raise",
) -> xr.DataArray:
    """Bring labels onto the grid of a cube.

    Parameters
    ----------
    source : path, GeoDataFrame, DataArray, STAC item(s) or list
        A vector file (shapefile, GeoJSON, GeoPackage, FlatGeobuf, GeoParquet) or GeoDataFrame of polygons, lines or
        points; a raster file or DataArray of codes or of a target; Items of the STAC label extension; the JSON export
        of Label Studio.
    cube : DataArray or Dataset
        With ``y``, ``x`` and a CRS; its ``time`` is used where labels have dates. Not read.
    column : str, optional
        Attribute that holds the class; may be left out where there is only one.
    legend : Legend, mapping, sequence or path, optional
        What `Legend.of` takes. Without one the classes are the values of the column in order, those of the array's
        flags, or those that the STAC item names; a raster file needs one. Give it where several cubes are labelled.
    time_column : str, optional
        Attribute with the date of each feature, ``"datetime"`` for the date of a STAC item. The result then has the
        cube's ``time``, and each feature lies at the nearest step.
    tolerance : str or Timedelta
        Farthest that a date may be from its step.
    target : str, optional
        Attribute that holds a number: a regression target. For a raster any name, which becomes its long name.
    units : str, optional
        Of the target; a raster with units is a target.
    all_touched : bool
        Label every pixel that a shape touches, instead of those whose centre it holds.
    priority : str or sequence of str, optional
        Which shape lies on top: an attribute, larger values on top; or names of classes, the first on top. By default
        later rows lie on top of earlier ones.
    buffer : float
        Metres that shapes are widened by; negative: shrunk, to keep away from mixed pixels at their edges.
    crs : optional
        CRS of the labels, instead of the one that they state.
    nodata : float, optional
        Value of a raster that says unlabelled, instead of the one that it states.
    layer : str, optional
        Of a vector file with several.
    georeference : mapping or path, optional
        Where the images of a Label Studio export lie: ``{image: {transform, crs, size}}``. By default they are
        looked for beside the export, and have a georeference of their own.
    invalid : str
        ``"raise"``, or ``"mend"``: repair invalid shapes and leave out empty ones.

    Returns
    -------
    DataArray
        Name ``label``, dims ``(y, x)`` or ``(time, y, x)`` on the cube's grid, uint8 with CF flags (255: unlabelled)
        or float32 (NaN: unlabelled). Chunked as the cube is in ``y`` and ``x``, else in memory.

    Raises
    ------
    LabelError
        Labels outside of the cube or of its period; no CRS or a wrong one; an unknown code (when it is read); empty or
        invalid geometry; a missing column; nothing labelled.
    GridError
        A cube without a grid.
    """
    geobox = geobox_of(cube)
    found = opened(source, Hints(layer, column, crs, nodata, georeference))
    rules = _Rules(
        column=column or (found.column if target is None else None),
        legend=found.legend if legend is None else Legend.of(legend),
        time_column=time_column, tolerance=pd.Timedelta(tolerance), target=target,
        regression=target is not None or units is not None,
        all_touched=all_touched, priority=priority, buffer=buffer, crs=crs, invalid=invalid,
    )  # fmt: skip
    times = _times(cube) if found.dated or time_column is not None else None
    draw = _of_features if found.features else _of_rasters
    values, used = draw(found, geobox, _chunks(cube), times, rules)
    _check_labelled(values, found.source)
    return _finished(values, geobox, used, times, rules, units or "1", found.source)


def _times(cube: xr.DataArray | xr.Dataset) -> NDArray[np.datetime64]:
    if "time" not in cube.dims or "time" not in cube.coords:
        raise LabelError(
            "the labels have dates but the cube has no time; leave time_column= out for labels of all dates"
        )
    return cube["time"].values.astype("datetime64[ns]")


def _chunks(cube: xr.DataArray | xr.Dataset) -> Chunks | None:
    sizes = cube.chunksizes
    return (sizes["y"], sizes["x"]) if {"y", "x"} <= set(sizes) else None


# ---- features


def _of_features(
    found: Opened, geobox: GeoBox, chunks: Chunks | None, times: NDArray[Any] | None, rules: _Rules
) -> tuple[Any, Legend | None]:
    if not any(map(len, found.features)):
        raise LabelError(f"{found.source} holds no geometry; give a file of polygons, lines or points")
    name = _value_column(found.features[0], rules)
    legend = None if rules.regression else rules.legend or _legend_of_values(found.features, name)
    parts = [placed(f, geobox, crs=rules.crs, buffer=rules.buffer, invalid=rules.invalid) for f in found.features]
    if not any(map(len, parts)):
        where = extent(found.features[0], rules.crs)
        raise LabelError(
            f"no feature of {found.source} lies in the cube: they reach {where}; the cube {place_of(geobox)}. Give "
            "labels of this place, or correct their CRS with crs="
        )
    features = _with_value(joined(parts), name)
    values = _numbers(features, name) if legend is None else _indexes(features, name, legend)
    order = drawing_order(features, values, legend, rules.priority)
    features, values = features.take(order), values[order]
    if times is None:
        return burn(Shapes(features.geometry, values, rules.all_touched), geobox, chunks), legend
    steps = steps_of(dates_of(features, rules.time_column or ""), times, rules.tolerance, found.source)
    maps = []
    for step in range(len(times)):
        rows = np.flatnonzero(steps == step)
        maps.append(burn(Shapes(features.geometry[rows], values[rows], rules.all_touched), geobox, chunks))
    return _stack(maps), legend


def _value_column(features: Features, rules: _Rules) -> str:
    name = rules.target if rules.regression and rules.target else rules.column
    if name is None:
        return features.only_column(but=[n for n in (rules.time_column, rules.priority) if isinstance(n, str)])
    features.column(name, "target" if rules.regression else "column")
    return name


def _legend_of_values(parts: Sequence[Features], name: str) -> Legend:
    """A class for each value of the whole file, so that several cubes cut from it agree."""
    values = {v for part in parts for v in part.column(name, "column").tolist() if not pd.isna(v)}
    if not values:
        raise LabelError(f"column {name!r} of {parts[0].name} is empty; choose another, column=")
    numbers = all(isinstance(v, int) or (isinstance(v, float) and v.is_integer()) for v in values)
    ordered: list[Any] = sorted(map(int, values)) if numbers else sorted(map(str, values))
    return Legend(tuple(LegendEntry(v, str(v)) for v in ordered))


def _with_value(features: Features, name: str) -> Features:
    missing = pd.isna(features.columns[name])
    if missing.any():
        warnings.warn(
            f"{int(missing.sum())} of {len(features)} features of {features.name} have no {name!r} and are left out",
            LabelWarning,
            stacklevel=4,
        )
    return features.take(np.flatnonzero(~missing))


def _indexes(features: Features, name: str, legend: Legend) -> NDArray[np.uint8]:
    try:
        return legend.lookup(features.columns[name])
    except LabelError as error:
        raise LabelError(f"column {name!r} of {features.name}: {error}") from None


def _numbers(features: Features, name: str) -> NDArray[np.float32]:
    try:
        return features.columns[name].astype("float32")
    except (TypeError, ValueError) as error:
        raise LabelError(
            f"column {name!r} of {features.name} does not hold numbers ({error}); choose target="
        ) from error


def _stack(maps: list[Any]) -> Any:
    if isinstance(maps[0], np.ndarray):
        return np.stack(maps)
    import dask.array as da

    return da.stack(maps)


# ---- rasters


def _of_rasters(
    found: Opened, geobox: GeoBox, chunks: Chunks | None, times: NDArray[Any] | None, rules: _Rules
) -> tuple[Any, Legend | None]:
    legend = None if rules.regression else rules.legend
    if legend is None and not rules.regression:
        raise LabelError(
            f"the codes of {found.source} mean nothing yet; name them, legend={{0: 'land', 1: 'water'}}, or give "
            "units= where they are a regression target"
        )
    meeting = [r for r in found.rasters if _meets(r, geobox)]
    if not meeting:
        raise LabelError(
            f"{found.source} does not meet the cube: it reaches {place_of(found.rasters[0].geobox)}; the cube "
            f"{place_of(geobox)}. Give labels of this place, or correct their CRS with crs="
        )
    maps = [_regridded(each, geobox, chunks, legend) for each in meeting]
    if times is None:
        return _over(maps), legend
    dates = np.array([np.datetime64("NaT") if r.time is None else r.time for r in meeting], "datetime64[ns]")
    steps = steps_of(dates, times, rules.tolerance, found.source)
    empty = maps[0] * 0 + (NODATA if legend is not None else np.nan)
    empty = empty.astype(maps[0].dtype)
    return _stack(
        [_over([empty, *(m for m, s in zip(maps, steps, strict=True) if s == t)]) for t in range(len(times))]
    ), legend


def _meets(raster: Raster, geobox: GeoBox) -> bool:
    """Whether the raster's outline, in its own CRS, meets that of the grid."""
    there = transformer(geobox.crs, raster.geobox.crs)
    left, bottom, right, top = there.transform_bounds(*geobox.boundingbox.bbox, densify_pts=51)
    # Over the antimeridian the box is no box: then the pixels themselves decide.
    return left > right or bool(raster.geobox.extent.geom.intersects(shapely.box(left, bottom, right, top)))


def _regridded(raster: Raster, geobox: GeoBox, chunks: Chunks | None, legend: Legend | None) -> Any:
    def part_of(piece: GeoBox) -> RasterPart:
        return RasterPart(raster.windows, piece, raster.nodata, legend, raster.name)

    return gridded(part_of, geobox, chunks, "float32" if legend is None else "uint8")


def _over(maps: list[Any]) -> Any:
    """Later maps over earlier ones, where they are labelled."""
    out = maps[0]
    for each in maps[1:]:
        labelled = each != NODATA if each.dtype.kind == "u" else each == each
        out = _where(labelled, each, out)
    return out


def _where(condition: Any, yes: Any, no: Any) -> Any:
    if isinstance(yes, np.ndarray):
        return np.where(condition, yes, no)
    import dask.array as da

    return da.where(condition, yes, no)


# ---- the result


def _check_labelled(values: Any, source: str) -> None:
    """Refuse labels in memory that label nothing; lazy ones are looked at when chips are planned."""
    if not isinstance(values, np.ndarray):
        return
    labelled = values != NODATA if values.dtype.kind == "u" else ~np.isnan(values)
    if not labelled.any():
        raise LabelError(
            f"{source} labels no pixel of the cube: shapes lie between pixel centres, or every code is unlabelled; try "
            "all_touched=True, another buffer=, or look at legend= and nodata="
        )


def _finished(
    values: Any,
    geobox: GeoBox,
    legend: Legend | None,
    times: NDArray[Any] | None,
    rules: _Rules,
    units: str,
    source: str,
) -> xr.DataArray:
    dims = ("y", "x") if times is None else ("time", "y", "x")
    coords = {} if times is None else {"time": ("time", times, {"standard_name": "time", "axis": "T"})}
    about = (
        {"long_name": rules.target or "target", "units": units}
        if legend is None
        else {"long_name": "class", **class_flags(legend.classes)}
    )
    array = xr.DataArray(values, dims=dims, coords=coords, name=NAME, attrs={**about, "source": source})
    array.encoding.update(fill_encoding(array.dtype))
    return with_grid(array, geobox)
