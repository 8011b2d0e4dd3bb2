"""What is counted while chips are written, and what they came from.

In: lots of chips, plans and sources. Out: sums that add up in any order, JSON values, digests. NumPy alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from xgfm.cf import NODATA
from xgfm.cube.hrefs import redacted
from xgfm.errors import TrainError
from xgfm.grid import geobox_of
from xgfm.train.chips.lots import Source
from xgfm.train.chips.store import SPLITS, BandStatistics


@dataclass(frozen=True)
class Tally:
    """What a lot holds, or several of them."""

    counts: Mapping[str, tuple[int, ...]]
    """By split, labelled valid pixels of each class."""
    pixels: int = 0
    """Valid ones of training chips, over frames."""
    total: tuple[float, ...] = ()
    """Of each band over them."""
    squares: tuple[float, ...] = ()
    failed: Mapping[int, str] = field(default_factory=dict)
    """Chips that could not be read, with the reason."""
    digests: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        images: NDArray[Any],
        labels: NDArray[Any],
        valid: NDArray[np.bool_],
        splits: Sequence[str],
        classes: int,
        failed: Mapping[int, str],
    ) -> Tally:
        """Count a lot: images ``(n, T, C, H, W)``, labels and valid ``(n, H, W)``."""
        of_split = {name: np.array([s == name for s in splits]) for name in SPLITS}
        counts = {name: _counted(labels[mine], valid[mine], classes) for name, mine in of_split.items()}
        sums = np.zeros((2, images.shape[2]))
        for image, there in zip(images[of_split["train"]], valid[of_split["train"]], strict=True):
            values = np.moveaxis(image, 1, 0)[:, :, there].reshape(images.shape[2], -1).astype("float64")
            sums += values.sum(axis=1), (values**2).sum(axis=1)
        digest = hashlib.blake2b(digest_size=16)
        for array in (images, labels, valid):
            digest.update(np.ascontiguousarray(array).tobytes())
        return cls(
            counts,
            int(valid[of_split["train"]].sum()) * images.shape[1],
            tuple(sums[0].tolist()),
            tuple(sums[1].tolist()),
            dict(failed),
            (digest.hexdigest(),),
        )

    @classmethod
    def sum(cls, parts: Sequence[Tally]) -> Tally:
        """Add lots up, in their order."""
        counts = {name: tuple(map(sum, zip(*(part.counts[name] for part in parts), strict=True))) for name in SPLITS}
        total, squares = (
            tuple(np.sum([getattr(part, name) for part in parts], axis=0).tolist()) for name in ("total", "squares")
        )
        failed = {number: reason for part in parts for number, reason in part.failed.items()}
        digests = tuple(digest for part in parts for digest in part.digests)
        return cls(counts, sum(part.pixels for part in parts), total, squares, failed, digests)

    def statistics(self) -> BandStatistics:
        """Return mean and standard deviation of each band."""
        if not self.pixels:
            raise TrainError(
                "no training chip has a valid pixel, one that is there on every date of the cube; make few frames of "
                "many dates with frames=, or look at the cube's clouds and nodata"
            )
        mean = np.array(self.total) / self.pixels
        std = np.sqrt(np.maximum(np.array(self.squares) / self.pixels - mean**2, 0))
        return BandStatistics(tuple(mean.tolist()), tuple(np.maximum(std, 1e-6).tolist()))

    def digest(self, plan: str) -> str:
        """Return one digest of a plan and all lots."""
        return hashlib.sha256("\n".join((plan, *self.digests)).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Tally:
        """Return what `to_json` was made of."""
        return cls(
            {name: tuple(counts) for name, counts in values["counts"].items()},
            values["pixels"],
            tuple(values["total"]),
            tuple(values["squares"]),
            {int(number): reason for number, reason in values["failed"].items()},
            tuple(values["digests"]),
        )


def _counted(labels: NDArray[Any], valid: NDArray[np.bool_], classes: int) -> tuple[int, ...]:
    if not classes:
        return (int((valid & ~np.isnan(labels)).sum()),)
    counts = np.bincount(labels[valid], minlength=NODATA + 1)[:classes]
    return tuple(int(n) for n in counts)


def identity(table: pd.DataFrame, sources: Sequence[Source], size: int) -> str:
    """Return a digest of which chips are cut out of which cubes, and of what the plan counted in them.

    Arrays in memory count with their values, lazy ones with what they say of themselves.
    """
    about = [
        {
            "cube": lineage(source),
            "classes": source.labels.attrs.get("flag_meanings"),
            "values": [_values(array) for array in (source.cube, source.labels)],
        }
        for source in sources
    ]
    told = json.dumps([size, table.to_csv(index=False), about], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()


def _values(array: xr.DataArray) -> str | None:
    held = array.variable._data  # .data would load an array that is read when it is needed
    return hashlib.sha256(np.ascontiguousarray(held).data).hexdigest() if isinstance(held, np.ndarray) else None


def lineage(source: Source) -> dict[str, Any]:
    """Return what a cube says of where its pixels come from, without anything secret."""
    cube, geobox = source.cube, geobox_of(source.cube)
    assert geobox.crs is not None  # geobox_of refuses a cube without one
    items = cube.coords["item"].values.ravel().tolist() if "item" in cube.coords else None
    kept = ("frames", "masked_by", "attribution", "simulated", "collections")
    return {
        "crs": str(geobox.crs),  # a code, else WKT
        "shape": list(geobox.shape),
        "transform": list(geobox.transform)[:6],
        "dates": [str(t)[:19] for t in cube["time"].values],
        "items": None if items is None else [redacted(str(item)) for item in items],
        **{name: cube.attrs[name] for name in kept if name in cube.attrs},
    }
