"""A store of chips while it is written.

In: a `Draft`, what is known of chips before any pixel is read, and how to read some of them. Out: the store. A bounded
number of lots is read at a time; each becomes a whole shard and a record beside the store, so that a second call writes
what is missing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import zarr
from dask.delayed import delayed
from numpy.typing import NDArray
from zarr.errors import ContainsArrayError

from xgfm.cf import NODATA
from xgfm.cube.hrefs import redacted
from xgfm.errors import LabelError, ReadError, TrainError, WriteError
from xgfm.models.spec import ClassInfo
from xgfm.store.ledger import Entry, Ledger
from xgfm.store.objects import Objects, zarr_store
from xgfm.store.region import sweep
from xgfm.train.chips.records import Tally
from xgfm.train.chips.store import FACTS, LEFT_OUT, SPLITS, ChipFacts, Chips, open_chips

if TYPE_CHECKING:
    from distributed import Client

RECORDS = ".lots"
"""What the folder of records beside a store ends in."""
PLAN = "plan"
"""Attribute of the store: digest of which chips it is to hold."""
MAX_FAILED = 0.05
"""Share of the chips that may fail to be read."""

_LOT_BYTES = 64 << 20
_LOT_CHIPS = 64
_UNREADABLE = (ReadError, OSError, RuntimeError)
"""What reading raises; codecs of Zarr raise the last of these where a chunk is damaged."""

Compute = Callable[[Any], Any]


@dataclass(frozen=True)
class Draft:
    """What chips will be."""

    bands: tuple[str, ...]
    frames: int
    size: int
    dtype: np.dtype[Any]
    """Of pixels."""
    nodata: float | None
    reflectance_scale: float
    pixel_size: float
    """Metres."""
    classes: tuple[ClassInfo, ...]
    """None of a regression."""
    units: str
    lineage: tuple[Mapping[str, Any], ...]
    table: pd.DataFrame
    """A row for each chip: source, row, column, step, group, split, lat, lon; neighbours next to each other."""
    dates: NDArray[np.datetime64]
    """``(chip, frame)``; NaT where nothing says."""
    identity: str
    """Digest of which chips these are, and of what they are cut out of."""
    read: Callable[[pd.DataFrame], Any]
    """Images ``(n, T, C, H, W)`` and labels ``(n, H, W)`` of some rows, as a Dask delayed value."""

    def rows(self, lot: int) -> pd.DataFrame:
        """Return the chips of a lot, which is a shard."""
        return self.table.iloc[lot * self.each : (lot + 1) * self.each]

    @property
    def each(self) -> int:
        """Chips of a shard."""
        chip = self.frames * len(self.bands) * self.size**2 * self.dtype.itemsize
        return int(np.clip(_LOT_BYTES // chip, 1, _LOT_CHIPS))

    @property
    def lots(self) -> int:
        """How many there are."""
        return -(-len(self.table) // self.each)

    def empty(self, count: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return images and labels that hold nothing."""
        dtype, fill = self.label_type
        images = np.zeros((count, self.frames, len(self.bands), self.size, self.size), self.dtype)
        return images, np.full((count, self.size, self.size), fill, dtype)

    @property
    def label_type(self) -> tuple[str, float]:
        """Dtype of labels, and what stands for none."""
        return ("uint8", NODATA) if self.classes else ("float32", np.nan)


def write(draft: Draft, path: str, *, client: Client | None, attempts: int, max_failed: float) -> Chips:
    """Write a draft's chips, or what is missing of them, or open them.

    Raises
    ------
    TrainError
        The store holds other chips, or something else.
    ReadError
        A greater share than ``max_failed`` cannot be read.
    WriteError
        The disk is full, or the store cannot be written.
    """
    writing = _Writing(draft, path, attempts, max_failed)
    held = writing.held()
    if FACTS in held:
        return open_chips(path)
    if not held:
        writing.begin()
    return writing.work(client)


@dataclass
class _Writing:
    draft: Draft
    path: str
    attempts: int
    max_failed: float

    def __post_init__(self) -> None:
        self.records = Objects(self.path.rstrip("/") + RECORDS)
        self.ledger = Ledger(self.records)

    def held(self) -> Mapping[str, Any]:
        """Return what the store says of itself, nothing where there is none; refuse one that holds something else."""
        held: Mapping[str, Any] = {}
        try:
            held = dict(zarr.open_group(zarr_store(self.path), mode="r").attrs)
        except FileNotFoundError:
            return held
        except ContainsArrayError:
            pass  # it says nothing of a plan
        if PLAN not in held:
            raise TrainError(f"{self.path} is no store of chips; give another store, or delete it")
        if held[PLAN] != self.draft.identity:
            raise TrainError(
                f"{self.path} holds other chips: of other labels, another plan or other cubes; give another store, or "
                "delete it"
            )
        return held

    def begin(self) -> None:
        """Make the store; records of one that was deleted are void."""
        with _disk(self.path):
            for name in list(self.records.names("done/")):
                self.records.delete(name)
            zarr.create_group(zarr_store(self.path), attributes={PLAN: self.draft.identity})

    def work(self, client: Client | None) -> Chips:
        """Write what is missing, and what is known of all of it."""
        with _disk(self.path):
            sweep(self.path)
            self._template()
            done = self.ledger.done()
        missing = [lot for lot in range(self.draft.lots) if _name(lot) not in done]
        for lot, said in self._computed(missing, client):
            with _disk(self.path):
                self.ledger.record(Entry(_name(lot), "done", facts=said.to_json()))
        return self._finished()

    def _template(self) -> None:
        """Make the arrays, and fill the small ones."""
        draft, count = self.draft, len(self.draft.table)
        group = zarr.open_group(zarr_store(self.path), mode="r+")
        (image, label), (_, none) = draft.empty(1), draft.label_type
        arrays: tuple[tuple[str, NDArray[Any], tuple[str, ...], float], ...] = (
            ("image", image, ("time", "band", "y", "x"), 0),
            ("label", label, ("y", "x"), none),
            ("valid", label.astype(bool), ("y", "x"), False),
        )
        for name, one, dims, fill in arrays:
            if name not in group:
                group.create_array(
                    name, shape=(count, *one.shape[1:]), chunks=one.shape, shards=(draft.each, *one.shape[1:]),
                    dtype=one.dtype, fill_value=fill, compressors=None, dimension_names=("chip", *dims),
                )  # fmt: skip
        for name, (dims, values, attrs) in _columns(draft).items():
            array = group.create_array(
                name, shape=values.shape, dtype=values.dtype, dimension_names=dims, overwrite=True, attributes=attrs
            )
            array[:] = values

    # ---- lots

    def _computed(self, lots: list[int], client: Client | None) -> Iterator[tuple[int, Tally]]:
        """Compute lots, a bounded number of them at a time."""
        if client is None:
            for lot in lots:
                yield lot, self._tried(lot)
            return

        def submitted(work: Any) -> Any:
            return client.compute(work, retries=self.attempts - 1)

        most = 2 * max(sum(client.nthreads().values()), 1)
        ahead: deque[tuple[int, Any]] = deque()
        for lot in lots:
            ahead.append((lot, submitted(self._lot(lot))))
            if len(ahead) >= most:
                yield self._gathered(*ahead.popleft(), submitted)
        while ahead:
            yield self._gathered(*ahead.popleft(), submitted)

    def _gathered(self, lot: int, future: Any, submitted: Compute) -> tuple[int, Tally]:
        try:
            said: Tally = future.result()
        except _UNREADABLE as error:
            _check_of_reading(error)
            said = self._one_by_one(lot, lambda work: submitted(work).result())
        return lot, said

    def _tried(self, lot: int) -> Tally:
        for _ in range(self.attempts):
            try:
                said: Tally = self._lot(lot).compute()
            except _UNREADABLE:
                continue
            return said
        return self._one_by_one(lot, lambda work: work.compute())

    def _lot(self, lot: int) -> Any:
        return self._stored(lot, self.draft.read(self.draft.rows(lot)), {})

    def _stored(self, lot: int, pixels: Any, failed: Mapping[int, str]) -> Any:
        draft = self.draft
        splits = tuple(draft.rows(lot)["split"])
        about = _Lot(self.path, lot * draft.each, splits, draft.nodata, len(draft.classes))
        return delayed(_store, pure=False)(about, pixels, dict(failed))

    def _one_by_one(self, lot: int, compute: Compute) -> Tally:
        """Read each chip of a lot by itself; those that fail are left out."""
        rows, failed = self.draft.rows(lot), {}
        images, labels = self.draft.empty(len(rows))
        for place in range(len(rows)):
            try:
                image, label = compute(self.draft.read(rows.iloc[[place]]))
            except _UNREADABLE as error:
                _check_of_reading(error)
                failed[place] = redacted(str(error))
            else:
                images[place], labels[place] = image[0], label[0]
        said: Tally = compute(self._stored(lot, (images, labels), failed))
        return said

    # ---- the end

    def _finished(self) -> Chips:
        draft = self.draft
        entries = list(self.ledger.entries([_name(lot) for lot in range(draft.lots)]))
        tally = Tally.sum([Tally.from_json(entry.facts) for entry in entries])
        if len(tally.failed) > self.max_failed * len(draft.table):
            for entry in entries:
                if entry.facts["failed"]:
                    self.records.delete(f"done/{entry.block}.json")  # so that the next call reads them again
            number, reason = next(iter(tally.failed.items()))
            raise ReadError(
                f"{len(tally.failed)} of {len(draft.table)} chips cannot be read; the first, chip {number}: {reason}; "
                "call again to read these alone, or let more of them be left out with max_failed="
            )
        facts = ChipFacts(
            bands=draft.bands,
            frames=draft.frames,
            size=draft.size,
            floating=draft.dtype.kind == "f",
            nodata=draft.nodata,
            reflectance_scale=draft.reflectance_scale,
            pixel_size=draft.pixel_size,
            kind="segmentation" if draft.classes else "regression",
            classes=draft.classes,
            units=draft.units,
            statistics=tally.statistics(),
            counts=tally.counts,
            lineage=draft.lineage,
            failed=tuple(self._left_out(number, reason) for number, reason in sorted(tally.failed.items())),
            digest=tally.digest(draft.identity),
        )
        with _disk(self.path):
            group = zarr.open_group(zarr_store(self.path), mode="r+")
            if tally.failed:
                split = np.asarray(group["split"][:])  # type: ignore[index]
                split[sorted(tally.failed)] = LEFT_OUT
                group["split"][:] = split  # type: ignore[index]
            group.attrs[FACTS] = facts.to_json()  # last: a store that has them is whole
        return open_chips(self.path)

    def _left_out(self, number: int, reason: str) -> dict[str, Any]:
        row = self.draft.table.iloc[number]
        return {"chip": number, **{n: int(row[n]) for n in ("source", "row", "column", "step")}, "reason": reason}


def _columns(draft: Draft) -> dict[str, tuple[tuple[str, ...], NDArray[Any], dict[str, Any]]]:
    """The small arrays: dims, values, attributes."""
    table, chip = draft.table, ("chip",)
    split = np.array([SPLITS.index(name) for name in table["split"]], "int8")
    return {
        **{n: (chip, table[n].to_numpy("int64"), {}) for n in ("source", "row", "column", "step", "group")},
        "split": (chip, split, {"flag_values": [0, 1, 2], "flag_meanings": " ".join(SPLITS)}),
        "date": (("chip", "time"), draft.dates.astype("datetime64[s]").astype("int64"), {
            "units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian",
        }),
        "lat": (chip, table["lat"].to_numpy("float64"), {"units": "degrees_north"}),
        "lon": (chip, table["lon"].to_numpy("float64"), {"units": "degrees_east"}),
    }  # fmt: skip


@dataclass(frozen=True)
class _Lot:
    """What a worker must know to store a lot."""

    path: str
    start: int
    splits: tuple[str, ...]
    nodata: float | None
    classes: int


def _store(lot: _Lot, pixels: tuple[NDArray[Any], NDArray[Any]], failed: Mapping[int, str]) -> Tally:
    """Write a lot as a shard, and count what is in it."""
    images, labels = pixels
    _check_codes(labels, lot.classes)
    valid = _valid(images, lot.nodata)
    valid[list(failed)] = False
    with _disk(lot.path):
        group = zarr.open_group(zarr_store(lot.path), mode="r+")
        for name, values in (("image", images), ("label", labels), ("valid", valid)):
            array = group[name].with_config({"write_empty_chunks": True})  # type: ignore[union-attr]
            array[lot.start : lot.start + len(values)] = values
    return Tally.of(images, labels, valid, lot.splits, lot.classes, {lot.start + k: v for k, v in failed.items()})


def _check_codes(labels: NDArray[Any], classes: int) -> None:
    strange = np.setdiff1d(np.unique(labels), [*range(classes), NODATA]) if classes else np.empty(0)
    if strange.size:
        raise LabelError(f"labels hold {strange.tolist()[:5]}, but there are {classes} classes; correct the legend")


def _valid(images: NDArray[Any], nodata: float | None) -> NDArray[np.bool_]:
    there: NDArray[Any] = np.isfinite(images) if images.dtype.kind == "f" else np.ones(images.shape, bool)
    if nodata is not None and np.isfinite(nodata):
        there = there & (images != nodata)
    return np.asarray(there.all(axis=(1, 2)))


def _name(lot: int) -> str:
    return f"lot-{lot:06d}"


def _check_of_reading(error: Exception) -> None:
    """Raise what is wrong with the cluster, and not with an asset."""
    if isinstance(error, TimeoutError) or type(error).__module__.startswith("distributed"):
        raise error


@contextmanager
def _disk(path: str) -> Iterator[None]:
    """Errors of the disk as errors of writing, with the store's name."""
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"chips cannot be written to {path} ({error}); the shards before are whole: free space, and call again"
        ) from error
