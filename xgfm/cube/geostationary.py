"""A simulated day of smoke as a geostationary imager sees it: GOES ABI, 16 bands, a picture every few minutes.

In: a seed, a size, a place and a time. Out: the cube on the ABI's own 2 km grid, how much smoke there really is, and
outlines of it as an analyst would draw them. Nothing is lazy; the same seed gives the same bits. Reflectances and
temperatures are plausible, not measured: a stand-in for learning and testing, and a map of nothing real.

Band centres and the fixed grid (56 microradians, from the sub-satellite point) are those of the GOES-R Product
Definition and Users' Guide, volume 3. Smoke is a layer of little absorption between ground and sensor, in the
two-stream approximation (Coakley and Chylek 1975, doi:10.1175/1520-0469(1975)032<0409:TTSAIR>2.0.CO;2).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from xgfm.cube.noise import Field, blur, noise
from xgfm.cube.sky import sun_position
from xgfm.errors import GridError
from xgfm.grid import geobox_of, with_grid

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

ABI_BANDS = tuple(f"C{number:02d}" for number in range(1, 17))
"""Bands as ABI files name them: C01 to C06 are reflectance factors, C07 to C16 brightness temperatures in kelvin."""
_HEIGHT = 35_786_023.0
"""Metres of the satellite above the ellipsoid."""
_STEP = 56e-6 * _HEIGHT
"""Metres of a 2 km pixel on the fixed grid."""
_DISK = 2712
"""Pixels from the sub-satellite point to the edge of the full disk."""

# One value for each of C01 to C06.
_WAVELENGTH = np.array([0.47, 0.64, 0.865, 1.378, 1.61, 2.25], "float32")  # micrometres
_FOREST = np.array([0.022, 0.030, 0.350, 0.0, 0.150, 0.060], "float32")
_PASTURE = np.array([0.055, 0.095, 0.260, 0.0, 0.280, 0.190], "float32")
_RIVER = np.array([0.060, 0.050, 0.025, 0.0, 0.006, 0.004], "float32")
_MOLECULES = np.array([0.085, 0.024, 0.007, 0.002, 0.001, 0.0], "float32")
_CLOUD = np.array([0.66, 0.66, 0.68, 0.38, 0.46, 0.30], "float32")
_RELATIVE = np.array([0.006, 0.006, 0.006, 0.01, 0.008, 0.008], "float32")
"""Noise as a share of the signal; 0.001 comes on top."""
# One value for each of C07 to C16.
_CLEAR = np.array([297.0, 236.0, 247.0, 258.0, 290.0, 266.0, 294.0, 293.0, 290.0, 271.0], "float32")
"""Kelvin over ground of 297 K."""
_SURFACE = np.array([0.95, 0.0, 0.03, 0.12, 0.85, 0.45, 0.95, 0.92, 0.85, 0.35], "float32")
"""Kelvin more for each kelvin that the ground is warmer."""
_EMITTED = np.array([0.15, 0.10, 0.10, 0.10, 0.08, 0.10, 0.06, 0.06, 0.07, 0.2], "float32")
"""Noise in kelvin."""
_ANGSTROM, _ALBEDO, _BACK = 1.8, 0.92, 0.16
"""Of smoke: how fast optical depth falls with wavelength, share of light that is not absorbed, share sent back."""
_PUFF = 5
"""Minutes from one puff of a fire to the next."""
_SEEN = 0.3
"""Optical depth from which on an analyst sees smoke."""
_LEAST = 20
"""Pixels under which nobody draws an outline."""


@dataclass(frozen=True, slots=True)
class _Scene:
    """What every picture of a day shares. Lengths are pixels, times minutes from the first picture."""

    ground: Field  # (6, y, x)
    warm: Field  # (y, x), kelvin above or below average
    wind: NDArray[np.float64]  # (2,), rows and columns a minute
    turn: float  # radians a minute
    fires: NDArray[np.float64]  # (fire, 4): row, column, start, strength
    clouds: tuple[Field, float, Field]  # field, threshold, height 0 to 1
    curls: Field


def abi_geobox(place: tuple[float, float], shape: tuple[int, int], *, satellite: float = -75.0) -> GeoBox:
    """Return a window of the ABI's 2 km fixed grid.

    Parameters
    ----------
    place
        Latitude and longitude of its middle, degrees.
    shape
        Rows and columns.
    satellite
        Longitude of the satellite: -75 is GOES-East, -137 GOES-West.

    Returns
    -------
    GeoBox
        In the satellite's own projection, metres on the grid: scanning angle times height.

    Raises
    ------
    GridError
        The window is not on the disk that the satellite sees.
    """
    from affine import Affine
    from odc.geo.crs import CRS
    from odc.geo.geobox import GeoBox
    from pyproj import Transformer

    crs = CRS(f"+proj=geos +h={_HEIGHT:.0f} +lon_0={satellite:g} +sweep=x +ellps=GRS80 +units=m +no_defs")
    x, y = Transformer.from_crs("EPSG:4326", crs.proj, always_xy=True).transform(place[1], place[0])
    if not np.isfinite([x, y]).all():
        raise GridError(
            f"place {place} is out of sight of a satellite over {satellite:g} degrees east; give another place="
        )
    left, top = round(x / _STEP) - shape[1] // 2, round(y / _STEP) + shape[0] // 2
    if min(left, top - shape[0]) < -_DISK or max(left + shape[1], top) > _DISK:
        raise GridError(
            f"a window of {shape} round {place} leaves the full disk; give a smaller shape= or another place="
        )
    return GeoBox(shape, Affine(_STEP, 0, left * _STEP, 0, -_STEP, top * _STEP), crs)


def simulate_goes(
    *,
    seed: int,
    shape: tuple[int, int] = (256, 256),
    start: str = "2024-08-20T13:00",
    steps: int = 13,
    minutes: int = 10,
    place: tuple[float, float] = (-12.0, -56.0),
    satellite: float = -75.0,
    fires: int = 12,
) -> tuple[xr.DataArray, xr.DataArray]:
    """Return some hours of smoke over forest and pasture, as ABI's level 2 cloud and moisture imagery would hold them.

    Parameters
    ----------
    seed
        The same seed and options give the same pixels.
    shape
        Rows and columns, in pixels of 2 km at the sub-satellite point.
    start
        Of the first picture, UTC; by daylight.
    steps, minutes
        Pictures, and minutes from one to the next.
    place, satellite
        As of `abi_geobox`; by default southern Amazonia from GOES-East.
    fires
        How many burn, or begin to.

    Returns
    -------
    cube : DataArray
        ``(time, band, y, x)``, float32: `ABI_BANDS`, reflectance factors from 0 to 1, and kelvin.
    smoke : DataArray
        ``(time, y, x)``, float32: optical depth at 0.55 micrometres.

    Raises
    ------
    GridError
        As `abi_geobox`.
    """
    geobox = abi_geobox(place, shape, satellite=satellite)
    scene = _scene(seed, shape, fires)
    times = np.datetime64(start, "ns") + np.arange(steps) * np.timedelta64(minutes, "m")
    depth = np.stack([_smoke(scene, float(step * minutes), seed) for step in range(steps)])
    pixels = np.stack([
        _observe(scene, np.random.default_rng([seed, 2, step]), depth[step], float(step * minutes),
                 np.cos(np.deg2rad(sun_position(time, place[1], place[0])[0])))
        for step, time in enumerate(times)
    ])  # fmt: skip
    attrs = {
        "long_name": "simulated ABI reflectance factor (C01 to C06) and brightness temperature in kelvin (C07 to C16)",
        "reflectance_scale": 1.0,
        "attribution": "simulated by xgfm: no real image",
        "simulated": 1,
    }
    cube = xr.DataArray(pixels, {"time": times, "band": list(ABI_BANDS)}, ("time", "band", "y", "x"), "abi", attrs)
    about = {"long_name": "optical depth of smoke at 0.55 micrometres", "units": "1"}
    smoke = xr.DataArray(depth, {"time": times}, ("time", "y", "x"), "smoke", about)
    return with_grid(cube, geobox), with_grid(smoke, geobox)


def outline_smoke(smoke: xr.DataArray, *, every: int = 1, seed: int = 0) -> dict[str, Any]:
    """Return outlines of smoke as an analyst draws them: a little off, round what can be seen, picture by picture.

    Parameters
    ----------
    smoke : DataArray
        Optical depth ``(time, y, x)``, of `simulate_goes`.
    every : int
        Pictures from one that is drawn on to the next.
    seed : int
        Of the analyst's hand.

    Returns
    -------
    dict
        A GeoJSON FeatureCollection in degrees. Properties: ``class``, ``smoke`` for a plume and ``no smoke`` for the
        outline of all that was looked at; ``density``, light, medium or heavy; ``time``, ISO 8601 UTC.
    """
    rng = np.random.default_rng([seed, 3])
    features = [f for step in range(0, smoke.sizes["time"], every) for f in _outlines(smoke.isel(time=step), rng)]
    return {"type": "FeatureCollection", "features": features}


# ---- the scene


def _scene(seed: int, shape: tuple[int, int], fires: int) -> _Scene:
    rng = np.random.default_rng([seed, 1])
    cleared = np.clip(0.5 + 1.6 * noise(rng, shape, scale=30, slope=1.6), 0, 1)
    river = np.clip(6 * (0.06 - np.abs(noise(rng, shape, scale=90, slope=2.4))), 0, 1)
    shade = 1 + 0.12 * noise(rng, shape, scale=12, slope=1.2)
    land = _mixed(_FOREST, _PASTURE, cleared) * shade
    ground = np.clip(land + river * (_RIVER[:, None, None] - land), 0, 1).astype("float32")
    speed, heading = rng.uniform(0.13, 0.24), rng.uniform(0, 2 * np.pi)  # 4 to 8 m/s
    return _Scene(
        ground=ground,
        warm=(9 * cleared - 4 * river + 1.5 * noise(rng, shape, scale=20, slope=1.5)).astype("float32"),
        wind=speed * np.array([np.sin(heading), np.cos(heading)]),
        turn=rng.normal(0, 0.002),
        fires=_fires(np.random.default_rng([seed, 5]), shape, fires),
        clouds=(
            noise(rng, shape, scale=40, slope=1.9),
            rng.uniform(0.9, 1.8),
            np.clip(0.35 + 0.3 * noise(rng, shape, scale=80, slope=2.2), 0, 1),
        ),
        curls=noise(rng, shape, scale=16, slope=1.7),
    )


def _fires(rng: np.random.Generator, shape: tuple[int, int], count: int) -> NDArray[np.float64]:
    where = rng.uniform(0.05, 0.95, (count, 2)) * shape
    return np.column_stack([where, rng.uniform(-200, 60, count), rng.lognormal(3.2, 0.6, count)])


def _mixed(one: Field, other: Field, share: Field) -> Field:
    """Spectra ``(6, y, x)`` of ground that is partly one thing and partly another."""
    return one[:, None, None] + share * (other - one)[:, None, None]


def _smoke(scene: _Scene, minute: float, seed: int) -> Field:
    """Optical depth ``(y, x)``: puffs that drift and widen."""
    rows, columns = (np.arange(size) + 0.5 for size in scene.warm.shape)
    depth = np.zeros(scene.warm.shape)
    for number, (row, column, start, strength) in enumerate(scene.fires):
        born = np.arange(start, minute, _PUFF)
        if not born.size:
            continue
        own = np.random.default_rng([seed, 4, number]).normal(0, 1, (4096, 2))[: len(born)]
        away = _drift(scene, born, minute) * (1 + 0.07 * own)
        width = 0.9 + 0.14 * np.hypot(*away.T)
        mass = 0.6 * strength * (1 + 0.25 * np.sin(born / 37 + number)) / (2 * np.pi * width**2)
        up = np.exp(-((rows[:, None] - row - away[:, 0]) ** 2) / (2 * width**2))
        along = np.exp(-((columns[:, None] - column - away[:, 1]) ** 2) / (2 * width**2))
        depth += (up * mass) @ along.T
    haze = 0.05 * np.exp(0.5 * _carried(scene, scene.curls, minute / 2))
    out: Field = (depth * np.exp(0.35 * _carried(scene, scene.curls, minute)) + haze).astype("float32")
    return out


def _drift(scene: _Scene, born: NDArray[np.float64], minute: float) -> NDArray[np.float64]:
    """Rows and columns ``(puff, 2)`` that the wind, which turns, has carried puffs."""
    middle = (born + minute) / 2 * scene.turn
    turned = np.stack([np.cos(middle), -np.sin(middle), np.sin(middle), np.cos(middle)], -1).reshape(-1, 2, 2)
    return (turned @ scene.wind) * (minute - born)[:, None]


def _carried(scene: _Scene, field: Field, minute: float) -> Field:
    """A field that goes with the wind; it repeats itself beyond its edges."""
    return np.roll(field, tuple(np.rint(scene.wind * minute).astype(int)), axis=(0, 1))


# ---- what is seen of it


def _observe(scene: _Scene, rng: np.random.Generator, depth: Field, minute: float, sun: float) -> Field:
    """One picture ``(16, y, x)``, of a sun whose height has the cosine ``sun`` from the zenith."""
    field, threshold, height = scene.clouds
    cloud = np.clip(2.2 * (_carried(scene, field, 1.4 * minute) - threshold), 0, 0.97).astype("float32")
    height = _carried(scene, height, 1.4 * minute)
    reflected = _reflected(scene.ground, depth, cloud, height, sun)
    emitted = _emitted(scene.warm + 6 * sun, cloud, height, sun)
    burning = (scene.fires[:, 2] < minute) & (scene.fires[:, 2] > minute - 240)
    for row, column, _, strength in scene.fires[burning]:
        at = int(row), int(column)
        clear = 1 - cloud[at]
        reflected[5][at] += 0.004 * strength * clear
        emitted[0][at] = min(emitted[0][at] + 1.3 * strength * clear, 411.0)  # where the band saturates
    seen = blur(np.concatenate([reflected, emitted]), 0.06)
    scatter = np.concatenate(
        [0.001 + _RELATIVE[:, None, None] * seen[:6], np.tile(_EMITTED[:, None, None], depth.shape)]
    )
    out: Field = (seen + scatter * rng.standard_normal(seen.shape, "float32")).astype("float32")
    return out


def _reflected(ground: Field, depth: Field, cloud: Field, height: Field, sun: float) -> Field:
    """Reflectance factors ``(6, y, x)``: ground, smoke over it, clouds over both."""
    tau = depth * (_WAVELENGTH[:, None, None] / 0.55) ** -_ANGSTROM
    sent = _BACK * tau * (0.5 + 0.5 / sun)
    back, through = _ALBEDO * sent / (1 + sent), np.exp(-(1 - _ALBEDO) * tau) / (1 + sent)
    below = back + through**2 * ground / (1 - back * ground)
    top = np.tile(_CLOUD[:, None, None], height.shape)
    top[3] *= np.clip(2 * height - 0.6, 0, 1)  # vapour hides low clouds at 1.378 micrometres
    seen = below + cloud * (top - below) + _MOLECULES[:, None, None] / sun * (1 - 0.7 * cloud)
    out: Field = (seen * sun).astype("float32")
    return out  # a reflectance factor, as ABI's, is not divided by the sun's height


def _emitted(warm: Field, cloud: Field, height: Field, sun: float) -> Field:
    """Brightness temperatures ``(10, y, x)``; smoke lets thermal light through."""
    clear = _CLEAR[:, None, None] + _SURFACE[:, None, None] * warm
    clear[0] += 4 * sun
    top = np.minimum(286 - 75 * height + np.array([12.0 * sun] + [0.0] * 9)[:, None, None], clear)
    out: Field = (clear + cloud * (top - clear)).astype("float32")
    return out


# ---- what an analyst draws


def _outlines(smoke: xr.DataArray, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Features of one picture: all that was looked at, and the plumes."""
    import shapely
    from rasterio.features import shapes

    geobox = geobox_of(smoke)
    time = f"{np.datetime_as_string(smoke['time'].values, unit='s')}Z"
    yield _feature(geobox.extent.geom, geobox, {"class": "no smoke", "time": time})
    seen = blur(smoke.values, 0.2) > _SEEN
    for outline, _ in shapes(seen.astype("uint8"), mask=seen, transform=geobox.transform):
        plume = shapely.geometry.shape(outline)
        if plume.area < _LEAST * _STEP**2:
            continue
        corners = np.array(plume.simplify(1.2 * _STEP).exterior.coords)[:-1]
        drawn = shapely.Polygon(corners + rng.normal(0, 0.35 * _STEP, corners.shape)).buffer(
            0
        )  # no line crosses itself
        yield _feature(drawn, geobox, {"class": "smoke", "time": time})


def _feature(outline: Any, geobox: GeoBox, properties: dict[str, str]) -> dict[str, Any]:
    """A GeoJSON feature, in degrees; its sides stay straight on the grid."""
    import shapely
    from pyproj import Transformer

    to_degrees = Transformer.from_crs(geobox.crs.proj, "EPSG:4326", always_xy=True)  # type: ignore[union-attr]
    placed = shapely.transform(
        shapely.segmentize(outline, 10 * _STEP), lambda xy: np.column_stack(to_degrees.transform(*xy.T))
    )
    return {"type": "Feature", "properties": properties, "geometry": shapely.geometry.mapping(placed)}
