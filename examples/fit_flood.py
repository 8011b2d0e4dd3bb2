"""Learn to see water on a real Sentinel-2 image, from a mask that people drew.

    python examples/fit_flood.py --image Spain_7370579_S2Hand.tif --label Spain_7370579_LabelHand.tif

The two files are a chip of Sen1Floods11 (Bonafilia et al. 2020, doi:10.1109/CVPRW50498.2020.00113): thirteen bands of
Sentinel-2 L1C at 10 m, on a grid in degrees, and labels -1 (not known), 0 (land) and 1 (water). A single image makes
for few and like chips: the script shows the way, and what it learns holds for this image. For all 446 chips see
`xgfm.import_chips`. A small U-Net of random weights is trained; to begin with Prithvi's, give their name: ``--base
prithvi-eo-2.0-300m-tl``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import rasterio
import xarray as xr
from odc.geo.geobox import GeoBox

import xgfm
from xgfm.grid import with_grid
from xgfm.models.spec import PRITHVI_BANDS
from xgfm.train.sampling.plan import draw_splits, plan_chips, split_table
from xgfm.train.study.baselines import unet_task

BANDS = ("B2", "B3", "B4", "B8A", "B11", "B12")
"""Names in the file of the six that Prithvi takes; B8A is the narrow near infrared."""
LEGEND = {0: {"name": "land", "color": "#c2b280"}, 1: {"name": "water", "color": "#1f6fb4"}}


def open_image(path: Path) -> xr.DataArray:
    """Return a file of Sentinel-2 bands as a cube of one date."""
    with rasterio.open(path) as file:
        pixels = file.read([file.descriptions.index(band) + 1 for band in BANDS])
        box = GeoBox.from_rio(file)
    cube = xr.DataArray(
        pixels[None],
        dims=("time", "band", "y", "x"),
        coords={"time": np.array(["2019-09-17"], "datetime64[ns]"), "band": list(PRITHVI_BANDS)},
        attrs={"nodata": 0, "reflectance_scale": 1e-4},
    )
    return with_grid(cube, box)


def main() -> None:
    """Read, label, fit, map, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", type=Path, required=True, help="..._S2Hand.tif")
    parser.add_argument("--label", type=Path, required=True, help="..._LabelHand.tif of the same place")
    parser.add_argument("--folder", type=Path, default=Path("flood"), help="where all of it is written")
    parser.add_argument("--base", help="a model or a task to begin with, instead of a small U-Net")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)

    cube = open_image(options.image)
    labels = xgfm.labels(options.label, cube, legend=LEGEND, nodata=-1)
    plan = plan_chips(labels, size=64, stride=32, shares=(0.6, 0.2, 0.2))
    print(split_table(plan))
    draw_splits(plan, labels).savefig(options.folder / "splits.png", dpi=110)

    chips = xgfm.write_chips(cube, labels, options.folder / "chips.zarr", plan)
    result = xgfm.fit(
        chips,
        base=options.base or unet_task(chips.facts, widths=(16, 32, 64)),
        task={"name": "water", "title": "Water on one image of Sentinel-2"},
        folder=options.folder,
        steps=options.steps,
        every=max(options.steps // 5, 1),
        batch_size=8,
        lr=None if options.base else 2e-3,  # weights that know something are moved less
        class_weights=[0.3, 0.7],
    )
    for score in result.metrics["classes"]:
        print(f"test split, {score['name']}: IoU {score['iou']['value']:.3f} of {score['pixels']} pixels")

    mapped = cube.gfm.predict(task=result.task, return_=["class", "probability"]).compute()
    figure = mapped.gfm.plot(cube, variable="water")
    figure.savefig(options.folder / "water.png", dpi=110)
    labelled = labels.values != 255
    agree = (mapped.water.values[0] == labels.values)[labelled].mean()
    print(f"{agree:.1%} of the labelled pixels are mapped as they were drawn, those of training among them")
    print(f"written to {options.folder}")


if __name__ == "__main__":
    main()
