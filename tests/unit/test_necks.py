"""Necks on grids that are not square, and their refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xgfm.errors import TaskError
from xgfm.models.necks import (
    AggregateTokens,
    InterpolateToPyramidal,
    LearnedInterpolateToPyramidal,
    MaxpoolToPyramidal,
    ReshapeTokensToImage,
    SelectIndices,
)

GRIDS = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))


@given(GRIDS, st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_tokens_land_where_they_came_from(grid: tuple[int, int, int], width: int) -> None:
    frames, rows, columns = grid
    tokens = torch.arange(2 * (1 + frames * rows * columns) * width, dtype=torch.float32).reshape(2, -1, width)
    image = ReshapeTokensToImage([width], frames)([tokens], grid)[0]
    assert image.shape == (2, frames * width, rows, columns)
    for t in range(frames):
        for y in range(rows):
            for x in range(columns):
                here = image[:, t * width : (t + 1) * width, y, x]
                assert torch.equal(here, tokens[:, 1 + (t * rows + y) * columns + x])


def test_other_number_of_frames_is_refused() -> None:
    with pytest.raises(TaskError, match="images have 2 token frames; the task was built for 3"):
        ReshapeTokensToImage([4], 3)([torch.zeros(1, 9, 4)], (2, 2, 2))


@pytest.mark.parametrize("indices", [[], [1, 0], [0, 0], [0, 4], [-1]])
def test_impossible_block_indices_are_refused(indices: list[int]) -> None:
    with pytest.raises(TaskError, match="the encoder's 4 blocks"):
        SelectIndices([8] * 4, 1, indices=indices)


def test_learned_pyramid_doubles_and_halves() -> None:
    neck = LearnedInterpolateToPyramidal([16] * 4, 1).eval()
    maps = neck([torch.randn(1, 16, 4, 6) for _ in range(4)], (1, 4, 6))
    assert [m.shape[1:] for m in maps] == [(4, 16, 24), (8, 8, 12), (16, 4, 6), (16, 2, 3)]
    assert neck.channels == [4, 8, 16, 16]


def test_learned_pyramid_takes_four_maps() -> None:
    with pytest.raises(TaskError, match="takes four feature maps, not 3"):
        LearnedInterpolateToPyramidal([16] * 3, 1)


def test_plain_pyramids_scale_by_powers_of_two() -> None:
    maps = [torch.randn(1, 2, 8, 16) for _ in range(3)]
    larger = InterpolateToPyramidal([2] * 3, 1)(maps, (1, 8, 16))
    smaller = MaxpoolToPyramidal([2] * 3, 1)(maps, (1, 8, 16))
    assert [m.shape[-2:] for m in larger] == [(64, 128), (32, 64), (16, 32)]
    assert [m.shape[-2:] for m in smaller] == [(8, 16), (4, 8), (2, 4)]
    assert smaller[2].max() == maps[2].max()


def test_unknown_pooling_is_refused() -> None:
    with pytest.raises(TaskError, match="'mean', 'max', 'min' or 'CLS'"):
        AggregateTokens([8], 1, pooling="median")  # type: ignore[arg-type]
