"""A long series to the few frames that a model takes.

In: a masked cube, and frames as equal parts of its period or as named windows. Out: a cube of that many time steps,
each a composite of the clear observations of its window, and attributes that say which dates went in. Lazy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from xgfm.cube.mask import nodata_of
from xgfm.cube.periods import Period, TimeWindow, equal_periods, named_periods
from xgfm.errors import CubeError, FramesError, XgfmError

Method = Literal["median", "medoid", "clearest"]
Kernel = Callable[[NDArray[Any], NDArray[np.bool_]], NDArray[Any]]

_STRIP = 1 << 20
"""Values that a kernel sees at once: temporaries stay in the processor's cache."""


def composite(
    cube: xr.DataArray,
    frames: int = 3,
    *,
    method: Method = "median",
    windows: Sequence[TimeWindow] | None = None,
) -> xr.DataArray:
    """Reduce a series to frames, one per window of time.

    An observation of a pixel is clear where all its bands are valid. A pixel without a clear observation in a window
    is nodata in that frame, in every band. The result does not depend on the chunks. One block of the plane holds all
    dates of a window while it is reduced: for very long windows open the cube with smaller ``chunks``.

    Parameters
    ----------
    cube
        ``(time, band, y, x)``, masked. Dates may repeat and need no order.
    frames
        How many equal parts the days from the first to the last date are cut into, where no ``windows`` are named.
        The cut follows the cube's own dates: name the windows where cubes of different dates have to agree.
    method
        - "median": of each band on its own. An even number of observations gives the mean of the middle two,
          rounded half to even for integers.
        - "medoid": the observation with the least sum of distances, in band space, to all other clear ones
          (Flood 2013, doi:10.3390/rs5126481); the earliest of equals. A spectrum that was really seen.
        - "clearest": one time step for the whole window, decided without reading pixels: the highest ``clear_share``
          where the cube has that coordinate (see `clear_share`), else the lowest ``eo:cloud_cover``, which knows
          nothing of swath edges; the earliest of equals.
    windows
        Named windows, one per frame: ``["2024-04", ("2024-05-10", "2024-06-20"), slice("2024-07", "2024-08")]``.

    Returns
    -------
    xarray.DataArray
        Lazy, of the cube's dtype; ``time`` is the middle of each window. Attribute ``frames`` lists
        ``{"window": [first, last], "dates": [...], "items": [...]}`` per frame, and ``composite`` the method.

    Raises
    ------
    CubeError
        If the cube is not ``(time, band, y, x)`` with dates, carries an Fmask that was not used, or is a composite.
    FramesError
        If a window holds no date, or "clearest" has nothing to decide by.
    """
    _check(cube, method)
    time = cube["time"].values
    periods = equal_periods(time, frames) if windows is None else named_periods(windows)
    members = [_members(period, time) for period in periods]
    chosen = [_clearest(cube, steps) for steps in members] if method == "clearest" else members
    kernel = {"median": median, "medoid": medoid, "clearest": first}[method]
    parts = [_reduce(cube.data[steps], kernel, nodata_of(cube)) for steps in chosen]
    return _wrap(cube, parts, periods, chosen, method)


def clear_share(cube: xr.DataArray) -> xr.DataArray:
    """Return the share of pixels that are clear (all bands valid) at each time step, lazily.

    It reads every pixel when computed, so it is a step of its own; "clearest" then decides by it:
    ``cube.assign_coords(clear_share=clear_share(cube).compute())``.

    Parameters
    ----------
    cube
        ``(time, band, y, x)``, masked.

    Returns
    -------
    xarray.DataArray
        ``(time,)``, 0 to 1, named ``clear_share``.
    """
    valid: xr.DataArray = _is_valid(cube, nodata_of(cube))
    return valid.all("band").mean(("y", "x")).rename("clear_share")


def median(pixels: NDArray[Any], clear: NDArray[np.bool_]) -> NDArray[Any]:
    """Median of the clear observations.

    Parameters
    ----------
    pixels
        ``(time, band, y, x)``.
    clear
        ``(time, y, x)``. Where a pixel is never clear, the answer has no meaning.

    Returns
    -------
    numpy.ndarray
        ``(band, y, x)``, of the dtype of ``pixels``; integers rounded half to even.
    """
    integer = pixels.dtype.kind in "iu"
    last = np.iinfo(pixels.dtype).max if integer else np.inf
    ordered = np.sort(np.where(clear[:, np.newaxis], pixels, pixels.dtype.type(last)), axis=0)
    count = clear.sum(axis=0)[np.newaxis, np.newaxis]
    low = np.take_along_axis(ordered, np.maximum(count - 1, 0) // 2, axis=0)[0]
    high = np.take_along_axis(ordered, np.minimum(count // 2, len(pixels) - 1), axis=0)[0]
    middle = (low.astype("float64") + high) / 2
    rounded: NDArray[Any] = (np.rint(middle) if integer else middle).astype(pixels.dtype)
    return rounded


def medoid(pixels: NDArray[Any], clear: NDArray[np.bool_]) -> NDArray[Any]:
    """Clear observation with the least sum of Euclidean distances, over the bands, to all clear ones.

    Parameters and result as in `median`. Flood (2013), Remote Sensing 5, 6481-6500, doi:10.3390/rs5126481.
    """
    spectra = np.where(clear[:, np.newaxis], pixels, 0).astype("float64")
    total = np.where(clear, 0.0, np.inf)
    for i in range(len(spectra)):
        for j in range(i):
            gap = spectra[i] - spectra[j]
            distance = np.sqrt(np.einsum("byx,byx->yx", gap, gap))
            total[i] += np.where(clear[j], distance, 0.0)
            total[j] += np.where(clear[i], distance, 0.0)
    chosen: NDArray[Any] = np.take_along_axis(pixels, total.argmin(axis=0)[np.newaxis, np.newaxis], axis=0)[0]
    return chosen


def first(pixels: NDArray[Any], clear: NDArray[np.bool_]) -> NDArray[Any]:  # noqa: ARG001 - a kernel's signature
    """Return the first observation: the only one, once a granule is chosen. Parameters and result as in `median`."""
    only: NDArray[Any] = pixels[0]
    return only


def composite_block(blocks: Any, *, kernel: Kernel, nodata: float) -> NDArray[Any]:
    """Reduce one block of the plane over time, a strip of rows after the other.

    Parameters
    ----------
    blocks
        Nested lists ``[time][band]`` of arrays ``(time, band, y, x)``, as Dask hands over a contraction, so that a
        long series is never copied into one array.
    kernel
        `median`, `medoid` or `first`.
    nodata
        Value that means missing, in and out; NaN for floats.

    Returns
    -------
    numpy.ndarray
        ``(1, band, y, x)``.
    """
    steps, bands = sum(len(row[0]) for row in blocks), sum(block.shape[1] for block in blocks[0])
    rows, columns = blocks[0][0].shape[2:]
    out = np.empty((1, bands, rows, columns), blocks[0][0].dtype)
    height = max(1, _STRIP // max(1, steps * bands * columns))
    for top in range(0, rows, height):
        strip = np.block([[[[block[:, :, top : top + height]]] for block in row] for row in blocks])
        out[0, :, top : top + height] = _strip(strip, kernel, nodata)
    return out


def _strip(pixels: NDArray[Any], kernel: Kernel, nodata: float) -> NDArray[Any]:
    clear = _is_valid(pixels, nodata).all(axis=1)
    return np.where(clear.any(axis=0), kernel(pixels, clear), pixels.dtype.type(nodata))


def _is_valid(pixels: Any, nodata: float) -> Any:
    """Tell what is neither nodata nor NaN, in an array of any kind."""
    valid = pixels != nodata  # everything differs from NaN
    return valid & (pixels == pixels) if pixels.dtype.kind == "f" else valid


def _reduce(data: Any, kernel: Kernel, nodata: float) -> Any:
    """Run `composite_block` over time: at once on an array, block by block on a lazy one."""
    if isinstance(data, np.ndarray):
        return composite_block([[data]], kernel=kernel, nodata=nodata)
    import dask.array as da

    return da.blockwise(
        partial(composite_block, kernel=kernel, nodata=nodata), "fcyx", data, "tbyx",
        new_axes={"f": 1, "c": data.shape[1]}, dtype=data.dtype, meta=np.empty((0, 0, 0, 0), data.dtype),
    )  # fmt: skip


def _check(cube: xr.DataArray, method: str) -> None:
    if method not in ("median", "medoid", "clearest"):
        raise XgfmError(f"method {method!r} is not one of 'median', 'medoid', 'clearest'; give one to method=")
    if cube.dims != ("time", "band", "y", "x") or cube["time"].dtype.kind != "M":
        dates = cube["time"].dtype if "time" in cube.coords else "no"
        raise CubeError(
            f"composite takes a cube of dims (time, band, y, x) with dates in 'time', got {tuple(map(str, cube.dims))} "
            f"with {dates} time; use cube.transpose(...) and assign_coords"
        )
    if "fmask" in cube.coords:
        raise CubeError("the cube's Fmask is not used yet: cube.gfm.mask() first, or cube.drop_vars('fmask')")
    made = [f"attrs[{name!r}]" for name in ("composite", "frames") if name in cube.attrs]
    if made:
        raise CubeError(
            f"the cube is a composite of {cube.sizes['time']} frames already ({' and '.join(made)} say so), and a "
            "composite of composites would not know its dates; composite the original series into the number you need, "
            "composite(series, frames=...)"
        )
    if not cube.sizes["time"] or np.isnat(cube["time"].values).any():
        raise FramesError(f"composite needs a date at each of at least one time step, got {cube['time'].values}")


def _members(period: Period, time: NDArray[np.datetime64]) -> NDArray[np.intp]:
    steps = period.steps(time)
    if not len(steps):
        dates = ", ".join(np.unique(time.astype("datetime64[D]")).astype(str))
        raise FramesError(
            f"window {' to '.join(period.bounds)} holds no observation; the cube has {dates}. Give windows= that hold "
            f"dates, fewer frames=, or open the cube with a longer datetime="
        )
    return steps


def _clearest(cube: xr.DataArray, steps: NDArray[np.intp]) -> NDArray[np.intp]:
    for name, best in (("clear_share", np.argmax), ("eo:cloud_cover", np.argmin)):
        if name in cube.coords:
            values = cube[name].values[steps].astype("float64")
            if np.isfinite(values).all():
                return steps[[best(values)]]
    raise FramesError(
        "method='clearest' decides by coordinate 'clear_share' or 'eo:cloud_cover' (time), and the cube has neither "
        "for every date; count the clear pixels: cube.assign_coords(clear_share=clear_share(cube).compute())"
    )


def _wrap(
    cube: xr.DataArray, parts: list[Any], periods: list[Period], chosen: list[NDArray[np.intp]], method: str
) -> xr.DataArray:
    coords = {name: coord for name, coord in cube.coords.items() if "time" not in coord.dims}
    middles = np.array([period.middle.to_datetime64() for period in periods], "datetime64[ns]")
    coords["time"] = ("time", middles, cube["time"].attrs)
    facts = [_facts(cube, period, steps) for period, steps in zip(periods, chosen, strict=True)]
    attrs = {**cube.attrs, "composite": method, "frames": facts}
    frames = xr.DataArray(_concatenate(parts), coords, cube.dims, cube.name, attrs)
    frames.encoding = {key: cube.encoding[key] for key in ("grid_mapping",) if key in cube.encoding}
    return frames


def _facts(cube: xr.DataArray, period: Period, steps: NDArray[np.intp]) -> dict[str, Any]:
    dates = np.unique(cube["time"].values[steps].astype("datetime64[D]")).astype(str).tolist()
    # One by one: what a Zarr store gives back may be StringDType, which knows no cast to str.
    items = {"items": [str(name) for name in cube["item"].values[steps]]} if "item" in cube.coords else {}
    return {"window": period.bounds, "dates": dates, **items}


def _concatenate(parts: list[Any]) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    import dask.array as da

    return da.concatenate(parts)
