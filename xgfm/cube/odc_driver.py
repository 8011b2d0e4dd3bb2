"""How odc-stac reads a cube's files: its own reader, under this package's settings, credentials and errors.

In: sources whose uri is a `Source` record. Out: pixels, or a `ReadError` with item and asset. Imported only by
``loader="odc"``, on the client and on the workers that read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from odc.loader._rio import LocalContext, RioDriver, RioReader
from odc.loader.types import RasterLoadParams, RasterSource

from xgfm.cube.credentials import gdal_path, read
from xgfm.cube.loaders import SCHEME, Source


class CubeDriver(RioDriver):
    """odc-loader's GDAL driver with settings that travel with the graph, and no setting of the client's own."""

    def __init__(self, gdal: Mapping[str, str]) -> None:
        super().__init__()
        self._gdal = dict(gdal)

    def capture_env(self) -> dict[str, Any]:
        """Return the settings of every read. The client's GDAL environment may hold secrets and stays where it is."""
        return dict(self._gdal)

    def open(self, src: RasterSource, ctx: LocalContext) -> RioReader:
        """Return the reader of one file; nothing is opened yet."""
        return CubeReader(src, ctx)


class CubeReader(RioReader):
    """odc-loader's reader of one file."""

    def read(self, cfg: RasterLoadParams, dst_geobox: Any, **options: Any) -> Any:
        """Return the part of the target that the file covers, and its pixels."""
        source = Source(*json.loads(unquote(self._src.uri.removeprefix(SCHEME))))
        reader = RioReader(self._src.patch(uri=gdal_path(source.href)), self._ctx)
        return read(source.href, lambda: reader.read(cfg, dst_geobox, **options), item=source.item, asset=source.asset)
