"""One file of a granule to pixels of a target grid.

In: where the granule lies on the target, and which part of the target is wanted. Out: those pixels, fill where there
are none, and how many bytes of the file they took. Eager: the file is opened, read and closed.

What a pixel is never depends on the part that is asked for. Pixels of the target's own lattice are copied. Others are
warped in squares whose edges lie on the CRS's lattice, since GDAL's answer depends, by rounding and by approximation,
on the window that it warps at once.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from xgfm.cube.credentials import gdal_path
from xgfm.cube.loaders import Layer, Source, check_file
from xgfm.grid import TILE_PIXELS, TILE_RESOLUTION

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox
    from rasterio.io import DatasetReader

_SQUARE = 256
"""Rows and columns that are warped at once."""

Part = tuple[int, int, int, int]
"""First row, first column, end of rows, end of columns; in pixels of the target."""


class Blocks:
    """Bytes of the blocks of a file that reads touch, each block once."""

    def __init__(self) -> None:
        self.bytes = 0
        self._seen: set[tuple[int, int]] = set()
        self._lock = threading.Lock()

    def touch(self, file: DatasetReader, top: float, left: float, bottom: float, right: float) -> None:
        """Count the blocks under a part of the file, given in its own pixels."""
        height, width = file.block_shapes[0]
        rows = range(max(int(top), 0) // height, -(-min(int(np.ceil(bottom)), file.height) // height))
        columns = range(max(int(left), 0) // width, -(-min(int(np.ceil(right)), file.width) // width))
        with self._lock:
            fresh = set(product(rows, columns)) - self._seen
            self._seen |= fresh
            self.bytes += sum(_size(file, *block) for block in fresh)


def read_part(source: Source, part: Part, geobox: GeoBox, layer: Layer, blocks: Blocks) -> NDArray[Any]:
    """Read a part of the target out of one file.

    Parameters
    ----------
    source
        The file, and where its tile lies on the target.
    part
        Inside of the tile's place.
    geobox
        The target.
    layer
        Dtype, fill and resampling.
    blocks
        Told what of the file is read.
    """
    import rasterio

    path = gdal_path(source.href)
    check_file(path, source, layer.dtype)
    with rasterio.open(path, sharing=False) as file:
        if source.aligned:
            return _copy(file, source, part, layer, blocks)
        return _warp(file, source, part, geobox, layer, blocks)


def _copy(file: DatasetReader, source: Source, part: Part, layer: Layer, blocks: Blocks) -> NDArray[Any]:
    """Copy pixels of a file on the target's own lattice; the file may be less than its tile."""
    row = source.row + round((source.top - file.transform.f) / TILE_RESOLUTION)
    column = source.column + round((file.transform.c - source.left) / TILE_RESOLUTION)
    out = np.full((part[2] - part[0], part[3] - part[1]), layer.fill, layer.dtype)
    top, left = max(part[0], row), max(part[1], column)
    bottom, right = min(part[2], row + file.height), min(part[3], column + file.width)
    if top >= bottom or left >= right:
        return out
    pixels = _read(file, (top - row, left - column, bottom - row, right - column), file.nodata, layer, blocks)
    out[top - part[0] : bottom - part[0], left - part[1] : right - part[1]] = pixels
    return out


def _read(file: DatasetReader, part: Part, nodata: float | None, layer: Layer, blocks: Blocks) -> NDArray[Any]:
    blocks.touch(file, *part)
    pixels: NDArray[Any] = file.read(1, window=_window(part))
    if nodata is not None and nodata != layer.fill:
        pixels[pixels == nodata] = layer.fill
    return pixels


def _warp(
    file: DatasetReader, source: Source, part: Part, geobox: GeoBox, layer: Layer, blocks: Blocks
) -> NDArray[Any]:
    """Warp squares of the CRS's lattice, and put together what is wanted of them."""
    from rasterio.vrt import WarpedVRT

    out = np.empty((part[2] - part[0], part[3] - part[1]), layer.dtype)
    options, row, column = _warped(file, source, geobox, layer)
    starts = (
        range((n // _SQUARE) * _SQUARE, n + size, _SQUARE)
        for n, size in zip((part[0] - row, part[1] - column), out.shape, strict=True)
    )
    with WarpedVRT(file, **options) as warped:
        for top, left in product(*starts):
            square = (top, left, top + _SQUARE, left + _SQUARE)
            _touch(file, source, warped, square, blocks)
            _lay(out, warped.read(1, window=_window(square)), top + row - part[0], left + column - part[1])
    return out


def _warped(file: DatasetReader, source: Source, geobox: GeoBox, layer: Layer) -> tuple[dict[str, Any], int, int]:
    """Return what a warped file is to be, in whole squares of the CRS's lattice, and where it lies on the target."""
    from rasterio.enums import Resampling

    assert geobox.crs is not None  # a cube's grid has one
    width, height, crs = geobox.resolution.x, -geobox.resolution.y, geobox.crs.to_wkt()
    origin = round(-geobox.transform.f / height), round(geobox.transform.c / width)
    rest = geobox.transform.f + origin[0] * height, geobox.transform.c - origin[1] * width  # off the CRS's lattice
    first = [(n + o) // _SQUARE * _SQUARE for n, o in zip((source.row, source.column), origin, strict=True)]
    last = origin[0] + source.row + source.rows, origin[1] + source.column + source.columns
    shape = [-(-(end - start) // _SQUARE) * _SQUARE for start, end in zip(first, last, strict=True)]
    scale = _scale(source.epsg, source.left, source.top, crs, width)
    options = {
        "src_crs": f"EPSG:{source.epsg}",  # that of older files is nameless
        "crs": crs,
        "transform": Affine(width, 0, first[1] * width + rest[1], 0, -height, rest[0] - first[0] * height),
        "height": shape[0],
        "width": shape[1],
        "resampling": Resampling[layer.resampling],
        "src_nodata": layer.fill if file.nodata is None else file.nodata,
        "nodata": layer.fill,
        "XSCALE": scale,
        "YSCALE": scale,
    }
    return options, first[0] - origin[0], first[1] - origin[1]


def _lay(out: NDArray[Any], pixels: NDArray[Any], row: int, column: int) -> None:
    """Copy what of a square lies in an array, the square's corner being at (row, column) of it."""
    rows = slice(max(row, 0), min(row + len(pixels), len(out)))
    columns = slice(max(column, 0), min(column + pixels.shape[1], out.shape[1]))
    out[rows, columns] = pixels[rows.start - row : rows.stop - row, columns.start - column : columns.stop - column]


def _touch(file: DatasetReader, source: Source, warped: Any, square: Part, blocks: Blocks) -> None:
    """Count the blocks of a file under a square of the warped one, with a pixel around it for interpolation."""
    from rasterio.warp import transform

    where, edge = warped.transform, np.linspace(0, _SQUARE, 5)
    along, down = (values.ravel() for values in np.meshgrid(square[1] + edge, square[0] + edge))
    x, y = transform(warped.crs, f"EPSG:{source.epsg}", where.a * along + where.c, where.e * down + where.f)
    column, row = ~file.transform * (np.asarray(x), np.asarray(y))
    if np.isfinite(row).all() and np.isfinite(column).all():
        blocks.touch(file, row.min() - 1, column.min() - 1, row.max() + 1, column.max() + 1)


@lru_cache(maxsize=4096)
def _scale(epsg: int, left: float, top: float, crs: str, size: float) -> float:
    """Pixels of the target for one of the tile, along a side, in the middle of the tile.

    GDAL would measure it window by window, and widen its kernel in some of them.
    """
    from pyproj import Transformer

    half = TILE_PIXELS // 2 * TILE_RESOLUTION
    x, y = left + half, top - half
    there = Transformer.from_crs(f"EPSG:{epsg}", crs, always_xy=True)
    xs, ys = there.transform([x, x + TILE_RESOLUTION, x], [y, y, y + TILE_RESOLUTION])
    area = (xs[1] - xs[0]) * (ys[2] - ys[0]) - (xs[2] - xs[0]) * (ys[1] - ys[0])
    return float(np.sqrt(abs(area)) / size)


def _size(file: DatasetReader, row: int, column: int) -> int:
    from rasterio.errors import RasterioError

    try:
        size: int = file.block_size(1, row, column)
    except (RasterioError, ValueError, RuntimeError):  # only tiles of GeoTIFFs say it, and empty ones do not
        return 0
    return size


def _window(part: Part) -> Any:
    from rasterio.windows import Window

    return Window(part[1], part[0], part[3] - part[1], part[2] - part[0])
