"""The other library's tiling, rewritten for comparisons, against its own outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peer_tiling import blend_mask, tiled_inference


@pytest.mark.parametrize("file", ["tiled_inference"])
def test_rewritten_tiling_matches(reference: Any, same: Any, file: str) -> None:
    weights, a, b = reference["w"], float(reference.facts["a"]), float(reference.facts["b"])

    def toy(chips: torch.Tensor) -> torch.Tensor:
        if chips.ndim == 5:
            chips = chips.mean(dim=2)
        i, j = (torch.arange(n, dtype=torch.float32) for n in chips.shape[-2:])
        wave = torch.sin(a * i)[:, None] * torch.cos(b * j)
        return torch.einsum("kc,bchw->bkhw", weights, chips) + torch.tensor([1.0, -1.0])[:, None, None] * wave

    for name, options in reference.json("cases").items():
        ours = tiled_inference(toy, reference["x5" if name == "five_d" else "x4"], **options)
        same("tiled output", ours, reference[f"out/{name}"])
    for key, theirs in reference.under("blend_mask_1d/").items():
        crop, stride, delta = map(int, key.split("_"))
        mask = blend_mask((crop, crop), (stride, stride), delta)
        same("tiled output", mask[len(mask) // 2], theirs)
