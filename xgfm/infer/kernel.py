"""The kernel: one block of a cube through one model on one device.

In: a NumPy block ``(frame, band, y, x)`` as it came from the files, and the windows that it owns. Out: a NumPy block
of results. Nothing here knows of Dask or xarray. The block travels to the device once, as it is stored; windows are cut
out of it there, a batch of them becomes float at a time, and the answer travels back once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise, product

import numpy as np

from xgfm.errors import MissingExtraError, TaskError
from xgfm.windows import Block, BlockAxis, Window

try:
    import torch
except ImportError as error:
    raise MissingExtraError("torch", "torch", "inference") from error

from xgfm.infer.device import batch_size, fetched, in_parts, keep_memory
from xgfm.infer.pixels import Pixels, check_values, normalise, on_device, valid_in
from xgfm.infer.products import products
from xgfm.infer.sharing import beside, callers, in_order, set_threads, under_way, used_here

_BYTES = 1 << 28
"""Of a block, as it is stored, that are on the device at once."""


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
class Context:
    """What a model is told beside pixels."""

    times: tuple[tuple[float, float], ...] = ()
    """Year and 0-based day of the year of every time step of the array; empty for models that are not told."""
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """How blocks are run: the same for every block of a result."""

    pixels: Pixels
    context: Context
    window: int
    """Rows and columns, in pixels, that the model sees at once."""
    frames: int
    """Time steps that the model sees at once."""
    scale: int = 1
    """Pixels of a cell of the answer, along y and x."""
    blend: int = 0
    """Pixels over which neighbouring windows are blended; 0 keeps each window's inner part as it is."""
    min_valid: float = 0.0
    """Share of valid pixels under which a window is left out; a window without any always is."""
    batch_size: int | None = None
    """Windows of one call of the model at most; None for what suits the device."""
    window_values: int = 0
    """Of the largest tensor that the model makes of one window; 0 where that is not known."""
    name: str = "model"
    """Of the task or model, for messages."""


@dataclass(frozen=True, slots=True)
class Cut:
    """One window of a block."""

    group: int
    row: Window
    column: Window
    share: float = 1.0
    """Of its pixels, how many are valid."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some windows of a block, on the device."""

    x: torch.Tensor  # (B, C, T, H, W), normalised
    valid: torch.Tensor  # (B, H, W), True where every band of every frame is there
    cuts: list[Cut]
    time: torch.Tensor | None  # (B, T, 2)
    location: torch.Tensor | None  # (B, 2)

    def part(self, start: int, stop: int) -> Batch:
        """Return some of the windows."""
        time, location = (None if t is None else t[start:stop] for t in (self.time, self.location))
        return Batch(self.x[start:stop], self.valid[start:stop], self.cuts[start:stop], time, location)


Said = Iterator[tuple[torch.Tensor, list[Cut]]]
"""What is said of some windows ``(B, ..., H, W)``, and which they are."""
Step = Callable[[Batch], torch.Tensor]
"""A batch through the model: ``(B, channel, H, W)`` in cells of the answer."""
Finish = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""What the model said ``(..., channel, H, W)`` and which pixels are valid ``(..., H, W)`` to layers of the answer."""


def run(
    block: np.ndarray,
    place: Block,
    first_frame: int,
    step: Step,
    finish: Finish,
    out: np.ndarray,
    settings: Settings,
    device: str,
    dtype: torch.dtype,
    *,
    shared: bool,
) -> np.ndarray:
    """Run every window of a block through a model and put the answers together.

    Parameters
    ----------
    block
        ``(frame, band, y, x)``, the pixels that the block reads; one or more groups of frames.
    place
        Its windows, in array pixels.
    first_frame
        The array's time step that the block's first frame is.
    step, finish
        The model, and what becomes of its answer.
    out
        ``(group, layer, y, x)``, filled with nodata: the answer is written into a copy of it.
    settings, device, dtype
        How, where, and the number format that the model takes.
    shared
        Whether several threads may be in ``step`` at once.

    Raises
    ------
    TaskError
        Where the model answers NaN.
    """
    keep_memory()
    check_values(block, settings.pixels)
    with under_way(device) as stream, torch.inference_mode():
        set_threads()
        answer = torch.from_numpy(out).to(device, copy=True)
        wrong = torch.zeros((), dtype=torch.bool, device=device)
        at_once = max(_BYTES // (block[0].nbytes * settings.frames), 1)
        for group in range(0, len(out), at_once):
            frame = group * settings.frames
            with beside(stream):
                part = block[frame : frame + at_once * settings.frames]
                pixels = _prepared(part, place, device, settings)
            model = _Model(step, finish, dtype, callers(device) if shared else 1, device)
            _run_windows(pixels, place, first_frame + frame, model, answer[group:], wrong, settings)
        filled, bad = fetched(answer, wrong)
    if bad:
        raise TaskError(f"the module of {settings.name!r} answers NaN to finite input; its weights are bad")
    return filled


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Some groups of a block on the device, and which of their windows there is something to see in."""

    raw: torch.Tensor  # (group, T, C, y, x), as stored
    valid: torch.Tensor  # (group, y, x)
    cuts: list[Cut]


def _prepared(block: np.ndarray, place: Block, device: str, settings: Settings) -> _Prepared:
    raw = pad_to(on_device(block, device, frames=settings.frames), settings.window)
    valid = valid_in(raw, settings.pixels.nodata)
    cuts = [Cut(group, row, column) for group, (row, column) in product(range(len(raw)), place.windows())]
    # One look at all of them: each look waits for the device.
    shares = torch.stack([_cut(valid, cut, place, settings).float().mean() for cut in cuts]).tolist()
    cuts = [replace(cut, share=share) for cut, share in zip(cuts, shares, strict=True)]
    return _Prepared(raw, valid, [cut for cut in cuts if cut.share > 0 and cut.share >= settings.min_valid])


def _cut(x: torch.Tensor, cut: Cut, place: Block, settings: Settings) -> torch.Tensor:
    """Return a window ``(..., H, W)`` of a block ``(group, ..., y, x)``, as a view."""
    top, left = cut.row.start - place.rows.read_start, cut.column.start - place.columns.read_start
    return x[cut.group, ..., top : top + settings.window, left : left + settings.window]


@dataclass(frozen=True, slots=True)
class _Model:
    """What a block's windows go through."""

    step: Step
    finish: Finish
    dtype: torch.dtype
    callers: int
    """Threads that call it at once."""
    device: str


def _run_windows(
    pixels: _Prepared,
    place: Block,
    first_frame: int,
    model: _Model,
    answer: torch.Tensor,
    wrong: torch.Tensor,
    settings: Settings,
) -> None:
    """Run as many groups of frames as memory is planned for; say in ``wrong`` whether the model failed."""
    for tensor in (pixels.raw, pixels.valid):
        used_here(tensor)

    def work(cuts: list[Cut]) -> tuple[torch.Tensor, torch.Tensor, list[Cut]]:
        batch = tell(batch_of(cuts, pixels, place, settings, model.dtype), settings, first_frame)
        raw = _ask(model.step, batch)
        return raw if settings.blend else model.finish(raw, batch.valid), raw.amax().isnan(), cuts

    def said() -> Said:
        for layers, failed, cuts in answers:
            wrong.logical_or_(failed)
            yield layers, cuts

    batches = _batches(pixels, settings, model)
    with closing(in_order(work, batches, model.callers, model.device)) as answers:
        if settings.blend:
            _blend(answer, said(), model.finish, pixels.valid, place, settings)
        else:
            _place(answer, said(), place, settings)


def pad_to(x: torch.Tensor, size: int) -> torch.Tensor:
    """Mirror the last two axes at their ends until they have ``size`` cells; larger ones stay as they are."""
    for axis in (-2, -1):
        length = x.shape[axis]
        if length < size:
            period = max(2 * length - 2, 1)
            there = torch.arange(size, device=x.device) % period
            there = torch.where(there < length, there, period - there)
            x = x[..., there] if axis == -1 else x[..., there, :]
    return x


def _batches(pixels: _Prepared, settings: Settings, model: _Model) -> Sequence[list[Cut]]:
    """Share the windows of a block, over groups too, between batches of like size, as many for each caller."""
    most = settings.batch_size or batch_size(str(pixels.raw.device), settings.window_values * model.dtype.itemsize)
    windows = len(pixels.cuts)
    rounds = -(-windows // (most * model.callers))
    count = min(rounds * model.callers, windows)
    size, more = divmod(windows, max(count, 1))
    edges = [size * i + min(i, more) for i in range(count + 1)]  # the larger first: all callers end at about one time
    return [pixels.cuts[start:stop] for start, stop in pairwise(edges)]


def batch_of(cuts: list[Cut], pixels: _Prepared, place: Block, settings: Settings, dtype: torch.dtype) -> Batch:
    """Cut windows out of a block and normalise them."""
    raw, valid = (torch.stack([_cut(t, c, place, settings) for c in cuts]) for t in (pixels.raw, pixels.valid))
    x = normalise(raw, settings.pixels, dtype, whole=all(cut.share == 1 for cut in cuts))
    return Batch(x, valid, cuts, None, None)


def tell(batch: Batch, settings: Settings, first_frame: int) -> Batch:
    """Add time and place of each window to a batch, for models that are told."""
    context, frames, device = settings.context, settings.frames, batch.x.device
    time = location = None
    if context.times:
        starts = [first_frame + c.group * frames for c in batch.cuts]
        time = torch.tensor([context.times[s : s + frames] for s in starts], dtype=torch.float32, device=device)
    if context.place is not None:
        half = settings.window / 2
        centres = np.array([[c.row.start + half, c.column.start + half] for c in batch.cuts])
        latlon = context.place.latlon(centres[:, 0], centres[:, 1])
        location = torch.from_numpy(latlon).to(device, torch.float32)
    return Batch(batch.x, batch.valid, batch.cuts, time, location)


def _ask(step: Step, batch: Batch) -> torch.Tensor:
    """Run a batch, in parts where the device's memory does not hold it whole."""

    def work(start: int, stop: int) -> torch.Tensor:
        with products(device):
            return step(batch.part(start, stop))

    device = str(batch.x.device)
    return in_parts(len(batch.cuts), device, work)


def _place(answer: torch.Tensor, said: Said, place: Block, settings: Settings) -> None:
    """Write each window's inner part where it belongs."""
    for windows, cuts in said:
        for layers, cut in zip(windows, cuts, strict=True):
            to_rows, from_rows = _inner(cut.row, place.rows.start, settings.scale)
            to_columns, from_columns = _inner(cut.column, place.columns.start, settings.scale)
            answer[cut.group, :, to_rows, to_columns] = layers[:, from_rows, from_columns]


def _inner(window: Window, block_start: int, scale: int) -> tuple[slice, slice]:
    """Return where a window's inner part lies in its block and in the window, in cells."""
    start, stop = window.inner_start, window.inner_stop
    in_block, in_window = (
        slice((start - first) // scale, (stop - first) // scale) for first in (block_start, window.start)
    )
    return in_block, in_window


def _blend(
    answer: torch.Tensor, said: Said, finish: Finish, valid: torch.Tensor, place: Block, settings: Settings
) -> None:
    """Average the windows that reach a pixel, each weighted by how far inside of it the pixel lies."""
    rows, columns = place.rows, place.columns
    side = taper(settings.window, settings.blend).to(valid.device)
    weight = side[:, None] * side
    total: torch.Tensor | None = None
    weight_sum = torch.zeros((len(valid), rows.stop - rows.start, columns.stop - columns.start), device=valid.device)
    for windows, cuts in said:
        for logits, cut in zip(windows, cuts, strict=True):
            to_rows, from_rows = _shared(cut.row, rows, settings.window)
            to_columns, from_columns = _shared(cut.column, columns, settings.window)
            if total is None:
                total = weight_sum[:, None].repeat(1, len(logits), 1, 1)
            part = weight[from_rows, from_columns]
            total[cut.group, :, to_rows, to_columns] += logits[:, from_rows, from_columns] * part
            weight_sum[cut.group, to_rows, to_columns] += part
    if total is not None:
        top, left = rows.read_start, columns.read_start
        seen = valid[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        tiny = torch.finfo(weight_sum.dtype).tiny
        answer[:] = finish(total / weight_sum.clamp_min(tiny)[:, None], seen & (weight_sum > 0))


def taper(window: int, blend: int) -> torch.Tensor:
    """Return the weights along a window: Hann's rise over ``blend`` pixels at each end, 1 between.

    Two windows that overlap by ``blend`` pixels have weights that add up to 1.
    """
    rise = 0.5 - 0.5 * torch.cos(torch.pi * (torch.arange(blend, dtype=torch.float64) + 0.5) / blend)
    weights = torch.ones(window, dtype=torch.float64)
    weights[:blend] = rise
    weights[window - blend :] = torch.minimum(weights[window - blend :], rise.flip(0))
    return weights.float()


def _shared(window: Window, axis: BlockAxis, size: int) -> tuple[slice, slice]:
    """Return where the pixels that a window and a block have in common lie in each of the two."""
    start, stop = max(window.start, axis.start), min(window.start + size, axis.stop)
    return slice(start - axis.start, stop - axis.start), slice(start - window.start, stop - window.start)
