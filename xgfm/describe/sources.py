"""What a result was made from, named so that somebody else can find it.

In: STAC items as a job keeps them. Out: `Source`s, one for each item that has an address, and the file of a tile's
items for the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MOST = 1000
"""Items that are named one by one; of more, the files that list them are named."""


@dataclass(frozen=True)
class Source:
    """One input."""

    href: str
    """Absolute, or relative to the records of the job."""
    title: str
    media_type: str = "application/geo+json"
    count: int = 1
    """Items that it stands for."""


def sources_of(tiles: Mapping[str, int], items: Iterable[Mapping[str, Any]], *, folder: str) -> list[Source]:
    """Return what to name as inputs.

    Parameters
    ----------
    tiles
        Number of items by MGRS tile.
    items
        All of them, tile after tile in that order; not looked at where there are more than `MOST`.
    folder
        Of the tiles' files of items, relative to the records of the job.
    """
    if sum(tiles.values()) > MOST:
        return [_file(tile, count, folder) for tile, count in tiles.items()]
    found, following = [], iter(items)
    for tile, count in tiles.items():
        named = [_named(next(following)) for _ in range(count)]
        found += [source for source in named if source is not None]
        hidden = named.count(None)
        found += [_file(tile, hidden, folder)] if hidden else []
    return found


def _named(item: Mapping[str, Any]) -> Source | None:
    address = next((link["href"] for link in item.get("links", ()) if link.get("rel") == "self"), None)
    return None if address is None else Source(str(address), str(item["id"]))


def _file(tile: str, count: int, folder: str) -> Source:
    return Source(f"./{folder}/{tile}.json.gz", f"{count} items of tile {tile}", "application/gzip", count)
