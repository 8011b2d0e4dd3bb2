"""NDVI profiles, against pandas on a table of pixels."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from odc.geo.geobox import GeoBox
from results import CLASSES, NORTH, pixels, result

from xgfm.errors import BandError, CubeError, GridError
from xgfm.figures import plot_profiles
from xgfm.figures.profiles import LEAST, profiles
from xgfm.grid import with_grid

pytest.importorskip("matplotlib")

DATES = np.array(["2024-07-02", "2024-04-03", "2024-09-25"], "datetime64[ns]")
"""Not in order, as a cube may have them."""


def cube(box: GeoBox = NORTH, *, floats: bool = False) -> xr.DataArray:
    values = np.random.default_rng(2).integers(50, 4000, (3, 6, *box.shape)).astype("int16")
    values[:, :, 30:33] = -9999
    values[2, 3, 40:50] = -9999
    array = xr.DataArray(
        da.from_array(values, chunks=(1, 6, 32, 32)),
        dims=("time", "band", "y", "x"),
        coords={"time": DATES, "band": ["blue", "green", "red", "nir08", "swir16", "swir22"]},
        attrs={"nodata": -9999},
    )
    if floats:
        array = array.where(array != -9999).astype("float32") * np.float32(1e-4)
        del array.attrs["nodata"]
    return with_grid(array, box)


def table(made: xr.DataArray) -> pd.DataFrame:
    """Return a row for each valid pixel of each date: class, date, NDVI."""
    red, nir = (made.sel(band=b, drop=True).values.astype(float) for b in ("red", "nir08"))
    classes = np.broadcast_to(pixels(NORTH.shape), red.shape)
    dates = np.broadcast_to(DATES[:, None, None], red.shape)
    rows = pd.DataFrame({"class": classes.ravel(), "date": dates.ravel(), "red": red.ravel(), "nir": nir.ravel()})
    rows = rows[(rows["class"] != 255) & (rows["red"] != -9999) & (rows["nir"] != -9999)]
    return rows.assign(ndvi=(rows["nir"] - rows["red"]) / (rows["nir"] + rows["red"]))


@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_quartiles_are_those_of_pandas(floats: bool, masked: bool) -> None:
    made = result()
    if masked:
        made["crop_v1_0"] = made.crop_v1_0.where(made.crop_v1_0 != 255).assign_attrs(made.crop_v1_0.attrs)
    by_date = table(cube()).groupby(["class", "date"])["ndvi"].quantile([0.25, 0.5, 0.75])
    found = profiles(cube(floats=floats), made)
    assert [(p.name, p.color) for p in found] == [(c.name, c.color) for c in CLASSES]
    for number, profile in enumerate(found):
        assert (np.diff(profile.time) > np.timedelta64(0)).all()
        np.testing.assert_allclose(profile.quartiles.T, by_date.loc[number].to_numpy().reshape(-1, 3), atol=1e-5)
        assert profile.pixels == (pixels(NORTH.shape) == number).sum()


def test_dates_with_few_clear_pixels_are_left_out() -> None:
    made, hidden = cube().compute(), pixels(NORTH.shape) == 1
    rows, columns = np.nonzero(hidden & (np.arange(70)[:, None] < 30))
    made.values[0, :, hidden] = -9999
    made.values[0, :, rows[: LEAST - 1], columns[: LEAST - 1]] = 1000
    assert [len(p.time) for p in profiles(made, result())] == [3, 2, 3]
    made.values[0, :, rows[LEAST - 1], columns[LEAST - 1]] = 1000
    assert [len(p.time) for p in profiles(made, result())] == [3, 3, 3]


def test_a_class_without_pixels_has_no_picture() -> None:
    made = result()
    made["crop_v1_0"] = made.crop_v1_0.where(made.crop_v1_0 != 1, 2).assign_attrs(made.crop_v1_0.attrs)
    axes = plot_profiles(cube(), made).axes
    assert [a.get_title().split("\n")[0] for a in axes] == ["Natural Vegetation", "Open Water"]
    with pytest.raises(CubeError, match="no pixel of any class"):
        plot_profiles(cube(), xr.full_like(made, 255))


def test_pictures_show_the_class_before_the_others() -> None:
    figure = plot_profiles(cube(), result())
    found = profiles(cube(), result())
    for axis, own in zip(figure.axes, found, strict=True):
        assert axis.get_title() == f"{own.name}\n{own.pixels:,} pixels"
        *others, line = sorted(axis.lines, key=lambda one: one.get_zorder())
        np.testing.assert_allclose(line.get_ydata(), own.quartiles[1])
        assert line.get_color() == own.color
        assert len(others) == 2
    assert figure.get_supylabel() == "NDVI"


def test_large_cubes_are_strided_alike() -> None:
    made = profiles(cube(), result(), pixels=30)
    assert sum(p.pixels for p in made) == (pixels(NORTH.shape)[1::3, 1::3] != 255).sum()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cube": lambda c: c.sel(band=["red", "green"])}, BandError, r"needs bands \['red', 'nir08'\].*missing"),
        ({"cube": lambda c: c.isel(time=0)}, CubeError, r"expected \(time, band, y, x\)"),
        ({"cube": lambda c: c.isel(x=slice(1, None))}, GridError, r"give the map of this cube"),
        ({"result": lambda r: r.isel(y=slice(0, 60))}, GridError, r"give the map of this cube"),
        ({"result": lambda r: r.crop_v1_0.drop_attrs()}, CubeError, "no flag_values"),
        ({"result": lambda r: result(times=2)}, CubeError, r"need one map \(y, x\), choose with result.isel"),
    ],
)
def test_what_cannot_be_drawn(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"cube": cube(), "result": result()}
    given |= {name: make(given[name]) for name, make in change.items()}
    with pytest.raises(error, match=message):
        plot_profiles(given["cube"], given["result"])
