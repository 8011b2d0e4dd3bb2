"""Labels brought onto the grid of a cube, block by block.

In: shapes with values, or a raster of codes, and the grid. Out: `(y, x)` arrays, NumPy, or Dask with the chunks of the
cube: a block then holds only its own shapes, or reads only its own window. What is not labelled is 255, or NaN.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import shapely
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from xgfm.cf import NODATA
from xgfm.errors import GridError, LabelError
from xgfm.jobs.region import transformer
from xgfm.train.labels.legend import Legend

if TYPE_CHECKING:
    import dask.array as da
    from affine import Affine
    from odc.geo.crs import CRS

Chunks = tuple[tuple[int, ...], tuple[int, ...]]
"""Sizes of the chunks along y and x."""

_DRAWING = threading.Lock()
"""rasterio mutes a warning of its own by a filter that all threads share: two at once would let it through."""


class Part(Protocol):
    """Labels of one block."""

    def read(self) -> NDArray[Any]:
        """Return the block, ``(y, x)``."""


def grid_crs(geobox: GeoBox) -> CRS:
    """Return the CRS of a grid, which `geobox_of` has made sure of."""
    if geobox.crs is None:
        raise GridError("the grid has no CRS; attach one with cube.odc.assign_crs('EPSG:...')")
    return geobox.crs


def applied(transform: Affine, columns: Any, rows: Any) -> tuple[Any, Any]:
    """Return x and y of columns and rows, or the reverse with the inverse transform."""
    return (
        transform.a * columns + transform.b * rows + transform.c,
        transform.d * columns + transform.e * rows + transform.f,
    )


def gridded(part_of: Callable[[GeoBox], Part], geobox: GeoBox, chunks: Chunks | None, dtype: str) -> Any:
    """Return labels on a grid.

    Parameters
    ----------
    part_of : callable
        Gives the part of any piece of the grid. It is called here; its `Part` is read when the block is computed.
    geobox : GeoBox
    chunks : tuple, optional
        None: at once, in NumPy.
    dtype : str

    Returns
    -------
    numpy.ndarray or dask.array.Array
    """
    return part_of(geobox).read() if chunks is None else _lazy(part_of, geobox, chunks, dtype)


def _lazy(part_of: Callable[[GeoBox], Part], geobox: GeoBox, chunks: Chunks, dtype: str) -> da.Array:
    import dask.array as da

    rows, columns = (np.concatenate([[0], np.cumsum(sizes)]).tolist() for sizes in chunks)
    parts = np.empty((len(chunks[0]), len(chunks[1])), object)
    for i, j in np.ndindex(parts.shape):
        parts[i, j] = part_of(geobox[rows[i] : rows[i + 1], columns[j] : columns[j + 1]])
    # One part to a chunk: each task carries its own and nothing else.
    lazy: da.Array = da.map_blocks(
        _read, da.from_array(parts, chunks=1), chunks=chunks, dtype=dtype, meta=np.empty((0, 0), dtype)
    )
    return lazy


def _read(parts: NDArray[np.object_]) -> NDArray[Any]:
    values: NDArray[Any] = parts[0, 0].read()
    return values


# ---- shapes


@dataclass(frozen=True, slots=True)
class Shapes:
    """Geometries in the CRS of a grid, with the value of each; later ones lie on top."""

    geometry: NDArray[np.object_]
    values: NDArray[Any]
    """uint8 indexes of classes, or float32."""
    all_touched: bool

    def within(self, tree: shapely.STRtree, piece: GeoBox) -> BurnedPart:
        """Return the part of a piece of the grid."""
        # One pixel more: with all_touched a shape on the edge counts, and so does a point on it.
        box = piece.pad(1).extent.geom
        rows = np.sort(tree.query(box))
        return BurnedPart(self.geometry[rows], self.values[rows], piece, self.all_touched)


@dataclass(frozen=True, slots=True)
class BurnedPart:
    """Shapes of one block."""

    geometry: NDArray[np.object_]
    values: NDArray[Any]
    geobox: GeoBox
    all_touched: bool

    def read(self) -> NDArray[Any]:
        """Return the value of the last shape that holds each pixel's centre."""
        from rasterio.features import rasterize

        fill = math.nan if self.values.dtype.kind == "f" else NODATA
        shape = tuple(self.geobox.shape)
        if not len(self.geometry):
            return np.full(shape, fill, self.values.dtype)
        pairs = zip(self.geometry, self.values.tolist(), strict=True)
        with _DRAWING:
            burned: NDArray[Any] = rasterize(
                pairs, out_shape=shape, fill=fill, transform=self.geobox.transform, all_touched=self.all_touched,
                dtype=self.values.dtype.name,
            )  # fmt: skip
        return burned


def burn(shapes: Shapes, geobox: GeoBox, chunks: Chunks | None) -> Any:
    """Return shapes on a grid: the last one that holds a pixel's centre, or touches the pixel."""
    tree = shapely.STRtree(shapes.geometry)
    return gridded(lambda piece: shapes.within(tree, piece), geobox, chunks, shapes.values.dtype.name)


# ---- rasters


class Source(Protocol):
    """A raster that windows are read from."""

    @property
    def geobox(self) -> GeoBox:
        """The raster's own grid."""

    def window(self, rows: slice, columns: slice) -> NDArray[Any]:
        """Return values ``(y, x)``."""


@dataclass(frozen=True, slots=True)
class RasterPart:
    """A raster's values for one block: those of its pixels that hold the block's pixel centres."""

    source: Source
    geobox: GeoBox
    nodata: float | None
    legend: Legend | None
    """None: a regression target."""
    name: str

    def read(self) -> NDArray[Any]:
        """Return class indexes, or values."""
        codes, there = self._nearest()
        if codes.dtype.kind == "f":
            there &= ~np.isnan(codes)
        if self.nodata is not None:
            there &= codes != self.nodata
        if self.legend is None:
            return np.where(there, codes, np.nan).astype("float32")
        out = np.full(codes.shape, NODATA, "uint8")
        try:
            out[there] = self.legend.lookup(codes[there])
        except LabelError as error:
            raise LabelError(f"{self.name}: {error}") from None
        return out

    def _nearest(self) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Values at the block's pixel centres, and where there are any."""
        rows, columns = _positions(self.source.geobox, self.geobox)
        height, width = self.source.geobox.shape
        there = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        shape = tuple(self.geobox.shape)
        if not there.any():
            return np.zeros(shape, "float32"), there
        rows, columns = np.where(there, rows, rows[there][0]), np.where(there, columns, columns[there][0])
        first, left = int(rows.min()), int(columns.min())
        values = self.source.window(slice(first, int(rows.max()) + 1), slice(left, int(columns.max()) + 1))
        return values[rows - first, columns - left], there


def _positions(source: GeoBox, target: GeoBox) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column of the source pixels that hold the target's pixel centres, ``(y, x)`` each; -1 where none can."""
    height, width = target.shape
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    x, y = applied(target.transform, columns, rows)
    if source.crs != target.crs:
        x, y = transformer(target.crs, source.crs).transform(x, y)
    columns, rows = applied(~source.transform, x, y)
    known = np.isfinite(rows) & np.isfinite(columns)
    # A centre on the edge of two pixels belongs to the next one, whatever the last digit says.
    return tuple(np.where(known, np.floor(np.where(known, p, -1) + 1e-6), -1).astype("int64") for p in (rows, columns))  # type: ignore[return-value]
