"""CF metadata of results."""

from __future__ import annotations

import json
import re

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from results import DEGREES, NORTH, pixels, result, spec

from xgfm import cf
from xgfm.cf import Flag, class_flags, flags_of
from xgfm.errors import GridError, LabelError
from xgfm.grid import geobox_of, with_grid
from xgfm.models.spec import ClassInfo


@given(st.lists(st.text(max_size=12), max_size=20))
def test_words_are_legal_and_distinct(names: list[str]) -> None:
    words = cf.flag_words(names)
    assert len(set(words)) == len(words) == len(names)
    # CF 1.11, section 3.5: letters, digits, underscore, hyphen, period, plus, at.
    assert all(re.fullmatch(r"[A-Za-z0-9_\-.+@]+", word) for word in words)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["Winter Wheat", "Corn"], ["winter_wheat", "corn"]),
        (["Developed/Barren", "Not burned (land)"], ["developed_barren", "not_burned_land"]),
        (["Forêt", "水"], ["foret", "class_1"]),
        (["Corn", "corn", "corn 2", "CORN"], ["corn", "corn_2", "corn_2_2", "corn_3"]),
    ],
)
def test_words_stay_readable(names: list[str], words: list[str]) -> None:
    assert cf.flag_words(names) == words


def test_class_attributes_are_json_and_legal() -> None:
    attrs = cf.class_attrs(spec())
    assert json.loads(json.dumps(attrs)) == attrs
    assert attrs["flag_values"] == [0, 1, 2]
    assert attrs["flag_meanings"] == "natural_vegetation winter_wheat open_water"
    assert attrs["flag_colors"] == "#4e8c3b #a87000 #4d70a3"
    assert attrs["class_names"] == ["Natural Vegetation", "Winter Wheat", "Open Water"]
    assert attrs["long_name"] == "Crops"
    # `area_type` is legal only where every class is in CF's table; classes have no units.
    assert not {"standard_name", "units", "_FillValue", "comment"} & set(attrs)


def test_demonstrations_and_regressions_say_so() -> None:
    assert "a map of nothing real" in cf.class_attrs(spec(demonstration=True))["comment"]
    biomass = spec(kind="regression", classes=(), units="Mg ha-1")
    assert cf.class_attrs(biomass) == {"long_name": "Crops", "units": "Mg ha-1"}


def test_variable_name() -> None:
    assert cf.variable_name(spec(name="crop-v1.0")) == "crop_v1_0"


def bare(chunks: int = 32) -> xr.Dataset:
    values = da.from_array(pixels(NORTH.shape), chunks=chunks)
    share = da.zeros((3, *NORTH.shape), dtype="float32", chunks=chunks)
    return xr.Dataset({"crop_v1_0": (("x", "y"), values.T), "confidence": (("y", "x"), share[0]),
                       "probability": (("class", "y", "x"), share)})  # fmt: skip


def cube() -> xr.DataArray:
    values = da.zeros((2, 6, *NORTH.shape), dtype="int16")
    times = np.array(["2024-05-01", "2024-07-01"], "datetime64[ns]")
    return with_grid(xr.DataArray(values, dims=("time", "band", "y", "x"), coords={"time": times}), NORTH)


def test_like_gives_grid_attributes_and_encoding() -> None:
    with dask.config.set(scheduler=refuse):
        out = cf.like(bare(), cube(), spec(), {"task": "crop-v1.0"})
    assert out.crop_v1_0.dims == ("y", "x")
    assert geobox_of(out) == NORTH
    assert out.attrs == {"title": "Crops", "task": "crop-v1.0", "Conventions": "CF-1.11"}
    assert out.crop_v1_0.encoding == {"_FillValue": 255, "fill_value": 255, "grid_mapping": "spatial_ref"}
    assert np.isnan(out.confidence.encoding["_FillValue"])
    assert np.isnan(out.confidence.encoding["fill_value"])
    assert out.crop_v1_0.attrs["ancillary_variables"] == "probability confidence"
    assert out.confidence.attrs == {"long_name": "probability of the mapped class", "units": "1"}
    assert out.x.attrs == {
        "standard_name": "projection_x_coordinate",
        "long_name": "x coordinate of projection",
        "units": "m",
        "axis": "X",
    }
    assert out.y.encoding == {"_FillValue": None}
    assert out["class"].values.tolist() == [0, 1, 2]
    assert out["class"].attrs["flag_meanings"] == "natural_vegetation winter_wheat open_water"
    assert isinstance(out.crop_v1_0.data, da.Array)


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("computed")


def test_like_leaves_its_arguments_alone() -> None:
    given_result, given_cube = bare(), cube()
    before = given_result.copy(deep=True), given_cube.copy(deep=True)
    cf.like(given_result, given_cube, spec(), {"task": "t"})
    for now, then in zip((given_result, given_cube), before, strict=True):
        assert now.identical(then)
    assert given_result.crop_v1_0.encoding == {}
    assert given_cube.y.encoding == {}


def test_like_takes_times_from_the_cube() -> None:
    series = xr.Dataset({"crop_v1_0": (("time", "y", "x"), pixels((2, *NORTH.shape)))})
    given_cube = cube()
    out = cf.like(series, given_cube, spec())
    assert out.time.equals(given_cube.time)
    assert out.time.attrs == {"standard_name": "time", "long_name": "time", "axis": "T"}
    assert given_cube.time.attrs == {}


def test_like_without_a_task_keeps_attributes() -> None:
    embedding = xr.Dataset(
        {"embedding": (("feature", "y", "x"), np.zeros((4, *NORTH.shape), "float32"), {"units": "1"})}
    )
    out = cf.like(embedding, cube())
    assert out.embedding.attrs == {"units": "1"}
    assert out.embedding.encoding["grid_mapping"] == "spatial_ref"


def test_geographic_coordinates_are_longitude_and_latitude() -> None:
    out = result(DEGREES)
    assert (out.x.attrs["standard_name"], out.y.attrs["units"]) == ("longitude", "degrees_north")


def test_a_grid_is_needed_and_has_to_fit() -> None:
    with pytest.raises(GridError, match=r"lacks the coordinates \['spatial_ref'\].*with_grid"):
        cf.like(bare(), cube().drop_vars("spatial_ref"), spec())
    with pytest.raises(GridError, match=r"\(69, 90\) does not lie on a grid of \(70, 90\)"):
        cf.like(bare().isel(y=slice(1, None)), cube(), spec())


def test_classes_are_all_there() -> None:
    many = spec(classes=tuple(ClassInfo(f"class {i}", "#000000") for i in range(255)))
    assert cf.class_attrs(many)["flag_values"] == list(range(255))  # 255 is free for nodata


def test_flags_are_read_as_they_were_written() -> None:
    classes = [ClassInfo("Winter wheat", "#aa0000"), ClassInfo("Étang", "#0000aa")]
    layer = xr.DataArray(np.zeros((2, 2), "uint8"), dims=("y", "x"), attrs=class_flags(classes))
    assert flags_of(layer) == (
        Flag(0, "winter_wheat", "Winter wheat", "#aa0000"),
        Flag(1, "etang", "Étang", "#0000aa"),
    )


def test_flags_of_others_are_read_with_colours_of_the_palette() -> None:
    attrs = {"flag_values": np.array([3, 255, 7], "uint8"), "flag_meanings": "open_water unknown burnt"}
    first, second = flags_of(xr.DataArray(0, attrs=attrs))
    assert (first.number, first.name, second.number, second.name) == (3, "open water", 7, "burnt")
    assert first.color != second.color
    assert flags_of(xr.DataArray(0)) == ()


@pytest.mark.parametrize(
    "attrs",
    [
        {"flag_values": [0, 1], "flag_meanings": "corn"},
        {"flag_values": [0, 1], "flag_meanings": "corn wheat", "flag_colors": "#000000"},
        {"flag_values": [0, 1], "flag_meanings": "corn wheat", "class_names": ["corn"]},
        {"flag_values": [1, 1], "flag_meanings": "corn wheat"},
        {"flag_values": [0, 256], "flag_meanings": "corn wheat"},
        {"flag_values": [0, 255], "flag_meanings": "corn wheat"},
    ],
)
def test_flags_that_do_not_fit_are_refused(attrs: dict[str, object]) -> None:
    with pytest.raises(LabelError, match="flag_values"):
        flags_of(xr.DataArray(0, name="map", attrs=attrs))
