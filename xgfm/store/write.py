"""Results on disk: a sharded Zarr store, or a cloud-optimised GeoTIFF.

In: a lazy result (or the cube itself) that carries its grid. Out: a path. This is where a result is computed, block by
block; on a local disk it appears under its name only when it is whole.
"""

from __future__ import annotations

import warnings
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from xgfm.cube.hrefs import redacted
from xgfm.errors import WriteError
from xgfm.store.cog import category_names, choose_layer, write_cog
from xgfm.store.layout import prepared
from xgfm.store.objects import local_folder
from xgfm.store.path import check_cog_name, check_zarr_name, written_whole


def to_zarr(
    result: xr.Dataset | xr.DataArray,
    path: str | PathLike[str],
    *,
    chunk: int | None = None,
    shard: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> str | PathLike[str]:
    """Write a result as a sharded Zarr v3 store that xarray, rioxarray and odc-geo open with its georeference.

    Open class maps with ``xr.open_zarr(path, mask_and_scale=False)``: they stay uint8, with 255 where there is no
    data; decoded, they become floats. rioxarray looks for the CRS where ``decode_coords="all"`` puts it. GDAL reads
    shards from 3.13 on; for an older one, write ``chunk`` and ``shard`` of the same size.

    Parameters
    ----------
    result : Dataset or DataArray
        What `predict`, `embed` or `open_hls` returned: dims ``(..., y, x)`` and a CRS. Computed here, block by block.
    path : str or path
        A folder (``~`` is the home), or the URL of a store (``s3://...``); not the name of a GeoTIFF.
    chunk : int, optional
        Rows and columns of an inner chunk, the least that can be read. By default 256 to 512, the largest that
        divides the Dask chunk.
    shard : int, optional
        Rows and columns of a shard, the least that is written: one file. By default the Dask chunk, so that each block
        is one file; Dask chunks that are not whole shards are rechunked, so that no two tasks write to one shard.
    overwrite : bool
        Replace the Zarr store that is there. A local one stays as it is until the new one is whole.
    progress : bool
        Show Dask's progress bar, of the local scheduler or of the present `distributed` client.

    Returns
    -------
    str or path
        ``path``, as it was given.

    Raises
    ------
    WriteError
        Where the path is taken, named like a GeoTIFF, or cannot be written (disk full, no permission); it says what is
        left on disk.
    GridError
        Where the result has no CRS or no regular grid.
    """
    check_zarr_name(redacted(str(path)) if "://" in str(path) else path)
    target = local_folder(path)
    _check_side("chunk", chunk)
    _check_side("shard", shard)
    dataset = prepared(result, chunk=chunk, shard=shard)
    if target is None:
        _write_remote(dataset, str(path), overwrite=overwrite, progress=progress)
    else:
        with written_whole(target, overwrite=overwrite) as partial:
            _write(dataset, partial, mode="w-", progress=progress)
    return path


def to_cog(
    result: xr.Dataset | xr.DataArray,
    path: str | PathLike[str],
    *,
    variable: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Write one layer of a result as a cloud-optimised GeoTIFF.

    A class map carries its colour table, nodata 255 and overviews of the most frequent class; class names stand in its
    tags and, for GDAL and QGIS, in ``<path>.aux.xml``.

    Parameters
    ----------
    result : Dataset or DataArray
        Of one time, with a CRS. Computed here, block by block, by way of a scratch folder beside ``path``.
    path : str or path
        Local file; not the name of a Zarr store.
    variable : str, optional
        Which one; by default the class map, or the only one there is.
    overwrite : bool
        Replace the file that is there.
    progress : bool
        Show Dask's progress bar.

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    XgfmError
        Where the choice of a variable is not clear.
    WriteError
        Where there are several times, the path is taken, named like a Zarr store or cannot be written; it says what is
        left on disk.
    GridError
        Where the result has no CRS or no regular grid.
    """
    target = local_folder(path)
    if target is None:
        raise WriteError(
            f"path={redacted(str(path))!r} is no local file, and a GeoTIFF is written to one; give its path"
        )
    check_cog_name(target)
    layer = choose_layer(result, variable)
    dataset = prepared(layer)
    with written_whole(target, overwrite=overwrite, inside="map.tif") as partial:
        _write(dataset, partial / "layer.zarr", mode="w-", progress=progress)
        write_cog(partial / "layer.zarr", partial / "map.tif")
    names = category_names(next(iter(layer.data_vars.values())))
    beside = target.with_name(f"{target.name}.aux.xml")
    beside.unlink(missing_ok=True) if names is None else beside.write_text(names, encoding="utf-8")
    return target


def _check_side(name: str, side: Any) -> None:
    """Refuse what is no number of pixels."""
    if side is not None and (isinstance(side, bool) or not isinstance(side, int | np.integer) or side < 1):
        raise WriteError(f"{name}={side!r} must be a whole number of pixels from 1 on, or None to choose it")


def _write(dataset: xr.Dataset, store: str | Path, *, mode: Any, progress: bool) -> None:
    """Metadata first, then every block."""
    with warnings.catch_warnings():
        # Consolidated metadata is an extension of Zarr v3: it quickens opening, and nothing needs it.
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        blocks = dataset.to_zarr(store, mode=mode, zarr_format=3, consolidated=True, compute=False)
    _compute(blocks, progress=progress)


def _compute(blocks: Any, *, progress: bool) -> None:
    """Run the graph where Dask would run it, with a progress bar if wanted."""
    from dask.diagnostics.progress import ProgressBar
    from distributed import default_client
    from distributed.diagnostics.progressbar import progress as remote_progress

    if not progress:
        blocks.compute()
        return
    try:
        client = default_client()
    except ValueError:
        with ProgressBar():
            blocks.compute()
        return
    future = client.compute(blocks)
    remote_progress(future)
    future.result()


def _write_remote(dataset: xr.Dataset, url: str, *, overwrite: bool, progress: bool) -> None:
    plain = redacted(url)
    try:
        _write(dataset, url, mode="w" if overwrite and _holds_store(url) else "w-", progress=progress)
        return
    except FileExistsError:
        expected = "a Zarr store" if overwrite else "nothing there, or overwrite=True"
        message = f"{plain} already holds data; expected {expected}, give another path"
    except OSError as error:
        message = f"{plain} cannot be written ({redacted(str(error))}); what was written before stays there, incomplete"
    # Raised outside of the handler, so that the original, which may quote the whole url, is not its context.
    raise WriteError(message)


def _holds_store(url: str) -> bool:
    import zarr

    try:
        zarr.open_group(url, mode="r")
    except FileNotFoundError:
        return False
    return True
