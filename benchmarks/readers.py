"""Which tool opens which output: every cell is run, and the table of ``docs/reference/readers.md`` is what came of it.

    python benchmarks/readers.py --write

A cell is "yes" where the tool finds the CRS, the transform, the missing value and the pixels that were computed before
anything was written. A tool that is not installed has no column: ``pip install compliance-checker cf-xarray
titiler-xarray h5netcdf h5py "rio-tiler[zarr]"``. The last line is JSON. A GDAL newer than the one of this Python comes
from a wheel for another one, unpacked:

    pip download rasterio --python-version 3.13 --only-binary=:all: --no-deps && unzip rasterio-*.whl -d wheel
    XGFM_NEWER_GDAL=wheel python benchmarks/readers.py --write
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import xarray as xr
from harness import report
from reader_outputs import Output, make

from xgfm.store.netcdf import to_netcdf

GDAL = Path(__file__).with_name("newer_gdal.py")
TABLE = Path(__file__).parents[1] / "docs" / "reference" / "readers.md"
BEGIN, END = "<!-- written by benchmarks/readers.py: do not edit -->", "<!-- end -->"
YES, NOT_ASKED = "yes", "-"
SUITE = "cf:1.11"
WHEEL = "XGFM_NEWER_GDAL"
"""Names the folder of an unpacked wheel of rasterio for a newer Python, whose GDAL is read as well."""


class NotAsked(Exception):  # noqa: N818 - what the cell is
    """A tool that is not for such outputs."""


@dataclass(frozen=True)
class Seen:
    """What a tool says of an output."""

    crs: Any
    transform: Any
    nodata: Any
    values: np.ndarray


def compare(output: Output, seen: Seen) -> None:
    """Fail with a few words unless a tool sees what is there."""
    if not seen.crs:
        raise AssertionError("no CRS")
    if rasterio.crs.CRS.from_user_input(seen.crs).to_epsg() != output.box.crs.epsg:
        raise AssertionError("another CRS")
    box, expected = output.box, output.values.astype("float64", copy=True)
    if (seen.transform.e < 0) != (box.affine.e < 0):  # GDAL turns what is south-up
        box, expected = box.flipy(), expected[..., ::-1, :].copy()
    turn = 360 * round((seen.transform.c - box.affine.c) / 360) if box.crs.geographic else 0  # of 0..360
    if not np.allclose(np.array(seen.transform[:6]) - [0, 0, turn, 0, 0, 0], box.affine[:6], rtol=1e-9, atol=1e-9):
        raise AssertionError("another transform")
    if seen.nodata is None or not np.allclose(float(seen.nodata), output.nodata, equal_nan=True):
        raise AssertionError(f"missing value {seen.nodata}, not {output.nodata}")
    if seen.values.shape != expected.shape:
        raise AssertionError(f"shape {seen.values.shape}")
    found = seen.values.astype("float64")
    for values in (found, expected):
        values[np.isclose(values, output.nodata)] = np.nan
    if not np.allclose(found, expected, rtol=1e-6, atol=1e-6, equal_nan=True):
        raise AssertionError("other pixels")


def opened(output: Output, **options: Any) -> xr.Dataset:
    """Open a store or a netCDF file with xarray."""
    if output.kind == "tif":
        raise NotAsked
    if output.kind == "nc":
        # Closed at once: a file that is closed by the garbage collector while another is read brings HDF5 down.
        with xr.open_dataset(output.path, engine="netcdf4", **options) as file:
            return file.load()
    return xr.open_dataset(output.path, engine="zarr", group=output.group or None, chunks={}, **options)


def affine_of(array: xr.DataArray, dims: tuple[str, str]) -> rasterio.Affine:
    """Return the transform that pixel centres give."""
    y, x = (array[d].values.astype("float64") for d in dims)
    dy, dx = y[1] - y[0], x[1] - x[0]
    return rasterio.Affine(dx, 0, x[0] - dx / 2, 0, dy, y[0] - dy / 2)


def read_xarray(output: Output) -> None:
    """Plain CF: the WKT of the grid mapping, pixel centres, and values with masking on."""
    array = opened(output, decode_coords="all")[output.variable]
    mapping = array.coords[array.encoding["grid_mapping"]]
    nodata = array.encoding.get("_FillValue")
    compare(output, Seen(mapping.attrs.get("crs_wkt"), affine_of(array, output.dims), nodata, array.values))


def read_rioxarray(output: Output) -> None:
    """CRS, transform and nodata of ``.rio``."""
    import rioxarray

    if output.kind == "tif":
        array = rioxarray.open_rasterio(output.path)[0]
        nodata = array.rio.nodata
    else:
        array = opened(output, decode_coords="all")[output.variable]
        array = array.rio.set_spatial_dims(y_dim=output.dims[0], x_dim=output.dims[1])
        nodata = array.rio.encoded_nodata
    compare(output, Seen(array.rio.crs and array.rio.crs.to_wkt(), array.rio.transform(), nodata, array.values))


def read_odc(output: Output) -> None:
    """GeoBox and nodata of ``.odc``, without decoding."""
    import odc.geo.xr  # noqa: F401
    import rioxarray

    if output.kind == "tif":
        array = rioxarray.open_rasterio(output.path)[0]
        box, nodata = array.odc.geobox, array.odc.nodata
    else:
        dataset = opened(output, mask_and_scale=False)
        array, box = dataset[output.variable], dataset.odc.geobox
        nodata = array.attrs.get("_FillValue")
    compare(output, Seen(box.crs.to_wkt() if box.crs else None, box.affine, nodata, array.values))


def gdal_name(output: Output) -> str:
    """Return an output as GDAL names it."""
    if output.kind == "tif":
        return str(output.path)
    if output.kind == "nc":
        return f'NETCDF:"{output.path}":{output.variable}'
    return f'ZARR:"{output.path}":/{output.group + "/" if output.group else ""}{output.variable}'


def read_rasterio(output: Output) -> None:
    """GDAL as rasterio's wheel brings it."""
    if np.prod(output.values.shape[:-2], dtype=int) > 256:
        raise NotAsked
    with rasterio.open(gdal_name(output)) as file:
        values = file.read()
        wkt = file.crs.to_wkt() if file.crs else None
        seen = Seen(wkt, file.transform, file.nodata, values.reshape(output.values.shape))
    compare(output, seen)


def read_newer_gdal(output: Output) -> None:
    """A newer GDAL, in a process of its own: two libraries of it do not share one."""
    shape = json.dumps(list(output.values.shape))
    call = [sys.executable, str(GDAL), gdal_name(output), shape]
    done = subprocess.run(call, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise AssertionError(done.stderr.strip().splitlines()[-1][:90] if done.stderr.strip() else "it crashes")
    said = json.loads(done.stdout)
    values = np.array(said["values"], "float64").reshape(output.values.shape)
    transform = rasterio.Affine.from_gdal(*said["transform"])
    compare(output, Seen(said["wkt"], transform, said["nodata"], values))


def read_rio_tiler(output: Output) -> None:
    """rio-tiler: GeoTIFFs by its reader, stores by the one of Zarr groups; CRS, bounds and single pixels."""
    if output.kind == "nc" or len(output.values.shape) > 3:
        raise NotAsked
    if output.kind == "tif":
        from rio_tiler.io import Reader

        with Reader(str(output.path)) as source:
            _points(output, source, source.crs, source.bounds)
        return
    import zarr
    from rio_tiler.experimental.zarr import GroupReader

    group = zarr.open_group(output.path, mode="r", path=output.group or None)
    with GroupReader(group) as source:
        crs = rasterio.crs.CRS.from_epsg(output.box.crs.epsg)
        bounds = source.get_bounds(variables=[output.variable], crs=crs)
        _points(output, source, crs, bounds, variables=[output.variable])


def read_titiler(output: Output) -> None:
    """titiler-xarray's reader, which its server uses: CRS, bounds and single pixels."""
    if output.kind == "tif":
        raise NotAsked
    from titiler.xarray.io import Reader, fs_open_dataset, open_zarr

    choose: Any = {"opener": fs_open_dataset if output.kind == "nc" else open_zarr}
    url = str(output.path) if output.kind == "nc" else f"file://{output.path}"
    lead = [f"{dim}={value}" for dim, value in _first(output).items()]
    with Reader(url, variable=output.variable, group=output.group or None, sel=lead or None, **choose) as source:
        _points(output, source, source.crs, source.bounds, first=True)


def _first(output: Output) -> dict[str, Any]:
    """Return the leading dims beyond the first of a variable, at their first value: readers take one of them."""
    array = opened(output, mask_and_scale=False)[output.variable]
    return {str(d): array[d].values[0] for d in array.dims[:-3]}


def _points(output: Output, source: Any, crs: Any, bounds: Any, *, first: bool = False, **options: Any) -> None:
    """Compare CRS, bounds and some pixels, those without data among them."""
    if crs is None or crs.to_epsg() != output.box.crs.epsg:
        raise AssertionError(f"CRS {crs}")
    expected_bounds = np.array(output.box.boundingbox.bbox)
    turn = 360 * round((bounds[0] - expected_bounds[0]) / 360) if crs.is_geographic else 0
    if not np.allclose(np.array(bounds) - [turn, 0, turn, 0], expected_bounds, rtol=1e-9):
        raise AssertionError("other bounds")
    values = output.values
    while first and values.ndim > 3:
        values = values[0]
    planes = values.reshape(-1, *values.shape[-2:])
    missing = np.isnan(planes[0]) if np.isnan(output.nodata) else planes[0] == output.nodata
    rng = np.random.default_rng(0)
    places = [tuple(rng.integers(0, side) for side in planes.shape[-2:]) for _ in range(12)]
    places += [tuple(place) for place in np.argwhere(missing)[:3]]
    for row, column in places:
        x, y = output.box.affine * (column + 0.5, row + 0.5)
        found = source.point(x + turn, y, coord_crs=crs, **options).array
        expected = planes[:, row, column].astype("float64")
        masked = np.ma.getmaskarray(found).ravel()
        if masked.any() != bool(missing[row, column]):
            raise AssertionError("missing pixels are not masked" if missing[row, column] else "pixels are masked")
        if not missing[row, column] and not np.allclose(found.data.ravel(), expected, rtol=1e-6, atol=1e-6):
            raise AssertionError("other pixels")


def read_cf_xarray(output: Output) -> None:
    """cf-xarray: axes, grid mapping, and for class maps the flags and a comparison by name."""
    import cf_xarray  # noqa: F401

    dataset = opened(output, decode_coords="all", mask_and_scale=False)
    array = dataset[output.variable]
    if array.cf.axes.get("X", [None])[0] != output.dims[1] or array.cf.axes.get("Y", [None])[0] != output.dims[0]:
        raise AssertionError(f"axes {array.cf.axes}")
    if not array.cf.grid_mapping_names:
        raise AssertionError("no grid mapping")
    if "flag_values" in array.attrs:
        words = array.attrs["flag_meanings"].split()
        for value, word in zip(array.attrs["flag_values"], words, strict=True):
            if not np.array_equal(array.cf == word, output.values == value):
                raise AssertionError(f"{word!r} is not found")


def read_zarr_cm(output: Output) -> None:
    """zarr-cm: the conventions that array and group declare, against their schemas."""
    if output.kind != "zarr":
        raise NotAsked
    import zarr_cm

    folder = output.path / output.group
    node = json.loads((folder / output.variable / "zarr.json").read_text())
    zarr_cm.proj.validate_array_metadata(node)
    zarr_cm.spatial.validate_array_metadata(node)
    if node["attributes"]["spatial:shape"] != list(output.values.shape[-2:]):
        raise AssertionError("another shape")
    group = json.loads((folder / "zarr.json").read_text())
    if "multiscales" in group["attributes"]:
        zarr_cm.multiscales.validate_group_metadata(group)


def check_cf(output: Output) -> None:
    """The IOOS checker: netCDF as it is, stores by way of `to_netcdf` of a window."""
    from compliance_checker.runner import CheckSuite, ComplianceChecker

    if output.kind == "tif":
        raise NotAsked
    with tempfile.TemporaryDirectory() as name:
        path = output.path
        if output.kind == "zarr":
            part = opened(output, mask_and_scale=False, decode_coords="all").isel(
                {dim: slice(0, 40) for dim in output.dims}
            )
            path = to_netcdf(part, Path(name) / "part.nc")
        CheckSuite.load_all_available_checkers()
        said = Path(name) / "said.json"
        ComplianceChecker.run_checker(str(path), [SUITE], 0, "strict", output_filename=str(said), output_format="json")
        found = json.loads(said.read_text())[SUITE]
    checks = [c for level in ("high", "medium", "low") for c in found[f"{level}_priorities"]]
    faults = [m for c in checks if c["value"][0] < c["value"][1] for m in c["msgs"]]
    if faults:
        raise AssertionError("; ".join(faults))


TOOLS: dict[str, tuple[str, Callable[[Output], None]]] = {
    "IOOS checker": ("compliance-checker", check_cf),
    "xarray": ("xarray", read_xarray),
    "rioxarray": ("rioxarray", read_rioxarray),
    "odc-geo": ("odc-geo", read_odc),
    "rasterio": ("rasterio", read_rasterio),
    "newer GDAL": ("", read_newer_gdal),
    "rio-tiler": ("rio-tiler", read_rio_tiler),
    "titiler-xarray": ("titiler-xarray", read_titiler),
    "cf-xarray": ("cf-xarray", read_cf_xarray),
    "zarr-cm": ("zarr-cm", read_zarr_cm),
}
"""Distribution and check of each column."""


def version(tool: str) -> str | None:
    """Return the version of a tool, None where it is not installed."""
    if tool == "newer GDAL":
        return _newer_version()
    try:
        found = importlib.metadata.version(TOOLS[tool][0])
    except importlib.metadata.PackageNotFoundError:
        return None
    if tool == "rasterio":
        return f"{found}, GDAL {rasterio.__gdal_version__}"
    return found


def _newer_version() -> str | None:
    if WHEEL not in os.environ:
        return None
    name = next((Path(os.environ[WHEEL]) / "rasterio.libs").glob("libgdal*")).name
    return ".".join(name.split(".")[-3:])


def cell(tool: str, output: Output) -> str:
    """Run one cell."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            TOOLS[tool][1](output)
    except NotAsked:
        return NOT_ASKED
    except Exception as error:  # noqa: BLE001 - whatever a tool raises is what the table is about
        return f"no: {type(error).__name__ + ': ' if not isinstance(error, AssertionError) else ''}{error}"
    return YES


def table(outputs: Sequence[Output]) -> list[dict[str, str]]:
    """Run every cell."""
    logging.disable(logging.ERROR)
    try:
        return [{"output": o.name, **{t: cell(t, o) for t in TOOLS if version(t)}} for o in outputs]
    finally:
        logging.disable(logging.NOTSET)


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """Return the table, its reasons below."""
    reasons: list[str] = []

    def shown(text: str) -> str:
        if not text.startswith("no: "):
            return text
        plain = " ".join(text.removeprefix("no: ").split())[:160]
        if plain not in reasons:
            reasons.append(plain)
        return f"no ({reasons.index(plain) + 1})"

    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    lines += ["| " + " | ".join(shown(row[c]) for c in columns) + " |" for row in rows]
    versions = ", ".join(f"{t} {version(t)}" for t in columns[1:])
    return "\n".join(
        [*lines, "", f"Versions: {versions}.", "", *(f"{i}. {r}" for i, r in enumerate(reasons, 1))]
    ).rstrip()


def write(rows: Sequence[dict[str, str]], page: Path = TABLE) -> None:
    """Put the table in its place in the docs."""
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n\n{markdown(rows)}\n\n{END}{rest.partition(END)[2]}")


def main() -> None:
    """Make the outputs, run the cells, print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the table into docs/reference/readers.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rows = table(make(Path(name)))
    if options.write:
        write(rows)
    report("readers", rows)


if __name__ == "__main__":
    main()
