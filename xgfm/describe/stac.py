"""A result as a STAC Item, so that a catalogue can list it.

In: grids, classes, period and inputs of a result, as plain values. Out: a `pystac.Item` with the projection,
classification and processing extensions, whose asset is the Zarr store. Nothing is read or written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import shapely
import shapely.geometry

from xgfm.cf import NODATA, Flag, class_attrs, flag_words
from xgfm.describe.sources import Source
from xgfm.models.spec import TaskSpec

if TYPE_CHECKING:
    import pystac
    from odc.geo.geobox import GeoBox

EXTENSIONS = {
    "projection": "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "classification": "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "processing": "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
}
ZARR = "application/vnd.zarr; version=3"
MOST_GROUPS = 200
"""Groups that have an asset of their own."""
RECORDS = {
    "job": ("./job.yaml", "application/yaml", "what was asked for"),
    "provenance": ("./provenance.json", "application/json", "W3C PROV-JSON"),
    "report": ("./report.html", "text/html", "how the job went"),
}
"""Files beside the Item: href, media type, title."""


@dataclass(frozen=True)
class Result:
    """What an Item is made of."""

    identity: str
    store: str
    """Address of the store; relative to the Item where they lie on one disk."""
    grids: Mapping[str, GeoBox]
    """By group of the store, ``""`` is the root."""
    variables: Mapping[str, str]
    """Data type of each variable, by name; the map itself first."""
    task: TaskSpec
    weights: str
    """Digest."""
    outline: shapely.Geometry
    """In degrees."""
    period: tuple[datetime, datetime]
    """Both ends count."""
    created: datetime
    software: Mapping[str, str]
    """Versions."""
    sources: Sequence[Source]
    attrs: Mapping[str, Any]
    """Of the result: whom to name, and whether the pixels are simulated."""
    snapshots: bool = False
    """Whether the store is an Icechunk repository."""


def result_item(result: Result) -> pystac.Item:
    """Return the STAC Item of a result.

    Parameters
    ----------
    result
        Its facts.

    Returns
    -------
    pystac.Item
        Its hrefs are absolute, or relative to the records of the job, where it belongs as ``item.json``.
    """
    import pystac

    start, end = result.period
    grids = list(result.grids.values())
    item = pystac.Item(
        id=result.identity,
        geometry=shapely.geometry.mapping(result.outline),
        bbox=[round(value, 7) for value in result.outline.bounds],
        datetime=None,
        start_datetime=start,
        end_datetime=end,
        properties={
            "title": result.task.title or result.task.name,
            "description": _description(result),
            "created": pystac.utils.datetime_to_str(result.created),
            **_processing(result),
            **(projection(grids[0]) if len(grids) == 1 else {}),
        },
        stac_extensions=list(EXTENSIONS.values()),
    )
    item.common_metadata.gsd = result.task.pixel_size
    for key, asset in _assets(result).items():
        item.add_asset(key, asset)
    for source in result.sources:
        item.add_link(pystac.Link("derived_from", source.href, media_type=source.media_type, title=source.title))
    return item


def _description(result: Result) -> str:
    said = [f"Predicted by task {result.task.name!r} ({result.task.model.title or result.task.model.name})."]
    if result.task.demonstration:
        said.append("The task is a demonstration of the software, trained on simulated data: a map of nothing real.")
    if result.attrs.get("simulated"):
        said.append("The images are simulated.")
    return " ".join([*said, str(result.attrs.get("attribution", ""))]).strip()


def _processing(result: Result) -> dict[str, Any]:
    count = sum(source.count for source in result.sources)
    return {
        "processing:level": "L4",
        "processing:lineage": f"{count} HLS granules, composited and predicted with weights {result.weights}",
        "processing:software": dict(result.software),
    }


def projection(box: GeoBox) -> dict[str, Any]:
    """Return a grid as the projection extension describes it."""
    assert box.crs is not None  # every grid of a result has one
    code = box.crs.epsg
    crs = {"proj:code": f"EPSG:{code}"} if code else {"proj:code": None, "proj:wkt2": box.crs.to_wkt()}
    return {
        **crs,
        "proj:shape": list(box.shape),
        "proj:transform": list(box.transform)[:6],
        "proj:bbox": list(box.boundingbox.bbox),
    }


def _assets(result: Result) -> dict[str, pystac.Asset]:
    import pystac

    title = "Icechunk repository" if result.snapshots else "Zarr store"
    bands = _bands(result)
    root = {"bands": bands}
    assets = {"data": pystac.Asset(result.store, title, media_type=ZARR, roles=["data"], extra_fields=root)}
    groups = {group: box for group, box in result.grids.items() if group}
    if not result.snapshots and len(groups) <= MOST_GROUPS:  # inside a repository nothing has an address
        for group, box in groups.items():
            fields = {**projection(box), "bands": bands}
            assets[group] = pystac.Asset(
                f"{result.store}/{group}", f"tile {group}", media_type=ZARR, roles=["data"], extra_fields=fields
            )
    for key, (href, media_type, words) in RECORDS.items():
        assets[key] = pystac.Asset(href, words, media_type=media_type, roles=["metadata"])
    return assets


def _bands(result: Result) -> list[dict[str, Any]]:
    """Return the variables as bands of STAC 1.1: what they are called, their numbers and their classes."""
    bands = []
    for number, (name, dtype) in enumerate(result.variables.items()):
        band: dict[str, Any] = {"name": name, "data_type": dtype}
        band["nodata"] = "nan" if dtype.startswith("float") else NODATA
        if number == 0:
            band["description"] = class_attrs(result.task)["long_name"]
            extra = {"classification:classes": classes(result.task)} if result.task.classes else _unit(result.task)
            band.update(extra)
        bands.append(band)
    return bands


def _unit(task: TaskSpec) -> dict[str, str]:
    return {} if task.units == "1" else {"unit": task.units}


def classes(task: TaskSpec) -> list[dict[str, Any]]:
    """Return a task's classes as the classification extension lists them, the value of pixels without data at the end.

    Parameters
    ----------
    task
        Whose classes.
    """
    infos = task.classes
    names = [info.name for info in infos]
    words = flag_words(names)
    return flag_classes(Flag(n, words[n], names[n], info.color) for n, info in enumerate(infos))


def flag_classes(flags: Iterable[Flag]) -> list[dict[str, Any]]:
    """Return flags as `classes` lists them."""
    listed: list[dict[str, Any]] = [
        {
            "value": flag.number,
            "name": re.sub(r"[^A-Za-z0-9_-]", "_", flag.word),
            "title": flag.name,
            "color_hint": flag.color.removeprefix("#").upper(),
        }
        for flag in flags
    ]
    return [*listed, {"value": NODATA, "name": "nodata", "title": "no data", "nodata": True}]
