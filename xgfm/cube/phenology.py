"""How the land covers of a simulated season look through the year.

In: a cover and days of the year. Out: green, dry and bare shares of the ground, and reflectance in the six bands.
Plain NumPy; one row per patch of land (a field, a stand, a lake), so that a patch is computed once and not per pixel.

The green share follows a double logistic curve (Zhang et al. 2003, doi:10.1016/S0034-4257(02)00135-9; in the form of
Beck et al. 2006, doi:10.1016/j.rse.2005.10.021). Days are rounded to what central Minnesota sees, after USDA NASS,
Agricultural Handbook 628, "Usual Planting and Harvesting Dates for U.S. Field Crops". Reflectances are rounded values
of the kind that spectral libraries (USGS Spectral Library 7, doi:10.3133/ds1035; ECOSTRESS) and published field
spectra of maize and soybean hold: plausible, not measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xgfm.models.spec import ClassInfo

Values = NDArray[np.float64]

SPECTRA: dict[str, tuple[float, ...]] = {
    #               blue   green  red    nir08  swir16 swir22
    "maize": (0.026, 0.052, 0.030, 0.400, 0.185, 0.083),
    "soybean": (0.028, 0.064, 0.032, 0.520, 0.235, 0.105),
    "wheat": (0.030, 0.062, 0.034, 0.430, 0.185, 0.080),
    "alfalfa": (0.028, 0.066, 0.032, 0.490, 0.210, 0.098),
    "grass": (0.036, 0.072, 0.046, 0.360, 0.235, 0.125),
    "broadleaf": (0.020, 0.040, 0.022, 0.370, 0.155, 0.062),
    "conifer": (0.016, 0.028, 0.019, 0.220, 0.090, 0.040),
    "sedge": (0.028, 0.050, 0.036, 0.270, 0.125, 0.062),
    "lawn": (0.036, 0.070, 0.044, 0.390, 0.210, 0.105),
    "stover": (0.072, 0.104, 0.138, 0.230, 0.310, 0.225),
    "straw": (0.095, 0.145, 0.195, 0.310, 0.390, 0.290),
    "dead grass": (0.062, 0.095, 0.135, 0.240, 0.310, 0.210),
    "litter": (0.042, 0.058, 0.078, 0.165, 0.220, 0.150),
    "dead sedge": (0.055, 0.080, 0.110, 0.190, 0.210, 0.140),
    "dark soil": (0.046, 0.064, 0.086, 0.140, 0.205, 0.175),
    "light soil": (0.085, 0.120, 0.160, 0.235, 0.320, 0.285),
    "wet ground": (0.028, 0.036, 0.038, 0.045, 0.040, 0.028),
    "clear water": (0.022, 0.025, 0.015, 0.008, 0.004, 0.003),
    "turbid water": (0.034, 0.052, 0.038, 0.018, 0.007, 0.004),
    "built": (0.088, 0.098, 0.108, 0.150, 0.175, 0.155),
    "gravel": (0.120, 0.150, 0.180, 0.230, 0.280, 0.250),
}
"""Surface reflectance, 0 to 1, in the order of `PRITHVI_BANDS`."""


@dataclass(frozen=True, slots=True)
class Cover:
    """One land cover: its curve through the year and what it is made of. Days are days of the year."""

    name: str
    color: str
    """Of the USDA Cropland Data Layer's legend."""
    green: tuple[str, str]
    """Two spectra of the living canopy; a patch lies anywhere between them."""
    dry: str
    """Spectrum of dead leaves, stubble, residue."""
    bare: tuple[str, str]
    """Two spectra of what is under it."""
    low: float
    """Green share out of season."""
    high: float
    """Green share at the peak."""
    rise: float
    """Day of the steepest green-up."""
    rise_rate: float
    """Per day."""
    fall: float
    """Day of the steepest senescence."""
    fall_rate: float
    spread: float
    """Standard deviation of a patch's dates, days."""
    vary: float
    """Standard deviation of a patch's peak."""
    residue: float
    """Share of the ground under dead matter in spring, where it is not green."""
    senesced: float
    """Share of the green lost in autumn that stays as dead matter."""
    harvest: float | None = None
    stubble: float = 0.0
    """Share under dead matter once harvested."""
    tillage: float | None = None
    """Day on which the spring's residue is worked in."""
    cuts: tuple[float, ...] = ()
    """Days on which it is mown, to grow again."""


_SOIL = ("dark soil", "light soil")
COVERS = (
    Cover("Natural Vegetation", "#e8ffbf", ("grass", "lawn"), "dead grass", _SOIL,
          0.10, 0.72, 131, 0.075, 250, 0.035, 5, 0.09, 0.70, 0.85),
    Cover("Forest", "#93cc93", ("broadleaf", "conifer"), "litter", ("litter", "litter"),
          0.06, 0.95, 138, 0.16, 277, 0.13, 3, 0.02, 0.50, 0.60),
    Cover("Corn", "#ffd300", ("maize", "maize"), "stover", _SOIL,
          0.00, 0.93, 171, 0.11, 254, 0.085, 6, 0.03, 0.35, 0.85, 288, 0.75, 125),
    Cover("Soybeans", "#267000", ("soybean", "soybean"), "stover", _SOIL,
          0.00, 0.95, 188, 0.10, 259, 0.14, 7, 0.03, 0.60, 0.50, 276, 0.45, 137),
    Cover("Wetlands", "#7cafaf", ("sedge", "grass"), "dead sedge", ("wet ground", "dark soil"),
          0.05, 0.78, 153, 0.075, 254, 0.06, 5, 0.10, 0.55, 0.75),
    Cover("Developed/Barren", "#999999", ("lawn", "broadleaf"), "dead grass", ("built", "gravel"),
          0.06, 0.36, 126, 0.09, 282, 0.06, 3, 0.10, 0.10, 0.30),
    Cover("Open Water", "#4970a3", ("sedge", "sedge"), "litter", ("clear water", "turbid water"),
          0.00, 0.00, 150, 0.10, 250, 0.10, 0, 0.00, 0.00, 0.00),
    Cover("Winter Wheat", "#a57000", ("wheat", "wheat"), "straw", _SOIL,
          0.16, 0.91, 120, 0.09, 188, 0.14, 5, 0.03, 0.15, 0.95, 211, 0.62),
    Cover("Alfalfa", "#ffa5e2", ("alfalfa", "alfalfa"), "straw", _SOIL,
          0.09, 0.93, 116, 0.09, 296, 0.07, 5, 0.02, 0.25, 0.60, cuts=(154, 187, 223)),
)  # fmt: skip
CLASSES = tuple(ClassInfo(cover.name, cover.color) for cover in COVERS)
"""What the label raster's values 0, 1, 2... mean."""


def double_logistic(day: Values, rise: float, rise_rate: float, fall: float, fall_rate: float) -> Values:
    """Return the curve of Beck et al. (2006), equation 3, from 0 in winter to 1 at the peak of a long season."""
    up = 1 / (1 + np.exp(-rise_rate * (day - rise)))
    down = 1 / (1 + np.exp(fall_rate * (day - fall)))
    return np.clip(up + down - 1, 0, 1)


def regrowth(day: Values, cuts: Values) -> Values:
    """Return the share of the canopy that stands, 1 before the first cut and 0.15 on the day of each.

    Parameters
    ----------
    day
        Broadcasts against one row of ``cuts``.
    cuts
        ``(cut, patch)``, in order of date. A stand is closed again some 25 days after a cut.
    """
    standing = np.ones(np.broadcast_shapes(np.shape(day), cuts.shape[1:]))
    for cut in cuts:
        grown = 0.15 + 0.85 / (1 + np.exp(-(day - cut - 14) / 3.5))
        standing = np.where(day >= cut, grown, standing)
    return standing


@dataclass(frozen=True, slots=True)
class Patches:
    """Patches of one cover, each with its own dates, vigour and colours, ``(patch,)`` or ``(patch, band)``."""

    cover: Cover
    shift: Values
    """Days that the patch is late."""
    high: Values
    low: Values
    harvest_shift: Values
    green: Values
    dry: Values
    bare: Values

    def shares(self, day: float) -> tuple[Values, Values]:
        """Return green and dry shares of the ground on a day of the year, both ``(patch,)``; the rest is bare."""
        cover = self.cover
        late = np.asarray(day - self.shift)
        curve = double_logistic(late, cover.rise, cover.rise_rate, cover.fall, cover.fall_rate)
        standing = regrowth(late, np.array([[cut] for cut in cover.cuts])) if cover.cuts else 1.0
        green = (self.low + (self.high - self.low) * curve) * standing
        left = cover.residue if cover.tillage is None else cover.residue * (0.3 + 0.7 * _before(late, cover.tillage))
        autumn = 1 - _before(late, (cover.rise + cover.fall) / 2)
        dry = left * (1 - green) * (1 - autumn) + cover.senesced * np.clip(self.high - green, 0, 1) * autumn
        if cover.harvest is not None:
            cut = day >= cover.harvest + self.shift + self.harvest_shift
            green, dry = np.where(cut, 0.06, green), np.where(cut, cover.stubble, dry)
        return green, np.minimum(dry, 1 - green)


def _before(day: Values, when: float) -> Values:
    """Fall from 1 to 0 within about ten days of ``when``."""
    return 1 / (1 + np.exp(np.clip((day - when) / 2.5, -60, 60)))


def typical_patch(cover: Cover) -> Patches:
    """Return one patch half way between the extremes of a cover."""
    zero = np.zeros(1)
    return Patches(
        cover, zero, zero + cover.high, zero + cover.low, zero,
        _between(cover.green, zero + 0.25), _between((cover.dry, cover.dry), zero), _between(cover.bare, zero + 0.3),
    )  # fmt: skip


def draw_patches(rng: np.random.Generator, cover: Cover, count: int, year_shift: float) -> Patches:
    """Draw ``count`` patches of a cover, in a year that is ``year_shift`` days late."""
    mix = rng.beta(1.2, 2.5, count)
    evergreen = 0.75 * mix if "conifer" in cover.green else 0.0
    tint = 1 + 0.05 * rng.standard_normal((count, 1)) + 0.025 * rng.standard_normal((count, 6))
    return Patches(
        cover,
        shift=year_shift + cover.spread * rng.standard_normal(count),
        high=np.clip(cover.high + cover.vary * rng.standard_normal(count), cover.low, 0.98),
        low=np.full(count, cover.low) + evergreen,
        harvest_shift=6 * rng.standard_normal(count),
        green=_between(cover.green, mix) * tint,
        dry=_between((cover.dry, cover.dry), mix) * (1 + 0.10 * rng.standard_normal((count, 1))),
        bare=_between(cover.bare, rng.beta(1.4, 3.2, count)) * (1 + 0.05 * rng.standard_normal((count, 1))),
    )


def _between(ends: tuple[str, str], share: Values) -> Values:
    one, other = (np.array(SPECTRA[name]) for name in ends)
    mixed: Values = one + share[:, np.newaxis] * (other - one)
    return mixed


def reflectance(patches: Patches, day: float) -> Values:
    """Return surface reflectance ``(patch, band)`` on a day of the year: a linear mixture of green, dry and bare."""
    green, dry = patches.shares(day)
    shares = np.stack([green, dry, 1 - green - dry])
    spectra = np.stack([patches.green, patches.dry, patches.bare])
    mixed: Values = np.einsum("kp,kpb->pb", shares, spectra)
    return mixed


def typical_season(cover: Cover, days: Values) -> Values:
    """Return reflectance ``(day, band)`` of a typical patch of a cover: its curve, for plots and for tests."""
    patch = typical_patch(cover)
    return np.concatenate([reflectance(patch, float(day)) for day in days])
