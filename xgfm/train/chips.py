"""From cubes and labels to chips on disk.

In: lazy cubes, their label arrays and a plan of chips. Out: one Zarr store of training samples, see
`xgfm.train.chip_store`. Dask reads neighbouring chips together, a bounded number of lots at a time; each lot becomes a
whole shard and a record beside the store, so a second call writes what is missing.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
import zarr
from dask.delayed import delayed
from numpy.typing import NDArray

from xgfm.cf import NODATA
from xgfm.errors import LabelError, ReadError, TrainError, WriteError
from xgfm.grid import geobox_of, pixel_size_m
from xgfm.infer.check import units_of
from xgfm.store.ledger import Entry, Ledger
from xgfm.store.objects import Objects, zarr_store
from xgfm.train.chip_counts import common_classes
from xgfm.train.chip_lots import Source, lot_of, lot_size, ordered
from xgfm.train.chip_records import Tally, identity, lineage
from xgfm.train.chip_store import (
    FACTS,
    LEFT_OUT,
    SPLITS,
    ChipFacts,
    Chips,
    Sample,
    open_chips,
)
from xgfm.train.sampling import plan_chips

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["ChipFacts", "Chips", "Sample", "open_chips", "write_chips"]

RECORDS = ".lots"
"""What the folder of records beside a store ends in."""
PLAN = "plan.txt"
MAX_FAILED = 0.05
"""Share of the chips that may fail to be read."""


def write_chips(
    cube: xr.DataArray | Sequence[xr.DataArray],
    labels: xr.DataArray | Sequence[xr.DataArray],
    store: str | os.PathLike[str],
    plan: pd.DataFrame | None = None,
    *,
    size: int = 224,
    frames: int | None = None,
    client: Client | None = None,
    attempts: int = 3,
    **sampling: Any,
) -> Chips:
    """Cut labelled chips out of cubes and write them, once.

    Parameters
    ----------
    cube : DataArray or sequence of DataArray
        ``(time, band, y, x)``, lazy or not; of the same bands, units and pixel size.
    labels : DataArray or sequence of DataArray
        Of each cube, on its grid: what `xgfm.labels` gives. With a ``time``, every date is a chip of one frame.
    store : path or URL
        Of a Zarr store. One that an earlier call began is finished; a finished one is opened.
    plan : DataFrame, optional
        What `plan_chips` gave; by default it is made of ``size`` and ``sampling``.
    size : int
        Rows and columns of a chip; of a given plan, its own.
    frames : int, optional
        Frames of a chip. A longer cube is composited; by default all its dates are frames.
    client : Client, optional
        Dask client whose workers read; by default the threads of this process.
    attempts : int
        Times that a lot is read before its chips are read one by one, and those that fail are left out.
    **sampling
        Of `plan_chips`: ``split=``, ``shares=``, ``block=``, ``buffer=``, ``balance=``, ``chips=``, ``seed=``, ...

    Returns
    -------
    Chips

    Raises
    ------
    LabelError
        Labels that do not lie on their cube, have no date of it, or leave a split without a class.
    CubeError, FramesError, UnitsError
        Cubes that differ, or have too few dates; before any pixel is read.
    TrainError
        The store holds other chips.
    ReadError
        More than one chip in twenty cannot be read.
    WriteError
        The disk is full, or the store cannot be written.
    """
    cubes, arrays = ([one] if isinstance(one, xr.DataArray) else list(one) for one in (cube, labels))
    if len(cubes) != len(arrays) or not cubes:
        raise LabelError(f"{len(cubes)} cubes and {len(arrays)} label arrays; give one of each for every place")
    if plan is not None and sampling:
        raise TrainError(f"{sorted(sampling)} are options of a plan, and plan= is given; leave one of them out")
    sources = [Source.of(c, a, frames) for c, a in zip(cubes, arrays, strict=True)]
    _check_alike(sources)
    plan = plan_chips(arrays, size=size, **sampling) if plan is None else plan
    size = int(plan.attrs.get("size", size))
    writing = _Writing(os.fspath(store), sources, ordered(plan, sources, size), size, attempts)
    return writing.done() or writing.work(client)


def _check_alike(sources: list[Source]) -> None:
    first = sources[0]
    for number, source in enumerate(sources):
        for what, mine, its in (
            ("bands", first.cube["band"].values.tolist(), source.cube["band"].values.tolist()),
            ("dtype", str(first.cube.dtype), str(source.cube.dtype)),
            ("frames", first.frames, source.frames),
            ("units", units_of(first.cube), units_of(source.cube)),
        ):
            if mine != its:
                raise TrainError(f"cube {number} has {what} {its}, cube 0 has {mine}; chips of one store are alike")
        if not 0.95 < _metres(source) / _metres(first) < 1.05:
            raise TrainError(
                f"cube {number} has pixels of {_metres(source)} m, cube 0 of {_metres(first)} m; open the cubes of one "
                "store with the same resolution="
            )


def _metres(source: Source) -> float:
    return float(f"{pixel_size_m(geobox_of(source.cube)):.3g}")  # projections stretch the ground a little


@dataclass
class _Writing:
    """A store while it is written."""

    path: str
    sources: list[Source]
    table: pd.DataFrame
    size: int
    attempts: int

    def __post_init__(self) -> None:
        self.each = lot_size(self.sources[0], self.size)
        self.records = Objects(self.path.rstrip("/") + RECORDS)
        self.ledger = Ledger(self.records)
        self.identity = identity(self.table, self.sources, self.size)
        self.classes = common_classes([source.labels for source in self.sources])

    def done(self) -> Chips | None:
        """Return the chips where they are whole; refuse a store of other ones."""
        try:
            held = self.records.get(PLAN).decode()
        except FileNotFoundError:
            return None
        if held != self.identity:
            raise TrainError(
                f"{self.path} holds other chips: of other labels, another plan or other cubes; give another store, or "
                f"delete it and {self.records.url}"
            )
        try:
            return open_chips(self.path)
        except TrainError:
            return None  # begun, and not whole

    def work(self, client: Client | None) -> Chips:
        """Write what is missing, and what is known of all of it."""
        with _writing(self.path):
            self._template()
            self.records.put(PLAN, self.identity.encode())
        done = self.ledger.done()
        missing = [lot for lot in range(self._lots) if _name(lot) not in done]
        for lot, said in self._computed(missing, client):
            with _writing(self.path):
                self.ledger.record(Entry(_name(lot), "done", facts=said.to_json()))
        return self._finished()

    @property
    def _lots(self) -> int:
        return -(-len(self.table) // self.each)

    def _rows(self, lot: int) -> pd.DataFrame:
        return self.table.iloc[lot * self.each : (lot + 1) * self.each]

    def _template(self) -> None:
        """Make the store, all but its pixels."""
        store = zarr_store(self.path)
        group = zarr.open_group(store, mode="a")
        first, count, size = self.sources[0], len(self.table), self.size
        shapes: dict[str, tuple[tuple[str, ...], tuple[int, ...], Any, Any]] = {
            "image": (
                ("time", "band", "y", "x"), (first.frames, first.cube.sizes["band"], size, size), first.cube.dtype, 0,
            ),
            "label": (("y", "x"), (size, size), *_nothing(self.classes)),
            "valid": (("y", "x"), (size, size), bool, False),
        }  # fmt: skip
        for name, (dims, shape, dtype, fill) in shapes.items():
            if name in group:
                continue
            group.create_array(
                name, shape=(count, *shape), chunks=(1, *shape), shards=(self.each, *shape), dtype=dtype,
                fill_value=fill, compressors=None, dimension_names=("chip", *dims),
                config={"write_empty_chunks": True},  # every chip of a shard lies in it
            )  # fmt: skip
        for name, (dims, values, attrs) in self._columns().items():
            array = group.create_array(
                name, shape=values.shape, dtype=values.dtype, dimension_names=dims, overwrite=True, attributes=attrs
            )
            array[:] = values

    def _columns(self) -> dict[str, tuple[tuple[str, ...], NDArray[Any], dict[str, Any]]]:
        table, dates = self.table, []
        for source, step in zip(table["source"], table["step"], strict=True):
            dates.append(self.sources[source].times(int(step)).astype("datetime64[s]").astype("int64"))
        lon, lat = _lonlat(table, self.sources)
        plain = {name: table[name].to_numpy("int64") for name in ("source", "row", "column", "step", "group")}
        chip: tuple[str, ...] = ("chip",)
        return {
            **{name: (chip, values, {}) for name, values in plain.items()},
            "split": (chip, np.array([SPLITS.index(s) for s in table["split"]], "int8"), {
                "flag_values": [0, 1, 2], "flag_meanings": " ".join(SPLITS),
            }),
            "date": (("chip", "time"), np.stack(dates), {
                "units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian",
            }),
            "lat": (chip, lat, {"units": "degrees_north"}),
            "lon": (chip, lon, {"units": "degrees_east"}),
        }  # fmt: skip

    # ---- lots

    def _computed(self, lots: list[int], client: Client | None) -> Iterator[tuple[int, Tally]]:
        """Compute lots, a bounded number of them at a time."""
        if client is None:
            for lot in lots:
                yield lot, self._tried(lot, lambda work: work.compute())
            return
        most = 2 * max(sum(client.nthreads().values()), 1)
        ahead: deque[tuple[int, Any]] = deque()
        for lot in lots:
            ahead.append((lot, client.compute(self._lot(lot), retries=self.attempts - 1)))
            if len(ahead) >= most:
                yield self._gathered(client, *ahead.popleft())
        while ahead:
            yield self._gathered(client, *ahead.popleft())

    def _gathered(self, client: Client, lot: int, future: Any) -> tuple[int, Tally]:
        try:
            said: Tally = future.result()
        except ReadError:
            said = self._one_by_one(lot, lambda work: client.compute(work, retries=self.attempts - 1).result())
        return lot, said

    def _tried(self, lot: int, compute: Any) -> Tally:
        for _ in range(self.attempts):
            try:
                said: Tally = compute(self._lot(lot))
            except ReadError:
                continue
            return said
        return self._one_by_one(lot, compute)

    def _lot(self, lot: int) -> Any:
        return self._stored(lot, lot_of(self._rows(lot), self.sources, self.size), {})

    def _stored(self, lot: int, pixels: Any, failed: Mapping[int, str]) -> Any:
        rows = self._rows(lot)
        about = _Lot(
            self.path, lot * self.each, tuple(rows["split"]), units_of(self.sources[0].cube).nodata, len(self.classes)
        )
        return delayed(_store, pure=False)(about, pixels, dict(failed))

    def _one_by_one(self, lot: int, compute: Any) -> Tally:
        """Read each chip of a lot by itself; those that fail are left out."""
        rows, failed = self._rows(lot), {}
        images, labels = self._empty(len(rows))
        for place in range(len(rows)):
            try:
                image, label = compute(lot_of(rows.iloc[[place]], self.sources, self.size))
            except ReadError as error:
                failed[place] = str(error)
            else:
                images[place], labels[place] = image[0], label[0]
        said: Tally = compute(self._stored(lot, (images, labels), failed))
        return said

    def _empty(self, count: int) -> tuple[NDArray[Any], NDArray[Any]]:
        first = self.sources[0]
        shape = (count, first.frames, first.cube.sizes["band"], self.size, self.size)
        dtype, fill = _nothing(self.classes)
        return np.zeros(shape, first.cube.dtype), np.full((count, self.size, self.size), fill, dtype)

    # ---- the end

    def _finished(self) -> Chips:
        entries = list(self.ledger.entries([_name(lot) for lot in range(self._lots)]))
        tally = Tally.sum([Tally.from_json(entry.facts) for entry in entries])
        if len(tally.failed) > MAX_FAILED * len(self.table):
            for entry in entries:
                if entry.facts["failed"]:
                    self.records.delete(f"done/{entry.block}.json")  # so that the next call reads them again
            number, reason = next(iter(tally.failed.items()))
            raise ReadError(
                f"{len(tally.failed)} of {len(self.table)} chips cannot be read; the first, chip {number}: {reason}"
            )
        first = self.sources[0]
        units = units_of(first.cube)
        facts = ChipFacts(
            bands=tuple(first.cube["band"].values.tolist()),
            frames=first.frames,
            size=self.size,
            floating=first.cube.dtype.kind == "f",
            nodata=units.nodata,
            reflectance_scale=units.reflectance_scale,
            pixel_size=_metres(first),
            kind="segmentation" if self.classes else "regression",
            classes=self.classes,
            units=str(first.labels.attrs.get("units", "1")),
            statistics=tally.statistics(),
            counts=tally.counts,
            lineage=tuple(lineage(source) for source in self.sources),
            failed=tuple(self._left_out(number, reason) for number, reason in sorted(tally.failed.items())),
            digest=tally.digest(self.identity),
        )
        with _writing(self.path):
            group = zarr.open_group(zarr_store(self.path), mode="a")
            if tally.failed:
                split = np.asarray(group["split"][:])  # type: ignore[index]
                split[sorted(tally.failed)] = LEFT_OUT
                group["split"][:] = split  # type: ignore[index]
            group.attrs[FACTS] = facts.to_json()  # last: a store that has them is whole
        return open_chips(self.path)

    def _left_out(self, number: int, reason: str) -> dict[str, Any]:
        row = self.table.iloc[number]
        return {"chip": number, **{n: int(row[n]) for n in ("source", "row", "column", "step")}, "reason": reason}


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
    valid = _valid(images, lot.nodata)
    valid[list(failed)] = False
    with _writing(lot.path):
        group = zarr.open_group(zarr_store(lot.path), mode="r+")
        for name, values in (("image", images), ("label", labels), ("valid", valid)):
            group[name][lot.start : lot.start + len(values)] = values  # type: ignore[index]
    return Tally.of(images, labels, valid, lot.splits, lot.classes, {lot.start + k: v for k, v in failed.items()})


def _valid(images: NDArray[Any], nodata: float | None) -> NDArray[np.bool_]:
    there = np.array(np.isfinite(images) if images.dtype.kind == "f" else np.ones(images.shape, bool))
    if nodata is not None and np.isfinite(nodata):
        there &= images != nodata
    valid: NDArray[np.bool_] = there.all(axis=(1, 2))
    return valid


def _nothing(classes: Sequence[Any]) -> tuple[str, float]:
    """Dtype of labels, and what stands for none."""
    return ("uint8", NODATA) if classes else ("float32", np.nan)


def _lonlat(table: pd.DataFrame, sources: list[Source]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    from pyproj import Transformer

    lon, lat = np.empty(len(table)), np.empty(len(table))
    for number, source in enumerate(sources):
        mine = (table["source"] == number).to_numpy()
        crs = geobox_of(source.cube).crs
        assert crs is not None  # geobox_of refuses a cube without one
        there = Transformer.from_crs(crs.to_wkt(), "EPSG:4326", always_xy=True)
        lon[mine], lat[mine] = there.transform(table.loc[mine, "x"].to_numpy(), table.loc[mine, "y"].to_numpy())
    return lon, lat


def _name(lot: int) -> str:
    return f"lot-{lot:06d}"


class _writing:  # noqa: N801 - a context
    """Errors of the disk as errors of writing, with the store's name."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError):
            raise WriteError(
                f"chips cannot be written to {self.path} ({error}); the shards before are whole: free space, and call "
                "write_chips again"
            ) from error
