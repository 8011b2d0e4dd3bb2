"""A geospatial foundation model as a verb of xarray.

``import xgfm`` registers the accessor ``.gfm`` on DataArray and Dataset. It loads neither torch nor rasterio: each
public name below is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from xgfm import accessor as accessor  # registers .gfm

__version__ = "0.1.0"

if TYPE_CHECKING:
    from xgfm import cluster as cluster
    from xgfm.climate.area import estimate_areas as estimate_areas
    from xgfm.climate.change import change as change
    from xgfm.climate.fractions import to_climate as to_climate
    from xgfm.climate.grids import target_grid as target_grid
    from xgfm.climate.sample import stratified_sample as stratified_sample
    from xgfm.climate.stack import stack_maps as stack_maps
    from xgfm.cube.catalogs import load_items as load_items
    from xgfm.cube.catalogs import save_items as save_items
    from xgfm.cube.catalogs import search as search
    from xgfm.cube.composite import composite as composite
    from xgfm.cube.mask import mask as mask
    from xgfm.cube.open import open_hls as open_hls
    from xgfm.cube.open import open_items as open_items
    from xgfm.cube.simulate import simulate_season as simulate_season
    from xgfm.describe.collection import to_stac as to_stac
    from xgfm.figures import plot as plot
    from xgfm.figures import plot_areas as plot_areas
    from xgfm.figures import plot_cube as plot_cube
    from xgfm.figures import plot_profiles as plot_profiles
    from xgfm.figures import swipe as swipe
    from xgfm.infer.check import check as check
    from xgfm.infer.embed import embed as embed
    from xgfm.infer.predict import predict as predict
    from xgfm.infer.reconstruct import reconstruct as reconstruct
    from xgfm.jobs.job import open_job as open_job
    from xgfm.jobs.spec import JobSpec as JobSpec
    from xgfm.models.folder import save_task as save_task
    from xgfm.models.handle import load_model as load_model
    from xgfm.models.handle import load_task as load_task
    from xgfm.models.handle import register_task as register_task
    from xgfm.models.handle import tasks as tasks
    from xgfm.models.spec import ClassInfo as ClassInfo
    from xgfm.models.spec import ModelSpec as ModelSpec
    from xgfm.models.spec import Statistics as Statistics
    from xgfm.models.spec import TaskSpec as TaskSpec
    from xgfm.store.netcdf import to_netcdf as to_netcdf
    from xgfm.store.vector import to_vector as to_vector
    from xgfm.store.write import to_cog as to_cog
    from xgfm.store.write import to_zarr as to_zarr
    from xgfm.train.chips.chips import open_chips as open_chips
    from xgfm.train.chips.chips import write_chips as write_chips
    from xgfm.train.chips.published import import_chips as import_chips
    from xgfm.train.fit import fit as fit
    from xgfm.train.labels.labels import labels as labels
    from xgfm.train.labels.legend import Legend as Legend
    from xgfm.train.pretrain import pretrain as pretrain
    from xgfm.train.probe import probe as probe
    from xgfm.train.result.artifact import push as push
    from xgfm.train.result.domain import fit_domain as fit_domain
    from xgfm.train.sampling.leakage import leakage as leakage
    from xgfm.train.sampling.plan import plan_chips as plan_chips
    from xgfm.train.settings import TrainSettings as TrainSettings
    from xgfm.train.study.experiment import experiment as experiment
    from xgfm.viewer import view as view

_PUBLIC = {
    "open_hls": "cube.open",
    "open_items": "cube.open",
    "search": "cube.catalogs",
    "save_items": "cube.catalogs",
    "load_items": "cube.catalogs",
    "mask": "cube.mask",
    "composite": "cube.composite",
    "check": "infer.check",
    "predict": "infer.predict",
    "embed": "infer.embed",
    "reconstruct": "infer.reconstruct",
    "load_task": "models.handle",
    "load_model": "models.handle",
    "register_task": "models.handle",
    "tasks": "models.handle",
    "save_task": "models.folder",
    "simulate_season": "cube.simulate",
    "TaskSpec": "models.spec",
    "ModelSpec": "models.spec",
    "Statistics": "models.spec",
    "ClassInfo": "models.spec",
    "open_job": "jobs.job",
    "JobSpec": "jobs.spec",
    "labels": "train.labels.labels",
    "Legend": "train.labels.legend",
    "plan_chips": "train.sampling.plan",
    "leakage": "train.sampling.leakage",
    "write_chips": "train.chips.chips",
    "open_chips": "train.chips.chips",
    "import_chips": "train.chips.published",
    "fit": "train.fit",
    "TrainSettings": "train.settings",
    "pretrain": "train.pretrain",
    "probe": "train.probe",
    "experiment": "train.study.experiment",
    "push": "train.result.artifact",
    "fit_domain": "train.result.domain",
    "to_climate": "climate.fractions",
    "target_grid": "climate.grids",
    "stack_maps": "climate.stack",
    "change": "climate.change",
    "estimate_areas": "climate.area",
    "stratified_sample": "climate.sample",
    "to_zarr": "store.write",
    "to_cog": "store.write",
    "to_netcdf": "store.netcdf",
    "to_vector": "store.vector",
    "to_stac": "describe.collection",
    "plot": "figures",
    "plot_cube": "figures",
    "plot_areas": "figures",
    "plot_profiles": "figures",
    "swipe": "figures",
    "view": "viewer",
}
_MODULES = ("cluster",)
"""Public modules whose functions are called by their module's name, as ``xgfm.cluster.open``."""

__all__ = ["__version__", *sorted([*_PUBLIC, *_MODULES])]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"xgfm.{name}")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'xgfm' has no attribute {name!r}")
    return getattr(import_module(f"xgfm.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
