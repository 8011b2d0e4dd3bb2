"""What can be given as labels, opened.

In: a path, a GeoDataFrame, a DataArray, STAC label items or a Label Studio export. Out: `Opened`, features or rasters
with the legend and the column that the source itself names. Features are read, of rasters only headers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from xgfm.errors import LabelError
from xgfm.train.labels import files as label_files
from xgfm.train.labels import items as label_items
from xgfm.train.labels import rasters as label_rasters
from xgfm.train.labels import studio as label_studio
from xgfm.train.labels.files import VECTOR_FILES, Features
from xgfm.train.labels.legend import Legend
from xgfm.train.labels.rasters import Raster


@dataclass(frozen=True, slots=True)
class Opened:
    """Labels that can be brought onto a grid: features, or rasters."""

    features: tuple[Features, ...] = ()
    rasters: tuple[Raster, ...] = ()
    legend: Legend | None = None
    """That the source names itself."""
    column: str | None = None
    """Attribute that holds the class or the target, where the source names it."""
    source: str = ""
    """File names, for the attributes of the result."""
    dated: bool = False
    """Whether the labels themselves have a time axis."""


@dataclass(frozen=True, slots=True)
class Hints:
    """What the caller says about a source."""

    layer: str | None = None
    column: str | None = None
    crs: Any = None
    nodata: float | None = None
    georeference: Any = None


def opened(source: Any, hints: Hints) -> Opened:
    """Open labels of any kind.

    Raises
    ------
    LabelError
        What is no label source, or cannot be read.
    """
    if isinstance(source, xr.DataArray):
        rasters = label_rasters.from_array(source, nodata=hints.nodata)
        first = rasters[0]
        return Opened(rasters=tuple(rasters), legend=first.legend, source=first.name, dated=first.time is not None)
    if isinstance(source, str | Path):
        return _from_path(str(source), hints)
    if hasattr(source, "geometry") and hasattr(source, "to_crs"):
        return Opened(features=(label_files.from_frame(source),), source="GeoDataFrame")
    if label_items.is_item(source):
        return _from_items([source], hints)
    if isinstance(source, Sequence) and source and all(map(label_items.is_item, source)):
        return _from_items(list(source), hints)
    if isinstance(source, Sequence) and source and label_studio.is_export(source):
        return _from_studio(list(source), "the Label Studio export", Path(), hints)
    if isinstance(source, Mapping) and source.get("type") in ("FeatureCollection", "Feature"):
        return _from_geojson(source, "the GeoJSON", Path(), hints)
    raise LabelError(
        f"{type(source).__name__} is no source of labels; give a path, a GeoDataFrame, a DataArray, STAC label items "
        "or a Label Studio export"
    )


def _from_path(href: str, hints: Hints) -> Opened:
    if label_files.is_remote(href):
        return _from_remote(href, hints)
    path = Path(href).expanduser()
    if path.suffix.lower() in (".json", ".geojson"):
        document = _json(path)
        if label_studio.is_export(document):
            return _from_studio(list(document), path.name, path.parent, hints)
        if label_items.is_item(document):
            return _from_items([document], hints, path.parent)
        return _from_geojson(document, path.name, path.parent, hints)
    if path.suffix.lower() in VECTOR_FILES:
        return Opened(features=(label_files.read_vector(path, layer=hints.layer),), source=path.name)
    if not path.exists():
        raise LabelError(f"there is no file {href!r}; give the path of a vector or raster file of labels")
    raster = label_rasters.open_raster(path, crs=hints.crs, nodata=hints.nodata)
    return Opened(rasters=(raster,), source=raster.name)


def _from_remote(href: str, hints: Hints) -> Opened:
    if href.split("?")[0].lower().endswith(VECTOR_FILES):
        features = label_files.read_vector(href, layer=hints.layer)
        return Opened(features=(features,), source=features.name)
    raster = label_rasters.open_raster(href, crs=hints.crs, nodata=hints.nodata)
    return Opened(rasters=(raster,), source=raster.name)


def _from_geojson(document: Any, name: str, folder: Path, hints: Hints) -> Opened:
    if not isinstance(document, Mapping):
        raise LabelError(f"{name} holds a JSON {type(document).__name__}; expected GeoJSON, STAC items or Label Studio")
    features = document.get("features")
    if features and all(map(label_items.is_item, features)):
        return _from_items(list(features), hints, folder)
    return Opened(features=(label_files.from_geojson(document, name),), source=name)


def _from_items(items: list[Any], hints: Hints, folder: Path | None = None) -> Opened:
    found = [label_items.read_item(item, column=hints.column, folder=folder) for item in items]
    legends = {each.legend for each in found if each.legend is not None}
    if len(legends) > 1:
        raise LabelError(f"the {len(items)} label items name different classes; give one legend for all, legend=")
    rasters, features = [], []
    for each in found:
        if each.raster:
            rasters.append(each.placed(label_rasters.open_raster(each.href, crs=hints.crs, nodata=hints.nodata)))
        else:
            features.append(each.dated(_from_path(each.href, Hints(layer=hints.layer)).features[0]))
    legend = next(iter(legends), None)
    column = next((each.column for each in found if each.column), None)
    return Opened(tuple(features), tuple(rasters), legend, column, ", ".join(each.id for each in found[:20]))


def _from_studio(tasks: list[Any], name: str, folder: Path, hints: Hints) -> Opened:
    features = label_studio.read_export(tasks, name, folder, georeference=hints.georeference)
    return Opened(features=tuple(features), column=label_studio.COLUMN, source=name)


def _json(path: Path) -> Any:
    if not path.is_file():
        raise LabelError(f"there is no file {str(path)!r}; give the path of a vector or raster file of labels")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise LabelError(f"{path.name} cannot be read as JSON ({error})") from error
