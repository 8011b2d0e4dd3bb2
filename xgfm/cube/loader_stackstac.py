"""The default loader: stackstac, called with a full grid and plain dicts, which is the only way in which it is right.

In: time steps and a grid. Out: a lazy array whose graph holds one task for each chunk and two for each step. A step of
several granules is one entry of stackstac's table, which `StepReader` opens; so merging adds no task. Files that do not
lie on the target's lattice are warped by `xgfm.cube.files`, the same in every chunk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xgfm.cube.credentials import gdal_path, read
from xgfm.cube.files import Blocks, read_part
from xgfm.cube.loaders import Layer, Source, Step, check_chunks, check_file, check_grid, first_valid, place
from xgfm.errors import GridError, ReadError

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
        sources = [Source(*values) for values in json.loads(url)]
        self._parts = [(source, self._open_lazily(source) if source.aligned else None) for source in sources]

    def _open_lazily(self, source: Source) -> Any:
        """Stackstac's own reader of one file, on the file's grid."""
        from rasterio.enums import Resampling
        from stackstac.raster_spec import RasterSpec
        from stackstac.rio_reader import AutoParallelRioReader

        spec = self._options["spec"]
        width, height = spec.resolutions_xy
        left, top = spec.bounds[0] + source.column * width, spec.bounds[3] - source.row * height
        bounds = (left, top - source.rows * height, left + source.columns * width, top)
        spec = RasterSpec(spec.epsg, bounds, spec.resolutions_xy)
        options = {**self._options, "url": gdal_path(source.href), "spec": spec, "resampling": Resampling.nearest}
        return AutoParallelRioReader(**options)

    def read(self, window: Any, **_: Any) -> NDArray[Any]:
        """Return the pixels of a window of the target grid; fill where no granule has a valid one."""
        row, column, rows, columns = window.row_off, window.col_off, window.height, window.width
        hits = [(s, part, hit) for s, part in self._parts if (hit := s.overlap(row, column, rows, columns))]
        pixels = ((hit, self._read_part(source, part, row, column, hit)) for source, part, hit in hits)
        return first_valid(pixels, (rows, columns), self._options["dtype"], self._options["fill_value"])

    def _read_part(self, source: Source, part: Any, row: int, column: int, hit: tuple[slice, slice]) -> NDArray[Any]:
        from rasterio.windows import Window

        top, left, bottom, right = row + hit[0].start, column + hit[1].start, row + hit[0].stop, column + hit[1].stop

        def action() -> NDArray[Any]:
            with self._options["gdal_env"].always:
                if part is None:  # warped, which stackstac does chunk by chunk, with other pixels in other chunks
                    return read_part(source, (top, left, bottom, right), self._geobox(), self._layer, Blocks())
                check_file(gdal_path(source.href), source, self._options["dtype"])
                window = Window(left - source.column, top - source.row, right - left, bottom - top)
                pixels: NDArray[Any] = part.read(window)
            return pixels

        try:
            return read(source.href, action, item=source.item, asset=source.asset)
        except ReadError:
            if part is not None:
                part.close()  # so that a second try opens the file anew
            raise

    def _geobox(self) -> GeoBox:
        """Return the target grid."""
        from odc.geo.geobox import GeoBox

        spec = self._options["spec"]
        return GeoBox(spec.shape, spec.transform, f"EPSG:{spec.epsg}")

    def close(self) -> None:
        """Close every file."""
        for _, part in self._parts:
            if part is not None:
                part.close()

    def __getstate__(self) -> dict[str, Any]:
        return self._options

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
