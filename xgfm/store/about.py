"""What a Zarr store or a GeoTIFF of a result holds, in words.

In: its path. Out: pairs of a word and what there is to say, for people. Only metadata is read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from xgfm.cf import frames_of
from xgfm.errors import XgfmError
from xgfm.grid import geobox_of, pixel_size_m

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox


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
    pairs = [("Zarr store", path), *_about_grid(geobox_of(stored))]
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


def about_geotiff(path: Path) -> list[tuple[str, str]]:
    """Return what there is to say about a GeoTIFF, one of `xgfm.to_cog` or another.

    Raises
    ------
    XgfmError
        Where it cannot be read.
    """
    import rasterio
    from odc.geo.geobox import GeoBox
    from rasterio.errors import RasterioIOError

    try:
        with rasterio.open(path) as file:
            box = GeoBox.from_rio(file)
            kinds = f"{file.count} of {', '.join(sorted(set(file.dtypes)))}, nodata {file.nodata}"
            tags, first = file.tags(), file.tags(1)
    except RasterioIOError as error:
        raise XgfmError(f"{path} cannot be read as a GeoTIFF ({error}); give the path of a whole one") from error
    classes = first.get("class_names") or tags.pop("classes", None)
    facts = sorted((key, _listed(value)) for key, value in tags.items() if key != "AREA_OR_POINT")
    return [
        ("GeoTIFF", str(path)),
        *_about_grid(box),
        ("bands", kinds),
        *([("classes", _listed(classes))] if classes else []),
        *facts,
    ]


def _listed(text: str) -> str:
    """Show a JSON list as words; any other text as it is."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return ", ".join(map(str, value)) if isinstance(value, list) else text


def _about_grid(box: GeoBox) -> list[tuple[str, str]]:
    rows, columns = box.shape
    if box.crs is None:
        return [("CRS", "none"), ("size", f"{rows} x {columns} pixels")]
    # What the grid says, where it is in metres; a degree has to be measured.
    metres = abs(box.affine.a) if box.crs.projected else pixel_size_m(box)
    extent = f"{rows * metres / 1e3:.4g} x {columns * metres / 1e3:.4g} km"
    return [
        ("CRS", f"EPSG:{box.crs.epsg}" if box.crs.epsg else str(box.crs)[:80]),
        ("size", f"{rows} x {columns} pixels of {metres:.4g} m, {extent}"),
        ("upper left", f"{box.affine.c:.10g}, {box.affine.f:.10g}"),
    ]


def _fact(key: str, value: Any) -> str:
    if key == "frames":
        return ", ".join(" to ".join(frame["window"]) for frame in frames_of({key: value}) if "window" in frame)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
