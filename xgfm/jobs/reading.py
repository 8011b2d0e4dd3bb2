"""The loader of a job: reads that are tried again, counted, and never done twice for one pixel.

In: time steps and a grid, as every `Loader` takes them. Out: a lazy array whose tasks read one band of one step each,
for the threads of this process. Where tiles overlap, a further one is read only where the tiles before it have left
pixels without data; so each pixel is normally read once.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xgfm.cube.credentials import read
from xgfm.cube.files import Blocks, Part, read_part
from xgfm.cube.hrefs import is_local
from xgfm.cube.loaders import Layer, Source, Step, check_chunks, place
from xgfm.errors import ReadError

if TYPE_CHECKING:
    import dask.array as da
    from odc.geo.geobox import GeoBox

_LOG = logging.getLogger(__name__)

TRIES = 4
"""Times that a file on a server is read before the block has failed. GDAL tries each request several times as well."""
WAIT = 0.5
"""Seconds before the second try; twice as long before each further one."""
GDAL: Mapping[str, str] = {"GDAL_HTTP_LOW_SPEED_LIMIT": "1000", "GDAL_HTTP_LOW_SPEED_TIME": "20"}
"""A transfer of less than 1 kB/s for 20 s is one that failed."""


_FINAL = re.compile(r"\b40[134]\b|not there|login failed|Access is denied")
"""In the text of an error that no further try mends: no such file, or credentials that are not taken."""


# One thread at a time in one file. Not for speed: where two threads want the same range, GDAL lets one wait for the
# other, and rasterio opens files with Python's lock in its hands, which the other needs to tell of an HTTP error. Files
# share locks, so that there is no end of neither.
_TURNS = [threading.Lock() for _ in range(1024)]


class Tally:
    """What the reads of one block came to, so far."""

    def __init__(self) -> None:
        self._files: dict[str, Blocks] = {}
        self._pending: dict[int, tuple[float, str, int]] = {}
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Bytes of the files' blocks that were needed, each block once."""
        with self._lock:
            return sum(blocks.bytes for blocks in self._files.values())

    @property
    def pending(self) -> str | None:
        """The read that has been under way for longest."""
        with self._lock:
            return min(self._pending.values())[1] if self._pending else None

    @contextmanager
    def reading(self, source: Source) -> Iterator[Blocks]:
        """Wait for the turn to read a file, and note the read while it is under way."""
        me, turn = threading.get_ident(), hash(source.href) % len(_TURNS)
        with self._lock:
            blocks = self._files.setdefault(source.href, Blocks())
            self._pending[me] = time.monotonic(), f"asset {source.asset!r} of item {source.item!r}", turn
        try:
            with _TURNS[turn]:
                yield blocks
        finally:
            with self._lock:
                self._pending.pop(me, None)

    def abandon(self) -> None:
        """Let others read the files that threads of this block hang in."""
        with self._lock:
            for _, _, turn in self._pending.values():
                _TURNS[turn] = threading.Lock()


class PatientLoader:
    """`xgfm.cube.loaders.Loader` of one block.

    Parameters
    ----------
    tally
        Told of every read.
    """

    def __init__(self, tally: Tally) -> None:
        self.tally = tally

    def __call__(
        self,
        steps: Sequence[Step],
        bands: Sequence[str],
        geobox: GeoBox,
        layer: Layer,
        *,
        chunks: tuple[int, int],
        gdal: Mapping[str, str],
    ) -> da.Array:
        """Return ``(time, band, y, x)`` in chunks of one step and one band, for the threads of this process."""
        import dask.array as da
        from dask.base import tokenize

        name = f"read-{tokenize(id(self), layer.dtype, len(steps), bands)}"
        rows, columns = (_cut(size, chunk) for size, chunk in zip(geobox.shape, check_chunks(chunks), strict=True))
        places = [_places(step, bands, geobox) for step in steps]
        graph: dict[Any, Any] = {}
        for (t, step), (b, band), (i, down), (j, along) in product(
            enumerate(places), enumerate(bands), enumerate(pairwise(rows)), enumerate(pairwise(columns))
        ):
            part = (down[0], along[0], down[1], along[1])
            graph[name, t, b, i, j] = (_Read(self.tally, step[band], part, geobox, layer, gdal),)
        sizes = ((1,) * len(steps), (1,) * len(bands), _sizes(rows), _sizes(columns))
        return da.Array(graph, name, sizes, dtype=layer.dtype, meta=np.empty((0, 0, 0, 0), layer.dtype))


class _Read:
    """The read of one chunk: a band of a step, its granules in order of precedence."""

    def __init__(
        self, tally: Tally, sources: Sequence[Source], part: Part, geobox: GeoBox, layer: Layer, gdal: Mapping[str, str]
    ) -> None:
        self.tally, self.sources, self.part, self.geobox, self.layer, self.gdal = (
            tally, sources, part, geobox, layer, gdal,
        )  # fmt: skip

    def __call__(self) -> NDArray[Any]:
        top, left, bottom, right = self.part
        out = np.full((bottom - top, right - left), self.layer.fill, self.layer.dtype)
        for source in self.sources:
            hit = source.overlap(top, left, bottom - top, right - left)
            needed = None if hit is None else _missing(out, hit, self.layer.fill)
            if needed is not None:
                view = out[needed]
                pixels = self._patiently(source, _moved(needed, top, left))
                np.copyto(view, pixels, where=view == self.layer.fill)
        return out[np.newaxis, np.newaxis]

    def _patiently(self, source: Source, part: Part) -> NDArray[Any]:
        """Read, and where a server failed, again after a while."""
        tries = 1 if is_local(source.href) else TRIES
        for attempt in range(1, tries):
            try:
                return self._once(source, part)
            except ReadError as error:
                if _FINAL.search(str(error)):
                    raise
                _LOG.info("%s (try %d of %d)", error, attempt, tries)
                time.sleep(WAIT * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
        return self._once(source, part)

    def _once(self, source: Source, part: Part) -> NDArray[Any]:
        import rasterio

        with self.tally.reading(source) as blocks, rasterio.Env(**self.gdal):
            return read(
                source.href,
                lambda: read_part(source, part, self.geobox, self.layer, blocks),
                item=source.item,
                asset=source.asset,
            )


def _places(step: Step, bands: Sequence[str], geobox: GeoBox) -> dict[str, list[Source]]:
    """Where each band of a step's granules lies; where it lies is the same for all bands."""
    found: dict[str, list[Source]] = {band: [] for band in bands}
    for item in step:
        first = place(item, bands[0], geobox)
        for band in bands:
            found[band].append(replace(first, href=item.hrefs[band], asset=item.asset(band)))
    return found


def _missing(out: NDArray[Any], hit: tuple[slice, slice], fill: int) -> tuple[slice, slice] | None:
    """Return the least part of a hit that holds every pixel without data in it."""
    empty = out[hit] == fill
    rows, columns = np.flatnonzero(empty.any(axis=1)), np.flatnonzero(empty.any(axis=0))
    if not len(rows):
        return None
    top, left = hit[0].start, hit[1].start
    return slice(top + rows[0], top + rows[-1] + 1), slice(left + columns[0], left + columns[-1] + 1)


def _moved(part: tuple[slice, slice], top: int, left: int) -> Part:
    rows, columns = part
    return int(rows.start + top), int(columns.start + left), int(rows.stop + top), int(columns.stop + left)


def _cut(size: int, chunk: int) -> list[int]:
    return [*range(0, size, chunk), size]


def _sizes(cuts: Sequence[int]) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in pairwise(cuts))
