"""Plans: which blocks have work, saved and loaded, the same for the same inputs."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import catalogue
import numpy as np
import pytest
import shapely
import toys
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odc.geo.crs import CRS
from rasterio.warp import transform

from xgfm.cube.catalogs import save_items
from xgfm.errors import GridError, JobError, SearchError, TaskError
from xgfm.grid import tile_geobox
from xgfm.jobs import region as regions
from xgfm.jobs.lattice import map_area
from xgfm.jobs.plan import STATES, Plan, load_plan, make_plan
from xgfm.jobs.search import Wanted
from xgfm.jobs.spec import JobSpec
from xgfm.models.handle import register_task
from xgfm.store.objects import Objects

UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""What else the machine does is not ours."""

TILES = ("14TPQ", "14TQQ", "14TPR", "14TQR", "15TTK", "15TUK", "15TTL", "15TUL", "15TVL", "15TVK")
BOX = [-96.6, 44.6, -95.4, 45.2]
"""Over the edge of zones 14 and 15, and over edges of tiles."""
ALBERS = {"crs": "EPSG:5070", "resolution": 30}
DEGREES = {"crs": "EPSG:4326", "resolution": 0.0003}
HANDLE = toys.Handle(toys.task_spec())


def make(folder: Path, items: Any = None, handle: Any = HANDLE, **changes: Any) -> Plan:
    spec = {"region": BOX, "period": "2024-04-01/2024-09-30", "task": "toy-task", "store": str(folder / "out.zarr"),
            "grid": ALBERS, "block": 512, "chunk": 256}  # fmt: skip
    found = catalogue.season(TILES) if items is None else items
    return make_plan(JobSpec(**{**spec, **changes}), items=found, objects=Objects(folder / "job"), handle=handle)


def saved(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted((folder / "job").rglob("*")) if p.is_file()}


@pytest.mark.parametrize("grid", [ALBERS, DEGREES, "native"])
def test_what_is_loaded_is_what_was_planned(tmp_path: Path, grid: Any) -> None:
    plan = make(tmp_path, grid=grid)
    loaded = load_plan(Objects(tmp_path / "job"))
    assert loaded == plan
    assert pickle.loads(pickle.dumps(loaded)) == plan
    assert loaded.states() == plan.states()
    blocks = list(loaded.blocks())
    assert blocks == list(plan.blocks())
    assert len(blocks) == plan.states()["work"] > 0
    assert [loaded.block(block.id) for block in blocks] == blocks
    assert {area.geobox for area in loaded.areas} == {area.geobox for area in plan.areas}


@pytest.mark.parametrize("grid", [ALBERS, "native"])
def test_the_same_inputs_make_the_same_bytes(tmp_path: Path, grid: Any) -> None:
    items = catalogue.season(TILES)
    make(tmp_path / "a", items, grid=grid, store="out.zarr")
    random.Random(0).shuffle(items)
    make(tmp_path / "b", items, grid=grid, store="out.zarr")
    assert saved(tmp_path / "a") == saved(tmp_path / "b")
    assert set(saved(tmp_path / "a")) >= {"job/job.yaml", "job/plan.json", "job/items/15TUL.json.gz"}


def test_nothing_is_stored_for_a_block(tmp_path: Path) -> None:
    small, large = (make(tmp_path / str(side), block=side, chunk=side // 2) for side in (1024, 128))
    assert sum(large.states().values()) > 30 * sum(small.states().values())
    sizes = [len(saved(tmp_path / str(side))["job/plan.json"]) for side in (1024, 128)]
    assert abs(sizes[0] - sizes[1]) < 100


def holding(plan: Plan, block: Any) -> set[str]:
    """Tiles that hold a pixel's centre of a block, each transformed by GDAL."""
    grid = plan.geobox(block)
    a, _, left, _, e, top = tuple(plan.geobox(block).transform)[:6]
    y = top + e * (np.arange(0, grid.shape[0], 4) + 0.5)
    x = left + a * (np.arange(0, grid.shape[1], 4) + 0.5)
    ys, xs = (each.ravel() for each in np.meshgrid(y, x, indexing="ij"))
    found = set()
    for zone in ("14", "15"):
        ours = transform(str(grid.crs), f"EPSG:326{zone}", xs, ys)
        for tile in (t for t in plan.inventory if t.startswith(zone)):
            w, s, east, n = tile_geobox(tile).boundingbox.bbox
            if ((np.array(ours[0]) > w) & (np.array(ours[0]) < east) & (np.array(ours[1]) > s)
                    & (np.array(ours[1]) < n)).any():  # fmt: skip
                found.add(tile)
    return found


@settings(UNTIMED, max_examples=15)
@given(st.lists(st.sampled_from(TILES), min_size=1, unique=True), st.sampled_from([0, 1]), st.integers(0, 99))
def test_every_pixel_finds_its_items(tmp_path_factory: Any, tiles: list[str], grid: int, seed: int) -> None:
    try:
        plan = make(tmp_path_factory.mktemp("job"), catalogue.season(tiles), grid=(ALBERS, DEGREES)[grid])
    except SearchError:  # none of these tiles touches the region
        return
    every = [plan.block(f"map-r{r:04d}-c{c:04d}") for r, c in np.ndindex(*plan.areas[0].shape)]
    for block in random.Random(seed).sample(every, min(6, len(every))):
        there = holding(plan, block)
        assert there <= set(plan.tiles_of(block, 0)) <= set(plan.tiles_of(block))
        assert set(plan.tiles_of(block)) <= set(plan.tiles_of(block, plan.task.spec.window))
        state = STATES[plan.codes(plan.areas[0])[block.row, block.column]]
        if there and state != "outside":
            assert state == "work"
        ids = [item["id"] for item in plan.items_of(block)]
        assert len(ids) == len(set(ids)) == 3 * len(plan.tiles_of(block))


def test_blocks_are_those_of_the_region(tmp_path: Path) -> None:
    hole = [[-96.2, 44.75], [-96.2, 45.05], [-95.8, 45.05], [-95.8, 44.75], [-96.2, 44.75]]
    ring = [[BOX[0], BOX[1]], [BOX[2], BOX[1]], [BOX[2], BOX[3]], [BOX[0], BOX[3]], [BOX[0], BOX[1]]]
    whole = make(tmp_path / "a", block=128, chunk=64)
    holed = make(tmp_path / "b", block=128, chunk=64, region={"type": "Polygon", "coordinates": [ring, hole]})
    assert whole.areas[0].geobox == holed.areas[0].geobox
    gone = {b.id for b in whole.blocks()} - {b.id for b in holed.blocks()}
    assert gone
    for block in map(holed.block, gone):
        assert STATES[holed.codes(holed.areas[0])[block.row, block.column]] == "outside"
        extent = holed.geobox(block).geographic_extent.geom
        assert shapely.Polygon(hole).buffer(1e-3).contains(extent)


def test_a_region_from_a_file_is_kept_with_the_plan(tmp_path: Path) -> None:
    path = tmp_path / "county.geojson"
    path.write_text(json.dumps(json.loads(shapely.to_geojson(shapely.box(*BOX).buffer(-0.1)))))
    plan = make(tmp_path, region=str(path))
    path.unlink()
    assert load_plan(Objects(tmp_path / "job")).states() == plan.states()


def test_blocks_without_items_and_with_too_few_dates_are_known(tmp_path: Path) -> None:
    late = catalogue.season(["15TTL"], ["2024-08-01", "2024-09-01"])
    plan = make(tmp_path, [*catalogue.season(["14TQQ"]), *late], block=128, chunk=64)
    states = plan.states()
    assert all(states[name] for name in ("work", "no items", "too few dates"))
    assert sum(states.values()) == plan.areas[0].shape[0] * plan.areas[0].shape[1]
    for block in plan.blocks("too few dates"):
        assert plan.tiles_of(block, 0) == ("15TTL",)
        assert plan.seasons_of(block) == ()
    for block in plan.blocks("no items"):
        assert plan.tiles_of(block, 0) == ()
    assert all(plan.seasons_of(block) == (0,) for block in plan.blocks())


def test_frames_are_parts_of_the_period_whatever_the_dates(tmp_path: Path) -> None:
    plan = make(tmp_path / "a")
    assert [w.bounds for w in plan.windows] == [
        ["2024-04-01", "2024-05-31"], ["2024-06-01", "2024-07-31"], ["2024-08-01", "2024-09-30"],
    ]  # fmt: skip
    other = make(tmp_path / "b", catalogue.season(TILES, ["2024-05-31", "2024-06-01", "2024-09-30"]))
    assert other.windows == plan.windows
    assert other.states()["work"] == plan.states()["work"]


def test_periods_that_some_blocks_do_not_have(tmp_path: Path) -> None:
    both = catalogue.season(["14TQQ"], ["2023-04-10", "2023-06-20", "2023-09-01"])
    items = [*both, *catalogue.season(TILES)]
    seasons = ["2023-04/2023-09", "2024-04/2024-09"]
    plan = make(tmp_path, items, period="2023/2024", periods=seasons, block=128, chunk=64)
    assert len(plan.windows) == 6
    found = {plan.seasons_of(block) for block in plan.blocks()}
    assert found == {(0, 1), (1,)}
    counts = plan.seasons(plan.areas[0])
    assert all(counts[b.row, b.column] == len(plan.seasons_of(b)) for b in plan.blocks())


def test_native_areas_are_tiles_with_their_own_items(tmp_path: Path) -> None:
    plan = make(tmp_path, grid="native", region=[-96.6, 44.6, -96.3, 44.8])
    assert {area.name for area in plan.areas} == set(plan.inventory) < set(TILES)
    for area in plan.areas:
        assert area.geobox == tile_geobox(area.name)
        assert area.group == area.name
        touched = shapely.box(-96.6, 44.6, -96.3, 44.8).intersects(area.geobox.geographic_extent.geom)
        assert touched
    for block in plan.blocks():
        assert plan.tiles_of(block) == (block.area,)
        assert all(f"T{block.area}" in item["id"] for item in plan.items_of(block))


def test_a_block_is_the_same_in_two_jobs(tmp_path: Path) -> None:
    one, other = make(tmp_path / "a"), make(tmp_path / "b", region=[-96.3, 44.7, -95.0, 45.5])
    grids = [{plan.geobox(b): {i["id"] for i in plan.items_of(b)} for b in plan.blocks()} for plan in (one, other)]
    shared = set(grids[0]) & set(grids[1])
    assert len(shared) > 4
    assert all(grids[0][grid] == grids[1][grid] for grid in shared)


def test_a_search_looks_where_blocks_reach(tmp_path: Path) -> None:
    items = catalogue.season(TILES)
    save_items(items, tmp_path / "items.json")
    found = make(tmp_path / "found", catalog=str(tmp_path / "items.json"))
    spec = found.spec
    plan = make_plan(spec, objects=Objects(tmp_path / "searched"), handle=HANDLE)
    assert plan.inventory == found.inventory
    with pytest.raises(SearchError, match=r"no HLS granule lies in the region.*2019"):
        make_plan(JobSpec(**{**spec.model_dump(), "period": "2019"}), objects=Objects(tmp_path / "none"), handle=HANDLE)


@pytest.mark.parametrize(("west", "east"), [(179.2, 179.95), (-179.95, -179.2)])
@pytest.mark.parametrize("grid", [{"crs": "EPSG:3832", "resolution": 30}, "native"])
def test_blocks_beyond_the_antimeridian_are_searched_for(tmp_path: Path, west: float, east: float, grid: Any) -> None:
    spec = JobSpec(region=[west, -17.5, east, -16.5], period="2024", task="toy-task", store="out.zarr", grid=grid,
                   block=2048)  # fmt: skip
    region = regions.read(spec.region)
    crs = None if grid == "native" else CRS(grid["crs"])
    area = crs and map_area(regions.project(region, crs), crs, 30, 2048)
    wanted = Wanted(spec, region, area, 224)
    boxes = wanted.boxes()
    assert len(boxes) == 2
    assert {box[0] for box in boxes} >= {-180.0}
    assert {box[2] for box in boxes} >= {180.0}
    assert all(box[2] - box[0] < 10 for box in boxes)
    ours, theirs = ("60KYF", "01KBB") if west > 0 else ("01KBB", "60KYF")
    assert wanted.needs(ours)
    assert wanted.needs("60KZF")  # lies on both sides
    assert wanted.needs(theirs) == (grid != "native")  # blocks of a grid reach over there
    assert not wanted.needs("15TVM")


def test_a_tile_that_only_the_halo_reaches_is_needed(tmp_path: Path) -> None:
    edge = tile_geobox("15TVL").transform.c
    block = 64 * 30
    column = int(edge // block) - 1  # of the last blocks that end before the tile begins
    parts = []
    for left in (column * block + 300, 560_000):  # the second lies past the tile: what is between is in the area
        box = shapely.box(left, 5_050_000, left + 600, 5_050_600)
        points = shapely.get_coordinates(box)
        parts.append(shapely.Polygon(np.column_stack(transform("EPSG:32615", "EPSG:4326", *points.T))))
    region = json.loads(shapely.to_geojson(shapely.MultiPolygon(parts)))
    assert 0 < edge - (column + 1) * block < 224 * 30
    grid = {"crs": "EPSG:32615", "resolution": 30}
    for window, needed in ((16, False), (224, True)):
        plan = make(
            tmp_path / str(window), region=region, grid=grid, block=64, chunk=32,
            handle=toys.Handle(toys.task_spec(window=window)),
        )  # fmt: skip
        assert ("15TVL" in plan.tiles) == needed
        assert any("15TVL" in plan.tiles_of(each) for each in plan.blocks()) == needed
        assert not any("15TVL" in plan.tiles_of(each, 0) for each in plan.blocks())


def test_items_that_cannot_be_read_are_told_of(tmp_path: Path) -> None:
    items = catalogue.season(TILES)
    del items[0]["assets"]["B04"]
    plan = make(tmp_path, items)
    assert plan.left_out_count == 1
    assert load_plan(Objects(tmp_path / "job")).left_out[0].item == items[0]["id"]
    with pytest.raises(SearchError, match="1 items cannot be read"):
        make(tmp_path / "b", items[:1])


def test_what_cannot_be_done_is_refused_before_any_read(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"clearest.*seams would show.*median or medoid, or grid: native"):
        make(tmp_path, composite="clearest")
    assert make(tmp_path, composite="clearest", grid="native").composite == "clearest"
    with pytest.raises(JobError, match="takes 3 dates, and a period has 2 days"):
        make(tmp_path, period="2024-04-01/2024-04-02")
    with pytest.raises(GridError, match=r"pixel"):
        make(tmp_path, grid={"crs": "EPSG:5070", "resolution": 300})
    with pytest.raises(TaskError, match="halo=8"):
        make(tmp_path, options={"halo": 8})
    with pytest.raises(JobError, match=r"no block.*map-r0003-c0012"):
        make(tmp_path).block("map")
    with pytest.raises(JobError, match=r"no area 'mop'; it has \['map'\]"):
        make(tmp_path).block("mop-r0000-c0000")


def test_plans_that_are_not_there_or_of_another_version(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no planned job at"):
        load_plan(Objects(tmp_path / "nothing"))
    make(tmp_path)
    path = tmp_path / "job" / "plan.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 0'))
    with pytest.raises(JobError, match="version 0, this xgfm reads 1; plan again"):
        load_plan(Objects(tmp_path / "job"))


def test_a_task_with_other_weights_is_refused(tmp_path: Path) -> None:
    register_task(toys.task_spec(name="toy-plan"), build=lambda spec: toys.Positional())
    plan = make(tmp_path, task="toy-plan", handle=None)
    assert load_plan(Objects(tmp_path / "job")).load_task().digest == plan.task.digest
    register_task(toys.task_spec(name="toy-plan"), build=lambda spec: _Weighted())
    with pytest.raises(TaskError, match="planned with"):
        load_plan(Objects(tmp_path / "job")).load_task()


def test_a_task_with_another_record_is_refused(tmp_path: Path) -> None:
    register_task(toys.task_spec(name="toy-plan"), build=lambda spec: toys.Positional())
    make(tmp_path, task="toy-plan", handle=None)
    register_task(toys.task_spec(name="toy-plan", temperature=2.0), build=lambda spec: toys.Positional())
    with pytest.raises(TaskError, match="record of task 'toy-plan'"):
        load_plan(Objects(tmp_path / "job")).load_task()


class _Weighted(toys.Positional):
    def __init__(self) -> None:
        import torch

        super().__init__()
        self.more = torch.nn.Parameter(torch.ones(3))
