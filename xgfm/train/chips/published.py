"""Published sets of chips, read by their own folder layouts.

In: a folder as it was downloaded. Out: the store that `write_chips` writes. Headers of all images are looked at first;
pixels are read by Dask.

``multi-temporal-crop``
    ``training_chips/`` and ``validation_chips/`` with ``*_merged.tif`` (18 bands, date by date) and ``*.mask.tif``;
    dates in ``chips_df.csv``.
``sen1floods11``
    ``S2Hand/`` and ``LabelHand/`` beside each other and ``flood_{train,valid,test}_data.csv``, anywhere below; dates in
    ``Sen1Floods11_Metadata.geojson``.
``hls-burn-scars``
    ``training/`` and ``validation/`` with ``*_merged.tif`` and ``*.mask.tif``; dates in the names.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from dask.delayed import delayed
from numpy.typing import NDArray
from odc.geo.crs import CRS

from xgfm.cf import NODATA
from xgfm.cube.credentials import read
from xgfm.errors import LabelError, TrainError
from xgfm.jobs.region import DEGREES, transformer
from xgfm.models.published import TASKS
from xgfm.models.spec import PRITHVI_BANDS, ClassInfo
from xgfm.train.chips.lots import joined
from xgfm.train.chips.store import Chips
from xgfm.train.chips.writing import MAX_FAILED, Draft, write
from xgfm.train.sampling.places import block_ids

if TYPE_CHECKING:
    from distributed import Client

_OPENED = 16
"""Headers that are looked at together."""
_BLOCK = 4
"""Side of a spatial group, in chips."""
_HLS = "HLS: NASA LP DAAC. Contains modified Copernicus Sentinel data"


@dataclass(frozen=True, slots=True)
class _Pair:
    """One chip: an image and its mask."""

    name: str
    image: Path
    mask: Path
    split: str
    dates: tuple[str, ...] = ()
    event: str = ""
    """What it was taken of; chips of one event are one group."""


@dataclass(frozen=True)
class _Layout:
    """A published set."""

    title: str
    pairs: Callable[[Path], list[_Pair]]
    task: str
    """Published task whose classes these are."""
    frames: int
    planes: tuple[int, ...]
    """Bands of a file, 0-based, frame by frame."""
    pixel_size: float
    reflectance_scale: float
    nodata: float
    """Of pixels, where a file does not say."""
    first: int
    """Code of the first class."""
    unlabelled: int
    """Code of pixels without a label."""
    attribution: str
    licence: str

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        return TASKS[self.task].classes


def import_chips(
    folder: str | os.PathLike[str],
    kind: str,
    store: str | os.PathLike[str],
    *,
    client: Client | None = None,
    max_failed: float = MAX_FAILED,
) -> Chips:
    """Read a published set of chips into a store.

    Parameters
    ----------
    folder : path
        The set as it was downloaded and unpacked.
    kind : str
        ``"multi-temporal-crop"``, ``"sen1floods11"`` or ``"hls-burn-scars"``.
    store : path or URL
        Of a Zarr store. One that an earlier call began is finished; a finished one is opened.
    client : Client, optional
        Dask client whose workers read; by default the threads of this process.
    max_failed : float
        Greatest share of the chips that may be left out because they cannot be read.

    Returns
    -------
    Chips
        Bands are the six of Prithvi, in its order; of Sen1Floods11 those of Sentinel-2 L1C that come nearest. Splits
        are the published ones: the first and the last set have no test split, and the chips of Bolivia are left out of
        Sen1Floods11. Groups are events of Sen1Floods11, and else blocks of four chips a side. Where the set has no
        dates with it, they are NaT.

    Raises
    ------
    TrainError
        No such kind, a folder of another layout, images that are not alike.
    LabelError
        An image without a mask, or a mask with codes that the set does not have.
    ReadError
        A file whose header cannot be read, or more chips than ``max_failed`` that cannot.
    """
    if kind not in LAYOUTS:
        raise TrainError(f"kind is {kind!r}; expected one of {list(LAYOUTS)}")
    layout, root = LAYOUTS[kind], Path(folder).expanduser()
    pairs = layout.pairs(root)
    if missing := [pair for pair in pairs if not pair.mask.is_file()]:
        raise LabelError(
            f"{len(missing)} of {len(pairs)} images have no mask, the first {missing[0].image}; expected "
            f"{missing[0].mask}"
        )
    draft = _draft(layout, kind, pairs)
    return write(draft, os.fspath(store), client=client, attempts=3, max_failed=max_failed)


# ---- what lies where


def _merged(folders: Mapping[str, str], dates: Callable[[Path, list[str]], dict[str, tuple[str, ...]]]) -> Any:
    """Return a finder of ``*_merged.tif`` with ``*.mask.tif`` in a folder for each split."""

    def pairs(root: Path) -> list[_Pair]:
        found = [
            (split, path) for split, name in folders.items() for path in sorted((root / name).glob("*_merged.tif"))
        ]
        if not found:
            raise TrainError(f"{root} has no *_merged.tif in {' or '.join(folders.values())}; give the unpacked folder")
        names = [path.name.removesuffix("_merged.tif") for _, path in found]
        known = dates(root, names)
        return [
            _Pair(name, path, path.with_name(f"{name}.mask.tif"), split, known.get(name, ()))
            for name, (split, path) in zip(names, found, strict=True)
        ]

    return pairs


def _dates_of_table(root: Path, names: list[str]) -> dict[str, tuple[str, ...]]:  # noqa: ARG001
    path = root / "chips_df.csv"
    if not path.is_file():
        return {}
    columns = ["first_img_date", "middle_img_date", "last_img_date"]
    table = pd.read_csv(path, dtype=str)
    if missing := [column for column in ("chip_id", *columns) if column not in table]:
        raise TrainError(f"{path} has no columns {missing}; it has {list(table.columns)}")
    return {str(row["chip_id"]): tuple(row[c] for c in columns) for _, row in table.dropna(subset=columns).iterrows()}


def _dates_of_names(root: Path, names: list[str]) -> dict[str, tuple[str, ...]]:  # noqa: ARG001
    days = {name: re.search(r"\.(\d{4})(\d{3})\.", name) for name in names}
    return {
        name: (str(np.datetime64(day[1]) + np.timedelta64(int(day[2]) - 1, "D")),) for name, day in days.items() if day
    }


def _flood_pairs(root: Path) -> list[_Pair]:
    images = next(iter(sorted(root.rglob("S2Hand"))), None)
    if images is None:
        raise TrainError(f"{root} has no folder S2Hand; give the folder that holds data/ and splits/")
    known, pairs = _dates_of_events(root), []
    for split, listed in (("train", "train"), ("val", "valid"), ("test", "test")):
        tables = sorted(p for ending in ("csv", "txt") for p in root.rglob(f"flood_{listed}_data.{ending}"))
        if not tables:
            raise TrainError(f"{root} has no flood_{listed}_data.csv; it says which chips are for {split}")
        for line in tables[0].read_text(encoding="utf-8").split():
            name = re.sub(r"(_(S1|S2|Label)Hand)?(\.tif)?$", "", line.split(",")[0])
            event = name.partition("_")[0]
            paths = images / f"{name}_S2Hand.tif", images.with_name("LabelHand") / f"{name}_LabelHand.tif"
            pairs.append(_Pair(name, *paths, split, known.get(event, ()), event))
    if missing := [pair for pair in pairs if not pair.image.is_file()]:
        raise TrainError(f"{len(missing)} of {len(pairs)} listed chips are not there, the first {missing[0].image}")
    return pairs


def _dates_of_events(root: Path) -> dict[str, tuple[str, ...]]:
    path = next(iter(sorted(root.rglob("Sen1Floods11_Metadata.geojson"))), None)
    if path is None:
        return {}
    events = [feature["properties"] for feature in json.loads(path.read_text(encoding="utf-8"))["features"]]
    return {event["location"]: (event["s2_date"],) for event in events if event.get("s2_date")}


def _date_by_date(bands: int, frames: int) -> tuple[int, ...]:
    return tuple(range(bands * frames))


LAYOUTS: Mapping[str, _Layout] = {
    "multi-temporal-crop": _Layout(
        title="Multi-temporal crop classification, HLS and Cropland Data Layer, 2022",
        pairs=_merged({"train": "training_chips", "val": "validation_chips"}, _dates_of_table),
        task="crop",
        frames=3,
        planes=_date_by_date(6, 3),
        pixel_size=30.0,
        reflectance_scale=1e-4,
        nodata=-9999,
        first=1,
        unlabelled=0,
        attribution=_HLS,
        licence="CC-BY-4.0",
    ),
    "sen1floods11": _Layout(
        title="Sen1Floods11, hand-labelled",
        pairs=_flood_pairs,
        task="flood",
        frames=1,
        planes=(1, 2, 3, 8, 11, 12),
        pixel_size=10.0,
        reflectance_scale=1e-4,
        nodata=0,
        first=0,
        unlabelled=-1,
        attribution="Contains modified Copernicus Sentinel data",
        licence="",
    ),
    "hls-burn-scars": _Layout(
        title="HLS burn scars, 2018-2021",
        pairs=_merged({"train": "training", "val": "validation"}, _dates_of_names),
        task="burn",
        frames=1,
        planes=_date_by_date(6, 1),
        pixel_size=30.0,
        reflectance_scale=1.0,
        nodata=-9999,
        first=0,
        unlabelled=-1,
        attribution=_HLS,
        licence="CC-BY-4.0",
    ),
}
"""Sets by their names."""


# ---- what is in the files


@dataclass(frozen=True)
class _Header:
    """What an image says of itself."""

    rows: int
    columns: int
    planes: int
    dtype: str
    nodata: float | None
    lon: float
    lat: float


def _header(pair: _Pair) -> _Header:
    import rasterio

    def action() -> _Header:
        with rasterio.open(pair.image) as file:
            if file.crs is None:
                raise TrainError(f"{pair.image} has no CRS")
            there = transformer(CRS(file.crs.to_wkt()), DEGREES)
            lon, lat = there.transform(*(file.transform * (file.width / 2, file.height / 2)))
            return _Header(file.height, file.width, file.count, file.dtypes[0], file.nodata, lon, lat)

    return read(str(pair.image), action, item=pair.name, asset="image")


def _draft(layout: _Layout, kind: str, pairs: list[_Pair]) -> Draft:
    with ThreadPoolExecutor(_OPENED) as pool:
        headers = list(pool.map(_header, pairs))
    first = headers[0]
    size = first.rows
    for pair, header in zip(pairs, headers, strict=True):
        alike = (header.rows, header.columns, header.dtype) == (size, size, first.dtype)
        if not alike or header.planes <= max(layout.planes):
            raise TrainError(
                f"{pair.image} has {header.planes} bands of {header.rows} x {header.columns} pixels, {header.dtype}; "
                f"expected {max(layout.planes) + 1} of {size} x {size}, {first.dtype}"
            )
    lon, lat = (np.array([getattr(header, name) for header in headers]) for name in ("lon", "lat"))
    table = pd.DataFrame(
        {"source": np.arange(len(pairs)), "row": 0, "column": 0, "step": 0, "split": [pair.split for pair in pairs]}
    ).assign(group=_groups(pairs, lon, lat, _BLOCK * size * layout.pixel_size), lon=lon, lat=lat)
    dates = _dates(pairs, layout.frames)
    known = np.sort(dates[~np.isnat(dates)])
    lineage = {
        "set": layout.title,
        "attribution": layout.attribution,
        "licence": layout.licence,
        "dates": [str(day)[:10] for day in (known[[0, -1]] if known.size else ())],
        "names": [pair.name for pair in pairs],
    }
    said = [kind, [(p.name, p.split, p.image.stat().st_size, p.mask.stat().st_size) for p in pairs]]
    return Draft(
        bands=PRITHVI_BANDS,
        frames=layout.frames,
        size=size,
        dtype=np.dtype(first.dtype),
        nodata=layout.nodata if first.nodata is None else first.nodata,
        reflectance_scale=layout.reflectance_scale,
        pixel_size=layout.pixel_size,
        classes=layout.classes,
        units="1",
        lineage=(lineage,),
        table=table,
        dates=dates,
        identity=hashlib.sha256(json.dumps(said).encode()).hexdigest(),
        read=lambda rows: delayed(joined, pure=False)(
            [delayed(_read, pure=False)(pairs[number], kind) for number in rows["source"]]
        ),
    )


def _groups(pairs: list[_Pair], lon: NDArray[Any], lat: NDArray[Any], metres: float) -> NDArray[np.int64]:
    if pairs[0].event:
        return np.unique([pair.event for pair in pairs], return_inverse=True)[1].astype("int64")
    return block_ids(lon, lat, metres)


def _dates(pairs: list[_Pair], frames: int) -> NDArray[np.datetime64]:
    texts = [pair.dates or ("NaT",) * frames for pair in pairs]
    return np.array([pd.to_datetime(pd.Series(days)).to_numpy("datetime64[s]") for days in texts])


def _read(pair: _Pair, kind: str) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Return the image ``(1, T, C, H, W)`` and the label ``(1, H, W)`` of a chip."""
    import rasterio

    layout = LAYOUTS[kind]

    def pixels() -> NDArray[Any]:
        with rasterio.open(pair.image) as file:
            values: NDArray[Any] = file.read([plane + 1 for plane in layout.planes])
        return values

    def codes() -> NDArray[Any]:
        with rasterio.open(pair.mask) as file:
            values: NDArray[Any] = file.read(1)
        return values

    image = read(str(pair.image), pixels, item=pair.name, asset="image")
    mask = read(str(pair.mask), codes, item=pair.name, asset="mask").astype("int64")
    shape = image.shape[-2:]
    if mask.shape != shape:
        raise LabelError(f"{pair.mask} has {mask.shape} pixels, its image {shape}")
    return image.reshape(1, layout.frames, -1, *shape), _label(mask, layout, pair)[None]


def _label(mask: NDArray[np.int64], layout: _Layout, pair: _Pair) -> NDArray[np.uint8]:
    last = layout.first + len(layout.classes) - 1
    labelled = mask != layout.unlabelled
    strange = np.unique(mask[labelled & ((mask < layout.first) | (mask > last))])
    if strange.size:
        raise LabelError(
            f"{pair.mask} holds codes {strange.tolist()[:5]}; classes are {layout.first} to {last}, and "
            f"{layout.unlabelled} is no label"
        )
    return np.where(labelled, mask - layout.first, NODATA).astype("uint8")
