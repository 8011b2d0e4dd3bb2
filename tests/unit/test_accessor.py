"""The accessor forwards, and shows what it forwards to."""

from __future__ import annotations

import inspect

import pytest
import xarray as xr
from toys import Handle, cube, task_spec

import xgfm

METHODS = (
    *("check", "mask", "composite", "predict", "embed", "reconstruct", "to_zarr", "to_cog", "to_netcdf", "to_vector"),
    *("to_climate", "plot", "plot_profiles"),
)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_its_functions_signature_and_words(name: str) -> None:
    function, method = getattr(xgfm, name), getattr(cube().gfm, name)
    parameters = list(inspect.signature(function).parameters.values())
    assert list(inspect.signature(method).parameters.values()) == parameters[1:]
    assert method.__doc__ == function.__doc__
    assert name in repr(cube().gfm)


def test_methods_forward() -> None:
    c, handle = cube(times=4), Handle(task_spec())
    xr.testing.assert_identical(c.gfm.composite(2).drop_attrs(), xgfm.composite(c, 2).drop_attrs())
    xr.testing.assert_equal(c.gfm.predict(handle, return_="confidence"), xgfm.predict(c, handle, return_="confidence"))
    bands = c.to_dataset("band")
    for name in bands.data_vars:
        bands[name].attrs = c.attrs
    xr.testing.assert_equal(bands.gfm.predict(task=handle), xgfm.predict(c, handle))
