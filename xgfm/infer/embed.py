"""From a cube to features.

In: a cube ``(time, band, y, x)`` and an encoder. Out: a lazy array ``(feature, y, x)`` on the encoder's patch
grid. Patches are anchored to the CRS like windows, so a place has the same patch in every cube.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
import xarray as xr
from torch import nn

from xgfm import cf
from xgfm.errors import FramesError, GridError, TaskError
from xgfm.grid import geobox_of, with_grid
from xgfm.infer.blocks import map_windows
from xgfm.infer.check import check, spec_of
from xgfm.infer.device import Precision, check_device, check_precision, dtype_of, pick, ready
from xgfm.infer.inputs import context_of, data_of, lattice_origin, model_facts, pixels_of, window_values
from xgfm.infer.kernel import Batch, Settings, run
from xgfm.infer.sharing import shareable
from xgfm.models import registry
from xgfm.models.handle import load_model, load_task
from xgfm.models.quirks import published_part
from xgfm.models.spec import ModelSpec
from xgfm.windows import Block

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

    from xgfm.models.handle import ModelHandle


DTYPES = ("float32", "float16", "int8")
WITH_ENCODER = ("pixelwise", "mmseg", "probe")
"""Families of `xgfm.models.build` whose modules have a Prithvi-shaped encoder."""
NO_FEATURE = -128
"""Fill value of int8 features."""


@dataclass(frozen=True)
class _Embed:
    """The kernel of `embed`, with its settings."""

    handle: ModelHandle
    spec: ModelSpec
    layer: int
    dtype: str
    precision: str
    device: str | None
    settings: Settings

    def __call__(self, block: np.ndarray, place: Block, first_frame: int) -> np.ndarray:
        spec, patch, device = self.spec, self.settings.scale, pick(self.device)
        window = self.settings.window // patch
        shape = ((axis.stop - axis.start) // patch for axis in (place.rows, place.columns))
        out = np.full((1, spec.embed_dim, *shape), NO_FEATURE if self.dtype == "int8" else np.nan, self.dtype)
        sample = torch.Size((1, len(spec.bands), len(block), self.settings.window, self.settings.window))
        module = ready(self.handle, device, self.precision, lambda m, x: encoder_of(m)(x), sample)
        encoder = encoder_of(module)

        def step(batch: Batch) -> torch.Tensor:
            (tokens,) = encoder.forward_features(batch.x, batch.time, batch.location, layers=[self.layer])
            n, _, features = tokens.shape
            frames = tokens[:, 1:].float().reshape(n, -1, window, window, features)
            grid: torch.Tensor = frames.mean(dim=1).movedim(-1, 1)
            return grid

        def finish(features: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
            seen = valid.reshape(-1, window, patch, window, patch).any(dim=4).any(dim=2)[:, None]
            if self.dtype == "int8":
                return torch.where(seen, quantised(features), NO_FEATURE).to(torch.int8)
            return torch.where(seen, features, torch.nan).to(getattr(torch, self.dtype))

        shared, dtype = shareable(encoder), dtype_of(module)
        return run(block, place, first_frame, step, finish, out, self.settings, device, dtype, shared=shared)


def quantised(features: torch.Tensor) -> torch.Tensor:
    """Return features ``(B, feature, y, x)`` as directions in whole numbers from -127 to 127.

    Each vector is brought to length 1 (what cosine similarity and linear probes see), and the square root of its
    components is stored, because most of them are small: ``component = sign(q) * (q / 127) ** 2``.
    """
    unit = features / features.square().sum(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
    return (unit.sign() * unit.abs().sqrt() * 127).round()


def embed(
    cube: xr.DataArray | xr.Dataset,
    model: str | PathLike[str] | ModelHandle,
    *,
    layer: int = -1,
    halo: int | None = None,
    dtype: Literal["float32", "float16", "int8"] = "float32",
    reflectance_scale: float | None = None,
    allow: Collection[str] = (),
    precision: Precision = "auto",
    device: str | None = None,
) -> xr.DataArray:
    """Return a model's features, lazily.

    Parameters
    ----------
    cube : DataArray or Dataset
        Dims ``(time, band, y, x)``, at most as many steps as the model was built for; they go in together.
    model : str or ModelHandle
        Name of a published encoder, path, or what `xgfm.load_model` gave; or a task, whose fine-tuned encoder is used.
    layer : int
        Block whose tokens are returned, as an index of a list: -1 is the last, with the final norm applied.
    halo : int, optional
        Pixels at each window's edge whose output is thrown away, a multiple of the patch; one patch where not given.
    dtype : "float32", "float16" or "int8"
        What is stored. int8 keeps directions, not lengths; the attribute ``decoding`` says how to get them back.
    reflectance_scale, allow, precision, device
        As in `xgfm.predict`.

    Returns
    -------
    DataArray
        ``(feature, y, x)``, one pixel per patch, averaged over frames. NaN (int8: -128) where no pixel of a patch is
        valid in every frame. Patches that the cube covers in part only are left out.

    Raises
    ------
    CubeError
        The cube does not fit the model; before any read.
    """
    spec = encoder_spec(model)
    checked = check(cube, spec, allow=allow, reflectance_scale=reflectance_scale)
    check_frames(checked, spec)
    if not -spec.depth <= layer < spec.depth:
        raise TaskError(f"layer={layer}: {spec.name!r} has {spec.depth} blocks")
    if dtype not in DTYPES:
        raise TaskError(f"dtype={dtype!r}: expected one of {list(DTYPES)}")
    check_precision(precision)
    check_device(device)
    halo, patch = _halo(spec, halo), spec.patch_size[1]
    checked, geobox = _whole_patches(checked, patch)
    handle = loaded(model)
    settings = Settings(
        pixels_of(checked, spec.statistics, 0.0, "normalised", allow),
        context_of(checked, geobox, spec.coords),
        spec.image_size,
        checked.sizes["time"],
        scale=patch,
        window_values=window_values(spec, checked.sizes["time"], spec.image_size),
        name=spec.name,
    )
    out = map_windows(
        data_of(checked),
        lattice_origin(geobox),
        _Embed(handle, spec, layer % spec.depth, dtype, precision, device, settings),
        window=spec.image_size,
        halo=halo,
        frames=checked.sizes["time"],
        layers=spec.embed_dim,
        dtype=dtype,
        scale=patch,
    )
    facts = {"layer": layer, "steps": checked.sizes["time"], "halo": halo, **model_facts(handle)}
    return _array(out[0], geobox.zoom_out(patch), spec, facts)


def encoder_spec(model: str | PathLike[str] | ModelHandle) -> ModelSpec:
    """Return what an encoder takes: a model's own record, or a task's encoder with the task's input."""
    spec = spec_of(model)
    if isinstance(spec, ModelSpec):
        return spec
    if spec.architecture.get("family") not in WITH_ENCODER or "quirk" in spec.architecture:
        raise TaskError(
            f"task {spec.name!r} has no encoder that can be called alone (it is a module of your own or a U-Net, or "
            "wraps its input); give the name of a published model"
        )
    return replace(spec.model, statistics=spec.statistics, frames=spec.frames, pixel_size=spec.pixel_size)


def loaded(model: str | PathLike[str] | ModelHandle) -> ModelHandle:
    """Return the handle of a model or a task."""
    if not isinstance(model, str | PathLike):
        return model
    return load_model(model) if isinstance(registry.spec_of(model), ModelSpec) else load_task(model)


def encoder_of(module: nn.Module) -> Any:
    """Return the encoder of a model's or a task's module."""
    return cast("Any", published_part(module)).encoder


def check_frames(cube: xr.DataArray, spec: ModelSpec) -> None:
    """Refuse more dates than a model was built for."""
    if cube.sizes["time"] > spec.frames:
        raise FramesError(
            f"{spec.name!r} was built for {spec.frames} dates at once, the cube has {cube.sizes['time']}; choose them "
            f"with cube.gfm.composite(frames={spec.frames}) or cube.isel(time=[...])"
        )


def _halo(spec: ModelSpec, halo: int | None) -> int:
    patch, most = spec.patch_size[1], (spec.image_size - 1) // 2
    halo = patch if halo is None else halo
    if halo % patch or not 0 <= halo <= most:
        raise TaskError(f"halo={halo}: expected a multiple of the patch, {patch}, from 0 to {most}")
    return halo


def _whole_patches(cube: xr.DataArray, patch: int) -> tuple[xr.DataArray, GeoBox]:
    """Cut a cube to the patches, counted from the origin of the CRS, that it covers whole."""
    row, column = (-o % patch for o in lattice_origin(geobox_of(cube)))
    rows, columns = ((n - first) // patch * patch for n, first in ((cube.sizes["y"], row), (cube.sizes["x"], column)))
    if rows <= 0 or columns <= 0:
        raise GridError(
            f"a cube of {cube.sizes['y']} x {cube.sizes['x']} pixels covers no whole patch of {patch} pixels; "
            "open a larger bbox"
        )
    cut = cube.isel(y=slice(row, row + rows), x=slice(column, column + columns))
    return cut, geobox_of(cut)


def _array(out: object, geobox: GeoBox, spec: ModelSpec, facts: Mapping[str, Any]) -> xr.DataArray:
    array = xr.DataArray(out, dims=("feature", "y", "x"), name="embedding").assign_coords(
        feature=np.arange(spec.embed_dim)
    )
    array.attrs = {"long_name": f"features of {spec.title}", **facts}
    if array.dtype == "int8":
        array.attrs |= {"decoding": "sign(q) * (q / 127) ** 2 is a component of a vector of length 1"}
    dataset = with_grid(array.to_dataset(), geobox)
    described = cf.like(dataset, dataset)["embedding"]
    if array.dtype == "int8":
        described.encoding |= {"_FillValue": NO_FEATURE, "fill_value": NO_FEATURE}
    return described
