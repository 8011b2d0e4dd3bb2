"""The demonstration: a simulated season, mapped and measured against its truth, from STAC items to a picture.

In: a folder and a seed. Out: in that folder the images, the map as Zarr, and pictures; and a `Report` with accuracy,
times and memory. It computes on a local Dask cluster, through the functions that a user would call.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xgfm import cf
from xgfm.cube.catalogs import load_items
from xgfm.cube.composite import composite
from xgfm.cube.open import open_items
from xgfm.cube.simulate import Season, simulate_season
from xgfm.figures import plot
from xgfm.grid import with_grid
from xgfm.store.path import written_into
from xgfm.store.write import to_zarr

if TYPE_CHECKING:
    from distributed import Client

    from xgfm.models.handle import ModelHandle
    from xgfm.models.spec import TaskSpec

TASK = "crop-demo"
FRAMES = 3
CAVEAT = "Ground and training data come from the same simulator: this is the accuracy of a demonstration."


@dataclass(frozen=True, slots=True)
class Score:
    """How a map agrees with the truth, over the pixels that have both."""

    confusion: np.ndarray[Any, np.dtype[np.int64]]
    """Pixels, (true class, mapped class)."""
    unmapped: int
    """Pixels that the map leaves without data."""
    names: tuple[str, ...]

    @property
    def accuracy(self) -> float:
        """Share of the pixels that have their true class."""
        return float(self.confusion.trace() / max(self.confusion.sum(), 1))

    @property
    def iou(self) -> dict[str, float]:
        """Intersection over union of each class; NaN for a class that is in neither."""
        both = self.confusion.diagonal()
        either = self.confusion.sum(0) + self.confusion.sum(1) - both
        shares = np.divide(both, either, out=np.full(len(both), np.nan), where=either > 0)
        return dict(zip(self.names, shares.tolist(), strict=True))


@dataclass(slots=True)
class Report:
    """What a demonstration did."""

    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)
    """Of each stage, in their order."""
    score: Score | None = None
    memory: dict[str, float] = field(default_factory=dict)
    """Peak memory in bytes of this process and of the workers together."""
    again: str = ""
    """Command line that maps the same season once more."""

    @contextmanager
    def stage(self, name: str, *, busy: bool = True) -> Iterator[None]:
        """Announce a stage and take its time; a terminal shows that it is busy, unless it has a bar of its own."""
        from rich.console import Console

        print(f"{name} ...", flush=True)
        start = time.perf_counter()
        with Console(stderr=True).status("") if busy else nullcontext():
            yield
        self.seconds[name] = time.perf_counter() - start

    def __str__(self) -> str:
        again = ["", "the same map by the command line:", f"  {self.again}"] if self.again else []
        return "\n".join([*_score_lines(self.score), *_cost_lines(self.seconds, self.memory), *again])


def main(folder: str | Path = "demo-output", *, seed: int = 1, size: int = 512, task: str = TASK) -> Report:
    """Simulate a season, map it, and measure the map.

    Parameters
    ----------
    folder : str or path
        Made where it does not exist; an earlier demonstration in it is replaced.
    seed : int
        Of the season. The bundled task was trained on seeds from 1000 on.
    size : int
        Rows and columns of the season, pixels of 30 m.
    task : str
        Name or path of a task of three frames and the season's classes.

    Returns
    -------
    Report
        Printed as well.

    Raises
    ------
    WriteError
        Where the folder cannot be made or written to.
    """
    from xgfm.models.handle import load_task

    report = Report(Path(folder))
    with written_into(report.folder, "folder"):
        _demonstrate(report, load_task(task), seed=seed, size=size, task=task)
    print(report)
    return report


def _demonstrate(report: Report, handle: ModelHandle, *, seed: int, size: int, task: str) -> None:
    """Go through the stages, and fill the report."""
    # The cluster comes first: a process inherits the peak memory of the one that starts it.
    with _cluster() as client:
        with report.stage("simulate a season"):
            season = simulate_season(report.folder / "season", seed=seed, shape=(size, size))
        with report.stage("open items, composite, predict (lazy)"):
            frames, result = map_season(season, handle)
        with report.stage("read, mask, composite, predict, write Zarr", busy=False):
            store = report.folder / "map.zarr"
            to_zarr(result, store, overwrite=True, progress=sys.stdout.isatty())
        with report.stage("draw"):
            draw(report.folder, frames, truth_of(season, handle.spec))
        report.score = measure(store, season, handle.spec)
        report.memory = {"this process": _peak_memory(), "workers": sum(client.run(_peak_memory).values())}
    report.again = command(season, task, report.folder / "again.zarr")


def command(season: Season, task: str, out: Path) -> str:
    """Return the command line that maps a season: its items do not say their grid, so the box does."""
    box = [f"{degrees:.6f}" for degrees in season.bbox]
    words = ["xgfm", "predict", "--task", task, "--catalog", str(season.items), "--bbox", *box, "--out", str(out)]
    return shlex.join(words)


@contextmanager
def _cluster() -> Iterator[Client]:
    """One process with a thread for each core: weights are in memory once, and torch uses all threads."""
    from distributed import Client, LocalCluster

    from xgfm.cluster import unprofiled

    unprofiled()
    threads = os.cpu_count() or 1
    with (
        LocalCluster(n_workers=1, threads_per_worker=threads, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        yield client


def map_season(season: Season, handle: ModelHandle) -> tuple[xr.DataArray, xr.Dataset]:
    """Return the frames of a season and the map that is made of them, both lazy."""
    from xgfm.infer.predict import predict

    cube = open_items(load_items(season.items), geobox=season.geobox, chunks=256)
    frames = composite(cube, FRAMES)
    return frames, predict(frames, handle)


def truth_of(season: Season, spec: TaskSpec) -> xr.Dataset:
    """Return the label raster of a season as if it were a result."""
    import rasterio

    with rasterio.open(season.truth) as file:
        labels = file.read(1)
    named = dataclasses.replace(spec, title="Truth of the simulation")
    truth = with_grid(xr.Dataset({cf.variable_name(spec): (("y", "x"), labels)}), season.geobox)
    return cf.like(truth, truth, named)


def draw(folder: Path, frames: xr.DataArray, truth: xr.Dataset) -> None:
    """Draw the stored map beside its frames, and the truth."""
    stored = xr.open_zarr(folder / "map.zarr", mask_and_scale=False, decode_coords="all")
    plot(stored, frames).savefig(folder / "map.png", dpi=130)
    plot(truth).savefig(folder / "truth.png", dpi=130)


def measure(store: Path, season: Season, spec: TaskSpec) -> Score:
    """Compare a stored map with the truth of its season."""
    name = cf.variable_name(spec)
    mapped = xr.open_zarr(store, mask_and_scale=False)[name].values
    return score(mapped, truth_of(season, spec)[name].values, tuple(c.name for c in spec.classes))


def score(mapped: np.ndarray[Any, Any], truth: np.ndarray[Any, Any], names: tuple[str, ...]) -> Score:
    """Count how often each class is mapped as each; pixels without data in either are left out.

    Parameters
    ----------
    mapped, truth : ndarray
        Class numbers, 255 without data.
    names : tuple of str
        Of the classes, in order.
    """
    both = (mapped != cf.NODATA) & (truth != cf.NODATA)
    pairs = truth[both].astype("int64") * len(names) + mapped[both]
    confusion = np.bincount(pairs, minlength=len(names) ** 2).reshape(len(names), len(names))
    return Score(confusion, int((mapped == cf.NODATA).sum()), names)


def _peak_memory() -> float:
    """Most bytes that this process ever held."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _score_lines(score: Score | None) -> list[str]:
    if score is None:
        return []
    pixels = int(score.confusion.sum())
    lines = [
        "",
        f"accuracy {score.accuracy:.1%} of {pixels} pixels; {score.unmapped} pixels have no data",
        CAVEAT,
        "",
        f"{'class':24}{'true pixels':>12}  IoU",
    ]
    counts = score.confusion.sum(1)
    for (name, iou), count in zip(score.iou.items(), counts, strict=True):
        lines.append(f"{name:24}{count:12d}  {'-' if np.isnan(iou) else f'{iou:.3f}'}")
    return lines


def _cost_lines(seconds: dict[str, float], memory: dict[str, float]) -> list[str]:
    lines = ["", *(f"{name:42}{value:7.1f} s" for name, value in seconds.items())]
    return [*lines, "", *(f"peak memory of {name:27}{value / 2**20:7.0f} MiB" for name, value in memory.items())]
