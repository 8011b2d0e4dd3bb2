"""HLS granules small enough for a test: COGs as HLS publishes them, and the items that describe them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from xgfm.cube.items import ASSETS
from xgfm.grid import tile_geobox

NAMELESS = (
    'PROJCS["UTM Zone {zone}, Northern Hemisphere",GEOGCS["Unknown datum based upon the WGS 84 ellipsoid",'
    'DATUM["Not_specified_based_on_WGS_84_spheroid",SPHEROID["WGS 84",6378137,298.257223563]],'
    'PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433]],PROJECTION["Transverse_Mercator"],'
    'PARAMETER["latitude_of_origin",0],PARAMETER["central_meridian",{meridian}],PARAMETER["scale_factor",0.9996],'
    'PARAMETER["false_easting",500000],PARAMETER["false_northing",0],UNIT["metre",1]]'
)
"""The CRS of older HLS files: no EPSG code, no known datum."""

EXTRA = {"L30": {"B01": "coastal", "B10": "thermal"}, "S30": {"B08": "nir", "B05": "rededge"}}
"""Assets that are not among the six, with the common names that NASA gives them."""


def pixels(rows: int, columns: int, *, seed: int, missing: float = 0.1) -> NDArray[np.int16]:
    """Noise of HLS's range, negative and above 10000 too; ``missing`` of it, and a corner, are fill."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-900, 11_000, (rows, columns)).astype("int16")
    values[rng.random((rows, columns)) < missing] = -9999
    values[: rows // 8, : columns // 8] = -9999
    return values


def write_cog(path: Path, values: NDArray[Any], transform: Affine, crs: Any, nodata: float) -> None:
    """Write one band as a COG: DEFLATE, tiles of 256, overviews."""
    profile = {"driver": "COG", "dtype": values.dtype.name, "count": 1, "blocksize": 256, "compress": "DEFLATE"}
    height, width = values.shape
    shape = {"height": height, "width": width, "transform": transform, "crs": crs, "nodata": nodata}
    with rasterio.open(path, "w", **profile, **shape) as file:
        file.write(values, 1)
        file.scales = (1e-4,) if values.dtype == np.int16 else (1.0,)


def granule(
    folder: Path,
    *,
    sensor: str = "L30",
    tile: str = "15TVM",
    time: str = "2024-05-02T17:04:39Z",
    window: tuple[int, int, int, int] = (1000, 1200, 300, 280),
    seed: int = 0,
    missing: float = 0.1,
    projection: bool = True,
    nameless: bool = False,
    cloud_cover: float = 10.0,
    fmask: NDArray[np.uint8] | None = None,
    suffix: str = "",
) -> dict[str, Any]:
    """Write a granule and return its item, shaped like NASA's.

    Parameters
    ----------
    window
        Row, column, rows and columns of the files in the tile.
    projection
        True: ``proj:*`` as in NASA's sidecar items. False: none, as in CMR-STAC.
    nameless
        Whether the files have the CRS without a code.
    """
    moment = np.datetime64(time.removesuffix("Z"))
    day = (moment.astype("datetime64[D]") - moment.astype("datetime64[Y]")).astype(int) + 1
    stamp = f"{time[:4]}{day:03d}T{time[11:19].replace(':', '')}"
    name = f"HLS.{sensor}.T{tile}.{stamp}.v2.0"
    row, column, rows, columns = window
    grid = tile_geobox(tile)[row : row + rows, column : column + columns]
    zone = int(tile[:2])
    crs = CRS.from_wkt(NAMELESS.format(zone=zone, meridian=6 * zone - 183)) if nameless else CRS.from_epsg(32600 + zone)
    base = folder / (name + suffix)
    base.mkdir(parents=True, exist_ok=True)
    assets: dict[str, Any] = {}
    for number, key in enumerate([*ASSETS[sensor].values(), *EXTRA[sensor]]):
        path = base / f"{name}.{key}.tif"
        write_cog(path, pixels(rows, columns, seed=100 * seed + number, missing=missing), grid.transform, crs, -9999)
        assets[key] = {"href": str(path), "title": f"Download {path.name}", "roles": ["data"]}
    if fmask is None:
        rng = np.random.default_rng(seed)
        fmask = rng.choice(np.array([64, 66, 68, 72, 96, 255], "uint8"), (rows, columns), p=[0.6, *[0.08] * 5])
    write_cog(base / f"{name}.Fmask.tif", fmask, grid.transform, crs, 255)
    assets["Fmask"] = {"href": str(base / f"{name}.Fmask.tif"), "roles": ["data"]}
    extent = grid.geographic_extent.boundingbox
    projected = {
        "proj:epsg": 32600 + zone,
        "proj:transform": [*list(grid.transform)[:6], 0.0, 0.0, 1.0],
        "proj:shape": list(grid.shape),
    }
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [],
        "id": name,
        "collection": "HLSL30_2.0" if sensor == "L30" else "HLSS30_2.0",
        "bbox": list(extent.bbox),
        "geometry": {"type": "Polygon", "coordinates": [[[x, y] for x, y in extent.points]]},
        "properties": {"datetime": time, "eo:cloud_cover": cloud_cover, **(projected if projection else {})},
        "assets": assets,
        "links": [],
    }


def with_hrefs(item: Mapping[str, Any], base: str) -> dict[str, Any]:
    """The same item with its files under another base, ``http://127.0.0.1:8000``."""
    assets = {k: {**a, "href": f"{base}/{Path(a['href']).name}"} for k, a in item["assets"].items()}
    return {**json.loads(json.dumps(dict(item))), "assets": assets}


def read_own(item: Mapping[str, Any], keys: Sequence[str]) -> NDArray[Any]:
    """What rasterio itself reads from an item's files: ``(asset, y, x)``."""
    layers = []
    for key in keys:
        with rasterio.open(item["assets"][key]["href"]) as file:
            layers.append(file.read(1))
    return np.stack(layers)
