"""From a cube to features.

In: a cube ``(time, band, y, x)`` and an encoder. Out: a lazy array ``(feature, y, x)`` on the encoder's patch
grid. Patches are anchored to the CRS like windows, so a place has the same patch in every cube.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from xgfm import cf
from xgfm.errors import FramesError, GridError, TaskError
from xgfm.grid import geobox_of, with_grid
from xgfm.infer.blocks import map_windows
from xgfm.infer.check import check
from xgfm.infer.inputs import context_of, data_of, lattice_origin, model_facts, pixels_of
from xgfm.infer.kernel import Batch, Settings, run
from xgfm.models.handle import load_model
from xgfm.windows import Block

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

    from xgfm.models.handle import ModelHandle
    from xgfm.models.spec import ModelSpec


@dataclass(frozen=True)
class _Embed:
    """The kernel of `embed`, with its settings."""

    handle: ModelHandle
    layer: int
    settings: Settings

    def __call__(self, block: np.ndarray, place: Block, first_frame: int) -> np.ndarray:
        patch = self.settings.scale
        window = self.settings.window // patch
        shape = ((axis.stop - axis.start) // patch for axis in (place.rows, place.columns))
        out = np.full((self.handle.spec.embed_dim, *shape), np.nan, "float32")
        model: Any = self.handle.load(self.settings.device)

        def step(batch: Batch) -> torch.Tensor:
            (tokens,) = model.encoder.forward_features(batch.x, batch.time, batch.location, layers=[self.layer])
            n, _, features = tokens.shape
            grid = tokens[:, 1:].reshape(n, -1, window, window, features).mean(dim=1)  # frames averaged
            seen = batch.valid.reshape(n, window, patch, window, patch).any(dim=4).any(dim=2)
            return torch.where(seen[:, None], grid.movedim(-1, 1).float(), torch.nan)

        return run(block, place, step, self.settings, out=out, first_frame=first_frame)


def embed(
    cube: xr.DataArray | xr.Dataset,
    model: str | ModelHandle,
    *,
    layer: int = -1,
    halo: int | None = None,
    reflectance_scale: float | None = None,
    allow: Collection[str] = (),
    device: str = "cpu",
) -> xr.DataArray:
    """Return a model's features, lazily.

    Parameters
    ----------
    cube : DataArray or Dataset
        Dims ``(time, band, y, x)``, at most as many steps as the model was built for; they go in together.
    model : str or ModelHandle
        Name of a published encoder, path, or what `xgfm.load_model` gave.
    layer : int
        Block whose tokens are returned, as an index of a list: -1 is the last, with the final norm applied.
    halo : int, optional
        Pixels at each window's edge whose output is thrown away, a multiple of the patch; one patch where not given.
    reflectance_scale, allow, device
        As in `xgfm.predict`.

    Returns
    -------
    DataArray
        ``(feature, y, x)`` float32, one pixel per patch, averaged over frames. NaN where no pixel of a patch is valid
        in every frame. Patches that the cube covers in part only are left out.

    Raises
    ------
    CubeError
        The cube does not fit the model; before any read.
    """
    handle = load_model(model) if isinstance(model, str) else model
    spec: ModelSpec = handle.spec
    checked = check(cube, spec, allow=allow, reflectance_scale=reflectance_scale)
    check_frames(checked, spec)
    if not -spec.depth <= layer < spec.depth:
        raise TaskError(f"layer={layer}: {spec.name!r} has {spec.depth} blocks")
    patch = spec.patch_size[1]
    checked, geobox = _whole_patches(checked, patch)
    settings = Settings(
        pixels_of(checked, spec.statistics, 0.0, "normalised", allow),
        context_of(checked, geobox, spec.coords),
        spec.image_size,
        scale=patch,
        device=device,
    )
    out = map_windows(
        data_of(checked),
        lattice_origin(geobox),
        _Embed(handle, layer % spec.depth, settings),
        window=spec.image_size,
        halo=_halo(spec, halo),
        frames=checked.sizes["time"],
        layers=spec.embed_dim,
        dtype="float32",
        scale=patch,
    )
    return _array(out[0], geobox.zoom_out(patch), handle, layer)


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


def _array(out: object, geobox: GeoBox, handle: ModelHandle, layer: int) -> xr.DataArray:
    spec: ModelSpec = handle.spec
    array = xr.DataArray(out, dims=("feature", "y", "x"), name="embedding").assign_coords(
        feature=np.arange(spec.embed_dim)
    )
    array.attrs = {"long_name": f"features of {spec.title}", "layer": layer, **model_facts(handle)}
    dataset = with_grid(array.to_dataset(), geobox)
    described = cf.like(dataset, dataset)["embedding"]
    return described
