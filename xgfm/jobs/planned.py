"""The plan of a job: which blocks there are, which of them have work, and which items each needs.

In: a `JobSpec`, and one search or given items. Out: a `Plan`, saved beside the store, so that every worker and every
later run sees the same inputs. Blocks are arithmetic: nothing is stored for one. No pixel is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from xgfm.cube.periods import Period, equal_periods
from xgfm.errors import JobError, TaskError
from xgfm.jobs import items as stored
from xgfm.jobs import region as regions
from xgfm.jobs.items import LeftOut, Tile
from xgfm.jobs.lattice import Area, Block, Reads, axis_reads
from xgfm.jobs.search import in_tile, region_at
from xgfm.jobs.spec import GridSpec, JobSpec
from xgfm.jobs.tiles import TileIndex
from xgfm.models.spec import TaskSpec, to_json
from xgfm.store.objects import Objects
from xgfm.windows import AxisPlan

if TYPE_CHECKING:
    import xarray as xr

    from xgfm.models.handle import ModelHandle

STATES = ("outside", "no items", "too few dates", "work")
"""What a block can be before a run: code 0, 1, 2, 3."""
WORK = STATES.index("work")
_ID = re.compile(r"(?P<area>.+)-r(?P<row>\d{4,})-c(?P<column>\d{4,})")


@dataclass(frozen=True)
class Task:
    """What the plan knows of the task, so that a later run with other weights is refused."""

    spec: TaskSpec
    digest: str
    """SHA-256 of the weights."""


@dataclass(frozen=True)
class Plan:
    """What a job does, block by block."""

    spec: JobSpec
    objects: Objects
    """Where the job's records are."""
    task: Task
    areas: tuple[Area, ...]
    """The grids that are written, in order of name."""
    inventory: Mapping[str, Tile]
    """Of each MGRS tile, in order of its id."""
    region: shapely.Geometry
    """In degrees."""
    sources: Mapping[str, Any]
    """What the result says of its sources, as attributes: whom to name, and whether they are simulated."""
    left_out: tuple[LeftOut, ...] = ()
    """Items that cannot be read; the first thousand."""
    left_out_count: int = 0
    """How many of those there are."""

    @property
    def tiles(self) -> dict[str, int]:
        """Number of items of each MGRS tile."""
        return {name: tile.items for name, tile in self.inventory.items()}

    @property
    def items_url(self) -> str:
        """Folder of the items."""
        return f"{self.objects.url}/{stored.FOLDER}"

    def area(self, name: str) -> Area:
        """Return an area by name.

        Raises
        ------
        JobError
            Where there is none.
        """
        if name not in self._areas:
            raise JobError(f"the job has no area {name!r}; it has {list(self._areas)[:8]}")
        return self._areas[name]

    def block(self, identity: str) -> Block:
        """Return a block by id, whatever its state.

        Raises
        ------
        JobError
            Where there is none.
        """
        found = _ID.fullmatch(identity)
        if found is None:
            raise JobError(f"{identity!r} is no block; expected an id like 'map-r0003-c0012'")
        return self.area(found["area"]).at(int(found["row"]), int(found["column"]))

    def blocks(self, state: str = "work") -> Iterator[Block]:
        """Yield the blocks of a state, area after area, row after row."""
        code = STATES.index(state)
        for area in self.areas:
            for row, column in np.argwhere(self.codes(area) == code).tolist():
                yield area.at(row, column)

    def states(self) -> dict[str, int]:
        """Return how many blocks are in each of `STATES`."""
        counts = sum((np.bincount(self.codes(area).ravel(), minlength=len(STATES)) for area in self.areas), start=0)
        return dict(zip(STATES, np.broadcast_to(counts, len(STATES)).tolist(), strict=True))

    def codes(self, area: Area) -> NDArray[np.uint8]:
        """Return ``(row, column)``: the position in `STATES` of each block of an area."""
        return self._states_of(area)[0]

    def seasons(self, area: Area) -> NDArray[np.uint16]:
        """Return ``(row, column)``: for how many periods each block has a date in every frame; 0 without work."""
        return self._states_of(area)[1]

    def geobox(self, block: Block) -> GeoBox:
        """Return the grid of a block."""
        return self.area(block.area).geobox[block.rows, block.columns]

    def reads(self, block: Block) -> tuple[Reads, Reads]:
        """Return rows and columns of the area that a block's windows see, clipped to the area.

        Predicted on a cube of just these pixels, the block comes out as it does in the whole area.
        """
        rows, columns = self.axis_reads(self.area(block.area))
        return rows[block.row], columns[block.column]

    def axis_reads(self, area: Area) -> tuple[list[Reads], list[Reads]]:
        """Return `reads` for each row and for each column of an area's blocks."""
        if area.name not in self._reads:
            rows, columns = (
                axis_reads(axis_of(self.spec, self.task.spec, size, origin), area.block)
                for size, origin in zip(area.geobox.shape, area.origin, strict=True)
            )
            self._reads[area.name] = (rows, columns)
        return self._reads[area.name]

    def tiles_of(self, block: Block, halo: int | None = None) -> tuple[str, ...]:
        """Return the tiles that may have pixels in a block and ``halo`` round it, in what it reads by default."""
        if self.native:
            return (block.area,)
        area = self.area(block.area)
        if halo is None:
            rows, columns = self.reads(block)
        else:
            rows, columns = (
                Reads(max(s.start - halo, 0), min(s.stop + halo, size), 0)
                for s, size in zip((block.rows, block.columns), area.geobox.shape, strict=True)
            )
        box = area.geobox[rows.start : rows.stop, columns.start : columns.stop].boundingbox.bbox
        return self.index(area).of(shapely.box(*box))

    def items_of(self, block: Block, halo: int | None = None) -> list[dict[str, Any]]:
        """Return the items of `tiles_of`, in order of tile and date; read from the job's records, and kept."""
        return [item for tile in self.tiles_of(block, halo) for item in stored.read_tile(self.objects, tile)]

    def seasons_of(self, block: Block) -> tuple[int, ...]:
        """Return the positions of the periods for which every frame has a date; none for blocks without work."""
        tiles = self.tiles_of(block, 0)
        there = np.zeros(len(self.windows), bool)
        for tile in tiles:
            there |= np.array(self.inventory[tile].dates) > 0
        return tuple(np.flatnonzero(self._whole(there[None])[0]).tolist())

    @property
    def native(self) -> bool:
        """Whether each tile is mapped on its own grid."""
        return not isinstance(self.spec.grid, GridSpec)

    @cached_property
    def windows(self) -> tuple[Period, ...]:
        """What each frame is a composite of: every period cut into the task's frames. The same for every block."""
        return frames_of(self.spec, self.task.spec)

    @property
    def composite(self) -> str:
        """How the dates of a frame become one."""
        return self.spec.composite or self.task.spec.composite

    def load_task(self) -> ModelHandle:
        """Find the task, and refuse it where its weights are not those that were planned with."""
        from xgfm.models.handle import load_task

        handle = load_task(self.spec.task)
        if handle.digest != self.task.digest:
            raise TaskError(
                f"task {self.spec.task!r} has weights {handle.digest[:12]}, the job was planned with "
                f"{self.task.digest[:12]}; plan the job again, or give the weights that it was planned with"
            )
        mine, its = (json.dumps(to_json(spec), sort_keys=True) for spec in (self.task.spec, handle.spec))
        if mine != its:  # statistics, classes or temperature with the same weights
            raise TaskError(
                f"the record of task {self.spec.task!r} is not the one that the job was planned with; plan the job "
                "again, or give the task that it was planned with"
            )
        return handle

    def frames(self, cube: xr.DataArray) -> xr.DataArray:
        """Return the frames of a cube, masked, of one block or more: see `xgfm.jobs.output`."""
        from xgfm.jobs.output import frames

        return frames(self, cube)

    def predict(self, framed: xr.DataArray, handle: ModelHandle | None = None) -> xr.Dataset:
        """Return the result of frames that `frames` gave, lazily."""
        from xgfm.jobs.output import predicted

        return predicted(self, framed, self.load_task() if handle is None else handle)

    def template(self, area: Area, handle: ModelHandle | None = None) -> xr.Dataset:
        """Return the result of a whole area without its pixels: dims, coordinates, dtypes and attributes. Lazy."""
        from xgfm.jobs.output import template

        return template(self, area, self.load_task() if handle is None else handle)

    @cached_property
    def _areas(self) -> dict[str, Area]:
        return {area.name: area for area in self.areas}

    @cached_property
    def _reads(self) -> dict[str, tuple[list[Reads], list[Reads]]]:
        return {}

    @cached_property
    def _states(self) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.uint16]]]:
        return {}

    def _states_of(self, area: Area) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        if area.name not in self._states:
            self._states[area.name] = self._decide(area)
        return self._states[area.name]

    def _decide(self, area: Area) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """State of each block, and for how many periods it has dates."""
        inside = area.touched_by(self._outline(area))
        codes, seasons = inside.astype("uint8"), np.zeros(inside.shape, "uint16")
        rows, columns = np.nonzero(inside)
        if self.native:
            dates = np.array(self.inventory[area.name].dates) > 0
            there, has_items = np.broadcast_to(dates, (len(rows), len(dates))), np.ones(len(rows), bool)
        else:
            has_items, there = self.index(area).dates(rows, columns, self._dates)
        whole = self._whole(there).sum(axis=1)
        seasons[rows, columns] = whole
        few, none = STATES.index("too few dates"), STATES.index("no items")
        codes[rows, columns] = np.where(has_items, np.where(whole > 0, WORK, few), none)
        return codes, seasons

    def _whole(self, there: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """From (block, frame) to (block, period): whether each frame of a period has a date."""
        return np.asarray(there.reshape(len(there), len(self.spec.seasons), -1).all(axis=2))

    @cached_property
    def _dates(self) -> NDArray[np.bool_]:
        """(tile, frame): whether a tile has a date in a frame."""
        return np.array([np.array(tile.dates) > 0 for tile in self.inventory.values()]).reshape(-1, len(self.windows))

    def _outline(self, area: Area) -> shapely.Geometry:
        """The region in the CRS of an area."""
        if self.native:
            return in_tile(region_at(self.region, area.name), area.name)
        assert area.geobox.crs is not None  # every area has one
        return regions.project(self.region, area.geobox.crs)

    @cached_property
    def _indices(self) -> dict[str, TileIndex]:
        return {}

    def index(self, area: Area) -> TileIndex:
        """Return the tiles with items under a spatial index, in the CRS of an area."""
        if area.name not in self._indices:
            self._indices[area.name] = TileIndex(area, tuple(self.inventory))
        return self._indices[area.name]

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}


def axis_of(spec: JobSpec, task: TaskSpec, size: int, origin: int) -> AxisPlan:
    """Return the windows along an axis, as `xgfm.predict` plans them with the job's options."""
    halo = task.halo if spec.options.halo is None else spec.options.halo
    return AxisPlan(size, origin, task.window, halo, spec.options.blend is not None)


def frames_of(spec: JobSpec, task: TaskSpec) -> tuple[Period, ...]:
    """Return what each frame is a composite of: every period of a job cut into the frames of its task."""
    found: list[Period] = []
    for season in spec.seasons:
        ends = np.array([season.start.to_datetime64(), (season.stop - np.timedelta64(1, "D")).to_datetime64()])
        found += [season] if task.frames == 1 else equal_periods(ends, task.frames)
    return tuple(found)
