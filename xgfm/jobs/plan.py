"""From a `JobSpec` to a `Plan`, once; and back from what was saved.

In: a spec, and one search or given items. Out: a `Plan`, saved beside the store, so that every worker and every later
run sees the same inputs. What cannot be done is refused here; no pixel is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

from xgfm.errors import JobError, SearchError, TaskError
from xgfm.jobs import items as stored
from xgfm.jobs import region as regions
from xgfm.jobs.items import LeftOut, Tile
from xgfm.jobs.lattice import Area, Block, map_area, tile_area
from xgfm.jobs.planned import STATES, Plan, Task, frames_of
from xgfm.jobs.search import Wanted
from xgfm.jobs.spec import GridSpec, JobSpec
from xgfm.models.spec import TaskSpec, task_from_json, to_json
from xgfm.store.objects import Objects

if TYPE_CHECKING:
    from xgfm.models.handle import ModelHandle

__all__ = ["STATES", "Area", "Block", "Plan", "Task", "Tile", "load_plan", "make_plan"]

PLAN = "plan.json"
SPEC = "job.yaml"
VERSION = 1


def make_plan(
    spec: JobSpec, *, items: Iterable[Any] | None = None, objects: Objects, handle: ModelHandle | None = None
) -> Plan:
    """Plan a job and save the plan.

    Parameters
    ----------
    spec
        What is to be done.
    items
        STAC items instead of a search: an iterable, which is gone through once.
    objects
        Where the job's records go, ``spec.store + ".job/"``. An earlier plan there is replaced.
    handle
        The task, where it is at hand.

    Returns
    -------
    Plan

    Raises
    ------
    SearchError
        No items where the region is.
    GridError, TaskError, JobError
        What cannot be done, before any read.
    """
    from xgfm.jobs.output import check_grid
    from xgfm.models.handle import load_task

    handle = load_task(spec.task) if handle is None else handle
    task = _checked_task(spec, handle)
    region = regions.read(spec.region)
    area = _area(spec, region)
    wanted = Wanted(spec, region, area, task.spec.window)
    collection = stored.Collection(frames_of(spec, task.spec), wanted.needs, task.spec.bands)
    collection.add(wanted.items() if items is None else items)
    inventory = dict(collection.save(objects))
    if not inventory:
        left = f"; {collection.left_out_count} items cannot be read" if collection.left_out_count else ""
        raise SearchError(
            f"no HLS granule lies in the region ({', '.join(f'{v:g}' for v in region.bounds)}) within period "
            f"{spec.period!r}{left}; change region, period, catalog or max_cloud_cover of the job"
        )
    areas = (area,) if area is not None else tuple(tile_area(tile, spec.block) for tile in inventory)
    plan = Plan(
        spec=spec,
        objects=objects,
        task=task,
        areas=areas,
        inventory=inventory,
        region=region,
        sources=collection.attrs,
        left_out=tuple(collection.left_out),
        left_out_count=collection.left_out_count,
    )
    check_grid(plan, areas[0], handle)
    objects.put(SPEC, spec.to_yaml().encode())
    objects.put(PLAN, _text(plan).encode())
    return plan


def load_plan(objects: Objects) -> Plan:
    """Read a saved plan.

    Raises
    ------
    JobError
        Where there is none, or one of another version of the format.
    """
    try:
        values = json.loads(objects.get(PLAN))
        spec = JobSpec.from_yaml(objects.get(SPEC).decode(), name=f"{objects.url}/{SPEC}")
    except FileNotFoundError as error:
        raise JobError(f"there is no planned job at {objects.url}; plan it first: xgfm run job.yaml") from error
    if values.get("version") != VERSION:
        raise JobError(
            f"the plan at {objects.url} is of version {values.get('version')}, this xgfm reads {VERSION}; plan again"
        )
    return Plan(
        spec=spec,
        objects=objects,
        task=Task(task_from_json(values["task"]["spec"]), values["task"]["digest"]),
        areas=tuple(_area_from(each, spec.block) for each in values["areas"]),
        inventory={name: _tile_from(tile) for name, tile in values["tiles"].items()},
        region=shapely.from_geojson(json.dumps(values["region"])),
        sources=values["sources"],
        left_out=tuple(LeftOut(**each) for each in values["left_out"]),
        left_out_count=values["left_out_count"],
    )


def _area(spec: JobSpec, region: shapely.Geometry) -> Area | None:
    """The one grid of a job; None where each tile is its own."""
    from odc.geo.crs import CRS

    if not isinstance(spec.grid, GridSpec):
        return None
    crs = CRS(spec.grid.crs)
    return map_area(regions.project(region, crs), crs, spec.grid.resolution, spec.block)


def _checked_task(spec: JobSpec, handle: ModelHandle) -> Task:
    """Refuse what the task cannot do, or what would differ from block to block."""
    task = handle.spec
    if not isinstance(task, TaskSpec):
        raise TaskError(f"{spec.task!r} is no task but a model; a job maps classes or values")
    if isinstance(spec.grid, GridSpec) and (spec.composite or task.composite) == "clearest":
        raise JobError(
            "composite: clearest chooses one date for a whole cube, and the blocks of a grid over several tiles have "
            "different ones: seams would show; set composite: median or medoid, or grid: native"
        )
    days = min((season.stop - season.start).days for season in spec.seasons)
    if days < task.frames:
        raise JobError(f"{spec.task!r} takes {task.frames} dates, and a period has {days} days; make period longer")
    return Task(task, handle.digest)


def _text(plan: Plan) -> str:
    """The plan as JSON, the same for the same inputs."""
    values = {
        "version": VERSION,
        "task": {"digest": plan.task.digest, "spec": to_json(plan.task.spec)},
        "region": json.loads(shapely.to_geojson(plan.region)),
        "areas": [
            {
                "name": area.name,
                "group": area.group,
                "crs": area.geobox.crs.to_wkt() if area.geobox.crs is not None else None,
                "transform": list(area.geobox.transform)[:6],
                "shape": list(area.geobox.shape),
            }
            for area in plan.areas
        ],
        "tiles": {name: asdict(tile) for name, tile in plan.inventory.items()},
        "sources": dict(plan.sources),
        "left_out": [{"item": each.item, "reason": each.reason} for each in plan.left_out],
        "left_out_count": plan.left_out_count,
    }
    return json.dumps(values, indent=1) + "\n"


def _tile_from(values: Mapping[str, Any]) -> Tile:
    top, left, rows, columns = values["extent"]
    return Tile(values["items"], tuple(values["dates"]), values["bytes"], (top, left, rows, columns))


def _area_from(values: Mapping[str, Any], block: int) -> Area:
    if values["group"]:
        return tile_area(values["name"], block)
    return Area(values["name"], "", GeoBox(values["shape"], Affine(*values["transform"]), values["crs"]), block)
