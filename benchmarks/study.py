"""What pre-training is worth: a small encoder on simulated seasons, fine-tuned with few and with many labels.

    OMP_NUM_THREADS=1 python benchmarks/study.py --folder study

Unlabelled seasons pre-train a masked autoencoder; labelled ones, elsewhere, are cut into chips and split by spatial
blocks. Then {fine-tuned, encoder frozen, from scratch, U-Net, random forest} x {100, 50, 25, 10 % of the labels} x
seeds. All data are simulated: it shows that the study works, and says nothing of any real map.
"""

from __future__ import annotations

import argparse
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import xarray as xr
from harness import report

import xgfm
from xgfm.cf import class_flags
from xgfm.cube.phenology import CLASSES
from xgfm.cube.simulate import simulate_cube
from xgfm.models.spec import ModelSpec
from xgfm.train.chips.chips import ChipFacts, Chips, open_chips, write_chips
from xgfm.train.pretrain import pretrain
from xgfm.train.start.new_task import small_encoder
from xgfm.train.study.experiment import StudyResult, experiment
from xgfm.train.study.spec import StudySpec

TILES = ("T15TVM", "T15TUM", "T15TWM", "T15TVL", "T15TUL", "T15TWL", "T15TVK", "T15TUK", "T15TWK", "T15TVN", "T15TUN")
"""Each season lies in its own tile, so that blocks of two seasons are never one place."""
SIZE, PATCH = 32, 4
"""Pixels of the sides of a chip and of a patch: fields are some twenty pixels wide."""


NOISE = 400.0
"""Standard deviation of what is added to each pixel, in DN: 4 % of reflectance."""


def season(number: int, side: int) -> tuple[xr.DataArray, xr.DataArray]:
    """Return midsummer of a season, composited, noisy, and its labels.

    With a whole simulated season a single pixel tells its class, and there is nothing to learn in advance. From one
    frame with noise it does not: the field around it must be known, too, and that can be learned without labels.
    """
    rng = np.random.default_rng([number, 5])
    cube, truth = simulate_cube(
        seed=3000 + number,
        shape=(side, side),
        tile=TILES[number % len(TILES)],
        year=int(rng.integers(2017, 2025)),
        granules=int(rng.integers(12, 21)),
    )
    summer = xgfm.composite(xgfm.mask(cube), 3).isel(time=[1])
    seen = summer.values
    noise = np.rint(rng.normal(0, NOISE, seen.shape))
    summer = summer.copy(data=np.where(seen == -9999, seen, (seen + noise).clip(1, 16000)).astype("int16"))
    return summer, truth.assign_attrs(class_flags(CLASSES))


def chips_of(numbers: range, store: Path, side: int, **split: object) -> Chips:
    """Cut seasons into chips, unless that has been done."""
    if store.exists():
        return open_chips(store)
    cubes, labels = zip(*(season(number, side) for number in numbers), strict=True)
    return write_chips(list(cubes), list(labels), store, size=SIZE, **split)


def encoder(facts: ChipFacts, width: int) -> ModelSpec:
    """Return the record of the small encoder."""
    light = {"decoder_embed_dim": width // 2, "decoder_depth": 2, "decoder_num_heads": 4}
    return replace(small_encoder(facts), name="simulated-small", patch_size=(1, PATCH, PATCH), embed_dim=width, **light)


def study(options: argparse.Namespace, chips: Path, base: Path) -> StudySpec:
    """Return the record of the study."""
    return StudySpec(
        chips=str(chips),
        folder=str(options.folder / "study"),
        base=str(base),
        methods=tuple(options.methods),
        fractions=(1.0, 0.5, 0.25, 0.1),
        seeds=tuple(range(options.seeds)),
        train={
            "steps": options.steps,
            "every": max(options.steps // 10, 1),
            "batch_size": 16,
            "class_weights": "sqrt_inverse",
            "weight_decay": 0.05,
            "warmup": 0.1,
            "keep": 1,
        },
        only={
            "full": {"lr": 1e-3, "layer_decay": 0.75},
            "frozen": {"lr": 2e-3},
            "scratch": {"lr": 1e-3},
            "unet": {"lr": 2e-3},
        },
        widths=(24, 48, 96),
    )


def main() -> None:
    """Simulate, pre-train, run what is missing, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("study"), help="data, runs, tables and figures")
    parser.add_argument("--unlabelled", type=int, default=6, help="seasons that are pre-trained on")
    parser.add_argument("--labelled", type=int, default=8, help="seasons whose chips are split")
    parser.add_argument("--side", type=int, default=512, help="rows and columns of a season")
    parser.add_argument("--width", type=int, default=96, help="of the encoder")
    parser.add_argument("--pretraining", type=int, default=1500, help="steps")
    parser.add_argument("--steps", type=int, default=200, help="of each run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=["full", "frozen", "scratch", "unet", "forest"])
    parser.add_argument("--workers", type=int, default=0, help="of a local cluster; 0 runs one after the other")
    parser.add_argument("--figures", type=Path, help="folder that the figures and the table are copied to")
    options = parser.parse_args()

    begun = time.perf_counter()
    seasons = range(options.unlabelled), range(options.unlabelled, options.unlabelled + options.labelled)
    plain = chips_of(
        seasons[0], options.folder / "unlabelled.zarr", options.side, shares=(0.9, 0.1, 0.0), allow_missing=True
    )
    chips_of(seasons[1], options.folder / "chips.zarr", options.side, shares=(0.6, 0.15, 0.25))
    simulated = time.perf_counter()
    model = pretrain(
        plain, encoder(plain.facts, options.width), options.folder / "encoder",
        steps=options.pretraining, batch_size=32, every=max(options.pretraining // 10, 1),
    ).model  # fmt: skip
    pretrained = time.perf_counter()
    spec = study(options, options.folder / "chips.zarr", model)
    if options.workers:
        from distributed import Client

        with Client(n_workers=options.workers, threads_per_worker=1, dashboard_address=None) as client:
            result = experiment(spec, client=client)
    else:
        result = experiment(spec)
    told(result, options.figures)
    taken = {
        "simulate_s": simulated - begun,
        "pretrain_s": pretrained - simulated,
        "runs_s": float(result.runs["seconds"].sum()),
    }
    print({name: round(seconds, 1) for name, seconds in taken.items()})
    report("study", result.summary().round(4).to_dict("records"))


def told(result: StudyResult, figures: Path | None) -> None:
    """Print the tables, and copy them and the figures where they are wanted."""
    print(result)
    if figures is None:
        return
    figures.mkdir(parents=True, exist_ok=True)
    for name in ("efficiency.png", "learning.png", "summary.md", "runs.csv"):
        shutil.copyfile(result.folder / name, figures / f"study-{name}")


if __name__ == "__main__":
    main()
