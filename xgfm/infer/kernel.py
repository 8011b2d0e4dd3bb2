"""The kernel: one block of a cube through one model on one device.

In: a NumPy block ``(frame, band, y, x)`` as it came from the files, and the windows that it owns. Out: a NumPy block of
results. Nothing here knows of Dask or xarray. The block travels to the device once, as it is stored; it becomes float
there, and windows are cut out of it as views.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from xgfm.errors import MissingExtraError, UnitsError
from xgfm.windows import Block, BlockAxis, Window

try:
    import torch
except ImportError as error:
    raise MissingExtraError("torch", "torch", "inference") from error

NO_CLASS = 255
BATCH = 8
"""Windows that go through the model at once."""

_BRIGHTEST, _DARKEST = 2.0, 0.002
"""Reflectances that a block's mean never exceeds, and its maximum never stays below, unless its units are wrong."""
_FEW = 64
"""Valid values under which a block says nothing about its units."""

# One block computes at a time in a process: torch already uses every core, and the device's memory is one block's.
_COMPUTING = threading.Lock()


@dataclass(frozen=True, slots=True)
class Place:
    """Where array pixels lie, for models that are told."""

    crs: str
    """WKT."""
    transform: tuple[float, float, float, float, float, float]
    """Affine coefficients a, b, c, d, e, f of the array's upper left corner."""

    def latlon(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return ``(n, 2)`` latitudes and longitudes of places given in array pixels, edges counted from 0."""
        from pyproj import Transformer

        a, b, c, d, e, f = self.transform
        x, y = a * columns + b * rows + c, d * columns + e * rows + f
        lon, lat = Transformer.from_crs(self.crs, "EPSG:4326", always_xy=True).transform(x, y)
        return np.stack([lat, lon], axis=-1)


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


@dataclass(frozen=True, slots=True)
class Context:
    """What a model is told beside pixels."""

    times: tuple[tuple[float, float], ...] = ()
    """Year and 0-based day of the year of every time step of the array; empty for models that are not told."""
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Some windows of a block, on the device."""

    x: torch.Tensor  # (B, C, T, H, W), normalised
    valid: torch.Tensor  # (B, H, W), True where every band of every frame is there
    windows: list[tuple[Window, Window]]
    time: torch.Tensor | None  # (B, T, 2)
    location: torch.Tensor | None  # (B, 2)


@dataclass(frozen=True, slots=True)
class Settings:
    """How blocks are run: the same for every block of a result."""

    pixels: Pixels
    context: Context
    window: int
    """Rows and columns, in pixels, that the model sees at once."""
    scale: int = 1
    """Pixels of a cell of the answer, along y and x."""
    min_valid: float = 0.0
    """Share of valid pixels under which a window is left out; a window without any always is."""
    device: str = "cpu"
    batch_size: int = BATCH


def run(
    block: np.ndarray,
    place: Block,
    step: Callable[[Batch], torch.Tensor],
    settings: Settings,
    *,
    out: np.ndarray,
    first_frame: int = 0,
) -> np.ndarray:
    """Run every window of a block through ``step`` and put the inner parts of its answers together.

    Parameters
    ----------
    block
        ``(frame, band, y, x)``, the pixels that the block reads.
    place
        Its windows, in array pixels.
    step
        Takes a batch, returns ``(B, layer, H, W)`` in cells of the answer.
    out
        ``(layer, y, x)``, filled with nodata: the answer is written into it.
    first_frame
        The array's time step that the block's first frame is.
    """
    block = block[:, :, _seen(place.rows, settings.window), _seen(place.columns, settings.window)]
    check_values(block, settings.pixels)
    with _COMPUTING, torch.inference_mode():
        x, valid = to_device(block, settings.pixels, settings.device)
        x, valid = (pad_to(t, settings.window) for t in (x, valid))
        for batch in batches(x, valid, place, settings):
            told = tell(batch, settings, first_frame)
            put(out, step(told).cpu().numpy(), batch.windows, place, settings.scale)
    return out


def _seen(axis: BlockAxis, window: int) -> slice:
    """Return the part of what a block reads that its windows look at."""
    first, last = axis.windows[0].start, axis.windows[-1].start
    return slice(first - axis.read_start, last + window - axis.read_start)


def valid_values(block: np.ndarray, nodata: float | None) -> np.ndarray:
    """Return where a block holds values: neither nodata nor NaN."""
    valid = np.isfinite(block) if block.dtype.kind == "f" else np.ones(block.shape, bool)
    return valid if nodata is None or np.isnan(nodata) else valid & (block != nodata)


def check_values(block: np.ndarray, pixels: Pixels) -> None:
    """Refuse a block whose values cannot be in the units that were declared.

    Raises
    ------
    UnitsError
        Reflectance 0-1 declared as x 10000, or the reverse.
    """
    values = block[valid_values(block, pixels.nodata)]
    if not pixels.check_values or values.size < _FEW:
        return
    brightest, mean = float(values.max()) * pixels.reflectance_scale, float(values.mean()) * pixels.reflectance_scale
    if 0 < brightest < _DARKEST:
        raise UnitsError(
            f"the cube's values go up to {values.max():.4g}, a reflectance of {brightest:.2g} at reflectance_scale="
            f"{pixels.reflectance_scale:g}; they look like 0-1: reflectance_scale=1, or allow=['values']"
        )
    if mean > _BRIGHTEST:
        raise UnitsError(
            f"the cube's values have a mean of {values.mean():.4g}, a reflectance of {mean:.3g} at reflectance_scale="
            f"{pixels.reflectance_scale:g}; they look like x 10000: reflectance_scale=1e-4, or allow=['values']"
        )


def to_device(block: np.ndarray, pixels: Pixels, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Move a block to the device as it is stored, and normalise it there.

    Returns
    -------
    x : torch.Tensor
        ``(C, T, y, x)`` float32.
    valid : torch.Tensor
        ``(y, x)``, True where every band of every frame is there.
    """
    raw = torch.from_numpy(np.ascontiguousarray(block)).to(device)
    valid = torch.isfinite(raw) if raw.is_floating_point() else torch.ones_like(raw, dtype=torch.bool)
    if pixels.nodata is not None and np.isfinite(pixels.nodata):
        valid &= raw != pixels.nodata
    x = raw.to(torch.float32) * pixels.factor
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (pixels.mean, pixels.std))
    x = (x - mean) / std
    fill = torch.full_like(mean, pixels.fill) if pixels.fill_units == "normalised" else (pixels.fill - mean) / std
    x = torch.where(valid, x, fill)
    return x.movedim(0, 1), valid.all(dim=0).all(dim=0)


def pad_to(x: torch.Tensor, size: int) -> torch.Tensor:
    """Mirror the last two axes at their ends until they have ``size`` cells; larger ones stay as they are."""
    for axis in (-2, -1):
        length = x.shape[axis]
        if length < size:
            period = max(2 * length - 2, 1)
            there = torch.arange(size, device=x.device) % period
            x = x.index_select(x.ndim + axis, torch.where(there < length, there, period - there))
    return x


def batches(x: torch.Tensor, valid: torch.Tensor, place: Block, settings: Settings) -> Iterator[Batch]:
    """Cut a block into windows, leave out the empty ones, and group the others."""
    first_row, first_column, size = place.rows.windows[0].start, place.columns.windows[0].start, settings.window

    def cut() -> Iterator[tuple[tuple[Window, Window], torch.Tensor, torch.Tensor]]:
        for row, column in place.windows():
            top, left = row.start - first_row, column.start - first_column
            where = (..., slice(top, top + size), slice(left, left + size))
            share = valid[where].float().mean()
            if share > 0 and share >= settings.min_valid:
                yield (row, column), x[where], valid[where]

    remaining = cut()
    while group := list(islice(remaining, settings.batch_size)):
        windows, parts, valids = zip(*group, strict=True)
        yield Batch(torch.stack(parts), torch.stack(valids), list(windows), None, None)


def tell(batch: Batch, settings: Settings, first_frame: int) -> Batch:
    """Add time and place of each window to a batch, for models that are told."""
    context, n, frames, device = settings.context, len(batch.windows), batch.x.shape[2], batch.x.device
    time = location = None
    if context.times:
        mine = torch.tensor(context.times[first_frame : first_frame + frames], dtype=torch.float32, device=device)
        time = mine.expand(n, frames, 2)
    if context.place is not None:
        half = settings.window / 2
        centres = np.array([[r.start + half, c.start + half] for r, c in batch.windows])
        latlon = context.place.latlon(centres[:, 0], centres[:, 1])
        location = torch.from_numpy(latlon).to(device, torch.float32)
    return Batch(batch.x, batch.valid, batch.windows, time, location)


def put(
    out: np.ndarray, answers: np.ndarray, windows: list[tuple[Window, Window]], place: Block, scale: int = 1
) -> None:
    """Write the inner part of each window's answer ``(B, layer, H, W)`` where it belongs in ``out``."""
    for answer, (row, column) in zip(answers, windows, strict=True):
        to_rows, from_rows = _inner(row, place.rows.start, scale)
        to_columns, from_columns = _inner(column, place.columns.start, scale)
        out[:, to_rows, to_columns] = answer[:, from_rows, from_columns]


def _inner(window: Window, block_start: int, scale: int) -> tuple[slice, slice]:
    """Return where a window's inner part lies in its block and in the window, in cells."""
    start, stop = window.inner_start, window.inner_stop
    in_block, in_window = (
        slice((start - first) // scale, (stop - first) // scale) for first in (block_start, window.start)
    )
    return in_block, in_window


def map_layers(logits: torch.Tensor, valid: torch.Tensor, layers: tuple[str, ...]) -> torch.Tensor:
    """Turn logits into the layers of a map.

    Parameters
    ----------
    logits
        ``(B, class, H, W)``.
    valid
        ``(B, H, W)``; pixels that are not are nodata in every layer.
    layers
        Of ``"class"``, ``"probability"`` (a layer per class), ``"confidence"`` (the largest of them), ``"entropy"``
        (Shannon's, in nats), in the order wanted.

    Returns
    -------
    torch.Tensor
        ``(B, layer, H, W)``: uint8 for the class alone, else float32; `missing` where nodata.
    """
    if layers == ("class",):
        return torch.where(valid, logits.argmax(1), NO_CLASS).to(torch.uint8)[:, None]
    probability = logits.float().softmax(1)
    made: dict[str, Callable[[], torch.Tensor]] = {
        "class": lambda: logits.argmax(1, keepdim=True).float(),
        "probability": lambda: probability,
        "confidence": lambda: probability.amax(1, keepdim=True),
        "entropy": lambda: torch.special.entr(probability).sum(1, keepdim=True),
    }
    stacked = torch.cat([made[name]() for name in layers], dim=1)
    fill = torch.tensor(missing(layers, logits.shape[1]), device=logits.device)[:, None, None]
    return torch.where(valid[:, None], stacked, fill)


def missing(layers: tuple[str, ...], classes: int) -> list[float]:
    """Return what stands for a missing pixel in each of the layers: 255 for the class, NaN for the others."""
    fills = {"class": [float(NO_CLASS)], "probability": [np.nan] * classes}
    return [fill for name in layers for fill in fills.get(name, [np.nan])]


def call(module: Any, batch: Batch) -> torch.Tensor:
    """Call a task's module, telling it time and place only where there is something to tell."""
    told = {"time": batch.time, "location": batch.location}
    answer: torch.Tensor = module(batch.x, **{k: v for k, v in told.items() if v is not None})
    return answer
