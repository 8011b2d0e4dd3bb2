"""Blocks of a result written one by one, and what then stands in a store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox
from results import NORTH, result


def template(shape: tuple[int, int], shard: int, **kwargs: Any) -> xr.Dataset:
    """Return a lazy result of a shape, in Dask chunks of one shard."""
    return result(GeoBox(shape, NORTH.affine, NORTH.crs), chunks=(shard, shard), **kwargs)


def regions(shape: tuple[int, int], block: int) -> list[tuple[slice, slice]]:
    """Return rows and columns of every block."""
    height, width = shape
    return [
        (slice(top, min(top + block, height)), slice(left, min(left + block, width)))
        for top in range(0, height, block)
        for left in range(0, width, block)
    ]


def cut(values: xr.Dataset, rows: slice, columns: slice) -> dict[str, np.ndarray]:
    """Return a block of what is in memory."""
    return {str(n): v.values[..., rows, columns] for n, v in values.data_vars.items()}


def blocks(values: xr.Dataset, block: int) -> Iterator[tuple[dict[str, np.ndarray], slice, slice]]:
    """Yield every block, with its place."""
    for rows, columns in regions((values.sizes["y"], values.sizes["x"]), block):
        yield cut(values, rows, columns), rows, columns


def contents(folder: Path) -> dict[str, Any]:
    """Return every file of a store: metadata as JSON, chunks as bytes."""
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: json.loads(p.read_text()) if p.suffix == ".json" else p.read_bytes() for name, p in files.items()}
