"""Both loaders against rasterio's own read of the same files."""

from __future__ import annotations

import pickle
from itertools import product
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import numpy as np
import pytest
import rasterio
import rasterio.warp
from affine import Affine
from granules import granule, read_own
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from xgfm.cube import loader_stackstac, loaders
from xgfm.cube.credentials import gdal_settings
from xgfm.cube.items import ASSETS, normalise
from xgfm.cube.loader_stackstac import StepReader
from xgfm.cube.loaders import FMASK, REFLECTANCE, Source, check_grid, first_valid, get_loader, place
from xgfm.errors import GridError, MissingExtraError, ReadError, XgfmError
from xgfm.grid import tile_geobox
from xgfm.models.spec import PRITHVI_BANDS

BOTH = pytest.mark.parametrize("loader", ["stackstac", "odc"])


def load(
    loader: str,
    steps: Any,
    grid: GeoBox,
    layer: Any = REFLECTANCE,
    bands: Any = PRITHVI_BANDS,
    chunks: tuple[int, int] = (128, 100),
) -> np.ndarray:
    records = [[normalise(item) for item in step] for step in steps]
    array = get_loader(loader)(records, bands, grid, layer, chunks=chunks, gdal=gdal_settings())
    assert array.dtype == layer.dtype
    assert array.chunks[:2] == ((1,) * len(steps), (len(bands),))
    pixels: np.ndarray = array.compute()
    assert pixels.shape == (len(steps), len(bands), *grid.shape)
    return pixels


def files_grid(item: dict[str, Any]) -> GeoBox:
    """The grid of the files themselves, as rasterio reads it."""
    with rasterio.open(item["assets"]["B02"]["href"]) as file:
        return GeoBox(file.shape, file.transform, f"EPSG:326{item['id'][9:11]}")


@BOTH
@pytest.mark.parametrize("sensor", ["L30", "S30"])
@pytest.mark.parametrize(
    ("tile", "window", "nameless"),
    [
        ("15TVM", (1000, 1200, 300, 280), False),
        ("19LDD", (0, 0, 150, 210), True),  # southern, the tile's first corner, a CRS without a code
        ("15MXV", (3500, 3400, 160, 260), False),  # at the equator, the tile's last corner
    ],
)
def test_pixels_are_rasterios(
    loader: str, sensor: str, tile: str, window: tuple[int, int, int, int], nameless: bool, tmp_path: Path
) -> None:
    item = granule(tmp_path, sensor=sensor, tile=tile, window=window, nameless=nameless)
    grid = files_grid(item)
    assert (load(loader, [[item]], grid)[0] == read_own(item, [*ASSETS[sensor].values()])).all()
    fmask = load(loader, [[item]], grid, FMASK, ("fmask",))
    assert (fmask[0] == read_own(item, ["Fmask"])).all()


@pytest.mark.parametrize("options", [{"nameless": True}, {"projection": False}], ids=["nameless CRS", "part of a tile"])
def test_pixels_of_the_same_lattice_are_not_warped(
    options: dict[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GDAL's warp of a grid to itself gives the same pixels, at 4 times the cost."""
    import stackstac.rio_reader

    def warped(*_: Any, **__: Any) -> Any:
        raise AssertionError("the file was warped")

    monkeypatch.setattr(stackstac.rio_reader, "WarpedVRT", warped)
    monkeypatch.setattr("rasterio.vrt.WarpedVRT", warped)
    item = granule(tmp_path, window=(1000, 1200, 300, 280), **options)
    expected = read_own(item, [*ASSETS["L30"].values()])
    assert (load("stackstac", [[item]], files_grid(item))[0] == expected).all()


@BOTH
def test_the_real_chip(loader: str, shared_data: Path) -> None:
    """Real L30 pixels behind a CMR-STAC-shaped item: the grid is the tile's, the files cover a corner of it."""
    folder = shared_data / "hls" / "chips" / "agb_L30_int16"
    name = "HLS.L30.T14RMS.2020100T171439.v2.0"
    item = {
        "id": name,
        "properties": {"datetime": "2020-04-09T17:14:39Z"},
        "assets": {key: {"href": str(folder / f"{key}.tif")} for key in ASSETS["L30"].values()},
    }
    grid = files_grid(item)
    record = normalise(item)
    column = (grid.transform.c - record.geobox.transform.c) / 30
    assert column == int(column)  # the chip lies on the HLS lattice
    assert (load(loader, [[item]], grid)[0] == read_own(item, [*ASSETS["L30"].values()])).all()


@BOTH
@settings(deadline=None, max_examples=30)
@given(row=st.integers(-40, 200), column=st.integers(-40, 200), rows=st.integers(1, 90), columns=st.integers(1, 90))
def test_any_window_is_a_slice(
    loader: str, row: int, column: int, rows: int, columns: int, shared_granule: dict[str, Any]
) -> None:
    whole = files_grid(shared_granule)
    grid = whole.translate_pix(column, row).crop((rows, columns))
    pixels = read_own(shared_granule, ["B04"])[0]
    padded = np.full((400, 400), -9999, "int16")
    padded[100 : 100 + 160, 100 : 100 + 150] = pixels
    expected = padded[100 + row : 100 + row + rows, 100 + column : 100 + column + columns]
    assert (load(loader, [[shared_granule]], grid, bands=("red",))[0, 0] == expected).all()


@pytest.fixture(scope="module")
def shared_granule(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return granule(tmp_path_factory.mktemp("granule"), window=(700, 600, 160, 150))


@BOTH
def test_granules_of_a_step_are_merged_first_valid_first(loader: str, tmp_path: Path) -> None:
    items = [
        granule(tmp_path, time=f"2024-05-02T17:0{k}:39Z", seed=k, missing=0.5, window=(100, 200, 90, 80))
        for k in range(3)
    ]
    items.reverse()  # the given order counts, not that of time
    stack = np.stack([read_own(item, [*ASSETS["L30"].values()]) for item in items])
    expected = stack[0].copy()
    for later in stack[1:]:
        expected[expected == -9999] = later[expected == -9999]
    assert (expected != stack[0]).any()
    assert (expected == -9999).any()
    assert (load(loader, [items], files_grid(items[0]))[0] == expected).all()


@BOTH
def test_tiles_of_a_zone_are_joined_on_their_lattice(loader: str, tmp_path: Path) -> None:
    west = granule(tmp_path, tile="15TVM", window=(1000, 3300, 120, 360), seed=1, missing=0)
    east = granule(tmp_path, tile="15TWM", window=(1030, 0, 120, 340), seed=2, missing=0)
    a, b = files_grid(west), files_grid(east)
    grid = GeoBox((150, 3640), a.transform, a.crs)[:, : round((b.boundingbox.right - a.boundingbox.left) / 30)]
    column = round((b.transform.c - a.transform.c) / 30)
    expected = np.full((6, *grid.shape), -9999, "int16")
    expected[:, 30:150, column:] = read_own(east, [*ASSETS["L30"].values()])
    left = read_own(west, [*ASSETS["L30"].values()])
    view = expected[:, :120, :360]
    view[left != -9999] = left[left != -9999]
    assert column < 360
    assert (load(loader, [[west, east]], grid)[0] == expected).all()


@BOTH
def test_l30_and_s30_steps_lie_on_one_another(loader: str, tmp_path: Path) -> None:
    steps = [[granule(tmp_path, sensor=s, seed=k, window=(0, 0, 70, 60))] for k, s in enumerate(("L30", "S30"))]
    pixels = load(loader, steps, files_grid(steps[0][0]))
    for got, (item,), sensor in zip(pixels, steps, ("L30", "S30"), strict=True):
        assert (got == read_own(item, [*ASSETS[sensor].values()])).all()


@BOTH
def test_another_zone_is_warped_as_gdal_does(loader: str, tmp_path: Path) -> None:
    """Nearest for the Fmask, bilinear for a smooth band.

    GDAL finds a pixel's place to an eighth of a pixel, other ones in other windows, so a few nearest pixels are others;
    the exact places are the oracle of the test of warped Fmasks in jobs.
    """
    item = granule(tmp_path, tile="15TXM", window=(500, 3000, 200, 200), missing=0)
    smooth = np.add.outer(np.arange(200) * 7, np.arange(200) * 11).astype("int16")
    with rasterio.open(item["assets"]["B04"]["href"]) as file:
        transform, crs = file.transform, file.crs
    with rasterio.open(
        item["assets"]["B04"]["href"], "w", driver="GTiff", width=200, height=200, count=1, dtype="int16", crs=crs,
        transform=transform, nodata=-9999,
    ) as file:  # fmt: skip
        file.write(smooth, 1)
    corner = rasterio.warp.transform_bounds(crs, "EPSG:32616", *rasterio.transform.array_bounds(200, 200, transform))
    grid = GeoBox(
        (150, 160), Affine(30, 0, round(corner[0] / 30) * 30, 0, -30, round(corner[3] / 30) * 30), "EPSG:32616"
    )
    fmask = load(loader, [[item]], grid, FMASK, ("fmask",))[0, 0]
    differ = fmask != warped(read_own(item, ["Fmask"])[0], transform, crs, grid, "nearest", 255)
    assert differ.mean() <= 1e-2
    red = load(loader, [[item]], grid, bands=("red",))[0, 0]
    expected = warped(smooth, transform, crs, grid, "bilinear", -9999)
    valid = (red != -9999) & (expected != -9999)
    assert valid.mean() > 0.7
    assert ((red == -9999) != (expected == -9999)).mean() < 0.01
    assert np.abs(red[valid].astype(int) - expected[valid]).max() <= 3


@pytest.mark.parametrize("off", [0, 11.25])
def test_a_warped_pixel_does_not_depend_on_the_chunk(off: float, tmp_path: Path) -> None:
    item = granule(tmp_path, tile="15TXM", window=(500, 3000, 700, 600), seed=4, missing=0.01)
    box = files_grid(item).to_crs("EPSG:32616", resolution=30)
    grid = GeoBox(box.shape, Affine(30, 0, box.transform.c + off, 0, -30, box.transform.f), "EPSG:32616")
    whole, *others = (
        load("stackstac", [[item]], grid, chunks=chunks)[0] for chunks in ((900, 900), (256, 256), (101, 77), (40, 500))
    )
    assert (whole != -9999).mean() > 0.5
    for other in others:
        np.testing.assert_array_equal(other, whole)
    part = grid[130:400, 50:333]
    np.testing.assert_array_equal(load("stackstac", [[item]], part)[0], whole[:, 130:400, 50:333])


def warped(values: np.ndarray, transform: Affine, crs: Any, grid: GeoBox, how: str, fill: int) -> np.ndarray:
    out = np.full(grid.shape, fill, values.dtype)
    rasterio.warp.reproject(
        values, out, src_transform=transform, src_crs=crs, src_nodata=fill, dst_transform=grid.transform,
        dst_crs="EPSG:32616", dst_nodata=fill, resampling=rasterio.enums.Resampling[how],
    )  # fmt: skip
    return out


def test_coarser_pixels_are_averages_in_both_loaders(tmp_path: Path) -> None:
    """HLS overviews are every second pixel; a 60 m target must not come from them."""
    item = granule(tmp_path, window=(0, 0, 600, 540), missing=0)
    with rasterio.open(item["assets"]["B04"]["href"]) as file:
        assert file.overviews(1)[0] == 2
    whole = files_grid(item)
    grid = GeoBox((300, 270), whole.transform * Affine.scale(2), whole.crs)
    one, other = (load(name, [[item]], grid, bands=("red",)) for name in ("stackstac", "odc"))
    assert (one == other).all()
    pixels = read_own(item, ["B04"])[0].astype(float)
    inner = pixels[200:400, 200:400].reshape(100, 2, 100, 2).mean((1, 3))
    assert np.corrcoef(one[0, 0, 100:200, 100:200].ravel(), inner.ravel())[0, 1] > 0.8


@settings(deadline=None)
@given(
    start=st.tuples(st.integers(-50, 50), st.integers(-50, 50)),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    window=st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(1, 40), st.integers(1, 40)),
)
def test_overlap_is_set_arithmetic(
    start: tuple[int, int], size: tuple[int, int], window: tuple[int, int, int, int]
) -> None:
    source = Source("h", "i", "a", True, start[1], start[0], size[1], size[0], 32615, 0, 0)
    tile = set(product(range(start[0], start[0] + size[0]), range(start[1], start[1] + size[1])))
    row, column, rows, columns = window
    asked = set(product(range(row, row + rows), range(column, column + columns)))
    hit = source.overlap(*window)
    got = set()
    if hit is not None:
        got = set(
            product(range(row + hit[0].start, row + hit[0].stop), range(column + hit[1].start, column + hit[1].stop))
        )
    assert got == tile & asked


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(0, 1000))
def test_first_valid_is_a_pixel_loop(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(count):
        rows, columns = sorted(rng.integers(0, 9, 2)), sorted(rng.integers(0, 7, 2))
        hit = slice(rows[0], rows[1] + 1), slice(columns[0], columns[1] + 1)
        shape = (hit[0].stop - hit[0].start, hit[1].stop - hit[1].start)
        parts.append((hit, rng.choice([0, 1, 2, 255], shape).astype("uint8")))
    expected = np.full((9, 7), 255, "uint8")
    for hit, values in reversed(parts):
        expected[hit][values != 255] = values[values != 255]
    assert (first_valid(iter(parts), (9, 7), np.dtype("uint8"), 255) == expected).all()


def test_no_further_granule_is_read_once_all_is_valid() -> None:
    def parts() -> Any:
        yield (slice(0, 2), slice(0, 2)), np.ones((2, 2), "uint8")
        raise AssertionError("the second granule was read")

    assert first_valid(parts(), (2, 2), np.dtype("uint8"), 255).all()


def test_only_overlapping_files_are_opened(tmp_path: Path) -> None:
    """The western tile's files are gone, and a window of the eastern one does not notice."""
    west = granule(tmp_path, tile="15TVM", window=(0, 0, 20, 20))
    east = granule(tmp_path, tile="15TWM", window=(0, 3000, 50, 60), missing=0)
    for asset in west["assets"].values():
        Path(asset["href"]).unlink()
    pixels = load("stackstac", [[west, east]], files_grid(east))
    assert (pixels[0] == read_own(east, [*ASSETS["L30"].values()])).all()


def test_place_of_a_tile_in_another_zone_holds_the_tile() -> None:
    record = normalise(bare("16TCS"))
    grid = tile_geobox("15TXM")
    source = place(record, "red", grid)
    assert not source.aligned
    corners = record.geobox.extent.to_crs(grid.crs, resolution=500).boundingbox
    assert grid.transform.c + source.column * 30 <= corners.left
    assert grid.transform.f - source.row * 30 >= corners.top
    assert grid.transform.c + (source.column + source.columns) * 30 >= corners.right
    assert grid.transform.f - (source.row + source.rows) * 30 <= corners.bottom


def bare(tile: str, day: int = 100) -> dict[str, Any]:
    name = f"HLS.S30.T{tile}.2024{day:03d}T170439.v2.0"
    folder = f"https://data.lpdaac.earthdatacloud.nasa.gov/lp-prod-protected/HLSS30.020/{name}"
    keys = [*ASSETS["S30"].values(), "Fmask"]
    return {
        "id": name,
        "properties": {"datetime": "2024-05-02T17:04:39Z"},
        "assets": {key: {"href": f"{folder}/{name}.{key}.tif"} for key in keys},
    }


def test_graph_stays_small() -> None:
    """Merging adds no task: one for each chunk (16 a step here), and two for each step."""
    steps = [[normalise(bare("15TVM", day)), normalise(bare("15TVM", day + 100))] for day in range(10, 40)]
    array = loader_stackstac.load(
        steps, PRITHVI_BANDS, tile_geobox("15TVM"), REFLECTANCE, chunks=(1024, 1024), gdal=gdal_settings()
    )
    (optimised,) = dask.optimize(array)
    assert len(dict(optimised.__dask_graph__())) == 30 * 16 + 2 * 30
    assert len(cloudpickle.dumps(array.__dask_graph__())) < 30 * 6 * 2 * 600


def test_a_reader_travels(shared_granule: dict[str, Any]) -> None:
    record = normalise(shared_granule)
    item = loader_stackstac._item("0", [record], ("red",), record.geobox, 32615)
    from rasterio.enums import Resampling
    from rasterio.windows import Window
    from stackstac.raster_spec import RasterSpec
    from stackstac.rio_env import LayeredEnv

    spec = RasterSpec(32615, record.geobox.boundingbox.bbox, (30, 30))
    reader = StepReader(
        url=item["assets"]["red"]["href"], spec=spec, resampling=Resampling.nearest, dtype=np.dtype("int16"),
        fill_value=np.int16(-9999), gdal_env=LayeredEnv(always=gdal_settings()),
    )  # fmt: skip
    window = Window(10, 20, 30, 40)
    expected = read_own(shared_granule, ["B04"])[0, 20:60, 10:40]
    assert (reader.read(window) == expected).all()
    assert (pickle.loads(pickle.dumps(reader)).read(window) == expected).all()


@BOTH
@pytest.mark.parametrize("fault", ["shifted", "zone", "pixels", "float32", "uint8", "int8", "two bands"])
def test_a_file_that_is_not_what_its_item_says_is_refused(loader: str, fault: str, tmp_path: Path) -> None:
    item = granule(tmp_path, window=(0, 0, 40, 50), projection=False)
    grid = files_grid(item)
    path = Path(item["assets"]["B04"]["href"])
    transform, crs, dtype = grid.transform, "EPSG:32615", "int16"
    if fault == "shifted":
        transform = Affine.translation(0, 20) * transform
    elif fault == "zone":
        crs = "EPSG:32616"
    elif fault == "pixels":
        transform = transform * Affine.scale(1 / 3)
    elif fault != "two bands":
        dtype = fault
    count = 2 if fault == "two bands" else 1
    with rasterio.open(
        path, "w", driver="GTiff", width=50, height=40, count=count, dtype=dtype, crs=crs, transform=transform
    ) as file:
        file.write(np.ones((count, 40, 50), dtype))
    kinds = "int16, int16" if fault == "two bands" else dtype
    message = f"holds {kinds}, expected one band of int16"
    if fault in ("shifted", "zone", "pixels"):
        message = "is not on the grid of its tile, 30 m from 399960"
    with pytest.raises(ReadError, match=rf"asset 'B04' of item 'HLS.L30.T15TVM.*{message}") as caught:
        load(loader, [[item]], grid)
    assert "eading again" not in str(caught.value)
    assert "correct the item" in str(caught.value)


@BOTH
def test_a_cut_off_local_file_is_not_read_again(loader: str, tmp_path: Path) -> None:
    item = granule(tmp_path, window=(0, 0, 40, 50))
    path = Path(item["assets"]["B04"]["href"])
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ReadError, match="asset 'B04'") as caught:
        load(loader, [[item]], files_grid(item))
    assert "The file is damaged, cut off or no raster" in str(caught.value)
    assert "eading again" not in str(caught.value)


@BOTH
@pytest.mark.parametrize(
    "chunks", [0, -1, True, (0, 0), (-1, 5), (5, 0), (5,), (5, 5, 5), "auto", 0.5, None, (True, 5), ("5", 5)]
)
def test_chunks_are_whole_pixels(loader: str, chunks: Any) -> None:
    record = normalise(bare("15TVM"))
    with pytest.raises(XgfmError, match=r"chunks=.* must be the side of a chunk in pixels"):
        get_loader(loader)([[record]], ("red",), record.geobox, REFLECTANCE, chunks=chunks, gdal={})


def test_a_library_that_puts_pixels_elsewhere_is_caught() -> None:
    grid = tile_geobox("15TVM")[:4, :5]
    x, y = grid.coords["x"].values, grid.coords["y"].values
    check_grid({"y": 4, "x": 5}, x, y, grid)
    with pytest.raises(GridError, match="which is not the asked grid"):
        check_grid({"y": 4, "x": 5}, x - 15, y, grid)
    with pytest.raises(GridError, match="which is not the asked grid"):
        check_grid({"y": 4, "x": 6}, np.append(x, x[-1] + 30), y, grid)


def test_stackstac_needs_an_epsg_code() -> None:
    grid = GeoBox((4, 4), Affine(30, 0, 0, 0, -30, 0), "+proj=laea +lat_0=45 +lon_0=-93 +units=m")
    with pytest.raises(GridError, match="needs a CRS with an EPSG code; give one with crs=, or use loader='odc'"):
        loader_stackstac.load([[normalise(bare("15TVM"))]], ("red",), grid, REFLECTANCE, chunks=(4, 4), gdal={})


def test_odc_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'loader=.odc. needs odc-stac.*pip install "xgfm\[odc\]"'):
        get_loader("odc")


def test_an_unknown_loader_is_refused() -> None:
    with pytest.raises(XgfmError, match=r"loader='stackstak' is not known; give one of \['stackstac', 'odc'\]"):
        get_loader("stackstak")
