"""The accessor ``.gfm``: every method forwards to a public function that works without it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import xarray as xr


class _Forward:
    """A method that calls a function of this package with the object first.

    The function is imported when the method is used, so that ``import xgfm`` stays light; what a notebook shows of the
    method is the function's own signature and docstring.
    """

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name

    def __get__(self, accessor: GfmAccessor | None, owner: type) -> Callable[..., Any]:
        function = getattr(importlib.import_module(f"xgfm.{self.module}"), self.name)
        if accessor is None:
            forwarded: Callable[..., Any] = function
            return forwarded

        def method(*args: Any, **options: Any) -> Any:
            return function(accessor._obj, *args, **options)

        method.__name__ = method.__qualname__ = self.name
        method.__doc__ = function.__doc__
        signature = inspect.signature(function)
        method.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # type: ignore[attr-defined]
        return method


@xr.register_dataarray_accessor("gfm")
@xr.register_dataset_accessor("gfm")
class GfmAccessor:
    """Geospatial foundation models on a cube ``(time, band, y, x)``, and what can be done with their results."""

    def __init__(self, obj: xr.DataArray | xr.Dataset) -> None:
        self._obj = obj

    def __repr__(self) -> str:
        methods = ", ".join(name for name, value in vars(type(self)).items() if isinstance(value, _Forward))
        return f"<xgfm of {type(self._obj).__name__} {dict(self._obj.sizes)}: {methods}>"

    check = _Forward("infer.check", "check")
    mask = _Forward("cube.mask", "mask")
    composite = _Forward("cube.composite", "composite")
    predict = _Forward("infer.predict", "predict")
    embed = _Forward("infer.embed", "embed")
    reconstruct = _Forward("infer.reconstruct", "reconstruct")
    fit = _Forward("train.fit", "fit")
    probe = _Forward("train.probe", "probe")
    to_zarr = _Forward("store.write", "to_zarr")
    to_cog = _Forward("store.write", "to_cog")
    to_netcdf = _Forward("store.netcdf", "to_netcdf")
    to_vector = _Forward("store.vector", "to_vector")
    to_climate = _Forward("climate.fractions", "to_climate")
    plot = _Forward("figures", "plot")
    plot_profiles = _Forward("figures", "plot_profiles")
