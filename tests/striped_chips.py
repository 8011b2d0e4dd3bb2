"""Stores of chips of a few kilobytes: three kinds of land in stripes, which any model can learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import toys
import xarray as xr

from xgfm.cf import class_flags
from xgfm.grid import with_grid
from xgfm.models.spec import ClassInfo
from xgfm.train.chips.chips import Chips, write_chips

CLASSES = (ClassInfo("Dark", "#000000"), ClassInfo("Bright", "#ffffff"), ClassInfo("Red", "#ff0000"))
SPECTRA = np.array([[400] * 6, [3000] * 6, [300, 300, 3500, 300, 300, 300]])


def land(
    side: int = 256, *, seed: int = 0, stripe: int = 16, missing: float = 0.02, regression: bool = False
) -> tuple[xr.DataArray, xr.DataArray]:
    """Return a cube of three frames and its labels: in stripes; of 16 pixels, every chip has every class."""
    rng = np.random.default_rng(seed)
    codes = np.broadcast_to((np.arange(side)[:, None] + np.arange(side)) // stripe % 3, (side, side)).astype("uint8")
    values = SPECTRA[codes].transpose(2, 0, 1)[None] + rng.normal(0, 60, (3, 6, side, side))
    cube = toys.cube(side, side, times=3)
    gone = np.broadcast_to(rng.random((3, 1, side, side)) < missing, cube.shape)
    cube = cube.copy(data=np.where(gone, -9999, values).astype("int16"))
    if regression:
        label = xr.DataArray(
            (codes * 10 + 5).astype("float32"), dims=("y", "x"), name="label", attrs={"units": "t ha-1"}
        )
    else:
        label = xr.DataArray(codes, dims=("y", "x"), name="label", attrs=class_flags(CLASSES))
    return cube, with_grid(label, toys.geobox(side, side))


def store(path: Path, *, regression: bool = False, stripe: int = 16, side: int = 320) -> Chips:
    """Write chips of 32 pixels in blocks of 1920 m."""
    cube, label = land(side, stripe=stripe, regression=regression)
    shares = (0.5, 0.2, 0.3)
    return write_chips(cube, label, path, size=32, shares=shares, block=2880.0)
