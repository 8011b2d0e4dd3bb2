"""The fields of a class map as GeoParquet, for GIS and data frames.

In: a lazy result with a class map. Out: one file with a polygon for each field: class, name, area, mean confidence.
Computed here, a row of blocks at a time: fields that lie across blocks are whole, and memory does not grow with the
map.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
import shapely.affinity
import xarray as xr

from xgfm.cf import NODATA, flags_of
from xgfm.errors import LabelError, MissingExtraError, WriteError, XgfmError
from xgfm.grid import geobox_of
from xgfm.store.layout import as_dataset, choose_variable
from xgfm.store.path import local_file, written_whole
from xgfm.store.polygons import Pieces, Regions, Seams, pieces_of, pixel_areas

if TYPE_CHECKING:
    import dask.array as da
    from odc.geo.geobox import GeoBox

SUFFIXES = (".parquet", ".geoparquet")
BLOCK = 1024
"""Rows and columns of the blocks of a map that is not lazy."""
VERSION = "1.1.0"
"""Of the GeoParquet specification."""


def to_vector(
    result: xr.Dataset | xr.DataArray,
    path: str | PathLike[str],
    *,
    classes: Sequence[str | int] | None = None,
    min_area: float | None = None,
    variable: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the fields of a class map as polygons in a GeoParquet file.

    A field is a region of pixels of one class that share edges. Fields across the borders of blocks are whole: the
    polygons are those of the map in one block.

    Parameters
    ----------
    result : Dataset or DataArray
        With a class map ``(y, x)``, lazy or not, opened with or without masking. Computed here, block by block.
    path : str or path
        Local file, ``.parquet``.
    classes : sequence of str or int, optional
        Names (``"corn"``) or numbers of those that are wanted; by default all.
    min_area : float, optional
        Square metres; smaller fields are left out.
    variable : str, optional
        The class map, where there are several.
    overwrite : bool
        Replace the file that is there.

    Returns
    -------
    Path
        Of the file: ``class`` (uint8), ``class_name``, ``area`` (square metres on the ellipsoid, not in the plane of
        the projection), ``confidence`` (mean over the field's pixels; where the result has confidence or probability)
        and ``geometry`` in the CRS of the map. Fields come in the order of the blocks in which they end.

    Raises
    ------
    XgfmError
        Where the choice of a variable is not clear, or it is no class map.
    LabelError
        For a class that the map does not have.
    WriteError
        Where there are several times, or the path is taken, is named otherwise or cannot be written.
    GridError
        Where the result has no CRS or no regular grid.
    MissingExtraError
        Without the package pyarrow.
    """
    target = local_file(path, "GeoParquet", SUFFIXES)
    if find_spec("pyarrow") is None:
        raise MissingExtraError("pyarrow", "vector", "to_vector")
    layer, confidence = _layers(result, variable)
    numbers = _numbers(layer, classes)
    if min_area is not None and not min_area >= 0:
        raise XgfmError(f"min_area={min_area!r}: expected square metres, 0 or more, or None for every field")
    geobox = geobox_of(layer)
    with written_whole(target, overwrite=overwrite, inside="fields.parquet") as partial:
        found = _regions(layer, confidence, numbers, geobox)
        kept = (_large(regions, min_area) for regions in found)
        with _quiet():
            _write(kept, partial / "fields.parquet", geobox, _names(layer), with_confidence=confidence is not None)
    return target


@contextmanager
def _quiet() -> Iterator[None]:
    """Without rasterio's warning that pixels have no georeference: they get theirs when they are polygons."""
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def _layers(result: xr.Dataset | xr.DataArray, variable: str | None) -> tuple[xr.DataArray, xr.DataArray | None]:
    """Return the class map, and the confidence beside it where there is one."""
    dataset = as_dataset(result)
    name = choose_variable(dataset, variable)
    if "flag_values" not in dataset[name].attrs:
        raise XgfmError(f"{name!r} is no class map (it has no flag_values), and fields are those of classes; name one")
    if dataset.sizes.get("time") == 1:
        dataset = dataset.isel(time=0)
    if dataset[name].dims != ("y", "x"):
        raise WriteError(
            f"{name!r} has dims {dataset[name].dims} and a file holds the fields of one date; write each to its own "
            "path: to_vector(result.isel(time=0), path)"
        )
    if "confidence" in dataset:
        return dataset[name], dataset["confidence"]
    return dataset[name], dataset["probability"].max("class") if "probability" in dataset else None


def _names(layer: xr.DataArray) -> dict[int, str]:
    return {flag.number: flag.name for flag in flags_of(layer)}


def _numbers(layer: xr.DataArray, classes: Sequence[str | int] | None) -> list[int]:
    """Return the numbers of classes that are wanted, which are named as people or as CF name them."""
    names = _names(layer)
    if classes is None:
        return list(names)
    flags = flags_of(layer)
    known: dict[str | int, int] = {flag.word: flag.number for flag in flags}
    known |= {flag.name: flag.number for flag in flags} | {number: number for number in names}
    asked = [classes] if isinstance(classes, str | int) else list(classes)
    unknown = [name for name in asked if name not in known]
    if unknown or not asked:
        raise LabelError(f"classes={classes!r}: {unknown or 'none'} not among the map's classes {names}")
    return [known[name] for name in asked]


def _regions(
    layer: xr.DataArray, confidence: xr.DataArray | None, numbers: list[int], geobox: GeoBox
) -> Iterator[Regions]:
    """Yield whole fields, a row of blocks at a time."""
    from dask.base import compute

    seams = Seams()
    rows = list(_tasks(layer, confidence, numbers, geobox))
    for number, row in enumerate(rows, 1):
        yield from seams.add(compute(*row), final=number == len(rows))


def _tasks(
    layer: xr.DataArray, confidence: xr.DataArray | None, numbers: list[int], geobox: GeoBox
) -> Iterator[list[Any]]:
    """Yield the tasks of each row of blocks."""
    from dask.delayed import delayed

    values = _lazy(layer)
    trust = None if confidence is None else _lazy(confidence).rechunk(values.chunks).to_delayed()
    make = delayed(_pieces, pure=False, traverse=False)
    top = 0
    for i, blocks in enumerate(values.to_delayed().tolist()):
        left, row = 0, []
        for j, block in enumerate(blocks):
            row.append(make(block, None if trust is None else trust[i, j], numbers, geobox, top, left))
            left += values.chunks[1][j]
        top += values.chunks[0][i]
        yield row


def _lazy(layer: xr.DataArray) -> da.Array:
    lazy: da.Array = layer.chunk(BLOCK).data if layer.chunks is None else layer.data
    return lazy


def _pieces(
    values: np.ndarray, confidence: np.ndarray | None, numbers: list[int], geobox: GeoBox, row: int, column: int
) -> Pieces:
    """Return the regions of one block, of a map that may have been opened with masking."""
    if values.dtype.kind == "f":
        values = np.where(np.isnan(values), NODATA, values)
    rows, columns = slice(row, row + values.shape[0]), slice(column, column + values.shape[1])
    areas = pixel_areas(geobox, rows, columns)
    return pieces_of(values.astype("uint8"), areas, confidence, classes=numbers, row=row, column=column)


def _large(regions: Regions, min_area: float | None) -> Regions:
    if min_area is None:
        return regions
    kept = regions.area >= min_area
    return Regions(regions.shapes[kept], regions.classes[kept], regions.area[kept], regions.confidence[kept])


def _write(
    found: Iterator[Regions], path: Path, geobox: GeoBox, names: dict[int, str], *, with_confidence: bool
) -> None:
    """Write regions as they come."""
    import pyarrow as pa
    from pyarrow import parquet

    fields = [("class", pa.uint8()), ("class_name", pa.string()), ("area", pa.float64())]
    fields += [("confidence", pa.float32())] if with_confidence else []
    schema = pa.schema([*fields, ("geometry", pa.binary())], metadata={"geo": json.dumps(_geo(geobox))})
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for regions in found:
            if len(regions.shapes):
                writer.write_table(_table(regions, _placed(regions.shapes, geobox), names, schema))


def _placed(shapes: np.ndarray, geobox: GeoBox) -> np.ndarray:
    """Return polygons in the CRS of the map."""
    affine = geobox.affine
    placed: np.ndarray = shapely.transform(shapes, lambda xy: xy * [affine.a, affine.e] + [affine.c, affine.f])
    return placed


def _table(regions: Regions, shapes: np.ndarray, names: dict[int, str], schema: Any) -> Any:
    import pyarrow as pa

    columns = {
        "class": regions.classes,
        "class_name": [names[value] for value in regions.classes.tolist()],
        "area": regions.area,
        "confidence": pa.array(regions.confidence, pa.float32(), from_pandas=True),
        "geometry": shapely.to_wkb(shapes),
    }
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def _geo(geobox: GeoBox) -> dict[str, Any]:
    """Return what GeoParquet wants to know of the file; the extent, which is known at the end only, may be left out."""
    column = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "crs": geobox.crs.proj.to_json_dict(),  # type: ignore[union-attr]
        "edges": "planar",
    }
    return {"version": VERSION, "primary_column": "geometry", "columns": {"geometry": column}}
