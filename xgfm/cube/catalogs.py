"""Finding granules: catalogues by name, by URL and by file.

In: where, when, and a catalogue. Out: a list of STAC items as plain dicts, which `save_items` and `load_items` keep
for a run that can be repeated. Items only: no asset is opened, and searching needs no login.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, timedelta
from datetime import datetime as Datetime
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from xgfm.cube.hrefs import redacted, unsigned
from xgfm.cube.items import from_cmr, tile_of
from xgfm.cube.target import Bounds, boxes_touch, check_bbox
from xgfm.errors import MissingExtraError, SearchError
from xgfm.grid import parse_tile, tile_geobox

Item = dict[str, Any]
Interval = tuple[Datetime | None, Datetime | None]

COLLECTIONS = ("HLSL30_2.0", "HLSS30_2.0", "hls2-l30", "hls2-s30")
"""Of HLS v2.0 surface reflectance, as the known catalogues name them."""

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
        properties = item["properties"]
        cover = properties.get("eo:cloud_cover")
        return (
            (self.collections is None or item.get("collection") in self.collections)
            and (self.max_cloud_cover is None or (cover is not None and cover <= self.max_cloud_cover))
            and (self.tile is None or tile_of(item) == self.tile)
            and (self.bbox is None or not item.get("bbox") or boxes_touch(self.bbox, item["bbox"]))
            and _in_interval(properties.get("datetime") or properties.get("start_datetime"), self.interval)
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
    wanted = None if tile is None else parse_tile(tile)
    around = tile_geobox(wanted).geographic_extent.boundingbox.bbox if bbox is None and wanted is not None else bbox
    query = Query(
        None if around is None else check_bbox(around),
        parse_interval(datetime),
        None if collections is None else tuple(collections),
        max_cloud_cover,
        wanted,
    )
    found = [item for item in _candidates(str(catalog), query) if query.matches(item)]
    if not found:
        raise SearchError(_nothing_found(catalog, bbox, datetime, tile, max_cloud_cover, collections))
    return found


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
        From `search`.
    path : str or Path
        A ``.json`` file; replaced where it exists.
    """
    plain = [item if isinstance(item, Mapping) else item.to_dict(transform_hrefs=False) for item in items]
    kept = [
        {**item, "assets": {k: {**a, "href": unsigned(a["href"])} for k, a in item["assets"].items()}} for item in plain
    ]
    Path(path).write_text(json.dumps({"type": "FeatureCollection", "features": kept}, indent=1), encoding="utf-8")


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


def parse_interval(datetime: Any) -> Interval:
    """Read what ``datetime=`` takes: first and last instant, None where the side is open."""
    if datetime is None:
        return None, None
    parts = datetime.split("/") if isinstance(datetime, str) else datetime
    first, last = parts if isinstance(parts, Sequence) and len(parts) == 2 else (parts, parts)
    first, last = (_single(part) for part in (first, last))
    try:
        start = None if first in ("", "..") else _period(first)[0]
        end = None if last in ("", "..") else _period(last)[1]
    except ValueError as error:
        raise SearchError(
            f"datetime={datetime!r} is not a period; write '2024', '2024-05', '2024-05-01/2024-06-30' or (start, end)"
        ) from error
    if start is not None and end is not None and end < start:
        raise SearchError(f"datetime={datetime!r} ends before it starts; give (start, end)")
    interval = tuple(None if t is None else t.floor("us").to_pydatetime().replace(tzinfo=UTC) for t in (start, end))
    return interval[0], interval[1]


def _period(text: str) -> tuple[Any, Any]:
    """First and last instant of a date or time, in UTC: of ``2024-05``, ``2024-05-02T17:00:00+02:00``."""
    import pandas as pd

    shifted = re.fullmatch(r"(\d{4}-?\d\d-?\d\d[T ].*?)([+-])(\d\d):?(\d\d)?", text)
    if shifted is None:
        period = pd.Period(text.removesuffix("Z"))
        return period.start_time, period.end_time
    local, sign, hours, minutes = shifted.groups(default="0")
    ahead = int(f"{sign}1") * timedelta(hours=int(hours), minutes=int(minutes))
    period = pd.Period(local)
    return period.start_time - ahead, period.end_time - ahead


def _single(part: Any) -> str:
    value = part[0] if isinstance(part, Sequence) and not isinstance(part, str) and len(part) == 1 else part
    return ".." if value is None else str(value)


def _in_interval(text: str | None, interval: Interval) -> bool:
    if interval == (None, None):
        return True
    if text is None:
        return False
    date = Datetime.fromisoformat(text)
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return (interval[0] is None or interval[0] <= date) and (interval[1] is None or date <= interval[1])


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
        document: dict[str, Any] = json.loads(pystac.StacIO.default().read_text(href))
    except (OSError, ValueError, HTTPError) as error:
        raise SearchError(f"catalog={redacted(href)!r} cannot be read as STAC JSON: {redacted(str(error))}") from error
    return document


def _items_of(document: Mapping[str, Any], href: str) -> list[Item]:
    """Items of an item collection, a single item, or CMR's own granule answer; relative hrefs made absolute."""
    if "feed" in document:
        return from_cmr(document)
    items = document.get("features", [document] if document.get("type") == "Feature" else None)
    if items is None:
        raise SearchError(f"{href!r} holds no STAC items; give an item, an item collection, or a catalogue")
    for item in items:
        for asset in item["assets"].values():
            asset["href"] = _absolute(asset["href"], href)
    return list(items)


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
    file = ds.dataset(path)
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
