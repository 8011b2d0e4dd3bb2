"""HLS granules: STAC items of every catalogue as one record.

In: STAC items as plain dicts or pystac objects. Out: `HlsItem` records with sensor, tile, date, the hrefs of the six
bands and the Fmask, and the pixel grid. Metadata only: nothing is opened, and no credential is kept.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from xgfm.cube.hrefs import redacted, unsigned
from xgfm.errors import ItemError
from xgfm.grid import tile_geobox
from xgfm.models.spec import PRITHVI_BANDS

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

Sensor = Literal["L30", "S30"]

ASSETS: Mapping[str, Mapping[str, str]] = {
    "L30": {"blue": "B02", "green": "B03", "red": "B04", "nir08": "B05", "swir16": "B06", "swir22": "B07"},
    "S30": {"blue": "B02", "green": "B03", "red": "B04", "nir08": "B8A", "swir16": "B11", "swir22": "B12"},
}
"""Band -> asset key of each sensor. Never by ``common_name``: on S30 that is ``nir`` for B08, the broad band."""

WORDS: Mapping[str, str] = {
    "blue": "blue",
    "green": "green",
    "red": "red",
    "nir08": "nir_narrow",
    "swir16": "swir_1",
    "swir22": "swir_2",
    "fmask": "fmask",
}
"""Band -> asset key in items made by stactools, alike for both sensors."""

READ_ASSETS = frozenset({key for keys in ASSETS.values() for key in keys.values()} | {"Fmask"} | set(WORDS.values()))
"""Keys of all assets that a cube may read."""

SIMULATED = "simulated by xgfm; not an observation."
"""Attribution of what `xgfm.cube.simulate` makes."""
SIMULATED_MARK = "xgfm:simulated"
"""Property by which such an item is known."""

_GRANULE = re.compile(r"HLS\.(?P<sensor>[LS]30)\.T(?P<tile>\d{2}[A-Z]{3})\.\d{7}T\d{6}\.v\d\.\d")
_SOUTHERN_OFFSET = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class HlsItem:
    """One granule: one tile, one pass, one sensor."""

    id: str
    sensor: Sensor
    tile: str
    """MGRS id without the leading T: ``15TVM``."""
    datetime: datetime
    """UTC."""
    hrefs: Mapping[str, str]
    """Band (STAC common name) -> href without any signature; ``fmask`` is among them where the item has one."""
    geobox: GeoBox
    """The grid of the files, EPSG:326zz in both hemispheres."""
    cloud_cover: float = math.nan
    """Percent of the whole tile."""
    collection: str = ""
    notes: tuple[str, ...] = field(default=())
    """What was corrected in the item, as sentences."""
    simulated: bool = False

    def asset(self, band: str) -> str:
        """Return the HLS name of a band's asset: ``B8A``, ``Fmask``."""
        return "Fmask" if band == "fmask" else ASSETS[self.sensor][band]


def normalise(item: Mapping[str, Any] | Any, *, bands: Iterable[str] = PRITHVI_BANDS, fmask: bool = False) -> HlsItem:
    """Read a STAC item of any catalogue that serves HLS.

    Parameters
    ----------
    item : dict or pystac.Item
        From NASA's CMR-STAC, NASA's sidecar files, Planetary Computer, stactools, or like one of them.
    bands : iterable of str
        Bands that must be there.
    fmask : bool
        Whether the Fmask must be there too.

    Returns
    -------
    HlsItem

    Raises
    ------
    ItemError
        If it is not an HLS granule of surface reflectance, lacks an asset or a date, or contradicts its own tile.
    """
    plain = plain_item(item)
    assets: Mapping[str, Mapping[str, Any]] = plain["assets"]
    match = _granule(plain, assets)
    sensor: Sensor = "L30" if match["sensor"] == "L30" else "S30"
    identity = str(plain["id"])
    geobox, notes = _grid(plain, assets, match["tile"])
    hrefs = _hrefs(identity, sensor, match[0], assets)
    _require(identity, sensor, assets, hrefs, [*bands, *(["fmask"] if fmask else [])])
    return HlsItem(
        id=identity,
        sensor=sensor,
        tile=match["tile"],
        datetime=_date(plain),
        hrefs=hrefs,
        geobox=geobox,
        cloud_cover=_cloud_cover(plain),
        collection=str(plain.get("collection") or ""),
        notes=notes,
        simulated=bool(plain["properties"].get(SIMULATED_MARK)),
    )


def plain_item(item: Any) -> Mapping[str, Any]:
    """Return an item as a plain dict with an id, properties and assets.

    Raises
    ------
    ItemError
        If it is none.
    """
    plain = item.to_dict(transform_hrefs=False) if hasattr(item, "to_dict") else item
    if not isinstance(plain, Mapping):
        raise ItemError(
            f"{redacted(str(item))[:80]!r} is a {type(item).__name__} and no STAC item; give dicts or pystac items, or "
            "the path of one file of items by itself"
        )
    identity, properties, assets = (plain.get(name) for name in ("id", "properties", "assets"))
    described = isinstance(assets, Mapping) and all(isinstance(asset, Mapping) for asset in assets.values())
    if identity is None or not isinstance(properties, Mapping) or not described:
        raise ItemError(
            f"item {identity!r} has {sorted(map(str, plain))[:12]}; a STAC item has an 'id', and 'properties' and "
            "'assets' that are objects; give items as a catalogue serves them"
        )
    return plain


def plain_items(items: Any) -> list[Mapping[str, Any]]:
    """Return one item, a feature collection or several items as a list of plain dicts.

    Raises
    ------
    ItemError
        If something is no item.
    """
    if isinstance(items, Mapping) and "features" in items:
        items = items["features"]
    if isinstance(items, Mapping | str) or not isinstance(items, Iterable):
        items = [items]
    return [plain_item(item) for item in items]


def tile_of(item: Mapping[str, Any]) -> str | None:
    """Return the MGRS tile of a plain item, ``15TVM``; None where it is not an HLS granule."""
    try:
        return _granule(item, plain_item(item)["assets"])["tile"]
    except ItemError:
        return None


def sensor_of(item: Mapping[str, Any]) -> str | None:
    """Return the sensor of a plain item, ``L30`` or ``S30``; None where it is not an HLS granule."""
    try:
        return _granule(item, plain_item(item)["assets"])["sensor"]
    except ItemError:
        return None


def from_cmr(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Turn the JSON answer of CMR's own granule search (``granules.json``) into items that `normalise` reads."""
    items = []
    for entry in answer["feed"]["entry"]:
        hrefs = [link["href"] for link in entry["links"] if link["rel"].endswith("/data#")]
        corners = [[float(v) for v in ring[0].split()] for ring in entry.get("polygons", [])]
        lat, lon = [v for c in corners for v in c[::2]], [v for c in corners for v in c[1::2]]
        cloud_cover = entry.get("cloud_cover")
        items.append(
            {
                "type": "Feature",
                "id": entry["title"],
                "properties": {
                    "datetime": entry["time_start"],
                    "eo:cloud_cover": None if cloud_cover is None else float(cloud_cover),
                },
                "assets": {href.rsplit(".", 2)[1]: {"href": href} for href in hrefs if href.endswith(".tif")},
                **({"bbox": [min(lon), min(lat), max(lon), max(lat)]} if corners else {}),
            }
        )
    return items


def _granule(plain: Mapping[str, Any], assets: Mapping[str, Mapping[str, Any]]) -> re.Match[str]:
    """Find the granule's name, ``HLS.L30.T15TVM.2025275T170439.v2.0``, in the item's id or in its files' names."""
    identity = str(plain.get("id"))
    keys = READ_ASSETS
    found = (match for key in sorted(keys & set(assets)) if (match := _GRANULE.match(_file_name(assets[key]))))
    if ((match := _GRANULE.match(identity)) or (match := next(found, None))) and not keys.isdisjoint(assets):
        return match
    raise ItemError(
        f"item {identity!r} is not an HLS granule of surface reflectance: its assets are {sorted(assets)[:8]}, and "
        "neither its id nor their files are named like HLS.L30.T15TVM.2025275T170439.v2.0; search "
        "collections=['HLSL30_2.0', 'HLSS30_2.0'] (Planetary Computer: ['hls2-l30', 'hls2-s30'])"
    )


def _file_name(asset: Mapping[str, Any]) -> str:
    return str(asset.get("href", "")).partition("?")[0].partition("#")[0].rpartition("/")[2]


def _hrefs(identity: str, sensor: Sensor, granule: str, assets: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Hrefs by band, taken by asset key and sensor only; a file named after another band or granule is refused."""
    hrefs = {}
    for band, key in {**ASSETS[sensor], "fmask": "Fmask"}.items():
        asset = assets.get(key, assets.get(WORDS[band]))
        if asset is None:
            continue
        name = _file_name(asset)
        if _GRANULE.match(name) and name != f"{granule}.{key}.tif":
            raise ItemError(
                f"item {identity!r}: asset {key!r} ({band} of {sensor}) points to the file {name!r}; "
                f"expected {granule}.{key}.tif, correct the item's href"
            )
        if not isinstance(asset.get("href"), str):
            raise ItemError(f"item {identity!r}: asset {key!r} has no href; correct the item, or leave it out")
        hrefs[band] = unsigned(asset["href"])
    return hrefs


def _require(
    identity: str,
    sensor: Sensor,
    assets: Mapping[str, Any],
    hrefs: Mapping[str, str],
    bands: Iterable[str],
) -> None:
    """Refuse an item that lacks what the cube needs."""
    keys = {**ASSETS[sensor], "fmask": "Fmask"}
    missing = [band for band in bands if band not in hrefs]
    if not missing:
        return
    mends = ["leave the item out"]
    mends += ["open it unmasked with mask=None"] if missing == ["fmask"] else ["ask for other bands with bands="]
    if "nir08" in missing and "B08" in assets and sensor == "S30":
        mends.insert(0, "B08 is the broad near infrared and does not replace B8A")
    raise ItemError(
        f"item {identity!r} has no asset {', '.join(repr(keys[b]) for b in missing)} ({', '.join(missing)} of "
        f"{sensor}); it has {sorted(assets)[:20]}; {'; '.join(mends)}"
    )


def _cloud_cover(plain: Mapping[str, Any]) -> float:
    """Percent; NaN where the item does not say."""
    value = plain["properties"].get("eo:cloud_cover")
    try:
        return math.nan if value is None else float(value)
    except (TypeError, ValueError) as error:
        raise ItemError(
            f"item {plain['id']!r}: 'eo:cloud_cover' is {value!r}, expected percent; correct the item"
        ) from error


def _date(plain: Mapping[str, Any]) -> datetime:
    """UTC date; the start of the pass where ``datetime`` is null."""
    properties = plain["properties"]
    text = properties.get("datetime") or properties.get("start_datetime")
    try:
        date = datetime.fromisoformat(str(text))
    except ValueError as error:
        raise ItemError(
            f"item {plain['id']!r} has no date: 'datetime' is {properties.get('datetime')!r}; "
            "expected ISO 8601 in 'datetime' or 'start_datetime'"
        ) from error
    return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)


def _grid(
    plain: Mapping[str, Any], assets: Mapping[str, Mapping[str, Any]], tile: str
) -> tuple[GeoBox, tuple[str, ...]]:
    """Grid of the tile, or the part of it that ``proj:*`` describes; what was corrected in the item."""
    identity, whole = plain["id"], tile_geobox(tile)
    stated = _projection(plain, assets)
    code, transform, shape = (stated.get(name) for name in ("code", "transform", "shape"))
    zone = int(tile[:2])
    if code not in (None, 32600 + zone, 32700 + zone):
        raise ItemError(
            f"item {identity!r} says EPSG:{code}, but tile T{tile} lies in EPSG:{32600 + zone}; correct the item's "
            "proj:code, or remove its proj:* fields to take the grid from the tile id"
        )
    notes = []
    if code == 32700 + zone:
        notes.append(f"item {identity} says EPSG:{code}; HLS tiles are in EPSG:{32600 + zone}, which was taken")
        warnings.warn(notes[0], stacklevel=4)
    if transform is None:
        return whole, tuple(notes)
    try:
        part = _part_of_tile(whole, [float(v) for v in transform[:6]], shape)
    except (TypeError, ValueError):  # not six numbers, or not two
        part = None
    if part is None:
        left, top = whole.transform.c, whole.transform.f
        raise ItemError(
            f"item {identity!r} says proj:transform {transform!r} with proj:shape {shape}, which does not lie "
            f"on the grid of tile T{tile} (30 m from {left:.0f}, {top:.0f}, 3660 x 3660); correct the item, or remove "
            "its proj:* fields to take the grid from the tile id"
        )
    return part, tuple(notes)


def _projection(plain: Mapping[str, Any], assets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """EPSG code, transform and shape as the item or its first band asset states them."""
    band = next((assets[key] for key in ("B04", "red") if key in assets), {})
    stated: dict[str, Any] = {}
    for source in (plain["properties"], band):
        code = re.fullmatch(r"EPSG:(\d+)", str(source.get("proj:code")))
        epsg = source.get("proj:epsg") or (code[1] if code else None)
        if epsg is not None:
            stated["code"] = int(epsg) if str(epsg).isdecimal() else epsg
        for name in ("transform", "shape"):
            if source.get(f"proj:{name}") is not None:
                stated[name] = source[f"proj:{name}"]
    return stated


def _part_of_tile(whole: GeoBox, transform: list[float], shape: Any) -> GeoBox | None:
    """The pixels of the tile that a stated transform and shape cover, or None where they are not on its lattice."""
    a, b, left, d, e, top = transform
    if (a, b, d, e) != (whole.transform.a, 0, 0, whole.transform.e):
        return None
    # A southern item on EPSG:327zz may also state northings with the false northing of that CRS.
    if top - whole.transform.f > _SOUTHERN_OFFSET / 2:
        top -= _SOUTHERN_OFFSET
    column, row = (left - whole.transform.c) / a, (top - whole.transform.f) / e
    rows, columns = shape if shape is not None else whole.shape
    fits = 0 <= row <= whole.shape[0] - rows and 0 <= column <= whole.shape[1] - columns
    if not (fits and row == int(row) and column == int(column)):
        return None
    return whole[int(row) : int(row) + rows, int(column) : int(column) + columns]


def normalise_all(items: Any, *, bands: Iterable[str] = PRITHVI_BANDS, fmask: bool = False) -> list[HlsItem]:
    """Normalise items, drop repeated ids, and sort by date.

    Raises
    ------
    ItemError
        As `normalise`; if there is no item at all, or two different ones have one id.
    """
    wanted = tuple(bands)
    records: dict[str, HlsItem] = {}
    for record in (normalise(item, bands=wanted, fmask=fmask) for item in plain_items(items)):
        if _pixels_of(records.setdefault(record.id, record)) != _pixels_of(record):
            raise ItemError(
                f"two different items have the id {record.id!r}: their files, grids or dates are not the same; leave "
                "one of them out, or give it another id"
            )
    if not records:
        raise ItemError(
            "there are no items to open; give the items of a search that found some, items=xgfm.search(...)"
        )
    return sorted(records.values(), key=lambda record: (record.datetime, record.id))


def _pixels_of(record: HlsItem) -> tuple[Any, ...]:
    return dict(record.hrefs), record.geobox, record.datetime
