"""The models of EO 1.0's fine-tunes on images that are not square."""

from __future__ import annotations

import torch
from small import MMSEG, model, task

from xgfm.models.build import build_task
from xgfm.models.mmseg import ConvTransformerNeck


def test_logits_have_the_size_of_the_image() -> None:
    module = build_task(task(MMSEG)).eval()
    with torch.inference_mode():
        assert module(torch.randn(2, 6, 3, 16, 40)).shape == (2, 3, 16, 40)
        decoded, auxiliary = module.with_auxiliary(torch.randn(1, 6, 3, 16, 40))
    assert decoded.shape == auxiliary.shape == (1, 3, 16, 40)
    assert not torch.equal(decoded, auxiliary)


def test_heads_are_one_and_two_convolutions_deep() -> None:
    state = build_task(task(MMSEG)).state_dict()
    assert "decode_head.convs.1.conv.weight" not in state
    assert "auxiliary_head.convs.1.conv.weight" in state


def test_frames_are_fast_in_the_channels_of_any_grid() -> None:
    tokens = torch.arange(1 * (1 + 2 * 3 * 5) * 4.0).reshape(1, -1, 4)
    image = ConvTransformerNeck.image(tokens, (2, 3, 5))
    for t in range(2):
        for d in range(4):
            for y in range(3):
                for x in range(5):
                    assert image[0, d * 2 + t, y, x] == tokens[0, 1 + (t * 3 + y) * 5 + x, d]


def test_one_frame_model_is_a_quarter_as_wide() -> None:
    one = build_task(task(MMSEG, frames=1, model=model(frames=1)))
    assert one.neck.fpn1[0].weight.shape[0] == 32
    assert build_task(task(MMSEG)).neck.fpn1[0].weight.shape[0] == 96
