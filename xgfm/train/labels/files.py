"""Vector labels: features with their attributes, from files of every common kind.

In: the path of a shapefile, GeoJSON, GeoPackage or GeoParquet file, or a GeoDataFrame. Out: `Features`, geometries
with a column of values and where asked dates, in the CRS that they came in. All is read at once, attributes that are
not needed are not.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from odc.geo.crs import CRS
from pyproj.exceptions import CRSError

from xgfm.cube.hrefs import redacted
from xgfm.errors import LabelError, MissingExtraError

VECTOR_FILES = (".shp", ".geojson", ".json", ".gpkg", ".fgb", ".parquet", ".geoparquet")
"""Suffixes that are read as vector files."""
PARQUET_FILES = (".parquet", ".geoparquet")
FID_NAMES = ("fid", "id", "ogc_fid", "objectid", "gid", "index")
"""Columns that number features and are never the class."""


@dataclass(frozen=True, slots=True)
class Features:
    """Geometries with what they say, one row each."""

    geometry: NDArray[np.object_]
    """Shapely geometries, some may be None."""
    columns: Mapping[str, NDArray[Any]]
    """Attributes by name."""
    crs: CRS | None
    name: str
    """Of the file, for errors."""

    def __len__(self) -> int:
        return len(self.geometry)

    def column(self, name: str, argument: str) -> NDArray[Any]:
        """Return an attribute.

        Raises
        ------
        LabelError
            Where there is none of this name; the error has the nearest.
        """
        if name in self.columns:
            return self.columns[name]
        # Shapefiles cut names after ten characters.
        close = [c for c in self.columns if c == name[:10]] or difflib.get_close_matches(name, self.columns, 1, 0.5)
        meant = f"did you mean {argument}={close[0]!r}? " if close else ""
        raise LabelError(f"{self.name} has no column {name!r}; {meant}it has {', '.join(self.columns) or 'none'}")

    def only_column(self, but: Iterable[str]) -> str:
        """Return the name of the only attribute that can be the class.

        Raises
        ------
        LabelError
            Where there is another number of them.
        """
        left = [c for c in self.columns if c not in set(but) and c.lower() not in FID_NAMES]
        if len(left) != 1:
            raise LabelError(
                f"{self.name} has the columns {', '.join(self.columns) or '(none)'}; say which one holds the class, "
                "column='...'"
            )
        return left[0]

    def take(self, rows: NDArray[Any]) -> Features:
        """Return some rows."""
        columns = {name: values[rows] for name, values in self.columns.items()}
        return Features(self.geometry[rows], columns, self.crs, self.name)


def read_vector(href: str | Path, *, layer: str | None = None) -> Features:
    """Read a vector file.

    Parameters
    ----------
    href : str or Path
        One of `VECTOR_FILES`; or a URL of one, which GDAL reads.
    layer : str, optional
        Of a file with several.

    Returns
    -------
    Features
        With all columns.

    Raises
    ------
    LabelError
        No such file, not readable, several layers and none chosen.
    MissingExtraError
        pyogrio (GDAL's vector formats) or pyarrow (GeoParquet) is not installed.
    """
    if is_remote(href):
        return _read_ogr(str(href), redacted(str(href).rsplit("/", 1)[-1]), layer)
    path = Path(href)
    if not path.is_file():
        raise LabelError(f"there is no file {str(path)!r}; give the path of a vector or raster file of labels")
    return _read_parquet(path) if path.suffix.lower() in PARQUET_FILES else _read_ogr(str(path), path.name, layer)


def is_remote(href: str | Path) -> bool:
    """Return whether GDAL, and not the file system, is asked for a file."""
    return "://" in str(href) or str(href).startswith("/vsi")


def from_frame(frame: Any) -> Features:
    """Return the features of a GeoDataFrame."""
    geometry = frame.geometry
    columns = {str(c): frame[c].to_numpy() for c in frame.columns if c != geometry.name}
    crs = None if geometry.crs is None else CRS(geometry.crs.to_wkt())
    return Features(geometry.to_numpy(dtype=object), columns, crs, "GeoDataFrame")


def from_geojson(document: Mapping[str, Any], name: str) -> Features:
    """Return the features of a parsed GeoJSON document; it is in degrees unless it names another CRS (GeoJSON 2008)."""
    rows = document.get("features", [document])
    try:
        geometry = [None if r.get("geometry") is None else shapely.geometry.shape(r["geometry"]) for r in rows]
    except Exception as error:  # shapely and GEOS raise many kinds for what is no geometry
        raise LabelError(f"{name} holds what is no GeoJSON geometry ({type(error).__name__}: {error})") from error
    keys = dict.fromkeys(key for row in rows for key in row.get("properties") or {})
    columns = {key: _column([(row.get("properties") or {}).get(key) for row in rows]) for key in keys}
    crs = document.get("crs", {}).get("properties", {}).get("name", "OGC:CRS84")
    return Features(objects(geometry), columns, crs_of(crs, name), name)


def joined(parts: Sequence[Features]) -> Features:
    """Return several sets of features of one CRS as one; a column that one lacks is None there."""
    names = dict.fromkeys(name for part in parts for name in part.columns)
    columns = {
        name: pd.concat([pd.Series(p.columns.get(name, np.full(len(p), None, object))) for p in parts]).to_numpy()
        for name in names
    }
    return Features(np.concatenate([p.geometry for p in parts]), columns, parts[0].crs, parts[0].name)


def crs_of(value: Any, name: str) -> CRS:
    """Return a CRS, or an error that says which labels have none that can be read."""
    try:
        return CRS(value.to_wkt() if hasattr(value, "to_wkt") else value)
    except (CRSError, ValueError, TypeError) as error:
        shown = str(value)[:80]
        raise LabelError(f"the CRS of {name} cannot be read: {shown!r}; give one, crs='EPSG:4326'") from error


def objects(values: Sequence[Any]) -> NDArray[np.object_]:
    """Return an object array of one dimension, whatever the values are."""
    out = np.empty(len(values), object)
    out[:] = list(values)
    return out


def _column(values: list[Any]) -> NDArray[Any]:
    return pd.Series(values).to_numpy()


def _read_ogr(path: str, name: str, layer: str | None) -> Features:
    try:
        import pyogrio
    except ImportError as error:
        raise MissingExtraError("pyogrio", "vector", f"reading {name!r}") from error
    try:
        layers = [str(each) for each, _ in pyogrio.list_layers(path)]
        if layer is None and len(layers) != 1:
            raise LabelError(f"{name} has the layers {', '.join(layers)}; choose one, layer={layers[0]!r}")
        if layer is not None and layer not in layers:
            raise LabelError(f"{name} has no layer {layer!r}; it has {', '.join(layers)}")
        meta, _, geometry, fields = pyogrio.raw.read(path, layer=layer or layers[0], force_2d=True)
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as error:
        raise LabelError(f"{name} cannot be read as a vector file ({redacted(str(error))})") from error
    crs = crs_of(meta["crs"], name) if meta["crs"] else None
    if geometry is None:
        raise LabelError(f"{name} has no geometries; give a file of polygons, lines or points")
    columns = dict(zip(map(str, meta["fields"]), fields, strict=True))
    return Features(_from_wkb(geometry, name), columns, crs, name)


def _read_parquet(path: Path) -> Features:
    """GeoParquet 1: WKB in the primary column, its CRS as PROJJSON, longitude and latitude where none is given."""
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("pyarrow", "vector", f"reading {path.name!r}") from error
    try:
        table = pq.read_table(path)
    except (OSError, ValueError) as error:
        raise LabelError(f"{path.name} cannot be read as Parquet ({error})") from error
    geo = json.loads((table.schema.metadata or {}).get(b"geo", b"null"))
    if geo is None:
        raise LabelError(f"{path.name} is Parquet without 'geo' metadata; write it as GeoParquet, gdf.to_parquet(path)")
    primary = geo["primary_column"]
    about = geo["columns"][primary]
    if about.get("encoding") != "WKB":
        raise LabelError(f"{path.name} encodes its geometries as {about.get('encoding')}; write them as WKB")
    # A CRS that is null is unknown; one that is not there is longitude and latitude.
    stated = about.get("crs", "OGC:CRS84")
    crs = None if stated is None else crs_of(json.dumps(stated) if isinstance(stated, dict) else stated, path.name)
    columns = {n: table[n].to_pandas().to_numpy() for n in table.column_names if n not in geo["columns"]}
    geometry = objects(table[primary].to_pylist())
    return Features(_from_wkb(geometry, path.name), columns, crs, path.name)


def _from_wkb(geometry: NDArray[np.object_], name: str) -> NDArray[np.object_]:
    try:
        shapes: NDArray[np.object_] = shapely.from_wkb(geometry)
    except shapely.errors.ShapelyError as error:
        raise LabelError(f"a geometry of {name} cannot be read ({error}); mend the file") from error
    return shapes
