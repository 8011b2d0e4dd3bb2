"""Fine-tune a crop task on fields that a survey has visited, and map another year with it.

    python examples/fit_crop.py --folder crops

A season of HLS granules is simulated, masked and composited into three frames, as for any map. The legend of nine
covers is merged into four classes, train, validation and test are kept apart as blocks of ground, and the bundled task
`crop-demo` is fine-tuned: its encoder knows seasons already, its last layer is drawn anew for the four classes. The
map is of a season that the model has not seen, and of nothing real.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import xarray as xr

import xgfm
from xgfm.cube.simulate import Season
from xgfm.train.sampling.plan import draw_splits, plan_chips, split_table
from xgfm.train.scores.metrics import Confusion

MERGED = {
    "Natural Vegetation": "not cultivated",
    "Forest": "not cultivated",
    "Wetlands": "not cultivated",
    "Developed/Barren": "not cultivated",
    "Open Water": "not cultivated",
    "Winter Wheat": "other crops",
    "Alfalfa": "other crops",
}


def frames_of(season: Season) -> xr.DataArray:
    """Return the season as the model takes it: three frames, clear medians of a third of the season each."""
    items = xgfm.search(bbox=season.bbox, datetime=season.datetime, catalog=season.items)
    return xgfm.open_items(items, geobox=season.geobox).gfm.composite(frames=3)


def labels_of(season: Season, frames: xr.DataArray) -> xr.DataArray:
    """Return what grows where, in four classes, on the grid of the frames. Polygons of fields go the same way."""
    legend = xgfm.Legend.of(list(season.classes)).merge(MERGED)
    return xgfm.labels(season.truth, frames, legend=legend)


def main() -> None:
    """Simulate, label, fit, map, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("crops"), help="where all of it is written")
    parser.add_argument("--size", type=int, default=768, help="rows and columns of a season, pixels of 30 m")
    parser.add_argument("--chip", type=int, default=64, help="rows and columns of a chip")
    parser.add_argument("--granules", type=int, default=14, help="dates of a season")
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    shape = (options.size, options.size)

    surveyed = xgfm.simulate_season(
        options.folder / "surveyed", seed=31, shape=shape, year=2023, granules=options.granules
    )
    frames = frames_of(surveyed).compute()
    labels = labels_of(surveyed, frames)
    plan = plan_chips(labels, size=options.chip, seed=1)
    print(split_table(plan))
    draw_splits(plan, labels).savefig(options.folder / "splits.png", dpi=110)

    chips = xgfm.write_chips(frames, labels, options.folder / "chips.zarr", plan)
    result = xgfm.fit(
        chips,
        base="crop-demo",
        task={"name": "crops", "title": "Corn, soybeans, other crops"},
        folder=options.folder,
        steps=options.steps,
        every=max(options.steps // 3, 1),
        batch_size=8,
        lr=5e-4,
        class_weights="sqrt_inverse",
    )
    print("test split:", {name: score["value"] for name, score in result.metrics["scores"].items()})

    unseen = xgfm.simulate_season(options.folder / "unseen", seed=32, shape=shape, year=2024, granules=options.granules)
    frames = frames_of(unseen).compute()
    mapped = frames.gfm.predict(task=result.task).compute()
    scores = Confusion(mapped.crops.attrs["class_names"])
    scores.add(labels_of(unseen, frames).values, mapped.crops.values)
    print(f"a season that it has not seen\n{scores}")
    mapped.gfm.plot(frames).savefig(options.folder / "crops.png", dpi=110)
    print(f"written to {options.folder}")


if __name__ == "__main__":
    main()
