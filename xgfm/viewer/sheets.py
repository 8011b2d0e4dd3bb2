"""The grids of a store that is looked at, each with its coarser copies.

In: a Zarr store, or a result in memory. Out: a `Sheet` for each grid (the store of a job may hold one for each tile),
whose levels are opened when they are needed. Only metadata is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from os import PathLike
from typing import TYPE_CHECKING, Any

import xarray as xr

from xgfm.errors import XgfmError
from xgfm.grid import geobox_of
from xgfm.store.layout import as_dataset
from xgfm.store.objects import zarr_store

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox
    from pyproj import Transformer
    from zarr.abc.store import Store

MERCATOR = "EPSG:3857"
DEGREES = "EPSG:4326"
Bounds = tuple[float, float, float, float]
"""Left, bottom, right, top."""
Source = str | PathLike[str] | xr.Dataset | xr.DataArray
"""What can be looked at: a store, or what was opened or predicted."""


@dataclass(frozen=True, eq=False)
class Level:
    """A Dataset on one grid."""

    dataset: xr.Dataset
    """Undecoded, ``y`` and ``x`` last; pixels are read when they are asked for."""

    @cached_property
    def geobox(self) -> GeoBox:
        """The grid."""
        return geobox_of(self.dataset)

    @property
    def pixel(self) -> float:
        """Side of a pixel in units of the CRS: the shorter one."""
        return min(abs(self.geobox.affine.a), abs(self.geobox.affine.e))


@dataclass(frozen=True, eq=False)
class Sheet:
    """One grid with its coarser copies."""

    name: str
    """Group of the store; ``""`` is its root."""
    openers: Sequence[Callable[[], xr.Dataset]]
    """Of the levels, the finest first."""
    _opened: dict[int, Level] = field(default_factory=dict)

    def level(self, number: int) -> Level:
        """Return a level; 0 is the map itself."""
        if number not in self._opened:
            self._opened[number] = Level(self.openers[number]())
        return self._opened[number]

    @property
    def base(self) -> Level:
        """The map itself."""
        return self.level(0)

    def fitting(self, pixel: float) -> Level:
        """Return the coarsest level whose pixels are not larger than ``pixel`` units of the CRS, or the finest."""
        levels = [self.level(number) for number in range(len(self.openers))]
        return next((level for level in reversed(levels) if level.pixel <= pixel * 1.01), levels[0])

    @cached_property
    def crs(self) -> Any:
        """CRS as rasterio knows it."""
        from rasterio.crs import CRS

        return CRS.from_wkt(self.base.geobox.crs.to_wkt())  # type: ignore[union-attr]

    @cached_property
    def mercator(self) -> Bounds:
        """Bounds in metres of the web's Mercator projection."""
        return project(self.crs, MERCATOR, self.base.geobox.boundingbox.bbox)

    @cached_property
    def degrees(self) -> Bounds:
        """Bounds in degrees."""
        return project(self.crs, DEGREES, self.base.geobox.boundingbox.bbox)

    @cached_property
    def from_degrees(self) -> Transformer:
        """From places in degrees to those of the sheet; infinite where its projection does not reach."""
        from pyproj import Transformer

        return Transformer.from_crs(DEGREES, self.base.geobox.crs.to_wkt(), always_xy=True)  # type: ignore[union-attr]

    def meets(self, bounds: Bounds) -> bool:
        """Whether the sheet has a part in bounds of Mercator."""
        left, bottom, right, top = self.mercator
        return left < bounds[2] and bounds[0] < right and bottom < bounds[3] and bounds[1] < top


def project(source: Any, target: Any, bounds: Sequence[float]) -> Bounds:
    """Return the box round bounds in another CRS."""
    from rasterio.warp import transform_bounds

    left, bottom, right, top = transform_bounds(source, target, *bounds, densify_pts=21)
    return left, bottom, right, top


def sheets_of(source: Source) -> tuple[Sheet, ...]:
    """Return the sheets of a store, or the one of what is open.

    Parameters
    ----------
    source : str, path, Dataset or DataArray
        Folder or URL of a Zarr store; or a result or a cube, of which parts are computed as they are looked at.

    Raises
    ------
    XgfmError
        Where there is no store, or nothing on a grid in it.
    """
    if isinstance(source, xr.Dataset | xr.DataArray):
        dataset = as_dataset(source)
        geobox_of(dataset)
        return (Sheet("", (lambda: dataset,)),)
    store = zarr_store(source)
    found = tuple(_sheet(store, group) for group in _groups(store, str(source)))
    if not found:
        raise XgfmError(f"{source} holds no variable with dims (..., y, x); give the store of a result")
    return found


def _groups(store: Store, name: str) -> list[str]:
    """Return the groups with variables on a grid: the root, or those below it."""
    import zarr
    from zarr.errors import GroupNotFoundError

    try:
        root = zarr.open_group(store, mode="r")
    except (FileNotFoundError, GroupNotFoundError) as error:
        raise XgfmError(f"there is no Zarr store at {name}; give the folder or URL of one") from error
    below = [] if _gridded(root) else [str(key) for key, group in root.groups() if _gridded(group)]
    return [""] if _gridded(root) else sorted(below)


def _gridded(group: Any) -> bool:
    return any(_dims(array)[-2:] == ("y", "x") for _, array in group.arrays())


def _dims(array: Any) -> tuple[str, ...]:
    """Names of an array's dimensions, of Zarr v3 or as xarray writes them into v2."""
    return tuple(getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS", ()))


def _sheet(store: Store, group: str) -> Sheet:
    """A group, and those of its coarser levels that are whole."""
    import zarr

    attrs: Any = zarr.open_group(store, path=group, mode="r").attrs.get("multiscales", {})
    # The first of the layout is the base itself.
    coarser = [f"{group}/{level['asset']}".strip("/") for level in attrs.get("layout", [])[1:]]
    return Sheet(group, [_opener(store, path) for path in (group, *coarser)])


def _opener(store: Store, path: str) -> Callable[[], xr.Dataset]:
    @lru_cache(maxsize=1)
    def opened() -> xr.Dataset:
        return as_dataset(
            xr.open_zarr(store, group=path or None, mask_and_scale=False, decode_coords="all", chunks=None)
        )

    return opened
