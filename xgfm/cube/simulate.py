"""Simulated HLS seasons: a piece of farmland through the year, as Landsat and Sentinel-2 would have seen it.

In: a seed, a size and a place on the lattice of an HLS tile. Out: either the cube and its labels in memory, or a folder
of granules as the archive publishes them (COGs, STAC items) with the label raster. Nothing is lazy; the same seed gives
the same bits. It is a stand-in for learning and testing, and a map of nothing real.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from xgfm.cube.climates import covers_of
from xgfm.cube.items import SIMULATED
from xgfm.cube.landscape import Land, build_land
from xgfm.cube.noise import blur, noise
from xgfm.cube.overpass import Overpass, plan_overpasses
from xgfm.cube.phenology import CLASSES, SPECTRA, Patches, draw_patches
from xgfm.cube.publish import write_granule, write_items, write_truth
from xgfm.cube.sky import cloud_cover, draw_sky, fmask_of, look_through
from xgfm.errors import GridError
from xgfm.grid import TILE_PIXELS, parse_tile, tile_geobox, with_grid
from xgfm.models.spec import PRITHVI_BANDS, ClassInfo

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

NODATA = -9999
_NOISE = {"L30": (8.0, 0.004), "S30": (12.0, 0.007)}
"""Sensor noise: a floor in DN, and a share of the signal."""
_GAIN = {"L30": (1.0, 1.0, 1.0, 1.0, 1.0, 1.0), "S30": (1.01, 1.0, 0.995, 1.008, 1.0, 0.99)}
"""What is left of the difference between the sensors after harmonisation."""
_SPILL = 0.07
"""Share of a pixel's light that comes from the next pixel on each side."""
_WATER = [info.name for info in CLASSES].index("Open Water")
_MIDDLE = (1830, 2900)
"""Row and column of the tile where the simulated window lies by default: a swath of Landsat ends in it."""


@dataclass(frozen=True, slots=True)
class Season:
    """Where a simulated season was written."""

    items: Path
    """STAC item collection, JSON, with absolute hrefs."""
    truth: Path
    """Label raster, GeoTIFF, uint8: the index of the class in ``classes``."""
    classes: tuple[ClassInfo, ...]
    tile: str
    geobox: GeoBox
    """Grid of the simulated window."""
    bbox: tuple[float, float, float, float]
    """West, south, east, north in degrees; a little more than the window, which is not aligned with meridians."""
    datetime: str
    """First and last day, as searches take them: ``2024-04-11/2024-10-09``."""
    granules: tuple[str, ...]
    """Names of the granules, in order of date."""


@dataclass(frozen=True, slots=True)
class _Scene:
    """What every granule of a season shares."""

    land: Land
    patches: tuple[Patches, ...]
    geobox: GeoBox
    window: tuple[range, range]
    overpasses: list[Overpass]


def simulate_season(
    folder: str | Path,
    *,
    seed: int,
    shape: tuple[int, int] = (512, 512),
    tile: str = "T15TVM",
    year: int = 2024,
    granules: int = 16,
    max_cloud_cover: float = 50.0,
    climate: str = "continental",
) -> Season:
    """Write a season of HLS granules: COGs on their real asset keys, STAC items, and the true labels.

    Parameters
    ----------
    folder
        Made where it does not exist; files of the same names are replaced.
    seed
        The same seed and options give the same pixels; another shape is another land.
    shape
        Rows and columns, in pixels of 30 m: a window of the tile's own lattice.
    tile
        MGRS id. The land and the crop calendar are those of central Minnesota whatever the tile, but for ``climate``.
    year
        Of the season, April to October.
    granules
        Dates, L30 and S30 together.
    max_cloud_cover
        Percent; cloudier passes are left out.
    climate
        ``"continental"``, that of central Minnesota, or another one of `xgfm.cube.climates`: the same land, sky and
        passes under other plants' years.

    Returns
    -------
    Season
        Paths, grid and classes.
    """
    scene = _scene(seed, shape, tile, year, granules, max_cloud_cover, climate)
    root = Path(folder).resolve()
    root.mkdir(parents=True, exist_ok=True)
    items = []
    for overpass in scene.overpasses:
        pixels, fmask = _observe(scene, overpass)
        items.append(write_granule(root, overpass, pixels, fmask, scene.geobox))
    truth = write_truth(root / "truth.tif", scene.land.label, scene.geobox)
    days = [str(overpass.time.astype("datetime64[D]")) for overpass in scene.overpasses]
    return Season(
        items=write_items(root / "items.json", items),
        truth=truth,
        classes=CLASSES,
        tile=parse_tile(tile),
        geobox=scene.geobox,
        bbox=_bbox(scene.geobox),
        datetime=f"{days[0]}/{days[-1]}",
        granules=tuple(overpass.id for overpass in scene.overpasses),
    )


def simulate_cube(
    *,
    seed: int,
    shape: tuple[int, int] = (512, 512),
    tile: str = "T15TVM",
    year: int = 2024,
    granules: int = 16,
    max_cloud_cover: float = 50.0,
    climate: str = "continental",
) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the season of `simulate_season` in memory, without files. Parameters as there.

    Returns
    -------
    cube : xarray.DataArray
        ``(time, band, y, x)``, int16, with coordinate ``fmask``: what ``open_items(..., mask=None)`` reads.
    truth : xarray.DataArray
        ``(y, x)``, uint8.
    """
    scene = _scene(seed, shape, tile, year, granules, max_cloud_cover, climate)
    seen = [_observe(scene, overpass) for overpass in scene.overpasses]
    fmask = np.stack([fmask for _, fmask in seen])
    cover = [cloud_cover(fmask) for _, fmask in seen]
    coords = {
        "time": np.array([overpass.time for overpass in scene.overpasses], "datetime64[ns]"),
        "band": list(PRITHVI_BANDS),
        "sensor": ("time", [overpass.sensor for overpass in scene.overpasses]),
        "item": ("time", [overpass.id for overpass in scene.overpasses]),
        "eo:cloud_cover": ("time", np.array(cover, "float64")),
        "fmask": (("time", "y", "x"), fmask),
    }
    attrs = {
        "long_name": "simulated HLS surface reflectance, digital numbers",
        "nodata": NODATA,
        "reflectance_scale": 1e-4,
        "attribution": SIMULATED,
        "simulated": 1,
    }
    pixels = np.stack([pixels for pixels, _ in seen])
    cube = xr.DataArray(pixels, coords, ("time", "band", "y", "x"), "hls", attrs)
    truth = xr.DataArray(scene.land.label, dims=("y", "x"), name="truth", attrs={"long_name": "simulated land cover"})
    return with_grid(cube, scene.geobox), with_grid(truth, scene.geobox)


def _scene(
    seed: int, shape: tuple[int, int], tile: str, year: int, granules: int, max_cloud_cover: float, climate: str
) -> _Scene:
    covers = covers_of(climate)
    rows, columns = (_span(middle, size) for middle, size in zip(_MIDDLE, shape, strict=True))
    geobox = tile_geobox(tile)[rows.start : rows.stop, columns.start : columns.stop]
    west, south, east, north = _bbox(geobox)
    overpasses = plan_overpasses(
        parse_tile(tile),
        year,
        seed=seed,
        window=(rows, columns),
        place=((west + east) / 2, (south + north) / 2),
        granules=granules,
        max_cloud_cover=max_cloud_cover,
    )
    land = build_land(np.random.default_rng([seed, 1]), shape)
    rng = np.random.default_rng([seed, 2])
    late = rng.normal(0, 4)
    counts = np.bincount(land.patch_class, minlength=len(covers))
    patches = tuple(draw_patches(rng, cover, int(count), late) for cover, count in zip(covers, counts, strict=True))
    return _Scene(land, patches, geobox, (rows, columns), overpasses)


def _span(middle: int, size: int) -> range:
    """Rows or columns of the tile: ``size`` of them round ``middle``, moved inwards where they would stick out."""
    if not 1 <= size <= TILE_PIXELS:
        raise GridError(f"shape= takes 1 to {TILE_PIXELS} rows and columns, the size of a tile; got {size}")
    start = min(max(middle - size // 2, 0), TILE_PIXELS - size)
    return range(start, start + size)


def _bbox(geobox: GeoBox) -> tuple[float, float, float, float]:
    box = geobox.extent.to_crs("EPSG:4326").boundingbox
    return box.left, box.bottom, box.right, box.top


def _observe(scene: _Scene, overpass: Overpass) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """DN ``(band, y, x)`` and Fmask ``(y, x)`` of one granule."""
    rng = np.random.default_rng([*overpass.key, 1])
    imaged = overpass.imaged(*scene.window)
    sky = draw_sky(rng, imaged, cover=overpass.cover, sun=overpass.sun)
    day = 1 + (overpass.time - overpass.time.astype("datetime64[Y]")) / np.timedelta64(1, "D")
    ground = blur(_ground(scene, rng, float(day)), _SPILL)
    seen = look_through(sky, ground) * np.array(_GAIN[overpass.sensor], "float32")[:, np.newaxis, np.newaxis] * 1e4
    floor, share = _NOISE[overpass.sensor]
    seen += rng.standard_normal(seen.shape, "float32") * (floor + share * seen)
    pixels = np.where(imaged, np.clip(np.rint(seen), -1999, 16000), NODATA).astype("int16")
    return pixels, fmask_of(sky, scene.land.label == _WATER)


def _ground(scene: _Scene, rng: np.random.Generator, day: float) -> NDArray[np.float32]:
    """Surface reflectance ``(band, y, x)`` on a day of the year; the soil is wet after rain."""
    land = scene.land
    wet = rng.beta(1, 2) * np.clip(0.6 + 0.4 * noise(rng, land.label.shape, scale=200, slope=2), 0, 1)
    green_share, dry_share = (_of_patches(scene, shares) for shares in zip(*_shares(scene, day), strict=True))
    green = np.clip(green_share[land.patch] * land.vigour, 0, 0.98)
    dry = np.minimum(dry_share[land.patch], 1 - green)
    bare = (1 - green - dry) * land.soil * (1 - 0.3 * wet)
    spectra = [_of_patches(scene, [getattr(p, part) for p in scene.patches]) for part in ("green", "dry", "bare")]
    ground = np.empty((len(PRITHVI_BANDS), *land.label.shape), "float32")
    for band in range(len(PRITHVI_BANDS)):
        parts = zip((green, dry, bare), spectra, strict=True)
        mixed = sum(share * spectrum[land.patch, band] for share, spectrum in parts)
        ground[band] = mixed + land.gravel * (SPECTRA["gravel"][band] - mixed)
    return ground


def _shares(scene: _Scene, day: float) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    return [patches.shares(day) for patches in scene.patches]


def _of_patches(scene: _Scene, by_class: Sequence[NDArray[np.float64]]) -> NDArray[np.float32]:
    """Put what is known class by class into the order of the land's patches."""
    merged = np.empty((len(scene.land.patch_class), *by_class[0].shape[1:]), "float32")
    for code, values in enumerate(by_class):
        merged[scene.land.patch_class == code] = values
    return merged
