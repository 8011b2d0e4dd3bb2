"""Fit a regression of above-ground biomass to a real HLS image and a few hundred measured pixels.

    python examples/fit_biomass.py --image agb_L30_int16 --label agb_L30_biomass_label.tif

The image is a chip of Landsat 8 from HLS, one file for each band; the label holds tonnes of dry matter per hectare at
246 of its 50,176 pixels and -1 elsewhere. Labels as sparse as these are what lidar from space gives: the loss counts
labelled pixels alone, and the map says something of all of them. So few labels of one place show the way, not a
result: the error of the mean of the training pixels is printed beside the model's.
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
from xgfm.train.sampling.plan import plan_chips, split_table
from xgfm.train.study.baselines import unet_task

FILES = ("B02.tif", "B03.tif", "B04.tif", "B05.tif", "B06.tif", "B07.tif")
"""Of Landsat in HLS, in the order of `PRITHVI_BANDS`."""


def open_image(folder: Path) -> xr.DataArray:
    """Return a folder of band files as a cube of one date, which nobody has recorded."""
    bands = []
    for name in FILES:
        with rasterio.open(folder / name) as file:
            bands.append(file.read(1))
            box = GeoBox.from_rio(file)
    cube = xr.DataArray(
        np.stack(bands)[None],
        dims=("time", "band", "y", "x"),
        coords={"time": np.array(["2020-07-01"], "datetime64[ns]"), "band": list(PRITHVI_BANDS)},
        attrs={"nodata": -9999, "reflectance_scale": 1e-4},
    )
    return with_grid(cube, box)


def main() -> None:
    """Read, label, fit, map, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", type=Path, required=True, help="folder with B02.tif to B07.tif")
    parser.add_argument("--label", type=Path, required=True, help="biomass, -1 where it is not known")
    parser.add_argument("--folder", type=Path, default=Path("biomass"), help="where all of it is written")
    parser.add_argument("--base", help="a model or a task to begin with, instead of a small U-Net")
    parser.add_argument("--steps", type=int, default=120)
    options = parser.parse_args()

    cube = open_image(options.image)
    target = xgfm.labels(options.label, cube, target="above-ground biomass", units="t ha-1", nodata=-1)
    plan = plan_chips(target, size=16, shares=(0.6, 0.2, 0.2))
    print(split_table(plan))
    chips = xgfm.write_chips(cube, target, options.folder / "chips.zarr", plan)
    result = xgfm.fit(
        chips,
        base=options.base or unet_task(chips.facts, widths=(16, 32)),
        task={"name": "biomass", "title": "Above-ground biomass"},
        folder=options.folder,
        steps=options.steps,
        every=max(options.steps // 5, 1),
        batch_size=8,
        lr=None if options.base else 2e-3,  # weights that know something are moved less
        loss="huber",
    )
    scores = {name: score["value"] for name, score in result.metrics["scores"].items()}
    print(f"test split: RMSE {scores['rmse']:.1f} t/ha, R2 {scores['r2']:.2f} of {result.metrics['pixels']} pixels")
    pixels = chips.dataset()["label"]
    train, test = (pixels.isel(chip=chips.indexes(split)).values for split in ("train", "test"))
    baseline = np.nanmean((test - np.nanmean(train)) ** 2) ** 0.5
    print(f"the mean of the training pixels, {np.nanmean(train):.1f} t/ha, has an RMSE of {baseline:.1f} t/ha there")

    mapped = cube.gfm.predict(task=result.task).compute()
    mapped.gfm.plot(cube).savefig(options.folder / "biomass.png", dpi=110)
    print(f"written to {options.folder}")


if __name__ == "__main__":
    main()
