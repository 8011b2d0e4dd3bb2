"""The accessor ``.gfm``: every method forwards to a public function that works without it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import xarray as xr

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from xgfm.models.handle import ModelHandle


@xr.register_dataarray_accessor("gfm")
@xr.register_dataset_accessor("gfm")
class GfmAccessor:
    """Geospatial foundation models on a cube ``(time, band, y, x)``, and what can be done with their results."""

    def __init__(self, obj: xr.DataArray | xr.Dataset) -> None:
        self._obj: Any = obj  # each function says which of the two it takes

    def check(self, task: str | ModelHandle, **options: Any) -> xr.DataArray:
        """Refuse a cube that does not fit a task, before any read: `xgfm.check`."""
        from xgfm.infer.check import check

        return check(self._obj, task, **options)

    def mask(self, bits: Sequence[str] | None = None) -> xr.DataArray:
        """Write nodata where the Fmask says so: `xgfm.mask`."""
        from xgfm.cube.mask import DEFAULT_BITS, mask

        return mask(self._obj, DEFAULT_BITS if bits is None else bits)

    def composite(self, frames: int = 3, **options: Any) -> xr.DataArray:
        """Turn a long series into a few frames: `xgfm.composite`."""
        from xgfm.cube.composite import composite

        return composite(self._obj, frames, **options)

    def predict(self, task: str | ModelHandle, **options: Any) -> xr.Dataset:
        """Map what a task predicts, lazily: `xgfm.predict`."""
        from xgfm.infer.predict import predict

        return predict(self._obj, task, **options)

    def embed(self, model: str | ModelHandle, **options: Any) -> xr.DataArray:
        """Return a model's features on its patch grid, lazily: `xgfm.embed`."""
        from xgfm.infer.embed import embed

        return embed(self._obj, model, **options)

    def reconstruct(self, model: str | ModelHandle, **options: Any) -> xr.Dataset:
        """Return a masked autoencoder's reconstruction, lazily: `xgfm.reconstruct`."""
        from xgfm.infer.reconstruct import reconstruct

        return reconstruct(self._obj, model, **options)

    def to_zarr(self, path: str | Path, **options: Any) -> Any:
        """Write a sharded Zarr store that climate tools open: `xgfm.to_zarr`."""
        from xgfm.store.write import to_zarr

        return to_zarr(self._obj, path, **options)

    def to_cog(self, path: str | Path, **options: Any) -> Any:
        """Write a cloud-optimised GeoTIFF: `xgfm.to_cog`."""
        from xgfm.store.write import to_cog

        return to_cog(self._obj, path, **options)

    def plot(self, frames: xr.DataArray | None = None, **options: Any) -> Figure:
        """Draw the map with its legend, beside the true-colour frames: `xgfm.plot`."""
        from xgfm.figures import plot

        return plot(self._obj, frames, **options)
