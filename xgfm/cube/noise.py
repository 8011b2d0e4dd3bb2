"""Random fields that simulated land and sky are made of.

In: a random generator and a shape. Out: arrays ``(y, x)``. Plain NumPy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]


def noise(rng: np.random.Generator, shape: tuple[int, int], *, scale: float, slope: float) -> Field:
    """Return a random field with a power-law spectrum, of mean 0 and standard deviation 1.

    Parameters
    ----------
    rng
        Source of randomness.
    shape
        Rows and columns.
    scale
        Pixels beyond which the field has no more structure.
    slope
        How fast amplitude falls with frequency below that: 1 is rough, 3 smooth. Clouds have about 5/3 to 2.
    """
    spectrum = np.fft.rfft2(rng.standard_normal(shape))
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, np.newaxis], np.fft.rfftfreq(shape[1]))
    spectrum *= (frequency**2 + 1 / scale**2) ** (-slope / 2)
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, shape)
    return (field / max(float(field.std()), 1e-12)).astype("float32")


def cells(rng: np.random.Generator, shape: tuple[int, int], spacing: float) -> NDArray[np.int32]:
    """Return which cell of a Voronoi partition each pixel is in: convex polygons about ``spacing`` pixels wide.

    The seeds are a lattice, jittered by no more than lets the nearest lie in one of the nine squares round a pixel.
    """
    rows, columns = (int(np.ceil(size / spacing)) + 2 for size in shape)
    seeds_y = (np.arange(rows)[:, np.newaxis] - 1 + rng.uniform(0.2, 0.8, (rows, columns))) * spacing
    seeds_x = (np.arange(columns) - 1 + rng.uniform(0.2, 0.8, (rows, columns))) * spacing
    y, x = np.arange(shape[0])[:, np.newaxis], np.arange(shape[1])
    square_y, square_x = (y / spacing).astype(int) + 1, (x / spacing).astype(int) + 1
    nearest, owner = np.full(shape, np.inf), np.zeros(shape, "int32")
    for step_y in (-1, 0, 1):
        for step_x in (-1, 0, 1):
            row, column = np.clip(square_y + step_y, 0, rows - 1), np.clip(square_x + step_x, 0, columns - 1)
            distance = (seeds_y[row, column] - y) ** 2 + (seeds_x[row, column] - x) ** 2
            closer = distance < nearest
            nearest = np.where(closer, distance, nearest)
            owner = np.where(closer, row * columns + column, owner)
    return owner.astype("int32")


def dilate(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Return ``mask`` grown by a disc of radius ``pixels``."""
    rows, columns = mask.shape
    counts = np.pad(np.cumsum(mask, axis=1, dtype="int32"), ((pixels, pixels), (1, 0)))
    grown = np.zeros_like(mask)
    for step in range(-pixels, pixels + 1):
        half = int(np.sqrt(pixels**2 - step**2))
        lines = counts[pixels + step : pixels + step + rows]
        last = np.minimum(np.arange(columns) + half + 1, columns)
        grown |= lines[:, last] > lines[:, np.maximum(np.arange(columns) - half, 0)]
    return grown


def blur(image: Field, spill: float) -> Field:
    """Spread each pixel over its neighbours, as a sensor's point spread function does.

    Parameters
    ----------
    image
        ``(..., y, x)``.
    spill
        Share that goes to the next pixel on each side.
    """
    for axis in (-2, -1):
        before, after = np.roll(image, 1, axis), np.roll(image, -1, axis)
        edge = np.moveaxis(image, axis, 0)
        np.moveaxis(before, axis, 0)[0], np.moveaxis(after, axis, 0)[-1] = edge[0], edge[-1]
        image = (1 - 2 * spill) * image + spill * (before + after)
    return image
