"""Test-time augmentation: the flips and quarter turns of a square."""

from __future__ import annotations

from collections.abc import Callable

import torch


def averaged_over_d4(ask: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Return the mean answer to the eight symmetric images of an input, each turned back.

    Parameters
    ----------
    ask
        The model: ``(B, C, T, H, W)`` to ``(B, channel, H, W)``.
    x
        Square in H and W.
    """
    total: torch.Tensor | None = None
    for turns in range(4):
        for flipped in (False, True):
            image = torch.rot90(x, turns, (-2, -1))
            said = ask(image.flip(-1) if flipped else image).float()
            back = torch.rot90(said.flip(-1) if flipped else said, -turns, (-2, -1))
            total = back if total is None else total + back
    assert total is not None
    return total / 8
