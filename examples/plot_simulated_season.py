"""Draw a simulated HLS season: NDVI of every class through the year, and the season in true colour.

    python examples/plot_simulated_season.py --seed 7 --picture season.png

Curves are those of a typical patch of each class, from `xgfm.cube.phenology`; dots are the medians of the clear pixels
of that class in the simulated granules, with all their clouds, haze, noise and mixed pixels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes

import xgfm
from xgfm.cube.phenology import COVERS, typical_season
from xgfm.cube.simulate import simulate_cube


def ndvi(red: np.ndarray, nir: np.ndarray) -> np.ndarray:
    """Normalised difference vegetation index."""
    return (nir - red) / (nir + red)


def draw_curves(axes: Axes, cube: xr.DataArray, truth: xr.DataArray) -> None:
    """Draw the curve of every class, and what the clear pixels show."""
    days = np.arange(91.0, 290.0)
    red, nir = (cube.sel(band=band).where(cube.sel(band=band) != -9999) for band in ("red", "nir08"))
    seen = ndvi(red.astype("float32"), nir.astype("float32"))
    for code, cover in enumerate(COVERS):
        spectra = typical_season(cover, days)
        color = "#b5c26b" if cover.name == "Natural Vegetation" else cover.color  # the legend's own is nearly white
        axes.plot(days, ndvi(spectra[:, 2], spectra[:, 3]), color=color, label=cover.name)
        axes.plot(cube["time.dayofyear"], seen.where(truth == code).median(("y", "x")), "o", color=color, markersize=4)
    axes.set(xlabel="day of year", ylabel="NDVI", ylim=(-0.6, 1), title="Classes through the season")
    axes.legend(fontsize="x-small", ncols=3, loc="lower center")


def draw_true_colour(axes: Axes, step: xr.DataArray) -> None:
    """Draw one granule, stretched as people are used to."""
    reflectance = step.sel(band=["red", "green", "blue"]).transpose("y", "x", "band").values / 10_000
    axes.imshow(np.clip(reflectance / 0.2, 0, 1) ** 0.7)
    axes.set_title(f"{step['sensor'].item()} {str(step['time'].values)[:10]}", fontsize="small")
    axes.set_axis_off()


def main() -> None:
    """Simulate, draw, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--size", type=int, default=384, help="rows and columns, pixels of 30 m")
    parser.add_argument("--picture", type=Path, default=Path("season.png"))
    options = parser.parse_args()

    cube, truth = simulate_cube(seed=options.seed, shape=(options.size, options.size), granules=16)
    figure = plt.figure(figsize=(15, 7), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.1))
    draw_curves(left.subplots(), xgfm.mask(cube), truth)
    for axes, step in zip(right.subplots(4, 4).ravel(), cube, strict=True):
        draw_true_colour(axes, step)
    figure.savefig(options.picture, dpi=110)
    print(f"written to {options.picture}")


if __name__ == "__main__":
    main()
