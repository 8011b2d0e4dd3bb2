"""Shares of the training labels: nested subsets of spatial groups.

In: the spatial group of each training chip, a share and a seed. Out: which of the chips to keep. NumPy alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xgfm.errors import TrainError


def subset(groups: NDArray[Any], fraction: float, seed: int) -> NDArray[np.int64]:
    """Choose whole groups that hold about a share of the chips.

    Parameters
    ----------
    groups
        ``(chip,)`` group of each chip.
    fraction
        Share of the chips, above 0 up to 1.
    seed
        Decides the order in which groups are taken. With one seed the chips of a smaller share are among those of every
        larger one, so that two points of a curve differ by what was added alone.

    Returns
    -------
    ndarray
        Positions in ``groups``, rising: as many groups as come nearest to the share, one at least.

    Raises
    ------
    TrainError
        No chips, or a share outside of (0, 1].
    """
    if not 0 < fraction <= 1:
        raise TrainError(f"fraction={fraction}; expected a share above 0, up to 1")
    names, which, counts = np.unique(groups, return_inverse=True, return_counts=True)
    if not names.size:
        raise TrainError("there are no training chips to take a share of; write chips with a training split")
    order = np.random.default_rng([seed, 0x6C61]).permutation(len(names))  # not the numbers that draw batches
    held = np.cumsum(counts[order])
    count = int(np.abs(held - fraction * len(groups)).argmin()) + 1
    return np.flatnonzero(np.isin(which, order[:count]))
