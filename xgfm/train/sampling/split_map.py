"""A map of splits.

In: a plan of chips and its labels. Out: a matplotlib ``Figure``. Labels are computed, but no more than a picture needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from xgfm.cf import NODATA
from xgfm.errors import LabelError, MissingExtraError
from xgfm.grid import geobox_of
from xgfm.train.sampling.splits import NAMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#3b6fb6", "#f2a33a", "#c8374a", "#9a9a9a")
"""Of train, val, test and the buffer."""
PIXELS = 800
"""Most rows or columns of labels that are drawn."""


def draw_splits(plan: pd.DataFrame, labels: xr.DataArray | Sequence[xr.DataArray], *, source: int = 0) -> Figure:
    """Draw where the chips of each split lie, over what is labelled.

    Parameters
    ----------
    plan : DataFrame
        What `plan_chips` returned.
    labels : DataArray or sequence
        Those it was made of.
    source : int
        Which of the label arrays; of several dates the first that has chips.

    Returns
    -------
    Figure
        ``figure.savefig("splits.png")``.

    Raises
    ------
    LabelError
        No chip of this source.
    MissingExtraError
        matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "drawing") from error
    array = labels if isinstance(labels, xr.DataArray) else list(labels)[source]
    chips = plan[plan["source"] == source]
    if not len(chips):
        raise LabelError(f"the plan has no chip of label array {source}; it has {sorted(set(plan['source']))}")
    if "time" in array.dims:
        chips = chips[chips["step"] == chips["step"].min()]
        array = array.isel(time=int(chips["step"].min()))
    figure, axis = plt.subplots(figsize=(8, 6), layout="constrained")
    # Closed, it is shown once by a notebook, as the value of its cell, and pyplot does not hold on to it.
    plt.close(figure)
    _draw_labelled(axis, array)
    _draw_chips(axis, chips, array, int(plan.attrs["size"]))
    axis.set_title(f"{plan.attrs.get('split', '')}: {len(chips)} chips of {plan.attrs['size']} pixels")
    return figure


def _draw_labelled(axis: Any, labels: xr.DataArray) -> None:
    """What is labelled in light grey, what is not in white."""
    every = max(1, max(labels.shape) // PIXELS)
    values = labels[::every, ::every].values
    labelled = values != NODATA if values.dtype.kind == "u" else ~np.isnan(values)
    box = geobox_of(labels).boundingbox
    extent = (box.left, box.right, box.bottom, box.top)
    axis.imshow(np.where(labelled, 0.85, 1.0), extent=extent, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.ticklabel_format(useOffset=False, style="plain")


def _draw_chips(axis: Any, chips: pd.DataFrame, labels: xr.DataArray, size: int) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Patch, Rectangle

    box = geobox_of(labels)
    wide, high = size * abs(box.resolution.x), size * abs(box.resolution.y)
    handles = []
    for name, color in zip(NAMES, COLORS, strict=True):
        mine = chips[chips["split"] == name]
        if len(mine):
            corners = zip(mine["x"] - wide / 2, mine["y"] - high / 2, strict=True)
            patches = [Rectangle(corner, wide, high) for corner in corners]
            axis.add_collection(PatchCollection(patches, facecolor=color, edgecolor="white", linewidth=0.5, alpha=0.6))
            told = "left out" if name == NAMES[-1] else name
            handles.append(Patch(facecolor=color, alpha=0.6, label=f"{told} ({len(mine)})"))
    rim, grid = max(wide, high), box.boundingbox  # labels may be in a small part of the cube
    left, right = chips["x"].min() - wide / 2 - rim, chips["x"].max() + wide / 2 + rim
    bottom, top = chips["y"].min() - high / 2 - rim, chips["y"].max() + high / 2 + rim
    axis.set_xlim(max(left, grid.left), min(right, grid.right))
    axis.set_ylim(max(bottom, grid.bottom), min(top, grid.top))
    axis.figure.legend(handles=handles, loc="outside right upper", frameon=False)
