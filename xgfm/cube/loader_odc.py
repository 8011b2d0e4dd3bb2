"""The second loader: odc-stac, with its own reader under this package's settings, credentials and errors.

In: time steps and a grid. Out: a lazy array; merging is odc-stac's own, first valid first. An optional package: this
module is imported by ``loader="odc"`` alone, on the client and on the workers that read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import odc.stac
import pystac
from odc.loader._rio import LocalContext, RioDriver, RioReader
from odc.loader.types import RasterLoadParams, RasterSource

from xgfm.cube.credentials import gdal_path, read
from xgfm.cube.items import HlsItem
from xgfm.cube.loaders import Layer, Source, Step, check_chunks, check_file, check_grid, place

if TYPE_CHECKING:
    import dask.array as da
    from odc.geo.geobox import GeoBox

SCHEME = "xgfm://source/"
"""Of the uris that hold a `Source` record: JSON, percent-encoded."""


def load(
    steps: Sequence[Step],
    bands: Sequence[str],
    geobox: GeoBox,
    layer: Layer,
    *,
    chunks: tuple[int, int],
    gdal: Mapping[str, str],
) -> da.Array:
    """Load with odc-stac: `xgfm.cube.loaders.Loader`."""
    import dask.array as da

    chunks = check_chunks(chunks)
    aligned = all(place(item, bands[0], geobox).aligned for step in steps for item in step)
    data = odc.stac.load(
        [_item(i, item, bands, geobox) for i, step in enumerate(steps) for item in step],
        bands=list(bands),
        geobox=geobox,
        groupby="xgfm:step",
        preserve_original_order=True,
        chunks={"time": 1, "y": chunks[0], "x": chunks[1]},
        dtype=layer.dtype,
        nodata=layer.fill,
        resampling="nearest" if aligned else layer.resampling,
        use_overviews=False,  # HLS overviews are every n-th pixel: a coarser target averages instead
        driver=CubeDriver(gdal),
    )
    names = list(geobox.dimensions)
    check_grid(data.sizes, data[names[1]].values, data[names[0]].values, geobox)
    array: da.Array = da.stack([data[band].data for band in bands], axis=1).rechunk({1: -1})
    return array


def _item(number: int, item: HlsItem, bands: Sequence[str], geobox: GeoBox) -> Any:
    """Describe one granule as a pystac item with its grid."""
    grid = item.geobox
    properties = {
        "xgfm:step": number,
        "proj:code": f"EPSG:{grid.crs.epsg}" if grid.crs else None,
        "proj:shape": list(grid.shape),
        "proj:transform": list(grid.transform)[:6],
    }
    extension = ["https://stac-extensions.github.io/projection/v2.0.0/schema.json"]
    out = pystac.Item(f"{number}-{item.id}", None, None, item.datetime, properties, stac_extensions=extension)
    for band in bands:
        record = quote(json.dumps(astuple(place(item, band, geobox))))
        out.add_asset(band, pystac.Asset(SCHEME + record, media_type="image/tiff", roles=["data"]))
    return out


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
        path = gdal_path(source.href)
        reader = RioReader(self._src.patch(uri=path), self._ctx)

        def action() -> Any:
            check_file(path, source, cfg.dtype)
            return reader.read(cfg, dst_geobox, **options)

        return read(source.href, action, item=source.item, asset=source.asset)
