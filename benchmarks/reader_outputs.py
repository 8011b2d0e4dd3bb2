"""What the matrix of readers reads: one of each output, small, of a simulated season, with the truth of its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

import xgfm
from xgfm.climate.fractions import to_climate
from xgfm.cube.catalogs import load_items
from xgfm.cube.composite import composite
from xgfm.cube.open import open_items
from xgfm.cube.simulate import Season, simulate_season
from xgfm.grid import geobox_of
from xgfm.jobs.job import open_job
from xgfm.jobs.spec import JobSpec
from xgfm.models.build import build_model
from xgfm.models.folder import save_model
from xgfm.models.published import MODELS
from xgfm.store.netcdf import to_netcdf
from xgfm.store.overviews import coarser

SIZE = 128
"""Rows and columns of the season."""
CELL = 0.01
GRID = f"{CELL}deg"
LAYERS = ("class", "probability", "confidence", "entropy")


@dataclass(frozen=True)
class Output:
    """One file or store, and what readers are to find in it."""

    name: str
    path: Path
    kind: str
    """``zarr``, ``tif`` or ``nc``."""
    variable: str
    box: GeoBox
    values: np.ndarray
    """Of the variable, ``(..., y, x)``."""
    nodata: float
    group: str = ""
    dims: tuple[str, str] = ("y", "x")


def make(folder: Path) -> list[Output]:
    """Write one of each output."""
    season = simulate_season(folder / "season", seed=7, shape=(SIZE, SIZE), granules=8)
    frames = (
        composite(open_items(load_items(season.items), geobox=season.geobox, chunks=64), 3)
        .compute()
        .chunk({"y": 64, "x": 64})
    )
    result = xgfm.predict(frames, "crop-demo", return_=list(LAYERS))
    known = result.compute()
    return [
        *_maps(folder, result, known),
        *_features(folder, frames),
        *_job(folder, season),
        *_climate(folder, known),
    ]


def _grid_values(known: xr.Dataset, variable: str) -> dict[str, Any]:
    nodata = 255 if known[variable].dtype == "uint8" else np.nan
    return {"variable": variable, "box": geobox_of(known), "values": known[variable].values, "nodata": nodata}


def _maps(folder: Path, result: xr.Dataset, known: xr.Dataset) -> list[Output]:
    sharded = xgfm.to_zarr(result, folder / "map.zarr", chunk=32, shard=64)
    plain = xgfm.to_zarr(result, folder / "plain.zarr", chunk=64, shard=64)
    cog = xgfm.to_cog(result, folder / "map.tif")
    netcdf = to_netcdf(result, folder / "map.nc")
    classes, probability = (_grid_values(known, name) for name in ("crop_demo", "probability"))
    return [
        Output("class map", Path(sharded), "zarr", **classes),
        Output("class map, chunk = shard", Path(plain), "zarr", **classes),
        Output("probability", Path(sharded), "zarr", **probability),
        Output("GeoTIFF", cog, "tif", **classes),
        Output("netCDF, class map", netcdf, "nc", **classes),
        Output("netCDF, probability", netcdf, "nc", **probability),
    ]


def _features(folder: Path, frames: xr.DataArray) -> list[Output]:
    made = []
    for dtype in ("float16", "int8"):
        features = xgfm.embed(frames, "crop-demo", dtype=dtype)
        store = xgfm.to_zarr(features, folder / f"features-{dtype}.zarr")
        known = features.compute()
        nodata = -128 if dtype == "int8" else np.nan
        made.append(
            Output(f"embedding, {dtype}", Path(store), "zarr", "embedding", geobox_of(known), known.values, nodata)
        )
    record = next(m for m in MODELS.values() if m.name == "prithvi-eo-2.0-tiny-tl")
    model = save_model(build_model(record), record, folder / "model")
    picture = xgfm.reconstruct(frames, str(model))
    store = xgfm.to_zarr(picture, folder / "reconstruction.zarr")
    return [*made, Output("reconstruction", Path(store), "zarr", **_grid_values(picture.compute(), "hidden"))]


def _job(folder: Path, season: Season) -> list[Output]:
    extent = season.geobox.geographic_extent.boundingbox.bbox
    west, south, east, north = extent
    inside = [west + 0.003, south + 0.003, east - 0.003, north - 0.003]
    store = folder / "job.zarr"
    spec = JobSpec(
        region=inside,
        period="2024-04-01/2024-10-31",
        task="crop-demo",
        store=str(store),
        catalog=str(season.items),
        grid={"crs": "EPSG:5070", "resolution": 30},
        block=128,
        chunk=32,
        overviews=True,
    )
    job = open_job(spec)
    job.plan()
    outcome = job.run(progress=False)
    if not outcome.complete:
        raise RuntimeError(str(outcome))
    known = xr.open_zarr(store, mask_and_scale=False, decode_coords="all").compute()
    whole = _grid_values(known, "crop_demo")
    half = coarser(whole["values"], 2, 255)
    zoomed = GeoBox(half.shape, whole["box"].affine * Affine.scale(2), whole["box"].crs)
    return [
        Output("job's store", store, "zarr", **whole),
        Output("overview level", store, "zarr", "crop_demo", zoomed, half, 255, group="overviews/2"),
    ]


def _climate(folder: Path, known: xr.Dataset) -> list[Output]:
    """Fractions in both modes; the truth is what was computed, on the grid that was asked for."""
    made = []
    for mode, variable in (("cf", "area_fraction"), ("cmip", "cropFrac")):
        options: Any = {"area_types": {"Corn": "crops", "Soybeans": "crops"}} if mode == "cmip" else {}
        fractions = to_climate(known, GRID, mode=mode, **options).compute()
        netcdf = to_netcdf(fractions, folder / f"{mode}.nc")
        south, west = float(fractions.lat[0]) - CELL / 2, float(fractions.lon[0]) - CELL / 2
        shape = (fractions.sizes["lat"], fractions.sizes["lon"])
        box = GeoBox(shape, Affine(CELL, 0, west, 0, CELL, south), "EPSG:4326")
        nodata = 1e20 if mode == "cmip" else np.nan
        kind: Any = {"variable": variable, "box": box, "values": fractions[variable].values, "nodata": nodata}
        made.append(Output(f"fractions, {mode}", netcdf, "nc", **kind, dims=("lat", "lon")))
    return made
