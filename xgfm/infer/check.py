"""Refusal: whether a cube is what a model was trained on, before any pixel is read.

In: a cube, lazy or not, or a Dataset of bands; a task or a model. Out: the same cube as ``(time, band, y, x)`` with its
units declared, or an error that names the argument that mends it. Only shapes, labels and attributes are looked at; the
values are checked by the kernel, block by block, when they are read.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import xarray as xr

from xgfm.errors import BandError, CubeError, FramesError, GridError, TaskError, UnitsError
from xgfm.grid import geobox_of, pixel_size_m
from xgfm.models import registry
from xgfm.models.spec import ModelSpec, TaskSpec

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

DIMS = ("time", "band", "y", "x")
CHECKS = ("bands", "pixel_size", "dates", "values")
"""Checks that ``allow=`` can switch off."""

HLS_NODATA = -9999
HLS_SCALE = 1e-4

_HLS_ASSETS = {
    "B02": "blue",
    "B03": "green",
    "B04": "red",
    "B8A": "nir08",
    "B11": "swir16",
    "B12": "swir22",
}
_BROAD_NIR = frozenset({"nir", "B08", "nir_broad", "B8"})


class HasSpec(Protocol):
    """Anything that carries the record of a task or a model: a `ModelHandle`."""

    @property
    def spec(self) -> TaskSpec | ModelSpec:
        """What it takes."""


@dataclass(frozen=True, slots=True)
class Units:
    """What the cube's numbers mean."""

    reflectance_scale: float
    """Reflectance of one unit."""
    nodata: float | None
    """The value of a missing pixel; NaN is always missing."""


def check(
    cube: xr.DataArray | xr.Dataset,
    task: str | PathLike[str] | HasSpec | TaskSpec | ModelSpec,
    *,
    allow: Collection[str] = (),
    reflectance_scale: float | None = None,
) -> xr.DataArray:
    """Refuse a cube that a task or a model cannot take, before any read.

    Parameters
    ----------
    cube : DataArray or Dataset
        Dims ``(time, band, y, x)``; a Dataset has one variable ``(time, y, x)`` per band. Stays lazy.
    task : str, ModelHandle, TaskSpec or ModelSpec
        What the cube is for.
    allow : collection of str, optional
        Checks to leave out, of ``"bands"`` (order and names are trusted, the number is not), ``"pixel_size"``,
        ``"dates"`` (repeated or unsorted) and ``"values"`` (the range, while reading).
    reflectance_scale : float, optional
        Reflectance of one unit, where the cube's attributes do not say: 1e-4 for x 10000, 1 for 0-1.

    Returns
    -------
    DataArray
        The cube in the model's band order, with ``reflectance_scale`` and ``nodata`` in its attributes.

    Raises
    ------
    CubeError
        One of its children `BandError`, `UnitsError`, `GridError`, `FramesError`, by what is wrong.
    """
    unknown = {allow} if isinstance(allow, str) else set(allow or ()) - set(CHECKS)
    if unknown:
        raise TaskError(f"allow={sorted(unknown)} names no check; the checks are {list(CHECKS)}")
    spec = spec_of(task)
    array = _as_array(cube, spec)
    _check_dims(array)
    _check_fmask(array)
    _check_bands(array, spec, allow)
    units = units_of(array, reflectance_scale)
    _check_pixel_size(geobox_of(array), spec, allow)
    _check_frames(array, spec)
    _check_dates(array, allow)
    attrs = {**array.attrs, "reflectance_scale": units.reflectance_scale}
    if units.nodata is not None:
        attrs["nodata"] = units.nodata
    return array.assign_attrs(attrs)


def units_of(cube: xr.DataArray, reflectance_scale: float | None = None) -> Units:
    """Return what a cube's numbers mean, from an argument, its attributes or its dtype, in this order.

    Raises
    ------
    UnitsError
        Where nothing says it, or two of them contradict each other.
    """
    kind, declared = cube.dtype.kind, cube.attrs.get("reflectance_scale")
    if kind not in "iuf":
        raise UnitsError(f"the cube is of dtype {cube.dtype}; expected integers or floats of reflectance")
    if declared is not None and reflectance_scale is not None and not np.isclose(declared, reflectance_scale):
        raise UnitsError(
            f"reflectance_scale={reflectance_scale:g} was given, but the cube's attributes say {declared:g}; "
            "leave the argument out, or correct cube.attrs['reflectance_scale']"
        )
    scale = _packed(cube, reflectance_scale if reflectance_scale is not None else declared)
    if scale is None and (kind == "f" or cube.dtype.itemsize == 1):
        raise UnitsError(
            f"a cube of {cube.dtype} does not say its units; give reflectance_scale=1 for reflectance 0-1, "
            "1e-4 for reflectance x 10000, 1/255 for reflectance x 255"
        )
    scale = float(HLS_SCALE if scale is None else scale)
    if not 0 < scale < np.inf:
        raise UnitsError(f"reflectance_scale={scale:g}: expected the reflectance of one unit, above 0")
    return Units(scale, _nodata(cube))


def _packed(cube: xr.DataArray, scale: float | None) -> float | None:
    """Return the scale of packed values that were not unpacked, as files of other sensors declare it.

    Raises
    ------
    UnitsError
        Where there is an offset, or another scale than the one that is given.
    """
    factor, offset = (
        float(cube.attrs.get(name, default)) for name, default in (("scale_factor", 1), ("add_offset", 0))
    )
    if offset:
        raise UnitsError(
            f"the cube's attributes say add_offset={offset:g} and scale_factor={factor:g}: no scale alone makes its "
            f"numbers reflectance; unpack them, cube.where(cube != nodata) * {factor:g} + {offset:g}, without these "
            "attributes, and give reflectance_scale=1"
        )
    if factor != 1 and scale is not None and not np.isclose(factor, scale):
        raise UnitsError(
            f"the cube's attributes say scale_factor={factor:g}, but reflectance_scale={scale:g}; correct one of them"
        )
    return scale if factor == 1 else factor


def _nodata(cube: xr.DataArray) -> float | None:
    # What xarray has unpacked into floats has NaN where it was missing; the packed fill is a value like any other.
    places = (cube.attrs,) if cube.dtype.kind == "f" else (cube.attrs, cube.encoding)
    declared = [place[n] for place in places for n in ("nodata", "_FillValue", "missing_value") if n in place]
    if declared:
        return None if declared[0] is None else float(declared[0])
    if cube.dtype.kind == "u":
        raise UnitsError(
            f"a cube of {cube.dtype} does not say which value is missing; cube.assign_attrs(nodata=0), or nodata=None "
            "if every pixel is there"
        )
    return float(HLS_NODATA) if cube.dtype.kind == "i" else None


def spec_of(task: Any) -> TaskSpec | ModelSpec:
    """Return the record of a task or a model, by name, path, handle or as it is. Nothing is downloaded."""
    spec = registry.spec_of(task) if isinstance(task, str | PathLike) else getattr(task, "spec", task)
    if not isinstance(spec, TaskSpec | ModelSpec):
        raise TaskError(f"{spec!r} is no task; give a name, a path, or what xgfm.load_task or xgfm.load_model returned")
    return spec


def _as_array(cube: xr.DataArray | xr.Dataset, spec: TaskSpec | ModelSpec) -> xr.DataArray:
    """One array from a Dataset of bands; an array as it is."""
    if isinstance(cube, xr.DataArray):
        return cube
    if not isinstance(cube, xr.Dataset):
        raise CubeError(
            f"the cube is a {type(cube).__name__}; expected an xarray DataArray {DIMS} or a Dataset of bands"
        )
    missing = [b for b in spec.bands if b not in cube]
    cubes = [str(name) for name, variable in cube.data_vars.items() if "band" in variable.dims]
    if missing and cubes:
        raise CubeError(f"the Dataset holds the cube as a variable; take it out: ds[{cubes[0]!r}]")
    if missing:
        raise BandError(_band_message(spec, [str(v) for v in cube.data_vars]))
    stacked = cube[list(spec.bands)].to_dataarray("band")
    return stacked.transpose(..., "band", "y", "x").assign_attrs(cube[spec.bands[0]].attrs)


def _check_dims(cube: xr.DataArray) -> None:
    if {"latitude", "longitude"} & set(map(str, cube.dims)):
        raise CubeError(
            f"the cube has dims {tuple(map(str, cube.dims))}; expected {DIMS}: cube.rename(latitude='y', longitude='x')"
        )
    if cube.dims != DIMS:
        raise CubeError(
            f"the cube has dims {tuple(map(str, cube.dims))}; expected {DIMS}: "
            "cube.transpose(...), and cube.expand_dims('time') with a date for a single image"
        )
    if 0 in cube.shape:
        raise CubeError(f"the cube has no pixels: {dict(cube.sizes)}")


def _check_fmask(cube: xr.DataArray) -> None:
    if "fmask" in cube.coords:
        raise CubeError(
            "the cube carries an Fmask that was not used, so clouds are still in it; cube.gfm.mask(), or "
            "cube.drop_vars('fmask') to map them as they are"
        )


def _band_message(spec: TaskSpec | ModelSpec, given: list[str]) -> str:
    expected = list(spec.bands)
    message = f"{spec.name!r} needs bands {expected}; the cube has {given}"
    missing = [b for b in expected if b not in given]
    if not missing:
        return f"{message}: order them with cube.sel(band={expected})"
    message = f"{message}, missing {missing}"
    if "nir08" in missing and _BROAD_NIR & set(given):
        broad = sorted(_BROAD_NIR & set(given))[0]
        return (
            f"{message}. {broad!r} is Sentinel-2's broad band B08; the model takes the narrow one, "
            "B8A on S30 and B05 on L30: load that asset, renaming B08 gives wrong maps"
        )
    renames = {g: _HLS_ASSETS[g] for g in given if g in _HLS_ASSETS}
    if renames:
        l30 = {"B05": "nir08", "B06": "swir16", "B07": "swir22"}
        return f"{message}. Name them with cube.assign_coords(band=...): on S30 {renames}, on L30 {l30}"
    return f"{message}. Load them, or name them with cube.assign_coords(band={expected})"


def _check_bands(cube: xr.DataArray, spec: TaskSpec | ModelSpec, allow: Collection[str]) -> None:
    if cube.sizes["band"] != len(spec.bands) and "bands" in allow:
        raise BandError(f"{spec.name!r} takes {len(spec.bands)} bands, the cube has {cube.sizes['band']}")
    if "bands" in allow:
        return
    if "band" not in cube.coords:
        raise BandError(
            f"the cube's bands have no names; expected {list(spec.bands)}: cube.assign_coords(band=[...]), "
            "or allow=['bands'] to trust their order"
        )
    given = [str(b) for b in cube.coords["band"].values]
    if given != list(spec.bands):
        raise BandError(_band_message(spec, given) + "; or allow=['bands'] to trust the cube's own order")


def _check_pixel_size(geobox: GeoBox, spec: TaskSpec | ModelSpec, allow: Collection[str]) -> None:
    size = pixel_size_m(geobox)
    if "pixel_size" in allow or 0.8 <= size / spec.pixel_size <= 1.25:
        return
    if size > spec.pixel_size:
        mend = "resampling adds no detail: use images of that size"
    else:
        mend = f"open the cube with resolution={spec.pixel_size:g}"
    raise GridError(
        f"the cube's pixels are {size:.3g} m, {spec.name!r} was trained at {spec.pixel_size:g} m; {mend}, or "
        "allow=['pixel_size'] to use it as it is"
    )


def _check_frames(cube: xr.DataArray, spec: TaskSpec | ModelSpec) -> None:
    given = cube.sizes["time"]
    # A model (not a task) takes any number of frames up to its own: its position table is rebuilt for them.
    needed = spec.frames if hasattr(spec, "classes") else 1
    if given < needed:
        raise FramesError(
            f"{spec.name!r} takes {needed} dates at once, the cube has {given}; open a longer period with datetime=, "
            "or take a task of fewer frames"
        )


def _check_dates(cube: xr.DataArray, allow: Collection[str]) -> None:
    dtype = cube.coords["time"].dtype if "time" in cube.coords else None
    if not isinstance(dtype, np.dtype) or dtype.kind != "M":  # pandas' dates with a zone are no NumPy dtype
        raise FramesError(
            f"the cube's time steps have no dates in UTC (dtype {dtype}); give them with "
            "cube.assign_coords(time=[...]), as datetime64 without a time zone"
        )
    times = cube.coords["time"].values
    if np.isnat(times).any():
        raise FramesError(
            "a time step of the cube has no date (NaT); drop it, or date it with cube.assign_coords(time=)"
        )
    if "dates" in allow:
        return
    steps = np.diff(times)
    if (steps == np.timedelta64(0)).any():
        repeated = np.datetime_as_string(times[1:][steps == np.timedelta64(0)][0], unit="s")
        raise FramesError(
            f"the date {repeated} stands twice in the cube; merge its scenes (xgfm.open_items does), drop one with "
            "cube.drop_duplicates('time'), or allow=['dates']"
        )
    if (steps < np.timedelta64(0)).any():
        raise FramesError("the cube's dates are not in order; cube.sortby('time'), or allow=['dates']")


__all__ = ["CHECKS", "Units", "check", "units_of"]
