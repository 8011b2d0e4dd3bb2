"""Class fractions on a climate grid, against exactextract, CDO and what pixels add up to."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import shapely
import xarray as xr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from results import DEGREES, NORTH, result, spec
from xarray.backends.zarr import ZarrArrayWrapper

from xgfm import cf
from xgfm.climate.cells import Partial, merged
from xgfm.climate.fractions import cell_sums, computed, to_climate
from xgfm.climate.inputs import RECORDS, WHOLE
from xgfm.climate.sums import CellSums
from xgfm.errors import CubeError, GridError, LabelError, XgfmError
from xgfm.grid import tile_geobox, with_grid
from xgfm.jobs.finish import ITEM
from xgfm.jobs.job import FOLDER
from xgfm.store.ledger import Entry, Ledger
from xgfm.store.objects import Objects
from xgfm.store.write import to_zarr

BOXES = {"utm": tile_geobox("15TVM")[:900, :1000], "north": tile_geobox("33XWH")[:700, :700], "degrees": DEGREES}


def class_map(
    box: GeoBox, *, seed: int = 0, side: int = 7, classes: int = 3, chunks: Any = (256, 256), share: bool = False
) -> xr.Dataset:
    """Return fields of random classes with a twentieth of them missing, and probabilities that go with them."""
    rng = np.random.default_rng(seed)
    rows, columns = box.shape
    fields = rng.integers(0, classes, (rows // side + 1, columns // side + 1)).astype("uint8")
    fields[rng.random(fields.shape) < 0.05] = 255
    codes = fields.repeat(side, 0).repeat(side, 1)[:rows, :columns]
    dataset = xr.Dataset({"crop_v1_0": (("y", "x"), da.from_array(codes, chunks=chunks))})
    if share:
        raw = rng.random((classes, rows, columns)).astype("float32") + (codes == np.arange(classes)[:, None, None])
        raw /= raw.sum(axis=0)
        raw[:, codes == 255] = np.nan
        dataset["probability"] = (("class", "y", "x"), da.from_array(raw, chunks=(classes, *chunks)))
    gridded = with_grid(dataset, box)
    return cf.like(gridded, gridded, spec(), {"dates": ["2024-04-03", "2024-09-25"]})


def sums_of(*args: Any, **kwargs: Any) -> CellSums:
    return computed(cell_sums(*args, **kwargs))


def outlines(sums: CellSums, box: GeoBox) -> list[shapely.Polygon]:
    """Return the outline of every cell in the CRS of a map, straight to far less than a pixel."""
    to = Transformer.from_crs("EPSG:4326", str(box.crs), always_xy=True)
    found = []
    for south, north in sums.grid.lat_bounds:
        for west, east in sums.grid.lon_bounds:
            cell = shapely.segmentize(shapely.box(west, south, east, north), (east - west) / 64)
            found.append(shapely.transform(cell, lambda c: np.stack(to.transform(c[:, 0], c[:, 1]), axis=1)))
    return found


@pytest.mark.parametrize(
    ("name", "grid"), [("utm", "0.05deg"), ("north", "0.1deg"), ("degrees", "0.01deg"), ("utm", "0.02deg")]
)
def test_fractions_are_those_of_exactextract(name: str, grid: str, tmp_path: Path) -> None:
    geopandas, exactextract = pytest.importorskip("geopandas"), pytest.importorskip("exactextract")
    rasterio = pytest.importorskip("rasterio")
    box = BOXES[name]
    made = class_map(box).load()
    sums = sums_of(made, grid)
    path = tmp_path / "map.tif"
    profile = {"driver": "GTiff", "width": box.shape[1], "height": box.shape[0], "count": 1, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile, nodata=255, crs=str(box.crs), transform=box.transform) as file:
        file.write(made["crop_v1_0"].values, 1)
    cells = geopandas.GeoDataFrame({"cell": range(sums.cell_area.size)}, geometry=outlines(sums, box), crs=str(box.crs))
    table = exactextract.exact_extract(
        str(path), cells, ["count", "unique", "frac"], include_cols=["cell"], output="pandas"
    )
    count, fraction = np.zeros(len(cells)), np.zeros((3, len(cells)))
    for row in table.itertuples():
        count[row.cell] = row.count
        fraction[np.asarray(row.unique, int), row.cell] = row.frac
    found = sums.count.sum(axis=(0, 1)).ravel()
    assert found.sum() == (made["crop_v1_0"].values != 255).sum()
    assert count.sum() == pytest.approx(found.sum(), rel=1e-6)
    wrong = np.abs(sums.count[:, 0].reshape(3, -1) / np.where(found > 0, found, np.nan) - fraction).max(axis=0)
    covered = (sums.seen_area / sums.cell_area).ravel()
    interior, edge = covered > 0.99, (covered > 0.01) & (covered <= 0.99)
    assert interior.any()
    assert edge.any()
    assert wrong[interior].max() <= 5e-4
    assert wrong[edge].max() <= 5e-3


@pytest.mark.skipif(shutil.which("cdo") is None, reason="needs CDO: apt-get install cdo")
def test_fractions_are_those_of_conservative_remapping(tmp_path: Path) -> None:
    box = tile_geobox("15TVM")[:280, :280]
    made = class_map(box, side=20).load()
    made["crop_v1_0"] = made["crop_v1_0"].where(made["crop_v1_0"] != 255, 0).assign_attrs(made["crop_v1_0"].attrs)
    sums = sums_of(made, "0.01deg")
    to = Transformer.from_crs(str(box.crs), "EPSG:4326", always_xy=True)
    c, r = np.meshgrid(np.arange(281.0), np.arange(281.0))
    lon, lat = to.transform(*(box.transform * (c, r)))
    places = ((1, 0), (1, 1), (0, 1), (0, 0))
    corner = {
        n: np.stack([v[i : i + 280, j : j + 280] for i, j in places], axis=-1) for n, v in (("lon", lon), ("lat", lat))
    }
    middle = to.transform(*(box.transform * (c[:-1, :-1] + 0.5, r[:-1, :-1] + 0.5)))
    units = {"lon": "degrees_east", "lat": "degrees_north"}
    source = xr.Dataset(
        {
            f"c{k}": (("j", "i"), (made["crop_v1_0"].values == k).astype("float64"), {"coordinates": "lon lat"})
            for k in range(3)
        }
    )
    for name, values in zip(("lon", "lat"), middle, strict=True):
        source[name] = (("j", "i"), values, {"units": units[name], "bounds": f"{name}_bnds"})
        source[f"{name}_bnds"] = (("j", "i", "four"), corner[name])
    source = source.set_coords(["lon", "lat"])
    source.to_netcdf(tmp_path / "in.nc", encoding={str(n): {"_FillValue": None} for n in source.variables})
    grid = sums.grid
    (tmp_path / "grid").write_text(
        f"gridtype=lonlat\nxsize={grid.shape[1]}\nysize={grid.shape[0]}\nxfirst={grid.lon[0]:.6f}\nxinc=0.01\n"
        f"yfirst={grid.lat[0]:.6f}\nyinc=0.01\n"
    )
    command = ["cdo", "-s", f"remapcon,{tmp_path / 'grid'}", str(tmp_path / "in.nc"), str(tmp_path / "out.nc")]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    with xr.open_dataset(tmp_path / "out.nc") as remapped:
        expected = np.stack([remapped[f"c{k}"].values for k in range(3)])
    whole = (sums.seen_area[0] / sums.cell_area) > 0.995
    assert whole.sum() > 20
    np.testing.assert_allclose((sums.area / sums.valid_area)[:, 0][:, whole], expected[:, whole], atol=2e-3)


@settings(max_examples=12, deadline=None)
@given(
    st.integers(20, 130), st.integers(20, 130), st.sampled_from([NORTH, DEGREES]), st.booleans(), st.integers(0, 99)
)  # fmt: skip
def test_sums_do_not_depend_on_chunks(rows: int, columns: int, box: GeoBox, share: bool, seed: int) -> None:
    whole = sums_of(class_map(box, seed=seed, chunks=box.shape, share=share), "0.01deg")
    cut = sums_of(class_map(box, seed=seed, chunks=(rows, columns), share=share), "0.01deg")
    np.testing.assert_array_equal(cut.count, whole.count)
    names = ["area", "valid_area", "seen_area", *(["probability"] if share else [])]
    for name in names:
        np.testing.assert_allclose(getattr(cut, name), getattr(whole, name), rtol=1e-9, atol=1e-3, err_msg=name)


@given(st.data())
def test_partials_add_up_in_any_order_and_grouping(data: st.DataObject) -> None:
    cells = data.draw(st.lists(st.lists(st.integers(0, 30), max_size=8, unique=True), min_size=1, max_size=8))
    rng = np.random.default_rng(0)
    partials = [Partial(np.sort(np.array(c, "int64")), rng.integers(0, 99, (len(c), 3)) * 1.0) for c in cells]
    expected = np.zeros((31, 3))
    for partial in partials:
        expected[partial.cells] += partial.sums
    shuffled = [partials[i] for i in data.draw(st.permutations(range(len(partials))))]
    cut = data.draw(st.integers(1, len(shuffled)))
    both = [merged(part) for part in (shuffled[:cut], shuffled[cut:]) if part]
    found = merged(both)
    assert (np.diff(found.cells) > 0).all()
    dense = np.zeros((31, 3))
    dense[found.cells] = found.sums
    np.testing.assert_array_equal(dense, expected)


def test_sums_are_what_pixels_add_up_to() -> None:
    made = class_map(BOXES["utm"], share=True).load()
    sums = sums_of(made, "0.05deg")
    codes, share = made["crop_v1_0"].values, made["probability"].values
    for number in range(3):
        assert sums.count[number].sum() == (codes == number).sum()
    # Areal scale of UTM between 0.9992 and 1.
    np.testing.assert_allclose(sums.area.sum((1, 2, 3)), sums.count.sum((1, 2, 3)) * 900.6, rtol=2e-4)
    np.testing.assert_allclose(sums.valid_area, sums.area.sum(axis=0))
    assert sums.seen_area.sum() == pytest.approx(900.6 * codes.size, rel=2e-4)
    assert sums.probability is not None
    expected = np.nansum(share, axis=(1, 2))
    np.testing.assert_allclose(sums.probability.sum((1, 2, 3)) / 900.6, expected, rtol=2e-4)
    np.testing.assert_allclose(sums.probability.sum(axis=0), sums.valid_area, rtol=1e-6)
    assert (sums.seen_area <= sums.cell_area * 1.001).all()
    assert np.abs(sums.seen_area / sums.cell_area - 1).min() < 3e-4


@pytest.mark.parametrize("grid", ["1deg", GeoBox((60, 60), Affine(5000, 0, -50_000, 0, -5000, 2_800_000), "EPSG:5070")])
def test_cells_of_any_grid_hold_the_same_total(grid: Any) -> None:
    made = class_map(BOXES["utm"])
    fine, other = sums_of(made, "0.05deg"), sums_of(made, grid)
    np.testing.assert_allclose(other.area.sum((1, 2, 3)), fine.area.sum((1, 2, 3)), rtol=1e-9)
    np.testing.assert_array_equal(other.count.sum((1, 2, 3)), fine.count.sum((1, 2, 3)))
    assert other.area.shape[-2:] == other.grid.shape


@pytest.mark.parametrize("degrees", [0.0, 180.0])
def test_map_around_the_globe_counts_all_of_it(degrees: float) -> None:
    box = GeoBox((180, 360), Affine(1, 0, degrees - 180, 0, -1, 90), "EPSG:4326")
    sums = sums_of(class_map(box, side=9), "6deg")
    np.testing.assert_allclose(sums.seen_area[0], sums.cell_area, rtol=1e-4)


def test_maps_around_a_pole_and_across_the_dateline_count_all_of_it() -> None:
    polar = GeoBox((400, 400), Affine(1000, 0, -200_000, 0, -1000, 200_000), "EPSG:3995")
    for box, grid in (
        (polar, "1deg"),
        (GeoBox((400, 400), Affine(30, 0, 494_000, 0, -30, 4e6), "+proj=tmerc +lon_0=180 +x_0=500000"), "0.05deg"),
    ):
        made = class_map(box, side=20)
        sums = sums_of(made, grid)
        assert sums.count.sum() == pytest.approx((made["crop_v1_0"].values != 255).sum(), rel=1e-9)
    west, east = sums.seen_area[0, :, sums.grid.lon < 180].sum(), sums.seen_area[0, :, sums.grid.lon > 180].sum()
    assert west == pytest.approx(east, rel=0.01)


def test_nothing_is_read_until_it_is_computed() -> None:
    def refuse(block: np.ndarray) -> np.ndarray:
        raise AssertionError("read")

    made = class_map(NORTH, share=True)
    made = made.copy(data={n: v.data.map_blocks(refuse, dtype=v.dtype, meta=v.data._meta) for n, v in made.items()})
    fractions = to_climate(made, "0.05deg")
    assert dask.is_dask_collection(fractions["area_fraction"].data)
    with pytest.raises(AssertionError, match="read"):
        fractions.compute()


def test_graph_is_small() -> None:
    box = GeoBox((36_600, 36_600), BOXES["utm"].transform, BOXES["utm"].crs)
    lazy = da.zeros((36_600, 36_600), dtype="uint8", chunks=1024)
    made = with_grid(xr.Dataset({"crop_v1_0": (("y", "x"), lazy)}), box)
    made = cf.like(made, made, spec())
    sums = cell_sums(made, "0.05deg")
    graph = dict(sums.area.__dask_graph__())
    assert len(graph) < 4 * 36 * 36
    assert len(pickle.dumps(cell_sums(made, "0.05deg").seen_area.__dask_graph__())) < 2_000_000


@pytest.fixture(params=["masked", "unmasked"])
def reopened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[xr.Dataset, xr.Dataset]]:
    """A map, and the same from a store."""
    made = class_map(NORTH, share=True)
    to_zarr(made, tmp_path / "map.zarr")
    with xr.open_zarr(tmp_path / "map.zarr", mask_and_scale=request.param == "masked") as opened:
        yield made, opened


def test_stores_give_what_the_result_gave(reopened: tuple[xr.Dataset, xr.Dataset]) -> None:
    made, opened = reopened
    expected, found = sums_of(made, "0.02deg"), sums_of(opened, "0.02deg")
    assert found.classes == expected.classes == ("Natural Vegetation", "Winter Wheat", "Open Water")
    assert found.colors == expected.colors
    np.testing.assert_array_equal(found.count, expected.count)
    np.testing.assert_allclose(found.area, expected.area, rtol=1e-9)
    np.testing.assert_array_equal(found.times, expected.times)


def test_path_of_a_store_is_as_good(tmp_path: Path) -> None:
    made = class_map(NORTH)
    to_zarr(made, tmp_path / "map.zarr")
    for path in (tmp_path / "map.zarr", str(tmp_path / "map.zarr")):
        np.testing.assert_array_equal(sums_of(path).count, sums_of(made).count)


def test_place_without_a_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file.zarr").write_text("no store")
    (tmp_path / "folder.zarr").mkdir()
    for name in ("nothere", "file", "folder"):
        with pytest.raises(CubeError, match=rf"no Zarr store at '.*{name}\.zarr'; give the path"):
            to_climate(tmp_path / f"{name}.zarr")


def test_variable_alone_says_that_its_time_is_not_known() -> None:
    made = class_map(NORTH)
    with pytest.warns(UserWarning, match=r"says no time.*Dataset, with variable='crop_v1_0'"):
        alone = to_climate(made["crop_v1_0"])
    assert "time" not in alone.coords
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert "time" in to_climate(made, variable="crop_v1_0").coords


def test_one_of_several_maps_is_named() -> None:
    made = class_map(NORTH, share=True)
    other = (made["crop_v1_0"] * 0).assign_attrs(made["crop_v1_0"].attrs, ancillary_variables="")
    both = made.assign(other=other.astype("uint8", keep_attrs=True))
    with pytest.raises(XgfmError, match="variable=None"):
        to_climate(both)
    with pytest.raises(XgfmError, match="variable='third'"):
        to_climate(both, variable="third")
    xr.testing.assert_identical(to_climate(both, variable="crop_v1_0").compute(), to_climate(made).compute())
    flat = to_climate(both, variable="other").compute()
    assert flat["area_fraction"].isel({"class": 0}).max() == flat["area_fraction"].isel({"class": 0}).min() == 1
    assert "soft_area_fraction" not in flat  # the probability is the first map's


def test_store_of_a_job_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "map.zarr"
    to_zarr(class_map(NORTH), path)
    records = Objects(f"{path}.job")
    Ledger(records).record(Entry("map-r0000-c0000", "done"))
    for source in (path, str(path), xr.open_zarr(path), [path]):
        with pytest.raises(CubeError, match=r"not finished: 1 blocks are done and 0 failed.*allow='unfinished'"):
            to_climate(source)
    assert to_climate(path, allow="unfinished")["number_of_observations"].sum() > 0
    records.put("item.json", json.dumps({}).encode())
    assert to_climate(path)["number_of_observations"].sum() > 0
    assert (RECORDS, WHOLE) == (FOLDER, ITEM)  # what jobs write


def test_255_is_no_class_even_where_flags_name_it() -> None:
    made = class_map(NORTH).load()
    attrs = made["crop_v1_0"].attrs
    flags = {
        "flag_values": [*attrs["flag_values"], 255],
        "flag_meanings": attrs["flag_meanings"] + " nodata",
        "class_names": [*attrs["class_names"], "No data"],
        "flag_colors": attrs["flag_colors"] + " #000000",
    }
    expected = sums_of(made)
    made["crop_v1_0"].attrs.update(flags)
    found = sums_of(made)
    assert found.classes == expected.classes
    np.testing.assert_array_equal(found.count, expected.count)


def test_times_of_a_series_are_kept_apart() -> None:
    series = result(times=3)
    sums = sums_of(series, "0.05deg")
    assert sums.area.shape[:2] == (3, 3)
    np.testing.assert_array_equal(sums.times, series["time"].values)
    for time in range(3):
        alone = sums_of(series.isel(time=[time]), "0.05deg")
        np.testing.assert_array_equal(sums.count[:, time], alone.count[:, 0])


def test_time_of_a_map_is_between_its_first_and_last_date() -> None:
    sums = cell_sums(class_map(NORTH))
    assert [str(t)[:10] for t in sums.time_bounds[0]] == ["2024-04-03", "2024-09-26"]  # the last day ends
    assert sums.time_bounds[0, 0] < sums.times[0] < sums.time_bounds[0, 1]


@pytest.mark.parametrize("what", ["logits", "halved", "negative", "missing"])
def test_probabilities_that_are_none_are_refused_by_name(what: str) -> None:
    made = class_map(NORTH, share=True).load()
    share = made["probability"]
    wrong = {
        "logits": np.log(share),
        "halved": share / 2,
        "negative": share + xr.DataArray([-0.9, 0.9, 0], dims="class"),
        "missing": share.where(made["crop_v1_0"] != 1),
    }
    broken = made.assign(probability=wrong[what].transpose("class", "y", "x"))
    with pytest.raises(CubeError, match=r"'probability' of the map.*add up to one"):
        sums_of(broken)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda m: m.drop_vars("spatial_ref"), GridError, "no CRS"),
        (lambda m: m.assign(crop_v1_0=m.crop_v1_0.assign_attrs(flag_values=[])), LabelError, "0 flag_values"),
        (lambda m: m.assign(crop_v1_0=m.crop_v1_0.assign_attrs(flag_values=[0, 1, 1])), LabelError, "distinct"),
        (lambda m: m.rename(y="row"), GridError, "'y'"),
        (lambda m: m.expand_dims("band"), CubeError, "dims"),
        (lambda m: m.drop_vars("class").isel({"class": [0, 1]}), CubeError, "probability has"),
    ],
)
def test_what_is_no_map_is_refused_before_it_is_read(change: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        to_climate(change(class_map(NORTH, share=True)), "0.05deg")


def test_codes_that_are_no_class_are_refused() -> None:
    made = class_map(NORTH, classes=5)
    with pytest.raises(LabelError, match=r"holds code [34], which its flag_values \[0, 1, 2\] do not name"):
        sums_of(made)
    for wrong in (0.5, 300.0):
        broken = made.assign(crop_v1_0=(made["crop_v1_0"] * 0 + wrong).assign_attrs(made["crop_v1_0"].attrs))
        with pytest.raises(LabelError, match="class code"):
            sums_of(broken)


def test_cells_smaller_than_pixels_are_refused() -> None:
    with pytest.raises(GridError, match="coarser grid="):
        to_climate(class_map(NORTH), GeoBox((999, 999), Affine(20, 0, 399_960, 0, -20, 4_900_020), "EPSG:32615"))


def test_unknown_permission_is_refused() -> None:
    with pytest.raises(CubeError, match="expected 'unfinished'"):
        to_climate(class_map(NORTH), allow="everything")


def test_maps_of_other_classes_are_refused() -> None:
    one, other = (
        class_map(NORTH),
        class_map(GeoBox(NORTH.shape, NORTH.transform * Affine.translation(500, 0), NORTH.crs)),
    )
    other["crop_v1_0"].attrs["class_names"] = ["a", "b", "c"]
    with pytest.raises(LabelError, match="different classes"):
        to_climate([one, other])


def test_standard_error_is_how_far_mapped_fractions_are_from_the_truth() -> None:
    """Mistakes of a map go together in patches; z of the mapped fraction must have about unit variance all the same."""
    found, naive = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        box = GeoBox((800, 800), Affine(300, 0, 320_000, 0, -300, 4_900_020), "EPSG:32615")
        truth = rng.integers(0, 2, (80, 80)).repeat(10, 0).repeat(10, 1)
        wrong = (rng.random((32, 32)) < 0.2).repeat(25, 0).repeat(25, 1) & (rng.random(truth.shape) < 0.7)
        codes = np.where(wrong, 1 - truth, truth).astype("uint8")
        made = with_grid(xr.Dataset({"crop_v1_0": (("y", "x"), codes)}), box)
        made = cf.like(made, made, spec())
        sums, true = (sums_of(m, "0.1deg") for m in (made, made.assign(crop_v1_0=made.crop_v1_0.copy(data=truth))))
        rows, columns = rng.integers(0, 800, (2, 3000))
        lon, lat = Transformer.from_crs(str(box.crs), "EPSG:4326", always_xy=True).transform(
            made["x"].values[columns], made["y"].values[rows]
        )
        sample = pd.DataFrame({"lon": lon, "lat": lat, "code": codes[rows, columns], "reference": truth[rows, columns]})
        made_of = to_climate(made, "0.1deg", sample=sample)
        name = next(n for n in made_of.data_vars if "standard_error" in str(n))
        error = made_of[name].values.reshape(sums.area.shape)
        inside = (sums.seen_area / sums.cell_area)[0] > 0.99
        miss = ((sums.area - true.area)[0, 0] / sums.cell_area)[inside]
        found.append(np.mean((miss / error[0, 0][inside]) ** 2))
        pixels = sums.count.sum(0)[0][inside]
        naive.append(np.mean(miss**2 / (0.25 / pixels)))
    assert 0.6 < np.mean(found) < 1.5
    assert np.mean(naive) > 5  # what independent pixels would promise


def test_sample_that_says_nothing_of_cells_is_refused() -> None:
    made = class_map(NORTH).load()
    table = pd.DataFrame({"lon": [-94.24] * 9, "lat": [44.24] * 9, "code": [0, 1, 2] * 3, "reference": [0, 1, 2] * 3})
    with pytest.raises(LabelError, match="100 are needed"):
        to_climate(made, sample=table)
    with pytest.raises(LabelError, match=r"lacks the columns \['reference'\]"):
        to_climate(made, sample=table.drop(columns="reference"))
    with pytest.raises(LabelError, match="expected classes of the map"):
        to_climate(made, sample=table.assign(reference=9))
    with pytest.raises(LabelError, match="off the map"):
        to_climate(made, sample=table.assign(lon=0.0))
    with pytest.raises(LabelError, match="fewer than two places"):
        to_climate(made, sample=table.iloc[:4])


def test_stores_are_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened without Dask too: adding a dimension would read such a map."""
    to_zarr(class_map(BOXES["utm"], share=True), tmp_path / "map.zarr")
    opened = xr.open_zarr(tmp_path / "map.zarr", chunks=None, mask_and_scale=False)

    read = ZarrArrayWrapper._getitem

    def refuse(wrapper: ZarrArrayWrapper, key: tuple[Any, ...]) -> Any:
        assert len(key) < 2, "a map is read"
        return read(wrapper, key)

    monkeypatch.setattr(ZarrArrayWrapper, "_getitem", refuse)
    assert cell_sums(opened).area.ndim == 4
    assert cell_sums(tmp_path / "map.zarr").area.ndim == 4
