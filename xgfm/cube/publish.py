"""Simulated granules as the archive publishes them.

In: DN and Fmask of a granule. Out: one COG per band under its HLS name, a STAC item of the shape that NASA's CMR-STAC
serves (no projection fields, no asset types) and a mark that it is simulated, the item collection and the label raster.
Files, nothing lazy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xgfm.cube.items import ASSETS, SIMULATED, SIMULATED_MARK
from xgfm.cube.mask import FMASK_FILL
from xgfm.cube.phenology import CLASSES
from xgfm.cube.sky import cloud_cover
from xgfm.models.spec import PRITHVI_BANDS

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

    from xgfm.cube.overpass import Overpass

_BIT_DESCRIPTION = (
    "Bits are listed from the MSB (bit 7) to the LSB (bit 0): 7-6 aerosol: 00 - climatology, 01 - low, 10 - average, "
    "11 - high; 5 water; 4 snow/ice; 3 cloud shadow; 2 adjacent to cloud; 1 cloud; 0 cirrus cloud"
)


def write_granule(
    root: Path, overpass: Overpass, pixels: NDArray[np.int16], fmask: NDArray[np.uint8], geobox: GeoBox
) -> dict[str, Any]:
    """Write a granule's COGs into a folder of its name, and return its STAC item.

    Parameters
    ----------
    root
        Folder of the season, absolute.
    overpass
        Name, sensor, time.
    pixels
        DN ``(band, y, x)`` in the order of `PRITHVI_BANDS`, -9999 outside the swath.
    fmask
        ``(y, x)``.
    geobox
        Grid of both.
    """
    folder = root / overpass.id
    folder.mkdir(exist_ok=True)
    keys = [ASSETS[overpass.sensor][band] for band in PRITHVI_BANDS]
    paths = {key: folder / f"{overpass.id}.{key}.tif" for key in [*keys, "Fmask"]}
    cover = cloud_cover(fmask)
    imaged = fmask != FMASK_FILL
    tags = {
        "SENSING_TIME": f"{overpass.time}Z",
        "cloud_coverage": str(cover),
        "spatial_coverage": str(round(100 * float(imaged.mean()))),
        "MEAN_SUN_ZENITH_ANGLE": f"{overpass.sun[0]:.4f}",
        "MEAN_SUN_AZIMUTH_ANGLE": f"{overpass.sun[1]:.4f}",
        "DESCRIPTION": SIMULATED,
    }
    for key, band in zip(keys, pixels, strict=True):
        _write_cog(paths[key], band, geobox, nodata=-9999, tags=tags, scale=1e-4)
    _write_cog(paths["Fmask"], fmask, geobox, nodata=FMASK_FILL, tags={**tags, "Fmask description": _BIT_DESCRIPTION})
    return _item(overpass, paths, cover, _footprint(geobox, imaged))


def write_items(path: Path, items: list[dict[str, Any]]) -> Path:
    """Write an item collection, and return its path."""
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}, indent=1))
    return path


def write_truth(path: Path, label: NDArray[np.uint8], geobox: GeoBox) -> Path:
    """Write the label raster with its colours, and return its path."""
    colors = [tuple(int(info.color[k : k + 2], 16) for k in (1, 3, 5)) for info in CLASSES]
    tags = {
        "classes": json.dumps([info.name for info in CLASSES]),
        "DESCRIPTION": "simulated by xgfm; a map of nothing real",
    }
    _write_cog(path, label, geobox, nodata=255, tags=tags, colors=colors)
    return path


def _write_cog(
    path: Path,
    array: NDArray[Any],
    geobox: GeoBox,
    *,
    nodata: int,
    tags: dict[str, str],
    scale: float | None = None,
    colors: list[tuple[int, ...]] | None = None,
) -> None:
    import rasterio

    with rasterio.open(
        path, "w", driver="COG", width=array.shape[1], height=array.shape[0], count=1, dtype=array.dtype,
        crs=str(geobox.crs), transform=geobox.transform, nodata=nodata,
        blocksize=256, compress="DEFLATE", overview_resampling="NEAREST",
    ) as file:  # fmt: skip
        file.write(array, 1)
        file.update_tags(**tags)
        if scale is not None:
            file.scales = (scale,)
        if colors is not None:
            file.write_colormap(1, dict(enumerate(colors)))


def _footprint(geobox: GeoBox, imaged: NDArray[np.bool_]) -> list[list[float]]:
    """Ring of the imaged part in degrees: a trapezium, because a swath's edge is a straight line."""
    from rasterio.warp import transform

    rows = np.flatnonzero(imaged.any(axis=1))
    top, bottom = int(rows[0]), int(rows[-1])
    corners = []
    for row, edge in ((top, top), (bottom, bottom + 1)):
        columns = np.flatnonzero(imaged[row])
        corners.append(((int(columns[0]), edge), (int(columns[-1]) + 1, edge)))
    (west_top, east_top), (west_bottom, east_bottom) = corners
    ring = [west_bottom, east_bottom, east_top, west_top, west_bottom]
    a, _, left, _, e, top_edge = tuple(geobox.transform)[:6]
    xs, ys = [left + a * column for column, _ in ring], [top_edge + e * row for _, row in ring]
    longitude, latitude = transform(str(geobox.crs), "EPSG:4326", xs, ys)
    return [[round(x, 7), round(y, 7)] for x, y in zip(longitude, latitude, strict=True)]


def _item(overpass: Overpass, paths: dict[str, Path], cover: int, ring: list[list[float]]) -> dict[str, Any]:
    xs, ys = zip(*ring, strict=True)
    time = f"{overpass.time}Z"
    properties = {
        "datetime": time,
        "start_datetime": time,
        "end_datetime": time,
        "eo:cloud_cover": cover,
        SIMULATED_MARK: True,
        "attribution": SIMULATED,
    }
    return {
        "type": "Feature",
        "id": overpass.id,
        "stac_version": "1.1.0",
        "stac_extensions": ["https://stac-extensions.github.io/eo/v1.0.0/schema.json"],
        "collection": f"HLS{overpass.sensor}_2.0",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [min(xs), min(ys), max(xs), max(ys)],
        "properties": properties,
        "assets": {
            key: {
                "href": path.as_posix(),
                "title": f"Direct Download [{number}]",
                "description": f"Download {path.name}",
                "roles": ["data"],
            }
            for number, (key, path) in enumerate(paths.items())
        },
        "links": [],
    }
