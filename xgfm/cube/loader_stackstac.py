"""The default loader: stackstac, called with a full grid and plain dicts, which is the only way in which it is right.

In: time steps and a grid. Out: a lazy array whose graph holds one task for each chunk and two for each step. A step of
several granules is one entry of stackstac's table, which `StepReader` reads; so merging adds no task. What is read of a
file is read by `xgfm.cube.files`, the same in every chunk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xgfm.cube.credentials import read
from xgfm.cube.files import Blocks, read_part
from xgfm.cube.loaders import Layer, Source, Step, check_chunks, check_grid, first_valid, place
from xgfm.errors import GridError

if TYPE_CHECKING:
    import dask.array as da
    from odc.geo.geobox import GeoBox


def load(
    steps: Sequence[Step],
    bands: Sequence[str],
    geobox: GeoBox,
    layer: Layer,
    *,
    chunks: tuple[int, int],
    gdal: Mapping[str, str],
) -> da.Array:
    """Load with stackstac: `xgfm.cube.loaders.Loader`."""
    import stackstac
    from rasterio.enums import Resampling
    from stackstac.rio_env import LayeredEnv

    chunks = check_chunks(chunks)
    epsg = None if geobox.crs is None else geobox.crs.epsg
    if epsg is None:
        raise GridError("loader='stackstac' needs a CRS with an EPSG code; give one with crs=, or use loader='odc'")
    dtype = np.dtype(layer.dtype)
    items = [_item(str(i), step, bands, geobox, epsg) for i, step in enumerate(steps)]
    stacked = stackstac.stack(
        items,
        assets=list(bands),
        epsg=epsg,
        resolution=(geobox.resolution.x, -geobox.resolution.y),
        bounds=geobox.boundingbox.bbox,
        snap_bounds=False,
        resampling=Resampling[layer.resampling],
        chunksize=(1, len(bands), *chunks),
        dtype=dtype,
        fill_value=dtype.type(layer.fill),
        rescale=False,
        sortby_date=False,
        xy_coords="center",
        properties=False,
        band_coords=False,
        gdal_env=LayeredEnv(always=dict(gdal)),
        errors_as_nodata=(),  # a failed read is an error, never a hole
        reader=StepReader,
    )
    check_grid(stacked.sizes, stacked.x.values, stacked.y.values, geobox)
    data: da.Array = stacked.data
    return data


def _item(name: str, step: Step, bands: Sequence[str], geobox: GeoBox, epsg: int) -> dict[str, Any]:
    """Describe a step as one item that fills the target grid; each href is the list of the step's sources."""
    properties = {
        "datetime": step[0].datetime.isoformat(),
        "proj:epsg": epsg,
        "proj:shape": list(geobox.shape),
        "proj:transform": list(geobox.transform)[:6],
    }
    hrefs = {band: json.dumps([astuple(place(item, band, geobox)) for item in step]) for band in bands}
    return {"id": name, "properties": properties, "assets": {band: {"href": href} for band, href in hrefs.items()}}


class StepReader:
    """Reads one band of one time step for stackstac (its ``Reader`` protocol): first valid granule first."""

    def __init__(
        self,
        *,
        url: str,
        spec: Any,
        resampling: Any,
        dtype: Any,
        fill_value: Any,
        gdal_env: Any,
        scale_offset: Any = (1, 0),
        errors_as_nodata: tuple[Exception, ...] = (),
    ) -> None:
        from odc.geo.geobox import GeoBox

        self._options = {
            "url": url,
            "spec": spec,
            "resampling": resampling,
            "dtype": dtype,
            "fill_value": fill_value,
            "scale_offset": scale_offset,
            "gdal_env": gdal_env,
            "errors_as_nodata": errors_as_nodata,
        }
        self._layer = Layer(np.dtype(dtype).name, fill_value, resampling.name)
        self._sources = [Source(*values) for values in json.loads(url)]
        self._geobox = GeoBox(spec.shape, spec.transform, f"EPSG:{spec.epsg}")

    def read(self, window: Any, **_: Any) -> NDArray[Any]:
        """Return the pixels of a window of the target grid; fill where no granule has a valid one."""
        row, column, rows, columns = window.row_off, window.col_off, window.height, window.width
        hits = [(s, hit) for s in self._sources if (hit := s.overlap(row, column, rows, columns))]
        pixels = ((hit, self._read_part(source, row, column, hit)) for source, hit in hits)
        return first_valid(pixels, (rows, columns), self._options["dtype"], self._options["fill_value"])

    def _read_part(self, source: Source, row: int, column: int, hit: tuple[slice, slice]) -> NDArray[Any]:
        part = row + hit[0].start, column + hit[1].start, row + hit[0].stop, column + hit[1].stop

        def action() -> NDArray[Any]:
            # Not stackstac's own reader, which warps chunk by chunk, with other pixels in other chunks; also a file on
            # the same lattice, at 4 times the cost, where its CRS is nameless or it is less than its tile.
            with self._options["gdal_env"].always:
                return read_part(source, part, self._geobox, self._layer, Blocks())

        return read(source.href, action, item=source.item, asset=source.asset)

    def __getstate__(self) -> dict[str, Any]:
        return self._options

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
