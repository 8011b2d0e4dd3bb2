"""The grid of a tile against published geotransforms and `mgrs`; the grid of a cube against odc-geo."""

from __future__ import annotations

import subprocess
import sys

import dask.array as da
import mgrs
import numpy as np
import odc.geo.xr
import pytest
import rasterio
import rioxarray
import xarray as xr
from affine import Affine
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from xgfm.errors import GridError
from xgfm.grid import geobox_of, parse_tile, pixel_size_m, tile_geobox, with_grid

# Geotransforms of real HLS files and NASA items, both hemispheres.
PUBLISHED = {
    "T06WVS": (399960, 7200000),
    "T10TGS": (699960, 5200020),
    "T13RCN": (300000, 3300000),
    "T15MXV": (600000, 0),
    "T15UWP": (499980, 5400000),
    "T15UXP": (600000, 5400000),
    "T19LBJ": (199980, -1099980),
    "T19LDD": (399960, -1599960),
    "T35VLJ": (300000, 6900000),
    "T38PMB": (399960, 1700040),
}


@pytest.mark.parametrize(("tile", "corner"), PUBLISHED.items())
def test_tile_grid_is_the_published_one(tile: str, corner: tuple[int, int]) -> None:
    grid = tile_geobox(tile)
    assert (grid.transform.c, grid.transform.f) == corner
    assert grid.shape == (3660, 3660)
    assert (grid.transform.a, grid.transform.e) == (30, -30)
    assert grid.crs.epsg == 32600 + int(tile[1:3])
    assert tile_geobox(tile[1:]) == grid


def test_tile_grid_is_that_of_real_files(shared_data) -> None:
    for path in sorted((shared_data / "hls" / "fmask").glob("*.tif")):
        with rasterio.open(path) as file:
            grid = tile_geobox(path.name.split(".")[2])
            assert (file.transform, file.shape, file.crs.to_epsg()) == (grid.transform, grid.shape, grid.crs.epsg)


@settings(deadline=None)
@given(lon=st.floats(-180, 179.999), lat=st.floats(-79.9, 83.9))
def test_square_holds_the_point_that_mgrs_puts_there(lon: float, lat: float) -> None:
    assume(abs(lat) > 1e-5)  # the oracle fails a millimetre south of the equator
    tile = mgrs.MGRS().toMGRS(lat, lon, MGRSPrecision=0)
    zone, hemisphere, east, north = mgrs.MGRS().MGRSToUTM(mgrs.MGRS().toMGRS(lat, lon, MGRSPrecision=5))
    north -= 10_000_000 if hemisphere == "S" else 0
    grid = tile_geobox(tile.zfill(5))
    left, bottom, right, top = grid.boundingbox.bbox
    assert grid.crs.epsg == 32600 + zone
    # The tile covers its 100 km square and reaches less than 60 m over it to the west and north.
    assert left <= east
    assert top >= north
    assert left + 60 + 100_000 > east
    assert top - 60 - 100_000 <= north
    assert right > east
    assert bottom < north


@pytest.mark.parametrize("tile", ["T15TVMX", "15tvm", "5TVM", "T15TIM", "T15TVW", "T15IVM", "MGRS-15TVM", ""])
def test_what_is_no_tile_id_is_refused(tile: str) -> None:
    with pytest.raises(GridError, match="expected two digits and three letters, tile='T15TVM'"):
        tile_geobox(tile)


@pytest.mark.parametrize("tile", ["T00TVM", "T61TVM", "T15TAM", "T15TJM", "T15TVV", "T16TCA"])
def test_a_square_that_does_not_exist_is_refused(tile: str) -> None:
    with pytest.raises(GridError, match="does not exist"):
        tile_geobox(tile)


def test_parse_tile_drops_the_leading_t() -> None:
    assert parse_tile("T15TVM") == parse_tile("15TVM") == "15TVM"


def cube_on(grid: GeoBox) -> xr.DataArray:
    data = da.zeros((1, 2, *grid.shape), dtype="int16", chunks=-1)
    return with_grid(xr.DataArray(data, dims=("time", "band", "y", "x")), grid)


UTM = GeoBox((40, 30), Affine(30, 0, 399960, 0, -30, -1599960), "EPSG:32619")
LATLON = GeoBox((40, 30), Affine(0.00027, 0, 10.1, 0, -0.00027, 46.2), "EPSG:4326")
ALBERS = GeoBox((40, 30), Affine(30, 0, -15, 0, -30, 1_800_015), "EPSG:5070")
GRIDS = [UTM, LATLON, ALBERS]


@settings(deadline=None)
@given(
    grid=st.sampled_from(GRIDS),
    rows=st.tuples(st.integers(0, 39), st.integers(1, 40)),
    columns=st.tuples(st.integers(0, 29), st.integers(1, 30)),
)
def test_grid_survives_any_slice(grid: GeoBox, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    assume(rows[0] < rows[1] and columns[0] < columns[1])
    part = cube_on(grid).isel(y=slice(*rows), x=slice(*columns))
    assert geobox_of(part) == grid[slice(*rows), slice(*columns)]


@pytest.mark.parametrize("grid", GRIDS)
def test_others_find_the_same_grid(grid: GeoBox, tmp_path) -> None:
    cube = cube_on(grid)
    assert cube.odc.geobox == grid
    assert cube.isel(time=0).rio.transform() == grid.transform
    assert cube.rio.crs.to_epsg() == grid.crs.epsg
    cube.to_dataset(name="hls").to_zarr(tmp_path / "cube.zarr")
    back = xr.open_zarr(tmp_path / "cube.zarr", decode_coords="all")["hls"]
    assert geobox_of(back) == back.odc.geobox == grid


def test_coordinates_follow_cf() -> None:
    cube = cube_on(UTM)
    assert cube.x.attrs["standard_name"] == "projection_x_coordinate"
    assert cube.x.attrs["units"] == "m"
    assert cube.y.attrs["axis"] == "Y"
    assert cube.encoding["grid_mapping"] == "spatial_ref"
    assert cube.spatial_ref.attrs["grid_mapping_name"] == "transverse_mercator"
    assert cube.x.values[0] == 399975
    assert cube.y.values[0] == -1599975
    assert cube_on(LATLON).y.attrs["standard_name"] == "latitude"


def test_every_variable_of_a_dataset_gets_the_grid() -> None:
    data = with_grid(xr.Dataset({"a": (("y", "x"), np.zeros(UTM.shape)), "b": ("k", [1])}), UTM)
    assert data.a.encoding["grid_mapping"] == "spatial_ref"
    assert "grid_mapping" not in data.b.encoding
    assert geobox_of(data) == geobox_of(data.a) == UTM


def test_an_array_of_another_shape_is_refused() -> None:
    with pytest.raises(GridError, match=r"\(3, 4\) does not lie on a grid of \(40, 30\)"):
        with_grid(xr.DataArray(np.zeros((3, 4)), dims=("y", "x")), UTM)


def test_grid_of_rioxarray_and_of_odc_is_read(tmp_path) -> None:
    path = tmp_path / "file.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=30, height=40, count=1, dtype="int16", crs=32619, transform=UTM.transform
    ) as file:
        file.write(np.ones((1, 40, 30), "int16"))
    assert geobox_of(rioxarray.open_rasterio(path)) == UTM
    assert geobox_of(odc.geo.xr.xr_zeros(UTM)) == UTM
    assert geobox_of(odc.geo.xr.xr_zeros(UTM, dtype="int16", chunks=(10, 10))[:3, :1]) == UTM[:3, :1]


def test_float32_coordinates_are_good_enough() -> None:
    cube = cube_on(UTM)
    cube = cube.assign_coords(x=cube.x.astype("float32"), y=cube.y.astype("float32"))
    assert geobox_of(cube) == UTM


def test_without_crs() -> None:
    with pytest.raises(GridError, match=r"no CRS.*assign_crs"):
        geobox_of(cube_on(UTM).drop_vars("spatial_ref"))


def test_unreadable_crs() -> None:
    cube = cube_on(UTM)
    cube["spatial_ref"].attrs.update(crs_wkt="PROJCRS[nonsense")
    with pytest.raises(GridError, match="cannot be read"):
        geobox_of(cube)


def test_without_coordinates() -> None:
    with pytest.raises(GridError, match=r"no one-dimensional coordinate 'x'.*with_grid"):
        geobox_of(cube_on(UTM).drop_vars("x"))


def test_cells_of_a_climate_grid_are_no_pixels() -> None:
    with pytest.raises(GridError, match=r"'lat' and 'lon'.*to_netcdf.*rename\(lat='y', lon='x'\)"):
        geobox_of(cube_on(UTM).rename(y="lat", x="lon"))


def test_irregular_coordinates() -> None:
    cube = cube_on(UTM)
    with pytest.raises(GridError, match="'x' is not regular"):
        geobox_of(cube.isel(x=[0, 1, 3]))
    with pytest.raises(GridError, match="'y' is not regular"):
        geobox_of(cube.isel(y=[5, 5, 5]))


def test_south_up() -> None:
    with pytest.raises(GridError, match=r"not north-up.*sortby"):
        geobox_of(cube_on(UTM).isel(y=slice(None, None, -1)))


def test_rotated() -> None:
    cube = cube_on(UTM)
    cube["spatial_ref"].attrs["GeoTransform"] = "399960 30 2 -1599960 2 -30"
    with pytest.raises(GridError, match="rotated"):
        geobox_of(cube)


def test_single_pixel_without_geotransform() -> None:
    cube = cube_on(UTM)
    del cube["spatial_ref"].attrs["GeoTransform"]
    assert geobox_of(cube) == UTM
    with pytest.raises(GridError, match="one pixel along 'x' and no GeoTransform"):
        geobox_of(cube[..., :1])


def test_metres_under_a_geographic_crs() -> None:
    wrong = GeoBox(UTM.shape, UTM.transform, "EPSG:4326")
    with pytest.raises(GridError, match="are not degrees under EPSG:4326; name the CRS"):
        geobox_of(cube_on(wrong))


def test_degrees_under_a_projected_crs() -> None:
    wrong = GeoBox(LATLON.shape, LATLON.transform, "EPSG:32632")
    with pytest.raises(GridError, match="look like degrees"):
        geobox_of(cube_on(wrong))


def test_pixel_size() -> None:
    assert pixel_size_m(tile_geobox("T15TVM")) == pytest.approx(30, rel=2e-3)
    assert pixel_size_m(ALBERS) == pytest.approx(30, rel=1e-5)  # an equal-area CRS
    # Length of a degree on WGS 84 at 46.2 N: 77,270 m east and 111,155 m north.
    assert pixel_size_m(LATLON) == pytest.approx(0.00027 * (77_270 * 111_155) ** 0.5, rel=1e-3)
    # Web Mercator stretches by 1 / cos(latitude); 6,446,275 m is 50 N.
    web = GeoBox((2, 2), Affine(30, 0, 0, 0, -30, 6_446_275), "EPSG:3857")
    assert pixel_size_m(web) == pytest.approx(30 * np.cos(np.radians(50)), rel=3e-3)
    feet = GeoBox((2, 2), Affine(100, 0, 2_000_000, 0, -100, 700_000), "EPSG:2263")
    assert pixel_size_m(feet) == pytest.approx(30.48, rel=1e-3)


def test_pixel_size_needs_a_crs_that_reaches_there() -> None:
    with pytest.raises(GridError, match="no CRS"):
        pixel_size_m(GeoBox((2, 2), Affine(30, 0, 0, 0, -30, 0), None))
    with pytest.raises(GridError, match="outside of its CRS"):
        pixel_size_m(GeoBox((2, 2), Affine(30, 0, 1e12, 0, -30, 1e12), "EPSG:32615"))


def test_import_is_light() -> None:
    code = "import sys, xgfm.grid; print([m for m in ('torch', 'rasterio', 'odc', 'pyproj') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
