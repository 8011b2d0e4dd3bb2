"""From granules to a cube.

In: a search, or its items, and what is wanted of grid and mask. Out: a lazy int16 DataArray ``(time, band, y, x)`` of
digital numbers, nodata -9999. Whatever can be refused from metadata is refused here; no file is opened before a block
is computed.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xgfm.cube.catalogs import load_items, search
from xgfm.cube.credentials import gdal_settings
from xgfm.cube.items import ASSETS, SIMULATED, HlsItem, normalise_all
from xgfm.cube.loaders import FMASK, REFLECTANCE, Loader, Step, get_loader, place
from xgfm.cube.mask import DEFAULT_BITS
from xgfm.cube.mask import mask as apply_mask
from xgfm.cube.target import Target, search_box, target_grid
from xgfm.errors import BandError, ItemError
from xgfm.grid import parse_tile, with_grid
from xgfm.models.spec import PRITHVI_BANDS

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

REFLECTANCE_SCALE = 1e-4
"""Reflectance of one digital number."""


def open_hls(
    bbox: Sequence[float] | None = None,
    datetime: Any = None,
    catalog: str | Path = "lpcloud",
    *,
    collections: Sequence[str] | None = None,
    max_cloud_cover: float | None = None,
    tile: str | None = None,
    bands: Sequence[str] = PRITHVI_BANDS,
    mask: Sequence[str] | None = DEFAULT_BITS,
    crs: Any = None,
    resolution: float | None = None,
    bounds: Sequence[float] | None = None,
    geobox: GeoBox | None = None,
    loader: str | Loader = "stackstac",
    chunks: int | tuple[int, int] = 1024,
    gdal: Mapping[str, str] | None = None,
) -> xr.DataArray:
    """Search a catalogue for HLS granules and open them as one lazy cube.

    Two arguments matter most: where (``bbox``) and when (``datetime``).

    Parameters
    ----------
    bbox : sequence of float, optional
        West, south, east, north in degrees. The cube is cropped to it, outward to whole pixels.
    datetime : str or pair, optional
        ``"2024"``, ``"2024-05"``, ``"2024-05-01/2024-06-30"`` or ``(start, end)``; ends count.
    catalog : str or Path
        ``"lpcloud"``, ``"planetary-computer"``, or what `xgfm.search` takes.
    collections, max_cloud_cover, tile
        As in `xgfm.search`.
    bands, mask, crs, resolution, bounds, geobox, loader, chunks, gdal
        As in `open_items`.

    Returns
    -------
    DataArray
        As `open_items`.

    Raises
    ------
    SearchError
        Nothing found, or a catalogue that cannot be used.
    GridError, ItemError, BandError
        As `open_items`.
    """
    target = Target(bbox, crs, resolution, bounds, geobox)
    found = search(
        search_box(target),
        datetime,
        catalog,
        collections=collections,
        max_cloud_cover=max_cloud_cover,
        tile=tile,
    )
    return _open(found, target, bands=bands, mask=mask, loader=loader, chunks=chunks, gdal=gdal)


def open_items(
    items: Any,
    *,
    bbox: Sequence[float] | None = None,
    tile: str | None = None,
    bands: Sequence[str] = PRITHVI_BANDS,
    mask: Sequence[str] | None = DEFAULT_BITS,
    crs: Any = None,
    resolution: float | None = None,
    bounds: Sequence[float] | None = None,
    geobox: GeoBox | None = None,
    loader: str | Loader = "stackstac",
    chunks: int | tuple[int, int] = 1024,
    gdal: Mapping[str, str] | None = None,
) -> xr.DataArray:
    """Open HLS items as one lazy cube.

    The granules of one sensor and day become one time step: where several have a valid pixel, the first one's counts.
    The day is the local one (solar time), so that a pass over the date line's neighbourhood is not cut in two.

    Parameters
    ----------
    items : iterable of dict or pystac.Item, a feature collection, or the path of a file
        Of any catalogue that serves HLS: see `xgfm.cube.items.normalise`. A file is read with `xgfm.load_items`.
    bbox : sequence of float, optional
        West, south, east, north in degrees: crops the cube, outward to whole pixels of its grid.
    tile : str, optional
        Keep this MGRS tile alone, ``"T15TVM"``.
    bands : sequence of str
        STAC common names, in the order of the result.
    mask : sequence of str or None
        Names of Fmask bits where nodata is written (see `xgfm.mask`). None leaves the pixels as they are and hangs
        the Fmask on the cube as coordinate ``fmask (time, y, x)``, where every item has one.
    crs : optional
        Of the cube, anything that odc-geo takes; by default the tiles' own. Needed where tiles lie in several UTM
        zones. Granules in another CRS are warped: bilinear, Fmask nearest.
    resolution : float, optional
        Side of a pixel in units of the CRS; by default the tiles' own 30 m. Pixel edges fall on its multiples.
    bounds : sequence of float, optional
        Left, bottom, right, top of the cube in units of the CRS.
    geobox : GeoBox, optional
        The whole grid, instead of bbox, crs, resolution and bounds.
    loader : str or Loader
        ``"stackstac"``; ``"odc"`` (needs ``pip install "xgfm[odc]"``); or your own.
    chunks : int or (int, int)
        Rows and columns of a chunk; a chunk holds one time step and all bands. Files are tiled by 256.
    gdal : mapping of str, optional
        Further GDAL settings of every read. No secrets: they are stored in the graph.

    Returns
    -------
    DataArray
        ``(time, band, y, x)``, int16 digital numbers (reflectance x 10000), nodata -9999, lazy. Coordinates ``time``
        (UTC, of the first granule), ``band``, ``y``, ``x`` (pixel centres), ``spatial_ref``, and per time step
        ``sensor``, ``item`` and ``eo:cloud_cover`` (percent, mean of the granules).

    Raises
    ------
    ItemError
        An item that is not HLS, or lacks an asset, a date or its grid.
    GridError
        A region outside of the items, or items of two zones without ``crs=``.
    BandError
        A band that is not one of the six.
    SearchError
        A file that is not there or holds no items.
    """
    target = Target(bbox, crs, resolution, bounds, geobox)
    given = load_items(items) if isinstance(items, str | Path) else items
    plain = given["features"] if isinstance(given, Mapping) and "features" in given else given
    plain = [plain] if isinstance(plain, Mapping) else plain
    return _open(plain, target, tile=tile, bands=bands, mask=mask, loader=loader, chunks=chunks, gdal=gdal)


def _open(
    items: Iterable[Any],
    target: Target,
    *,
    bands: Sequence[str],
    mask: Sequence[str] | None,
    loader: str | Loader,
    chunks: int | tuple[int, int],
    gdal: Mapping[str, str] | None,
    tile: str | None = None,
) -> xr.DataArray:
    bands = _check_bands(bands)
    granules = _of_tile(normalise_all(items, bands=bands, fmask=mask is not None), tile)
    grid = target_grid(granules, target)
    steps = time_steps([item for item in granules if place(item, bands[0], grid).overlap(0, 0, *grid.shape)])
    load = partial(
        get_loader(loader) if isinstance(loader, str) else loader,
        chunks=(chunks, chunks) if isinstance(chunks, int) else chunks,
        gdal=gdal_settings(gdal),
    )
    cube = with_grid(
        xr.DataArray(
            load(steps, bands, grid, REFLECTANCE),
            dims=("time", "band", "y", "x"),
            coords=_coords(steps, bands),
            attrs=_attrs(steps),
            name="hls",
        ),
        grid,
    )
    if any("fmask" not in item.hrefs for step in steps for item in step):
        return cube
    fmask = load(steps, ("fmask",), grid, FMASK)[:, 0]
    cube = cube.assign_coords(fmask=(("time", "y", "x"), fmask, {"long_name": "HLS Fmask"}))
    return cube if mask is None else apply_mask(cube, mask)


def time_steps(items: Sequence[HlsItem]) -> list[Step]:
    """Group granules by local day and sensor, earliest first.

    The day is that of the zone's mean solar time. HLS passes are at about 10:30 solar time, so no pass spans midnight.
    """

    def key(item: HlsItem) -> tuple[dt.date, str]:
        meridian = 6 * int(item.tile[:2]) - 183
        return (item.datetime + dt.timedelta(hours=meridian / 15)).date(), item.sensor

    ordered = sorted(items, key=lambda item: (*key(item), item.datetime, item.id))
    steps = [tuple(group) for _, group in groupby(ordered, key)]
    return sorted(steps, key=lambda step: (step[0].datetime, step[0].sensor))


def _check_bands(bands: Sequence[str]) -> tuple[str, ...]:
    wanted = (bands,) if isinstance(bands, str) else tuple(bands)
    unknown = [band for band in wanted if band not in PRITHVI_BANDS]
    if unknown or not wanted or len(set(wanted)) != len(wanted):
        raise BandError(
            f"bands={list(wanted)}: each must be one of {list(PRITHVI_BANDS)}, once"
            + (f"; {unknown} are not. Give STAC common names, nir08 is the narrow near infrared" if unknown else "")
        )
    return wanted


def _of_tile(items: list[HlsItem], tile: str | None) -> list[HlsItem]:
    if tile is None:
        return items
    kept = [item for item in items if item.tile == parse_tile(tile)]
    if not kept:
        there = sorted({f"T{item.tile}" for item in items})
        raise ItemError(f"no item lies on tile={tile!r}; the items are of {', '.join(there)}")
    return kept


def _coords(steps: Sequence[Step], bands: Sequence[str]) -> dict[str, Any]:
    covers = [[item.cloud_cover for item in step if not np.isnan(item.cloud_cover)] for step in steps]
    return {
        "time": [np.datetime64(step[0].datetime.replace(tzinfo=None), "ns") for step in steps],
        "band": list(bands),
        "sensor": ("time", [step[0].sensor for step in steps]),
        "item": ("time", [" ".join(item.id for item in step) for step in steps]),
        "eo:cloud_cover": ("time", [float(np.mean(c)) if c else np.nan for c in covers], {"units": "percent"}),
    }


def _attrs(steps: Sequence[Step]) -> dict[str, Any]:
    """JSON facts of the cube."""
    sensors = sorted({step[0].sensor for step in steps})
    items = [item for step in steps for item in step]
    notes = [note for item in items for note in item.notes]
    simulated = any(item.simulated for item in items)
    return {
        "long_name": f"{'simulated HLS' if simulated else 'HLS v2.0'} surface reflectance, digital numbers",
        "nodata": REFLECTANCE.fill,
        "reflectance_scale": REFLECTANCE_SCALE,
        "assets": "; ".join(f"{s}: {' '.join(f'{band}={key}' for band, key in ASSETS[s].items())}" for s in sensors),
        "attribution": " ".join(attribution(items)),
        **({"simulated": 1} if simulated else {}),
        **({"item_corrections": notes} if notes else {}),
    }


def attribution(items: Sequence[HlsItem]) -> list[str]:
    """Return whom to name: the archive for what it holds, the simulation for what it made."""
    years = sorted({item.datetime.year for item in items if not item.simulated})
    period = "-".join(map(str, dict.fromkeys((*years[:1], *years[-1:]))))
    real = [f"HLS, NASA LP DAAC. Contains modified Copernicus Sentinel data {period}."] if years else []
    return [*real, SIMULATED] if any(item.simulated for item in items) else real
