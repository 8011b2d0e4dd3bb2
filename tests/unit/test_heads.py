"""Heads: sizes and the places of their layers."""

from __future__ import annotations

import torch

from xgfm.models.heads import RegressionHead, SegmentationHead


def test_segmentation_layers_keep_their_places() -> None:
    head = SegmentationHead(8, 3, channel_list=[6], dropout=0.1).eval()
    assert set(head.state_dict()) == {"head.0.0.0.weight", "head.0.0.0.bias", "head.2.weight", "head.2.bias"}
    assert set(SegmentationHead(8, 3).state_dict()) == {"head.2.weight", "head.2.bias"}
    assert head(torch.randn(1, 8, 5, 7)).shape == (1, 3, 5, 7)


def test_regression_upscales_and_gives_one_channel() -> None:
    head = RegressionHead(8, learned_upscale_layers=2, channel_list=[6]).eval()
    assert head(torch.randn(1, 8, 5, 7)).shape == (1, 1, 20, 28)
    assert set(RegressionHead(8).state_dict()) == {"head.3.weight", "head.3.bias"}
