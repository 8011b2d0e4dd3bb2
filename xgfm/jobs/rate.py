"""How fast a task is, and how much it computes.

In: the handle of a task. Out: windows per second on a device, measured by predicting noise, and floating-point
operations of one window, as torch counts them. Only `measure_rate` computes.
"""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from xgfm.jobs.spec import Options
from xgfm.models.spec import TaskSpec

if TYPE_CHECKING:
    from torch import nn

    from xgfm.models.handle import ModelHandle

_PIXELS = 2048
"""Most rows and columns of noise that are predicted at once."""


def flops_of_window(handle: ModelHandle) -> float | None:
    """Return the floating-point operations of one window, counted by ``torch.utils.flop_counter``.

    The module is run without numbers (on torch's meta device): nothing is loaded or computed. Products of matrices and
    convolutions count, two operations for each multiplication and addition; so does attention.

    Returns
    -------
    float or None
        None for a module of one's own that cannot be run without numbers.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    spec: TaskSpec = handle.spec
    size = (1, len(spec.bands), spec.frames, spec.window, spec.window)
    counter = FlopCounterMode(display=False)
    try:
        with torch.inference_mode(), counter:
            _without_numbers(handle)(torch.zeros(size, device="meta"))
    except (NotImplementedError, RuntimeError):  # it looks at values, or makes tensors on a device of its own
        return None
    return float(counter.get_total_flops())


def _without_numbers(handle: ModelHandle) -> nn.Module:
    import torch

    from xgfm.models.build import build_task

    if getattr(handle, "build", None) is None and handle.spec.architecture:
        with torch.device("meta"):
            return build_task(handle.spec).eval()
    return copy.deepcopy(handle.load("cpu")).to("meta")


def measure_rate(
    handle: ModelHandle,
    *,
    device: str | None = None,
    options: Options | None = None,
    block: int = _PIXELS,
    seconds: float = 5.0,
) -> float:
    """Return how many windows a second a device predicts, from pixels in memory to a map in memory.

    Parameters
    ----------
    handle
        The task; its weights are loaded.
    device
        Torch's name of it; by default as in ``options``.
    options
        As the job has them.
    block
        Pixels of the side of the job's blocks: no more is predicted at once.
    seconds
        About how long to measure, after a first batch that does not count.

    Returns
    -------
    float
        Windows per second.
    """
    from xgfm.infer.device import batch_size, pick
    from xgfm.infer.inputs import window_values

    options = Options() if options is None else options
    spec: TaskSpec = handle.spec
    halo = spec.halo if options.halo is None else options.halo
    values = window_values(spec.model, spec.frames, spec.window)
    at_once = options.batch_size or batch_size(pick(device or options.device), 2 * values)
    side = int(np.ceil(np.sqrt(at_once)))
    _predicted(handle, _noise(spec, halo, side), device, options)  # loads weights, chooses kernels
    taken = _predicted(handle, _noise(spec, halo, side), device, options)
    most = max((min(block, _PIXELS) - 2 * halo) // (spec.window - 2 * halo), side)
    side = int(np.clip(side * np.sqrt(seconds / max(taken, 1e-4)), side, most))
    noise, windows, total = _noise(spec, halo, side), 0, 0.0
    while total < seconds:
        total += _predicted(handle, noise, device, options)
        windows += side**2
    return windows / total


def _noise(spec: TaskSpec, halo: int, side: int) -> xr.DataArray:
    """A cube in memory of ``side`` x ``side`` windows, of the task's bands, frames and pixel size."""
    from affine import Affine
    from odc.geo.geobox import GeoBox

    from xgfm.grid import with_grid

    stride = spec.window - 2 * halo
    size, step = side * stride + 2 * halo, spec.pixel_size
    # Near the middle of the zone, where the first window begins whole: its inner part is a halo further in.
    left, top = (round(metres / (stride * step)) * stride for metres in (500_000, 5_000_000))
    box = GeoBox((size, size), Affine(step, 0, (left - halo) * step, 0, -step, (top + halo) * step), "EPSG:32615")
    rng = np.random.default_rng(0)
    values = rng.integers(500, 3000, (spec.frames, len(spec.bands), size, size))
    dates = np.datetime64("2024-05-01", "ns") + np.arange(spec.frames) * np.timedelta64(40, "D")
    cube = xr.DataArray(
        values.astype("int16"),
        dims=("time", "band", "y", "x"),
        coords={"time": dates, "band": list(spec.bands)},
        attrs={"nodata": -9999, "reflectance_scale": 1e-4},
    )
    return with_grid(cube, box)


def _predicted(handle: ModelHandle, cube: xr.DataArray, device: str | None, options: Options) -> float:
    """Seconds that a prediction takes."""
    from xgfm.infer.predict import predict

    result = predict(
        cube,
        handle,
        return_=options.return_,
        halo=options.halo,
        blend=options.blend,
        tta=options.tta,
        precision=options.precision,
        device=device or options.device,
        batch_size=options.batch_size,
    )
    start = time.perf_counter()
    result.compute(scheduler="synchronous")
    return time.perf_counter() - start
