"""What a job gives: the frames of a cube, the result of a block, and the shape of the whole result.

In: a plan, and the cube of a block. Out: Datasets alike for every block, and one without pixels for a whole area, which
the store is made from. Frames are windows of the job's period, never of the dates that a block happens to have. Lazy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import xarray as xr

from xgfm.cube.composite import composite
from xgfm.cube.open import REFLECTANCE_SCALE
from xgfm.cube.periods import time_coordinates
from xgfm.errors import JobError
from xgfm.grid import with_grid
from xgfm.infer.predict import predict
from xgfm.models.spec import PRITHVI_BANDS

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

    from xgfm.jobs.lattice import Area
    from xgfm.jobs.plan import Plan
    from xgfm.models.handle import ModelHandle

NODATA = -9999


def frames(plan: Plan, cube: xr.DataArray) -> xr.DataArray:
    """Composite a cube into the frames of every period for which it has the dates.

    Parameters
    ----------
    plan
        Says which windows.
    cube
        ``(time, band, y, x)``, masked; all dates that the job has there.

    Returns
    -------
    DataArray
        ``(time, band, y, x)``: the frames of one period after those of the one before.

    Raises
    ------
    JobError
        Where no period has a date in each of its frames: such a block has no work.
    """
    windows = [window for season in _seasons(plan, cube) for window in _windows(plan, season)]
    if not windows:
        raise JobError("the cube has no period with a date in every frame; such blocks are not in Plan.blocks()")
    return composite(cube, method=plan.composite, windows=[w.bounds for w in windows])  # type: ignore[arg-type]


def predicted(plan: Plan, framed: xr.DataArray, handle: ModelHandle) -> xr.Dataset:
    """Map frames, with the job's options.

    Parameters
    ----------
    plan, handle
        The job, and its task.
    framed
        From `frames`.

    Returns
    -------
    Dataset
        Dims and variables as in `template`: periods whose dates were missing are nodata.
    """
    result = _predict(plan, framed, handle, [plan.spec.seasons[i] for i in _there(plan, framed)])
    if "time" not in result.dims or result.sizes["time"] == len(plan.spec.seasons):
        return result
    fills = {name: 255 if variable.dtype == np.uint8 else np.nan for name, variable in result.data_vars.items()}
    times = time_coordinates(plan.spec.seasons)
    return result.reindex(time=times["time"].values, fill_value=fills).assign_coords(times)


def template(plan: Plan, area: Area, handle: ModelHandle) -> xr.Dataset:
    """Return the result of a whole area without its pixels.

    It is a small result, made from a cube of nothing in the middle of the area, stretched over the area: no chunk of
    the area is listed, so the time does not depend on its size.
    """
    size = [min(n, plan.task.spec.window) for n in area.geobox.shape]
    starts = [(n - s) // 2 for n, s in zip(area.geobox.shape, size, strict=True)]
    small = _nothing(plan, area.geobox[starts[0] : starts[0] + size[0], starts[1] : starts[1] + size[1]])
    result = _predict(plan, small, handle, list(plan.spec.seasons))
    whole = result.drop_dims(["y", "x"])
    for name, variable in result.data_vars.items():
        shape = tuple(
            {"y": area.geobox.shape[0], "x": area.geobox.shape[1]}.get(str(d), result.sizes[d]) for d in variable.dims
        )
        chunks = tuple(plan.spec.shards if d in ("y", "x") else -1 for d in variable.dims)
        whole[name] = (variable.dims, da.zeros(shape, dtype=variable.dtype, chunks=chunks), variable.attrs)
        whole[name].encoding = variable.encoding
    whole = with_grid(whole, area.geobox).assign_attrs(result.attrs)
    whole.attrs["frames"] = [{"window": window.bounds} for window in plan.windows]
    whole.attrs["composite"] = plan.composite
    whole.attrs.pop("dates", None)
    return whole


def check_grid(plan: Plan, area: Area, handle: ModelHandle) -> None:
    """Refuse a grid that the task cannot take, at the area's first, middle and last row: pixels may differ in size."""
    rows = np.flatnonzero((plan.codes(area) > 0).any(axis=1))
    for row in {int(rows[0]), int(rows[len(rows) // 2]), int(rows[-1])} if len(rows) else ():
        column = int(np.flatnonzero(plan.codes(area)[row] > 0)[0])
        _predict(plan, _nothing(plan, plan.geobox(area.at(row, column))), handle, list(plan.spec.seasons))


def _predict(plan: Plan, framed: xr.DataArray, handle: ModelHandle, seasons: list[Any]) -> xr.Dataset:
    options = plan.spec.options
    several = plan.task.spec.frames > 1 and plan.spec.periods is not None
    return predict(
        framed,
        handle,
        periods=[season.bounds for season in seasons] if several else None,
        return_=options.return_,
        halo=options.halo,
        blend=options.blend,
        tta=options.tta,
        min_valid=options.min_valid,
        allow=options.allow,
        precision=options.precision,
        device=options.device,
        batch_size=options.batch_size,
    )


def _nothing(plan: Plan, geobox: GeoBox) -> xr.DataArray:
    """A lazy cube of all frames on a grid, as `open_items` and `composite` would give it."""
    times = np.array([window.middle.to_datetime64() for window in plan.windows], "datetime64[ns]")
    cube = xr.DataArray(
        da.full((len(times), len(PRITHVI_BANDS), *geobox.shape), NODATA, dtype="int16", chunks=(1, -1, -1, -1)),
        dims=("time", "band", "y", "x"),
        coords={"time": times, "band": list(PRITHVI_BANDS)},
        attrs={
            "nodata": NODATA,
            "reflectance_scale": REFLECTANCE_SCALE,
            "masked_by": list(plan.spec.mask),
            **plan.sources,
        },
        name="hls",
    )
    return with_grid(cube, geobox)


def _windows(plan: Plan, season: int) -> tuple[Any, ...]:
    count = plan.task.spec.frames
    return plan.windows[season * count : (season + 1) * count]


def _seasons(plan: Plan, cube: xr.DataArray) -> list[int]:
    """Positions of the periods for which a cube has a date in each frame."""
    time = cube["time"].values
    return [i for i in range(len(plan.spec.seasons)) if all(len(w.steps(time)) for w in _windows(plan, i))]


def _there(plan: Plan, framed: xr.DataArray) -> list[int]:
    """Positions of the periods whose frames a composite holds."""
    middles = set(framed["time"].values.astype("datetime64[ns]").tolist())
    return [i for i in range(len(plan.spec.seasons)) if _middle(plan, i) in middles]


def _middle(plan: Plan, season: int) -> Any:
    first = _windows(plan, season)[0].middle.to_datetime64()
    return first.astype("datetime64[ns]").tolist()
