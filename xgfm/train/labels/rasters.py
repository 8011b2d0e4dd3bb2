"""Label rasters: files and arrays of codes or of a target, as sources of windows.

In: the path of a GeoTIFF (or whatever GDAL reads), or a DataArray. Out: a `Raster`, which says its grid, its nodata
value and its legend and gives windows. Of a file only the header is read here; each block reads its own window.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from xgfm.cube.hrefs import redacted
from xgfm.errors import LabelError
from xgfm.grid import geobox_of
from xgfm.train.labels.files import crs_of
from xgfm.train.labels.legend import Legend, legend_of


@dataclass(frozen=True, slots=True)
class FileWindows:
    """Windows of the first band of a file."""

    href: str
    geobox: GeoBox

    def window(self, rows: slice, columns: slice) -> NDArray[Any]:
        """Return the file's values."""
        import rasterio
        from rasterio.windows import Window

        try:
            with rasterio.open(self.href) as file:
                values: NDArray[Any] = file.read(1, window=Window.from_slices(rows, columns))
        except rasterio.errors.RasterioError as error:
            raise LabelError(f"labels {redacted(self.href)!r} could not be read ({redacted(str(error))})") from error
        return values


@dataclass(frozen=True, slots=True)
class ArrayWindows:
    """Windows of an array in memory."""

    values: NDArray[Any]
    geobox: GeoBox

    def window(self, rows: slice, columns: slice) -> NDArray[Any]:
        """Return the array's values."""
        return self.values[rows, columns]


@dataclass(frozen=True, slots=True)
class Raster:
    """A raster of labels."""

    windows: FileWindows | ArrayWindows
    nodata: float | None
    legend: Legend | None
    """Its own, where it has one."""
    name: str
    dtype: np.dtype[Any]
    time: np.datetime64 | None = None

    @property
    def geobox(self) -> GeoBox:
        """The raster's own grid."""
        return self.windows.geobox


def open_raster(href: str | Path, *, crs: Any = None, nodata: float | None = None) -> Raster:
    """Open a label raster; its header is read.

    Parameters
    ----------
    href : str or Path
        A file or URL that GDAL opens, of one band.
    crs : optional
        Instead of the file's own.
    nodata : float, optional
        Instead of the file's own.

    Raises
    ------
    LabelError
        No such file, not a raster, more than one band, no CRS.
    """
    import rasterio

    name = redacted(Path(str(href)).name)
    try:
        with rasterio.open(str(href)) as file:
            bands, shape, dtype = file.count, file.shape, np.dtype(file.dtypes[0])
            transform, own_crs, own_nodata = file.transform, file.crs, file.nodata
    except rasterio.errors.RasterioError as error:
        raise LabelError(f"labels {redacted(str(href))!r} cannot be opened ({redacted(str(error))})") from error
    if bands != 1:
        raise LabelError(f"{name} has {bands} bands; a label raster has one, write the band of the labels to a file")
    if crs is None and own_crs is None:
        raise LabelError(f"{name} has no CRS; name that of its coordinates, crs='EPSG:32615'")
    geobox = GeoBox(shape, Affine(*transform[:6]), crs_of(own_crs if crs is None else crs, name))
    stated = own_nodata if nodata is None else nodata
    return Raster(FileWindows(str(href), geobox), stated, None, name, dtype)


def from_array(array: xr.DataArray, *, nodata: float | None = None) -> list[Raster]:
    """Return the rasters of a DataArray ``(y, x)``, ``(time, y, x)`` or with one band; it is computed.

    Raises
    ------
    LabelError
        Other dims.
    GridError
        No CRS, or no regular grid.
    """
    array = array.squeeze("band", drop=True) if array.sizes.get("band") == 1 else array
    if array.dims not in (("y", "x"), ("time", "y", "x")):
        raise LabelError(f"the labels have dims {array.dims}; expected (y, x) or (time, y, x), use .isel or .transpose")
    geobox = geobox_of(array)
    legend = legend_of(array) if "flag_values" in array.attrs else None
    stated = next(
        (
            float(holder[key])
            for holder in (array.encoding, array.attrs)
            for key in _NODATA
            if holder.get(key) is not None
        ),
        None,
    )
    name = str(array.name or "the label array")
    stated = stated if nodata is None else nodata
    if array.ndim == 2:
        return [Raster(ArrayWindows(array.values, geobox), stated, legend, name, array.dtype)]
    times = array["time"].values.astype("datetime64[ns]")
    values = array.values
    return [
        Raster(ArrayWindows(each, geobox), stated, legend, name, array.dtype, time)
        for each, time in zip(values, times, strict=True)
    ]


_NODATA = ("_FillValue", "nodata", "missing_value")
"""Where a DataArray may say what stands for no label."""
