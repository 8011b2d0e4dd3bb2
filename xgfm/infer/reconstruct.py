"""From a cube to what a masked autoencoder makes of it.

In: a cube ``(time, band, y, x)`` and a model. Out: a lazy Dataset on the cube's grid: the pixels with hidden
patches filled in by the model, and where they were hidden.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import torch
import xarray as xr

from xgfm import cf
from xgfm.errors import TaskError
from xgfm.grid import geobox_of, with_grid
from xgfm.infer.blocks import map_windows
from xgfm.infer.check import check, spec_of
from xgfm.infer.device import check_device, pick
from xgfm.infer.embed import check_frames
from xgfm.infer.inputs import context_of, data_of, lattice_origin, model_facts, pixels_of, window_values
from xgfm.infer.kernel import Batch, Settings, run
from xgfm.infer.sharing import shareable
from xgfm.models.handle import load_model
from xgfm.models.spec import ModelSpec
from xgfm.windows import Block

if TYPE_CHECKING:
    from xgfm.models.handle import ModelHandle

_SOUTH_AND_WEST = 2**31
"""Added to lattice positions: seeds are not negative."""


@dataclass(frozen=True)
class _Reconstruct:
    """The kernel of `reconstruct`, with its settings."""

    handle: ModelHandle
    mask_ratio: float
    seed: int
    origin: tuple[int, int]
    """Row and column of the array's first pixel, counted from the origin of the CRS."""
    device: str | None
    settings: Settings

    def __call__(self, block: np.ndarray, place: Block, first_frame: int) -> np.ndarray:
        spec, pixels, device = self.handle.spec, self.settings.pixels, pick(self.device)
        shape = (place.rows.stop - place.rows.start, place.columns.stop - place.columns.start)
        out = np.full((1, self.settings.frames * (len(spec.bands) + 1), *shape), np.nan, "float32")
        model: Any = self.handle.load(device)

        def step(batch: Batch) -> torch.Tensor:
            noise = torch.stack([self._noise(c.row.start, c.column.start) for c in batch.cuts]).to(device)
            seen = model(batch.x, batch.time, batch.location, mask_ratio=self.mask_ratio, noise=noise)
            hidden = model.mask_image(seen.mask, seen.grid)[:, None]  # (B, 1, T, H, W)
            mean, std = (torch.tensor(v, device=device)[:, None, None, None] for v in (pixels.mean, pixels.std))
            image = torch.where(hidden > 0, model.unpatchify(seen.prediction, seen.grid), batch.x) * std + mean
            return torch.cat([image / pixels.factor, hidden], dim=1).movedim(2, 1).flatten(1, 2)

        def finish(planes: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
            return torch.where(valid[:, None], planes, torch.nan)

        shared, dtype = shareable(model), torch.float32
        return run(block, place, first_frame, step, finish, out, self.settings, device, dtype, shared=shared)

    def _noise(self, row: int, column: int) -> torch.Tensor:
        """Noise of a window, from its place on the CRS: the same in every cube and chunking."""
        spec: ModelSpec = self.handle.spec
        tokens = self.settings.frames // spec.patch_size[0] * (spec.image_size // spec.patch_size[1]) ** 2
        place = (self.origin[0] + row + _SOUTH_AND_WEST, self.origin[1] + column + _SOUTH_AND_WEST)
        return torch.from_numpy(np.random.default_rng([self.seed, *place]).random(tokens, dtype="float32"))


def reconstruct(
    cube: xr.DataArray | xr.Dataset,
    model: str | PathLike[str] | ModelHandle,
    *,
    mask_ratio: float | None = None,
    seed: int = 0,
    reflectance_scale: float | None = None,
    allow: Collection[str] = (),
    device: str | None = None,
) -> xr.Dataset:
    """Hide patches of a cube and let a masked autoencoder fill them in, lazily.

    Parameters
    ----------
    cube : DataArray or Dataset
        Dims ``(time, band, y, x)``, at most as many steps as the model was built for.
    model : str or ModelHandle
        Name of a published model, path, or what `xgfm.load_model` gave.
    mask_ratio : float, optional
        Share of patches that are hidden, between 0 and 1; the model's own where not given.
    seed : int
        Which patches: with the same seed a place has the same patches hidden in every cube that holds its window.
    reflectance_scale, allow, device
        As in `xgfm.predict`.

    Returns
    -------
    Dataset
        ``reconstruction (time, band, y, x)`` float32 in the cube's units, with the model's answer where patches were
        hidden and the input elsewhere, and ``hidden (time, y, x)``, 1 where they were, NaN where input is missing.

    Raises
    ------
    CubeError
        The cube does not fit the model; before any read.
    """
    check_device(device)
    spec = spec_of(model)
    if not isinstance(spec, ModelSpec):
        raise TaskError(f"{spec.name!r} is a task and reconstructs nothing; give a model, {spec.model.name!r}")
    checked = check(cube, spec, allow=allow, reflectance_scale=reflectance_scale)
    check_frames(checked, spec)
    ratio = spec.mask_ratio if mask_ratio is None else mask_ratio
    if not 0 < ratio < 1:
        raise TaskError(f"mask_ratio={ratio}: expected a share between 0 and 1")
    handle = load_model(model) if isinstance(model, str | PathLike) else model
    geobox, frames = geobox_of(checked), checked.sizes["time"]
    origin = lattice_origin(geobox)
    settings = Settings(
        pixels_of(checked, spec.statistics, 0.0, "normalised", allow),
        context_of(checked, geobox, spec.coords),
        spec.image_size,
        frames,
        window_values=window_values(spec, frames, spec.image_size),
        name=spec.name,
    )
    kernel = _Reconstruct(handle, ratio, seed, origin, device, settings)
    out = map_windows(
        data_of(checked),
        origin,
        kernel,
        window=spec.image_size,
        halo=0,
        frames=frames,
        layers=frames * (len(spec.bands) + 1),
        dtype="float32",
    )
    return _dataset(out[0], checked, handle)


def _dataset(out: da.Array, cube: xr.DataArray, handle: ModelHandle) -> xr.Dataset:
    frames, bands = cube.sizes["time"], cube.sizes["band"]
    stacked = out.rechunk({0: bands + 1}).reshape((frames, bands + 1, *out.shape[1:]))
    result = xr.Dataset(
        {
            "reconstruction": (("time", "band", "y", "x"), stacked[:, :bands]),
            "hidden": (("time", "y", "x"), stacked[:, bands]),
        },
        coords={n: c for n, c in cube.coords.items() if c.dims in (("time",), ("band",))},
    )
    result["reconstruction"].attrs = {"long_name": "reflectance, hidden patches filled in by the model"}
    result["hidden"].attrs = {"long_name": "1 where the patch was hidden from the model"}
    result = with_grid(result, geobox_of(cube))
    return cf.like(result, result, None, {**model_facts(handle), "reflectance_scale": cube.attrs["reflectance_scale"]})
