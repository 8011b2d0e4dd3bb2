from __future__ import annotations

from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import rasterio
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from xgfm.cube.mask import DEFAULT_BITS, FLAGS, mask, mask_block, nodata_of, rejection_table
from xgfm.errors import CubeError, XgfmError

NAMES = sorted(FLAGS)


def build_cube(pixels, fmask, **attrs):
    time = np.arange(len(pixels)).astype("datetime64[D]")
    return xr.DataArray(
        pixels,
        dims=("time", "band", "y", "x"),
        coords={"time": time, "fmask": (("time", "y", "x"), fmask), "spatial_ref": 0},
        attrs=attrs,
        name="hls",
    )


@pytest.fixture
def cube():
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 5000, (3, 2, 20, 30)).astype("int16")
    fmask = rng.integers(0, 256, (3, 20, 30)).astype("uint8")
    chunked = da.from_array(fmask, chunks=(3, 20, 10))
    return build_cube(da.from_array(pixels, chunks=(1, 1, 8, 16)), chunked, nodata=-9999, reflectance_scale=1e-4)


def plain_bits(value: int, name: str) -> bool:
    """The user guide's table, read digit by digit."""
    digits = format(value, "08b")[::-1]
    single = {"cirrus": 0, "cloud": 1, "adjacent": 2, "shadow": 3, "snow": 4, "water": 5}
    level = {"aerosol-climatology": "00", "aerosol-low": "01", "aerosol-moderate": "10", "aerosol-high": "11"}
    return digits[single[name]] == "1" if name in single else format(value, "08b")[:2] == level[name]


@settings(deadline=None)
@given(st.lists(st.sampled_from(NAMES), max_size=5), st.integers(0, 255))
def test_table_is_the_user_guide(bits, value):
    expected = value == 255 or any(plain_bits(value, name) for name in bits)
    assert rejection_table(bits)[value] == expected


def test_fill_is_rejected_though_no_bit_is_asked_for_and_254_is_not():
    assert np.flatnonzero(rejection_table(())).tolist() == [255]


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.lists(st.sampled_from(NAMES)))
def test_lazy_mask_is_a_pixel_loop_whatever_the_chunks(times, bands, rows, cols, bits):
    rng = np.random.default_rng(times * 1000 + rows * 10 + cols)
    pixels = rng.integers(-100, 9000, (times, bands, rows, cols)).astype("int16")
    fmask = rng.choice([0, 64, 66, 68, 72, 96, 128, 192, 255], (times, rows, cols)).astype("uint8")
    lazy = build_cube(da.from_array(pixels, chunks=(1, bands, 3, 4)), da.from_array(fmask, chunks=(times, 2, 5)))
    expected = pixels.copy()
    for t, y, x in np.ndindex(fmask.shape):
        if fmask[t, y, x] == 255 or any(plain_bits(int(fmask[t, y, x]), name) for name in bits):
            expected[t, :, y, x] = -9999
    result = mask(lazy, bits)
    np.testing.assert_array_equal(result.values, expected)
    np.testing.assert_array_equal(mask(lazy.compute(), bits).values, expected)


@pytest.mark.parametrize(
    ("granule", "rejected"),
    [
        # published with the files: 9 % cloud and 10 % in bits 1-3; 74 % outside the swath; clear and complete
        ("HLS.S30.T13RCN.2024128T173909", 0.1031),
        ("HLS.L30.T15UWP.2024283T165135", 0.7376),
        ("HLS.L30.T15UXP.2024283T165135", 0.0),
    ],
)
def test_real_fmask(shared_data, granule, rejected):
    with rasterio.open(shared_data / "hls" / "fmask" / f"{granule}.v2.0.Fmask.tif") as file:
        fmask = file.read(1)
    bad = (fmask == 255) | ((fmask >> 1) & 1).astype(bool) | ((fmask >> 2) & 1 == 1) | ((fmask >> 3) & 1 == 1)
    pixels = np.ones((1, 1, *fmask.shape), "int16")
    masked = mask(build_cube(da.from_array(pixels, chunks=1024), fmask[np.newaxis])).values[0, 0]
    np.testing.assert_array_equal(masked == -9999, bad)
    assert (masked == -9999).mean() == pytest.approx(rejected, abs=5e-5)


def test_real_aerosol_levels(shared_data):
    with rasterio.open(shared_data / "hls" / "fmask" / "HLS.S30.T13RCN.2024128T173909.v2.0.Fmask.tif") as file:
        fmask = file.read(1)
    shares = [rejection_table(f"aerosol-{level}")[fmask].mean() for level in ("climatology", "low", "moderate", "high")]
    np.testing.assert_allclose(shares, [0, 0.48869, 0.37137, 0.13995], atol=1e-5)


def test_nothing_is_computed_and_metadata_stays(cube):
    def refuse(*args, **kwargs):
        raise AssertionError("mask computed something")

    cube.encoding["grid_mapping"] = "spatial_ref"
    with dask.config.set(scheduler=refuse):
        masked = mask(cube)
    assert isinstance(masked.data, da.Array)
    assert (masked.dtype, masked.name, masked.dims, masked.chunks) == (np.int16, "hls", cube.dims, cube.chunks)
    assert masked.attrs == {**cube.attrs, "masked_by": ["cloud", "adjacent", "shadow"]}
    assert masked.encoding["grid_mapping"] == "spatial_ref"
    assert "fmask" not in masked.coords
    assert "spatial_ref" in masked.coords
    assert "masked_by" not in cube.attrs
    assert "fmask" in cube.coords


def test_one_name_is_a_list_of_one(cube):
    xr.testing.assert_identical(mask(cube, "cloud"), mask(cube, ["cloud"]))


def test_another_nodata_value_and_floats():
    fmask = np.array([[[2, 64]]], "uint8")
    tagged = build_cube(np.full((1, 1, 1, 2), 7, "uint16"), fmask, nodata=0)
    assert mask(tagged).values.ravel().tolist() == [0, 7]
    floats = mask(build_cube(np.full((1, 1, 1, 2), 7, "float32"), fmask)).values.ravel()
    assert np.isnan(floats[0])
    assert floats[1] == 7
    assert floats.dtype == np.float32


def test_nodata_that_does_not_fit_is_refused():
    cube = build_cube(np.ones((1, 1, 1, 1), "uint16"), np.zeros((1, 1, 1), "uint8"))
    with pytest.raises(CubeError, match=r"-9999 does not fit .* uint16; .*cube.attrs\['nodata'\]"):
        nodata_of(cube)


def test_unknown_bit_lists_the_names(cube):
    with pytest.raises(XgfmError, match=r"no bit \['clouds'\]; bits= takes names of \['cirrus', 'cloud', 'adjacent'"):
        mask(cube, ("clouds", "shadow"))


def test_no_fmask_says_how_to_attach_one(cube):
    with pytest.raises(CubeError, match=r"needs coordinate 'fmask'.*mask=None.*assign_coords\(fmask="):
        mask(cube.drop_vars("fmask"))


def test_masking_twice_says_that_it_is_done(cube):
    with pytest.raises(CubeError, match=r"was masked by \['cloud', 'adjacent', 'shadow'\] already"):
        mask(mask(cube))


def test_wrong_fmask_is_refused(cube):
    with pytest.raises(CubeError, match=r"'fmask' is float64 on .*astype\('uint8'\)"):
        mask(cube.assign_coords(fmask=cube.fmask.astype(float)))
    with pytest.raises(CubeError, match=r"on \('y', 'x'\), not uint8 on"):
        mask(cube.assign_coords(fmask=cube.fmask.isel(time=0)))


def test_wrong_dims_are_refused(cube):
    with pytest.raises(CubeError, match=r"dims \(time, band, y, x\), got \('band', 'time', 'y', 'x'\)"):
        mask(cube.transpose("band", "time", "y", "x"))


def test_kernel_keeps_dtype_and_does_not_write_its_input():
    pixels = np.full((1, 2, 1, 2), 5, "int16")
    result = mask_block(pixels, np.array([[[2, 0]]], "uint8"), table=rejection_table(DEFAULT_BITS), nodata=-9999)
    assert result.tolist() == [[[[-9999, 5]], [[-9999, 5]]]]
    assert result.dtype == np.int16
    assert (pixels == 5).all()


@pytest.mark.parametrize("bits", [True, False, 2, [["cloud"]], ["cloud", None]])
def test_what_is_no_name_is_refused(bits: Any) -> None:
    with pytest.raises(XgfmError, match=r"expected names of \['cirrus'.*or open the cube with mask=None"):
        rejection_table(bits)
    coords = {"fmask": (("time", "y", "x"), np.zeros((1, 2, 2), "uint8"))}
    cube = xr.DataArray(np.zeros((1, 1, 2, 2), "int16"), dims=("time", "band", "y", "x"), coords=coords)
    with pytest.raises(XgfmError, match="or open the cube with mask=None"):
        mask(cube, bits)
