"""Stored numbers to what a model takes: units, nodata, normalisation, on the device that computes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from xgfm.errors import UnitsError

_BRIGHTEST, _DARKEST = 2.0, 0.002
"""Reflectances that a block's mean never exceeds, and its maximum never stays below, unless its units are wrong."""
_NEGATIVE = -0.5
"""Reflectance that atmospheric correction never goes below."""
_SAMPLE = 1 << 14
"""Pixels of a block that are looked at to judge its units."""
_FEW = 64
"""Valid values under which a block says nothing about its units."""


@dataclass(frozen=True, slots=True)
class Pixels:
    """What stored numbers mean, and what the model is fed for them."""

    mean: tuple[float, ...]
    """Of each band, in the model's units."""
    std: tuple[float, ...]
    factor: float
    """Model units of one stored unit."""
    reflectance_scale: float
    """Reflectance of one stored unit."""
    nodata: float | None
    fill: float
    """What a missing pixel becomes."""
    fill_units: str
    """``"normalised"`` or ``"input"``: whether ``fill`` is put in after or before normalising."""
    check_values: bool = True
    """Whether values that cannot be in the declared units are an error."""


def check_values(block: np.ndarray, pixels: Pixels) -> None:
    """Refuse a block whose values cannot be in the units that were declared.

    Raises
    ------
    UnitsError
        Reflectance 0-1 declared as x 10000, or the reverse.
    """
    if not pixels.check_values:
        return
    step = max(1, int((block.shape[-2] * block.shape[-1] / _SAMPLE) ** 0.5))
    sample = block[:, _reflective(pixels), ::step, ::step]  # wrong units are wrong everywhere
    for frame in sample:  # one of several may come from elsewhere
        _check_frame(frame[_valid(frame, pixels.nodata)], pixels.reflectance_scale)


def _reflective(pixels: Pixels) -> np.ndarray:
    """Tell which bands are reflectances: the training mean of others, as kelvin are, is none that there can be."""
    return np.array(pixels.mean) / pixels.factor * pixels.reflectance_scale <= _BRIGHTEST


def _check_frame(values: np.ndarray, scale: float) -> None:
    if values.size < _FEW:
        return
    brightest, darkest, mean = float(values.max()), float(values.min()), float(values.mean(dtype="float64"))
    if darkest * scale < _NEGATIVE:
        raise UnitsError(
            f"the cube's values go down to {darkest:.4g}, a reflectance of {darkest * scale:.3g} at "
            f"reflectance_scale={scale:g}; if that stands for missing, say so: cube.assign_attrs(nodata={darkest:g}); "
            "or allow=['values']"
        )
    if 0 < brightest * scale < _DARKEST:
        raise UnitsError(
            f"the cube's values go up to {brightest:.4g}, a reflectance of {brightest * scale:.2g} at "
            f"reflectance_scale={scale:g}; they look like 0-1: reflectance_scale=1, or allow=['values']"
        )
    if mean * scale > _BRIGHTEST:
        raise UnitsError(
            f"the cube's values have a mean of {mean:.4g}, a reflectance of {mean * scale:.3g} at "
            f"reflectance_scale={scale:g}; they look like x 10000: reflectance_scale=1e-4, or allow=['values']"
        )


def _valid(block: np.ndarray, nodata: float | None) -> np.ndarray:
    valid = np.isfinite(block) if block.dtype.kind == "f" else np.ones(block.shape, bool)
    return valid if nodata is None or np.isnan(nodata) else valid & (block != nodata)


def on_device(block: np.ndarray, device: str, *, frames: int) -> torch.Tensor:
    """Move a block ``(frame, band, y, x)`` to a device as it is stored, in groups of frames ``(group, T, C, y, x)``."""
    raw = torch.from_numpy(np.ascontiguousarray(block, block.dtype.newbyteorder("=")))
    if device.startswith("cuda"):
        raw = raw.pin_memory()
    return raw.to(device, non_blocking=True).reshape(-1, frames, *raw.shape[1:])


def valid_in(raw: torch.Tensor, nodata: float | None) -> torch.Tensor:
    """Tell where every band of every frame is there: ``(n, T, C, y, x)`` as stored to bool ``(n, y, x)``."""
    count, frames, bands, *size = raw.shape
    valid = torch.ones((count, *size), dtype=torch.bool, device=raw.device)
    for frame, band in product(range(frames), range(bands)):
        valid.logical_and_(_is_valid(raw[:, frame, band], nodata))
    return valid


def normalise(
    raw: torch.Tensor, pixels: Pixels, dtype: torch.dtype = torch.float32, *, whole: bool = False
) -> torch.Tensor:
    """Make stored numbers what a model takes: ``(n, T, C, y, x)`` to ``(n, C, T, y, x)``, missing ones filled.

    Parameters
    ----------
    dtype
        What the model takes; the arithmetic is done in float32.
    whole
        Whether it is known that none is missing: looking for them takes longer than the rest.
    """
    count, frames, bands, *size = raw.shape
    x = torch.empty((count, bands, frames, *size), dtype=dtype, device=raw.device)
    # An image at a time: it stays in a CPU's cache.
    for frame, band in product(range(frames), range(bands)):
        mean, std, stored = pixels.mean[band], pixels.std[band], raw[:, frame, band]
        value = stored.to(torch.float32, copy=True).mul_(pixels.factor / std).sub_(mean / std)
        if not whole:
            fill = pixels.fill if pixels.fill_units == "normalised" else (pixels.fill - mean) / std
            value.masked_fill_(_is_valid(stored, pixels.nodata).logical_not_(), fill)
        x[:, band, frame] = value
    return x


def _is_valid(stored: torch.Tensor, nodata: float | None) -> torch.Tensor:
    """Compare without torch's comparisons where that can be: they are 4 times slower on a CPU."""
    if stored.is_floating_point():
        valid = (stored - stored).bool().logical_not_()  # NaN of NaN and of infinity, and 0 of others
        return valid if nodata is None else valid.logical_and_((stored - nodata).bool())
    kind = torch.iinfo(stored.dtype)
    if nodata is None or not float(nodata).is_integer() or not kind.min <= nodata <= kind.max:
        return torch.ones_like(stored, dtype=torch.bool)
    number = int(nodata)
    return stored.bitwise_xor(number).bool() if kind.min < 0 else stored != number  # a GPU has no xor of uint16
