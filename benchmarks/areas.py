"""Whether the interval of an area holds the true area as often as it says: repeated samples of a map of known truth.

A simulated season is mapped by the bundled task, with its mistakes. From the map many stratified samples are drawn, as
one would draw places to be visited; the simulation's truth is the reference. Each sample gives areas with intervals of
95 %, which need some places where map and reference differ: of a class that the map hardly ever mistakes, a small
sample often holds none, and its interval is then too narrow. So samples of several sizes are drawn, and ``wrong`` is
how many such places they hold. Draws a picture of a hundred intervals of each class, of the largest samples.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from harness import report

import xgfm
from xgfm.climate.area import AreaEstimate
from xgfm.cube.phenology import CLASSES
from xgfm.cube.simulate import simulate_cube

NODATA = 255
HECTARES = 30.0**2 / 1e4
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Repeated:
    """Estimates from repeated samples of one map."""

    truth: np.ndarray
    """True area of each class, hectares."""
    counted: np.ndarray
    """What the map's pixels add up to."""
    estimates: list[AreaEstimate]
    wrong: np.ndarray
    """Places of a sample, on average, that are of a class by the reference and not by the map or the other way."""

    @property
    def covered(self) -> np.ndarray:
        """Whether each interval holds the truth, ``(sample, class)``."""
        bounds = np.stack([estimate.interval for estimate in self.estimates])
        return (bounds[..., 0] <= self.truth) & (self.truth <= bounds[..., 1])

    @property
    def areas(self) -> np.ndarray:
        """Estimates ``(sample, class)``."""
        return np.stack([estimate.area for estimate in self.estimates])


def mapped(seed: int, size: int) -> tuple[xr.DataArray, np.ndarray]:
    """Return the class map of a season, and the truth ``(y, x)``, both 255 where the map has no data."""
    cube, truth = simulate_cube(seed=seed, shape=(size, size))
    codes = xgfm.predict(xgfm.mask(cube).chunk(y=256, x=256), "crop-demo").crop_demo.compute()
    return codes, np.where(codes.values == NODATA, NODATA, truth.values)


def sampled(codes: xr.DataArray, truth: np.ndarray, *, places: int, repeats: int) -> Repeated:
    """Estimate the areas of a map again and again, each time from other places."""
    count = len(CLASSES)
    pixels = np.bincount(codes.values[codes.values != NODATA], minlength=count)[:count]
    true = np.bincount(truth[truth != NODATA], minlength=count)[:count]
    estimates, wrong = [], np.zeros(count)
    for seed in range(repeats):
        table = xgfm.stratified_sample(codes, places, seed)
        counts = np.zeros((count, count))
        np.add.at(counts, (table["code"].to_numpy(), truth[table["row"], table["column"]]), 1)
        wrong += (counts.sum(0) + counts.sum(1) - 2 * np.diag(counts)) / repeats
        estimates.append(xgfm.estimate_areas(counts, pixels * HECTARES, classes=[c.name for c in CLASSES]))
    return Repeated(true * HECTARES, pixels * HECTARES, estimates, wrong)


def rows_of(repeated: dict[int, Repeated]) -> list[dict[str, Any]]:
    """Return what is printed of each class, and of all of them together: coverage by the number of places."""
    first = next(iter(repeated.values()))
    rows = []
    for code, info in enumerate(CLASSES):
        row: dict[str, Any] = {
            "class": info.name,
            "true_ha": float(first.truth[code]),
            "counted_ha": float(first.counted[code]),
        }
        for places, one in repeated.items():
            row |= {f"mean_{places}": float(one.areas[:, code].mean()), f"wrong_{places}": float(one.wrong[code])}
            row |= {f"covered_{places}": float(one.covered[:, code].mean())}
        rows.append(row)
    total: dict[str, Any] = {
        "class": f"all, {len(first.estimates)} samples",
        "true_ha": float(first.truth.sum()),
        "counted_ha": float(first.counted.sum()),
    }
    for places, one in repeated.items():
        total |= {f"mean_{places}": float(one.areas.sum(1).mean()), f"wrong_{places}": float(one.wrong.sum())}
        total |= {f"covered_{places}": float(one.covered.mean())}
    return [*rows, total]


def draw(repeated: Repeated, path: Path, shown: int = 100) -> None:
    """Draw the intervals of the first samples, class by class; those that miss the truth in red."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    covered, place = repeated.covered, np.arange(min(shown, len(repeated.estimates)))
    figure, axes = plt.subplots(3, 3, figsize=(12, 7.5), sharex=True, layout="constrained")
    for code, (axis, info) in enumerate(zip(axes.flat, CLASSES, strict=True)):
        bounds = np.stack([repeated.estimates[k].interval[code] for k in place])
        colors = np.where(covered[place, code], "0.65", "#d55e00")
        axis.vlines(place, bounds[:, 0], bounds[:, 1], color=colors, linewidth=1.2)
        axis.axhline(repeated.truth[code], color="black", linewidth=1, label="truth")
        axis.axhline(repeated.counted[code], color="#0072b2", linewidth=1, linestyle="--", label="pixels counted")
        held = int(covered[place, code].sum())
        axis.set_title(f"{info.name}: {held} of {len(place)}, of all {covered[:, code].mean():.1%}", fontsize=10)
    axes[0, 0].legend(fontsize=8, frameon=False)
    figure.supxlabel("sample")
    figure.supylabel("hectares, interval of 95 %")
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the season")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--places", type=int, nargs="+", default=[900, 2000, 5000])
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--picture", type=Path, default=RESULTS / "areas.png")
    args = parser.parse_args()
    codes, truth = mapped(args.seed, args.size)
    repeated = {places: sampled(codes, truth, places=places, repeats=args.repeats) for places in args.places}
    args.picture.parent.mkdir(exist_ok=True)
    draw(repeated[args.places[-1]], args.picture)
    report("areas", rows_of(repeated))


if __name__ == "__main__":
    main()
