"""Pictures of a store in the web's map projection, and the areas of classes in them.

In: an `Atlas` of a store, and bounds. Out: pixels of one layer on the picture's own grid, read from the level that fits
and warped by GDAL, nearest neighbour; no read is larger than `MOST` pixels.

Readers of tile servers were tried first. Those of rio-tiler for Zarr lay tiles on whole pixels of the map, which moves
classes by up to a pixel of it; its `XarrayReader` knows no overviews, and its interpreted code, which holds up other
threads, takes several times as long as the read and the warp (benchmarks/viewer.py).
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xgfm.cf import CLASS_DIM
from xgfm.errors import BandError, XgfmError
from xgfm.viewer.sheets import DEGREES, MERCATOR, Bounds, Level, Sheet, Source, project, sheets_of
from xgfm.viewer.style import (
    RGB,
    SHARES,
    STRETCH,
    Layer,
    class_colours,
    layers_of,
    nodata_of,
    png,
    stretch,
    true_colours,
    value_colours,
)

if TYPE_CHECKING:
    import xarray as xr

TILE = 256
"""Rows and columns of a tile."""
MOST = 4096**2
"""Pixels of a store that are read for one picture: some tenths of a second."""
CROWD = 8
"""Sheets along the side of a tile, at most: of many small ones, reading each takes its time."""
VIEW = 1024
"""Most rows or columns of the picture that areas are measured on; of several sheets, all pictures have as many pixels
as one of that side."""
COARSEST = 64
"""Least rows or columns of such a picture, of however many sheets."""
SAMPLE = 512
"""Rows and columns in the middle of a sheet that ranges of colours are found in."""
WORLD = 40_075_016.685578488
"""Metres round the equator of Mercator."""


class TooMuchError(XgfmError):
    """More pixels than are read for one picture."""


@dataclass(frozen=True)
class Share:
    """A class in a view."""

    value: int
    km2: float
    share: float
    """Of the pixels of the view that have data."""


class Atlas:
    """A store that is looked at, and the true colours underneath.

    Parameters
    ----------
    source : str, path, Dataset or DataArray
        Store of a result, or a result.
    under : str, path, Dataset or DataArray, optional
        Cube with bands red, green and blue, or the store of one.

    Raises
    ------
    XgfmError
        Where there is no store, or nothing to look at in it.
    BandError
        Where ``under`` has no red, green and blue.
    """

    def __init__(self, source: Source, under: Source | None = None) -> None:
        self.sheets = sheets_of(source)
        self.layers = {layer.name: layer for layer in layers_of(self.sheets[0].base.dataset)}
        self.under = None if under is None else sheets_of(under)
        self._turns = threading.BoundedSemaphore(os.cpu_count() or 1)
        self._ranges: dict[str, tuple[float, float]] = {}
        if self.under is not None:
            _ = self._colours  # a cube without colours is refused here

    @property
    def base(self) -> xr.Dataset:
        """The first sheet's Dataset, which says what holds for all."""
        return self.sheets[0].base.dataset

    @property
    def degrees(self) -> Bounds:
        """Bounds of all sheets."""
        edges = np.array([sheet.degrees for sheet in self.sheets])
        return (*edges[:, :2].min(0).tolist(), *edges[:, 2:].max(0).tolist())

    @cached_property
    def zooms(self) -> tuple[int, int]:
        """The least zoom whose tiles can be read, and the one where a pixel of a tile is about one of the map."""
        sheet = self.sheets[0]
        return _least_zoom(self.sheets), math.ceil(_zoom(sheet, sheet.base))

    @property
    def under_least(self) -> int:
        """The least zoom whose true colours can be read."""
        return 0 if self.under is None else _least_zoom(self.under)

    def times(self, *, under: bool = False) -> list[str]:
        """Return the dates along time; none where there is no such dimension."""
        dataset = self._under_base if under else self.base
        return [str(t)[:10] for t in np.atleast_1d(dataset["time"].values)] if "time" in dataset.dims else []

    # ---- pictures

    def tile(
        self, layer: Layer, zoom: int, x: int, y: int, *, time: int = 0, number: int = 0, hidden: frozenset[int]
    ) -> bytes:
        """Return a tile of a layer as PNG.

        Parameters
        ----------
        layer : Layer
            One of ``layers``.
        zoom, x, y : int
            Of the tile, as web maps count: from the upper left.
        time, number : int
            Positions along time and along the classes of probabilities, for layers that have them.
        hidden : frozenset of int
            Classes that are left transparent.

        Raises
        ------
        TooMuchError
            Below ``zooms[0]``.
        """
        values = self.picture(layer, tile_bounds(zoom, x, y), (TILE, TILE), time=time, number=number)
        if layer.is_map:
            return png(class_colours(values, layer.classes, hidden))
        return png(value_colours(values, *self.range(layer)))

    def picture(
        self, layer: Layer, bounds: Bounds, shape: tuple[int, int], *, time: int = 0, number: int = 0
    ) -> NDArray[Any]:
        """Return ``(y, x)`` pixels of a layer within bounds of Mercator; where sheets overlap, of the first."""
        chosen = {"time": time, CLASS_DIM: number}
        select = {dim: chosen[dim] for dim in layer.dims}
        values: NDArray[Any] = self._mosaic(self.sheets, layer.name, select, bounds, shape, layer.nodata)[0]
        return values

    def under_tile(self, zoom: int, x: int, y: int, *, time: int = 0) -> bytes:
        """Return a tile of the true colours underneath as PNG."""
        if self.under is None:
            raise XgfmError("there are no true colours; give a cube as under=")
        name, nodata, low, high = self._colours
        bands = [str(b) for b in self._under_base[name]["band"].values]
        select = {"band": [bands.index(b) for b in RGB], **({"time": time} if "time" in self._under_base.dims else {})}
        values = self._mosaic(self.under, name, select, tile_bounds(zoom, x, y), (TILE, TILE), nodata)
        return png(true_colours(values, nodata, low, high))

    def range(self, layer: Layer) -> tuple[float, float]:
        """Return the numbers that are drawn dark and bright."""
        if layer.name in SHARES:
            return 0.0, 1.0
        if layer.name not in self._ranges:
            sheet = self.sheets[0]
            seen = _middle(sheet.level(len(sheet.openers) - 1).dataset[layer.name])
            seen = seen[np.isfinite(seen)]
            low, high = np.percentile(seen, STRETCH).tolist() if seen.size else (0.0, 1.0)
            self._ranges[layer.name] = low, high
        return self._ranges[layer.name]

    def areas(self, layer: Layer, degrees: Bounds, *, time: int = 0) -> list[Share]:
        """Return the area of each class of a map within bounds in degrees, as it stands on the level that fits.

        Each sheet is measured on a picture of its own part of the view, so that a map which is small in the view is
        measured as well as one that fills it; ground of several sheets counts for the first that has data there. Areas
        are those of the ellipsoid: a row of Mercator between two parallels, exactly (Snyder 1987, eq. 3-12).

        Raises
        ------
        TooMuchError
            Where more pixels would be read than for one picture.
        """
        view = project(DEGREES, MERCATOR, degrees)
        met = [sheet for sheet in self.sheets if sheet.meets(view)]
        side = max(COARSEST, round(VIEW / math.sqrt(max(len(met), 1))))
        parts = [self._sheet_areas(layer, sheet, met[:number], view, side, time) for number, sheet in enumerate(met)]
        km2 = [float(area) / 1e6 for area in np.sum([np.zeros(len(layer.classes)), *parts], axis=0)]
        total = sum(km2)
        return [
            Share(c.number, area, area / total if total else 0.0) for c, area in zip(layer.classes, km2, strict=True)
        ]

    def _sheet_areas(
        self, layer: Layer, sheet: Sheet, earlier: Sequence[Sheet], view: Bounds, side: int, time: int
    ) -> NDArray[np.float64]:
        """Square metres of each class in what a view shows of a sheet and not of earlier ones."""
        bounds = _common(sheet.mercator, view)
        left, bottom, right, top = bounds
        pixel = max(right - left, top - bottom) / side
        shape = max(1, round((top - bottom) / pixel)), max(1, round((right - left) / pixel))
        select = {"time": time} if "time" in layer.dims else {}
        others = [other for other in earlier if other.meets(bounds)]
        values, before = (
            self._mosaic(sheets, layer.name, select, bounds, shape, layer.nodata)[0] for sheets in ([sheet], others)
        )
        counted = _missing(before, layer.nodata)
        weights = np.abs(np.diff(_authalic(np.linspace(top, bottom, shape[0] + 1)))) * (right - left) / shape[1]
        return np.array([(counted & (values == c.number)).sum(1) @ weights for c in layer.classes])

    # ---- what stands underneath

    @property
    def _under_base(self) -> xr.Dataset:
        assert self.under is not None  # asked for by those who have one
        return self.under[0].base.dataset

    @cached_property
    def _colours(self) -> tuple[str, float, NDArray[np.float64], NDArray[np.float64]]:
        """The variable with bands, its nodata, and the dark and the bright end of each."""
        dataset = self._under_base
        names = [str(n) for n, v in dataset.data_vars.items() if "band" in v.dims and v.dims[-2:] == ("y", "x")]
        names = [n for n in names if "band" in dataset.coords and set(RGB) <= {str(b) for b in dataset["band"].values}]
        if not names:
            raise BandError(
                f"under= holds {list(map(str, dataset.data_vars))}, none with bands {', '.join(RGB)}; give a cube, or "
                "the store of one"
            )
        variable = dataset[names[0]].sel(band=list(RGB))
        nodata = nodata_of(variable)
        seen = np.moveaxis(_middle(variable), variable.dims.index("band"), 0).reshape(len(RGB), -1)
        return names[0], nodata, *stretch(seen, nodata)

    # ---- reading

    def _mosaic(
        self,
        sheets: Sequence[Sheet],
        name: str,
        select: Mapping[str, Any],
        bounds: Bounds,
        shape: tuple[int, int],
        nodata: float,
    ) -> NDArray[Any]:
        """Read ``(band, y, x)`` from all sheets that meet bounds of Mercator."""
        found: NDArray[Any] | None = None
        with self._turns:
            for sheet in sheets:
                part = _read(sheet, name, select, bounds, shape, nodata) if sheet.meets(bounds) else None
                if part is None:
                    continue
                values, rows, columns = part
                if found is None:
                    found = np.full((len(values), *shape), nodata, values.dtype)
                view = found[:, rows, columns]
                np.copyto(view, values, where=_missing(view, nodata))
        bands = 1 if "band" not in select else len(select["band"])
        return np.full((bands, *shape), nodata, "float32") if found is None else found


def _read(
    sheet: Sheet, name: str, select: Mapping[str, Any], bounds: Bounds, shape: tuple[int, int], nodata: float
) -> tuple[NDArray[Any], slice, slice] | None:
    """Read the part of a picture that a sheet meets: ``(band, y, x)``, and which rows and columns those are."""
    import rasterio.warp
    from rasterio.transform import from_bounds

    (rows, columns), part = _meeting(sheet.mercator, bounds, shape)
    sides = rows.stop - rows.start, columns.stop - columns.start
    if min(sides) <= 0:
        return None
    left, bottom, right, top = project(MERCATOR, sheet.crs, part)
    level = sheet.fitting(min((right - left) / sides[1], (top - bottom) / sides[0]))
    down, along = _window(level, (left, bottom, right, top))
    height, width = down.stop - down.start, along.stop - along.start
    if min(height, width) <= 0:  # the box round a part in another CRS is larger than the part
        return None
    if height * width > MOST:
        raise TooMuchError("too many pixels for one picture; zoom in, or add overviews to the store")
    values = level.dataset[name].isel({**select, "y": down, "x": along}).values.reshape(-1, height, width)
    values = values.astype("float32") if values.dtype == np.float16 else values  # GDAL knows no halves
    picture = np.full((len(values), *sides), nodata, values.dtype)
    rasterio.warp.reproject(
        values,
        picture,
        src_transform=level.geobox[down, along].affine,
        src_crs=sheet.crs,
        src_nodata=nodata,
        dst_transform=from_bounds(*part, sides[1], sides[0]),
        dst_crs=MERCATOR,
        dst_nodata=nodata,
        resampling=rasterio.warp.Resampling.nearest,
    )
    return picture, rows, columns


def _window(level: Level, box: Bounds) -> tuple[slice, slice]:
    """Rows and columns of a level that meet a box in its CRS, and one more on each side."""
    height, width = level.geobox.shape
    (first, top), (last, bottom) = (~level.geobox.affine * at for at in ((box[0], box[3]), (box[2], box[1])))
    rows = slice(max(0, math.floor(top) - 1), min(height, math.ceil(bottom) + 1))
    columns = slice(max(0, math.floor(first) - 1), min(width, math.ceil(last) + 1))
    return rows, columns


def _meeting(sheet: Bounds, bounds: Bounds, shape: tuple[int, int]) -> tuple[tuple[slice, slice], Bounds]:
    """Rows and columns of a picture that meet a sheet, and their bounds."""
    left, bottom, right, top = bounds
    down, along = (top - bottom) / shape[0], (right - left) / shape[1]
    rows = slice(max(0, math.floor((top - sheet[3]) / down)), min(shape[0], math.ceil((top - sheet[1]) / down)))
    columns = slice(max(0, math.floor((sheet[0] - left) / along)), min(shape[1], math.ceil((sheet[2] - left) / along)))
    part = (
        left + columns.start * along,
        top - rows.stop * down,
        left + columns.stop * along,
        top - rows.start * down,
    )
    return (rows, columns), part


def _common(one: Bounds, other: Bounds) -> Bounds:
    return max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])


def _missing(values: NDArray[Any], nodata: float) -> NDArray[np.bool_]:
    missing: NDArray[np.bool_] = np.isnan(values) if math.isnan(nodata) else values == nodata
    return missing


def _middle(variable: xr.DataArray) -> NDArray[Any]:
    """Read what lies in the middle of a sheet."""
    middle = {
        d: slice(max(0, (variable.sizes[d] - SAMPLE) // 2), (variable.sizes[d] + SAMPLE) // 2) for d in ("y", "x")
    }
    values: NDArray[Any] = variable.isel(middle).values
    return values


def _zoom(sheet: Sheet, level: Level) -> float:
    """The zoom at which a pixel of a tile is as wide as one of a level."""
    return math.log2(WORLD / TILE / ((sheet.mercator[2] - sheet.mercator[0]) / level.geobox.shape[1]))


def _least_zoom(sheets: Sequence[Sheet]) -> int:
    """The least zoom at which a tile needs no more than `MOST` pixels, and few enough sheets."""
    sheet = sheets[0]
    coarsest = sheet.level(len(sheet.openers) - 1)
    width = sheet.mercator[2] - sheet.mercator[0]
    crowded = math.log2(WORLD / (width * CROWD)) if len(sheets) > CROWD**2 else 0
    whole = math.prod(coarsest.geobox.shape) <= MOST
    readable = 0 if whole else _zoom(sheet, coarsest) - math.log2(math.sqrt(MOST) / TILE)
    return max(0, math.ceil(max(crowded, readable)))


def tile_bounds(zoom: int, x: int, y: int) -> Bounds:
    """Return the bounds of a tile in Mercator.

    Raises
    ------
    XgfmError
        Where there is no such tile.
    """
    if not (0 <= zoom <= 30 and 0 <= x < 2**zoom and 0 <= y < 2**zoom):
        raise XgfmError(f"there is no tile {zoom}/{x}/{y}: at zoom {zoom} they are counted from 0 to 2**zoom - 1")
    side = WORLD / 2**zoom
    left, top = x * side - WORLD / 2, WORLD / 2 - y * side
    return left, top - side, left + side, top


def _authalic(northing: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area of WGS84 between the equator and a northing of Mercator, for each metre of easting."""
    a, e2 = 6_378_137.0, 0.0066943799901413165
    e, sine = math.sqrt(e2), np.tanh(northing / a)
    q = sine / (1 - e2 * sine**2) - np.log((1 - e * sine) / (1 + e * sine)) / (2 * e)
    return a * (1 - e2) * q / 2
