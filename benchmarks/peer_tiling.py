"""Two ways in which others run a model over a large image, written from their published description.

They are not used by xgfm: they are here to be compared with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

Model = Callable[[Tensor], Tensor]
Size = tuple[int, int]


def slide_average(model: Model, x: Tensor, *, crop: int, stride: int) -> Tensor:
    """Sum logits of windows moved back at the edges, divided by the number of visits."""
    total: Tensor | None = None
    visits = torch.zeros(x.shape[-2:])
    for i in _moved_back(x.shape[-2], crop, stride):
        for j in _moved_back(x.shape[-1], crop, stride):
            logits = model(x[..., i : i + crop, j : j + crop])
            if total is None:
                total = torch.zeros(*logits.shape[:2], *x.shape[-2:])
            total[..., i : i + crop, j : j + crop] += logits
            visits[i : i + crop, j : j + crop] += 1
    assert total is not None
    return total / visits


def _moved_back(size: int, crop: int, stride: int) -> list[int]:
    count = max(math.ceil((size - crop) / stride), 0) + 1
    return [max(min(k * stride, size - crop), 0) for k in range(count)]


def tiled_inference(
    model: Model,
    x: Tensor,
    *,
    crop: int | None = None,
    stride: int | None = None,
    delta: int = 8,
    h_crop: int | None = None,
    w_crop: int | None = None,
    h_stride: int | None = None,
    w_stride: int | None = None,
    batch_size: int = 16,
    padding: str | bool = "reflect",
    average_patches: bool = True,
    blend_overlaps: bool = True,
) -> Tensor:
    """Predict ``(B, C, H, W)`` or ``(B, C, T, H, W)`` by blended tiles, as the fine-tuning library does by default."""
    crops = (h_crop or crop or 224, w_crop or crop or 224)
    strides = (h_stride or stride or 192, w_stride or stride or 192)
    delta = min(delta, *((c - s) // 2 for c, s in zip(crops, strides, strict=True)))
    size: Size = (x.shape[-2], x.shape[-1])
    if padding:
        mode = "reflect" if padding is True else padding
        flat = F.pad(x.reshape(len(x), -1, *size), (delta,) * 4, mode=mode)
        x = flat.reshape(*x.shape[:-2], *flat.shape[-2:])
    corners = list(_corners((x.shape[-2], x.shape[-1]), crops, strides))
    total: Tensor | None = None
    weights = torch.zeros(size)
    for start in range(0, len(corners), batch_size):
        batch = corners[start : start + batch_size]
        logits = model(torch.cat([x[..., i : i + crops[0], j : j + crops[1]] for i, j in batch]))
        if total is None:
            total = torch.zeros(len(x), logits.shape[1], *size)
        for (i, j), chip in zip(batch, logits.split(len(x)), strict=True):
            touches = i == 0 or j == 0 or i + crops[0] == x.shape[-2] or j + crops[1] == x.shape[-1]
            cut = 0 if not padding and touches else delta
            chip = chip[..., cut : crops[0] - cut, cut : crops[1] - cut]
            weight = blend_mask(crops, strides, cut) if blend_overlaps else torch.ones(chip.shape[-2:])
            i, j = (i, j) if padding else (i + cut, j + cut)
            place = (..., slice(i, i + chip.shape[-2]), slice(j, j + chip.shape[-1]))
            kept = 1.0 if average_patches else 0.0
            total[place] = total[place] * kept + chip * weight
            weights[place] = weights[place] * kept + weight
    assert total is not None
    if not (weights > 0).all():
        raise RuntimeError("some pixels did not receive a prediction")
    return total / weights


def _corners(size: Size, crops: Size, strides: Size) -> Iterator[Size]:
    rows = range(0, max(size[0] - crops[0] - 1, 0), strides[0])
    columns = range(0, max(size[1] - crops[1] - 1, 0), strides[1])
    bottom, right = size[0] - crops[0], size[1] - crops[1]
    yield from ((i, right) for i in rows)
    yield from ((bottom, j) for j in columns)
    yield bottom, right
    yield from ((i, j) for i in rows for j in columns)


def blend_mask(crops: Size, strides: Size, delta: int) -> Tensor:
    """Return the weight of each pixel of a tile without its border of ``delta``."""
    rows, columns = (_ramp(c, s, delta) for c, s in zip(crops, strides, strict=True))
    return rows[:, None] * columns + 1e-6


def _ramp(crop: int, stride: int, delta: int) -> Tensor:
    overlap = min(crop // 2, crop - stride) - delta
    window = torch.ones(crop - 2 * delta)
    if overlap > 0:
        falling = 0.5 * (1 + torch.cos(math.pi * torch.arange(1, overlap + 1) / (overlap + 1)))
        window[-overlap:] = falling
        window[:overlap] = falling.flip(0)
    return window
