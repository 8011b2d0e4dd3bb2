"""Climate grids by name, by bounds and as GeoBoxes; where pixels lie and how large they are, against PROJ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely
import xarray as xr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Geod, Transformer
from results import DEGREES, NORTH, SOUTH

from xgfm.climate.globe import WGS84, Surface, area_factor, extent, to_crs, zone_areas
from xgfm.climate.grids import ClimateGrid, target_grid
from xgfm.errors import GridError
from xgfm.grid import tile_geobox

GEOD = Geod(ellps="WGS84")
BOXES = {
    "utm": tile_geobox("15TVM"),
    "southern": tile_geobox("19LCH"),
    "far north": tile_geobox("33XWH"),
    "degrees": DEGREES,
    "equal area": GeoBox((900, 800), Affine(30, 0, 400_000, 0, -30, 2_200_000), "EPSG:5070"),
    "polar": GeoBox((800, 800), Affine(500, 0, -200_000, 0, -500, 200_000), "EPSG:3995"),
    "feet": GeoBox((400, 400), Affine(100, 0, 1_000_000, 0, -100, 1_200_000), "EPSG:2272"),
    "dateline": GeoBox((500, 500), Affine(30, 0, 495_000, 0, -30, 4_000_000), "+proj=tmerc +lon_0=180 +x_0=500000"),
}


def model_grid(*, bounds: bool = True) -> xr.Dataset:
    """Return a Gaussian-like grid as a CMIP6 file has it: uneven, from north to south, 0 to 360 degrees."""
    edges = 90 * np.sin(np.linspace(np.pi / 2, -np.pi / 2, 33)) ** 1.0
    lon = np.arange(0, 360, 2.8125)
    lat_bnds = np.stack([edges[:-1], edges[1:]], axis=1)
    dataset = xr.Dataset(coords={"lat": lat_bnds.mean(axis=1) + 0.01, "lon": lon}, attrs={"source_id": "MODEL-1"})
    if bounds:
        dataset["lat_bnds"] = (("lat", "bnds"), lat_bnds)
        dataset["lon_bnds"] = (("lon", "bnds"), np.stack([lon - 1.40625, lon + 1.40625], axis=1))
    return dataset


@pytest.mark.parametrize("name", ["0.05deg", "0.1deg", "0.25deg", "1deg", "2.5deg", "0.125deg"])
def test_named_grids_cover_the_globe_once(name: str) -> None:
    grid = target_grid(name)
    step = float(name.removesuffix("deg"))
    assert grid.shape == (round(180 / step), round(360 / step))
    assert (grid.lat_edges[0], grid.lat_edges[-1], grid.lon_edges[0], grid.lon_edges[-1]) == (-90, 90, -180, 180)
    np.testing.assert_allclose(np.diff(grid.lat), step)
    assert grid.cell_areas().sum() == pytest.approx(510_065_621_724_088.4, rel=1e-12)  # WGS84, Moritz 1980


@settings(max_examples=25, deadline=None)
@given(
    lon=st.integers(-1_700_000, 1_700_000).map(lambda number: number / 1e4),  # on the edge of a cell, or clearly not
    lat=st.integers(-700_000, 700_000).map(lambda number: number / 1e4),
    rows=st.integers(1, 300),
    columns=st.integers(1, 300),
    name=st.sampled_from(["0.1deg", "1deg"]),
)
def test_part_is_rows_and_columns_of_the_whole_that_meet_the_map(
    lon: float, lat: float, rows: int, columns: int, name: str
) -> None:
    box = GeoBox((rows, columns), Affine(0.01, 0, lon, 0, -0.01, lat), "EPSG:4326")
    whole, part = target_grid(name), target_grid(name, over=box)
    west, south, east, north = box.boundingbox.bbox
    for edges, part_edges, low, high in (
        (whole.lat_edges, part.lat_edges, south, north),
        (whole.lon_edges, part.lon_edges, west, east),
    ):
        wanted = np.flatnonzero((edges[:-1] < high - 1e-6) & (edges[1:] > low + 1e-6))
        np.testing.assert_array_equal(part_edges, edges[wanted[0] : wanted[-1] + 2])


def test_part_across_the_dateline_and_across_greenwich_is_in_one_piece() -> None:
    part = target_grid("1deg", over=BOXES["dateline"])
    np.testing.assert_array_equal(part.lon, [179.5, 180.5])
    box = GeoBox((40, 300), Affine(0.01, 0, -1.5, 0, -0.01, 42.0), "EPSG:4326")
    part = target_grid(model_grid(), over=box)
    np.testing.assert_allclose(part.lon, [357.1875, 360, 362.8125])  # the map reaches from 358.5 to 361.5


def test_map_around_a_pole_and_around_the_globe_meet_every_longitude() -> None:
    assert target_grid("1deg", over=BOXES["polar"]).shape == (3, 360)  # corners lie 283 km from the pole
    whole = GeoBox((180, 360), Affine(1, 0, -180, 0, -1, 90), "EPSG:4326")
    assert target_grid("5deg", over=whole).shape == (36, 72)
    assert target_grid("5deg", over=GeoBox((180, 360), Affine(1, 0, 0, 0, -1, 90), "EPSG:4326")).shape == (36, 72)


def test_model_grid_is_taken_by_its_bounds_with_its_own_centres(tmp_path: Path) -> None:
    grid = target_grid(model_grid())
    assert grid.name == "MODEL-1"
    assert (np.diff(grid.lat) > 0).all()
    assert grid.lat[0] == model_grid().lat[-1]
    assert grid.cell_areas().sum() == pytest.approx(510_065_621_724_088.4, rel=1e-12)
    model_grid().to_netcdf(tmp_path / "areacella.nc")
    np.testing.assert_array_equal(target_grid(tmp_path / "areacella.nc").lon_bounds, grid.lon_bounds)
    np.testing.assert_array_equal(target_grid(str(tmp_path / "areacella.nc")).lat_bounds, grid.lat_bounds)
    named = model_grid().rename(lat_bnds="north_south", lat="latitude")
    named["latitude"].attrs = {"standard_name": "latitude", "bounds": "north_south"}
    np.testing.assert_array_equal(target_grid(named).lat_bounds, grid.lat_bounds)


def test_geobox_in_degrees_is_latitudes_and_longitudes_and_others_stay() -> None:
    box = GeoBox((20, 30), Affine(0.1, 0, -95, 0, -0.1, 45), "EPSG:4326")
    grid = target_grid(box, over=NORTH)
    assert (grid.geobox, grid.dims) == (None, ("lat", "lon"))
    assert (np.diff(grid.lat) > 0).all()
    albers = GeoBox((2000, 2000), Affine(1000, 0, -500_000, 0, -1000, 3_000_000), "EPSG:5070")
    part = target_grid(albers, over=NORTH)
    assert part.geobox is not None
    assert part.dims == ("y", "x")
    assert part.shape < (5, 5)
    own = shapely.box(*NORTH.to_crs("EPSG:5070").boundingbox.bbox)
    assert shapely.box(*part.geobox.boundingbox.bbox).intersects(own)
    assert target_grid(part) is part


def test_file_that_is_no_grid_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "text.nc").write_text("no netCDF")
    with pytest.raises(GridError, match=r"grid='.*text\.nc': xarray knows no reader for it; give the path"):
        target_grid(tmp_path / "text.nc")


def test_rows_that_stand_on_the_poles_end_there() -> None:
    lat, lon = np.arange(90, -90.1, -0.25), np.arange(0, 360, 0.25)
    era5 = xr.Dataset(coords={"latitude": lat, "longitude": lon})
    era5["latitude"].attrs, era5["longitude"].attrs = {"units": "degrees_north"}, {"units": "degrees_east"}
    with pytest.raises(GridError, match=r"grid's latitude has no bounds.*cf\.add_bounds\('latitude'\)"):
        target_grid(era5)
    sides = {n: (n, np.stack([era5[n] - 0.125, era5[n] + 0.125], axis=1)) for n in ("latitude", "longitude")}
    bounded = era5.assign({f"{n}_bounds": ((n, "bounds"), values) for n, (_, values) in sides.items()})
    grid = target_grid(bounded)
    assert (grid.lat_edges[0], grid.lat_edges[1], grid.lat_edges[-1]) == (-90, -89.875, 90)
    assert (grid.lat[0], grid.lat[-1]) == (-90, 90)
    assert grid.cell_areas().sum() == pytest.approx(510_065_621_724_088.4, rel=1e-12)
    lower = (("latitude", "bounds"), sides["latitude"][1] - 0.01)
    past = bounded.assign_coords(latitude=lat - 0.01).assign(latitude_bounds=lower)
    with pytest.raises(GridError, match=r"reach from -90\.135 to 90\.115 north"):
        target_grid(past)


@pytest.mark.parametrize("name", ["0.05 degrees", ".5deg"])
def test_spellings_of_names(name: str) -> None:
    assert target_grid(name).shape[0] in (3600, 360)


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ("0.5degrese", "nearest is '0.5deg'"),
        ("0.07deg", "do not divide 180"),
        ("0deg", "known are"),
        ("N48", "known are 0.05deg"),
        (model_grid(bounds=False), "has no bounds"),
        (model_grid().isel(lat=[0, 1, 5, 6]), "do not adjoin"),
        (xr.Dataset(coords={"lat": (("j", "i"), np.zeros((2, 2))), "lon": (("j", "i"), np.zeros((2, 2)))}), "GeoBox"),
        (model_grid().assign(lat_bnds=(("lat", "bnds"), model_grid().lat_bnds.values * 100)), "expected degrees"),
        (7, "grid= is 7, which is no climate grid; give a name such as grid='7deg'"),
        (0.25, "grid= is 0.25, which is no climate grid; give a name such as grid='0.25deg'"),
        ([1], "grid= is a list, which is no climate grid"),
        (model_grid().isel(lat=slice(0)), "latitude of the grid has dims"),
        (GeoBox((0, 3), Affine(1, 0, 0, 0, -1, 0), "EPSG:4326"), "GeoBox of 0 x 3 cells"),
        ("nothere.nc", r"grid='nothere\.nc': there is no such file; give the path"),
        (Path("nothere.zarr"), r"grid='nothere\.zarr': there is no such file"),
        (__file__ + ".nc", "no such file"),
    ],
)
def test_other_grids_are_refused_with_what_is_known(grid: object, words: str) -> None:
    with pytest.raises(GridError, match=words):
        target_grid(grid)  # type: ignore[arg-type]


def test_grid_that_does_not_meet_the_map_is_refused_with_both_extents() -> None:
    europe = target_grid(GeoBox((20, 30), Affine(1, 0, -10, 0, -1, 60), "EPSG:4326"))
    with pytest.raises(
        GridError, match=r"longitude -94.25 to -94.22, latitude 44.23.*longitude -10 to 20, latitude 40 to 60"
    ):
        target_grid(europe, over=NORTH)
    with pytest.raises(GridError, match="do not meet"):
        target_grid(GeoBox((10, 10), Affine(1000, 0, 3e6, 0, -1000, 3e6), "EPSG:5070"), over=NORTH)


@pytest.mark.parametrize("name", BOXES)
def test_places_are_within_a_thousandth_of_a_pixel_of_proj(name: str) -> None:
    box = BOXES[name]
    rng = np.random.default_rng(0)
    rows, columns = (np.sort(rng.uniform(0, n, 40)) for n in box.shape)
    sides = tuple((0.0, float(n)) for n in box.shape)
    near = 1e-4 * abs(box.resolution.x) / (1 if box.crs and box.crs.geographic else 111_000)
    found = Surface(to_crs(box, WGS84), sides[0], sides[1], np.full(2, near))(rows, columns)
    c, r = np.meshgrid(columns, rows)
    x, y = box.transform * (c, r)
    lon, lat = Transformer.from_crs(str(box.crs), "EPSG:4326", always_xy=True).transform(x, y)
    _, _, apart = GEOD.inv(found[0], found[1], lon, lat)
    size = abs(box.resolution.x) * (111_000 if box.crs and box.crs.geographic else 1)
    assert np.max(apart) < 1e-3 * size * (0.3 if name == "feet" else 1)


@pytest.mark.parametrize("name", BOXES)
def test_area_of_a_pixel_is_that_of_its_outline_on_the_ellipsoid(name: str) -> None:
    box = BOXES[name]
    row, column = (int(n * 0.7) for n in box.shape)
    outline = shapely.segmentize(shapely.box(column, row, column + 1, row + 1), 0.02)
    c, r = shapely.get_coordinates(outline).T
    x, y = box.transform * (c, r)
    lon, lat = Transformer.from_crs(str(box.crs), "EPSG:4326", always_xy=True).transform(x, y)
    expected = abs(GEOD.polygon_area_perimeter(lon, lat)[0])
    found = area_factor(box)(np.array([row + 0.5]), np.array([column + 0.5]))
    assert float(found[0, 0]) == pytest.approx(expected, rel=3e-7)


def test_cell_areas_are_those_of_their_outlines() -> None:
    for grid in (target_grid("0.25deg", over=NORTH), target_grid(model_grid(), over=SOUTH)):
        (south, north), (west, east) = grid.lat_bounds[0], grid.lon_bounds[0]
        ring = shapely.get_coordinates(shapely.segmentize(shapely.box(west, south, east, north), (east - west) / 400))
        assert grid.cell_areas()[0, 0] == pytest.approx(abs(GEOD.polygon_area_perimeter(*ring.T)[0]), rel=1e-5)
    albers = target_grid(GeoBox((9, 9), Affine(50_000, 0, 0, 0, -50_000, 2e6), "EPSG:5070"))
    np.testing.assert_allclose(albers.cell_areas(), 2.5e9, rtol=1e-9)
    mercator = target_grid(GeoBox((3, 3), Affine(1e5, 0, 0, 0, -1e5, 6e6), "EPSG:3395"))
    lon, lat = Transformer.from_crs("EPSG:3395", "EPSG:4326", always_xy=True).transform([0, 1e5], [6e6, 5.9e6])
    band = abs(float(np.diff(zone_areas(np.array(lat)))[0])) * np.deg2rad(lon[1] - lon[0])
    assert mercator.cell_areas()[0, 0] == pytest.approx(band, rel=1e-8)


def test_extent_of_maps_across_the_dateline_is_narrow() -> None:
    east = GeoBox((10, 10), Affine(0.1, 0, 179, 0, -0.1, 10), "EPSG:4326")
    west = GeoBox((10, 10), Affine(0.1, 0, -180, 0, -0.1, 10), "EPSG:4326")
    both = extent([east, west])
    assert (both.west, both.east) == pytest.approx((179, 181))


def test_a_grid_is_what_it_says() -> None:
    grid = target_grid("0.25deg", over=NORTH)
    assert isinstance(grid, ClimateGrid)
    assert grid.lat_bounds.dtype == grid.lon_bounds.dtype == np.float64
    np.testing.assert_array_equal(grid.lat_bounds[1:, 0], grid.lat_bounds[:-1, 1])
