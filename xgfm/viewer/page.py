"""What the page is told: about the store, and about the pixel that is clicked.

In: an `Atlas`. Out: JSON values. Texts are those of the store, and the page shows them as texts.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xgfm.cf import CLASS_DIM
from xgfm.grid import crs_name
from xgfm.viewer.blocks import Blocks, counts
from xgfm.viewer.sheets import Sheet
from xgfm.viewer.style import Layer, ramp
from xgfm.viewer.tiles import Atlas

_NOTES = ("attribution", "comment")
_HINT = (
    "This store has no overviews, so only a part of it can be drawn at once. Zoom in, or add them: "
    "xgfm.store.overviews.add_overviews(store)"
)


def describe(atlas: Atlas, blocks: Blocks | None) -> dict[str, Any]:
    """Return what the page needs before it draws: layers, legend, dates, place and zooms.

    Parameters
    ----------
    atlas : Atlas
        The store.
    blocks : Blocks, optional
        Of its job.
    """
    west, south, east, north = atlas.degrees
    least, native = atlas.zooms
    attrs = atlas.base.attrs
    first = next(iter(atlas.layers.values()))
    notes = [attrs.get(key) or atlas.base[first.name].attrs.get(key) for key in _NOTES]
    return {
        "title": str(attrs.get("title") or first.title),
        "notes": [str(note) for note in notes if note],
        "bounds": [[south, west], [north, east]],
        "zooms": {"least": least, "native": native},
        "hint": _HINT if least else "",
        "grid": _grid(atlas),
        "layers": [_layer(atlas, layer) for layer in atlas.layers.values()],
        "ramp": ["#" + "".join(f"{v:02x}" for v in color[:3]) for color in ramp()[::15].tolist()],
        "times": atlas.times(),
        "under": None if atlas.under is None else {"times": atlas.times(under=True), "least": atlas.under_least},
        "blocks": None if blocks is None else counts(blocks.outcomes()),
    }


def _grid(atlas: Atlas) -> str:
    box = atlas.sheets[0].base.geobox
    name = crs_name(box.crs) if box.crs is not None else ""
    several = f"{len(atlas.sheets)} grids, the first of " if len(atlas.sheets) > 1 else ""
    return f"{several}{box.shape[0]} x {box.shape[1]} pixels, {name}"


def _layer(atlas: Atlas, layer: Layer) -> dict[str, Any]:
    low, high = (0.0, 0.0) if layer.is_map else atlas.range(layer)
    return {
        "name": layer.name,
        "title": layer.title,
        "units": layer.units,
        "dims": list(layer.dims),
        "classes": [{"value": c.number, "name": c.name, "color": c.color} for c in layer.classes],
        "numbers": class_names(atlas, layer),
        "range": [low, high],
    }


def class_names(atlas: Atlas, layer: Layer) -> list[str]:
    """Return the names along the class dimension of a layer."""
    if CLASS_DIM not in layer.dims:
        return []
    size = atlas.base.sizes[CLASS_DIM]
    legend = next((other.classes for other in atlas.layers.values() if len(other.classes) == size), ())
    return [c.name for c in legend] or [f"class {i}" for i in range(size)]


def value_at(atlas: Atlas, blocks: Blocks | None, lon: float, lat: float, *, time: int = 0) -> dict[str, Any]:
    """Return what stands in the store at a place: of the first sheet with data there, at full resolution.

    Parameters
    ----------
    atlas, blocks
        The store, and the blocks of its job.
    lon, lat : float
        Degrees.
    time : int
        Position along time.
    """
    hits = [(sheet, *place) for sheet in atlas.sheets if (place := _place(sheet, lon, lat)) is not None]
    told = [_pixel(atlas, *hit, time) for hit in hits]
    found = next((each for each in told if any(v is not None for v in each["values"].values())), None)
    found = found or next(iter(told), {"values": {}})
    return {"lon": lon, "lat": lat, **found, "block": None if blocks is None else _block(blocks, hits)}


def _place(sheet: Sheet, lon: float, lat: float) -> tuple[int, int] | None:
    """Row and column of a place; None outside of the sheet."""
    x, y = sheet.from_degrees.transform(lon, lat)
    if not (math.isfinite(x) and math.isfinite(y)):  # the projection does not reach there
        return None
    box = sheet.base.geobox
    column, row = ~box.affine * (x, y)
    inside = 0 <= row < box.shape[0] and 0 <= column < box.shape[1]
    return (math.floor(row), math.floor(column)) if inside else None


def _pixel(atlas: Atlas, sheet: Sheet, row: int, column: int, time: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for layer in atlas.layers.values():
        select: dict[str, int] = {"y": row, "x": column, **({"time": time} if "time" in layer.dims else {})}
        values[layer.name] = _json(sheet.base.dataset[layer.name].isel(select).values, layer)
    return {"sheet": sheet.name, "row": row, "column": column, "values": values}


def _json(values: Any, layer: Layer) -> Any:
    """A number, or a list of those of each class; None without data."""
    numbers = np.atleast_1d(values).astype("float64")
    missing = np.isnan(numbers) | (numbers == layer.nodata)
    cast = int if layer.is_map else float
    said = [None if gone else cast(number) for number, gone in zip(numbers, missing, strict=True)]
    if CLASS_DIM in layer.dims:
        return None if missing.all() else said
    return said[0]


def _block(blocks: Blocks, hits: list[tuple[Sheet, int, int]]) -> dict[str, Any] | None:
    """The block that a pixel is in: of the area of its sheet's name, or of the only one."""
    from xgfm.jobs.summary import OUTCOMES

    outcomes = blocks.outcomes()
    for sheet, row, column in hits:
        area = next((a for a in blocks.plan.areas if a.group == sheet.name), None)
        if area is not None:
            at = row // area.block, column // area.block
            reason = blocks.reason(area.name, *at)
            return {"id": area.at(*at).id, "outcome": OUTCOMES[outcomes[area.name][at]], "reason": reason}
    return None
