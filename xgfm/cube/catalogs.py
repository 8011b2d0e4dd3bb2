"""Finding granules: catalogues by name, by URL and by file.

In: where, when, and a catalogue. Out: a list of STAC items as plain dicts, which `save_items` and `load_items` keep
for a run that can be repeated. Items only: no asset is opened, and searching needs no login.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from xgfm.cube.hrefs import redacted, unsigned
from xgfm.cube.interval import Interval, in_interval, parse_interval
from xgfm.cube.items import READ_ASSETS, from_cmr, plain_item, plain_items, tile_of
from xgfm.cube.target import Bounds, boxes_touch, check_bbox
from xgfm.errors import ItemError, MissingExtraError, SearchError, WriteError
from xgfm.grid import parse_tile, tile_geobox

Item = dict[str, Any]

COLLECTIONS = ("HLSL30_2.0", "HLSS30_2.0", "hls2-l30", "hls2-s30")
"""Of HLS v2.0 surface reflectance, as the known catalogues name them."""

_EXPECTED = "give an item, an item collection, or a catalogue"

ITEM_FILES = (".json", ".geojson", ".parquet", ".geoparquet")
"""Suffixes of files that hold items."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """A STAC API that serves HLS."""

    url: str
    collections: tuple[str, ...]


CATALOGS: Mapping[str, Catalog] = {
    "lpcloud": Catalog("https://cmr.earthdata.nasa.gov/stac/LPCLOUD", ("HLSL30_2.0", "HLSS30_2.0")),
    "planetary-computer": Catalog("https://planetarycomputer.microsoft.com/api/stac/v1", ("hls2-l30", "hls2-s30")),
}
"""By the names that ``catalog=`` takes."""


@dataclass(frozen=True, slots=True)
class Query:
    """What a search asks for."""

    bbox: Bounds | None
    interval: Interval
    collections: tuple[str, ...] | None
    max_cloud_cover: float | None
    tile: str | None

    def matches(self, item: Mapping[str, Any]) -> bool:
        """Whether an item fits; used on every answer, since not every catalogue can filter."""
        properties = plain_item(item)["properties"]
        cover = properties.get("eo:cloud_cover")
        return (
            (self.collections is None or item.get("collection") in self.collections)
            and (self.max_cloud_cover is None or (_is_number(cover) and cover <= self.max_cloud_cover))
            and (self.tile is None or tile_of(item) == self.tile)
            and (self.bbox is None or not item.get("bbox") or boxes_touch(self.bbox, _footprint(item)))
            and in_interval(properties.get("datetime") or properties.get("start_datetime"), self.interval)
        )


def search(
    bbox: Sequence[float] | None = None,
    datetime: Any = None,
    catalog: str | Path = "lpcloud",
    *,
    collections: Sequence[str] | None = None,
    max_cloud_cover: float | None = None,
    tile: str | None = None,
) -> list[Item]:
    """Find HLS granules.

    Parameters
    ----------
    bbox : sequence of float, optional
        West, south, east, north in degrees.
    datetime : str or pair, optional
        ``"2024"``, ``"2024-05"``, ``"2024-05-01/2024-06-30"``, ``"2024-05-01/.."``, or ``(start, end)`` of dates;
        ends count. UTC; a time with an offset, ``"2024-05-02T17:00:00+02:00"``, is converted.
    catalog : str or Path
        ``"lpcloud"`` (NASA CMR-STAC), ``"planetary-computer"``; the URL of any STAC API; URL or path of a static
        catalogue, of an item collection (JSON), or of a GeoParquet file (needs ``pip install "xgfm[geoparquet]"``).
    collections : sequence of str, optional
        Collection ids; by default those of HLS v2.0 in that catalogue.
    max_cloud_cover : float, optional
        Percent of the tile, inclusive. Items that do not say are left out.
    tile : str, optional
        MGRS tile, ``"T15TVM"``; without ``bbox`` it also says where.

    Returns
    -------
    list of dict
        STAC items as the catalogue serves them.

    Raises
    ------
    SearchError
        Nothing found; a catalogue that is not known, does not answer, or has no HLS.
    GridError
        A box that is not one, or crosses the antimeridian.
    """
    found = list(find(bbox, datetime, catalog, collections=collections, max_cloud_cover=max_cloud_cover, tile=tile))
    if not found:
        raise SearchError(_nothing_found(catalog, bbox, datetime, tile, max_cloud_cover, collections))
    return found


def find(
    bbox: Sequence[float] | None = None,
    datetime: Any = None,
    catalog: str | Path = "lpcloud",
    *,
    collections: Sequence[str] | None = None,
    max_cloud_cover: float | None = None,
    tile: str | None = None,
) -> Iterator[Item]:
    """Find HLS granules one after the other, as `search`, for more of them than fit into memory; maybe none."""
    wanted = None if tile is None else parse_tile(tile)
    around = tile_geobox(wanted).geographic_extent.boundingbox.bbox if bbox is None and wanted is not None else bbox
    query = Query(
        None if around is None else check_bbox(around),
        parse_interval(datetime),
        _names(collections),
        _percent(max_cloud_cover),
        wanted,
    )
    return (item for item in _candidates(str(catalog), query) if query.matches(item))


def _names(collections: Any) -> tuple[str, ...] | None:
    if collections is None:
        return None
    names = [collections] if isinstance(collections, str) else collections
    if not isinstance(names, Collection) or not all(isinstance(name, str) for name in names):
        raise SearchError(f"collections={collections!r} must be ids, collections=['HLSL30_2.0', 'HLSS30_2.0']")
    return tuple(names)


def _percent(cover: Any) -> float | None:
    if cover is not None and not (_is_number(cover) and 0 <= cover <= 100):
        raise SearchError(f"max_cloud_cover={cover!r} must be a number, percent of the tile from 0 to 100")
    return None if cover is None else float(cover)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _footprint(item: Mapping[str, Any]) -> list[float]:
    box = item["bbox"]
    if not isinstance(box, list | tuple) or len(box) not in (4, 6) or not all(map(_is_number, box)):
        raise ItemError(f"item {item['id']!r} has bbox {box!r}; expected 4 numbers in degrees, or 6; correct the item")
    return list(box)


def require_file(catalog: str | Path) -> None:
    """Refuse a path that looks like a file, by its suffix, where there is none.

    Raises
    ------
    SearchError
        Where nothing is at the path.
    """
    path = str(catalog)
    if not urlsplit(path).scheme and path.lower().endswith(ITEM_FILES) and not Path(path).exists():
        raise SearchError(
            f"there is no file {path!r} (in {Path(path).resolve().parent}); give catalog= a file of items that is "
            "there, as xgfm.save_items or 'xgfm search --save' writes it"
        )


def _nothing_found(catalog: Any, bbox: Any, datetime: Any, tile: Any, cover: Any, collections: Any) -> str:
    """Say what was asked, and which of it can be relaxed."""
    asked = {
        "bbox": (bbox, "widen bbox="),
        "datetime": (datetime, "widen datetime="),
        "tile": (tile, "check tile="),
        "max_cloud_cover": (cover, "raise max_cloud_cover="),
        "collections": (collections, "name other collections="),
    }
    given = {name: pair for name, pair in asked.items() if pair[0] is not None}
    wanted = f" for {', '.join(f'{name}={value!r}' for name, (value, _) in given.items())}" if given else ""
    mend = " or ".join(mend for _, mend in given.values()) or "give another catalog="
    return f"no HLS granule in catalog={str(catalog)!r}{wanted}; {mend}"


def save_items(items: Iterable[Mapping[str, Any] | Any], path: str | Path) -> None:
    """Write items as one STAC item collection (JSON), without signatures in their hrefs.

    Parameters
    ----------
    items : iterable of dict or pystac.Item
        From `search`. Assets that no cube reads are left out where their href has a query.
    path : str or Path
        A ``.json`` file; replaced where it exists.

    Raises
    ------
    ItemError
        A band's href that is signed in a way that reading cannot repeat, or what is no item.
    WriteError
        Where the file cannot be written.
    """
    kept = [{**item, "assets": _assets_to_save(item["assets"])} for item in plain_items(items)]
    text = json.dumps({"type": "FeatureCollection", "features": kept}, indent=1)
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise WriteError(
            f"items cannot be written to {str(path)!r} ({error.strerror}); give path= a file in a folder that is there"
        ) from error


def _assets_to_save(assets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Assets without signatures; previews and the like, whose query may be anything, are left out."""
    kept = {}
    for key, asset in assets.items():
        try:
            kept[key] = {**asset, "href": unsigned(str(asset.get("href", "")))}
        except ItemError:
            if key in READ_ASSETS:
                raise
    return kept


def load_items(path: str | Path) -> list[Item]:
    """Read items that `save_items` or another tool wrote: JSON (item, item collection, CMR granules) or GeoParquet.

    Parameters
    ----------
    path : str or Path
        File or URL. Relative hrefs in it are taken from its own folder.

    Returns
    -------
    list of dict
    """
    require_file(path)
    everything = Query(None, (None, None), None, None, None)
    if _is_parquet(str(path)):
        return list(_from_parquet(str(path), everything))
    return _items_of(_read_json(str(path)), str(path))


def _is_parquet(catalog: str) -> bool:
    return urlsplit(catalog).path.endswith((".parquet", ".geoparquet"))


def _candidates(catalog: str, query: Query) -> Iterable[Item]:
    """Items of a catalogue that may fit a query."""
    if catalog in CATALOGS:
        return _from_api(CATALOGS[catalog].url, query, CATALOGS[catalog].collections)
    require_file(catalog)
    if _is_parquet(catalog):
        return _from_parquet(catalog, query)
    if not urlsplit(catalog).scheme and not Path(catalog).exists():
        raise SearchError(
            f"catalog={catalog!r} is not known; give one of {list(CATALOGS)}, the URL of a STAC API, or a file that "
            "is there"
        )
    document = _read_json(catalog)
    if document.get("type") not in ("Catalog", "Collection"):
        return _items_of(document, catalog)
    if "conformsTo" in document or any(link.get("rel") == "search" for link in document.get("links", [])):
        return _from_api(catalog, query, None)
    return _from_static(catalog)


def _read_json(href: str) -> dict[str, Any]:
    import pystac
    from urllib3.exceptions import HTTPError

    try:
        document = json.loads(pystac.StacIO.default().read_text(href))
    except (OSError, ValueError, HTTPError) as error:
        raise SearchError(f"catalog={redacted(href)!r} cannot be read as STAC JSON: {redacted(str(error))}") from error
    if not isinstance(document, dict):
        raise SearchError(f"{redacted(href)!r} holds a JSON {type(document).__name__}; {_EXPECTED}")
    return document


def _items_of(document: Mapping[str, Any], href: str) -> list[Item]:
    """Items of an item collection, a single item, or CMR's own granule answer; relative hrefs made absolute."""
    if "feed" in document:
        try:
            return from_cmr(document)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise SearchError(f"{redacted(href)!r} is no answer of CMR's granule search; {_EXPECTED}") from error
    items = document.get("features", [document] if document.get("type") == "Feature" else None)
    if not isinstance(items, list):
        raise SearchError(f"{redacted(href)!r} holds no STAC items; {_EXPECTED}")
    for item in items:
        for asset in plain_item(item)["assets"].values():
            if isinstance(asset.get("href"), str):
                asset["href"] = _absolute(asset["href"], href)
    return items


def _absolute(href: str, base: str) -> str:
    if urlsplit(href).scheme or href.startswith("/"):
        return href
    return urljoin(base, href) if urlsplit(base).scheme else str((Path(base).parent / href).resolve())


def _from_static(href: str) -> Iterator[Item]:
    import pystac

    for item in pystac.Catalog.from_file(href).get_items(recursive=True):
        item.make_asset_hrefs_absolute()
        yield item.to_dict(include_self_link=False, transform_hrefs=False)


def _from_api(url: str, query: Query, known: tuple[str, ...] | None) -> Iterator[Item]:
    """Search a STAC API."""
    import requests
    from pystac_client import Client
    from pystac_client.exceptions import APIError
    from pystac_client.stac_api_io import StacApiIO
    from urllib3 import Retry

    if query.bbox is None:
        raise SearchError("a STAC API is searched somewhere: give bbox=(west, south, east, north) or tile='T15TVM'")
    retry = Retry(total=5, backoff_factor=0.5, status_forcelist=[429, 502, 503, 504], allowed_methods=None)
    try:
        client = Client.open(url, stac_io=StacApiIO(max_retries=retry, timeout=60))
        collections = query.collections or known or _hls_collections(client, url)
        found = client.search(
            collections=list(collections),
            bbox=query.bbox,
            datetime=_api_interval(query.interval),
            query=_api_query(client, query),
            limit=250,
        )
        yield from found.items_as_dicts()
    except (APIError, requests.RequestException) as error:
        raise SearchError(
            f"the STAC API {url} did not answer the search ({str(error)[:200]}); try again later"
        ) from error


def _hls_collections(client: Any, url: str) -> tuple[str, ...]:
    there = [collection.id for collection in client.get_collections()]
    known = tuple(name for name in there if name in COLLECTIONS)
    if not known:
        raise SearchError(f"the STAC API {url} has no collection that is known as HLS; name it, collections=[...]")
    return known


def _api_interval(interval: Interval) -> str | None:
    if interval == (None, None):
        return None
    return "/".join(".." if t is None else t.strftime("%Y-%m-%dT%H:%M:%SZ") for t in interval)


def _api_query(client: Any, query: Query) -> dict[str, Any] | None:
    """Cloud cover as the API's query extension takes it; None where it has none, the answer is filtered anyway."""
    from pystac_client import ConformanceClasses

    if query.max_cloud_cover is None or not client.conforms_to(ConformanceClasses.QUERY):
        return None
    return {"eo:cloud_cover": {"lte": query.max_cloud_cover}}


def _from_parquet(path: str, query: Query) -> Iterator[Item]:
    """Items of a GeoParquet file, those outside of the box left in the file where it stores boxes."""
    try:
        import pyarrow.compute as pc
        import pyarrow.dataset as ds
        import stac_geoparquet.arrow
    except ImportError as error:
        raise MissingExtraError("stac-geoparquet", "geoparquet", f"catalog={path!r}") from error
    try:
        file = ds.dataset(path)
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise SearchError(
            f"{redacted(path)!r} cannot be read as GeoParquet of STAC items: {redacted(str(error))[:200]}"
        ) from error
    keep = None
    if query.bbox is not None and "bbox" in file.schema.names:
        west, south, east, north = query.bbox
        keep = (
            (pc.field("bbox", "xmin") <= east)
            & (pc.field("bbox", "xmax") >= west)
            & (pc.field("bbox", "ymin") <= north)
            & (pc.field("bbox", "ymax") >= south)
        )
    yield from stac_geoparquet.arrow.stac_table_to_items(file.to_table(filter=keep))
