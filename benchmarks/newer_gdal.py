"""What a GDAL that is newer than this Python's finds in a raster, as JSON.

    XGFM_NEWER_GDAL=wheel python benchmarks/newer_gdal.py map.tif '[256, 256]'

``readers.py`` calls it: two libraries of GDAL do not share a process. The library is the one of an unpacked wheel of
rasterio for another Python, by its C functions.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def newer_gdal() -> Any:
    """Load the GDAL library of an unpacked wheel of rasterio."""
    folder = Path(os.environ["XGFM_NEWER_GDAL"])
    gdal = ctypes.CDLL(str(next((folder / "rasterio.libs").glob("libgdal*"))))
    for name in ("GDALOpenEx", "GDALGetRasterBand"):
        getattr(gdal, name).restype = ctypes.c_void_p
    for name in ("GDALGetProjectionRef", "CPLGetLastErrorMsg", "GDALVersionInfo"):
        getattr(gdal, name).restype = ctypes.c_char_p
    gdal.GDALGetRasterNoDataValue.restype = ctypes.c_double
    gdal.CPLSetConfigOption(b"PROJ_DATA", str(folder / "rasterio" / "proj_data").encode())
    gdal.CPLSetConfigOption(b"GDAL_DATA", str(folder / "rasterio" / "gdal_data").encode())
    gdal.GDALAllRegister()
    return gdal


def main(name: str, shape: Sequence[int]) -> None:
    """Print as JSON what the newer GDAL finds in a raster."""
    gdal = newer_gdal()
    gdal.CPLPushErrorHandler(gdal.CPLQuietErrorHandler)
    source = gdal.GDALOpenEx(name.encode(), ctypes.c_uint(0x02), None, None, None)
    if not source:
        sys.exit(gdal.CPLGetLastErrorMsg().decode() or "not recognised")
    dataset, rows, columns = ctypes.c_void_p(source), shape[-2], shape[-1]
    transform, has = (ctypes.c_double * 6)(), ctypes.c_int()
    gdal.GDALGetGeoTransform(dataset, transform)
    planes = []
    for number in range(gdal.GDALGetRasterCount(dataset)):
        band = ctypes.c_void_p(gdal.GDALGetRasterBand(dataset, number + 1))
        nodata = gdal.GDALGetRasterNoDataValue(band, ctypes.byref(has))
        buffer = np.zeros((rows, columns), "float64")
        pointer = ctypes.c_void_p(buffer.ctypes.data)
        if gdal.GDALRasterIO(band, 0, 0, 0, columns, rows, pointer, columns, rows, 7, 0, 0):
            sys.exit(gdal.CPLGetLastErrorMsg().decode())
        planes.append(buffer.ravel().tolist())
    wkt = gdal.GDALGetProjectionRef(dataset).decode()
    found = nodata if has.value else None
    print(json.dumps({"wkt": wkt, "transform": list(transform), "nodata": found, "values": planes}))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
