"""What a job gives: block by block the same as at once, in the shape of the template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys
import xarray as xr
from granules import granule

import xgfm
from xgfm.cube.composite import composite
from xgfm.cube.items import SIMULATED
from xgfm.cube.open import open_items
from xgfm.cube.simulate import simulate_season
from xgfm.errors import JobError
from xgfm.grid import tile_geobox
from xgfm.jobs.plan import Plan, load_plan, make_plan
from xgfm.jobs.spec import JobSpec
from xgfm.store.objects import Objects

DATES = ("2023-04-10", "2023-06-20", "2023-09-01", "2024-04-12", "2024-06-25", "2024-09-03")
WINDOW = (1000, 1200, 170, 150)


@pytest.fixture(scope="module")
def items(tmp_path_factory: Any) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("granules")
    fmask = np.random.default_rng(0).choice(np.array([64, 66, 255], "uint8"), WINDOW[2:], p=[0.94, 0.03, 0.03])
    return [
        granule(folder, time=f"{d}T17:04:39Z", window=WINDOW, seed=i, missing=0.001, fmask=np.roll(fmask, 7 * i))
        for i, d in enumerate(DATES)
    ]


def make(folder: Path, items: Any, frames: int = 3, **changes: Any) -> tuple[Plan, toys.Handle]:
    row, column, rows, columns = WINDOW
    box = tile_geobox("15TVM")[row + 2 : row + rows - 2, column + 2 : column + columns - 2]
    west, south, east, north = box.geographic_extent.boundingbox.bbox
    handle = toys.Handle(toys.task_spec(frames))
    spec = {"region": [west, south, east, north], "period": "2023/2024", "task": "toy-task", "store": "out.zarr",
            "grid": {"crs": "EPSG:32615", "resolution": 30}, "block": 64, "chunk": 32}  # fmt: skip
    return make_plan(JobSpec(**{**spec, **changes}), items=items, objects=Objects(folder), handle=handle), handle


def at_once(plan: Plan, handle: toys.Handle, items: Any) -> xr.Dataset:
    """The result of the whole area in one cube, by the public functions."""
    area = plan.areas[0]
    cube = open_items(items, geobox=area.geobox, mask=plan.spec.mask, chunks=64)
    framed = composite(cube, windows=[w.bounds for w in plan.windows], method="median")
    several = plan.spec.periods if plan.task.spec.frames > 1 and plan.spec.periods else None
    options = plan.spec.options
    result: xr.Dataset = xgfm.predict(
        framed, handle, periods=several, return_=options.return_, halo=options.halo, blend=options.blend, device="cpu"
    ).compute()
    return result


def by_blocks(plan: Plan, handle: toys.Handle) -> xr.Dataset:
    """The result of the whole area, of what each block reads and computes by itself."""
    (area,) = plan.areas
    out = plan.template(area, handle).load()
    for variable in out.data_vars.values():
        variable[:] = 255 if variable.dtype == "uint8" else np.nan
    for block in plan.blocks():
        rows, columns = plan.reads(block)
        grid = area.geobox[rows.start : rows.stop, columns.start : columns.stop]
        cube = open_items(plan.items_of(block), geobox=grid, mask=plan.spec.mask).load()
        result = plan.predict(plan.frames(cube), handle).compute()
        y, x = (
            slice(s.start - r.start, s.stop - r.start)
            for s, r in ((block.rows, rows), (block.columns, columns))
        )  # fmt: skip
        for name, variable in result.data_vars.items():
            out[name][..., block.rows, block.columns] = variable[..., y, x].values
    return out


CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "one map": (3, {"period": "2024"}),
    "probabilities": (3, {"period": "2024", "options": {"return": ["class", "probability"]}}),
    "seasons": (3, {"periods": ["2023", "2024"]}),
    "one date at a time": (1, {"periods": ["2023-04", "2023-06", "2024-09"]}),
    "one date": (1, {"period": "2024-06"}),
    "a halo of its own": (3, {"period": "2024", "options": {"halo": 5}}),
}


@pytest.mark.parametrize("case", CASES)
def test_blocks_are_the_whole_area_bit_for_bit(tmp_path: Path, items: Any, case: str) -> None:
    frames, changes = CASES[case]
    plan, handle = make(tmp_path, items, frames, **changes)
    assert plan.states()["work"] >= 6
    whole, parts = at_once(plan, handle, items), by_blocks(plan, handle)
    assert set(whole.data_vars) == set(parts.data_vars)
    for name, variable in whole.data_vars.items():
        assert variable.dims == parts[name].dims
        np.testing.assert_array_equal(variable.values, parts[name].values)
    assert (whole["toy_task"] != 255).mean() > 0.2


def test_blended_blocks_are_the_whole_area_nearly(tmp_path: Path, items: Any) -> None:
    options = {"return": ["class", "logits"], "blend": "hann"}
    plan, handle = make(tmp_path, items, period="2024", options=options)
    whole, parts = at_once(plan, handle, items), by_blocks(plan, handle)
    np.testing.assert_allclose(whole["logits"].values, parts["logits"].values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_template_is_the_result_without_its_pixels(tmp_path: Path, items: Any, case: str) -> None:
    frames, changes = CASES[case]
    plan, handle = make(tmp_path, items, frames, **changes)
    whole, template = at_once(plan, handle, items), plan.template(plan.areas[0], handle)
    assert template.sizes == whole.sizes
    for name, variable in whole.data_vars.items():
        assert template[name].dims == variable.dims
        assert template[name].dtype == variable.dtype
        assert template[name].attrs == variable.attrs
        assert template[name].encoding["grid_mapping"] == variable.encoding["grid_mapping"]
    for name, coord in whole.coords.items():
        xr.testing.assert_identical(template[name].drop_vars(set(template[name].coords) - {name}),
                                    coord.drop_vars(set(coord.coords) - {name}))  # fmt: skip
    assert [frame["window"] for frame in template.attrs["frames"]] == [w.bounds for w in plan.windows]
    assert template.attrs["weights_digest"] == whole.attrs["weights_digest"]
    for name in ("masked_by", "attribution", "task", "halo"):
        assert template.attrs[name] == whole.attrs[name]


def test_a_result_of_simulated_granules_says_so(tmp_path: Path) -> None:
    season = simulate_season(tmp_path / "season", seed=1, shape=(64, 64), granules=4)
    made = json.loads(season.items.read_text())["features"]
    plan, handle = make(tmp_path, made, region=list(season.bbox), period="2024")
    template = load_plan(plan.objects).template(plan.areas[0], handle)
    assert template.attrs["simulated"] == 1
    assert template.attrs["attribution"] == SIMULATED


def test_a_template_costs_the_same_for_a_continent(tmp_path: Path, items: Any) -> None:
    plan, handle = make(
        tmp_path, items, region=[-120, 30, -75, 48], grid={"crs": "EPSG:5070", "resolution": 30}, block=2048,
        chunk=512, period="2024",
    )  # fmt: skip
    template = plan.template(plan.areas[0], handle)
    assert template["toy_task"].size > 5e9
    assert len(template["toy_task"].__dask_graph__().layers) == 1  # described, not listed


def test_a_season_without_dates_is_nodata(tmp_path: Path, items: Any) -> None:
    plan, handle = make(tmp_path, items, periods=["2023", "2024"], options={"return": ["class", "confidence"]})
    block = next(plan.blocks())
    grid = plan.geobox(block)
    cube = open_items(items[3:], geobox=grid, mask=plan.spec.mask).load()
    result = plan.predict(plan.frames(cube), handle).compute()
    assert result.sizes["time"] == 2
    assert result["toy_task"].dtype == "uint8"
    years = np.array([["2023", "2024"], ["2024", "2025"]], "datetime64[ns]")
    for made in (result, plan.template(plan.areas[0], handle)):
        np.testing.assert_array_equal(made["time_bnds"].values, years)
    assert (result["toy_task"][0] == 255).all()
    assert result["confidence"][0].isnull().all()
    assert (result["toy_task"][1] != 255).any()
    with pytest.raises(JobError, match=r"no period with a date in every frame"):
        plan.frames(cube.isel(time=[0]))
