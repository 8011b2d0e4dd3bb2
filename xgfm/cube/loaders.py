"""Granules to pixels: the loaders behind one small protocol.

In: time steps, each some granules in order of precedence, and the target grid. Out: a lazy array
``(time, band, y, x)`` whose chunks are read, on the worker, when they are computed. This module holds what the loaders
share; each hands every file to `xgfm.cube.credentials.read`, so that credentials and errors are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from xgfm.cube.items import HlsItem
from xgfm.errors import GridError, ItemError, MissingExtraError, XgfmError
from xgfm.grid import TILE_PIXELS, TILE_RESOLUTION

if TYPE_CHECKING:
    import dask.array as da
    from odc.geo.crs import CRS
    from odc.geo.geobox import GeoBox

Step = Sequence[HlsItem]
"""The granules of one time step; where several have a valid pixel, the first one's counts."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What kind of pixels a load gives."""

    dtype: str
    fill: int
    """Where no granule has a valid pixel."""
    resampling: str
    """Used only where a granule does not lie on the target's own lattice."""


REFLECTANCE = Layer("int16", -9999, "bilinear")
FMASK = Layer("uint8", 255, "nearest")


class Loader(Protocol):
    """Makes the lazy array of a cube."""

    def __call__(
        self,
        steps: Sequence[Step],
        bands: Sequence[str],
        geobox: GeoBox,
        layer: Layer,
        *,
        chunks: tuple[int, int],
        gdal: Mapping[str, str],
    ) -> da.Array:
        """Return ``(time, band, y, x)`` in chunks of one step, all bands and ``chunks`` pixels; nothing is opened.

        Parameters
        ----------
        steps : sequence of sequence of HlsItem
            In order of time; never empty.
        bands : sequence of str
            Keys of the items' ``hrefs``.
        geobox : GeoBox
            North-up target grid.
        layer : Layer
            Dtype, fill and resampling.
        chunks : tuple of int
            Rows and columns of a chunk.
        gdal : mapping
            GDAL settings under which every file is opened and read.
        """


@dataclass(frozen=True, slots=True)
class Source:
    """One asset on the target grid."""

    href: str
    item: str
    asset: str
    aligned: bool
    """True where the file lies on the target's own lattice, so that its pixels are copied and not warped."""
    column: int
    row: int
    columns: int
    rows: int
    """Where the granule's tile lies, in pixels of the target; may reach beyond it. Rounded outward if not aligned."""
    epsg: int
    left: float
    top: float
    """CRS and upper left corner of the granule's tile: where the file must lie."""

    def overlap(self, row: int, column: int, rows: int, columns: int) -> tuple[slice, slice] | None:
        """Return the part of a window that the tile covers, counted from the window's corner; None if it misses."""
        top, left = max(row, self.row), max(column, self.column)
        bottom, right = min(row + rows, self.row + self.rows), min(column + columns, self.column + self.columns)
        if top >= bottom or left >= right:
            return None
        return slice(top - row, bottom - row), slice(left - column, right - column)


def place(item: HlsItem, band: str, geobox: GeoBox) -> Source:
    """Return where a granule's asset lies on the target grid."""
    grid = item.geobox
    same = grid.crs == geobox.crs and grid.resolution == geobox.resolution
    left, bottom, right, top = _bounds_in(tuple(grid.boundingbox.bbox), grid.crs, geobox.crs)
    column, row = (left - geobox.transform.c) / geobox.transform.a, (top - geobox.transform.f) / geobox.transform.e
    aligned = bool(same and column == round(column) and row == round(row))
    if aligned:
        position = round(column), round(row), grid.shape[1], grid.shape[0]
    else:
        # Two pixels more: the warp's kernel reaches out, and a projected edge is not straight.
        column, row = int(np.floor(column)) - 2, int(np.floor(row)) - 2
        end = (right - geobox.transform.c) / geobox.transform.a, (bottom - geobox.transform.f) / geobox.transform.e
        position = column, row, int(np.ceil(end[0])) + 2 - column, int(np.ceil(end[1])) + 2 - row
    where = (grid.crs.epsg if grid.crs else None) or 0, grid.transform.c, grid.transform.f
    return Source(item.hrefs[band], item.id, item.asset(band), aligned, *position, *where)


_located: set[str] = set()  # files that this process has looked at


def check_file(path: str, source: Source, dtype: Any) -> None:
    """Refuse a file of another place, pixel size or kind than its item says: it would be read as nodata or garbage.

    Looks once at a file in each process; GDAL keeps the header, so that opening it again asks nothing of the server.

    Raises
    ------
    ItemError
        Where it is.
    """
    import rasterio

    if path in _located:
        return
    with rasterio.open(path, sharing=False) as file:
        transform, crs, kinds = file.transform, file.crs, file.dtypes
    away = (transform.c - source.left) / TILE_RESOLUTION, (source.top - transform.f) / TILE_RESOLUTION
    straight = (transform.a, transform.b, transform.d, transform.e) == (TILE_RESOLUTION, 0, 0, -TILE_RESOLUTION)
    inside = all(0 <= a < TILE_PIXELS and a == round(a) for a in away)
    if not (straight and inside and _same_crs(crs, source.epsg)):
        raise ItemError(
            f"the file lies at {transform.c:.0f}, {transform.f:.0f} in {str(crs)[:60]}, which is not on the grid "
            f"of its tile, 30 m from {source.left:.0f}, {source.top:.0f} in EPSG:{source.epsg}; correct the item"
        )
    # Not what can be cast: a picture's uint8 would pass for very dark reflectance.
    if kinds != (np.dtype(dtype).name,):
        raise ItemError(
            f"the file holds {', '.join(kinds[:4])}, expected one band of {np.dtype(dtype)} digital numbers as HLS "
            "publishes them; correct the item, or leave it out"
        )
    _located.add(path)


def _same_crs(crs: Any, epsg: int) -> bool:
    """Whether a file's CRS is that of its tile; older HLS files have one without a code, which says nothing."""
    from rasterio.crs import CRS

    return crs == CRS.from_epsg(epsg) or (crs is not None and _is_nameless(crs.to_wkt()))


@cache  # PROJ searches its whole database, some 50 ms
def _is_nameless(wkt: str) -> bool:
    from rasterio.crs import CRS

    crs = CRS.from_wkt(wkt)
    return bool(crs.is_projected) and crs.to_epsg() is None


@lru_cache(maxsize=4096)  # each block of a job asks it of each granule, and PROJ takes some 20 ms to find a way
def _bounds_in(
    bounds: tuple[float, float, float, float], crs: CRS | None, target: CRS | None
) -> tuple[float, float, float, float]:
    """Left, bottom, right, top of a tile in another CRS."""
    if crs == target or crs is None or target is None:
        return bounds
    from pyproj import Transformer

    return Transformer.from_crs(crs.proj, target.proj, always_xy=True).transform_bounds(*bounds, densify_pts=41)


def check_chunks(chunks: Any) -> tuple[int, int]:
    """Return rows and columns of a chunk.

    Raises
    ------
    XgfmError
        Where they are not two whole numbers from 1 on.
    """
    sides = chunks if isinstance(chunks, tuple | list) else (chunks, chunks)
    whole = [int(n) for n in sides if isinstance(n, int | np.integer) and not isinstance(n, bool) and n > 0]
    if len(sides) != 2 or len(whole) != 2:
        raise XgfmError(
            f"chunks={chunks!r} must be the side of a chunk in pixels, or its (rows, columns): whole numbers from 1 on"
        )
    return whole[0], whole[1]


def check_grid(sizes: Mapping[Any, int], x: NDArray[Any], y: NDArray[Any], geobox: GeoBox) -> None:
    """Refuse a library's array that does not lie where it was asked to: stackstac can be wrong without a word."""
    names = list(geobox.dimensions)
    expected = [geobox.coords[name].values for name in names]
    for got, wanted, step in zip((y, x), expected, (geobox.resolution.y, geobox.resolution.x), strict=True):
        if got.shape != wanted.shape or np.abs(got - wanted).max() > 1e-6 * abs(step):
            raise GridError(f"the loader gave {dict(sizes)}, which is not the asked grid of {tuple(geobox.shape)}")


def first_valid(
    parts: Iterator[tuple[tuple[slice, slice], NDArray[Any]]], shape: tuple[int, int], dtype: Any, fill: Any
) -> NDArray[Any]:
    """Lay parts over one another, the first valid pixel on top; parts after the last missing pixel are not read.

    Parameters
    ----------
    parts : iterator
        ``(rows, columns)`` of each part and its pixels, ``fill`` where it has none.
    shape : tuple of int
        Rows and columns of the result.
    dtype, fill
        Of the result.
    """
    out = np.full(shape, fill, dtype)
    for hit, pixels in parts:
        view = out[hit]
        np.copyto(view, pixels, where=view == fill)
        if not (out == fill).any():
            break
    return out


def get_loader(name: str) -> Loader:
    """Return a loader by name.

    Raises
    ------
    XgfmError
        Unknown name.
    MissingExtraError
        The package behind it is not installed.
    """
    if name not in LOADERS:
        raise XgfmError(f"loader={name!r} is not known; give one of {list(LOADERS)}, or a Loader")
    if name == "odc" and find_spec("odc.stac") is None:
        raise MissingExtraError("odc-stac", "odc", "loader='odc'")
    loader: Loader = import_module(LOADERS[name]).load
    return loader


LOADERS: Mapping[str, str] = {"stackstac": "xgfm.cube.loader_stackstac", "odc": "xgfm.cube.loader_odc"}
"""Names that ``loader=`` takes, and the module whose ``load`` each stands for."""
