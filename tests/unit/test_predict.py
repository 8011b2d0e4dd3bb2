"""Prediction against a brute-force oracle, and its invariances."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import Handle, Positional, cube, task_spec

import xgfm
from xgfm.cf import frames_of
from xgfm.errors import CubeError, FramesError, TaskError, UnitsError
from xgfm.models.spec import Statistics

predict = partial(xgfm.predict, precision="fp32")  # bf16 is test_precision.py's

ROW, COLUMN = -160_000, 14_676


def oracle(c: xr.DataArray, handle: Handle) -> np.ndarray:
    """Class of every pixel from its own window, found pixel by pixel; rows and columns at least a window long."""
    spec, pixels = handle.spec, c.values.astype("float64")
    valid = (pixels != -9999).all((0, 1))
    x = np.where(pixels != -9999, (pixels - 1000) / 500, 0.0)
    stride, (rows, columns) = spec.window - 2 * spec.halo, c.shape[-2:]
    out = np.full((rows, columns), 255, "uint8")
    for i in range(rows):
        for j in range(columns):
            if valid[i, j]:
                top = min(max((ROW + i) // stride * stride - spec.halo - ROW, 0), rows - spec.window)
                left = min(max((COLUMN + j) // stride * stride - spec.halo - COLUMN, 0), columns - spec.window)
                cut = torch.tensor(x[:, :, top : top + spec.window, left : left + spec.window]).float().movedim(0, 1)
                out[i, j] = handle.module(cut[None])[0, :, i - top, j - left].argmax()
    return out


def test_every_pixel_comes_from_its_own_window() -> None:
    c, handle = cube(41, 53, missing=0.05, row=ROW, column=COLUMN), Handle(task_spec())
    result = predict(c, handle)
    np.testing.assert_array_equal(result.toy_task.values, oracle(c, handle))


@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 70),
    halo=st.integers(0, 6),
    chunk=st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(5, 80), st.integers(5, 80)),
    origin=st.tuples(st.integers(-200_000, 200_000), st.integers(0, 30_000)),
)
def test_any_chunking_gives_the_same_map(rows: int, columns: int, halo: int, chunk: Any, origin: Any) -> None:
    c = cube(rows, columns, missing=0.02, row=origin[0], column=origin[1], chunks=-1)
    handle = Handle(task_spec(halo=halo))
    parted = c.chunk(dict(zip(c.dims, chunk, strict=True)))
    whole, parts = (predict(n, handle).toy_task.values for n in (c, parted))
    np.testing.assert_array_equal(whole, parts)
    assert ((whole == 255) == (c.values == -9999).any((0, 1))).all()  # each pixel is there, and nothing else


@settings(deadline=None, max_examples=25)
@given(cut=st.tuples(*[st.integers(0, 25)] * 4))
def test_a_smaller_bbox_gives_the_same_map_inside(cut: tuple[int, int, int, int]) -> None:
    c, handle = cube(90, 95), Handle(task_spec())
    top, bottom, left, right = cut
    part = c.isel(y=slice(top, 90 - bottom), x=slice(left, 95 - right))
    edge = handle.spec.window  # windows shift inward at the edge of either
    inside = predict(part, handle).toy_task[edge:-edge, edge:-edge]
    xr.testing.assert_equal(predict(c, handle).toy_task.sel(y=inside.y, x=inside.x), inside)


@pytest.mark.parametrize("scheduler", ["sync", "threads", "processes"])
def test_any_scheduler_gives_the_same_map(scheduler: str) -> None:
    c, handle = cube(60, 60), Handle(task_spec())
    with dask.config.set(scheduler=scheduler):
        np.testing.assert_array_equal(predict(c, handle).toy_task.values, oracle(c, handle))


@settings(deadline=None, max_examples=20)
@given(size=st.tuples(st.integers(1, 40), st.integers(1, 40)), missing=st.sampled_from([0.0, 0.3, 0.95, 1.0]))
def test_missing_pixels_do_not_spread(size: tuple[int, int], missing: float) -> None:
    handle = Handle(task_spec(), Positional(strength=0.0))  # a model without context: a pixel sees itself alone
    full, holed = cube(*size), cube(*size, missing=missing)
    expected = np.where((holed.values == -9999).any((0, 1)), 255, predict(full, handle).toy_task.values)
    np.testing.assert_array_equal(predict(holed, handle).toy_task.values, expected)


def test_nan_is_missing_in_a_float_cube() -> None:
    c, handle = cube(30, 30, missing=0.1), Handle(task_spec())
    floats = c.where(c != -9999).astype("float32").assign_attrs(c.attrs)
    xr.testing.assert_equal(predict(floats, handle), predict(c, handle))


def test_reflectance_and_digital_numbers_give_the_same_map() -> None:
    c, handle = cube(30, 30, missing=0.1), Handle(task_spec())
    reflectance = (c.where(c != -9999) * 1e-4).drop_attrs(deep=False)
    same = predict(reflectance, handle, reflectance_scale=1)
    agree = (same.toy_task.values == predict(c, handle).toy_task.values).mean()
    assert agree > 0.999  # rounding may turn a tie


def test_empty_windows_are_not_computed() -> None:
    handle = Handle(task_spec(halo=0))
    c = cube(64, 64, row=0, column=0, chunks=-1)
    c.data = c.data.compute()
    c.values[..., :32, :] = -9999
    result = predict(c, handle).toy_task.values
    assert sum(shape[0] for shape in handle.module.seen) == 8  # of 16 windows
    assert (result[:32] == 255).all()
    assert (result[32:] != 255).all()


def test_empty_windows_are_nodata_in_every_layer() -> None:
    c = cube(64, 64, missing=1.0)
    result = predict(c, Handle(task_spec()), return_=["class", "confidence"]).compute()
    assert (result.toy_task == 255).all()
    assert result.confidence.isnull().all()


def test_min_valid_leaves_out_windows_with_too_little() -> None:
    c = cube(48, 48, missing=0.2, row=0, column=0)
    kept = predict(c, Handle(task_spec(halo=0)), min_valid=0.0).toy_task.values
    none = predict(c, Handle(task_spec(halo=0)), min_valid=0.99).toy_task.values
    assert (kept != 255).any()
    assert (none == 255).all()


def test_nothing_is_read_or_loaded_before_compute() -> None:
    class Guard(Handle):
        def load(self, device: str) -> torch.nn.Module:
            raise AssertionError("loaded")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("computed")

    with dask.config.set(scheduler=refuse):
        result = predict(cube(), Guard(task_spec()), return_=["class", "probability"])
    assert result.toy_task.dtype == "uint8"
    assert result.toy_task.chunks == ((40,), (50,))
    assert result.probability.shape == (3, 40, 50)


def test_layers_agree_with_each_other() -> None:
    c, handle = cube(40, 40, missing=0.05), Handle(task_spec())
    result = predict(c, handle, return_=["entropy", "class", "probability", "confidence"]).compute()
    xr.testing.assert_equal(result.toy_task, predict(c, handle).toy_task.compute())
    seen = result.toy_task.values != 255
    probability = result.probability.values
    np.testing.assert_allclose(probability.sum(0)[seen], 1, atol=1e-6)
    np.testing.assert_array_equal(probability.argmax(0)[seen], result.toy_task.values[seen])
    np.testing.assert_array_equal(probability.max(0)[seen], result.confidence.values[seen])
    np.testing.assert_allclose(
        -(probability * np.log(probability)).sum(0)[seen], result.entropy.values[seen], atol=1e-5
    )
    assert np.isnan(result.confidence.values[~seen]).all()
    assert result.probability.dims == ("class", "y", "x")


def test_tasks_of_one_frame_keep_time() -> None:
    c, handle = cube(30, 34, times=4), Handle(task_spec(frames=1))
    result = predict(c, handle)
    assert result.toy_task.dims == ("time", "y", "x")
    xr.testing.assert_equal(result.time, c.time)
    for step in range(4):
        alone = predict(c.isel(time=[step]), handle)
        np.testing.assert_array_equal(alone.toy_task.values[0], result.toy_task.values[step])


def test_more_dates_than_frames_are_composited_and_said() -> None:
    result = predict(cube(times=4), Handle(task_spec(frames=3)))
    dates = [d for frame in frames_of(result.attrs) for d in frame["dates"]]
    assert sorted(dates) == ["2024-04-03", "2024-07-02", "2024-09-25", "2024-10-11"]


def test_time_and_place_reach_the_model_window_by_window() -> None:
    told: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Listening(Positional):
        def forward(self, x: torch.Tensor, time: Any = None, location: Any = None) -> torch.Tensor:
            told.append((time, location))
            return super().forward(x)

    spec = task_spec(halo=0, coords=("time", "location"))
    c = cube(32, 32, row=0, column=16_672, chunks=-1)  # 500,160 m east, at the equator
    predict(c, Handle(spec, Listening())).compute(scheduler="sync")
    time, location = told[0]
    assert time[0].tolist() == [[2024, 93], [2024, 183], [2024, 268]]  # 1 January is day 0
    assert location.shape == (4, 2)
    assert location[0].tolist() == pytest.approx([-8 * 30 / 110_574, -93 + (160 + 240) / 111_320], abs=1e-5)
    assert location[3, 0] < location[0, 0]  # southward
    assert location[3, 1] > location[0, 1]  # eastward


def test_a_dataset_of_bands_is_a_cube() -> None:
    c, handle = cube(), Handle(task_spec())
    bands = c.to_dataset("band")[["red", "blue", "swir22", "green", "swir16", "nir08"]]
    for name in bands.data_vars:
        bands[name].attrs = c.attrs
    xr.testing.assert_equal(predict(bands, handle), predict(c, handle))


def test_what_was_done_is_said_in_json() -> None:
    import json

    result = predict(cube(), Handle(task_spec(pixel_size=10.0)), allow=["pixel_size"])
    said = json.loads(json.dumps(result.attrs))
    assert said["task"] == "toy-task"
    assert said["weights_digest"] == "0" * 64
    assert said["checks_left_out"] == ["pixel_size"]
    assert said["xgfm_version"] == xgfm.__version__
    assert said["dates"][0] == "2024-04-03T00:00:00"


def test_values_in_other_units_are_refused_while_reading() -> None:
    handle, c = Handle(task_spec()), cube(40, 40)
    fractions = (c * 1e-4).astype("float32").assign_attrs(reflectance_scale=1e-4)
    with pytest.raises(UnitsError, match=r"look like 0-1: reflectance_scale=1, or allow=\['values'\]"):
        predict(fractions, handle).compute()
    numbers = c.astype("float32").assign_attrs(reflectance_scale=1.0)
    with pytest.raises(UnitsError, match=r"look like x 10000: reflectance_scale=1e-4"):
        predict(numbers, handle).compute()
    predict(numbers, handle, allow=["values"]).compute()


def test_bands_that_are_no_reflectance_are_not_held_to_be_one() -> None:
    """A brightness temperature of 300 is not a reflectance in other units; those beside it still are."""
    kelvin = Statistics((0.1,) * 3 + (280.0,) * 3, (0.05,) * 3 + (20.0,) * 3, reflectance_scale=1.0)
    handle, c = Handle(task_spec(statistics=kelvin)), cube(40, 40)
    fractions = (c * 1e-4).astype("float32").assign_attrs(reflectance_scale=1.0)
    warm = xr.concat([fractions[:, :3], fractions[:, 3:] * 100 + 250], "band").transpose("time", "band", "y", "x")
    assert predict(warm, handle).toy_task.max() < 3
    with pytest.raises(UnitsError, match="look like x 10000"):
        predict(xr.concat([fractions[:, :3] * 10_000, warm[:, 3:]], "band").transpose(*c.dims), handle).compute()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"return_": "classes"}, r"can return \['class', 'probability', .*, 'out_of_domain'\]"),
        ({"return_": "features"}, r"coarser grid of patches: cube.gfm.embed\(task\)"),
        ({"halo": 8}, "halo=8: expected 0 to 7 for windows of 16 pixels"),
        ({"min_valid": 2}, "min_valid=2: expected a share"),
        ({"batch_size": 0}, "batch_size=0: expected a whole number of windows"),
        ({"halo": 1.5}, "halo=1.5: expected 0 to 7"),
        ({"device": "gpu0"}, "device='gpu0' is none that torch knows"),
        ({"return_": None}, "return_=None"),
        ({"allow": ["colour"]}, r"allow=\['colour'\] names no check"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        predict(cube(), Handle(task_spec()), **options)


def test_a_regression_gives_its_value() -> None:
    class Depth(Positional):
        def forward(self, x: torch.Tensor, time: Any = None, location: Any = None) -> torch.Tensor:
            return x[:, :1, 0]

    c = cube(30, 30, missing=0.1)
    spec = task_spec(kind="regression", classes=(), name="depth", units="m")
    result = predict(c, Handle(spec, Depth()))
    expected = (c.isel(time=0, band=0).values - 1000) / 500
    expected[(c.values == -9999).any((0, 1))] = np.nan
    np.testing.assert_allclose(result.depth.values, expected, rtol=1e-5, atol=1e-6)
    assert result.depth.attrs["units"] == "m"


def test_seasons_are_mapped_one_by_one() -> None:
    handle = Handle(task_spec())
    dates = [f"{year}-{month:02d}-10" for year in (2022, 2023) for month in (4, 5, 6, 8, 9)]
    first, second = cube(times=3, seed=1), cube(times=3, seed=2)
    c = xr.concat([first, first[:2], second, second[:2]], "time").assign_coords(time=np.array(dates, "datetime64[ns]"))
    c.attrs = first.attrs
    seen = predict(c, handle, periods=["2022", ("2023-04", "2023-06")])
    assert seen.toy_task.dims == ("time", "y", "x")
    assert seen.time.values.astype("datetime64[M]").tolist() == list(np.array(["2022-07", "2023-05"], "M8[M]").tolist())
    alone = [predict(c.sel(time=period), handle).toy_task for period in ("2022", slice("2023-04", "2023-06"))]
    np.testing.assert_array_equal(seen.toy_task.values, np.stack([a.values for a in alone]))
    assert [f["dates"] for f in frames_of(seen.attrs)[3:]] == [["2023-04-10"], ["2023-05-10"], ["2023-06-10"]]
    assert seen.time.attrs["bounds"] == "time_bnds"
    ends = [["2022-01-01", "2023-01-01"], ["2023-04-01", "2023-07-01"]]
    np.testing.assert_array_equal(seen.time_bnds.values, np.array(ends, "datetime64[ns]"))


def test_a_season_with_too_few_dates_is_refused_by_name() -> None:
    with pytest.raises(FramesError, match=r"takes 3 dates at once, the cube has 1 in the period \['2024-04-01'"):
        predict(cube(), Handle(task_spec()), periods=["2024-04"])
    with pytest.raises(TaskError, match=r"takes one date at a time .* leave periods= out"):
        predict(cube(), Handle(task_spec(frames=1)), periods=["2024"])


def test_a_cube_is_refused_before_weights_are_fetched() -> None:
    with pytest.raises(FramesError, match="'crop' takes 3 dates"):
        xgfm.predict(cube(times=2), "crop")
    with pytest.raises(
        TaskError, match=r"'prithvi-eo-2\.0-300m' is an encoder and knows no classes; use cube\.gfm\.embed"
    ):
        xgfm.predict(cube(), "prithvi-eo-2.0-300m")


def test_a_result_goes_into_netcdf_as_it_is(tmp_path: Path) -> None:
    pytest.importorskip("netCDF4", reason="the netCDF writer is not installed")
    result = predict(cube(times=4), Handle(task_spec(demonstration=True)), return_=["class", "probability"])
    result.to_netcdf(tmp_path / "map.nc")
    with xr.open_dataset(tmp_path / "map.nc", mask_and_scale=False) as reopened:
        np.testing.assert_array_equal(reopened.toy_task, result.toy_task)
        assert reopened.attrs["demonstration"] == 1
        assert frames_of(reopened.attrs) == frames_of(result.attrs)


def test_what_the_images_were_is_taken_over() -> None:
    c = cube().assign_attrs(attribution="HLS, NASA LP DAAC", simulated=1, masked_by=["cloud"])
    seen = predict(c, Handle(task_spec())).attrs
    assert (seen["attribution"], seen["simulated"], seen["masked_by"]) == ("HLS, NASA LP DAAC", 1, ["cloud"])


def test_a_module_of_another_shape_is_named() -> None:
    class Flat(Positional):
        def forward(self, x: torch.Tensor, time: Any = None, location: Any = None) -> torch.Tensor:
            return x[:, 0, 0]

    with pytest.raises(
        TaskError, match=r"answers with shape \(\d+, 16, 16\) .* expected \(B, K, H, W\) = \(\d+, 3, 16, 16\)"
    ):
        predict(cube(), Handle(task_spec(), Flat())).compute()


def test_a_dataset_that_holds_a_cube_is_named() -> None:
    with pytest.raises(CubeError, match=r"holds the cube as a variable; take it out: ds\['hls'\]"):
        predict(cube().to_dataset(), Handle(task_spec()))


def test_numbers_packed_by_another_sensor_are_unpacked_or_refused() -> None:
    c, handle = cube(), Handle(task_spec())
    packed = c.drop_attrs(deep=False).assign_attrs(scale_factor=1e-4, nodata=-9999)
    xr.testing.assert_equal(predict(packed, handle).toy_task, predict(c, handle).toy_task)


def test_fill_that_is_not_declared_is_refused_while_reading() -> None:
    c = cube(30, 30, missing=0.1).astype("float32").drop_attrs(deep=False)
    with pytest.raises(UnitsError, match=r"down to -9999, .* cube\.assign_attrs\(nodata=-9999\)"):
        predict(c, Handle(task_spec()), reflectance_scale=1e-4).compute()


def test_one_frame_in_other_units_is_refused_while_reading() -> None:
    c = cube(30, 30, chunks=-1)
    values = c.values.astype("float32")
    values[1] /= 10_000
    with pytest.raises(UnitsError, match="look like 0-1"):
        predict(c.copy(data=values).chunk(-1), Handle(task_spec())).compute()


def test_a_decoded_zero_is_a_value() -> None:
    c = cube(20, 20)
    floats = (c * 1e-4).astype("float32").assign_attrs(reflectance_scale=1.0)
    floats.values[:, :, 3, 3] = 0
    floats.encoding["_FillValue"] = 0
    assert predict(floats, Handle(task_spec())).toy_task.values[3, 3] != 255


def test_bytes_in_the_other_order_are_the_same_numbers() -> None:
    c, handle = cube(30, 30, missing=0.1), Handle(task_spec())
    xr.testing.assert_equal(predict(c.astype(">i2"), handle).toy_task, predict(c, handle).toy_task)


def test_bad_weights_are_named() -> None:
    class Bad(Positional):
        def forward(self, x: torch.Tensor, time: Any = None, location: Any = None) -> torch.Tensor:
            return super().forward(x) * torch.nan

    with pytest.raises(TaskError, match="answers NaN to finite input; its weights are bad"):
        predict(cube(), Handle(task_spec(), Bad())).compute()


def test_facts_of_frames_that_were_dropped_are_not_told() -> None:
    frames, handle = xgfm.composite(cube(times=4), 2), Handle(task_spec(frames=1))
    assert len(frames_of(predict(frames, handle).attrs)) == 2
    seen = predict(frames.isel(time=[1]), handle).attrs
    assert "frames" not in seen
    assert len(seen["dates"]) == 1


def test_many_dates_in_one_chunk_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from xgfm.infer import kernel

    c, handle = cube(20, 20, times=4, chunks=-1), Handle(task_spec(frames=1))
    whole = predict(c, handle).toy_task.values
    handle.module.seen.clear()
    monkeypatch.setattr(kernel, "_BYTES", 2 * 20 * 20 * 6)
    np.testing.assert_array_equal(predict(c, handle).toy_task.values, whole)
    assert len(handle.module.seen) >= 4


def test_a_float_cube_with_a_numeric_nodata_is_as_good_as_integers() -> None:
    c, handle = cube(30, 30, missing=0.1), Handle(task_spec())
    xr.testing.assert_equal(predict(c.astype("float32"), handle).toy_task, predict(c, handle).toy_task)
