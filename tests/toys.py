"""Cubes and models small enough to compute by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import dask.array as da
import numpy as np
import torch
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from torch import nn

from xgfm.grid import with_grid
from xgfm.infer import sharing
from xgfm.models.build import build_task
from xgfm.models.spec import PRITHVI_BANDS, ClassInfo, ModelSpec, Statistics, TaskSpec

DATES = ("2024-04-03", "2024-07-02", "2024-09-25", "2024-10-11")


def geobox(rows: int, columns: int, *, row: int = -160_000, column: int = 14_676, crs: str = "EPSG:32615") -> GeoBox:
    """Return a 30 m grid whose first pixel is (row, column) counted southward and eastward from the CRS origin."""
    return GeoBox((rows, columns), Affine(30.0, 0, column * 30.0, 0, -30.0, -row * 30.0), crs)


def cube(
    rows: int = 40,
    columns: int = 50,
    *,
    times: int = 3,
    seed: int = 0,
    missing: float = 0.0,
    chunks: Any = None,
    box: GeoBox | None = None,
    **grid: Any,
) -> xr.DataArray:
    """Return a lazy int16 cube of noise on smooth hills, with some pixels missing."""
    rng = np.random.default_rng(seed)
    box = geobox(rows, columns, **grid) if box is None else box
    values = rng.integers(200, 6000, (times, 6, *box.shape)).astype("int16")
    values[np.broadcast_to((rng.random((times, 1, *box.shape)) < missing), values.shape)] = -9999
    array = xr.DataArray(
        da.from_array(values, chunks=chunks or (1, 1, 16, 16)),
        dims=("time", "band", "y", "x"),
        coords={"time": np.array(DATES[:times], "datetime64[ns]"), "band": list(PRITHVI_BANDS)},
        attrs={"nodata": -9999, "reflectance_scale": 1e-4},
        name="hls",
    )
    return with_grid(array, box)


def model_spec(**changes: Any) -> ModelSpec:
    """Return the record of a model that is never built."""
    kept: dict[str, Any] = {
        "name": "toy-model",
        "title": "toy model",
        "patch_size": (1, 4, 4),
        "frames": 3,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "decoder_embed_dim": 16,
        "decoder_depth": 1,
        "decoder_num_heads": 2,
        "image_size": 16,
        "statistics": Statistics((1000.0,) * 6, (500.0,) * 6),
    }
    return ModelSpec(**{**kept, **changes})


def task_spec(frames: int = 3, window: int = 16, halo: int = 3, **changes: Any) -> TaskSpec:
    """Return the record of a three-class task."""
    kept: dict[str, Any] = {
        "name": "toy-task",
        "title": "toy task",
        "model": model_spec(),
        "statistics": Statistics((1000.0,) * 6, (500.0,) * 6),
        "classes": (ClassInfo("Grass", "#00ff00"), ClassInfo("Winter Wheat", "#aa7700"), ClassInfo("Water", "#0000ff")),
        "frames": frames,
        "window": window,
        "halo": halo,
    }
    return TaskSpec(**{**kept, **changes})


class Positional(nn.Module):
    """Logits that depend on the pixel and, unless ``strength`` is 0, on where in the window it lies."""

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__()
        self.strength = strength
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor, time: Any = None, location: Any = None) -> torch.Tensor:
        """Return (B, 3, H, W) logits of (B, C, T, H, W)."""
        self.seen.append(tuple(x.shape))
        rows, columns = torch.arange(x.shape[-2]), torch.arange(x.shape[-1])
        wave = torch.sin(rows * 0.7)[:, None] * torch.cos(columns * 1.3)[None]
        logits = x.mean(2)[:, :3] + self.strength * torch.stack([wave, -wave, 0.5 * wave])
        for told in (time, location):
            if told is not None:
                logits = (
                    logits + told.flatten(1).sum(1)[:, None, None, None] * torch.tensor([1e-3, 0, 0])[:, None, None]
                )
        return logits


@dataclass(frozen=True, eq=False)
class Handle:
    """A `ModelHandle` whose module is made here."""

    spec: Any
    module: nn.Module = field(default_factory=Positional)
    digest: str = "0" * 64

    def load(self, device: str) -> nn.Module:
        """Return the module."""
        return self.module

    def __dask_tokenize__(self) -> object:
        return (self.digest, repr(self.spec), type(self.module).__name__)


def transformer_task() -> tuple[TaskSpec, nn.Module]:
    """Return a small task of Prithvi's architecture, and its module."""
    torch.manual_seed(3)
    architecture: dict[str, Any] = {
        "family": "pixelwise",
        "necks": [{"name": "SelectIndices", "indices": [1]}, {"name": "ReshapeTokensToImage"}],
        "decoder": {"name": "LinearDecoder", "upsampling_size": 8},
    }
    spec = task_spec(model=model_spec(depth=2), architecture=architecture)
    return spec, build_task(spec).eval().requires_grad_(False)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Have torch use some threads."""
    before = torch.get_num_threads()
    try:
        with mock.patch.object(sharing, "_OWN_THREADS", count):
            torch.set_num_threads(count)
            yield
    finally:
        torch.set_num_threads(before)
