"""How much there is of each class: bars with the intervals of a reference sample.

In: an `AreaEstimate`. Out: a matplotlib ``Figure``. Nothing is lazy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from xgfm.cf import flags_of
from xgfm.climate.area import AreaEstimate
from xgfm.notebook import subplots
from xgfm.palette import class_colors
from xgfm.store.layout import as_dataset, choose_variable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_areas(estimate: AreaEstimate, result: xr.Dataset | xr.DataArray | None = None, *, units: str = "") -> Figure:
    """Draw the area of each class with its interval, beside what counting the map's pixels says.

    Parameters
    ----------
    estimate : AreaEstimate
        From `estimate_areas`: a map corrected by a reference sample.
    result : Dataset or DataArray, optional
        The map: its classes lend their colours, by name. Without it, or for a class that it does not have, the
        palette's.
    units : str
        Of the mapped areas that the estimate was made of, such as ``"km²"``.

    Returns
    -------
    Figure
        A bar is the estimate, the line across its end is the interval, and a diamond is the mapped area. Where the
        diamond is outside of the line, pixel counting is wrong by more than the sample's chance.

    Raises
    ------
    MissingExtraError
        Where matplotlib is not installed.
    """
    names = list(estimate.classes)
    places = np.arange(len(names))
    figure, axis = subplots(figsize=(6.4, 1.3 + 0.36 * len(names)), layout="constrained")
    low, high = estimate.interval.T
    axis.barh(places, estimate.area, color=_colors(names, result), edgecolor="0.3", linewidth=0.5, height=0.72)
    axis.errorbar(
        estimate.area, places, xerr=[np.maximum(estimate.area - low, 0), np.maximum(high - estimate.area, 0)],
        fmt="none", ecolor="black", elinewidth=1.2, capsize=3.5, label=f"{estimate.confidence:.0%} interval",
    )  # fmt: skip
    mapped = estimate.matrix.sum(1) * estimate.area.sum()
    axis.plot(mapped, places, "D", color="white", markeredgecolor="black", markersize=5, label="pixels counted")
    axis.set(yticks=places, yticklabels=names, xlabel=f"area ({units})" if units else "area", xlim=(0, None))
    axis.invert_yaxis()  # the first class on top
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper right", frameon=False, fontsize="small", ncols=2)
    return figure


def _colors(names: list[str], result: xr.Dataset | xr.DataArray | None) -> list[str]:
    if result is None:
        return class_colors(len(names))
    dataset = as_dataset(result)
    known = {flag.name: flag.color for flag in flags_of(dataset[choose_variable(dataset, None)])}
    return [known.get(name, other) for name, other in zip(names, class_colors(len(names)), strict=True)]
