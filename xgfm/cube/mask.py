"""Fmask to nodata: which pixels of a cube are thrown away.

In: a cube with its Fmask as coordinate ``fmask (time, y, x)``, and the names of Fmask bits. Out: the same cube
with nodata where one of the bits is set, without the Fmask. The cube stays lazy; nothing is read here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from xgfm.errors import CubeError, XgfmError

FMASK_FILL = 255
"""Fmask outside the swath. It has every bit set, so it is tested before any bit."""

FLAGS: dict[str, tuple[int, int]] = {
    "cirrus": (0b0000_0001, 0b0000_0001),
    "cloud": (0b0000_0010, 0b0000_0010),
    "adjacent": (0b0000_0100, 0b0000_0100),
    "shadow": (0b0000_1000, 0b0000_1000),
    "snow": (0b0001_0000, 0b0001_0000),
    "water": (0b0010_0000, 0b0010_0000),
    "aerosol-climatology": (0b1100_0000, 0b0000_0000),
    "aerosol-low": (0b1100_0000, 0b0100_0000),
    "aerosol-moderate": (0b1100_0000, 0b1000_0000),
    "aerosol-high": (0b1100_0000, 0b1100_0000),
}
"""Name -> (field, value): a pixel has the flag where ``fmask & field == value``. HLS v2.0 user guide."""

DEFAULT_BITS = ("cloud", "adjacent", "shadow")
"""What `open_hls` throws away: the bits that NASA's own vegetation indices drop."""


def rejection_table(bits: str | Sequence[str] = DEFAULT_BITS) -> NDArray[np.bool_]:
    """Return for each of the 256 Fmask values whether it is thrown away.

    Parameters
    ----------
    bits
        Names from `FLAGS`. An empty sequence throws away the fill alone.

    Raises
    ------
    XgfmError
        If a name is not one of `FLAGS`.
    """
    names = (bits,) if isinstance(bits, str) else bits
    if not isinstance(names, Collection) or not all(isinstance(name, str) for name in names):
        raise XgfmError(
            f"Fmask bits are {bits!r}; expected names of {list(FLAGS)}, or open the cube with mask=None to leave the "
            "pixels as they are"
        )
    unknown = [name for name in names if name not in FLAGS]
    if unknown:
        raise XgfmError(f"Fmask has no bit {unknown}; bits= takes names of {list(FLAGS)}")
    values = np.arange(256)
    table: NDArray[np.bool_] = values == FMASK_FILL
    for field, value in (FLAGS[name] for name in names):
        table |= (values & field) == value
    return table


def mask_block(
    pixels: NDArray[Any], fmask: NDArray[np.uint8], *, table: NDArray[np.bool_], nodata: float
) -> NDArray[Any]:
    """Write nodata into one block.

    Parameters
    ----------
    pixels
        ``(time, band, y, x)``.
    fmask
        ``(time, y, x)``.
    table
        From `rejection_table`.
    nodata
        What is written, in the units of ``pixels``.
    """
    return np.where(table[fmask][:, np.newaxis], pixels.dtype.type(nodata), pixels)


def nodata_of(cube: xr.DataArray) -> float:
    """Return the cube's nodata value: attribute ``nodata``, else -9999 for integers and NaN for floats.

    Raises
    ------
    CubeError
        If the cube's dtype cannot hold the value.
    """
    kind = cube.dtype.kind
    nodata = cube.attrs.get("nodata", -9999 if kind in "iu" else np.nan)
    limits = np.iinfo(cube.dtype) if kind in "iu" else np.finfo(cube.dtype)
    holds = limits.min <= nodata <= limits.max or (kind == "f" and np.isnan(nodata))
    if not holds:
        raise CubeError(
            f"nodata {nodata} does not fit the cube's dtype {cube.dtype}; "
            f"say which value means missing with cube.attrs['nodata'] = ..., or convert with cube.astype('int16')"
        )
    return float(nodata) if kind == "f" else int(nodata)


def mask(cube: xr.DataArray, bits: str | Sequence[str] = DEFAULT_BITS) -> xr.DataArray:
    """Write nodata wherever Fmask has one of ``bits``, or is fill.

    Parameters
    ----------
    cube
        ``(time, band, y, x)`` with coordinate ``fmask (time, y, x)``, uint8, as `open_hls(mask=None)` gives it.
    bits
        Names from `FLAGS`: cirrus, cloud, adjacent (5 pixels round cloud and shadow), shadow, snow, water, and the
        four aerosol levels.

    Returns
    -------
    xarray.DataArray
        The cube without ``fmask``, lazy where it was lazy; attribute ``masked_by`` lists the bits.

    Raises
    ------
    CubeError
        If there is no ``fmask``, or it is not uint8 on ``(time, y, x)``.
    """
    fmask = _fmask_of(cube)
    options = {"table": rejection_table(bits), "nodata": nodata_of(cube)}
    masked: xr.DataArray = cube.drop_vars("fmask").copy(data=_blockwise(cube.data, fmask.data, options))
    masked.attrs["masked_by"] = [bits] if isinstance(bits, str) else list(bits)
    return masked


def _fmask_of(cube: xr.DataArray) -> xr.DataArray:
    if cube.dims != ("time", "band", "y", "x"):
        raise CubeError(f"mask takes a cube of dims (time, band, y, x), got {cube.dims}; use cube.transpose(...)")
    if "fmask" not in cube.coords:
        done = f"; this cube was masked by {cube.attrs['masked_by']} already" if "masked_by" in cube.attrs else ""
        raise CubeError(
            f"mask needs coordinate 'fmask', this cube has {sorted(map(str, cube.coords))}{done}. Open it with "
            f"mask=None, or attach one: cube.assign_coords(fmask=(('time', 'y', 'x'), fmask))"
        )
    fmask: xr.DataArray = cube.coords["fmask"]
    if set(fmask.dims) != {"time", "y", "x"} or fmask.dtype != np.uint8:
        raise CubeError(
            f"coordinate 'fmask' is {fmask.dtype} on {fmask.dims}, not uint8 on ('time', 'y', 'x'); "
            f"attach it with cube.assign_coords(fmask=(('time', 'y', 'x'), fmask.astype('uint8')))"
        )
    return fmask.transpose("time", "y", "x")


def _blockwise(pixels: Any, fmask: Any, options: dict[str, Any]) -> Any:
    """Run `mask_block` on arrays as they are, or block by block where one of them is lazy."""
    if isinstance(pixels, np.ndarray) and isinstance(fmask, np.ndarray):
        return mask_block(pixels, fmask, **options)
    import dask.array as da

    if not isinstance(pixels, np.ndarray):  # the cube keeps its chunks; the Fmask follows
        fmask = da.asarray(fmask).rechunk((pixels.chunks[0], *pixels.chunks[2:]))
    return da.blockwise(
        mask_block, "tbyx", pixels, "tbyx", fmask, "tyx",
        dtype=pixels.dtype, meta=np.empty((0, 0, 0, 0), pixels.dtype), **options,
    )  # fmt: skip
