"""Refusal before any read: each row gives the words that a user sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from toys import Handle, cube, model_spec, task_spec

import xgfm
from xgfm.errors import BandError, CubeError, FramesError, GridError, TaskError, UnitsError, XgfmError
from xgfm.grid import with_grid

TASK = Handle(task_spec())


def unread(c: xr.DataArray) -> xr.DataArray:
    """Return the cube with pixels that fail when they are read."""

    def fail(block: np.ndarray) -> np.ndarray:
        raise AssertionError("a pixel was read")

    return c.copy(data=da.map_blocks(fail, c.data, dtype=c.dtype, meta=np.empty((0,) * c.ndim, c.dtype)))


def bands(*names: str) -> Callable[[xr.DataArray], xr.DataArray]:
    return lambda c: c.isel(band=slice(0, len(names))).assign_coords(band=list(names))


def times(*dates: str) -> Callable[[xr.DataArray], xr.DataArray]:
    return lambda c: c.assign_coords(time=np.array(dates, "datetime64[ns]"))


def at(resolution: float, crs: str, x: float = 440_280, y: float = 3_159_720) -> Callable[[xr.DataArray], xr.DataArray]:
    def move(c: xr.DataArray) -> xr.DataArray:
        box = GeoBox(c.shape[-2:], Affine(resolution, 0, x, 0, -resolution, y), crs)
        return with_grid(c.drop_vars(["y", "x", "spatial_ref"]), box)

    return move


REFUSED: list[tuple[str, Callable[[xr.DataArray], xr.DataArray], type[XgfmError], str]] = [
    ("dims", lambda c: c.isel(time=0), CubeError, r"dims \('band', 'y', 'x'\); expected .*expand_dims\('time'\)"),
    ("dims in another order", lambda c: c.transpose("band", "time", "y", "x"), CubeError, r"cube\.transpose"),
    ("missing band", bands("blue", "green", "red", "nir08", "swir16"), BandError, r"missing \['swir22'\]"),
    (
        "band order",
        bands("red", "green", "blue", "nir08", "swir16", "swir22"),
        BandError,
        r"order them with cube\.sel\(band=\['blue', 'green', 'red', 'nir08', 'swir16', 'swir22'\]\)",
    ),
    (
        "broad band",
        bands("blue", "green", "red", "B08", "swir16", "swir22"),
        BandError,
        "'B08' is Sentinel-2's broad band B08; the model takes the narrow one, B8A on S30 and B05 on L30",
    ),
    ("asset keys", bands("B02", "B03", "B04", "B8A", "B11", "B12"), BandError, "on S30 .'B02': 'blue'.* on L30 .'B05'"),
    ("no names", lambda c: c.drop_vars("band"), BandError, r"no names; expected .*assign_coords\(band=\[...\]\)"),
    ("undeclared floats", lambda c: c.astype("float32").drop_attrs(deep=False), UnitsError, "reflectance_scale=1 for"),
    ("undeclared bytes", lambda c: c.astype("uint8").drop_attrs(deep=False), UnitsError, "1/255 for reflectance x 255"),
    ("no numbers", lambda c: c.astype(bool), UnitsError, "dtype bool; expected integers or floats"),
    (
        "no CRS",
        lambda c: c.drop_vars("spatial_ref"),
        GridError,
        r"no CRS.*assign_crs\('EPSG:4326'\)|no CRS.*assign_crs",
    ),
    ("metres as degrees", at(30, "EPSG:4326"), GridError, "are not degrees under EPSG:4326; name the CRS"),
    (
        "degrees as metres",
        at(0.0003, "EPSG:32614", -97.6, 28.5),
        GridError,
        "look like degrees, but the CRS is projected",
    ),
    (
        "dates with a zone",
        lambda c: c.assign_coords(time=c.time.to_index().tz_localize("Europe/Paris")),
        FramesError,
        "no dates in UTC .*without a time zone",
    ),
    ("latitude", lambda c: c.rename(y="latitude", x="longitude"), CubeError, r"cube\.rename\(latitude='y'"),
    ("undeclared fill", lambda c: c.astype("uint16").drop_attrs(deep=False), UnitsError, r"assign_attrs\(nodata=0\)"),
    ("no scale", lambda c: c.assign_attrs(reflectance_scale=0), UnitsError, "reflectance_scale=0: expected .* above 0"),
    ("packed", lambda c: c.assign_attrs(scale_factor=2.75e-5, add_offset=-0.2), UnitsError, "add_offset=-0.2.*unpack"),
    (
        "packed otherwise",
        lambda c: c.assign_attrs(scale_factor=2.75e-5),
        UnitsError,
        r"scale_factor=2\.75e-05, but reflectance_scale=0\.0001",
    ),
    ("coarse pixels", at(60, "EPSG:32614"), GridError, r"60 m, 'toy-task' was trained at 30 m; resampling adds no"),
    ("10 m pixels", at(10, "EPSG:32614"), GridError, r"10 m, 'toy-task' was trained at 30 m; .*resolution=30.*allow="),
    ("south up", lambda c: c.isel(y=slice(None, None, -1)), GridError, "not north-up"),
    ("a gap in x", lambda c: c.isel(x=[0, 1, 2, 5, 6]), GridError, "'x' is not regular"),
    (
        "too few frames",
        lambda c: c.isel(time=[0, 1]),
        FramesError,
        r"takes 3 dates at once, the cube has 2; open a longer",
    ),
    (
        "no dates",
        lambda c: c.drop_vars("time"),
        FramesError,
        r"no dates in UTC .dtype None.; give them with cube\.assign_coords",
    ),
    ("NaT", times("2024-05-01", "NaT", "2024-06-01"), FramesError, r"no date \(NaT\)"),
    ("repeated", times("2024-05-01", "2024-05-01", "2024-06-01"), FramesError, r"2024-05-01T00:00:00 stands twice"),
    ("unsorted", times("2024-06-01", "2024-05-01", "2024-07-01"), FramesError, r"not in order; cube\.sortby\('time'\)"),
    (
        "unused Fmask",
        lambda c: c.assign_coords(fmask=c.isel(band=0, drop=True).astype("uint8")),
        CubeError,
        r"clouds are still in it; cube\.gfm\.mask\(\), or cube\.drop_vars\('fmask'\)",
    ),
    ("no pixels", lambda c: c.isel(x=slice(0, 0)), CubeError, "no pixels"),
]


@pytest.mark.parametrize(("change", "error", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_wrong_input_is_refused_before_any_read(
    change: Callable[[xr.DataArray], xr.DataArray], error: type[XgfmError], message: str
) -> None:
    bad = change(unread(cube()))
    with pytest.raises(error, match=message):
        xgfm.check(bad, TASK)
    with pytest.raises(error, match=message):
        bad.gfm.predict(TASK)


def test_a_good_cube_comes_back_with_its_units() -> None:
    given = unread(cube())
    seen = xgfm.check(given, TASK)
    assert seen.attrs["reflectance_scale"] == 1e-4
    assert seen.attrs["nodata"] == -9999
    xr.testing.assert_identical(seen.drop_attrs(), given.drop_attrs())


def test_integers_without_attributes_are_hls_numbers() -> None:
    seen = xgfm.check(unread(cube()).drop_attrs(deep=False), TASK)
    assert (seen.attrs["reflectance_scale"], seen.attrs["nodata"]) == (1e-4, -9999)


def test_units_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(UnitsError, match=r"reflectance_scale=1 was given, but the cube's attributes say 0\.0001"):
        xgfm.check(cube(), TASK, reflectance_scale=1)


def test_a_dataset_without_a_band_is_refused() -> None:
    with pytest.raises(BandError, match=r"the cube has \['blue', 'green'\], missing"):
        xgfm.check(cube().to_dataset("band")[["blue", "green"]], TASK)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (bands("a", "b", "c", "d", "e", "f"), "bands"),
        (at(10, "EPSG:32614"), "pixel_size"),
        (times("2024-06-01", "2024-05-01", "2024-07-01"), "dates"),
    ],
)
def test_a_check_can_be_left_out_by_name(change: Callable[[xr.DataArray], xr.DataArray], name: str) -> None:
    bad: Any = change(cube())
    assert xgfm.predict(bad, TASK, allow=[name]).attrs["checks_left_out"] == [name]


def test_trusted_bands_must_still_be_as_many() -> None:
    with pytest.raises(BandError, match="takes 6 bands, the cube has 5"):
        xgfm.check(bands("a", "b", "c", "d", "e")(cube()), TASK, allow=["bands"])


def test_a_model_takes_fewer_frames_than_it_was_built_for() -> None:
    assert xgfm.check(cube(times=1), Handle(model_spec())).sizes["time"] == 1


def test_what_is_no_cube_or_task_is_named() -> None:
    with pytest.raises(CubeError, match="the cube is a ndarray; expected an xarray DataArray"):
        xgfm.check(np.zeros((3, 6, 4, 4)), TASK)  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="None is no task; give a name"):
        xgfm.check(cube(), None)  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="names no check"):
        xgfm.check(cube(), TASK, allow="values")


def test_an_unsigned_cube_may_say_that_nothing_is_missing() -> None:
    seen = xgfm.check(cube().astype("uint16").drop_attrs(deep=False).assign_attrs(nodata=None), TASK)
    assert seen.attrs["nodata"] is None
