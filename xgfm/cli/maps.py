"""Commands of maps: search, predict, demo, tasks, info.

In: what was typed. Out: text, files. Each command calls public functions and imports them when it runs, so that help is
quick.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xgfm.cli.base import app
from xgfm.cli.words import busy, pairs, percent, table
from xgfm.errors import XgfmError

if TYPE_CHECKING:
    import xarray as xr

BBox = Annotated[
    tuple[float, float, float, float] | None,
    typer.Option(help="West, south, east, north in degrees.", metavar="W S E N"),
]
Datetime = Annotated[
    str | None,
    typer.Option(help="Date or period, ends count: 2024, 2024-05, 2024-04-01/2024-10-31.", metavar="PERIOD"),
]
Catalog = Annotated[
    str, typer.Option(help="lpcloud (NASA), planetary-computer, URL of a STAC API, or a file of items (JSON, Parquet).")
]
Tile = Annotated[str | None, typer.Option(help="MGRS tile, T15TVM; without --bbox it also says where.")]
Clouds = Annotated[float | None, typer.Option(help="Leave out granules with more cloud, in percent.")]


@app.command()
def search(
    bbox: BBox = None,
    datetime: Datetime = None,
    catalog: Catalog = "lpcloud",
    tile: Tile = None,
    max_cloud_cover: Clouds = None,
    save: Annotated[Path | None, typer.Option(help="Write the items to this JSON file, for predict --catalog.")] = None,
) -> None:
    """Find HLS granules, show them, and keep them as a file."""
    from xgfm.cube import catalogs
    from xgfm.cube.items import tile_of

    _require_place(bbox, tile, catalog)
    with busy(f"searching {catalog}"):
        items = catalogs.search(bbox, datetime, catalog, tile=tile, max_cloud_cover=max_cloud_cover)
    rows = [
        (
            str(item["properties"].get("datetime") or item["properties"].get("start_datetime"))[:16],
            str(tile_of(item) or "-"),
            percent(item["properties"].get("eo:cloud_cover")),
            str(item["id"]),
        )
        for item in items
    ]
    table(("DATE (UTC)", "TILE", "CLOUD", "GRANULE"), sorted(rows))
    typer.echo(f"{len(items)} granules", err=True)
    if save is not None:
        catalogs.save_items(items, save)
        typer.echo(f"saved to {save}", err=True)


@app.command()
def predict(
    task: Annotated[str, typer.Option(help="Name of a task (xgfm tasks), or path of a task folder.")],
    out: Annotated[str, typer.Option(help="Zarr store to write: a folder (map.zarr) or a URL.")],
    bbox: BBox = None,
    datetime: Datetime = None,
    catalog: Catalog = "lpcloud",
    tile: Tile = None,
    max_cloud_cover: Clouds = None,
    crs: Annotated[str | None, typer.Option(help="CRS of the map, EPSG:32615; by default that of the tiles.")] = None,
    resolution: Annotated[float | None, typer.Option(help="Side of a pixel in units of the CRS.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the store that is there.")] = False,
    png: Annotated[Path | None, typer.Option(help="Draw the map with its legend to this file.")] = None,
    workers: Annotated[int, typer.Option(help="Processes of a local Dask cluster; 0: threads of this process.")] = 0,
    scheduler: Annotated[str | None, typer.Option(help="Address of a running Dask scheduler, tcp://...")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default cuda where there is one.")] = None,
) -> None:
    """Map a region: search, open, composite, predict, write Zarr.

    Clouds and their shadows are masked. A task of several frames gets composites of equal windows of the period; a task
    of one frame maps every date.
    """
    from xgfm.cube.open import open_hls
    from xgfm.infer.predict import predict as run
    from xgfm.store.path import check_zarr_name

    check_zarr_name(out)
    _require_place(bbox, tile, catalog)
    start = time.perf_counter()
    with _cluster(workers, scheduler):
        with busy(f"searching {catalog}"):
            cube = open_hls(
                bbox, datetime, catalog, tile=tile, max_cloud_cover=max_cloud_cover, crs=crs, resolution=resolution
            )
        typer.echo(f"{cube.sizes['time']} dates, {cube.sizes['y']} x {cube.sizes['x']} pixels; task {task}", err=True)
        _store(run(cube, task, device=device), out, overwrite=overwrite)
        typer.echo(f"{out}: written in {time.perf_counter() - start:.0f} s")
        if png is not None:
            _draw(out, png)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for images, map and pictures.")] = Path("demo-output"),
    seed: Annotated[int, typer.Option(help="Of the season; the task was trained on seeds from 1000 on.")] = 1,
    size: Annotated[int, typer.Option(help="Rows and columns, pixels of 30 m.")] = 512,
) -> None:
    """Simulate a season, map it and measure the map.

    Takes about a minute and no network. Writes the images, the map (map.zarr) and pictures (map.png, truth.png), and
    prints accuracy, times and memory.
    """
    from xgfm import demo as demonstration

    demonstration.main(out, seed=seed, size=size)
    typer.echo(f"\nlook at {out / 'map.png'} and {out / 'truth.png'}")


@app.command()
def tasks(name: Annotated[str | None, typer.Argument(help="Show all about this task.")] = None) -> None:
    """List what can be predicted, or show one task."""
    from xgfm.about import about_record, source_of
    from xgfm.models import handle
    from xgfm.models.registry import spec_of

    if name is not None:
        pairs(about_record(spec_of(name)))
        return
    rows = [
        (
            spec.name,
            str(spec.frames),
            _bands(spec.bands),
            f"{spec.pixel_size:g} m",
            str(len(spec.classes)) if spec.classes else f"number, {spec.units}",
            spec.licence,
            "yes" if handle.is_cached(spec) else "no",
            source_of(spec),
        )
        for spec in handle.tasks()
    ]
    table(("TASK", "FRAMES", "BANDS", "PIXEL", "CLASSES", "LICENCE", "CACHED", "SOURCE"), rows)
    typer.echo("\nWeights that are not cached are downloaded when they are first used. More: xgfm tasks NAME", err=True)


@app.command()
def info(
    path: Annotated[
        str,
        typer.Argument(
            help="Zarr store, GeoTIFF, file of items, task folder, weights file, or name of a task or model."
        ),
    ],
) -> None:
    """Say what a store, a GeoTIFF, a file of items, a task folder or a weights file is."""
    from xgfm.about import about

    with busy(f"looking at {path}"):
        said = about(path)
    pairs(said)


# ---- what commands share


def _require_place(bbox: Sequence[float] | None, tile: str | None, catalog: str) -> None:
    from xgfm.cube.catalogs import require_file

    require_file(catalog)
    if bbox is None and tile is None and not Path(catalog).exists():
        raise XgfmError("say where: give --bbox W S E N, --tile T15TVM, or --catalog with a file of items")


@contextmanager
def _cluster(workers: int, scheduler: str | None) -> Iterator[None]:
    """Compute on a running cluster, on a local one, or in this process."""
    if scheduler is not None and workers:
        raise XgfmError("--scheduler and --workers exclude each other: a running cluster has its own workers")
    if scheduler is None and not workers:
        yield
        return
    from distributed import Client, LocalCluster

    from xgfm.cluster import unprofiled

    if scheduler is not None:
        with Client(scheduler):
            yield
        return
    unprofiled()
    threads = max(1, (os.cpu_count() or 1) // workers)
    with (
        LocalCluster(n_workers=workers, threads_per_worker=threads, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster),
    ):
        yield


def _store(result: xr.Dataset, out: str, *, overwrite: bool) -> None:
    from xgfm.store.write import to_zarr

    to_zarr(result, out, overwrite=overwrite, progress=sys.stdout.isatty())


def _draw(store: str, png: Path) -> None:
    """Draw what is stored; the frames would have to be read again."""
    import xarray as xr

    from xgfm.figures import PANELS, plot

    result = xr.open_zarr(store, mask_and_scale=False, decode_coords="all")
    if result.sizes.get("time", 0) > PANELS:
        typer.echo(f"{png}: the first {PANELS} of {result.sizes['time']} dates", err=True)
        result = result.isel(time=slice(PANELS))
    with busy(f"drawing {png}"):
        plot(result).savefig(png, dpi=150)
    typer.echo(f"{png}: drawn")


def _bands(bands: Sequence[str]) -> str:
    from xgfm.models.spec import PRITHVI_BANDS

    return "HLS, all six" if tuple(bands) == PRITHVI_BANDS else " ".join(bands)
