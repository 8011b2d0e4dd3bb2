"""The items of a job: searched for once, kept by tile beside the store, read back block by block.

In: STAC items in any order, one after the other. Out: one gzipped GeoJSON object for each MGRS tile, of slim items
without signatures, the same bytes whatever the order was. A million items never stand in memory as objects: they are
packed as they come.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xgfm.cube.hrefs import redacted
from xgfm.cube.items import READ_ASSETS, SIMULATED_MARK, HlsItem, normalise, plain_item
from xgfm.cube.open import attribution
from xgfm.cube.periods import Period
from xgfm.errors import ItemError, JobError
from xgfm.grid import TILE_PIXELS, TILE_RESOLUTION, tile_geobox
from xgfm.store.objects import Objects

Item = dict[str, Any]

FOLDER = "items"
_PROPERTIES = (
    "datetime",
    "start_datetime",
    "eo:cloud_cover",
    "proj:code",
    "proj:epsg",
    "proj:transform",
    "proj:shape",
    SIMULATED_MARK,
)
_ASSET = ("href", "file:size", "proj:code", "proj:epsg", "proj:transform", "proj:shape")
_encode = json.JSONEncoder(separators=(",", ":")).encode
_PACK = 1 << 16
"""Bytes of a tile's items that wait to be packed."""
_LISTED = 1000
"""Items that were left out and are told of one by one."""
_TILES = 64
"""Tiles whose items a process keeps."""


Extent = tuple[int, int, int, int]
"""First row, first column, rows and columns of files in their tile."""
WHOLE: Extent = (0, 0, TILE_PIXELS, TILE_PIXELS)

BAND_BYTES = 21e6 / TILE_PIXELS**2
"""Of a band's file, for each of its pixels: bands of HLS v2.0 are of 18 to 24 MB."""
FMASK_BYTES = 1.5e6 / TILE_PIXELS**2
"""Of an Fmask's file, for each of its pixels."""


@dataclass(frozen=True)
class Tile:
    """The items of one MGRS tile."""

    items: int
    """How many there are."""
    dates: tuple[int, ...]
    """How many of them each frame has, frames of one period after those of the one before."""
    bytes: int
    """Of all their files, of the items that lie in a frame."""
    extent: Extent
    """Which part of the tile the files hold."""


@dataclass(frozen=True)
class LeftOut:
    """An item that cannot be read, and why."""

    item: str
    reason: str


@dataclass
class _Packing:
    """The items of one tile, on their way into an object."""

    waiting: list[bytes] = field(default_factory=list)
    size: int = 0
    packed: list[bytes] = field(default_factory=list)

    def add(self, line: bytes) -> None:
        self.waiting.append(line)
        self.size += len(line)
        if self.size >= _PACK:
            self._pack()

    def _pack(self) -> None:
        self.packed.append(gzip.compress(b"\n".join(self.waiting), 1, mtime=0))
        self.waiting, self.size = [], 0

    def lines(self) -> list[bytes]:
        """Every line once, in order."""
        unpacked = (line for part in self.packed for line in gzip.decompress(part).split(b"\n"))
        return sorted({*unpacked, *self.waiting})


@dataclass
class Collection:
    """Items by tile, packed: filled by `add`, emptied by `save`."""

    windows: Sequence[Period]
    """Frames of the job, one period after the other."""
    keep: Callable[[str], bool]
    """Whether a tile's items are wanted."""
    bands: tuple[str, ...]
    """That every item must have, beside the Fmask."""
    left_out: list[LeftOut] = field(default_factory=list)
    left_out_count: int = 0
    _tiles: dict[str, _Packing] = field(default_factory=dict)
    _credited: dict[tuple[int, bool], HlsItem] = field(default_factory=dict)
    _extents: dict[str, Extent] = field(default_factory=dict)
    _wanted: dict[str, bool] = field(default_factory=dict)

    def add(self, items: Iterable[Any]) -> None:
        """Take items; one that cannot be read is left out and told of, those of other tiles are dropped."""
        for item in items:
            try:
                record = normalise(item, bands=self.bands, fmask=True)
            except ItemError as error:
                self._leave_out(item, str(error))
                continue
            if record.tile not in self._wanted:
                self._wanted[record.tile] = self.keep(record.tile)
            if self._wanted[record.tile]:
                self._tiles.setdefault(record.tile, _Packing()).add(_line(record, _plain(item)))
                self._credited.setdefault((record.datetime.year, record.simulated), record)
                self._extents[record.tile] = _union(self._extents.get(record.tile), extent_of(record))

    def save(self, objects: Objects) -> Iterator[tuple[str, Tile]]:
        """Write the items of each tile; yield what the plan keeps of them."""
        edges = _edges(self.windows)
        for tile in sorted(self._tiles):
            lines = self._unrepeated(self._tiles.pop(tile).lines())
            if not lines:
                continue
            dates, _, sizes, texts = zip(*(line.split(b"\t", 3) for line in lines), strict=True)
            body = b'{"type":"FeatureCollection","features":[\n' + b",\n".join(texts) + b"\n]}\n"
            objects.put(_name(tile), gzip.compress(body, 6, mtime=0))
            inside = _inside(np.array([date.decode() for date in dates], "datetime64[us]"), edges)
            size = int(np.array(sizes, "int64")[inside.any(axis=1)].sum())
            yield tile, Tile(len(lines), tuple(inside.sum(axis=0).tolist()), size, self._extents[tile])

    @property
    def attrs(self) -> dict[str, Any]:
        """What a result says of its sources: whom to name, and whether they are simulated."""
        credited = list(self._credited.values())
        simulated = {"simulated": 1} if any(item.simulated for item in credited) else {}
        return {"attribution": " ".join(attribution(credited)), **simulated}

    def _unrepeated(self, lines: list[bytes]) -> list[bytes]:
        """Lines of which no two have one id: which of two different ones is meant, nobody can tell."""
        by_id: dict[bytes, list[bytes]] = {}
        for line in lines:
            by_id.setdefault(line.split(b"\t", 3)[1], []).append(line)
        for name, same in by_id.items():
            if len(same) > 1:
                self._leave_out({"id": name.decode()}, f"{len(same)} different items have this id")
        return [line for line in lines if len(by_id[line.split(b"\t", 3)[1]]) == 1]

    def _leave_out(self, item: Any, reason: str) -> None:
        self.left_out_count += 1
        if len(self.left_out) < _LISTED:
            name = item.get("id") if isinstance(item, Mapping) else getattr(item, "id", item)
            self.left_out.append(LeftOut(redacted(str(name))[:200], reason[:500]))


def read_tile(objects: Objects, tile: str) -> tuple[Item, ...]:
    """Return the items of a tile, in order of date. They are shared: do not change them.

    Raises
    ------
    JobError
        Where the job's records do not have them.
    """
    return _read(objects, tile)


@lru_cache(maxsize=_TILES)
def _read(objects: Objects, tile: str) -> tuple[Item, ...]:
    try:
        body = gzip.decompress(objects.get(_name(tile)))
        return tuple(json.loads(body)["features"])
    except (OSError, EOFError, zlib.error, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise JobError(
            f"the items of tile {tile} cannot be read from {objects.url}/{_name(tile)} ({reason}); plan the job again"
        ) from error


def _plain(item: Any) -> Mapping[str, Any]:
    """An item that was normalised as a dict, without looking at it again."""
    return item if isinstance(item, Mapping) else plain_item(item)


def _line(record: HlsItem, plain: Mapping[str, Any]) -> bytes:
    """Date, id, bytes and slim item: sorted by date where lines are sorted."""
    date = record.datetime.replace(tzinfo=None).isoformat(timespec="microseconds")
    item = slim(record, plain)
    text = _encode(item)
    name = _encode(record.id)  # a tab or a line's end in it would tear the line
    return f"{date}\t{name}\t{_bytes(item, record)}\t{text}".encode()


def slim(record: HlsItem, plain: Mapping[str, Any]) -> Item:
    """Return what opening an item takes, and its address, as a STAC item: hrefs without signatures, no previews."""
    properties = {name: plain["properties"][name] for name in _PROPERTIES if name in plain["properties"]}
    hrefs = set(record.hrefs.values())
    assets: dict[str, Any] = {}
    for key, asset in plain["assets"].items():
        if key in READ_ASSETS:
            kept = {name: asset[name] for name in _ASSET if name in asset}
            href = str(asset.get("href", "")).partition("?")[0]
            if href in hrefs:  # a band of this sensor
                assets[key] = {**kept, "href": href}
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": record.id,
        "collection": record.collection or None,
        "geometry": None,
        "bbox": plain.get("bbox"),
        "properties": properties,
        "assets": assets,
        "links": _address(plain),
    }


def _address(plain: Mapping[str, Any]) -> list[dict[str, str]]:
    """Where an item itself is, as a link; none where that is on somebody's disk, or holds a password."""
    for link in plain.get("links") or ():
        if isinstance(link, Mapping) and link.get("rel") == "self" and "://" in str(link.get("href")):
            href = str(link["href"]).partition("?")[0]
            return [{"rel": "self", "href": href}] if redacted(href) == href else []
    return []


def _edges(windows: Sequence[Period]) -> NDArray[np.datetime64]:
    return np.array([[w.start.to_datetime64(), w.stop.to_datetime64()] for w in windows], "datetime64[us]")


def _inside(dates: NDArray[np.datetime64], edges: NDArray[np.datetime64]) -> NDArray[np.bool_]:
    """``(item, frame)``: which items lie in which frames."""
    return np.asarray((dates[:, None] >= edges[None, :, 0]) & (dates[:, None] < edges[None, :, 1]))


def extent_of(record: HlsItem) -> Extent:
    """Return first row, first column, rows and columns of an item's files in its tile."""
    rows, columns = record.geobox.shape
    if (rows, columns) == (TILE_PIXELS, TILE_PIXELS):
        return WHOLE
    own, whole = record.geobox.transform, tile_geobox(record.tile).transform
    return round((whole.f - own.f) / TILE_RESOLUTION), round((own.c - whole.c) / TILE_RESOLUTION), rows, columns


def _union(one: Extent | None, other: Extent) -> Extent:
    if one is None or one == other:
        return other
    top, left = min(one[0], other[0]), min(one[1], other[1])
    bottom, right = max(one[0] + one[2], other[0] + other[2]), max(one[1] + one[3], other[1] + other[3])
    return top, left, bottom - top, right - left


def _bytes(item: Item, record: HlsItem) -> int:
    """Bytes of an item's files: as it says, or as files of HLS have for each pixel."""
    pixels = record.geobox.shape[0] * record.geobox.shape[1]
    total = 0.0
    for key, asset in item["assets"].items():
        stated = asset.get("file:size")
        usual = FMASK_BYTES if key.lower() == "fmask" else BAND_BYTES
        total += stated if isinstance(stated, int) else usual * pixels
    return int(total)


def _name(tile: str) -> str:
    return f"{FOLDER}/{tile}.json.gz"
