"""A map as a cloud-optimised GeoTIFF, with its colours and class names.

In: a lazy result with one layer chosen, and a scratch folder. Out: one file. Computed into a Zarr store first, so that
blocks may come in any order and from any machine; then copied strip by strip, and memory does not grow with the map.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from shutil import disk_usage
from typing import Any
from xml.sax.saxutils import escape

import xarray as xr

from xgfm.cf import GRID_MAPPING
from xgfm.errors import WriteError
from xgfm.grid import geobox_of
from xgfm.store.layout import as_dataset, choose_variable

BLOCK = 512
"""Rows and columns of a tile of the file."""
CACHE = 128
"""Megabytes of blocks that GDAL may hold; its own default is 5 % of the machine."""
_BAND_TAGS = ("long_name", "units", "comment", "flag_values", "flag_meanings", "flag_colors", "class_names")


def choose_layer(result: xr.Dataset | xr.DataArray, variable: str | None) -> xr.Dataset:
    """Return what one GeoTIFF can hold: one variable of dims ``(y, x)`` or ``(band, y, x)``, at one time.

    Raises
    ------
    XgfmError
        Where there are several variables and none is named.
    WriteError
        Where there are several times, or too many dimensions.
    """
    dataset = as_dataset(result)
    name = choose_variable(dataset, variable)
    layer = dataset[[name]]
    if layer.sizes.get("time") == 1:
        layer = layer.isel(time=0)
    leading = layer[name].dims[:-2]
    if "time" in leading:
        raise WriteError(
            f"{name!r} has {layer.sizes['time']} times and a GeoTIFF holds one; "
            "write each to its own path: to_cog(result.isel(time=0), path)"
        )
    if len(leading) > 1:
        raise WriteError(
            f"{name!r} has dims {layer[name].dims}; expected (y, x) or (band, y, x), choose with result.isel"
        )
    return layer


def write_cog(store: Path, path: Path) -> None:
    """Copy a Zarr store of one variable, as `choose_layer` and `to_zarr` leave it, to a GeoTIFF at ``path``."""
    import rasterio
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import RasterioError
    from rasterio.shutil import copy

    plain = store.with_name("plain.tif")
    with xr.open_zarr(store, mask_and_scale=False, chunks=None, decode_coords="all") as dataset:
        layer = next(iter(dataset.data_vars.values()))
        options = _cog_options(classes="flag_values" in layer.attrs, single=layer.dtype.itemsize == 1)
        try:
            with rasterio.Env(GDAL_CACHEMAX=CACHE):
                _write_plain(layer, dataset.attrs, plain)
                copy(plain, path, driver="COG", **options)
        except (RasterioError, CPLE_BaseError) as error:
            # GDAL keeps the reason to itself and removes its own scratch; the copy takes twice the plain file.
            full = disk_usage(path.parent).free < 2 * plain.stat().st_size
            raise OSError(errno.ENOSPC if full else errno.EIO, f"GDAL: {error}", str(path)) from error


def _cog_options(*, classes: bool, single: bool) -> dict[str, str]:
    """Creation options: an overview of classes holds the most frequent class, never a mean of class numbers."""
    return {
        "BLOCKSIZE": str(BLOCK),
        "COMPRESS": "DEFLATE",
        "PREDICTOR": "NO" if single else "YES",
        "OVERVIEW_RESAMPLING": "MODE" if classes else "AVERAGE",
        "BIGTIFF": "IF_SAFER",
    }


def _write_plain(layer: xr.DataArray, facts: Mapping[str, Any], path: Path) -> None:
    """Write an ordinary tiled GeoTIFF, one strip of shards at a time."""
    import rasterio
    from rasterio.windows import Window

    geobox = geobox_of(layer)
    rows, columns = geobox.shape
    count = layer.shape[0] if layer.ndim == 3 else 1
    profile = {
        "driver": "GTiff", "dtype": layer.dtype, "count": count, "height": rows, "width": columns, "tiled": True,
        "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate", "zlevel": 1, "bigtiff": "if_safer",
        "crs": layer.coords[GRID_MAPPING].attrs["crs_wkt"], "transform": geobox.transform,
        "nodata": layer.attrs.get("_FillValue", layer.attrs.get("nodata")),
    }  # fmt: skip
    step = max((layer.encoding["shards"] or layer.encoding["chunks"])[-2], BLOCK)
    with rasterio.open(path, "w", **profile) as file:
        _describe(file, layer, facts)
        for top in range(0, rows, step):
            strip = layer.isel(y=slice(top, top + step)).values.reshape(count, -1, columns)
            file.write(strip, window=Window(0, top, columns, strip.shape[1]))


def _describe(file: Any, layer: xr.DataArray, facts: Mapping[str, Any]) -> None:
    """Write colours, names of bands and the facts of the run into an open file."""
    file.update_tags(**{k: _text(v) for k, v in facts.items()})
    tags = {k: _text(layer.attrs[k]) for k in _BAND_TAGS if k in layer.attrs}
    for number, name in enumerate(_band_names(layer), start=1):
        file.set_band_description(number, name)
        file.update_tags(number, **tags)
    colors = layer.attrs.get("flag_colors", "").split()
    if colors and file.count == 1:
        table = {int(v): _rgb(c) for v, c in zip(layer.attrs["flag_values"], colors, strict=True)}
        file.write_colormap(1, table)


def _band_names(layer: xr.DataArray) -> list[str]:
    if layer.ndim == 2:
        return [layer.attrs.get("long_name", str(layer.name))]
    along = layer[layer.dims[0]]
    return [str(n) for n in along.attrs.get("class_names", along.values)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def category_names(layer: xr.DataArray) -> str | None:
    """Return the class names as the XML that GDAL and QGIS read beside a TIFF, which has no place for them."""
    if "flag_values" not in layer.attrs or layer.ndim != 2:
        return None
    names = dict(zip(layer.attrs["flag_values"], layer.attrs["class_names"], strict=True))
    lines = [f"<Category>{escape(names.get(v, ''))}</Category>" for v in range(max(names) + 1)]
    inside = "\n      ".join(lines)
    return (
        '<PAMDataset>\n  <PAMRasterBand band="1">\n    <CategoryNames>\n      '
        f"{inside}\n    </CategoryNames>\n  </PAMRasterBand>\n</PAMDataset>\n"
    )
