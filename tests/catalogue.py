"""Items of granules that nobody made: what a catalogue answers, without the files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from xgfm.cube.items import ASSETS
from xgfm.grid import tile_geobox

BASE = "https://data.lpdaac.earthdatacloud.nasa.gov/lp-prod-protected"


def item(tile: str, date: str, sensor: str = "L30", **properties: Any) -> dict[str, Any]:
    """Return an item as NASA's CMR-STAC serves it, with a preview that no cube reads."""
    moment = np.datetime64(date if "T" in date else f"{date}T17:04:39")
    day = int((moment.astype("datetime64[D]") - moment.astype("datetime64[Y]")).astype(int)) + 1
    name = f"HLS.{sensor}.T{tile}.{str(moment)[:4]}{day:03d}T{str(moment)[11:19].replace(':', '')}.v2.0"
    keys = [*ASSETS[sensor].values(), "Fmask", "SZA"]
    assets = {key: {"href": f"{BASE}/{name}/{name}.{key}.tif", "title": f"Download {key}"} for key in keys}
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": name,
        "collection": f"HLS{sensor}_2.0",
        "bbox": list(tile_geobox(tile).geographic_extent.boundingbox.bbox),
        "geometry": None,
        "properties": {"datetime": f"{moment}Z", "eo:cloud_cover": 12, **properties},
        "assets": {**assets, "thumbnail_0": {"href": f"https://host/{name}.jpg?token=hunter2"}},
        "links": [{"rel": "self", "href": f"https://host/{name}"}],
    }


def season(
    tiles: Iterable[str], dates: Iterable[str] = ("2024-04-10", "2024-06-20", "2024-09-01")
) -> list[dict[str, Any]]:
    """Return an item of each tile on each date."""
    dates = list(dates)
    return [item(tile, date) for tile in tiles for date in dates]
