"""A local web map of a store: classes with their legend, true colours underneath, values and areas, blocks of a job.

In: the store of a result, or a result. Out: a server on this machine, and its address. Pixels are read as they are
looked at, from overviews where there are any.
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xgfm.viewer.server import Viewer
    from xgfm.viewer.sheets import Source


def view(store: Source, *, under: Source | None = None, port: int = 0) -> Viewer:
    """Serve a map of a store on this machine.

    Parameters
    ----------
    store : str, path, Dataset or DataArray
        Folder or URL of the Zarr store of a result or of a job; or a result. Give large stores overviews
        (`xgfm.store.overviews.add_overviews`; jobs write them): the whole of one without is not drawn at once.
    under : str, path, Dataset or DataArray, optional
        Cube with bands red, green and blue, or the store of one: its true colours are drawn underneath.
    port : int
        Of this machine; 0 for any that is free.

    Returns
    -------
    Viewer
        With its ``url``; a notebook shows the map. It serves until ``close()``, or until the process ends.

    Raises
    ------
    XgfmError
        Where there is no store, nothing to look at in it, or the port is taken.
    BandError
        Where ``under`` has no red, green and blue.
    MissingExtraError
        Where the web server is not installed.
    """
    from xgfm.viewer.blocks import Blocks
    from xgfm.viewer.server import Viewer, application
    from xgfm.viewer.tiles import Atlas

    atlas = Atlas(store, under)
    blocks = Blocks(str(store)) if isinstance(store, str | PathLike) else None
    return Viewer(application(atlas, blocks if blocks is not None and blocks.there else None), port)


__all__ = ["view"]
