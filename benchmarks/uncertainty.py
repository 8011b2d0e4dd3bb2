"""What the layers of doubt are worth: seasons of other climates and shuffled bands against held-out seasons.

The bundled task maps simulated seasons that it was not trained on, the same land under other climates, and the same
images with bands or dates in another order. Printed are: how well ``out_of_domain``, and doubt (1 - confidence) beside
it, tell patches, and means over 2 km, of these from held-out ones (area under the ROC curve, 0.5 is chance; intervals
of 95 % from redrawing seasons); what is flagged at two thresholds, and how right the map is there and elsewhere; and
the calibration error before and after a temperature. Draws these. ``--choices`` compares ways to measure the distance.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from harness import report

import xgfm
from xgfm.cube.climates import CLIMATES
from xgfm.cube.simulate import simulate_cube
from xgfm.models.domain import watched
from xgfm.train.scores.calibration import Reliability, confidence_of, fit_temperature

TASK = "crop-demo"
PATCH, BLOCK = 8, 64
"""Pixels along a side: the task's patch, and 2 km."""
HELD_OUT = "held-out"
TRAINING, TUNING = 1000, 100
"""First seeds: what the task was trained on, and what its temperature is fitted to. Tests begin at 1."""
THRESHOLDS = (0.95, 0.99)
RESULTS = Path(__file__).parent / "results"

Array = np.ndarray[Any, Any]
Frames = Callable[[int, int], tuple[xr.DataArray, Array]]
"""Seed and size to three frames and the truth."""


def season(seed: int, size: int, climate: str = "continental") -> tuple[xr.DataArray, Array]:
    """Return a season as `examples/train_crop_demo.py` makes them, under a climate."""
    rng = np.random.default_rng(seed)
    options = {"year": int(rng.integers(2017, 2025)), "granules": int(rng.integers(12, 21))}
    cube, truth = simulate_cube(seed=seed, shape=(size, size), climate=climate, **options)
    return xgfm.composite(xgfm.mask(cube), 3).compute(), truth.values


def shuffled(seed: int, size: int, **order: list[int]) -> tuple[xr.DataArray, Array]:
    """Return a held-out season with the pixels of its bands or frames in another order, under the old names."""
    frames, truth = season(seed, size)
    return frames.copy(data=frames.isel(order).values), truth


CONDITIONS: Mapping[str, Frames] = {
    HELD_OUT: season,
    **{name: partial(season, climate=name) for name in CLIMATES if name != "continental"},
    "bands shuffled": partial(shuffled, band=[3, 4, 0, 5, 1, 2]),
    "red for green": partial(shuffled, band=[0, 2, 1, 3, 4, 5]),
    "dates shuffled": partial(shuffled, time=[1, 2, 0]),
}


@dataclass(frozen=True)
class Seen:
    """What the task says of one season, ``(pixel,)`` where it says anything."""

    score: Array
    confidence: Array
    logits: Array
    """``(pixel, class)``"""
    truth: Array
    patch: Array
    """Whether a pixel is the one that stands for its patch."""
    block: Array
    """Number of the block of ``BLOCK`` x ``BLOCK`` pixels that a pixel lies in."""

    @property
    def right(self) -> Array:
        """Whether the mapped class is the true one."""
        return self.logits.argmax(1) == self.truth

    def of_patches(self, what: str) -> Array:
        """Return the score, or the doubt, of each patch."""
        values = self.score if what == "out_of_domain" else 1 - self.confidence
        return values[self.patch]

    def of_blocks(self, what: str) -> Array:
        """Return the mean score, or doubt, of the patches of each block that has ten or more."""
        values, block = self.of_patches(what), self.block[self.patch]
        counts = np.bincount(block)
        means: Array = np.bincount(block, values)[counts >= 10] / counts[counts >= 10]
        return means


def look(frames: xr.DataArray, truth: Array) -> Seen:
    """Let the task look at a season."""
    result = xgfm.predict(
        frames, TASK, return_=["logits", "confidence", "out_of_domain"], precision="fp32", allow=["values"]
    ).compute()
    valid = np.isfinite(result.out_of_domain.values)
    patch = np.zeros_like(valid)
    patch[PATCH // 2 :: PATCH, PATCH // 2 :: PATCH] = True
    logits = np.moveaxis(result.logits.values, 0, -1)
    rows, columns = np.indices(valid.shape) // BLOCK
    block = rows * (valid.shape[1] // BLOCK + 1) + columns
    planes = (result.out_of_domain.values, result.confidence.values, logits, truth, patch, block)
    return Seen(*(plane[valid] for plane in planes))


def wins(inside: Array, outside: Array) -> float:
    """Return in how many pairs the second is larger; ties count half."""
    inside = np.sort(inside)
    left, right = (np.searchsorted(inside, outside, side=side) for side in ("left", "right"))
    return float((left + right).sum() / 2)


def auroc(inside: list[Array], outside: list[Array], redraws: int = 2000) -> tuple[float, float, float]:
    """Return the area under the ROC curve and its interval, redrawing seasons: patches of one are not independent."""
    won = np.array([[wins(i, o) for o in outside] for i in inside])
    pairs = np.outer([len(i) for i in inside], [len(o) for o in outside])
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(redraws):
        seasons = rng.integers(len(inside), size=len(inside))  # the land is the same in both
        picked = np.ix_(seasons, seasons)
        draws.append(won[picked].sum() / pairs[picked].sum())
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(won.sum() / pairs.sum()), float(low), float(high)


def separation(seen: Mapping[str, list[Seen]]) -> list[dict[str, Any]]:
    """Return how well each condition is told from held-out seasons."""
    rows = []
    for name in seen:
        if name == HELD_OUT:
            continue
        row: dict[str, Any] = {"condition": name}
        for what in ("out_of_domain", "doubt"):
            inside, outside = ([s.of_patches(what) for s in seen[k]] for k in (HELD_OUT, name))
            value, low, high = auroc(inside, outside)
            row |= {what: value, f"{what}_low": low, f"{what}_high": high}
            value, low, high = auroc(*([s.of_blocks(what) for s in seen[k]] for k in (HELD_OUT, name)))
            row |= {f"{what}_2km": value, f"{what}_2km_low": low, f"{what}_2km_high": high}
        rows.append(row)
    return rows


def thresholds(seen: Mapping[str, list[Seen]]) -> list[dict[str, Any]]:
    """Return what is flagged in each condition, and how right the map is there and elsewhere."""
    rows = []
    for name, parts in seen.items():
        score, right = (np.concatenate(values) for values in ([s.score for s in parts], [s.right for s in parts]))
        row: dict[str, Any] = {"condition": name, "accuracy": float(right.mean())}
        for threshold in THRESHOLDS:
            flagged = score > threshold
            row |= {
                f"flagged_{threshold}": float(flagged.mean()),
                f"right_there_{threshold}": float(right[flagged].mean()) if flagged.any() else float("nan"),
                f"right_elsewhere_{threshold}": float(right[~flagged].mean()) if not flagged.all() else float("nan"),
            }
        rows.append(row)
    return rows


def reliability(parts: list[Seen], temperature: float, *, most: float = 1.0) -> Reliability:
    """Count how right the map is by how sure it is, where its score is ``most`` at most."""
    counted = Reliability()
    for one in parts:
        kept = one.score <= most
        said, sure = confidence_of(one.logits[kept], temperature)
        counted.add(one.truth[kept], said, sure)
    return counted


def calibration(
    seen: Mapping[str, list[Seen]], tuning: list[Seen]
) -> tuple[list[dict[str, Any]], dict[str, Reliability]]:
    """Return calibration errors before and after the temperature that fits seasons of neither training nor test."""
    temperature = fit_temperature(np.concatenate([s.logits for s in tuning]), np.concatenate([s.truth for s in tuning]))
    rows, curves = [], {}
    for name, parts in seen.items():
        before, after = (reliability(parts, t) for t in (1.0, temperature))
        kept = reliability(parts, temperature, most=THRESHOLDS[0])
        rows.append(
            {
                "condition": name,
                "temperature": temperature,
                "error_before": before.error,
                "error_after": after.error,
                f"error_after_where_at_most_{THRESHOLDS[0]}": kept.error,
            }
        )
        if name == HELD_OUT:
            curves |= {f"{name}, before": before, f"{name}, after": after}
        elif name in CLIMATES:
            curves[f"{name}, after"] = after
    return rows, curves


def draw(seen: Mapping[str, list[Seen]], curves: Mapping[str, Reliability], path: Path) -> None:
    """Draw ROC curves, accuracy by score, and reliability."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(15, 4.8), layout="constrained")
    colors = dict(zip(seen, ("black", "#e69f00", "#56b4e9", "#009e73", "#d55e00", "#cc79a7", "#0072b2"), strict=True))
    inside = np.sort(np.concatenate([s.of_patches("out_of_domain") for s in seen[HELD_OUT]]))
    cuts = np.r_[np.inf, np.unique(inside)[::-1], -np.inf]
    false = 1 - np.searchsorted(inside, cuts, side="right") / len(inside)
    bins = np.linspace(0, 1, 11)
    for name, parts in seen.items():
        values = np.sort(np.concatenate([s.of_patches("out_of_domain") for s in parts]))
        true = 1 - np.searchsorted(values, cuts, side="right") / len(values)
        axes[0].plot(false, true, color=colors[name], label=name, linewidth=1.6)
        score, right = (np.concatenate(v) for v in ([s.score for s in parts], [s.right for s in parts]))
        place = np.clip(np.digitize(score, bins) - 1, 0, 9)
        counts = np.bincount(place, minlength=10)
        share = np.bincount(place, right, minlength=10) / np.maximum(counts, 1)
        there = counts > 200
        axes[1].plot((bins[:-1] + 0.05)[there], share[there], "o-", color=colors[name], markersize=4, label=name)
    axes[0].set(xlabel="held-out patches flagged", ylabel="patches of the other seasons flagged", title="out_of_domain")
    axes[1].set(xlabel="out_of_domain", ylabel="share of pixels that are right", ylim=(0, 1), title="what it tells")
    axes[2].plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
    for name, one in curves.items():
        there = one.count > 50
        style = "o--" if name.endswith("before") else "o-"
        color = colors[name.rpartition(",")[0]]
        label = f"{name}: error {one.error:.3f}"
        axes[2].plot(one.confidence[there], one.accuracy[there], style, color=color, markersize=4, label=label)
    axes[2].set(xlabel="confidence", ylabel="share of pixels that are right", xlim=(0, 1), ylim=(0, 1))
    axes[2].set_title("reliability, before and after a temperature")
    for axis in axes:
        axis.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=80)


# ---- ways to measure the distance


def tokens_of(frames: xr.DataArray, layer: int) -> Array:
    """Return the features of a season's patches, ``(patch, T, D)``: windows side by side, without their edges."""
    handle = xgfm.load_task(TASK)
    spec, module = handle.spec, handle.load()
    mean, std = (np.array(v)[:, None, None] for v in (spec.statistics.mean, spec.statistics.std))
    valid = (frames.values != -9999).all((0, 1))
    x = np.where(frames.values != -9999, (frames.values - mean) / std, 0).astype("float32").swapaxes(0, 1)
    side, edge = spec.window, spec.halo // PATCH
    starts = range(0, frames.sizes["x"] - side + 1, side - 2 * spec.halo)
    cuts = [np.s_[..., r : r + side, c : c + side] for r in starts for c in starts]
    with torch.no_grad(), watched(module, layer) as seen:
        module(torch.from_numpy(np.stack([x[cut] for cut in cuts])))
    cells = side // PATCH
    known = np.stack([valid[cut].reshape(cells, PATCH, cells, PATCH).any((1, 3)) for cut in cuts])
    inner = np.s_[:, edge : cells - edge, edge : cells - edge]
    features: Array = seen[0].movedim(1, 3).numpy()[inner][known[inner]]
    return features


def gaussian(known: Array) -> Callable[[Array], Array]:
    """Return the squared distance of Mahalanobis from some features ``(patch, D)``."""
    from xgfm.train.result.domain import shrunk_covariance

    mean, spread = known.mean(0), known.std(0)
    inverse = np.linalg.inv(shrunk_covariance((known - mean) / spread))

    def distance(features: Array) -> Array:
        away = (features - mean) / spread
        found: Array = np.einsum("nd,de,ne->n", away, inverse, away)
        return found

    return distance


def nearest(known: Array, examples: int = 512, neighbours: int = 5) -> Callable[[Array], Array]:
    """Return the mean distance to the nearest of some examples, each feature in units of its spread."""
    mean, spread = known.mean(0), known.std(0)
    kept = np.random.default_rng(0).choice(len(known), min(examples, len(known)), replace=False)
    stored = (known[kept] - mean) / spread

    def distance(features: Array) -> Array:
        away = (features - mean) / spread
        squares = (away**2).sum(1)[:, None] - 2 * away @ stored.T + (stored**2).sum(1)
        found: Array = np.sqrt(np.maximum(np.sort(squares, axis=1)[:, :neighbours], 0)).mean(1)
        return found

    return distance


def choices(seasons: int, size: int) -> list[dict[str, Any]]:
    """Return the areas under the ROC curve by block and by way."""
    rows = []
    training = [season(TRAINING + k, size)[0] for k in range(2 * seasons)]
    tests = {name: [make(1 + k, size)[0] for k in range(seasons)] for name, make in CONDITIONS.items()}
    for layer in range(xgfm.load_task(TASK).spec.model.depth):
        known = np.concatenate([tokens_of(frames, layer) for frames in training]).astype("float64")
        features = {n: [tokens_of(f, layer).astype("float64") for f in parts] for n, parts in tests.items()}
        each = [gaussian(known[:, t]) for t in range(known.shape[1])]
        mean, joined = gaussian(known.mean(1)), gaussian(known.reshape(len(known), -1))
        near = nearest(known.mean(1))
        ways: dict[str, Callable[[Array], Array]] = {
            "normal, each frame": lambda f, each=each: sum(one(f[:, t]) for t, one in enumerate(each)),
            "normal, mean of frames": lambda f, one=mean: one(f.mean(1)),
            "normal, frames joined": lambda f, one=joined: one(f.reshape(len(f), -1)),
            "512 examples, mean": lambda f, one=near: one(f.mean(1)),
        }
        for way, distance in ways.items():
            far = {name: [distance(f) for f in parts] for name, parts in features.items()}
            areas = {n: auroc(far[HELD_OUT], parts, redraws=1)[0] for n, parts in far.items() if n != HELD_OUT}
            rows.append({"block": layer, "way": way, **areas, "mean": float(np.mean(list(areas.values())))})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seasons", type=int, default=12)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--choices", action="store_true")
    parser.add_argument("--picture", type=Path, default=RESULTS / "uncertainty.png")
    args = parser.parse_args()
    if args.choices:
        report("uncertainty choices", choices(args.seasons, args.size))
        return
    seeds = range(1, 1 + args.seasons)
    seen = {name: [look(*make(seed, args.size)) for seed in seeds] for name, make in CONDITIONS.items()}
    tuning = [look(*season(TUNING + k, args.size)) for k in range(max(args.seasons // 3, 1))]
    errors, curves = calibration(seen, tuning)
    args.picture.parent.mkdir(exist_ok=True)
    draw(seen, curves, args.picture)
    report("uncertainty thresholds", thresholds(seen))
    report("uncertainty calibration", errors)
    report("uncertainty", separation(seen))


if __name__ == "__main__":
    main()
