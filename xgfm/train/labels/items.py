"""STAC Items of labels (label extension, version 1.0).

In: an Item, as a dictionary or pystac object. Out: which asset holds the labels, which attribute and classes it names,
and when it was labelled. Nothing but the Item itself is read here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from xgfm.errors import LabelError
from xgfm.train.labels.files import Features
from xgfm.train.labels.legend import Legend, LegendEntry
from xgfm.train.labels.rasters import Raster

DATETIME = "datetime"
"""Attribute that features get from their Item's date."""
_RASTER_TYPES = ("image/tiff", "image/vnd.stac.geotiff", "image/jp2")
_RASTER_FILES = (".tif", ".tiff", ".jp2", ".vrt")


@dataclass(frozen=True, slots=True)
class LabelItem:
    """What a label Item says."""

    id: str
    href: str
    raster: bool
    column: str | None
    legend: Legend | None
    time: np.datetime64 | None

    def placed(self, raster: Raster) -> Raster:
        """Return the asset's raster with the Item's date and classes."""
        return replace(raster, time=self.time, legend=self.legend, name=f"{self.id} ({raster.name})")

    def dated(self, features: Features) -> Features:
        """Return the asset's features with the Item's date as an attribute, where they have none of that name."""
        if self.time is None or DATETIME in features.columns:
            return features
        dates = np.full(len(features), self.time, "datetime64[ns]")
        return replace(features, columns={**features.columns, DATETIME: dates}, name=f"{self.id} ({features.name})")


def is_item(value: Any) -> bool:
    """Return whether a value is a STAC Item."""
    if isinstance(value, Mapping):
        return value.get("type") == "Feature" and "stac_version" in value and "assets" in value
    return hasattr(value, "assets") and hasattr(value, "to_dict")


def read_item(item: Any, *, column: str | None = None, folder: Path | None = None) -> LabelItem:
    """Read a label Item.

    Parameters
    ----------
    item : dict or pystac.Item
    column : str, optional
        Which of its ``label:properties``, where there are several.
    folder : Path, optional
        That relative hrefs start from.

    Raises
    ------
    LabelError
        Not a label Item; several properties and none chosen; no asset with labels.
    """
    document = item if isinstance(item, Mapping) else item.to_dict(include_self_link=True, transform_hrefs=False)
    about, name = document["properties"], str(document.get("id", "item"))
    kind = about.get("label:type")
    if kind not in ("vector", "raster"):
        raise LabelError(
            f"item {name} has label:type {kind!r}; expected 'vector' or 'raster', as the STAC label extension has it"
        )
    raster = kind == "raster"
    asset = _asset(document["assets"], raster, name)
    named = None if raster else _property(about.get("label:properties"), column, name)
    legend = _legend(about.get("label:classes") or [], named, asset)
    stamp = about.get("datetime") or about.get("start_datetime")
    time = None if stamp is None else np.datetime64(str(stamp).replace("Z", "").split("+")[0], "ns")
    return LabelItem(name, _absolute(asset["href"], document, folder), raster, named, legend, time)


def _asset(assets: Mapping[str, Any], raster: bool, name: str) -> Mapping[str, Any]:
    """The asset with the labels: by its role, else by its key; GeoTIFF or vector as the Item says."""
    role = "labels-raster" if raster else "labels-vector"
    fit = [(key, set(a.get("roles") or ()), a) for key, a in assets.items() if _is_raster(a) == raster]
    for found in (
        [asset for _, roles, asset in fit if role in roles],
        [asset for _, roles, asset in fit if {"labels", "label"} & roles],
        [asset for key, _, asset in fit if key in ("labels", "label")],
        [asset for key, _, asset in fit if "label" in key],
    ):
        if len(found) == 1:
            asset: Mapping[str, Any] = found[0]
            return asset
    raise LabelError(
        f"item {name} has no one {'raster' if raster else 'vector'} asset of labels among {', '.join(assets)}; give "
        "one of them the role 'labels', or pass its file"
    )


def _is_raster(asset: Mapping[str, Any]) -> bool:
    stated = str(asset.get("type") or "")
    if stated:
        return stated.startswith(_RASTER_TYPES)
    return str(asset["href"]).split("?")[0].lower().endswith(_RASTER_FILES)


def _property(names: Sequence[str] | None, column: str | None, name: str) -> str:
    if column is not None:
        return column
    if not names or len(names) != 1:
        raise LabelError(f"item {name} has the label:properties {names}; say which one holds the class, column='...'")
    return str(names[0])


def _legend(listed: Sequence[Mapping[str, Any]], column: str | None, asset: Mapping[str, Any]) -> Legend | None:
    """Classes of the chosen property; of a raster the asset says which value means which class."""
    valued = _values(asset) if column is None else {}
    if valued:
        return Legend.of(valued)
    values = next((each.get("classes") or [] for each in listed if each.get("name") == column), [])
    numbers = all(isinstance(v, int | float) for v in values)
    if not values or (column is None and not numbers):
        return None
    return Legend(tuple(LegendEntry(int(v) if numbers else str(v), str(v)) for v in values))


def _values(asset: Mapping[str, Any]) -> dict[int, Any]:
    """Values of a raster, from the classification or the file extension."""
    bands = [*(asset.get("bands") or []), *(asset.get("raster:bands") or [])]
    for holder in (asset, *bands):
        if holder.get("classification:classes"):
            return {int(c["value"]): _described(c) for c in holder["classification:classes"]}
    return {int(v): each["summary"] for each in asset.get("file:values") or [] for v in each["values"]}


def _described(entry: Mapping[str, Any]) -> dict[str, Any] | None:
    if entry.get("nodata"):
        return None
    color = str(entry.get("color_hint") or "").lower().lstrip("#")
    name = entry.get("name") or entry.get("title") or entry.get("description") or str(entry["value"])
    return {"name": str(name), **({"color": f"#{color}"} if color else {})}


def _absolute(href: str, document: Mapping[str, Any], folder: Path | None) -> str:
    if "://" in href or href.startswith("/"):
        return href.removeprefix("file://")
    own = next((link["href"] for link in document.get("links", []) if link.get("rel") == "self"), None)
    if own and "://" in own:
        return f"{own.rsplit('/', 1)[0]}/{href.removeprefix('./')}".removeprefix("file://")
    base = Path(own).parent if own and Path(own).is_absolute() else folder or Path()
    return str(base / href)
