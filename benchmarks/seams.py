"""Steps where windows meet: a smooth input, a model that is wrong at its windows' edges, four ways to tile it.

The model answers what it sees plus a bias that grows towards the window's edges, as transformers' answers do. The input
is flat, so every step in the answer is a seam. Writes a picture of each way.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import cube, report
from peer_tiling import tiled_inference
from torch import nn

import xgfm
from xgfm.models.spec import ClassInfo, ModelSpec, Statistics, TaskSpec

SIZE, WINDOW, HALO = 900, 224, 16
STATISTICS = Statistics((1000.0,) * 6, (500.0,) * 6)


class Edgy(nn.Module):
    """Answers the first band, and up to 1 more towards the lower right of what it sees, 1 less to the upper left."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(B, 2, H, W)``; the second logit is 0."""
        rows, columns = (torch.linspace(-1, 1, n) ** 7 for n in x.shape[-2:])
        value = x[:, 0, 0] + 0.5 * (rows[:, None] + columns)
        return torch.stack([value, torch.zeros_like(value)], dim=1)


def ways() -> dict[str, np.ndarray]:
    """Return the first logit by each way of tiling."""
    spec = TaskSpec(
        name="edgy",
        title="wrong at its edges",
        model=ModelSpec(name="edgy", title="wrong at its edges", statistics=STATISTICS),
        statistics=STATISTICS,
        classes=(ClassInfo("high", "#000000"), ClassInfo("low", "#ffffff")),
        window=WINDOW,
        halo=HALO,
    )
    xgfm.register_task(spec, build=lambda _: Edgy())
    flat = np.full((1, 6, SIZE, SIZE), 1000, "int16")

    def ours(**options: Any) -> np.ndarray:
        return xgfm.predict(cube(flat), "edgy", return_="logits", **options).logits.values[0, 0]

    x = torch.zeros(1, 6, 1, SIZE, SIZE)
    return {
        "no overlap": ours(halo=0),
        "peer's default": tiled_inference(Edgy(), x, crop=WINDOW, stride=WINDOW - 2 * HALO)[0, 0].numpy(),
        "halo (our default)": ours(),
        "blend='hann'": ours(blend="hann"),
    }


def draw(answers: dict[str, np.ndarray], path: Path) -> None:
    """Draw the answers beside each other, all on one scale."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(answers), figsize=(4 * len(answers), 4.2), layout="constrained")
    for axis, (name, answer) in zip(axes, answers.items(), strict=True):
        picture = axis.imshow(answer, vmin=-1, vmax=1, cmap="RdBu")
        axis.set(title=name, xticks=[], yticks=[])
    figure.colorbar(picture, ax=axes, label="answer; the right one is 0", shrink=0.8)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", type=Path, default=Path(__file__).parent / "results" / "seams.png")
    args = parser.parse_args()
    answers = ways()
    inside = slice(WINDOW, -WINDOW)  # the region's own edge is no seam
    rows = []
    for name, answer in answers.items():
        steps = [np.abs(np.diff(answer[inside, inside], axis=axis)).max() for axis in (0, 1)]
        rows.append(
            {
                "way": name,
                "largest_step": float(max(steps)),
                "largest_error": float(np.abs(answer[inside, inside]).max()),
            }
        )
    args.picture.parent.mkdir(exist_ok=True)
    draw(answers, args.picture)
    report("seams", rows)


if __name__ == "__main__":
    main()
