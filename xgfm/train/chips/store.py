"""Chips as they lie on disk: pixels, labels, dates and places of training samples, in one Zarr store.

In: the path of a store that `write_chips` or `import_chips` wrote. Out: `Chips`, which reads any of them at random.
Opening reads a few kilobytes; pixels are read by `Chips.read`.

Chips are stored as they came, int16 in most cases, without compression, one in each inner chunk of a shard. Of a local
store the bytes of a chip are read straight into the batch: many times as fast as zarr-python reads single chips. Any
Zarr reader opens it too.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from xgfm.errors import TrainError
from xgfm.models.spec import ClassInfo, Kind
from xgfm.notebook import card, legend
from xgfm.store.objects import local_folder, zarr_store

FACTS = "xgfm"
"""Attribute of the store that says what the chips are."""
SPLITS = ("train", "val", "test")
LEFT_OUT = -1
"""Split of a chip that could not be read."""
PIXELS = ("image", "label", "valid")

_ABSENT = np.iinfo("uint64").max
"""Length of a chip that is not in the shard: the last shard is not full."""


class Sample(NamedTuple):
    """Some chips: arrays, or tensors."""

    image: Any
    """``(n, T, C, H, W)`` as stored."""
    label: Any
    """``(n, H, W)`` uint8, 255 where there is none; or float32, NaN where there is none."""
    valid: Any
    """``(n, H, W)`` bool: every band of every frame is there."""
    time: Any
    """``(n, T, 2)`` year and 0-based day of the year; NaN where nothing says."""
    location: Any
    """``(n, 2)`` latitude and longitude of the middle."""


@dataclass(frozen=True, slots=True)
class BandStatistics:
    """Mean and standard deviation of each band, over the valid pixels of training chips, in stored units."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class ChipFacts:
    """What chips are."""

    bands: tuple[str, ...]
    frames: int
    size: int
    """Rows and columns of a chip."""
    floating: bool
    """Whether pixels are stored as floats, so that NaN is a missing one."""
    nodata: float | None
    reflectance_scale: float
    """Reflectance of one stored unit."""
    pixel_size: float
    """Metres."""
    kind: Kind
    classes: tuple[ClassInfo, ...]
    units: str
    """Of a regression's targets."""
    statistics: BandStatistics
    counts: Mapping[str, tuple[int, ...]]
    """By split, labelled pixels of each class; of a regression, of all."""
    lineage: tuple[Mapping[str, Any], ...]
    """By source: CRS, grid, dates, items."""
    failed: tuple[Mapping[str, Any], ...]
    """Chips that could not be read: number, place, reason."""
    digest: str
    """SHA-256 of the plan and of every lot's pixels."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ChipFacts:
        """Return what `to_json` was made of."""
        kept = dict(values)
        kept["bands"] = tuple(kept["bands"])
        kept["classes"] = tuple(ClassInfo(**c) for c in kept["classes"])
        kept["statistics"] = BandStatistics(*(tuple(kept["statistics"][name]) for name in ("mean", "std")))
        kept["counts"] = {split: tuple(counts) for split, counts in kept["counts"].items()}
        kept["lineage"], kept["failed"] = tuple(kept["lineage"]), tuple(kept["failed"])
        return cls(**kept)


@dataclass(frozen=True)
class Chips:
    """A store of chips. It can be pickled: it holds its path and facts."""

    path: str
    facts: ChipFacts

    def __repr__(self) -> str:
        facts = self.facts
        numbers = ", ".join(f"{int((self._columns['split'] == k).sum())} {name}" for k, name in enumerate(SPLITS))
        return (
            f"<xgfm.Chips {self.path}: {numbers}; {facts.frames} x {len(facts.bands)} x {facts.size} x {facts.size}, "
            f"{facts.kind} of {len(facts.classes) or facts.units}>"
        )

    def _repr_html_(self) -> str:
        facts = self.facts
        numbers = {name: f"{int((self._columns['split'] == k).sum()):,} chips" for k, name in enumerate(SPLITS)}
        pixels = f"{facts.frames} x {len(facts.bands)} x {facts.size} x {facts.size}, of {facts.pixel_size:g} m"
        what = legend((c.name, c.color) for c in facts.classes) if facts.classes else f"regression, {facts.units}"
        return card("chips", {"path": self.path, **numbers, "frames x bands x y x x": pixels, "labels": what})

    def dataset(self) -> xr.Dataset:
        """Return the store as a lazy Dataset along ``chip``: ``image``, ``label``, ``valid``."""
        dataset: xr.Dataset = xr.open_zarr(zarr_store(self.path), consolidated=False)
        about = [name for name in dataset.data_vars if name not in PIXELS]
        return dataset.set_coords(about).assign_coords(band=list(self.facts.bands))

    def indexes(self, split: str) -> NDArray[np.int64]:
        """Return the numbers of the chips of a split."""
        if split not in SPLITS:
            raise TrainError(f"split is {split!r}; expected one of {list(SPLITS)}")
        return np.flatnonzero(self._columns["split"] == SPLITS.index(split))

    def groups(self, indexes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the spatial group of each of some chips."""
        groups: NDArray[np.int64] = self._columns["group"][indexes]
        return groups

    def read(self, indexes: NDArray[np.int64]) -> Sample:
        """Read chips.

        Parameters
        ----------
        indexes
            ``(n,)`` numbers of chips, in any order.

        Returns
        -------
        Sample
            Of NumPy arrays. Threads may read at once.
        """
        numbers = np.asarray(indexes, "int64")
        columns = self._columns
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(columns["split"]):
            raise TrainError(f"chips {numbers.min()} to {numbers.max()} of {len(columns['split'])} were asked for")
        image, label, valid = (_pixels(self.path, self.facts.digest, name).read(numbers) for name in PIXELS)
        return Sample(image, label, valid, columns["told"][numbers], columns["location"][numbers])

    @cached_property
    def _columns(self) -> dict[str, NDArray[Any]]:
        """The small arrays, whole."""
        group = zarr.open_group(zarr_store(self.path), mode="r")
        dates = np.asarray(group["date"][:]).astype("datetime64[s]")  # type: ignore[index]
        year = dates.astype("datetime64[Y]")
        day = dates.astype("datetime64[D]") - year
        told = np.stack([year.astype("float64") + 1970, day.astype("float64")], axis=-1).astype("float32")
        told[np.isnat(dates)] = np.nan
        return {
            "split": np.asarray(group["split"][:]),  # type: ignore[index]
            "group": np.asarray(group["group"][:]),  # type: ignore[index]
            "told": told,
            "location": np.stack([np.asarray(group[n][:]) for n in ("lat", "lon")], axis=-1).astype("float32"),  # type: ignore[index]
        }

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "facts": self.facts}


def open_chips(path: str | os.PathLike[str]) -> Chips:
    """Open a store of chips.

    Parameters
    ----------
    path
        Of a store that `write_chips` or `import_chips` wrote.

    Raises
    ------
    TrainError
        There is none, or it is not whole.
    """
    name = os.fspath(path)
    try:
        attrs = dict(zarr.open_group(zarr_store(name), mode="r").attrs)
    except (FileNotFoundError, KeyError, ValueError) as error:
        raise TrainError(f"there is no store of chips at {name!r} ({error}); write one with write_chips") from error
    if FACTS not in attrs:
        raise TrainError(f"the chips at {name!r} are not whole; call write_chips again: it goes on where it stopped")
    return Chips(name, ChipFacts.from_json(attrs[FACTS]))  # type: ignore[arg-type]


class _Pixels(Protocol):
    """How chips of one array are read; from several threads at once."""

    def read(self, numbers: NDArray[np.int64]) -> NDArray[Any]:
        """Return some of them, ``(n, ...)``."""


@lru_cache(maxsize=64)
def _pixels(path: str, digest: str, name: str) -> _Pixels:  # noqa: ARG001 - the digest tells stores of one path apart
    """Return a reader: of a local array whose chips are stored as plain bytes, or of any."""
    array = zarr.open_group(zarr_store(path), mode="r")[name]
    assert isinstance(array, zarr.Array)  # write_chips made it
    folder = local_folder(path)
    plain = array.compressors == () and array.filters == () and array.dtype.byteorder in "=|<"
    return _Shards(folder / name, array) if folder is not None and plain and array.shards else _Any(array)


@dataclass(frozen=True)
class _Any:
    array: zarr.Array[Any]

    def read(self, numbers: NDArray[np.int64]) -> NDArray[Any]:
        return np.asarray(self.array.get_orthogonal_selection((numbers,)))


class _Shards:
    """The files of an array, ``c/<shard>/0/...``: chips, and then the index (Zarr v3, sharding codec)."""

    def __init__(self, folder: Path, array: zarr.Array[Any]) -> None:
        assert array.shards is not None
        self._folder, self._dtype, self._shape = folder, array.dtype, array.shape[1:]
        self._count, self._tail = array.shards[0], "/0" * (array.ndim - 1)
        self._bytes = math.prod(self._shape) * self._dtype.itemsize
        self._starts: dict[int, list[int]] = {}

    def read(self, numbers: NDArray[np.int64]) -> NDArray[Any]:
        out = np.empty((len(numbers), *self._shape), self._dtype)
        rows = out.view("uint8").reshape(len(numbers), self._bytes)
        places = np.argsort(numbers, kind="stable")
        for shard, group in groupby(places.tolist(), lambda place: int(numbers[place]) // self._count):
            with self._open(shard) as file:
                starts = self._index(shard, file.fileno())
                for place in group:
                    start = starts[int(numbers[place]) % self._count]
                    if os.preadv(file.fileno(), [rows[place]], start) != self._bytes:
                        raise self._damaged(shard)
        return out

    def _open(self, shard: int) -> Any:
        try:
            return (self._folder / f"c/{shard}{self._tail}").open("rb", buffering=0)
        except FileNotFoundError as error:
            raise self._damaged(shard) from error

    def _index(self, shard: int, file: int) -> list[int]:
        """Where each chip of a shard starts."""
        if shard not in self._starts:
            length, size = 16 * self._count + 4, os.fstat(file).st_size  # start and length of each, and a check sum
            index = os.pread(file, length, max(size - length, 0))
            if len(index) != length:
                raise self._damaged(shard)
            starts, lengths = np.frombuffer(index[:-4], "<u8").reshape(-1, 2).T
            # Of a shard that is cut short the end of some chip is no index, whatever it says.
            if size != length + int((lengths != _ABSENT).sum()) * self._bytes:
                raise self._damaged(shard)
            self._starts[shard] = starts.astype("int64").tolist()
        return self._starts[shard]

    def _damaged(self, shard: int) -> TrainError:
        return TrainError(f"shard {shard} of {self._folder} is not whole; delete the store, and write the chips again")
