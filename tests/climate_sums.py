"""Sums on a climate grid made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
from odc.geo.geobox import GeoBox

from xgfm.climate.grids import ClimateGrid
from xgfm.climate.sums import CellSums

CLASSES = ("Natural Vegetation", "Winter Wheat", "Corn", "Open Water")
TYPES = {"Natural Vegetation": "vegetation", "Winter Wheat": "crops", "Corn": "crops", "Open Water": "fresh_free_water"}
TIMES = np.array(["2023-07-02", "2024-07-02"], "datetime64[ns]")
BOUNDS = np.array([["2023-01-01", "2024-01-01"], ["2024-01-01", "2025-01-01"]], "datetime64[ns]")


def degrees(rows: int = 3, columns: int = 4, *, south: float = 41.0, west: float = -94.0, step: float = 0.25) -> Any:
    """Return a grid of latitudes and longitudes."""
    lat, lon = south + step * np.arange(rows + 1), west + step * np.arange(columns + 1)
    bounds = [np.stack([edges[:-1], edges[1:]], axis=1) for edges in (lat, lon)]
    return ClimateGrid(f"{step}deg", bounds[0].mean(1), bounds[1].mean(1), *bounds)


def on_geobox(box: GeoBox) -> ClimateGrid:
    """Return a grid of a GeoBox's pixels."""
    none, pairs = np.empty(0), np.empty((0, 2))
    return ClimateGrid("box", none, none, pairs, pairs, geobox=box)


def sums(grid: ClimateGrid | None = None, *, probability: bool = False, seed: int = 0, **changes: Any) -> CellSums:
    """Return sums of random areas on a grid; a part of each cell has no class, and one cell has nothing."""
    grid = degrees() if grid is None else grid
    rng = np.random.default_rng(seed)
    times = changes.get("times", TIMES)
    cell = rng.uniform(4e8, 6e8, grid.shape)
    mixed = rng.dirichlet(np.ones(len(CLASSES) + 1), (len(times), *grid.shape))
    area = np.moveaxis(mixed[..., :-1], -1, 0) * cell
    area[:, :, -1, -1] = 0
    kept: dict[str, Any] = {
        "grid": grid,
        "classes": CLASSES,
        "colors": ("#4e8c3b", "#a87000", "#ffd300", "#4d70a3"),
        "values": (0, 1, 2, 3),
        "times": times,
        "time_bounds": BOUNDS[: len(times)],
        "area": area,
        "count": np.round(area / 900 * 16) / 16,
        "probability": area[::-1].copy() if probability else None,
        "valid_area": area.sum(0),
        "seen_area": np.broadcast_to(cell, (len(times), *grid.shape)),
        "cell_area": cell,
        "attrs": {"title": "Crops", "task": "crop-v1.0", "weights_digest": "0" * 64},
    }
    return CellSums(**{**kept, **changes})
