"""Results as a STAC Collection, so that a folder of maps can be searched.

In: stores of results, by path or URL. Out: in a folder ``collection.json`` and an Item for each result, which point at
the stores where they are. Only metadata is read: the Item that a job left beside its store, or the attributes and the
grid of the store itself.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
import shapely.geometry.polygon
import xarray as xr

from xgfm.cf import NODATA, flags_of, frames_of
from xgfm.cube.hrefs import redacted
from xgfm.describe.stac import EXTENSIONS, ZARR, flag_classes, projection
from xgfm.errors import WriteError, XgfmError
from xgfm.grid import geobox_of, pixel_size_m
from xgfm.store.layout import as_dataset
from xgfm.store.ledger import Ledger
from xgfm.store.objects import Objects, local_folder
from xgfm.store.path import written_into

if TYPE_CHECKING:
    import pystac
    from odc.geo.geobox import GeoBox

COLLECTION = "collection.json"
RECORDS = (".job", "item.json")
"""What a job adds to the name of its store, and the Item in that folder."""
FACTS = ("task", "model", "weights_digest", "attribution", "task_licence")
"""Attributes of a result that its Item repeats under ``xgfm:``."""
_DIGITS = 1e-5
"""Degrees to which an outline is told: a metre."""
_PARTS = 8
"""Of the longer side of a grid, each straight in degrees."""


def to_stac(
    results: Iterable[str | PathLike[str]] | Mapping[str, str | PathLike[str]],
    folder: str | PathLike[str],
    *,
    title: str = "Maps",
    description: str = "Maps of a geospatial foundation model.",
    licence: str = "other",
    overwrite: bool = False,
) -> pystac.Collection:
    """Write a STAC Collection of results, with relative links, so that folder and stores can be moved together.

    Parameters
    ----------
    results : iterable of paths, or mapping of str to path
        Zarr stores that `to_zarr` or a job wrote; the keys of a mapping are the ids of the Items, which otherwise are
        the names of the stores.
    folder : str or path
        Local; becomes the catalogue: ``collection.json``, and ``<id>/<id>.json`` for each result.
    title, description : str
        Of the collection.
    licence : str
        SPDX identifier of the maps' licence; ``"other"`` where it has none.
    overwrite : bool
        Replace the collection that is there.

    Returns
    -------
    pystac.Collection
        As it was written.

    Raises
    ------
    XgfmError
        Where there are no results, two have one id, or one is no store, says nothing of its time, or is of a job that
        is not finished.
    GridError
        Where a result has no CRS or no regular grid.
    WriteError
        Where the folder is not local, holds a collection already, or cannot be written to.
    """
    import pystac

    target = local_folder(folder)
    if target is None:
        raise WriteError(f"folder={redacted(str(folder))!r} is not local, and a catalogue is written to a local folder")
    if (target / COLLECTION).exists() and not overwrite:
        raise WriteError(f"{target} holds a collection; give another folder, or overwrite=True to replace it")
    items = [_item(identity, store, target / identity) for identity, store in _named(results).items()]
    collection = pystac.Collection(
        id=_identity(title),
        description=description,
        title=title,
        license=licence,
        extent=pystac.Extent.from_items(items),
        stac_extensions=[],
        summaries=pystac.Summaries({"xgfm:task": sorted({str(i.properties.get("xgfm:task", i.id)) for i in items})}),
    )
    collection.add_items(items)
    collection.normalize_hrefs(str(target))
    with written_into(target, "folder"):
        collection.save(catalog_type=pystac.CatalogType.SELF_CONTAINED)
    return collection


def _named(results: Iterable[str | PathLike[str]] | Mapping[str, str | PathLike[str]]) -> dict[str, str]:
    """Return the stores by id."""
    if isinstance(results, str | PathLike):
        results = [results]
    pairs = (
        [(str(k), str(v)) for k, v in results.items()]
        if isinstance(results, Mapping)
        else [
            (_identity(str(store).rstrip("/").rpartition("/")[2].removesuffix(".zarr")), str(store))
            for store in results
        ]
    )
    if not pairs:
        raise XgfmError("results is empty: a collection needs at least one; give paths of Zarr stores")
    twice = sorted({name for name, _ in pairs if [n for n, _ in pairs].count(name) > 1})
    odd = [name for name, _ in pairs if name != _identity(name)]
    if twice or odd:
        raise XgfmError(
            f"ids {twice or odd} are {'used twice' if twice else 'no names of files'}; "
            "give a mapping of ids to stores: to_stac({'iowa-2024': 'map.zarr'}, folder)"
        )
    return dict(pairs)


def _identity(name: str) -> str:
    """Return a name as an id that can be the name of a file."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.").lower() or "maps"


def _item(identity: str, store: str, home: Path) -> pystac.Item:
    """Return the Item of a result, whose assets are relative to its own folder."""
    recorded = _recorded(store, home)
    if recorded is not None:
        recorded.id = identity
        return recorded
    return _from_attrs(identity, store, home)


def _recorded(store: str, home: Path) -> pystac.Item | None:
    """Return the Item that a job left beside its store; None for a store that is not one of a job."""
    import pystac

    records = store.rstrip("/") + RECORDS[0]
    try:
        item = pystac.Item.from_dict(json.loads(Objects(records).get(RECORDS[1])))
    except FileNotFoundError:
        _refuse_unfinished(store, Objects(records))
        return None
    local = local_folder(records)
    for asset in item.assets.values():
        asset.href = _moved(asset.href, local, records, home)
    for link in item.links:
        if isinstance(link.target, str):
            link.target = _moved(link.target, local, records, home)
    return item


def _refuse_unfinished(store: str, records: Objects) -> None:
    """A job describes its store when every block is done: until then its records have no Item."""
    if not any(True for _ in records.names()):
        return
    ledger, name = Ledger(records), redacted(store)
    raise XgfmError(
        f"the job of {name} is not finished: {len(ledger.done())} blocks are done and {len(ledger.failed())} failed, "
        f"and it has no {RECORDS[1]} yet; run it to its end with xgfm resume {name}, or leave the store out"
    )


def _moved(href: str, records: Path | None, url: str, home: Path) -> str:
    """Return a href that is relative to a job's records as one of another folder."""
    if "://" in href or Path(href).is_absolute():
        return href
    return f"{url}/{href.removeprefix('./')}" if records is None else _relative(records / href, home)


def _relative(path: Path, home: Path) -> str:
    return Path(os.path.relpath(os.path.normpath(path), home)).as_posix()


def _from_attrs(identity: str, store: str, home: Path) -> pystac.Item:
    """Return an Item made from what a store says of itself."""
    import pystac

    with _opened(store) as dataset:
        box = geobox_of(dataset)
        outline = _outline(box)
        start, end = _period(dataset, store)
        item = pystac.Item(
            id=identity,
            geometry=shapely.geometry.mapping(outline),
            bbox=[round(value, 7) for value in outline.bounds],
            datetime=None,
            start_datetime=start,
            end_datetime=end,
            properties={
                "title": str(dataset.attrs.get("title", identity)),
                **{f"xgfm:{name}": dataset.attrs[name] for name in FACTS if dataset.attrs.get(name)},
                **_processing(dataset.attrs),
                **projection(box),
            },
            stac_extensions=list(EXTENSIONS.values()),
        )
        item.common_metadata.gsd = round(pixel_size_m(box), 3)
        item.common_metadata.description = _described(dataset)
        bands = [_band(str(name), v) for name, v in dataset.data_vars.items() if v.dims[-2:] == ("y", "x")]
    local = local_folder(store)
    href = redacted(store) if local is None else _relative(local, home)
    item.add_asset("data", pystac.Asset(href, "Zarr store", None, ZARR, ["data"], {"bands": bands}))
    return item


def _outline(box: GeoBox) -> shapely.Geometry:
    """Return a grid's extent in degrees, to a metre, cut at the antimeridian, outer rings against the clock."""
    sides = box.boundingbox
    bent = box.extent.to_crs("EPSG:4326", resolution=max(sides.span_x, sides.span_y) / _PARTS, wrapdateline=True)
    parts = [
        shapely.geometry.polygon.orient(part) for part in shapely.get_parts(shapely.set_precision(bent.geom, _DIGITS))
    ]
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


def _opened(store: str) -> xr.Dataset:
    try:
        opened: xr.Dataset = xr.open_zarr(store, mask_and_scale=False, decode_coords="all", chunks=None)
    except FileNotFoundError as error:
        raise XgfmError(f"there is no Zarr store at {redacted(store)}; write one with to_zarr") from error
    return as_dataset(opened)


def _described(dataset: xr.Dataset) -> str:
    said = [f"Result of {dataset.attrs.get('task') or dataset.attrs.get('model') or 'xgfm'}."]
    if dataset.attrs.get("demonstration"):
        said.append("A demonstration of the software: a map of nothing real.")
    if dataset.attrs.get("simulated"):
        said.append("The images are simulated.")
    return " ".join([*said, str(dataset.attrs.get("attribution", ""))]).strip()


def _processing(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Return what the processing extension says of a result."""
    weights = attrs.get("weights_digest")
    return {
        "processing:level": "L4",
        "processing:lineage": f"predicted with weights {weights}" if weights else "not told by the store",
        "processing:software": {"xgfm": str(attrs.get("xgfm_version", "unknown"))},
    }


def _period(dataset: xr.Dataset, store: str) -> tuple[datetime, datetime]:
    """Return first and last instant of a result: of its frames, its dates or its time coordinate."""
    frames = frames_of(dataset.attrs)
    days = [str(day) for frame in frames for day in (frame.get("window") or frame.get("dates") or [])]
    days += [str(day) for day in np.atleast_1d(dataset.attrs.get("dates", []))]
    stamps = np.array([day.removesuffix("Z") for day in days], "datetime64[s]")
    if "time" in dataset.coords:
        stamps = np.concatenate([stamps, np.atleast_1d(dataset["time"].values).astype("datetime64[s]")])
    if not stamps.size:
        raise XgfmError(
            f"{redacted(store)} does not say of which time it is: neither frames nor dates among its attributes, nor a "
            "coordinate time; write it with attrs['dates'] = ['2024-07-01']"
        )
    # A date without an hour is the whole day.
    last = max(s + np.timedelta64(86_399, "s") if s == s.astype("datetime64[D]") else s for s in stamps)
    first, last = (value.item().replace(tzinfo=UTC) for value in (stamps.min(), last))
    return first, last


def _band(name: str, variable: xr.DataArray) -> dict[str, Any]:
    """Return a variable as a band of STAC 1.1."""
    band: dict[str, Any] = {"name": name, "data_type": str(variable.dtype)}
    if "long_name" in variable.attrs:
        band["description"] = str(variable.attrs["long_name"])
    units = variable.attrs.get("units", "1")
    if units != "1":
        band["unit"] = units
    fill = variable.attrs.get("_FillValue")
    if fill is not None:
        band["nodata"] = "nan" if np.isnan(fill) else np.asarray(fill).item()
    if flags := flags_of(variable):
        band |= {"nodata": NODATA, "classification:classes": flag_classes(flags)}
    return band
