"""What the kernel must know of a cube: units, dates, place, grid. Taken from labels and attributes, without reading."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING

import dask.array as da
import pandas as pd
import xarray as xr

from xgfm.infer.check import units_of
from xgfm.infer.kernel import Context, Place
from xgfm.infer.pixels import Pixels
from xgfm.models.spec import TaskSpec

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

    from xgfm.models.handle import ModelHandle
    from xgfm.models.spec import Coordinate, ModelSpec, Statistics


def pixels_of(
    cube: xr.DataArray, statistics: Statistics, fill: float, fill_units: str, allow: Collection[str]
) -> Pixels:
    """Return how a checked cube's numbers become a model's input."""
    units = units_of(cube)
    return Pixels(
        mean=statistics.mean,
        std=statistics.std,
        factor=units.reflectance_scale / statistics.reflectance_scale,
        reflectance_scale=units.reflectance_scale,
        nodata=units.nodata,
        fill=fill,
        fill_units=fill_units,
        check_values="values" not in allow,
    )


def context_of(cube: xr.DataArray, geobox: GeoBox, told: Collection[Coordinate]) -> Context:
    """Return time and place of a cube, as far as the model is told them.

    The day of the year counts from 0, as in the loader that the published TL models were trained with.
    """
    times: tuple[tuple[float, float], ...] = ()
    if "time" in told:
        times = tuple((float(t.year), float(t.dayofyear - 1)) for t in pd.DatetimeIndex(cube.coords["time"].values))
    place = None
    if "location" in told:
        assert geobox.crs is not None  # geobox_of refuses a cube without one
        a, b, c, d, e, f = tuple(geobox.transform)[:6]
        place = Place(geobox.crs.to_wkt(), (a, b, c, d, e, f))
    return Context(times, place)


def window_values(model: ModelSpec, frames: int, window: int) -> int:
    """Return the size of the largest tensor of an encoder's pass over one window: an MLP's hidden layer."""
    deep, high, wide = model.patch_size
    tokens = (frames // deep) * -(-window // high) * -(-window // wide) + 1
    return round(tokens * model.embed_dim * model.mlp_ratio)


def lattice_origin(geobox: GeoBox) -> tuple[int, int]:
    """Return row and column of a grid's first pixel, counted from the origin of its CRS.

    Rows count southward. A lattice that does not pass through the origin keeps its own remainder, so every cut of it
    counts alike.
    """
    transform = geobox.transform
    return _whole(transform.f / transform.e), _whole(transform.c / transform.a)


def _whole(index: float) -> int:
    """Round down, but for a ten-thousandth of a pixel: edges that are whole up to rounding keep to their own side."""
    return math.floor(index + 1e-4)


def model_facts(handle: ModelHandle) -> dict[str, str]:
    """Return which weights and which code a result came from, as JSON values."""
    from xgfm import __version__

    spec = handle.spec
    model = spec.model.name if isinstance(spec, TaskSpec) else spec.name
    return {"model": model, "weights_digest": handle.digest, "xgfm_version": __version__}


def data_of(cube: xr.DataArray) -> da.Array:
    """Return a cube's pixels as a Dask array, wrapping what is in memory."""
    data = cube.data
    return data if isinstance(data, da.Array) else da.from_array(data, chunks=(1, -1, 1024, 1024))
