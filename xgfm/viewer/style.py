"""What of a result can be looked at, and the colours of its pixels.

In: the Dataset of a sheet. Out: a `Layer` for each variable on the grid, and RGBA pixels of what was read of it.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from xgfm.cf import CLASS_DIM, NODATA, Flag, flags_of
from xgfm.errors import XgfmError

SHARES = ("probability", "confidence", "out_of_domain")
"""Variables from 0 to 1."""
STRETCH = (2.0, 98.0)
"""Percentiles that are drawn dark and bright."""
RGB = ("red", "green", "blue")
VIRIDIS = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")
"""Of numbers, from low to high."""
_COLOR = re.compile("#[0-9a-fA-F]{6}")


@dataclass(frozen=True)
class Layer:
    """One variable that can be looked at."""

    name: str
    title: str
    dims: tuple[str, ...]
    """Before ``y`` and ``x``: of ``time`` and ``class``, those that it has."""
    classes: tuple[Flag, ...] = ()
    """Where it is a map of classes."""
    units: str = ""
    nodata: float = np.nan

    @property
    def is_map(self) -> bool:
        """Whether its pixels are classes."""
        return bool(self.classes)


def layers_of(dataset: xr.Dataset) -> tuple[Layer, ...]:
    """Return the layers of a Dataset, maps of classes first.

    Raises
    ------
    XgfmError
        Where there is none.
    """
    found = [_layer(str(name), v) for name, v in dataset.data_vars.items() if _can_be_shown(v)]
    if not found:
        raise XgfmError(
            f"nothing to look at among {list(map(str, dataset.data_vars))}; expected variables with dims (y, x), and "
            "of time and class before them; give a cube as under="
        )
    return tuple(sorted(found, key=lambda layer: not layer.is_map))


def _can_be_shown(variable: xr.DataArray) -> bool:
    dims = variable.dims
    return dims[-2:] == ("y", "x") and set(dims[:-2]) <= {"time", CLASS_DIM} and variable.dtype.kind in "uif"


def _layer(name: str, variable: xr.DataArray) -> Layer:
    classes = flags_of(variable)
    units = str(variable.attrs.get("units", "1"))
    dims = tuple(str(d) for d in variable.dims[:-2])
    title = str(variable.attrs.get("long_name", name))
    return Layer(name, title, dims, classes, "" if units == "1" else units, nodata_of(variable))


def nodata_of(variable: xr.DataArray) -> float:
    """Return what stands for no data: 255 in maps of classes, NaN in floats, elsewhere what the attributes say."""
    if variable.dtype.kind == "f":
        return np.nan
    if "flag_values" in variable.attrs:
        return NODATA
    given = (variable.attrs.get(k, variable.encoding.get(k)) for k in ("nodata", "_FillValue"))
    return float(next((value for value in given if value is not None), -9999))


# ---- colours


def class_colours(
    values: NDArray[Any], classes: Iterable[Flag], hidden: frozenset[int] = frozenset()
) -> NDArray[np.uint8]:
    """Return ``(4, y, x)`` colours of class numbers ``(y, x)``; no data and hidden classes are transparent."""
    table = np.zeros((NODATA + 1, 4), "uint8")
    for each in classes:
        if each.number not in hidden:
            table[each.number] = (*_rgb(each.color), 255)
    return np.moveaxis(table[as_classes(values)], -1, 0)


def as_classes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return class numbers; those of a store opened with masking are floats, NaN without data."""
    return np.where(np.isnan(values), NODATA, values).astype("uint8") if values.dtype.kind == "f" else values


def value_colours(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Return ``(4, y, x)`` colours of numbers ``(y, x)``, dark at ``low``, bright at ``high``; NaN is transparent."""
    seen = np.isfinite(values)
    scaled = np.clip((np.where(seen, values, low) - low) / max(high - low, 1e-12), 0, 1)
    colours: NDArray[np.uint8] = np.moveaxis(ramp()[(scaled * 255).round().astype("uint8")], -1, 0).copy()
    colours[3] = np.where(seen, 255, 0)
    return colours


def ramp() -> NDArray[np.uint8]:
    """Return 256 opaque colours from dark to bright, evenly so for every eye: viridis, between its main colours."""
    main = np.array([_rgb(color) for color in VIRIDIS], "float64")
    steps = np.linspace(0, len(VIRIDIS) - 1, 256)
    bands = [np.interp(steps, np.arange(len(VIRIDIS)), band).round() for band in main.T]
    return np.stack([*bands, np.full(256, 255)], axis=1).astype("uint8")


def true_colours(
    values: NDArray[Any], nodata: float, low: NDArray[np.float64], high: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Return ``(4, y, x)`` colours of the bands red, green and blue ``(3, y, x)``."""
    seen = np.isfinite(values).all(0) & (values != nodata).all(0)
    span = np.maximum(high - low, 1e-12)[:, None, None]
    scaled = np.clip((np.nan_to_num(values.astype("float32")) - low[:, None, None]) / span, 0, 1)
    return np.concatenate([(scaled * 255).round(), np.where(seen, 255, 0)[None]]).astype("uint8")


def stretch(values: NDArray[Any], nodata: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the dark and the bright end of each row of ``(band, pixel)``."""
    seen = values[:, np.isfinite(values).all(0) & (values != nodata).all(0)]
    if not seen.size:
        return np.zeros(len(values)), np.ones(len(values))
    low, high = np.percentile(seen.astype("float64"), STRETCH, axis=1)
    return low, high


def _rgb(color: str) -> tuple[int, int, int]:
    text = color.removeprefix("#")
    return int(text[:2], 16), int(text[2:4], 16), int(text[4:6], 16)


def png(colours: NDArray[np.uint8]) -> bytes:
    """Return ``(4, y, x)`` colours as PNG: eight bits a band, with opacity, no filter."""
    height, width = colours.shape[1:]
    lines = np.zeros((height, 1 + 4 * width), "uint8")  # the first byte of a line names its filter
    lines[:, 1:] = np.moveaxis(colours, 0, -1).reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    # Level 1: what is served here does not go far, and time is dearer than bytes.
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 1)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
