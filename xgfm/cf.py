"""CF metadata of results: flags, names, fill values and the grid that they lie on.

In: a task's record, and an object that carries the grid. Out: plain dictionaries of JSON values, or the same result
with coordinates, attributes and encoding in place. Nothing here reads a pixel; results stay as lazy as they came.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, count
from typing import TYPE_CHECKING, Any

import numpy as np

from xgfm.errors import GridError, LabelError
from xgfm.palette import class_colors

if TYPE_CHECKING:
    import xarray as xr

    from xgfm.models.spec import ClassInfo, TaskSpec

CONVENTIONS = "CF-1.11"
"""Newest version that the IOOS checker and Zarr's CF convention know."""
NODATA = 255
"""Fill value of class maps."""
_NO_CLASS = re.compile(
    r"no_?(data|class|label|value)|fill|missing|mask|unclassified|unlabell?ed|unknown|none|void", re.I
)
"""Words by which others explain the code of pixels without a class."""
GRID_MAPPING = "spatial_ref"
CLASS_DIM = "class"

COMPANIONS: Mapping[str, Mapping[str, str]] = {
    "probability": {"long_name": "probability of each class", "units": "1"},
    "confidence": {"long_name": "probability of the mapped class", "units": "1"},
    "entropy": {"long_name": "Shannon entropy of the class probabilities (natural logarithm)", "units": "1"},
    "logits": {"long_name": "logit of each class", "units": "1"},
    "out_of_domain": {
        "long_name": "share of held-out training patches that lie nearer to the training data",
        "units": "1",
    },
}
"""Attributes of what stands beside a class map; none of them has a CF standard name."""


def variable_name(spec: TaskSpec) -> str:
    """Return the name of a task's variable: the task's name with ``-`` and ``.`` replaced by ``_``."""
    return re.sub(r"[-.]", "_", spec.name)


def flag_words(names: Iterable[str]) -> list[str]:
    """Turn class names into words that CF allows in ``flag_meanings``.

    Parameters
    ----------
    names : iterable of str
        Readable names, ``"Winter Wheat"``.

    Returns
    -------
    list of str
        Lower case, one word for each name, no two alike: ``"winter_wheat"``. CF allows letters, digits and
        ``_ - . + @``; accents are dropped, other characters become ``_``, a name that leaves nothing is
        ``class_<its number>``.
    """
    words: list[str] = []
    for number, name in enumerate(names):
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
        word = re.sub(r"[^a-z0-9_.+@-]+", "_", plain).strip("_") or f"class_{number}"
        numbered = (f"{word}_{again}" for again in count(2))
        words.append(next(w for w in chain([word], numbered) if w not in words))
    return words


def class_attrs(spec: TaskSpec) -> dict[str, Any]:
    """Return the attributes of a task's map: flags and colours of classes, or units of a regression.

    Parameters
    ----------
    spec : TaskSpec

    Returns
    -------
    dict
        JSON values. ``flag_values`` is a list of ints, ``flag_meanings`` and ``flag_colors`` (``#rrggbb``) are
        blank-separated, ``class_names`` keeps the readable names. There is no ``standard_name``: CF's ``area_type``
        knows no single crops, no flood and no plain water, and is illegal when one class is not in its table.
    """
    attrs: dict[str, Any] = {"long_name": spec.title or spec.name}
    if spec.demonstration:
        attrs["comment"] = "demonstration of the software, trained on simulated data: a map of nothing real"
    if spec.kind == "regression":
        return {**attrs, "units": spec.units}
    return {**attrs, **class_flags(spec.classes)}


def class_flags(classes: Iterable[ClassInfo]) -> dict[str, Any]:
    """Return the flags of classes, numbered from 0, as `class_attrs` writes them."""
    infos = list(classes)
    names = [c.name for c in infos]
    return {
        "flag_values": list(range(len(names))),
        "flag_meanings": " ".join(flag_words(names)),
        "flag_colors": " ".join(c.color for c in infos),
        "class_names": names,
    }


@dataclass(frozen=True, slots=True)
class Flag:
    """One class of a map, as its attributes name it."""

    number: int
    word: str
    """As CF writes it: one word."""
    name: str
    """As people write it."""
    color: str
    """``#rrggbb``."""


def flags_of(layer: xr.DataArray) -> tuple[Flag, ...]:
    """Return the classes of a map, by its attributes; none where it has no ``flag_values``.

    Parameters
    ----------
    layer : DataArray
        With ``flag_values`` and ``flag_meanings``; where there are none, ``class_names`` are the words with blanks and
        ``flag_colors`` those of the palette, which also stand for what is no ``#rrggbb``. 255 may be explained as
        no data, and is then left out.

    Raises
    ------
    LabelError
        Where there are not as many names or colours as values, or values that are no class codes, such as
        255 for a class.
    """
    attrs = layer.attrs
    if "flag_values" not in attrs:
        return ()
    numbers = [int(number) for number in np.atleast_1d(attrs["flag_values"])]
    words = str(attrs.get("flag_meanings", "")).split()
    names = [str(n) for n in np.atleast_1d(attrs.get("class_names", [word.replace("_", " ") for word in words]))]
    spare = class_colors(len(numbers))
    colors = str(attrs.get("flag_colors", "")).split() or spare
    if not len(numbers) == len(words) == len(names) == len(colors):
        raise LabelError(
            f"{layer.name!r} has {len(numbers)} flag_values, {len(words)} flag_meanings, {len(names)} class_names and "
            f"{len(colors)} flag_colors; expected one of each for every class, see its attrs"
        )
    if len(set(numbers)) < len(numbers) or not all(0 <= number <= NODATA for number in numbers):
        raise LabelError(
            f"flag_values {numbers} of {layer.name!r} are no class codes; expected distinct ones, 0 to {NODATA - 1}"
        )
    colors = [c if re.fullmatch("#[0-9A-Fa-f]{6}", c) else s for c, s in zip(colors, spare, strict=True)]
    flags = [Flag(*flag) for flag in zip(numbers, words, names, colors, strict=True)]
    for flag in flags:
        if flag.number == NODATA and not _NO_CLASS.search(flag.word):
            raise LabelError(
                f"flag_values {numbers} of {layer.name!r} give {NODATA} to the class {flag.name!r}, and {NODATA} is no "
                f"data; give classes the codes 0 to {NODATA - 1}"
            )
    return tuple(flag for flag in flags if flag.number != NODATA)


def axis_attrs(axis: str, *, geographic: bool) -> dict[str, str]:
    """Return the CF attributes of the coordinate ``y`` or ``x`` of a projected or a geographic grid."""
    if geographic:
        name, units = ("longitude", "degrees_east") if axis == "x" else ("latitude", "degrees_north")
        return {"standard_name": name, "long_name": name, "units": units, "axis": axis.upper()}
    return {
        "standard_name": f"projection_{axis}_coordinate",
        "long_name": f"{axis} coordinate of projection",
        "units": "m",
        "axis": axis.upper(),
    }


def fill_encoding(dtype: np.dtype[Any]) -> dict[str, Any]:
    """Return the fill value of a result: 255 for class maps (uint8), NaN for floats, none for other integers.

    It is named twice, as CF's ``_FillValue`` and as the Zarr array's own ``fill_value``: xarray and rioxarray look at
    the first, GDAL at the second, which would otherwise be 0, a class.
    """
    fill = {"u1": NODATA, "f2": math.nan, "f4": math.nan, "f8": math.nan}.get(dtype.str[1:])
    return {} if fill is None else {"_FillValue": fill, "fill_value": fill}


def like(
    out: xr.Dataset,
    grid: xr.DataArray | xr.Dataset,
    spec: TaskSpec | None = None,
    facts: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Give a finished result its coordinates, attributes and encoding.

    Parameters
    ----------
    out : Dataset
        Variables with dims ``(..., y, x)``; stays lazy. The variable called `variable_name(spec)` is the task's map.
    grid : DataArray or Dataset
        What carries ``y``, ``x`` and ``spatial_ref``: the cube, or a result that `grid.with_grid` has been over.
        ``time`` is taken from it as well where `out` has the dimension and not the coordinate.
    spec : TaskSpec, optional
        The task; without one (embeddings) variables keep their own attributes.
    facts : mapping, optional
        JSON values for the Dataset's attributes: task, model, digest, frames. Records become JSON text (`frames_of`).

    Returns
    -------
    Dataset
        ``y`` and ``x`` last, ``grid_mapping`` and fill values in the encoding, ``Conventions`` in the attributes.

    Raises
    ------
    GridError
        Where `grid` has no ``spatial_ref``, or `out` is not of its size.
    """
    _check_grid(out, grid)
    out = out.transpose(..., "y", "x").assign_coords(_coordinates(out, grid))
    if spec is not None and CLASS_DIM in out.dims:
        out = out.assign_coords({CLASS_DIM: _class_coordinate(spec)})
    if "time" in out.coords:
        bounds = {"bounds": "time_bnds"} if "time_bnds" in out.coords else {}
        out.coords["time"].attrs = {"standard_name": "time", "long_name": "time", "axis": "T", **bounds}
    for name, variable in out.data_vars.items():
        attrs = _variable_attrs(str(name), spec)
        companions = [n for n in COMPANIONS if n in out.data_vars]
        if spec is not None and name == variable_name(spec) and companions:
            attrs["ancillary_variables"] = " ".join(companions)
        kept = {k: v for k, v in variable.attrs.items() if k != "grid_mapping"}
        variable.attrs = {**kept, **attrs}
        variable.encoding = {**fill_encoding(variable.dtype), "grid_mapping": GRID_MAPPING}
    title = {} if spec is None else {"title": spec.title or spec.name}
    legal = {name: _legal(value) for name, value in (facts or {}).items()}
    out.attrs = {**title, **out.attrs, **legal, "Conventions": CONVENTIONS}
    return out


def frames_of(attrs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the attribute ``frames`` of a cube or a result says: window, dates and items of each frame."""
    frames = attrs.get("frames") or []
    return json.loads(frames) if isinstance(frames, str) else list(frames)


def _legal(value: Any) -> Any:
    """Return a fact as an attribute that netCDF can hold as well: no booleans, and records as JSON text."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict) for v in value)):
        return json.dumps(value)
    return value


def _check_grid(out: xr.Dataset, grid: xr.DataArray | xr.Dataset) -> None:
    missing = [n for n in ("y", "x", GRID_MAPPING) if n not in grid.coords]
    if missing:
        raise GridError(
            f"the grid of the result lacks the coordinates {missing}; attach them with with_grid(cube, geobox)"
        )
    sizes = [tuple(o.sizes.get(n, 0) for n in ("y", "x")) for o in (out, grid)]
    if sizes[0] != sizes[1]:
        raise GridError(f"a result of (y, x) = {sizes[0]} does not lie on a grid of {sizes[1]}; give its own grid")


def _coordinates(out: xr.Dataset, grid: xr.DataArray | xr.Dataset) -> dict[str, xr.DataArray]:
    """``y``, ``x``, ``spatial_ref`` and where needed ``time``, copied so that the cube's own stay as they are."""
    names = ["y", "x", GRID_MAPPING]
    if "time" in out.dims and "time" not in out.coords and "time" in grid.coords:
        names.append("time")
    coords = {n: grid.coords[n].reset_coords(drop=True).copy() for n in names}
    geographic = coords[GRID_MAPPING].attrs.get("grid_mapping_name") == "latitude_longitude"
    for axis in ("y", "x"):
        coords[axis].attrs = axis_attrs(axis, geographic=geographic)
        # CF forbids fill values on coordinates, and xarray adds NaN to floats unless it is told not to.
        coords[axis].encoding = {"_FillValue": None}
    return coords


def _class_coordinate(spec: TaskSpec) -> xr.DataArray:
    """Class numbers with their flags: Zarr v3 has no specified type for fixed-length strings."""
    import numpy as np
    import xarray as xr

    numbers = np.arange(len(spec.classes), dtype="uint8")
    return xr.DataArray(numbers, dims=CLASS_DIM, attrs={"long_name": "class", **class_flags(spec.classes)})


def _variable_attrs(name: str, spec: TaskSpec | None) -> dict[str, Any]:
    if spec is None:
        return {}
    if name == variable_name(spec):
        return class_attrs(spec)
    return dict(COMPANIONS.get(name, {}))
