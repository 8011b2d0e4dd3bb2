"""From a cube to a map.

In: a cube ``(time, band, y, x)`` and a task. Out: a Dataset on the cube's grid. All of it is lazy: pixels are read and
the model is loaded when the result is computed or written.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from numbers import Integral
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import dask.array as da
import numpy as np
import torch
import xarray as xr

from xgfm import cf
from xgfm.cube.composite import composite
from xgfm.cube.periods import Period, TimeWindow, named_periods, time_coordinates
from xgfm.errors import FramesError, TaskError
from xgfm.grid import geobox_of, with_grid
from xgfm.infer.augment import averaged_over_d4
from xgfm.infer.blocks import map_windows
from xgfm.infer.check import check, spec_of
from xgfm.infer.device import Precision, check_device, check_precision, dtype_of, pick, ready
from xgfm.infer.inputs import context_of, data_of, lattice_origin, model_facts, pixels_of, window_values
from xgfm.infer.kernel import Batch, Settings, run
from xgfm.infer.layers import LAYERS, OUT_OF_DOMAIN, layer_count, map_layers, missing
from xgfm.infer.sharing import shareable
from xgfm.models import registry
from xgfm.models.domain import enlarged, watched
from xgfm.models.handle import load_task
from xgfm.models.spec import ModelSpec
from xgfm.windows import Block

if TYPE_CHECKING:
    from xgfm.models.handle import ModelHandle
    from xgfm.models.spec import TaskSpec


@dataclass(frozen=True)
class _Predict:
    """The kernel of `predict`, with its settings."""

    handle: ModelHandle
    layers: tuple[str, ...]
    tta: bool
    precision: str
    device: str | None
    settings: Settings

    def __call__(self, block: np.ndarray, place: Block, first_frame: int) -> np.ndarray:
        spec, device = self.handle.spec, pick(self.device)
        fill = np.array(missing(self.layers, len(spec.classes)), _dtype(self.layers))
        shape = (place.rows.stop - place.rows.start, place.columns.stop - place.columns.start)
        out = np.broadcast_to(fill[:, None, None], (len(block) // spec.frames, len(fill), *shape)).copy()
        sample = torch.Size((1, len(spec.bands), spec.frames, spec.window, spec.window))
        module = ready(self.handle, device, self.precision, lambda m, x: m(x), sample)
        domain = self.handle.load_domain(device) if OUT_OF_DOMAIN in self.layers else None

        def ask(x: torch.Tensor, batch: Batch) -> torch.Tensor:
            told = {"time": batch.time, "location": batch.location}
            said: torch.Tensor = module(x, **{k: v for k, v in told.items() if v is not None})
            wanted = (len(x), max(len(spec.classes), 1), *x.shape[-2:])
            if tuple(said.shape) != wanted:
                raise TaskError(
                    f"the module of task {spec.name!r} answers with shape {tuple(said.shape)} to an input of "
                    f"{tuple(x.shape)}; expected (B, K, H, W) = {wanted}, K the task's classes"
                )
            return said

        def answer(batch: Batch) -> torch.Tensor:
            return averaged_over_d4(lambda x: ask(x, batch), batch.x) if self.tta else ask(batch.x, batch)

        def step(batch: Batch) -> torch.Tensor:
            if domain is None:
                return answer(batch)
            with watched(module, domain.layer) as tokens:
                said = answer(batch).float()
            distance = enlarged(module, domain.distance(tokens[0]), said.shape[-2:])
            return torch.cat([said, distance[:, None]], dim=1)

        def finish(said: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
            if domain is None:
                return map_layers(said, valid, self.layers, spec.temperature)
            return map_layers(said[:, :-1], valid, self.layers, spec.temperature, domain.share(said[:, -1:]))

        shared = domain is None and shareable(module)  # one thread at a time may watch a module
        dtype = dtype_of(module)
        return run(block, place, first_frame, step, finish, out, self.settings, device, dtype, shared=shared)


def predict(
    cube: xr.DataArray | xr.Dataset,
    task: str | PathLike[str] | ModelHandle,
    *,
    periods: Sequence[TimeWindow] | None = None,
    return_: str | Sequence[str] = "class",
    halo: int | None = None,
    blend: Literal["hann"] | None = None,
    tta: bool = False,
    min_valid: float = 0.0,
    reflectance_scale: float | None = None,
    allow: Collection[str] = (),
    precision: Precision = "auto",
    device: str | None = None,
    batch_size: int | None = None,
) -> xr.Dataset:
    """Map what a task predicts, lazily.

    The same pixel gets the same answer in any chunking and in any larger or smaller cube that holds it and its
    surroundings: windows are anchored to the CRS.

    Parameters
    ----------
    cube : DataArray or Dataset
        Dims ``(time, band, y, x)``, or one variable ``(time, y, x)`` per band. With more steps than a task of several
        frames takes, the cube is composited as the task says; a task of one frame maps every step.
    task : str, path or ModelHandle
        Name of a published or registered task, path of a folder or weights file, or what `xgfm.load_task` gave.
    periods : sequence, optional
        Seasons that a task of several frames maps one by one: ``["2023", ("2024-03", "2024-10")]``, in order. Each is
        composited into the task's frames, unless it has just as many dates. ``time`` is the middle of each and
        ``time_bnds`` its two ends.
    return_ : str or sequence of str
        Of ``"class"``, ``"probability"``, ``"confidence"``, ``"entropy"``, ``"logits"``, ``"out_of_domain"``: the share
        of held-out training patches that lie nearer to the training data than a pixel's patch, for a task that knows
        its training set (`xgfm.fit_domain`). All are made in one pass.
    halo : int, optional
        Pixels at each window's edge whose output is thrown away; the task's own where not given.
    blend : "hann", optional
        Average neighbouring windows over twice the halo with Hann weights, instead of throwing their edges away. It
        smooths what seams are left, at the same stride; windows between chunks are computed for each of them.
    tta : bool
        Test-time augmentation: average the logits of the eight flips and quarter turns. Eight times the work.
    min_valid : float
        Share of valid pixels under which a window is nodata. A window without any always is.
    reflectance_scale : float, optional
        Reflectance of one unit, for a cube that does not say.
    allow : collection of str
        Checks to leave out: see `xgfm.check`. Recorded in the result.
    precision : "auto", "fp32" or "bf16"
        Number format of weights and activations. ``"auto"`` is bf16 on devices that compute it natively, if it proves
        right for the model on noise, and fp32 elsewhere; maps differ where two classes are all but equal.
    device : str, optional
        Torch's name of the device: ``"cpu"``, ``"cuda"``. Where not given, each worker takes CUDA if it has it.
    batch_size : int, optional
        Windows of one call of the model at most; by default what suits the device. On a CPU several calls are under way
        at once.

    Returns
    -------
    Dataset
        The map under the task's name, uint8 with 255 where a pixel is missing in any frame; dims ``(y, x)``, or
        ``(time, y, x)`` for tasks of one frame and for ``periods``. ``probability`` has ``class`` in front of ``y``.

    Raises
    ------
    CubeError
        The cube does not fit the task; before any read.
    UnitsError
        While reading: values that cannot be in the declared units.
    TaskError
        No such task, or ``return_`` that it cannot give: ``"out_of_domain"`` of one that has no training set with it.
    """
    spec = _task_spec(task)
    layers = _layers(spec, return_)
    checked = check(cube, spec, allow=allow, reflectance_scale=reflectance_scale)
    checked, times = _framed(checked, spec, periods)
    geobox = geobox_of(checked)
    halo = spec.halo if halo is None else halo
    _check_options(spec, halo, blend, min_valid, batch_size)
    check_precision(precision)
    check_device(device)
    # Last: it may download gigabytes, for a cube that is not refused.
    handle = load_task(task) if isinstance(task, str | PathLike) else task
    if OUT_OF_DOMAIN in layers:
        handle.load_domain()  # refuses a task without one, before any read
    settings = Settings(
        pixels_of(checked, spec.statistics, spec.nodata_fill, spec.nodata_units, allow),
        context_of(checked, geobox, spec.coords),
        spec.window,
        spec.frames,
        blend=2 * halo if blend else 0,
        min_valid=min_valid,
        batch_size=batch_size,
        window_values=window_values(spec.model, spec.frames, spec.window),
        name=spec.name,
    )
    out = map_windows(
        data_of(checked),
        lattice_origin(geobox),
        _Predict(handle, layers, tta, precision, device, settings),
        window=spec.window,
        halo=halo,
        frames=spec.frames,
        layers=layer_count(layers, len(spec.classes)),
        dtype=_dtype(layers),
        blend=blend is not None,
    )
    how: dict[str, Any] = {"halo": halo, "blend": blend, "tta": tta or None, "precision": precision}
    how["checks_left_out"] = sorted(allow) or None
    how["domain_digest"] = handle.domain if OUT_OF_DOMAIN in layers else None
    return _dataset(out, checked, handle, layers, times, how)


def _task_spec(task: str | PathLike[str] | ModelHandle) -> TaskSpec:
    spec = spec_of(task)
    if isinstance(spec, ModelSpec):
        raise TaskError(
            f"{spec.name!r} is an encoder and knows no classes; use cube.gfm.embed or cube.gfm.reconstruct, or one of "
            f"the tasks {[t.name for t in registry.tasks()]}"
        )
    checked: TaskSpec = spec
    return checked


def _framed(
    cube: xr.DataArray, spec: TaskSpec, periods: Sequence[TimeWindow] | None
) -> tuple[xr.DataArray, dict[Hashable, Any] | None]:
    """Return the frames that the task takes, group after group, and the result's time coordinates if it has any."""
    if periods is None:
        framed = composite(cube, spec.frames, method=spec.composite) if 1 < spec.frames < cube.sizes["time"] else cube
        return framed, {n: c for n, c in cube.coords.items() if c.dims == ("time",)} if spec.frames == 1 else None
    if spec.frames == 1:
        raise TaskError(f"{spec.name!r} takes one date at a time and maps every date of the cube; leave periods= out")
    seasons, time = named_periods(periods), cube.coords["time"].values
    parts = [_season(cube.isel(time=season.steps(time)), spec, season) for season in seasons]
    joined = xr.concat(parts, "time", coords="minimal", compat="override", combine_attrs="override")
    joined.attrs["frames"] = [facts for part in parts for facts in part.attrs["frames"]]
    return joined, time_coordinates(seasons)


def _season(cube: xr.DataArray, spec: TaskSpec, season: Period) -> xr.DataArray:
    if cube.sizes["time"] < spec.frames:
        raise FramesError(
            f"{spec.name!r} takes {spec.frames} dates at once, the cube has {cube.sizes['time']} in the period "
            f"{season.bounds}; open a longer series with datetime=, or leave the period out of periods="
        )
    if cube.sizes["time"] == spec.frames:
        days = [str(day)[:10] for day in cube.coords["time"].values]
        chosen = cube.assign_attrs(frames=[{"window": [day, day], "dates": [day]} for day in days])
    else:
        chosen = composite(cube, spec.frames, method=spec.composite)
    return chosen.drop_vars([n for n, c in chosen.coords.items() if c.dims == ("time",) and n != "time"])


def _layers(spec: TaskSpec, return_: str | Sequence[str]) -> tuple[str, ...]:
    asked = (return_,) if isinstance(return_, str) else tuple(return_ or ())
    if spec.kind == "regression":
        if not asked or set(asked) - {"class", OUT_OF_DOMAIN}:
            raise TaskError(
                f"return_={return_!r}: {spec.name!r} is a regression and gives its value, 'class' here, and "
                f"{OUT_OF_DOMAIN!r}; leave return_= out"
            )
        return tuple(name for word, name in (("class", "value"), (OUT_OF_DOMAIN, OUT_OF_DOMAIN)) if word in asked)
    unknown = [a for a in asked if a not in LAYERS]
    if unknown or not asked:
        raise TaskError(
            f"return_={return_!r}: {spec.name!r} can return {list(LAYERS)}"
            + ("; features lie on the coarser grid of patches: cube.gfm.embed(task)" if "features" in unknown else "")
        )
    return tuple(name for name in LAYERS if name in asked)


def _check_options(spec: TaskSpec, halo: int, blend: str | None, min_valid: float, batch_size: int | None) -> None:
    if batch_size is not None and (not isinstance(batch_size, Integral) or batch_size < 1):
        raise TaskError(f"batch_size={batch_size}: expected a whole number of windows, 1 or more")
    if not isinstance(halo, Integral) or not 0 <= halo <= (spec.window - 1) // 2:
        raise TaskError(f"halo={halo}: expected 0 to {(spec.window - 1) // 2} for windows of {spec.window} pixels")
    if blend not in (None, "hann") or (blend and not halo):
        raise TaskError(f"blend={blend!r} with halo={halo}: expected 'hann' with a halo to blend over, or None")
    if not 0 <= min_valid <= 1:
        raise TaskError(f"min_valid={min_valid}: expected a share, 0 to 1")


def _dtype(layers: tuple[str, ...]) -> str:
    return "uint8" if layers == ("class",) else "float32"


def _dataset(
    out: da.Array,
    cube: xr.DataArray,
    handle: ModelHandle,
    layers: tuple[str, ...],
    times: dict[Hashable, Any] | None,
    how: dict[str, Any],
) -> xr.Dataset:
    """Give the layers of a computed block array their names, coordinates and attributes."""
    spec = handle.spec
    keep_time = times is not None
    variables: dict[str, xr.DataArray] = {}
    first = 0
    for name in layers:
        count = layer_count((name,), len(spec.classes))
        named = cf.variable_name(spec) if name in ("class", "value") else name
        dims = ("time",) * keep_time + ("class",) * (count > 1) + ("y", "x")
        variables[named] = xr.DataArray(_planes(out, first, count, keep_time, name), dims=dims)
        first += count
    result = with_grid(xr.Dataset(variables), geobox_of(cube))
    if times is not None:
        result = result.assign_coords(times)
    return cf.like(result, result, spec, {**model_facts(handle), **_facts(cube, spec), **_given(how)})


def _planes(out: da.Array, first: int, count: int, keep_time: bool, name: str) -> da.Array:
    """Take a layer out of ``(group, plane, y, x)``: without the plane axis if it has one, without the group if alone.

    By blocks rather than by indexing, which would list a task for every chunk in the graph.
    """
    index = (slice(None) if keep_time else 0, slice(first, first + count) if count > 1 else first)
    dtype = "uint8" if name == "class" else out.dtype
    chunks = (*((out.chunks[0],) * keep_time), *(((count,),) * (count > 1)), *out.chunks[2:])
    planes: da.Array = da.map_blocks(
        _plane,
        out,
        index=index,
        to=dtype,
        dtype=dtype,
        drop_axis=[axis for axis, dropped in enumerate((not keep_time, count == 1)) if dropped],
        chunks=chunks,
        meta=np.empty((0,) * len(chunks), dtype),
    )
    return planes


def _plane(block: np.ndarray, *, index: tuple[Any, ...], to: Any) -> np.ndarray:
    planes: np.ndarray = block[index].astype(to, copy=False)
    return planes


def _facts(cube: xr.DataArray, spec: TaskSpec) -> dict[str, Any]:
    """What the map was made of, as JSON values."""
    frames = cube.attrs.get("frames")
    if not isinstance(frames, list) or len(frames) != cube.sizes["time"]:  # some were dropped since, or not ours
        frames = None
    facts = {
        "task": spec.name,
        "task_licence": spec.licence or None,
        "demonstration": spec.demonstration or None,
        "temperature": spec.temperature if spec.temperature != 1 else None,
        "frames": frames,
        # Of a composite they are the middles of its windows; what was seen when stands in the frames.
        "dates": [str(t)[:19] for t in cube.coords["time"].values] if frames is None else None,
    }
    taken_over = {name: cube.attrs.get(name) for name in ("masked_by", "attribution", "simulated")}
    return _given({**facts, **taken_over})


def _given(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None}
