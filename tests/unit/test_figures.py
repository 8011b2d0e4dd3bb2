"""What the pictures show: colours, places, dates, legends."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from dask.callbacks import Callback
from odc.geo.geobox import GeoBox
from results import CLASSES, DEGREES, NORTH, SOUTH, pixels, result

from xgfm.errors import BandError, CubeError, LabelError, MissingExtraError, XgfmError
from xgfm.figures import EMPTY, plot, plot_cube
from xgfm.figures.layout import rows_and_columns
from xgfm.grid import with_grid
from xgfm.palette import COLORS
from xgfm.store.overviews import add_overviews
from xgfm.store.write import to_zarr

matplotlib = pytest.importorskip("matplotlib")


def rgb(color: str) -> tuple[float, ...]:
    return matplotlib.colors.to_rgb(color)


def expected(values: np.ndarray) -> np.ndarray:
    table = {255: rgb(EMPTY), **{i: rgb(c.color) for i, c in enumerate(CLASSES)}}
    return np.array([table[v] for v in values.ravel()]).reshape(*values.shape, 3)


def picture(figure: Any, panel: int = -1) -> np.ndarray:
    return np.asarray(figure.axes[panel].images[0].get_array())


def cube(box: GeoBox = NORTH, times: int = 2, **attrs: Any) -> xr.DataArray:
    values = np.random.default_rng(2).integers(200, 3000, (times, 6, *box.shape)).astype("int16")
    values[0, :, :6, :8] = -9999
    values[1:, 1, 20, 30] = -9999
    array = xr.DataArray(
        da.from_array(values, chunks=(1, 6, 32, 32)),
        dims=("time", "band", "y", "x"),
        coords={
            "time": np.array(["2024-04-03", "2024-07-02", "2024-09-25"], "datetime64[ns]")[:times],
            "band": ["blue", "green", "red", "nir08", "swir16", "swir22"],
        },
        attrs={"nodata": -9999, **attrs},
    )
    return with_grid(array, box)


def test_classes_have_their_colours() -> None:
    np.testing.assert_allclose(picture(plot(result())), expected(pixels(NORTH.shape)))


@pytest.mark.parametrize("masked", [True, False])
def test_a_reopened_store_looks_the_same(tmp_path: Path, masked: bool) -> None:
    opened = xr.open_zarr(to_zarr(result(), tmp_path / "a.zarr"), mask_and_scale=masked)
    np.testing.assert_allclose(picture(plot(opened)), expected(pixels(NORTH.shape)))


def test_legend_names_all_classes_and_nodata() -> None:
    (legend,) = plot(result()).legends
    assert [t.get_text() for t in legend.texts] == [*(c.name for c in CLASSES), "no data"]
    assert [p.get_facecolor()[:3] for p in legend.get_patches()] == [*(rgb(c.color) for c in CLASSES), rgb(EMPTY)]
    (legend,) = plot(result().isel(y=slice(20, None))).legends
    assert [t.get_text() for t in legend.texts] == [c.name for c in CLASSES]


@pytest.mark.parametrize(("box", "unit", "scale"), [(NORTH, "km", 1e-3), (SOUTH, "km", 1e-3), (DEGREES, "°", 1.0)])
def test_axes_say_where_it_is(box: GeoBox, unit: str, scale: float) -> None:
    axis = plot(result(box)).axes[0]
    edges = box.boundingbox
    np.testing.assert_allclose(
        axis.images[0].get_extent(), [scale * e for e in (edges.left, edges.right, edges.bottom, edges.top)]
    )
    assert f"({unit})" in axis.get_xlabel()
    assert f"({unit})" in axis.get_ylabel()
    # A metre east is as long as a metre north.
    middle = (edges.top + edges.bottom) / 2
    assert axis.get_aspect() == pytest.approx(1 if box.crs.projected else 1 / np.cos(np.radians(middle)))


def test_titles_say_when() -> None:
    figure = plot(result(times=2), cube())
    assert [a.get_title() for a in figure.axes] == [
        "2024-04-03",
        "2024-07-02",
        "Crops\n2024-04-03",
        "Crops\n2024-07-02",
    ]
    windows = [{"window": ["2024-04-01", "2024-06-30"]}, {"window": ["2024-07-01", "2024-10-10"]}]
    made = result()
    made.attrs["frames"] = windows
    figure = plot(made, cube(frames=windows))
    assert [a.get_title() for a in figure.axes] == [
        "2024-04-01 to 2024-06-30", "2024-07-01 to 2024-10-10", "Crops\n2024-04-01 to 2024-10-10",
    ]  # fmt: skip
    made.attrs = {"dates": ["2024-05-02T17:00:00"]}
    assert plot(made).axes[0].get_title() == "Crops\n2024-05-02"


def test_frames_are_stretched_alike_between_percentiles() -> None:
    c = cube()
    figure = plot_cube(c)
    values = np.moveaxis(c.sel(band=["red", "green", "blue"]).values.astype(float), 1, -1)
    empty = (values == -9999).any(-1)
    low, high = np.percentile(values[~empty], (2, 98), axis=0)
    for frame in range(2):
        should = np.clip((values[frame] - low) / (high - low), 0, 1)
        should[empty[frame]] = rgb(EMPTY)
        np.testing.assert_allclose(picture(figure, frame), should, atol=1e-5)
    assert tuple(picture(figure, 1)[20, 30]) == pytest.approx(rgb(EMPTY))  # one band is missing there


def test_clouds_do_not_darken_the_land() -> None:
    c = cube(times=1).compute()
    c.values[c.values != -9999] //= 4  # dark land
    clear = picture(plot_cube(c))
    c.values[:, :, 50:] = 7000
    cloudy = picture(plot_cube(c))
    assert cloudy[10:40].mean() > 0.3 * clear[10:40].mean()  # between the percentiles alone, 0.1
    assert (cloudy[50:] == 1).all()


def test_floats_without_data_are_empty_too() -> None:
    c = cube().astype("float32")
    c = c.where(c != -9999)
    np.testing.assert_allclose(picture(plot_cube(c), 0), picture(plot_cube(cube()), 0), atol=1e-4)


def test_nothing_but_nodata() -> None:
    c = cube()
    assert (picture(plot_cube(xr.full_like(c, -9999))) == rgb(EMPTY)).all()


def test_large_rasters_are_strided_in_place() -> None:
    box = GeoBox((701, 903), NORTH.affine, NORTH.crs)
    axis = plot(result(box), pixels=100).axes[0]
    drawn = np.asarray(axis.images[0].get_array())
    assert max(drawn.shape) <= 100
    np.testing.assert_allclose(drawn, expected(pixels(box.shape)[4::10, 4::10]))
    left, right, bottom, top = (1000 * e for e in axis.images[0].get_extent())
    edges = box.boundingbox
    assert (
        max(abs(left - edges.left), abs(right - edges.right), abs(bottom - edges.bottom), abs(top - edges.top)) <= 300
    )


def test_everything_is_computed_in_one_go() -> None:
    class Count(Callback):
        runs = 0

        def _start(self, dsk: object) -> None:
            self.runs += 1

    with Count() as count:
        plot(result(), cube())
    assert count.runs == 1


def test_numbers_have_a_colour_bar_and_one_range() -> None:
    made = result(probability=True)
    series = (
        made.probability.rename({"class": "time"}).drop_vars("time").assign_attrs(long_name="Biomass", units="Mg ha-1")
    )
    figure = plot(series)
    maps, bar = figure.axes[:3], figure.axes[3]
    assert bar.get_ylabel() == "Mg ha-1"
    assert len({a.images[0].get_clim() for a in maps}) == 1
    assert tuple(maps[0].images[0].cmap.get_bad()[:3]) == pytest.approx(rgb(EMPTY))
    shown = np.ma.masked_invalid(maps[1].images[0].get_array())
    np.testing.assert_allclose(shown, np.ma.masked_invalid(made.probability.values[1]))
    assert not figure.legends


def test_probabilities_have_a_picture_for_each_class() -> None:
    made = result(probability=True)
    figure = plot(made, variable="probability")
    titles = [a.get_title() for a in figure.axes[:3]]
    assert titles == [f"probability of each class\n{c.name}" for c in CLASSES]
    for number, axis in enumerate(figure.axes[:3]):
        shown = np.ma.filled(axis.images[0].get_array(), np.nan)
        np.testing.assert_array_equal(shown, made.probability.values[number])
        assert axis.images[0].get_clim() == (0, 1)  # whatever is in the map: two maps can be compared


def test_confidence_is_drawn_from_0_to_1() -> None:
    made = result(probability=True)
    made["confidence"] = made.probability.max("class", keep_attrs=True) * 0.5
    assert plot(made, variable="confidence").axes[0].images[0].get_clim() == (0, 1)


@pytest.mark.parametrize(
    ("count", "shape"), [(1, (1, 1)), (4, (1, 4)), (5, (2, 3)), (8, (2, 4)), (9, (3, 3)), (12, (3, 4))]
)
def test_pictures_leave_few_places_empty(count: int, shape: tuple[int, int]) -> None:
    assert rows_and_columns(count) == shape


def test_classes_without_colours_get_the_palettes() -> None:
    made = result()
    del made.crop_v1_0.attrs["flag_colors"]
    (legend,) = plot(made).legends
    assert [p.get_facecolor()[:3] for p in legend.get_patches()][:3] == [rgb(c) for c in COLORS[:3]]


def test_flags_as_other_tools_write_them() -> None:
    made = result()
    attrs = made.crop_v1_0.attrs
    attrs["flag_values"] = np.array(attrs["flag_values"], "uint8")  # netCDF, too
    del attrs["class_names"]
    (legend,) = plot(made).legends
    assert [t.get_text() for t in legend.texts][:3] == ["natural vegetation", "winter wheat", "open water"]
    np.testing.assert_allclose(picture(plot(made)), expected(pixels(NORTH.shape)))


def test_a_large_store_is_drawn_from_its_overview(tmp_path: Path) -> None:
    box = GeoBox((300, 421), NORTH.affine, NORTH.crs)
    store = to_zarr(result(box, chunks=(128, 128)), tmp_path / "a.zarr", chunk=32)
    add_overviews(store)
    axis = plot(xr.open_zarr(store, decode_coords="all"), pixels=110).axes[0]
    level = xr.open_zarr(store, group="overviews/4", mask_and_scale=False).crop_v1_0
    np.testing.assert_allclose(np.asarray(axis.images[0].get_array()), expected(level.values))
    left, right, _, top = axis.images[0].get_extent()
    edges = box.boundingbox
    assert (left, top) == pytest.approx((edges.left / 1000, edges.top / 1000))
    assert 0 <= right - edges.right / 1000 < 0.12  # the last cell reaches beyond the edge


def test_demonstrations_say_so_in_the_picture() -> None:
    made = result()
    made.crop_v1_0.attrs["comment"] = "demonstration: a map of nothing real"
    assert plot(made).get_supxlabel() == "demonstration: a map of nothing real"


def test_pyplot_holds_no_figures() -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    plot(result())
    assert plt.get_fignums() == before


def test_it_can_be_saved(tmp_path: Path) -> None:
    plot(result(), cube()).savefig(tmp_path / "map.png")
    assert matplotlib.image.imread(tmp_path / "map.png").shape[1] > 600


@pytest.mark.parametrize("shape", [(500, 500), (200, 800), (900, 300)])
@pytest.mark.parametrize("frames", [0, 1, 3])
def test_nothing_is_cut_off(tmp_path: Path, shape: tuple[int, int], frames: int) -> None:
    box = GeoBox(shape, NORTH.affine, NORTH.crs)
    made = result(box)
    made.crop_v1_0.attrs |= {"long_name": "A name of many words " * 4, "comment": "a remark of many words " * 3}
    plot(made, cube(box, times=frames) if frames else None).savefig(tmp_path / "map.png")
    image = matplotlib.image.imread(tmp_path / "map.png")[..., :3]
    assert all((edge == 1).all() for edge in (image[:2], image[-2:], image[:, :2], image[:, -2:]))


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(BandError, match=r"needs bands \['red', 'green', 'blue'\].*missing \['red'\]"):
        plot_cube(cube().sel(band=["blue", "green"]))
    with pytest.raises(CubeError, match=r"expected a cube \(time, band, y, x\)"):
        plot(result(), cube().isel(time=0))
    with pytest.raises(CubeError, match=r"'probability' has dims \('time', 'class', 'y', 'x'\).*result\.isel"):
        plot(result(probability=True).probability.expand_dims("time"))
    for attrs in ({"flag_colors": "#ff0000"}, {"class_names": ["one"]}):
        made = result()
        made.crop_v1_0.attrs |= attrs
        with pytest.raises(LabelError, match=r"3 flag_values, 3 flag_meanings, . class_names and . flag_colors"):
            plot(made)
    with pytest.raises(CubeError, match=r"13 pictures; a figure holds 1 to 12.*isel"):
        plot_cube(xr.concat([cube(times=1)] * 13, "time"))
    with pytest.raises(XgfmError, match="variable='crop'"):
        plot(result(), variable="crop")
    with pytest.raises(CubeError, match=r"'crop_v1_0' has dims \('x',\); a map has y and x"):
        plot(result().isel(y=0))


def test_shares_on_a_climate_grid_are_told_what_draws_them() -> None:
    shares = xr.Dataset({"area_fraction": (("class", "lat", "lon"), np.zeros((2, 3, 4)))})
    with pytest.raises(CubeError, match=r"climate grid.*draw it with xarray") as told:
        plot(shares, variable="area_fraction")
    call = str(told.value).partition("with xarray, ")[2]
    eval(call, {"result": shares})


def test_matplotlib_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(MissingExtraError, match=r'drawing needs matplotlib.*pip install "xgfm\[plot\]"'):
        plot(result())
