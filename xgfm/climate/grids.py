"""Climate grids: by name, from a model's bounds, or any GeoBox.

In: a name, a Dataset with latitudes, longitudes and their bounds, or a GeoBox; and the maps that are to be summed. Out:
the cells of that grid which meet the maps, as a record. No pixel is read.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xgfm.climate.globe import Extent, extent, fractional_pixels, outline, pixel_areas, zone_areas
from xgfm.cube.hrefs import redacted
from xgfm.errors import GridError
from xgfm.grid import crs_name

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

Array = np.ndarray[Any, Any]
NAMES = ("0.05deg", "0.1deg", "0.25deg", "0.5deg", "1deg")
"""Grids that are known by name; any other ``<n>deg`` that divides 180 degrees is as good."""
_SNAP = 1e-7
"""Cells by which a map may reach over a cell's edge without meeting the next cell: rounding."""


@dataclass(frozen=True, eq=False)
class ClimateGrid:
    """Cells of a climate grid: rows and columns of latitude and longitude, or the pixels of a GeoBox."""

    name: str
    """As it was asked for: ``"0.05deg"``, a model's name, or the GeoBox's CRS and resolution."""
    lat: Array
    """``(lat,)`` degrees north, increasing; empty for a GeoBox."""
    lon: Array
    """``(lon,)`` degrees east, increasing, past 180 or 360 where the map crosses the seam; empty for a GeoBox."""
    lat_bounds: Array
    """``(lat, 2)`` float64; each cell begins where the last one ends."""
    lon_bounds: Array
    """``(lon, 2)`` float64."""
    geobox: GeoBox | None = None
    """Where the grid is one."""

    @property
    def dims(self) -> tuple[str, str]:
        """Names of its dimensions."""
        return ("lat", "lon") if self.geobox is None else ("y", "x")

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        if self.geobox is None:
            return (len(self.lat), len(self.lon))
        rows, columns = self.geobox.shape
        return (int(rows), int(columns))

    @property
    def lat_edges(self) -> Array:
        """``(lat + 1,)``, increasing."""
        return np.append(self.lat_bounds[:, 0], self.lat_bounds[-1:, 1])

    @property
    def lon_edges(self) -> Array:
        """``(lon + 1,)``, increasing."""
        return np.append(self.lon_bounds[:, 0], self.lon_bounds[-1:, 1])

    def cell_areas(self) -> Array:
        """Return the area of each cell on the WGS84 ellipsoid ``(lat, lon)``, in m2.

        Between parallels and meridians it is exact; of a GeoBox's pixels it is the integral of the areal scale.
        """
        if self.geobox is None:
            width = np.deg2rad(np.diff(self.lon_edges))
            return np.diff(zone_areas(self.lat_edges))[:, None] * width[None, :]
        return pixel_areas(self.geobox)


def target_grid(
    grid: str | PathLike[str] | xr.Dataset | GeoBox | ClimateGrid,
    *,
    over: xr.Dataset | xr.DataArray | GeoBox | Sequence[GeoBox] | None = None,
) -> ClimateGrid:
    """Return a climate grid, or the part of it that maps meet.

    Parameters
    ----------
    grid : str, path, Dataset, GeoBox or ClimateGrid
        ``"0.05deg"``, ``"0.1deg"``, ``"0.25deg"``, or any ``"<n>deg"`` that divides 180 degrees: cells from 180 W and
        90 S. A Dataset, or the path of one, with one-dimensional ``lat`` and ``lon`` and their bounds, such as a file
        of a CMIP6 model; cells that pass a pole by half their height at most end at it. A GeoBox in any CRS; one in
        degrees on WGS84 becomes latitudes and longitudes.
    over : Dataset, DataArray, GeoBox or sequence of GeoBox, optional
        The maps. The cells that they meet are kept: rows and columns of the whole grid.

    Returns
    -------
    ClimateGrid

    Raises
    ------
    GridError
        For an unknown name, a path that cannot be opened, a Dataset without bounds, cells that do not
        adjoin, or a grid that the maps do not meet.
    """
    whole = _whole(grid)
    if over is None:
        return whole
    boxes = _boxes(over)
    return _part(whole, boxes) if whole.geobox is None else _part_of_geobox(whole, whole.geobox, boxes)


def _boxes(over: Any) -> list[GeoBox]:
    from odc.geo.geobox import GeoBox

    from xgfm.grid import geobox_of

    if isinstance(over, xr.Dataset | xr.DataArray):
        return [geobox_of(over)]
    return [over] if isinstance(over, GeoBox) else list(over)


def _whole(grid: Any) -> ClimateGrid:
    from odc.geo.geobox import GeoBox

    if isinstance(grid, ClimateGrid):
        return grid
    if isinstance(grid, GeoBox):
        return _of_geobox(grid)
    if isinstance(grid, xr.Dataset):
        return _of_dataset(grid, str(grid.attrs.get("source_id", "model grid")))
    if isinstance(grid, str) and not re.search(r"[/\\]|\.(nc4?|zarr|cdf|h5)$|^\w+://", grid):
        return _named(grid)
    if isinstance(grid, str | PathLike):
        return _of_file(fspath(grid))
    number = isinstance(grid, int | float) and not isinstance(grid, bool)
    said, name = (f"{grid!r}", f"{grid:g}deg") if number else (f"a {type(grid).__name__}", "0.05deg")
    raise GridError(
        f"grid= is {said}, which is no climate grid; give a name such as grid={name!r}, a Dataset with lat, lon and "
        "their bounds, or a GeoBox"
    )


def _of_file(path: str) -> ClimateGrid:
    """Return the grid of a model by its file."""
    try:
        opened = xr.open_dataset(path, decode_times=False)
    except (OSError, ValueError) as error:
        known = "it cannot be read" if isinstance(error, OSError) else "xarray knows no reader for it"
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else known
        raise GridError(
            f"grid={redacted(path)!r}: {reason}; give the path of a file with lat, lon and their bounds, or "
            f"a name such as {NAMES[0]!r}"
        ) from error
    with opened:
        return _of_dataset(opened, str(opened.attrs.get("source_id", "model grid")))


def _named(name: str) -> ClimateGrid:
    """Return the whole globe in cells of so many degrees."""
    match = re.fullmatch(r"(\d*\.?\d+)\s*deg(rees?)?", name.strip().lower())
    step = float(match[1]) if match else 0.0
    rows = round(180 / step) if step else 0
    if rows < 1 or abs(rows * step - 180) > 1e-9 * rows:
        nearest = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.0)
        reason = f"{step:g} degrees do not divide 180" if match and step else "it is no grid's name"
        raise GridError(
            f"grid={name!r}: {reason}; known are {', '.join(NAMES)} (the nearest is {nearest[0]!r}), any '<n>deg' "
            "that divides 180, a Dataset with lat and lon bounds, or a GeoBox"
        )
    # From whole numbers, so that edges are the same doubles for every part of the grid.
    lat = np.arange(rows + 1) * 180.0 / rows - 90.0
    lon = np.arange(2 * rows + 1) * 180.0 / rows - 180.0
    return _of_edges(f"{step:g}deg", lat, lon)


def _of_edges(name: str, lat: Array, lon: Array) -> ClimateGrid:
    lats, lons = (np.stack([edges[:-1], edges[1:]], axis=1) for edges in (lat, lon))
    return ClimateGrid(name, lats.mean(axis=1), lons.mean(axis=1), lats, lons)


def _of_geobox(box: GeoBox) -> ClimateGrid:
    if box.crs is None:
        raise GridError("grid= is a GeoBox without a CRS; give one with crs='EPSG:...'")
    if 0 in box.shape:
        raise GridError(f"grid= is a GeoBox of {box.shape[0]} x {box.shape[1]} cells; give one with a cell or more")
    transform = box.transform
    if box.crs.epsg == 4326 and not transform.b and not transform.d:
        rows, columns = box.shape
        lat = transform.f + transform.e * np.arange(rows + 1)
        lon = transform.c + transform.a * np.arange(columns + 1)
        return _of_edges(f"EPSG:4326 at {abs(transform.a):g} degrees", np.sort(lat), np.sort(lon))
    none = np.empty(0)
    name = f"{crs_name(box.crs)} at {abs(box.resolution.x):g} {box.crs.units[0]}"
    return ClimateGrid(name, none, none, np.empty((0, 2)), np.empty((0, 2)), box)


def _of_dataset(dataset: xr.Dataset, name: str) -> ClimateGrid:
    lat, lat_bounds = _coordinate(dataset, "lat", ("latitude", "degrees_north"))
    lon, lon_bounds = _coordinate(dataset, "lon", ("longitude", "degrees_east"))
    # Where rows stand on the poles, as in ERA5, bounds half way between centres pass them by half a cell.
    spare = 0.001 + np.diff(lat_bounds[[0, -1]], axis=1)[:, 0] / 2
    if lat_bounds.min() < -90 - spare[0] or lat_bounds.max() > 90 + spare[1] or np.ptp(lon_bounds) > 360.001:
        raise GridError(
            f"the grid's bounds reach from {lat_bounds.min():g} to {lat_bounds.max():g} north and from "
            f"{lon_bounds.min():g} to {lon_bounds.max():g} east; expected degrees, at most once around the globe"
        )
    return ClimateGrid(name, lat, lon, lat_bounds.clip(-90, 90), lon_bounds)


def _coordinate(dataset: xr.Dataset, name: str, known: tuple[str, str]) -> tuple[Array, Array]:
    """Return the centres and bounds of one axis, increasing."""
    own, found = next(
        (
            (str(n), v)
            for n, v in dataset.variables.items()
            if n in (name, known[0]) or v.attrs.get("standard_name") == known[0] or v.attrs.get("units") == known[1]
        ),
        (name, None),
    )
    if found is None or found.ndim != 1 or not found.size:
        shape = "is not there" if found is None else f"has dims {found.dims} and shape {found.shape}"
        raise GridError(
            f"{known[0]} of the grid {shape}; expected a one-dimensional coordinate {name!r} with a cell or more. "
            "Give a curvilinear or rotated grid as a GeoBox in its own CRS"
        )
    named = (found.attrs.get("bounds"), found.encoding.get("bounds"), f"{own}_bnds", f"{own}_bounds")
    bounds = next((dataset[n] for n in named if n is not None and n in dataset.variables), None)
    if bounds is None or bounds.ndim != 2 or bounds.shape != (found.size, 2):
        raise GridError(
            f"the grid's {own} has no bounds, and centres do not say where cells end; give a Dataset with "
            f"{own}_bnds ({own}, 2): for evenly spaced centres, dataset.cf.add_bounds({own!r}) after import cf_xarray"
        )
    values, cells = found.values.astype("float64"), np.sort(bounds.values.astype("float64"), axis=1)
    order = np.argsort(values)
    values, cells = values[order], cells[order]
    gaps = np.abs(cells[1:, 0] - cells[:-1, 1])
    if (
        not np.isfinite(cells).all()
        or (gaps > 1e-4 * np.diff(cells, axis=1).min()).any()
        or not (np.diff(cells) > 0).all()
    ):
        raise GridError(f"the cells of the grid's {own} do not adjoin; expected each to begin where the last one ends")
    cells[1:, 0] = cells[:-1, 1]
    return values, cells


def _part(whole: ClimateGrid, boxes: Sequence[GeoBox]) -> ClimateGrid:
    """Return the rows and columns of latitudes and longitudes that maps meet."""
    there = extent(boxes)
    rows = _within(whole.lat_edges, there.south, there.north)
    lon = whole.lon_edges
    around = lon[-1] - lon[0] > 360 - 1e-6
    if around:
        columns = _around(lon, there)
    else:
        turn = 360 * np.round(((lon[0] + lon[-1]) / 2 - (there.west + there.east) / 2) / 360)
        columns = _within(lon, there.west + turn, there.east + turn)
    if not len(rows) or not len(columns):
        covered = Extent(lon[0], whole.lat_edges[0], whole.lat_edges[-1], lon[-1])
        raise GridError(
            f"the map ({there}) and the grid {whole.name!r} ({covered}) do not meet; give a grid= that covers the map"
        )
    turns, columns = np.divmod(columns, len(whole.lon))
    return replace(
        whole,
        lat=whole.lat[rows],
        lat_bounds=whole.lat_bounds[rows],
        lon=whole.lon[columns] + 360.0 * turns,
        lon_bounds=whole.lon_bounds[columns] + 360.0 * turns[:, None],
    )


def _within(edges: Array, low: float, high: float) -> Array:
    """Return the numbers of the cells between increasing edges that an interval meets."""
    snap = _SNAP * float(np.diff(edges).min())
    first = int(np.searchsorted(edges, low + snap, "right")) - 1
    last = int(np.searchsorted(edges, high - snap, "left"))
    return np.arange(max(first, 0), min(last, len(edges) - 1))


def _around(edges: Array, there: Extent) -> Array:
    """Return the numbers of the columns that an extent meets on a grid around the globe, past the last one too."""
    count = len(edges) - 1
    if there.east - there.west > 360 - 1e-6:
        return np.arange(count)
    turn = 360 * np.floor((there.west - edges[0] + _SNAP * (edges[1] - edges[0])) / 360)
    twice = np.concatenate([edges[:-1], edges + 360])
    return _within(twice, there.west - turn, there.east - turn)[:count]


def _part_of_geobox(whole: ClimateGrid, target: GeoBox, boxes: Sequence[GeoBox]) -> ClimateGrid:
    """Return the window of a GeoBox that maps meet."""
    found = [fractional_pixels(target, box, outline(box)) for box in boxes]
    rows, columns = (np.concatenate([f[axis] for f in found]) for axis in (0, 1))
    good = np.isfinite(rows) & np.isfinite(columns)
    windows = [
        _within(np.arange(size + 1.0), float(v[good].min()), float(v[good].max())) if good.any() else np.empty(0)
        for v, size in zip((rows, columns), target.shape, strict=True)
    ]
    if not all(len(w) for w in windows):
        raise GridError(
            f"the map ({extent(boxes)}) and the grid {whole.name!r} ({extent([target])}) do not meet; give a "
            "grid= that covers the map"
        )
    (top, bottom), (left, right) = ((int(w[0]), int(w[-1]) + 1) for w in windows)
    return replace(whole, geobox=target[top:bottom, left:right])
