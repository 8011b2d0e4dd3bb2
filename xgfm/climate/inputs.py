"""Maps as they are to be summed: codes, legend, probabilities, times, grid.

In: what `predict` returned, stores of it, or several of either. Out: records with lazy arrays. Stores are opened, no
pixel is read; what cannot be summed is refused here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xgfm import cf
from xgfm.climate.cells import MISSING, UNKNOWN
from xgfm.cube.hrefs import redacted
from xgfm.errors import CubeError, GridError, LabelError
from xgfm.grid import geobox_of
from xgfm.store.layout import as_dataset, choose_variable
from xgfm.store.ledger import Ledger
from xgfm.store.objects import Objects, zarr_store

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

Array = np.ndarray[Any, Any]
Result = xr.Dataset | xr.DataArray | str | PathLike[str]
RECORDS, WHOLE = ".job", "item.json"
"""What a job adds to its store's name for its records, and the record of a whole result."""
_BLOCK = 1024
"""Least rows and columns of a block of a map that does not come in blocks: of a store, whole shards."""
_FACTS = (
    "title", "task", "model", "weights_digest", "attribution", "demonstration", "simulated", "xgfm_version",
    "temperature",
)  # fmt: skip
"""Attributes of a map that hold for its sums."""


@dataclass(frozen=True)
class Legend:
    """The classes of a map."""

    values: tuple[int, ...]
    names: tuple[str, ...]
    colors: tuple[str, ...]

    @property
    def table(self) -> Array:
        """Return the place in the legend of each code ``(256,)``."""
        out = np.full(256, UNKNOWN, "int16")
        out[list(self.values)] = np.arange(len(self.values))
        out[cf.NODATA] = MISSING
        return out


@dataclass(frozen=True)
class ClassMap:
    """A map that can be summed."""

    variable: str
    box: GeoBox
    legend: Legend
    codes: Any
    """Dask array ``(time, y, x)``."""
    share: Any | None
    """Dask array ``(time, class, y, x)``, of the same blocks."""
    times: Array
    time_bounds: Array
    attrs: Mapping[str, Any]


def open_maps(result: Result | Mapping[str, Result] | Iterable[Result], *, allow: tuple[str, ...]) -> dict[str, Any]:
    """Return maps by name, stores opened; a store with a map for each tile gives one for each.

    Raises
    ------
    CubeError
        Where there is no map, or a store is still being written and ``allow`` has no ``"unfinished"``.
    """
    if isinstance(result, Mapping) and not isinstance(result, xr.Dataset):
        given = {str(name): made for name, made in result.items()}
    elif isinstance(result, xr.Dataset | xr.DataArray | str | PathLike):
        given = {_name(result, 0): result}
    else:
        listed = list(result)
        names = [_name(made, i) for i, made in enumerate(listed)]
        given = {
            n if names.count(n) == 1 else f"{n} ({i})": m for i, (n, m) in enumerate(zip(names, listed, strict=True))
        }
    maps: dict[str, Any] = {}
    for name, made in given.items():
        if "unfinished" not in allow:
            _check_finished(made)
        maps.update(_opened(name, made))
    if not maps:
        raise CubeError("there is no map to sum; give what predict returned, a store of it, or several")
    return maps


def _name(made: Result, place: int) -> str:
    """Name a map by its tile, else by its place."""
    attrs = getattr(made, "attrs", {})
    return str(attrs.get("tile", f"map {place}"))


def _opened(name: str, made: Result) -> dict[str, Any]:
    if isinstance(made, xr.Dataset | xr.DataArray):
        return {name: made}
    import zarr

    store = zarr_store(made)
    options: dict[str, Any] = {"mask_and_scale": False, "chunks": None, "decode_coords": "all", "consolidated": False}
    try:
        root = xr.open_zarr(store, **options)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CubeError(
            f"there is no Zarr store at {redacted(fspath(made))!r}; give the path of one that predict or a job wrote, "
            "or a Dataset"
        ) from error
    if root.data_vars:
        return {name: root}
    groups = sorted(zarr.open_group(store, mode="r").group_keys())
    opened = {group: xr.open_zarr(store, group=group, **options) for group in groups}
    return {group: each for group, each in opened.items() if each.data_vars}


def _check_finished(made: Result) -> None:
    """Refuse the store of a job of which blocks are missing, as the records beside it say."""
    source = made if isinstance(made, str | PathLike) else made.encoding.get("source")
    if not source:
        return
    text = fspath(source).rstrip("/")
    records = Objects(text + RECORDS)
    ledger = Ledger(records)
    if not any(True for _ in records.names()) or WHOLE in set(records.names()):
        return
    raise CubeError(
        f"the store {redacted(text)!r} is not finished: {len(ledger.done())} blocks are done and "
        f"{len(ledger.failed())} failed, and the job has not been completed. What is missing would count as not "
        "seen; run the job to its end (xgfm resume), or sum what is there with allow='unfinished'"
    )


def class_map(name: str, made: xr.Dataset | xr.DataArray, variable: str | None = None) -> ClassMap:
    """Return a map as it is to be summed: the one that is named, or the only one.

    Raises
    ------
    GridError
        Without a CRS, or on an irregular grid.
    LabelError
        Without classes.
    """
    dataset = as_dataset(made)
    variable = choose_variable(dataset, variable)
    codes = dataset[variable]
    box, legend = _box(codes, dataset, name), _legend(codes, variable)
    lead = [d for d in codes.dims if d not in ("y", "x")]
    if lead not in ([], ["time"]):
        raise CubeError(f"the map {variable!r} has dims {codes.dims}; expected (y, x) or (time, y, x)")
    # Into blocks before a dimension is added: that would read a store that was opened without Dask.
    codes = codes if codes.chunks else codes.chunk(_blocks(codes))
    codes = codes if lead else codes.expand_dims("time")
    lazy = codes.data
    times, bounds = times_of(dataset, codes.sizes["time"])
    attrs = {n: dataset.attrs[n] for n in _FACTS if n in dataset.attrs}
    attrs |= {n: codes.attrs[n] for n in ("long_name", "comment") if n in codes.attrs}
    return ClassMap(variable, box, legend, lazy, _share(_own(dataset, codes), legend, lazy), times, bounds, attrs)


def _blocks(codes: xr.DataArray) -> dict[str, int]:
    """Return the blocks that a map without Dask's is read in: whole shards, or chunks, of its store."""
    stored = codes.encoding.get("shards") or codes.encoding.get("chunks") or (1, 1)
    sides = ((n, side * max(_BLOCK // side, 1)) for n, side in zip(("y", "x"), stored[-2:], strict=True))
    return {**({"time": 1} if "time" in codes.dims else {}), **dict(sides)}


def _box(codes: xr.DataArray, dataset: xr.Dataset, name: str) -> GeoBox:
    try:
        return geobox_of(codes)
    except GridError as error:
        try:
            return geobox_of(dataset)
        except GridError:
            error.add_note(f"of the map {name!r}")
            raise error from None


def _legend(codes: xr.DataArray, variable: str) -> Legend:
    flags = cf.flags_of(codes)
    if not flags:
        raise LabelError(
            f"the map {variable!r} has no flag_values, so its classes are unknown; expected a class map as predict "
            "returns it, with flag_values and flag_meanings"
        )
    return Legend(*(tuple(getattr(flag, part) for flag in flags) for part in ("number", "name", "color")))


def _own(dataset: xr.Dataset, codes: xr.DataArray) -> xr.Dataset:
    """Leave out the probability of another map of the Dataset."""
    others = [n for n, v in dataset.data_vars.items() if "flag_values" in v.attrs and n != codes.name]
    named = str(codes.attrs.get("ancillary_variables", "")).split()
    return dataset.drop_vars("probability", errors="ignore") if others and "probability" not in named else dataset


def _share(dataset: xr.Dataset, legend: Legend, codes: Any) -> Any | None:
    """Return the probabilities in the blocks of the codes."""
    if "probability" not in dataset.data_vars:
        return None
    share = dataset["probability"]
    share = share if share.chunks else share.chunk(_blocks(share))
    share = share if "time" in share.dims else share.expand_dims("time")
    if set(share.dims) != {"time", "class", "y", "x"} or share.sizes["class"] != len(legend.names):
        raise CubeError(
            f"probability has {dict(share.sizes)}, and the map {len(legend.names)} classes; expected (class, y, x) "
            "with one for each, or drop the variable"
        )
    share = share.transpose("time", "class", "y", "x")
    time, y, x = codes.chunks
    return share.chunk({"time": time, "class": -1, "y": y, "x": x}).data


def times_of(dataset: xr.Dataset, count: int) -> tuple[Array, Array]:
    """Return when each step of a map is, and from when to when, by its coordinates or frames; else NaT."""
    none = np.full(count, np.datetime64("NaT", "ns")), np.full((count, 2), np.datetime64("NaT", "ns"))
    windows = [[np.datetime64(w[0][:19], "ns"), _end(w[-1])] for w in _windows(dataset.attrs)]
    if "time" in dataset.coords and dataset["time"].dtype.kind == "M":
        times = np.atleast_1d(dataset["time"].values).astype("datetime64[ns]")
        bounds = dataset["time"].attrs.get("bounds", dataset["time"].encoding.get("bounds", "time_bnds"))
        if bounds in dataset.variables:
            return times, dataset[bounds].values.reshape(count, 2).astype("datetime64[ns]")
        if "time" in dataset.dims and len(windows) % count == 0 and windows:
            each = len(windows) // count
            spans = [windows[i * each : (i + 1) * each] for i in range(count)]
            return times, np.array([[min(w[0] for w in s), max(w[-1] for w in s)] for s in spans])
        return times, np.stack([times, times], axis=1)
    if not windows or count != 1:
        return none
    span = np.array([[min(w[0] for w in windows), max(w[-1] for w in windows)]], "datetime64[ns]")
    return span[:, 0] + (span[:, 1] - span[:, 0]) / 2, span


def _end(last: str) -> np.datetime64:
    """Return the end of what lasts to a day, the day included, or to an instant."""
    return np.datetime64(last[:19], "ns") + np.timedelta64(len(last) == 10, "D")


def _windows(attrs: Mapping[str, Any]) -> list[list[str]]:
    """Return the first and last day of each frame."""
    frames = [[str(d) for d in f.get("window") or f.get("dates") or []] for f in cf.frames_of(attrs)]
    dates = attrs.get("dates") or []
    listed = [dates] if isinstance(dates, str) else list(dates)
    return [sorted(f) for f in frames if f] or [[str(d), str(d)] for d in listed]
