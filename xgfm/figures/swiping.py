"""Two pictures of one place, one over the other, with a slider between them.

In: two maps, or frames of a cube. Out: HTML that needs nothing else, for a notebook or a file. This computes, but no
more than some `PIXELS` rows and columns.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from html import escape
from os import PathLike
from pathlib import Path

import numpy as np
import xarray as xr

from xgfm.cf import NODATA, flags_of
from xgfm.errors import CubeError, GridError, MissingExtraError
from xgfm.figures.levels import strided, thinned
from xgfm.figures.panels import Array, color_bands, colored, frame_panels, is_classes, map_panels
from xgfm.grid import geobox_of
from xgfm.notebook import legend
from xgfm.palette import EMPTY
from xgfm.store.layout import as_dataset, choose_variable

PIXELS = 1000
"""Most rows or columns that are computed."""
_LEAST = 480
"""Pixels of a screen across the picture of a small map."""
_PAGE = """<div class="xgfm-swipe" style="max-width:{width}px;font-family:sans-serif;font-size:0.9em;color:#222;\
background:#fff;padding:0.5em">
<div style="display:flex;justify-content:space-between;gap:1em"><span>{before}</span>\
<span style="text-align:right">{after}</span></div>
<div style="position:relative;line-height:0;touch-action:none">
<img alt="{before}" src="{first}" style="width:100%;image-rendering:{rendering}">
<img alt="{after}" src="{second}" style="width:100%;position:absolute;left:0;top:0;image-rendering:{rendering};\
clip-path:inset(0 0 0 50%)">
<div style="position:absolute;top:0;bottom:0;left:50%;width:0;border-left:2px solid #fff;\
box-shadow:0 0 3px 1px #0008;pointer-events:none"></div>
<input type="range" min="0" max="100" step="0.1" value="50" aria-label="{before} to the left, {after} to the right" \
style="position:absolute;inset:0;width:100%;height:100%;margin:0;opacity:0;cursor:ew-resize" \
oninput="var p=this.parentNode;p.children[1].style.clipPath='inset(0 0 0 '+this.value+'%)';\
p.children[2].style.left=this.value+'%'">
</div>
<div style="margin-top:0.4em">{legend}</div>
</div>"""


@dataclass(frozen=True, slots=True)
class Swipe:
    """Two pictures with a slider between them; a notebook shows it."""

    html: str
    """A piece of a page, with the pictures in it."""

    def save(self, path: str | PathLike[str]) -> Path:
        """Write it as a page of its own, and return where."""
        target = Path(path)
        target.write_text(
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>xgfm</title><body>{self.html}</body></html>',
            encoding="utf-8",
        )
        return target

    def _repr_html_(self) -> str:
        return self.html


def swipe(
    before: xr.Dataset | xr.DataArray,
    after: xr.Dataset | xr.DataArray,
    *,
    variable: str | None = None,
    names: tuple[str, str] = ("", ""),
    pixels: int = PIXELS,
) -> Swipe:
    """Lay two pictures of one place over each other, with a slider between them.

    Parameters
    ----------
    before, after : Dataset or DataArray
        Each a map of classes ``(y, x)``, or a cube ``(time, band, y, x)`` of one time step, which is drawn in true
        colour; of the same place, at any two resolutions. Computed here.
    variable : str, optional
        Which one; by default the class map, or the only one there is.
    names : (str, str)
        What stands above; by default name and date of each.
    pixels : int
        Most rows or columns that are computed, as in `plot`.

    Returns
    -------
    Swipe
        A notebook shows it; ``.save("swipe.html")`` writes a page that needs no network. The slider follows mouse,
        finger and arrow keys.

    Raises
    ------
    CubeError, GridError
        For anything but one map or one frame, or for two places.
    MissingExtraError
        Where matplotlib is not installed.
    """
    _require_one_place(before, after)
    shown = [_picture(one, variable, pixels) for one in (before, after)]
    titles = [escape(given or title) for given, (_, title, _) in zip(names, shown, strict=True)]
    classes = dict.fromkeys(entry for _, _, entries in shown for entry in entries)
    width = max(_LEAST, *(colors.shape[1] for colors, _, _ in shown))
    return Swipe(
        _PAGE.format(
            width=min(width, PIXELS),
            before=titles[0],
            after=titles[1],
            first=_png(shown[0][0]),
            second=_png(shown[1][0]),
            rendering="pixelated" if width <= _LEAST else "auto",
            legend=legend(classes),
        )
    )


def _require_one_place(before: xr.Dataset | xr.DataArray, after: xr.Dataset | xr.DataArray) -> None:
    one, other = (geobox_of(as_dataset(given)) for given in (before, after))
    pixel = max(abs(box.resolution.x) for box in (one, other))
    apart = np.abs(np.subtract(one.boundingbox.bbox, other.boundingbox.bbox)).max()
    if one.crs != other.crs or apart > pixel:
        raise GridError(
            f"before= lies at {one.boundingbox.bbox} of {one.crs}, after= at {other.boundingbox.bbox} of {other.crs}; "
            "give two pictures of one place, cut alike with .sel(y=, x=)"
        )


def _picture(
    given: xr.Dataset | xr.DataArray, variable: str | None, pixels: int
) -> tuple[Array, str, list[tuple[str, str]]]:
    """Return colours ``(y, x, 3)``, a title, and the classes that are in it with their colours."""
    if isinstance(given, xr.DataArray) and "band" in given.dims:
        cube = given if "time" in given.dims else given.expand_dims("time")
        if cube.sizes["time"] != 1:
            raise CubeError(f"{cube.sizes['time']} time steps; a swipe shows one frame, choose with .isel(time=[0])")
        (frame,) = frame_panels(strided(color_bands(cube), pixels).compute())
        return frame.values, frame.title, []
    dataset = as_dataset(given)
    layer = dataset[choose_variable(dataset, variable)].squeeze([d for d in ("time",) if dataset.sizes.get(d) == 1])
    if layer.dims != ("y", "x") or not is_classes(layer):
        raise CubeError(
            f"{layer.name!r} has dims {layer.dims} and {'' if is_classes(layer) else 'no '}flag_values; a swipe shows "
            "one map of classes (y, x), choose with result.isel, or a frame of a cube"
        )
    maps = thinned(layer, pixels).compute()
    (panel,) = map_panels(maps.expand_dims("step"), dataset.attrs)
    return colored(maps), panel.title.replace("\n", ", "), _present(maps)


def _present(maps: xr.DataArray) -> list[tuple[str, str]]:
    """Names and colours of the classes that a map has, and of nodata where there is any."""
    there = set(np.unique(maps.fillna(NODATA).values.astype("uint8")).tolist())
    found = [(flag.name, flag.color) for flag in flags_of(maps) if flag.number in there]
    return [*found, ("no data", EMPTY)] if NODATA in there else found


def _png(colors: Array) -> str:
    """Return colours from 0 to 1 as a picture inside of a page."""
    try:
        from matplotlib.image import imsave
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "drawing") from error
    file = io.BytesIO()
    imsave(file, np.ascontiguousarray(colors), format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
