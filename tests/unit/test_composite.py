from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from xgfm.cube.composite import clear_share, composite, median
from xgfm.cube.mask import mask
from xgfm.errors import CubeError, FramesError, XgfmError

NODATA = -9999


def build_cube(pixels, dates=None, chunks=None):
    pixels = np.asarray(pixels)
    dates = np.arange(len(pixels)) * 10 + np.datetime64("2024-04-01") if dates is None else dates
    data = pixels if chunks is None else da.from_array(pixels, chunks=chunks)
    coords = {
        "time": np.array(dates, "datetime64[ns]"),
        "band": [f"b{k}" for k in range(pixels.shape[1])],
        "spatial_ref": 0,
        "item": ("time", [f"item-{k}" for k in range(len(pixels))]),
        "eo:cloud_cover": ("time", np.linspace(90, 10, len(pixels))),
    }
    attrs = {"nodata": NODATA, "reflectance_scale": 1e-4}
    return xr.DataArray(data, coords, ("time", "band", "y", "x"), "hls", attrs)


def seasons(least=1, most=9):
    """Int16 pixels (time, band, y, x) in which about a third of the observations is cloudy, and some are partly so."""
    shapes = st.tuples(st.integers(least, most), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))
    values = st.one_of(st.just(NODATA), st.integers(-500, 12000), st.integers(-5, 5))
    return shapes.flatmap(lambda shape: hnp.arrays(np.int16, shape, elements=values))


def clear_of(pixels):
    return (pixels != NODATA).all(axis=1)


def masked_oracle(pixels):
    """NumPy's own median of masked arrays."""
    hidden = np.broadcast_to(~clear_of(pixels)[:, np.newaxis], pixels.shape)
    return np.ma.median(np.ma.masked_array(pixels.astype(float), hidden), axis=0).filled(np.nan)


def sums_of_distances(spectra):
    """The definition of the medoid: it has the least of these."""
    return np.array([sum(np.sqrt(((one - other) ** 2).sum()) for other in spectra) for one in spectra])


@settings(deadline=None)
@given(seasons())
def test_median_is_numpys(pixels):
    result = composite(build_cube(pixels), 1).values[0]
    expected = masked_oracle(pixels)
    np.testing.assert_array_equal(result == NODATA, np.isnan(expected) | (expected == NODATA))
    valid = ~np.isnan(expected)
    assert (np.abs(result[valid] - expected[valid]) <= 0.5).all()
    np.testing.assert_array_equal(result[valid], np.rint(expected[valid]))


@settings(deadline=None)
@given(seasons(most=6))
def test_medoid_is_its_definition(pixels):
    result = composite(build_cube(pixels), 1, method="medoid").values[0]
    for y, x in np.ndindex(result.shape[1:]):
        spectra = [spectrum for spectrum in pixels[:, :, y, x].astype(float) if (spectrum != NODATA).all()]
        if not spectra:
            assert (result[:, y, x] == NODATA).all()
            continue
        chosen = [i for i, spectrum in enumerate(spectra) if (spectrum == result[:, y, x]).all()]
        assert chosen
        sums = sums_of_distances(spectra)
        assert sums[chosen[0]] <= sums.min() + 1e-7  # the order of additions decides between equals


def test_the_medoid_of_equals_is_the_earliest():
    pixels = np.array([NODATA, 7, 3, 5, 5, 1, 9], "int16").reshape(7, 1, 1, 1)
    assert composite(build_cube(pixels), 1, method="medoid").values.ravel().tolist() == [5]
    for pair in ([7, 3], [3, 7]):
        pixels = np.array(pair, "int16").reshape(2, 1, 1, 1)
        assert composite(build_cube(pixels), 1, method="medoid").values.ravel().tolist() == pair[:1]


def test_halves_round_to_even():
    pixels = np.array([[1, 2, -1, 3], [2, 3, 0, 3]], "int16").reshape(2, 1, 1, 4)
    assert composite(build_cube(pixels), 1).values.ravel().tolist() == [2, 2, 0, 3]


def test_floats_are_not_rounded_and_their_nan_is_missing():
    pixels = np.array([[0.25, np.nan, NODATA], [0.5, 0.25, np.nan]], "float32").reshape(2, 1, 1, 3)
    assert composite(build_cube(pixels), 1).values.ravel().tolist() == [0.375, 0.25, NODATA]
    cube = build_cube(pixels[..., 1:2]).assign_attrs(nodata=np.nan)
    assert composite(cube, 1).dtype == np.float32
    assert np.isnan(composite(cube.isel(time=[0]), 1).values).all()


@settings(deadline=None)
@given(seasons(least=3), st.sampled_from(["median", "medoid", "clearest"]), st.data())
def test_chunks_do_not_matter(pixels, method, data):
    chunks = tuple(data.draw(st.integers(1, size)) for size in pixels.shape)
    eager = composite(build_cube(pixels), 3, method=method)
    lazy = composite(build_cube(pixels, chunks=chunks), 3, method=method)
    assert isinstance(lazy.data, da.Array)
    xr.testing.assert_identical(lazy.compute(), eager)


@settings(deadline=None)
@given(seasons(), st.sampled_from(["median", "medoid", "clearest"]))
def test_nodata_never_leaks(pixels, method):
    """A frame is nodata in all bands or in none, and only where nothing was clear; cloudy values change nothing."""
    cube = build_cube(pixels)
    result = composite(cube, 1, method=method).values[0]
    missing = result == NODATA
    assert (missing.all(axis=0) == missing.any(axis=0)).all()
    if method != "clearest":
        np.testing.assert_array_equal(missing.any(axis=0), ~clear_of(pixels).any(axis=0))
    spoilt = np.where(clear_of(pixels)[:, np.newaxis], pixels, np.int16(NODATA))
    spoilt[:, 1:] = np.where(clear_of(pixels)[:, np.newaxis], pixels, np.int16(31000))[:, 1:]
    np.testing.assert_array_equal(composite(build_cube(spoilt), 1, method=method).values[0], result)


@settings(deadline=None)
@given(seasons(most=1), st.sampled_from(["median", "medoid", "clearest"]))
def test_a_single_date_is_itself(pixels, method):
    expected = np.where(clear_of(pixels)[:, np.newaxis], pixels, NODATA)
    np.testing.assert_array_equal(composite(build_cube(pixels), 1, method=method).values, expected)


@settings(deadline=None)
@given(seasons(), st.randoms(use_true_random=False))
def test_the_order_of_dates_does_not_matter(pixels, random):
    cube = build_cube(pixels)
    order = list(range(len(pixels)))
    random.shuffle(order)
    for method in ("median", "medoid", "clearest"):
        xr.testing.assert_identical(
            composite(cube.isel(time=order), 1, method=method), composite(cube, 1, method=method)
        )


def test_a_strip_is_as_good_as_the_whole(monkeypatch):
    pixels = np.random.default_rng(3).integers(-100, 5000, (5, 2, 40, 30)).astype("int16")
    whole = median(pixels, clear_of(pixels))
    monkeypatch.setattr("xgfm.cube.composite._STRIP", 5 * 2 * 30 * 7)
    np.testing.assert_array_equal(composite(build_cube(pixels, chunks=(1, 1, 25, 30)), 1).values[0], whole)


def test_frames_dates_and_metadata():
    pixels = np.arange(7, dtype="int16").reshape(7, 1, 1, 1)
    cube = build_cube(pixels, chunks=1).assign_attrs(masked_by=["cloud"])
    cube.encoding = {"grid_mapping": "spatial_ref", "preferred_chunks": {"time": 1}}
    frames = composite(cube, windows=["2024-04-01", ("2024-04-05", "2024-05"), slice("2024-05-20", "2024-06")])
    assert frames.values.ravel().tolist() == [0, 4, 6]  # of 0, of 1 to 6, of 5 and 6
    assert frames["time"].values.astype(str).tolist() == [
        "2024-04-01T12:00:00.000000000", "2024-05-03T12:00:00.000000000", "2024-06-10T00:00:00.000000000"]  # fmt: skip
    assert frames.attrs == {
        "nodata": NODATA,
        "reflectance_scale": 1e-4,
        "masked_by": ["cloud"],
        "composite": "median",
        "frames": [
            {"window": ["2024-04-01", "2024-04-01"], "dates": ["2024-04-01"], "items": ["item-0"]},
            {
                "window": ["2024-04-05", "2024-05-31"],
                "dates": ["2024-04-11", "2024-04-21", "2024-05-01", "2024-05-11", "2024-05-21", "2024-05-31"],
                "items": [f"item-{k}" for k in range(1, 7)],
            },
            {
                "window": ["2024-05-20", "2024-06-30"],
                "dates": ["2024-05-21", "2024-05-31"],
                "items": ["item-5", "item-6"],
            },
        ],
    }
    assert (frames.dims, frames.name, frames.dtype) == (("time", "band", "y", "x"), "hls", np.int16)
    assert set(frames.coords) == {"time", "band", "spatial_ref"}
    assert frames.encoding == {"grid_mapping": "spatial_ref"}


def test_nothing_is_computed_and_the_plane_keeps_its_chunks():
    def refuse(*args, **kwargs):
        raise AssertionError("composite computed something")

    cube = build_cube(np.ones((9, 3, 20, 30), "int16"), chunks=(1, 1, 8, 16))
    with dask.config.set(scheduler=refuse):
        for method in ("median", "medoid", "clearest"):
            frames = composite(cube, 3, method=method)
            assert frames.chunks == ((1, 1, 1), (3,), (8, 8, 4), (16, 14))
            assert frames.data._meta.dtype == np.int16


def test_a_year_of_a_tile_is_a_small_graph():
    """One more task per chunk, to pick the dates of a window, and two per plane block and frame."""
    cube = build_cube(np.broadcast_to(np.int16(1), (60, 6, 64, 64)), chunks=(1, 1, 16, 16))
    own = len(cube.data.__dask_graph__())
    reduced = composite(cube, 3).data
    assert len(reduced.dask) - own <= 60 * 6 * 16 + 2 * 3 * 16 + 10


def test_clearest_takes_the_least_cloudy_date_by_metadata():
    pixels = np.arange(6, dtype="int16").reshape(6, 1, 1, 1)
    cube = build_cube(pixels).assign_coords({"eo:cloud_cover": ("time", [50, 3, 3, 9, 80, 7])})
    frames = composite(cube, 2, method="clearest")
    assert frames.values.ravel().tolist() == [1, 5]
    assert [frame["dates"] for frame in frames.attrs["frames"]] == [["2024-04-11"], ["2024-05-21"]]


def test_clearest_prefers_what_was_counted():
    pixels = np.full((3, 2, 2, 2), 7, "int16")
    pixels[2] = NODATA  # outside the swath: 10 % cloud by its metadata, nothing to see here
    pixels[0, 1, 0, 0] = NODATA
    cube = build_cube(pixels, chunks=(1, 1, 1, 2))
    assert (composite(cube, 1, method="clearest") == NODATA).all()
    share = clear_share(cube)
    assert isinstance(share.data, da.Array)
    assert share.values.tolist() == [0.75, 1.0, 0.0]
    counted = cube.assign_coords(clear_share=share.compute())
    assert composite(counted, 1, method="clearest").attrs["frames"][0]["dates"] == ["2024-04-11"]


@pytest.mark.parametrize("cloud", [None, [np.nan, 3, 5]])
def test_clearest_without_anything_to_decide_by(cloud):
    cube = build_cube(np.ones((3, 1, 1, 1), "int16")).drop_vars("eo:cloud_cover")
    if cloud is not None:
        cube = cube.assign_coords({"eo:cloud_cover": ("time", cloud)})
    with pytest.raises(FramesError, match=r"'clear_share' or 'eo:cloud_cover' .*assign_coords\(clear_share="):
        composite(cube, 1, method="clearest")


def test_a_window_of_clouds_stays_nodata():
    pixels = np.array([5, NODATA, 7], "int16").reshape(3, 1, 1, 1)
    assert composite(build_cube(pixels), 3).values.ravel().tolist() == [5, NODATA, 7]


def test_an_empty_window_is_named_before_any_read():
    def fail(block):
        raise AssertionError("read")

    cube = build_cube(np.ones((3, 1, 2, 2), "int16"), chunks=1)
    cube = cube.copy(data=cube.data.map_blocks(fail, dtype="int16", meta=np.empty((0, 0, 0, 0), "int16")))
    with pytest.raises(
        FramesError,
        match="window 2024-07-01 to 2024-07-31 holds no observation; the cube has 2024-04-01, 2024-04-11, 2024-04-21",
    ):
        composite(cube, windows=["2024-04", "2024-07"])
    gap = build_cube(np.ones((2, 1, 1, 1), "int16"), dates=["2024-04-01", "2024-08-28"])
    with pytest.raises(FramesError, match="window 2024-05-21 to 2024-07-09 holds no observation"):
        composite(gap, 3)


def test_wrong_input_is_refused():
    cube = build_cube(np.ones((3, 1, 2, 2), "int16"))
    with pytest.raises(XgfmError, match="method 'mean' is not one of 'median', 'medoid', 'clearest'"):
        composite(cube, method="mean")
    with pytest.raises(CubeError, match=r"dims \(time, band, y, x\) with dates in 'time', got \('band', 'time'"):
        composite(cube.transpose("band", "time", "y", "x"))
    with pytest.raises(CubeError, match="with int64 time"):
        composite(cube.assign_coords(time=[1, 2, 3]))
    with pytest.raises(FramesError, match="at each of at least one time step"):
        composite(cube.isel(time=[]))
    fmask = cube.assign_coords(fmask=(("time", "y", "x"), np.zeros((3, 2, 2), "uint8")))
    with pytest.raises(CubeError, match=r"Fmask is not used yet: cube.gfm.mask\(\)"):
        composite(fmask)
    assert composite(mask(fmask), 1).shape == (1, 1, 2, 2)


def test_a_composite_of_a_composite_is_refused():
    cube = build_cube(np.ones((8, 1, 2, 2), "int16"))
    frames = composite(cube, 4)
    refusal = (
        r"composite of 4 frames already \(attrs\['composite'\] and attrs\['frames'\].*composite the original series"
    )
    with pytest.raises(CubeError, match=refusal):
        composite(frames, 3)
    del frames.attrs["composite"]
    with pytest.raises(CubeError, match="composite of 4 frames already"):
        composite(frames, windows=["2024-04"])


def test_items_may_be_strings_of_any_kind():
    cube = build_cube(np.ones((4, 1, 2, 2), "int16"))
    expected = composite(cube, 2).attrs["frames"]
    assert expected[0]["items"] == ["item-0", "item-1"]
    for dtype in (np.dtypes.StringDType(), object):
        assert composite(cube.assign_coords(item=cube["item"].astype(dtype)), 2).attrs["frames"] == expected


@settings(deadline=None)
@given(seasons())
def test_missing_as_nan_is_the_same_up_to_rounding(pixels):
    cube = build_cube(pixels)
    whole, decoded = composite(cube, 1), composite(cube.where(cube != NODATA).astype("float32"), 1)
    assert decoded.attrs["nodata"] == NODATA
    np.testing.assert_array_equal(decoded == NODATA, whole == NODATA)
    assert (np.abs(decoded - whole) <= 0.5).all()
