"""Teach a U-Net to see smoke from a geostationary satellite, from outlines that an analyst drew.

    python examples/fit_smoke.py --folder smoke

No foundation model has seen the sixteen bands of GOES ABI at 2 km every few minutes, so a U-Net is trained from random
weights: with the same labels, chips, trainer and maps as any other model. Three days over southern Amazonia are
simulated, with outlines of what an analyst would call smoke on every other picture; a fourth is mapped, picture by
picture, and drawn beside the analyst's own opinion. With real pictures, replace `day`: stack the variables CMI_C01 to
CMI_C16 of ABI-L2-MCMIPF files into a cube, their ``x`` and ``y`` times the satellite's height.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes

import xgfm
from xgfm.cube.geostationary import outline_smoke, simulate_goes
from xgfm.train.scores.metrics import Confusion
from xgfm.train.study.baselines import unet_task

LEGEND = [
    {"code": "no smoke", "name": "no smoke", "color": "#3f6b4f"},
    {"code": "smoke", "name": "smoke", "color": "#ff7f0e"},
]
PLACES = {1: (-12.0, -56.0), 2: (-9.0, -63.0), 3: (-14.0, -61.0), 4: (-7.5, -56.5)}
"""Latitude and longitude of each day; the last is for judging the map."""


def day(seed: int, folder: Path, size: int) -> tuple[xr.DataArray, xr.DataArray]:
    """Return two hours of pictures, and on every other one the analyst's outlines as labels on their grid."""
    cube, smoke = simulate_goes(seed=seed, shape=(size, size), steps=7, minutes=20, place=PLACES[seed])
    file = folder / f"analyst-{seed}.geojson"
    file.write_text(json.dumps(outline_smoke(smoke, every=2, seed=seed)))
    of_pictures = {"time_column": "time", "tolerance": "5min"}
    on_top = ["smoke", "no smoke"]  # all that was looked at is outlined too
    return cube, xgfm.labels(file, cube, column="class", legend=LEGEND, priority=on_top, **of_pictures)


def true_colour(picture: xr.DataArray) -> np.ndarray:
    """Colours of one picture; ABI has no green, so it is mixed from its neighbours."""
    blue, red, veggie = (picture.sel(band=band).values for band in ("C01", "C02", "C03"))
    colours = np.stack([red, 0.45 * red + 0.1 * veggie + 0.45 * blue, blue], axis=-1)
    return np.clip(colours / 0.35, 0, 1) ** 0.6


def draw_over(axes: Axes, picture: xr.DataArray, classes: xr.DataArray | None, title: str) -> None:
    """Draw a picture, and what is smoke on it as a veil with an outline."""
    box = picture.odc.geobox.boundingbox
    extent = [edge / 1e3 for edge in (box.left, box.right, box.bottom, box.top)]
    axes.imshow(true_colour(picture), extent=extent)
    if classes is not None:
        smoke = (classes == 1).values
        color = classes.attrs["flag_colors"].split()[1]
        veil = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)] + [0.35]) * smoke[..., None]
        axes.imshow(veil, extent=extent)
        axes.contour(smoke, levels=[0.5], colors=color, linewidths=1, extent=extent, origin="upper")
    axes.set_title(f"{title}\n{str(picture.time.values)[:16]} UTC", fontsize="medium")
    axes.set(xlabel="x of the fixed grid (km)", ylabel="y (km)")
    axes.label_outer()


def main() -> None:
    """Simulate, label, fit, map, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("smoke"), help="where all of it is written")
    parser.add_argument("--size", type=int, default=256, help="rows and columns of a day, pixels of 2 km")
    parser.add_argument("--chip", type=int, default=64, help="rows and columns of a chip")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)

    cubes, drawn = zip(*[day(seed, options.folder, options.size) for seed in (1, 2, 3)], strict=True)
    chips = xgfm.write_chips(
        list(cubes), list(drawn), options.folder / "chips.zarr", size=options.chip, stride=options.chip // 2
    )
    result = xgfm.fit(
        chips,
        base=unet_task(chips.facts, widths=(16, 32, 64)),
        method="scratch",
        task={"name": "smoke", "title": "Smoke on pictures of GOES ABI"},
        folder=options.folder,
        steps=options.steps,
        every=max(options.steps // 5, 1),
        batch_size=8,
        lr=2e-3,
        loss={"cross_entropy": 1.0, "dice": 1.0},  # smoke is a fiftieth of the pixels
    )
    print("test split:", {name: score["value"] for name, score in result.metrics["scores"].items()})

    cube, analyst = day(4, options.folder, options.size)
    mapped = cube.gfm.predict(task=result.task).compute()
    looked_at = analyst.isel(time=slice(None, None, 2))
    scores = Confusion(["no smoke", "smoke"])
    scores.add(looked_at.values, mapped.smoke.isel(time=slice(None, None, 2)).values)
    print(f"a day that it has not seen\n{scores}")

    figure, axes = plt.subplots(2, 3, figsize=(13, 9), sharex=True, sharey=True, layout="constrained")
    for row, step in zip(axes, (2, 6), strict=True):
        picture = cube.isel(time=step)
        draw_over(row[0], picture, None, "image")
        draw_over(row[1], picture, analyst.isel(time=step), "analyst")
        draw_over(row[2], picture, mapped.smoke.isel(time=step), "U-Net")
    figure.savefig(options.folder / "smoke.png", dpi=110)
    print(f"written to {options.folder}")


if __name__ == "__main__":
    main()
