"""Granules to pixels: the loaders behind one small protocol.

In: time steps, each some granules in order of precedence, and the target grid. Out: a lazy array
``(time, band, y, x)`` whose chunks are read, on the worker, when they are computed. Both loaders hand every file to
`xgfm.cube.credentials.read`, so that credentials, GDAL settings and errors are the same whichever reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from xgfm.cube.credentials import gdal_path, read
from xgfm.cube.items import HlsItem
from xgfm.errors import GridError, MissingExtraError, ReadError

if TYPE_CHECKING:
    import dask.array as da
    from odc.geo.geobox import GeoBox

SCHEME = "xgfm://source/"
"""Of the uris that hold a `Source` record for odc-stac: JSON, percent-encoded."""

Step = Sequence[HlsItem]
"""The granules of one time step; where several have a valid pixel, the first one's counts."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What kind of pixels a load gives."""

    dtype: str
    fill: int
    """Where no granule has a valid pixel."""
    resampling: str
    """Used only where a granule does not lie on the target's own lattice."""


REFLECTANCE = Layer("int16", -9999, "bilinear")
FMASK = Layer("uint8", 255, "nearest")


class Loader(Protocol):
    """Makes the lazy array of a cube."""

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
        """Return ``(time, band, y, x)`` in chunks of one step, all bands and ``chunks`` pixels; nothing is opened.

        Parameters
        ----------
        steps : sequence of sequence of HlsItem
            In order of time; never empty.
        bands : sequence of str
            Keys of the items' ``hrefs``.
        geobox : GeoBox
            North-up target grid.
        layer : Layer
            Dtype, fill and resampling.
        chunks : tuple of int
            Rows and columns of a chunk.
        gdal : mapping
            GDAL settings under which every file is opened and read.
        """


@dataclass(frozen=True, slots=True)
class Source:
    """One asset on the target grid."""

    href: str
    item: str
    asset: str
    aligned: bool
    """True where the file lies on the target's own lattice, so that its pixels are copied and not warped."""
    column: int
    row: int
    columns: int
    rows: int
    """Where the granule's tile lies, in pixels of the target; may reach beyond it. Rounded outward if not aligned."""

    def overlap(self, row: int, column: int, rows: int, columns: int) -> tuple[slice, slice] | None:
        """Return the part of a window that the tile covers, counted from the window's corner; None if it misses."""
        top, left = max(row, self.row), max(column, self.column)
        bottom, right = min(row + rows, self.row + self.rows), min(column + columns, self.column + self.columns)
        if top >= bottom or left >= right:
            return None
        return slice(top - row, bottom - row), slice(left - column, right - column)


def place(item: HlsItem, band: str, geobox: GeoBox) -> Source:
    """Return where a granule's asset lies on the target grid."""
    grid = item.geobox
    same = grid.crs == geobox.crs and grid.resolution == geobox.resolution
    left, bottom, right, top = _bounds_in(grid, geobox)
    column, row = (left - geobox.transform.c) / geobox.transform.a, (top - geobox.transform.f) / geobox.transform.e
    aligned = bool(same and column == round(column) and row == round(row))
    if aligned:
        position = round(column), round(row), grid.shape[1], grid.shape[0]
    else:
        # Two pixels more: the warp's kernel reaches out, and a projected edge is not straight.
        column, row = int(np.floor(column)) - 2, int(np.floor(row)) - 2
        end = (right - geobox.transform.c) / geobox.transform.a, (bottom - geobox.transform.f) / geobox.transform.e
        position = column, row, int(np.ceil(end[0])) + 2 - column, int(np.ceil(end[1])) + 2 - row
    return Source(item.hrefs[band], item.id, item.asset(band), aligned, *position)


def _bounds_in(grid: GeoBox, geobox: GeoBox) -> tuple[float, float, float, float]:
    """Left, bottom, right, top of a grid in the CRS of another."""
    bounds: tuple[float, float, float, float] = grid.boundingbox.bbox
    if grid.crs == geobox.crs or grid.crs is None or geobox.crs is None:
        return bounds
    from pyproj import Transformer

    transformer = Transformer.from_crs(grid.crs.proj, geobox.crs.proj, always_xy=True)
    return transformer.transform_bounds(*bounds, densify_pts=41)


def load_stackstac(
    steps: Sequence[Step],
    bands: Sequence[str],
    geobox: GeoBox,
    layer: Layer,
    *,
    chunks: tuple[int, int],
    gdal: Mapping[str, str],
) -> da.Array:
    """Load with stackstac, called with a full grid and plain dicts: the only way in which it is right (`Loader`).

    A step of several granules is one entry of stackstac's table, which `StepReader` opens; so merging adds no task.
    """
    import stackstac
    from rasterio.enums import Resampling
    from stackstac.rio_env import LayeredEnv

    epsg = None if geobox.crs is None else geobox.crs.epsg
    if epsg is None:
        raise GridError("loader='stackstac' needs a CRS with an EPSG code; give one with crs=, or use loader='odc'")
    dtype = np.dtype(layer.dtype)
    items = [_stackstac_item(str(i), step, bands, geobox, epsg) for i, step in enumerate(steps)]
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
    _check_grid(stacked.sizes, stacked.x.values, stacked.y.values, geobox)
    data: da.Array = stacked.data
    return data


def _stackstac_item(name: str, step: Step, bands: Sequence[str], geobox: GeoBox, epsg: int) -> dict[str, Any]:
    """Describe a step as one item that fills the target grid; each href is the list of the step's sources."""
    properties = {
        "datetime": step[0].datetime.isoformat(),
        "proj:epsg": epsg,
        "proj:shape": list(geobox.shape),
        "proj:transform": list(geobox.transform)[:6],
    }
    hrefs = {band: json.dumps([astuple(place(item, band, geobox)) for item in step]) for band in bands}
    return {"id": name, "properties": properties, "assets": {band: {"href": href} for band, href in hrefs.items()}}


def _check_grid(sizes: Mapping[Any, int], x: NDArray[Any], y: NDArray[Any], geobox: GeoBox) -> None:
    """Refuse a library's array that does not lie where it was asked to: stackstac can be wrong without a word."""
    names = list(geobox.dimensions)
    expected = [geobox.coords[name].values for name in names]
    for got, wanted, step in zip((y, x), expected, (geobox.resolution.y, geobox.resolution.x), strict=True):
        if got.shape != wanted.shape or np.abs(got - wanted).max() > 1e-6 * abs(step):
            raise GridError(f"the loader gave {dict(sizes)}, which is not the asked grid of {tuple(geobox.shape)}")


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
        scale_offset: Any = (1, 0),
        gdal_env: Any = None,
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
        sources = [Source(*values) for values in json.loads(url)]
        self._parts = [(source, self._open_lazily(source)) for source in sources]

    def _open_lazily(self, source: Source) -> Any:
        """Stackstac's own reader of one file: on the file's grid where it is aligned, else warped to the target's."""
        from rasterio.enums import Resampling
        from stackstac.raster_spec import RasterSpec
        from stackstac.rio_reader import AutoParallelRioReader

        spec, resampling = self._options["spec"], self._options["resampling"]
        if source.aligned:
            resampling = Resampling.nearest
            width, height = spec.resolutions_xy
            left, top = spec.bounds[0] + source.column * width, spec.bounds[3] - source.row * height
            bounds = (left, top - source.rows * height, left + source.columns * width, top)
            spec = RasterSpec(spec.epsg, bounds, spec.resolutions_xy)
        options = {**self._options, "url": gdal_path(source.href), "spec": spec, "resampling": resampling}
        return AutoParallelRioReader(**options)

    def read(self, window: Any, **_: Any) -> NDArray[Any]:
        """Return the pixels of a window of the target grid; fill where no granule has a valid one."""
        row, column, rows, columns = window.row_off, window.col_off, window.height, window.width
        hits = [(s, part, hit) for s, part in self._parts if (hit := s.overlap(row, column, rows, columns))]
        pixels = ((hit, self._read_part(source, part, row, column, hit)) for source, part, hit in hits)
        return first_valid(pixels, (rows, columns), self._options["dtype"], self._options["fill_value"])

    def _read_part(self, source: Source, part: Any, row: int, column: int, hit: tuple[slice, slice]) -> NDArray[Any]:
        from rasterio.windows import Window

        origin = (source.row, source.column) if source.aligned else (0, 0)
        window = Window(
            column + hit[1].start - origin[1],
            row + hit[0].start - origin[0],
            hit[1].stop - hit[1].start,
            hit[0].stop - hit[0].start,
        )
        try:
            result: NDArray[Any] = read(source.href, lambda: part.read(window), item=source.item, asset=source.asset)
        except ReadError:
            part.close()  # so that a second try opens the file anew
            raise
        return result

    def close(self) -> None:
        """Close every file."""
        for _, part in self._parts:
            part.close()

    def __getstate__(self) -> dict[str, Any]:
        return self._options

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def first_valid(
    parts: Iterator[tuple[tuple[slice, slice], NDArray[Any]]], shape: tuple[int, int], dtype: Any, fill: Any
) -> NDArray[Any]:
    """Lay parts over one another, the first valid pixel on top; parts after the last missing pixel are not read.

    Parameters
    ----------
    parts : iterator
        ``(rows, columns)`` of each part and its pixels, ``fill`` where it has none.
    shape : tuple of int
        Rows and columns of the result.
    dtype, fill
        Of the result.
    """
    out = np.full(shape, fill, dtype)
    for hit, pixels in parts:
        view = out[hit]
        np.copyto(view, pixels, where=view == fill)
        if not (out == fill).any():
            break
    return out


def load_odc(
    steps: Sequence[Step],
    bands: Sequence[str],
    geobox: GeoBox,
    layer: Layer,
    *,
    chunks: tuple[int, int],
    gdal: Mapping[str, str],
) -> da.Array:
    """Load with odc-stac, an optional package (`Loader`)."""
    try:
        import odc.stac
    except ImportError as error:
        raise MissingExtraError("odc-stac", "odc", "loader='odc'") from error
    import dask.array as da

    from xgfm.cube.odc_driver import CubeDriver

    aligned = all(place(item, bands[0], geobox).aligned for step in steps for item in step)
    data = odc.stac.load(
        [_odc_item(i, item, bands, geobox) for i, step in enumerate(steps) for item in step],
        bands=list(bands),
        geobox=geobox,
        groupby="xgfm:step",
        preserve_original_order=True,
        chunks={"time": 1, "y": chunks[0], "x": chunks[1]},
        dtype=layer.dtype,
        nodata=layer.fill,
        resampling="nearest" if aligned else layer.resampling,
        driver=CubeDriver(gdal),
    )
    names = list(geobox.dimensions)
    _check_grid(data.sizes, data[names[1]].values, data[names[0]].values, geobox)
    array: da.Array = da.stack([data[band].data for band in bands], axis=1).rechunk({1: -1})
    return array


def _odc_item(number: int, item: HlsItem, bands: Sequence[str], geobox: GeoBox) -> Any:
    """Describe one granule as a pystac item with its grid."""
    import pystac

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


LOADERS: Mapping[str, Loader] = {"stackstac": load_stackstac, "odc": load_odc}
"""By the names that ``loader=`` takes."""
