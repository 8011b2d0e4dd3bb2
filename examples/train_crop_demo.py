"""Train the bundled demonstration task "crop-demo" on simulated HLS seasons.

    python examples/train_crop_demo.py --folder my-crop-demo

Seasons are simulated in memory and go through the same `mask` and `composite` as a cube that is predicted, so that the
model learns from what it will see: medians of three windows, with gaps where nothing was clear. A small Prithvi-shaped
encoder with a learned pyramid and a UNet is trained from scratch, stored as float16, and measured on seasons that it
has not seen, through `xgfm.predict`. Last, chips of the first seasons tell the task what its training set looks like,
for the layer ``out_of_domain``. The result is a map of nothing real.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import nn
from tqdm import tqdm

import xgfm
from xgfm.cf import class_flags
from xgfm.cube.phenology import CLASSES
from xgfm.cube.simulate import simulate_cube
from xgfm.models.build import build_task
from xgfm.models.folder import save_task
from xgfm.models.spec import ModelSpec, Statistics, TaskSpec

FIRST_TRAINING_SEED = 1000
TEST_SEEDS = (1, 2, 3)
"""Kept out of training, like every seed under 1000: demos and tests take theirs from there."""
WINDOW, PATCH = 64, 8
NO_LABEL = 255
DOMAIN_SEASONS = 20
"""Of the training seasons, for the domain: each gives some fifty chips."""


def season(seed: int, *, shape: tuple[int, int] = (512, 512)) -> tuple[xr.DataArray, xr.DataArray]:
    """Simulate a season as a user has it before `predict`: three frames, and the truth."""
    rng = np.random.default_rng(seed)
    options = {"year": int(rng.integers(2017, 2025)), "granules": int(rng.integers(12, 21))}
    cube, truth = simulate_cube(seed=seed, shape=shape, **options)
    return xgfm.composite(xgfm.mask(cube), 3), truth


def training_set(seasons: int) -> tuple[np.ndarray, np.ndarray]:
    """Return int16 pixels ``(season, frame, band, y, x)`` and labels ``(season, y, x)``."""
    pairs = [season(FIRST_TRAINING_SEED + k) for k in tqdm(range(seasons), desc="simulating")]
    return np.stack([frames.values for frames, _ in pairs]), np.stack([truth.values for _, truth in pairs])


def statistics_of(pixels: np.ndarray, nodata: int = -9999) -> Statistics:
    """Mean and standard deviation of every band over all valid pixels of all frames."""
    bands = np.moveaxis(pixels, 2, 0)
    valid = [band[band != nodata].astype("float64") for band in bands]
    mean, std = (tuple(round(float(measure(v)), 1) for v in valid) for measure in (np.mean, np.std))
    return Statistics(mean, std)


def task_spec(statistics: Statistics) -> TaskSpec:
    """Record of the task: what `build_task` builds and `load_task` reads back."""
    model = ModelSpec(
        name="crop-demo-encoder",
        title="Small Prithvi-shaped encoder for demonstrations",
        patch_size=(1, PATCH, PATCH),
        frames=3,
        image_size=WINDOW,
        embed_dim=96,
        depth=4,
        num_heads=4,
        statistics=statistics,
    )
    return TaskSpec(
        name="crop-demo",
        title="Nine land covers of simulated farmland: a demonstration, a map of nothing real",
        model=model,
        statistics=statistics,
        classes=CLASSES,
        architecture={
            "family": "pixelwise",
            "necks": [
                {"name": "SelectIndices", "indices": [0, 1, 2, 3]},
                {"name": "ReshapeTokensToImage"},
                {"name": "LearnedInterpolateToPyramidal"},
            ],
            "decoder": {"name": "UNetDecoder", "channels": [64, 48, 32, 16], "last_enlarges": True},
            "head": {"dropout": 0.0, "channel_list": []},
        },
        frames=3,
        window=WINDOW,
        halo=8,
        demonstration=True,
    )


def normalise(pixels: torch.Tensor, spec: TaskSpec, nodata: int = -9999) -> torch.Tensor:
    """Turn DN ``(B, T, C, H, W)`` into input ``(B, C, T, H, W)``, missing pixels as the task's record says."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (spec.statistics.mean, spec.statistics.std))
    x = torch.where(pixels == nodata, torch.tensor(spec.nodata_fill), (pixels - mean) / std)
    return x.transpose(1, 2)


def batches(
    pixels: np.ndarray, labels: np.ndarray, *, steps: int, size: int, rng: np.random.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield random windows, flipped and turned. A pixel that is missing in any frame has no label: it is not mapped."""
    seasons, _, _, rows, columns = pixels.shape
    for _ in range(steps):
        cuts = []
        for _ in range(size):
            k, y, x = rng.integers(seasons), rng.integers(rows - WINDOW + 1), rng.integers(columns - WINDOW + 1)
            here = np.s_[..., y : y + WINDOW, x : x + WINDOW]
            image, label = pixels[k][here], labels[k][here]
            label = np.where((image == -9999).any(axis=(0, 1)), NO_LABEL, label)
            turns, mirrored = rng.integers(4), rng.random() < 0.5
            image, label = (np.rot90(a, turns, axes=(-2, -1)) for a in (image, label))
            cuts.append((image[..., ::-1], label[..., ::-1]) if mirrored else (image, label))
        yield tuple(torch.from_numpy(np.stack(part).copy()) for part in zip(*cuts, strict=True))


def train(
    module: nn.Module, spec: TaskSpec, pixels: np.ndarray, labels: np.ndarray, options: argparse.Namespace
) -> None:
    """Train in place: AdamW, one cycle of the learning rate, bfloat16 autocast, rare classes weighted up a little."""
    share = np.bincount(labels.ravel(), minlength=len(spec.classes)) / labels.size
    weight = torch.tensor((share.mean() / share) ** 0.3, dtype=torch.float32)
    optimizer = torch.optim.AdamW(module.parameters(), lr=options.rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.rate, total_steps=options.steps, pct_start=0.1)
    rng = np.random.default_rng(options.seed)
    module.train()
    progress = tqdm(batches(pixels, labels, steps=options.steps, size=options.batch, rng=rng), total=options.steps)
    for step, (image, label) in enumerate(progress):
        with torch.autocast("cpu", torch.bfloat16):
            logits = module(normalise(image, spec))
        loss = nn.functional.cross_entropy(logits.float(), label.long(), weight=weight, ignore_index=NO_LABEL)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            right = (logits.argmax(1) == label)[label != NO_LABEL].float().mean()
            progress.write(f"step {step:5d}  loss {loss.item():.3f}  accuracy {right:.3f}")


def confusion(task: str, seed: int, classes: int) -> np.ndarray:
    """Count ``[truth, predicted]`` over one unseen season, through the same call as a user's."""
    frames, truth = season(seed)
    mapped = xgfm.predict(frames.chunk(y=256, x=256), task=task).to_array()[0].values
    kept = mapped != NO_LABEL
    pairs = truth.values[kept].astype(int) * classes + mapped[kept]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def report(task: str, spec: TaskSpec) -> str:
    """Print accuracy and IoU on the unseen seasons, and return them as one sentence."""
    counts = np.stack([confusion(task, seed, len(spec.classes)) for seed in TEST_SEEDS])
    accuracy = [float(np.trace(c) / c.sum()) for c in counts]
    total = counts.sum(0)
    iou = np.diag(total) / (total.sum(0) + total.sum(1) - np.diag(total))
    for info, value, row in zip(spec.classes, iou, total, strict=True):
        print(f"{info.name:20s} IoU {value:.3f}   {row.sum():8d} pixels")
    print("accuracy", [round(a, 4) for a in accuracy], "mean IoU", round(float(iou.mean()), 4))
    scores = ", ".join(f"{a:.3f}" for a in accuracy)
    return (
        f"Overall accuracy on simulated seasons {', '.join(map(str, TEST_SEEDS))}, which it was not trained on: "
        f"{scores}; mean IoU {iou.mean():.3f}. It has never seen a real image."
    )


def fit_domain(folder: Path, seasons: int) -> None:
    """Write into the task's folder what training seasons look like to its encoder."""
    pairs = [season(FIRST_TRAINING_SEED + k) for k in range(seasons)]
    cubes = [frames for frames, _ in pairs]
    labels = [truth.assign_attrs(class_flags(CLASSES)) for _, truth in pairs]
    with tempfile.TemporaryDirectory() as place:
        xgfm.fit_domain(folder, xgfm.write_chips(cubes, labels, place, size=WINDOW))


def main() -> None:
    """Train, store, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("crop-demo"), help="where the task is written")
    parser.add_argument("--seasons", type=int, default=40, help="seasons to simulate, 9 MB of memory each")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    start = time.perf_counter()
    pixels, labels = training_set(options.seasons)
    spec = task_spec(statistics_of(pixels))
    module = build_task(spec)
    print(f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M parameters, {time.perf_counter() - start:.0f} s")
    train(module, spec, pixels, labels, options)
    print(f"trained after {time.perf_counter() - start:.0f} s")
    save_task(module.half(), spec, options.folder)
    measured = report(str(options.folder), spec)
    save_task(module, dataclasses.replace(spec, quirks=(measured,)), options.folder)
    fit_domain(options.folder, min(options.seasons, DOMAIN_SEASONS))
    print(f"written to {options.folder}")


if __name__ == "__main__":
    main()
