"""What a Zarr store of a result holds, in words.

In: the path of a store. Out: pairs of a word and what there is to say, for people. Only metadata is read.
"""

from __future__ import annotations

from typing import Any

import xarray as xr

from xgfm.cf import frames_of
from xgfm.errors import XgfmError
from xgfm.grid import geobox_of, pixel_size_m


def about_store(path: str) -> list[tuple[str, str]]:
    """Return what there is to say about a store: pairs of a word and its value.

    Parameters
    ----------
    path : str
        Folder or URL.

    Raises
    ------
    XgfmError
        Where there is no store.
    """
    try:
        stored = xr.open_zarr(path, mask_and_scale=False, decode_coords="all")
    except FileNotFoundError as error:
        raise XgfmError(f"there is no Zarr store at {path}") from error
    box = geobox_of(stored)
    rows, columns = box.shape
    # What the grid says, where it is in metres; a degree has to be measured.
    metres = abs(box.affine.a) if box.crs is not None and box.crs.projected else pixel_size_m(box)
    pairs = [
        ("Zarr store", path),
        ("CRS", f"EPSG:{box.crs.epsg}" if box.crs is not None and box.crs.epsg else str(box.crs)[:80]),
        (
            "size",
            f"{rows} x {columns} pixels of {metres:.4g} m, {rows * metres / 1e3:.4g} x {columns * metres / 1e3:.4g} km",
        ),
        ("upper left", f"{box.affine.c:.10g}, {box.affine.f:.10g}"),
    ]
    for name, variable in stored.data_vars.items():
        shards = variable.encoding.get("shards")
        pairs.append(
            (
                str(name),
                f"{variable.dtype} {dict(variable.sizes)}, chunks {variable.encoding.get('chunks')}"
                + (f" in shards {shards}" if shards else ""),
            )
        )
        if "class_names" in variable.attrs and variable.ndim > 1:
            pairs.append(("  classes", ", ".join(variable.attrs["class_names"])))
    return pairs + [(str(key), _fact(str(key), value)) for key, value in stored.attrs.items()]


def _fact(key: str, value: Any) -> str:
    if key == "frames":
        return ", ".join(" to ".join(frame["window"]) for frame in frames_of({key: value}) if "window" in frame)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
