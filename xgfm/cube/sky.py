"""What stands between a simulated land and the sensor: sun, swath, clouds and their shadows, haze, and the Fmask.

In: a granule's time, sensor and place. Out: a `Sky` of arrays ``(y, x)``, reflectance as it is seen through it, and
the Fmask that goes with it. Plain NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xgfm.cube.mask import FMASK_FILL
from xgfm.cube.noise import Field, dilate, noise

_CLOUD = np.array([0.62, 0.62, 0.64, 0.68, 0.48, 0.36], "float32")
"""Reflectance of thick cloud; ice and droplets absorb in the shortwave infrared."""
_DIFFUSE = np.array([0.52, 0.45, 0.40, 0.33, 0.27, 0.25], "float32")
"""Share of the light that reaches the ground under thick cloud: more of it in the blue."""
_HAZE = np.array([0.010, 0.007, 0.005, 0.002, 0.001, 0.0005], "float32")
"""What one unit of haze adds to surface reflectance when aerosols are not corrected for in full."""
_DETECTED = 0.18
"""Opacity at which the Fmask sees a cloud or a shadow; thinner ones stay in the data."""
ADJACENT = 5
"""Pixels round cloud and shadow that HLS flags as adjacent."""


@dataclass(frozen=True, slots=True)
class Sky:
    """What a granule looks through, pixel by pixel."""

    cloud: Field
    """Opacity of clouds, 0 to 1."""
    shadow: Field
    """Opacity of the clouds between the pixel and the sun, 0 to 1."""
    haze: Field
    """Aerosol against an average day, 0 and up."""
    bright: Field
    """Brightness of cloud tops, 1 on average."""
    imaged: NDArray[np.bool_]
    """Where the swath covers the ground."""


def sun_position(time: np.datetime64, longitude: float, latitude: float) -> tuple[float, float]:
    """Return zenith and azimuth (clockwise from north) of the sun, in degrees, good to about half a degree.

    Spencer (1971), "Fourier series representation of the position of the sun", Search 2(5), 172.
    """
    year = time.astype("datetime64[Y]")
    hours = (time - year) / np.timedelta64(1, "h")
    angle = 2 * np.pi * hours / 24 / 365.25
    declination = (0.006918 - 0.399912 * np.cos(angle) + 0.070257 * np.sin(angle)
                   - 0.006758 * np.cos(2 * angle) + 0.000907 * np.sin(2 * angle))  # fmt: skip
    equation = 3.8197 * (0.000075 + 0.001868 * np.cos(angle) - 0.032077 * np.sin(angle)
                         - 0.014615 * np.cos(2 * angle) - 0.040849 * np.sin(2 * angle))  # fmt: skip
    hour_angle = np.deg2rad(15 * (hours % 24 - 12 + longitude / 15 + equation))
    phi = np.deg2rad(latitude)
    cosine = np.sin(phi) * np.sin(declination) + np.cos(phi) * np.cos(declination) * np.cos(hour_angle)
    east = -np.cos(declination) * np.sin(hour_angle)
    north = np.cos(phi) * np.sin(declination) - np.sin(phi) * np.cos(declination) * np.cos(hour_angle)
    return float(np.rad2deg(np.arccos(cosine))), float(np.rad2deg(np.arctan2(east, north)) % 360)


def draw_sky(rng: np.random.Generator, imaged: NDArray[np.bool_], *, cover: float, sun: tuple[float, float]) -> Sky:
    """Draw clouds that hide about the share ``cover`` of the ground, and their shadows.

    Parameters
    ----------
    rng
        Source of randomness.
    imaged
        Where the swath covers the ground, ``(y, x)``.
    cover
        Share of the ground under cloud, 0 to 1.
    sun
        Zenith and azimuth in degrees: a shadow falls ``height * tan(zenith)`` away from the sun.
    """
    shape = imaged.shape
    heaped = rng.random() < 0.6
    scale, slope, height = (40, 2.3, rng.uniform(900, 2200)) if heaped else (250, 2.3, rng.uniform(1800, 5000))
    reach = height * np.tan(np.deg2rad(min(sun[0], 75.0))) / 30
    away = round(reach * np.cos(np.deg2rad(sun[1]))), round(-reach * np.sin(np.deg2rad(sun[1])))
    pad = max(abs(away[0]), abs(away[1])) + 1
    wide = (shape[0] + 2 * pad, shape[1] + 2 * pad)
    opacity = _opacity(noise(rng, wide, scale=scale, slope=slope), cover, 3.5 if heaped else 2.2)
    here = slice(pad, pad + shape[0]), slice(pad, pad + shape[1])
    haze = 0.35 + 0.35 * rng.gamma(1.5) + 0.3 * noise(rng, shape, scale=150, slope=2)
    return Sky(
        opacity[here],
        np.roll(opacity, away, (0, 1))[here],
        np.maximum(haze, 0).astype("float32"),
        (1 + 0.12 * noise(rng, shape, scale=25, slope=1.8)).astype("float32"),
        imaged,
    )


def _opacity(thickness: Field, cover: float, contrast: float) -> Field:
    """Opacity of the thickest ``cover`` of a field; it grows from the clouds' edges inwards."""
    if cover <= 0:
        return np.zeros_like(thickness)
    edge = np.quantile(thickness, 1 - min(cover, 1.0))
    opacity: Field = (1 - np.exp(-contrast * np.maximum(thickness - edge, 0))).astype("float32")
    return opacity


def look_through(sky: Sky, ground: Field) -> Field:
    """Return reflectance ``(band, y, x)`` of a ground ``(band, y, x)`` seen through the sky."""
    lit = ground * (1 - sky.shadow * (1 - _DIFFUSE[:, np.newaxis, np.newaxis]))
    hazy = lit + sky.haze * _HAZE[:, np.newaxis, np.newaxis]
    tops = _CLOUD[:, np.newaxis, np.newaxis] * sky.bright
    seen: Field = (hazy + sky.cloud * (tops - hazy)).astype("float32")
    return seen


def fmask_of(sky: Sky, water: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the Fmask of a sky over a land with ``water``: cloud, adjacent, shadow, water, aerosol; 255 for fill."""
    cloud = (sky.cloud > _DETECTED) & sky.imaged
    shadow = (sky.shadow > _DETECTED) & ~cloud & sky.imaged
    near = dilate(cloud | shadow, ADJACENT) & ~cloud & ~shadow
    level = np.select([(sky.haze > 1.7) | (sky.cloud > 0.6), sky.haze > 1.1], [3, 2], 1)
    bits = cloud * 2 | near * 4 | shadow * 8 | water * 32 | level << 6
    return np.where(sky.imaged, bits, FMASK_FILL).astype("uint8")


def cloud_cover(fmask: NDArray[np.uint8]) -> int:
    """Return the share of the imaged pixels that are cloud, in whole percent, as granules state it."""
    imaged = fmask != FMASK_FILL
    return round(100 * float(((fmask & 2) > 0)[imaged].mean()))
