"""Zarr stores as other people's readers see them."""

from __future__ import annotations

import json
import traceback
import warnings
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import rasterio
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from results import DEGREES, NORTH, SOUTH, pixels, result

from xgfm import cf
from xgfm.errors import GridError, ReadError, WriteError
from xgfm.grid import with_grid
from xgfm.store import write
from xgfm.store.layout import _split, prepared
from xgfm.store.write import to_cog, to_zarr

GRIDS = {"north": NORTH, "south": SOUTH, "degrees": DEGREES}


def read_xarray(store: Path) -> tuple[Any, Any, Any]:
    """The georeference as plain CF: the WKT of the named grid mapping, and pixel centres."""
    dataset = xr.open_dataset(store, engine="zarr", decode_coords="all")
    array = dataset.crop_v1_0
    x, y = array.x.values, array.y.values
    step_x, step_y = x[1] - x[0], y[1] - y[0]
    affine = rasterio.Affine(step_x, 0, x[0] - step_x / 2, 0, step_y, y[0] - step_y / 2)
    wkt = dataset.coords[array.encoding["grid_mapping"]].attrs["crs_wkt"]
    return wkt, affine, array.encoding["_FillValue"]


def read_rioxarray(store: Path) -> tuple[Any, Any, Any]:
    pytest.importorskip("rioxarray")
    array = xr.open_zarr(store, decode_coords="all").crop_v1_0
    return array.rio.crs, array.rio.transform(), array.rio.encoded_nodata


def read_odc(store: Path) -> tuple[Any, Any, Any]:
    import odc.geo.xr  # noqa: F401

    dataset = xr.open_zarr(store, mask_and_scale=False)
    return dataset.odc.crs.to_wkt(), dataset.odc.geobox.affine, dataset.crop_v1_0.odc.nodata


READERS = {"xarray": read_xarray, "rioxarray": read_rioxarray, "odc-geo": read_odc}


def check(store: Path, reader: str, box: GeoBox) -> None:
    crs, affine, nodata = READERS[reader](store)
    assert rasterio.crs.CRS.from_user_input(crs) == rasterio.crs.CRS.from_epsg(box.crs.epsg)
    assert tuple(affine)[:6] == pytest.approx(tuple(box.affine)[:6], rel=1e-12)
    assert nodata == 255


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    folder = tmp_path_factory.mktemp("stores")
    made = {}
    for grid, box in GRIDS.items():
        made[grid, "gfm"] = Path(to_zarr(result(box, probability=True), folder / f"{grid}.zarr"))
        made[grid, "plain"] = folder / f"{grid}-plain.zarr"
        result(box, probability=True).to_zarr(made[grid, "plain"], zarr_format=3, consolidated=True)
    return made


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("writer", ["gfm", "plain"])
def test_every_reader_finds_crs_transform_and_nodata(
    stores: dict[tuple[str, str], Path], writer: str, grid: str, reader: str
) -> None:
    check(stores[grid, writer], reader, GRIDS[grid])


@pytest.mark.parametrize("reader", READERS)
def test_real_chip_keeps_its_georeference(shared_data: Path, tmp_path: Path, reader: str) -> None:
    with rasterio.open(shared_data / "hls" / "chips" / "agb_L30_int16" / "B02.tif") as chip:
        box = GeoBox(chip.shape, chip.transform, chip.crs.to_wkt())
        assert (chip.transform.c, chip.transform.f) == (440_280, 3_159_720)
    store = Path(to_zarr(result(box), tmp_path / "chip.zarr"))
    check(store, reader, GeoBox(box.shape, box.affine, "EPSG:32614"))


@pytest.mark.parametrize("writer", ["gfm", "plain"])
def test_class_maps_come_back_as_they_went(stores: dict[tuple[str, str], Path], writer: str) -> None:
    back = xr.open_zarr(stores["north", writer], mask_and_scale=False)
    assert back.crop_v1_0.dtype == "uint8"
    np.testing.assert_array_equal(back.crop_v1_0, pixels(NORTH.shape))
    assert back.crop_v1_0.attrs["flag_meanings"] == "natural_vegetation winter_wheat open_water"
    assert back.attrs["task"] == "crop-v1.0"
    assert back.attrs["Conventions"] == "CF-1.11"
    masked = xr.open_zarr(stores["north", writer], decode_coords="all").crop_v1_0
    assert bool((masked.isnull() == (pixels(NORTH.shape) == 255)).all())


@pytest.mark.parametrize("writer", ["gfm", "plain"])
def test_array_fill_value_agrees_with_cf(stores: dict[tuple[str, str], Path], writer: str) -> None:
    group = zarr.open_group(stores["south", writer], mode="r")
    assert group["crop_v1_0"].fill_value == 255  # what GDAL reads
    assert group["crop_v1_0"].attrs["_FillValue"] == 255
    assert np.isnan(group["probability"].fill_value)
    assert not any("_FillValue" in group[name].attrs for name in ("y", "x", "class", "spatial_ref"))


def test_zarr_conventions_are_valid(stores: dict[tuple[str, str], Path]) -> None:
    zarr_cm = pytest.importorskip("zarr_cm")
    for grid, box in GRIDS.items():
        for name in ("crop_v1_0", "probability"):
            node = json.loads((stores[grid, "gfm"] / name / "zarr.json").read_text())
            zarr_cm.proj.validate_array_metadata(node)
            zarr_cm.spatial.validate_array_metadata(node)
            found = node["attributes"]
            assert {c["uuid"] for c in found["zarr_conventions"]} == {zarr_cm.proj.UUID, zarr_cm.spatial.UUID}
            assert found["proj:code"] == f"EPSG:{box.crs.epsg}"
            assert found["spatial:transform"] == pytest.approx(list(box.affine)[:6])
            assert found["spatial:dimensions"] == node["dimension_names"][-2:]
            assert found["spatial:shape"] == node["shape"][-2:]
            assert found["spatial:bbox"] == pytest.approx(list(box.boundingbox.bbox))


def test_a_crs_without_a_code_is_written_as_wkt2(tmp_path: Path) -> None:
    zarr_cm = pytest.importorskip("zarr_cm")
    albers = "+proj=aea +lat_1=29.5 +lat_2=45.5 +lat_0=23 +lon_0=-96 +datum=WGS84 +units=m"
    store = to_zarr(result(GeoBox(NORTH.shape, NORTH.affine, albers)), tmp_path / "a.zarr")
    node = json.loads((Path(store) / "crop_v1_0" / "zarr.json").read_text())
    zarr_cm.proj.validate_array_metadata(node)
    assert node["attributes"]["proj:wkt2"].startswith("PROJCRS[")
    assert rasterio.crs.CRS.from_wkt(node["attributes"]["proj:wkt2"]) == rasterio.crs.CRS.from_user_input(albers)


# ---- layout


@given(
    size=st.integers(1, 20_000),
    lazy=st.integers(0, 5_000),
    chunk=st.none() | st.integers(1, 2_000),
    multiple=st.none() | st.integers(1, 9),
)
def test_shards_are_whole_chunks(size: int, lazy: int, chunk: int | None, multiple: int | None) -> None:
    shard = multiple and multiple * (chunk or 500)
    inner, whole = _split(size, lazy, chunk, shard)
    assert whole % inner == 0
    assert 1 <= inner <= (chunk or 512)
    if shard and shard <= size and chunk:
        assert (inner, whole) == (chunk, shard)
    if not shard and not chunk and 0 < lazy <= size and any(lazy % d == 0 for d in range(256, 513)):
        assert whole == lazy  # one block is one file, and nothing is rechunked
        assert inner >= 256


@pytest.mark.parametrize(
    ("lazy", "expected"), [(1024, (512, 1024)), (1000, (500, 1000)), (960, (480, 960)), (200, (200, 200))]
)
def test_default_layout(lazy: int, expected: tuple[int, int]) -> None:
    assert _split(3660, lazy, None, None) == expected


chunkings = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@settings(max_examples=8, deadline=None)
@given(
    rows=chunkings, columns=chunkings, sizes=st.sampled_from([(None, None), (8, 16), (16, 16), (5, None), (None, 24)])
)
def test_any_chunking_is_written_in_whole_shards(
    tmp_path_factory: pytest.TempPathFactory, rows: list[int], columns: list[int], sizes: tuple[int | None, int | None]
) -> None:
    box = GeoBox((sum(rows), sum(columns)), NORTH.affine, NORTH.crs)
    made = result(box, chunks=(tuple(rows), tuple(columns)), probability=True)
    ready = prepared(made, chunk=sizes[0], shard=sizes[1])
    for variable in ready.data_vars.values():
        whole = variable.encoding["shards"] or variable.encoding["chunks"]
        for blocks, side in zip(variable.chunks, whole, strict=True):
            assert all(block == side for block in blocks[:-1])  # else two tasks would write to one file
    store = to_zarr(made, tmp_path_factory.mktemp("any") / "a.zarr", chunk=sizes[0], shard=sizes[1])
    back = xr.open_zarr(store, mask_and_scale=False)
    xr.testing.assert_equal(
        back.crop_v1_0.drop_vars("spatial_ref", errors="ignore"), made.crop_v1_0.drop_vars("spatial_ref")
    )
    np.testing.assert_array_equal(back.probability, made.probability)


def test_one_file_for_each_block(tmp_path: Path) -> None:
    box = GeoBox((1100, 1024), NORTH.affine, NORTH.crs)
    store = Path(to_zarr(result(box, chunks=(512, 512)), tmp_path / "a.zarr", chunk=256))
    array = zarr.open_group(store, mode="r")["crop_v1_0"]
    assert (array.chunks, array.shards) == ((256, 256), (512, 512))
    assert array.metadata.zarr_format == 3
    files = store / "crop_v1_0" / "c"
    found = sorted(p.relative_to(files).as_posix() for p in files.rglob("*") if p.is_file())
    assert found == ["0/0", "0/1", "1/0", "1/1", "2/0", "2/1"]


def test_shard_has_to_be_a_multiple_of_chunk(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"shard=1000 is not a whole number.*multiple of chunk=512"):
        to_zarr(result(), tmp_path / "a.zarr", chunk=512, shard=1000)


def test_nothing_is_computed_before_the_write() -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("computed")

    with dask.config.set(scheduler=refuse):
        ready = prepared(result(probability=True))
    assert isinstance(ready.probability.data, da.Array)


def test_the_result_is_left_alone(tmp_path: Path) -> None:
    made = result(probability=True)
    before, encoding = made.copy(deep=True), dict(made.crop_v1_0.encoding)
    to_zarr(made, tmp_path / "a.zarr")
    assert made.identical(before)
    assert made.crop_v1_0.encoding == encoding
    assert made.crop_v1_0.chunks == before.crop_v1_0.chunks


# ---- what may be written


def test_a_cube_comes_back_as_a_cube(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 5000, (2, 6, *SOUTH.shape)).astype("int16")
    values[:, :, :5] = -9999
    cube = with_grid(
        xr.DataArray(
            da.from_array(values, chunks=(1, 6, 32, 32)),
            dims=("time", "band", "y", "x"),
            coords={
                "time": np.array(["2024-05-01T17:00:01.123", "2024-07-01"], "datetime64[ns]"),
                "band": ["blue", "green", "red", "nir08", "swir16", "swir22"],
                "sensor": ("time", ["L30", "S30"]),
                "fmask": (("time", "y", "x"), da.zeros((2, *SOUTH.shape), dtype="uint8", chunks=(1, 32, 32))),
            },
            attrs={"nodata": -9999, "reflectance_scale": 1e-4},
            name="hls",
        ),
        SOUTH,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning)  # zarr's, on strings and on consolidated metadata
        warnings.filterwarnings("error", category=FutureWarning)
        store = to_zarr(cube, tmp_path / "cube.zarr")
    back = xr.open_zarr(store, decode_coords="all").hls
    assert back.dtype == "int16"
    np.testing.assert_array_equal(back, values)
    np.testing.assert_array_equal(back.time, cube.time)
    assert back.band.values.tolist() == cube.band.values.tolist()
    assert back.sensor.values.tolist() == ["L30", "S30"]
    assert back.attrs["nodata"] == -9999
    assert zarr.open_group(store, mode="r")["hls"].fill_value == -9999


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("coords", ["all", None])
def test_reopened_results_can_be_written_again(tmp_path: Path, masked: bool, coords: str | None) -> None:
    first = to_zarr(result(probability=True), tmp_path / "a.zarr")
    opened = xr.open_zarr(first, mask_and_scale=masked, decode_coords=coords or True)
    second = to_zarr(opened.isel(y=slice(7, None)), tmp_path / "b.zarr", chunk=16)
    back = xr.open_zarr(second, mask_and_scale=False, decode_coords="all")
    assert back.crop_v1_0.dtype == "uint8"
    np.testing.assert_array_equal(back.crop_v1_0, pixels(NORTH.shape)[7:])
    assert back.crop_v1_0.attrs["spatial:transform"][5] == 4_900_020 - 7 * 30
    assert back.spatial_ref.attrs["GeoTransform"].split()[3] == str(4_900_020 - 7 * 30)


def test_unnamed_arrays_and_eager_ones_are_welcome(tmp_path: Path) -> None:
    array = result().crop_v1_0.compute()
    array.name = None
    back = xr.open_zarr(to_zarr(array, tmp_path / "a.zarr"), mask_and_scale=False)
    np.testing.assert_array_equal(back.data, array)


def test_no_crs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GridError, match="no CRS"):
        to_zarr(result().drop_vars("spatial_ref"), tmp_path / "a.zarr")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["variable", "dataset"])
def test_attributes_have_to_be_json(tmp_path: Path, where: str) -> None:
    made = result()
    (made.crop_v1_0.attrs if where == "variable" else made.attrs)["spec"] = NORTH
    with pytest.raises(WriteError, match=r"attribute 'spec' of .* is a GeoBox.*attrs\.pop\('spec'\)"):
        to_zarr(made, tmp_path / "a.zarr")
    assert not list(tmp_path.iterdir())


# ---- where it is written


def test_a_taken_path_is_refused_and_kept(tmp_path: Path) -> None:
    store = to_zarr(result(), tmp_path / "a.zarr")
    with pytest.raises(WriteError, match=r"a\.zarr exists.*overwrite=True"):
        to_zarr(result(SOUTH), store)
    check(Path(store), "odc-geo", NORTH)
    assert to_zarr(result(SOUTH), str(store), overwrite=True) == str(store)
    check(Path(store), "odc-geo", SOUTH)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_overwrite_never_deletes_other_folders(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(WriteError, match=r"no Zarr store.*does not delete"):
        to_zarr(result(), tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"


def test_an_empty_folder_and_missing_parents_are_fine(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    to_zarr(result(), tmp_path / "empty")
    to_zarr(result(), tmp_path / "new" / "deep" / "a.zarr")
    check(tmp_path / "empty", "odc-geo", NORTH)
    check(tmp_path / "new" / "deep" / "a.zarr", "odc-geo", NORTH)


def test_a_result_may_replace_what_it_reads_from(tmp_path: Path) -> None:
    store = to_zarr(result(), tmp_path / "a.zarr")
    opened = xr.open_zarr(store, mask_and_scale=False, decode_coords="all")
    flipped = opened.assign(crop_v1_0=opened.crop_v1_0.copy(data=opened.crop_v1_0.data[::-1]))
    to_zarr(flipped, store, overwrite=True)
    np.testing.assert_array_equal(xr.open_zarr(store, mask_and_scale=False).crop_v1_0, pixels(NORTH.shape)[::-1])


def failing(error: Exception) -> xr.Dataset:
    def fail(block: np.ndarray) -> np.ndarray:
        raise error

    made = result()
    return made.assign(crop_v1_0=made.crop_v1_0.copy(data=made.crop_v1_0.data.map_blocks(fail, dtype="uint8")))


def test_an_error_of_the_input_stays_what_it_is(tmp_path: Path) -> None:
    store = to_zarr(result(), tmp_path / "a.zarr")
    with pytest.raises(ReadError, match="item X, asset B04") as caught:
        to_zarr(failing(ReadError("item X, asset B04: 404")), store, overwrite=True)
    assert "partial-" in caught.value.__notes__[0]
    assert "a.zarr is as it was" in caught.value.__notes__[0]
    check(Path(store), "odc-geo", NORTH)
    with pytest.raises(FileNotFoundError, match=r"input\.tif"):  # of a file, but not of ours
        to_zarr(failing(FileNotFoundError(2, "No such file", "/elsewhere/input.tif")), tmp_path / "b.zarr")
    assert not (tmp_path / "b.zarr").exists()


def test_urls_of_stores(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/a.zarr"
    assert to_zarr(result(), url) == url
    with pytest.raises(WriteError, match=r"already holds data.*overwrite=True"):
        to_zarr(result(SOUTH), url)
    to_zarr(result(SOUTH), url, overwrite=True)
    back = xr.open_zarr(url, mask_and_scale=False)
    assert back.y[0] == SOUTH.affine.f - 15
    np.testing.assert_array_equal(back.crop_v1_0, pixels(SOUTH.shape))


def test_overwrite_of_a_url_deletes_stores_only(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe(f"/{tmp_path.name}/bucket/other.txt", b"kept")
    with pytest.raises(WriteError, match="already holds data; expected a Zarr store"):
        to_zarr(result(), f"memory://{tmp_path.name}/bucket", overwrite=True)
    assert memory.cat(f"/{tmp_path.name}/bucket/other.txt") == b"kept"


# ---- progress and clusters


def test_progress_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to_zarr(result(), tmp_path / "a.zarr", progress=True)
    assert "100% Completed" in capsys.readouterr().out
    to_zarr(result(), tmp_path / "b.zarr")
    assert not capsys.readouterr().out


def test_through_a_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from distributed import Client

    with Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"):
        store = to_zarr(result(probability=True), tmp_path / "a.zarr", progress=True, chunk=16, shard=16)
        assert "Completed" in capsys.readouterr().out
        with pytest.raises(ReadError, match="asset B04"):
            to_zarr(failing(ReadError("asset B04")), tmp_path / "b.zarr", progress=True)
    np.testing.assert_array_equal(xr.open_zarr(store, mask_and_scale=False).crop_v1_0, pixels(NORTH.shape))


def test_words_of_cf_and_store_agree() -> None:
    assert prepared(result()).attrs["Conventions"] == cf.CONVENTIONS


@pytest.mark.parametrize("name", ["map.tif", "map.TIFF", "map.tif/"])
def test_the_name_of_a_geotiff_is_refused(tmp_path: Path, name: str) -> None:
    where = f"{tmp_path}/{name}"
    with pytest.raises(WriteError, match=r"name of a GeoTIFF.*path='.*/map\.zarr'.*xgfm\.to_cog\(result, '.*map"):
        to_zarr(result(), where)
    with pytest.raises(WriteError, match="is the name of a GeoTIFF"):
        to_zarr(result(), "memory://here/map.tif")
    assert list(tmp_path.iterdir()) == []
    to_zarr(result(), tmp_path / "map.tif.zarr")


FTP = "ftp://u:canary@127.0.0.1:9/x"
BUCKET = "s3://u:canary@bucket/x?secret=canary"


def test_a_failed_write_to_a_url_does_not_repeat_its_password() -> None:
    with pytest.raises(WriteError, match=r"^ftp://127.0.0.1:9/x cannot be written") as caught:
        to_zarr(result(), FTP)
    assert "canary" not in "".join(traceback.format_exception(caught.value, chain=True))
    with pytest.raises(WriteError, match="is the name of a GeoTIFF") as caught:
        to_zarr(result(), "s3://u:canary@host/x.tif")
    assert "canary" not in str(caught.value)


def test_a_taken_url_does_not_repeat_its_query(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(*_: object, **__: object) -> None:
        raise FileExistsError(BUCKET)

    monkeypatch.setattr(write, "_write", taken)
    with pytest.raises(WriteError, match=r"^s3://bucket/x already holds data") as caught:
        to_zarr(result(), BUCKET)
    assert "canary" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("host", ["", "localhost"])
def test_file_urls_are_local_paths(tmp_path: Path, host: str) -> None:
    path = f"file://{host}{tmp_path}/a%20b.zarr"
    assert to_zarr(result(), path) == path
    written = xr.open_zarr(tmp_path / "a b.zarr", mask_and_scale=False)
    np.testing.assert_array_equal(written["crop_v1_0"], result()["crop_v1_0"])
    assert to_cog(result(), f"file://{host}{tmp_path}/map.tif") == tmp_path / "map.tif"
    assert (tmp_path / "map.tif").is_file()


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    to_zarr(result(), "~/map.zarr")
    to_cog(result(), "~/map.tif")
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix in (".zarr", ".tif")) == ["map.tif", "map.zarr"]
    with pytest.raises(WriteError, match="there is no such user; give the whole path"):
        to_zarr(result(), "~nobody-of-that-name/map.zarr")


def test_a_geotiff_is_a_local_file() -> None:
    with pytest.raises(WriteError, match=r"path='s3://bucket/map.tif' is no local file"):
        to_cog(result(), "s3://u:canary@bucket/map.tif")


@pytest.mark.parametrize("side", [0, -1, 2.5, "256", True])
@pytest.mark.parametrize("name", ["chunk", "shard"])
def test_sides_of_chunks_are_whole_pixels(name: str, side: Any, tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=rf"{name}={side!r} must be a whole number of pixels from 1 on"):
        to_zarr(result(), tmp_path / "x.zarr", **{name: side})


@pytest.mark.parametrize("write", [to_zarr, to_cog])
def test_a_place_that_cannot_be_written_is_told_with_its_argument(write: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"not writable while writing .*give a place that can be written as path="):
        write(result(), tmp_path / "file" / ("a.tif" if write is to_cog else "a.zarr"))
