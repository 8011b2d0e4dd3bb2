"""Records to modules: what can be built, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small import FCN, MMSEG, UNET, task

from xgfm.errors import TaskError
from xgfm.models.build import build_task
from xgfm.models.quirks import PlanesDateByDate

UPERNET = {**UNET, "decoder": {"name": "UperNetDecoder", "channels": 12}}
LINEAR = {**FCN, "decoder": {"name": "LinearDecoder", "upsampling_size": 8}, "head": {}}


@pytest.mark.parametrize("architecture", [UNET, UPERNET, FCN, LINEAR, MMSEG], ids=lambda a: str(a.get("decoder", a)))
def test_every_family_learns(architecture: dict[str, Any]) -> None:
    module = build_task(task(architecture))
    assert module.training
    logits = module(torch.randn(2, 6, 3, 32, 32))
    assert logits.shape == (2, 3, 32, 32)
    logits.square().mean().backward()
    unused = {name for name, p in module.named_parameters() if p.grad is None and "auxiliary" not in name}
    assert not unused


def test_quirk_wraps_the_module() -> None:
    assert isinstance(build_task(task({**MMSEG, "quirk": {"name": "PlanesDateByDate"}})), PlanesDateByDate)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({}, r"family None; \['mmseg', 'pixelwise', 'probe', 'unet'\] can be built"),
        ({**UNET, "family": "yolo"}, "give register_task"),
        ({**UNET, "decoder": {"name": "SegFormer"}}, "names 'SegFormer'; there are .*'UNetDecoder'"),
        ({**UNET, "necks": [{"name": "Giraffe"}]}, "'Giraffe'; there are .*'SelectIndices'"),
        ({**UNET, "decoder": {"name": "UNetDecoder", "channels": [8, 8, 8, 8]}}, "last_enlarges"),
        ({**UNET, "head": {"droop": 0.1}}, "droop"),
        ({**MMSEG, "neck": 3}, "unexpected keyword argument 'neck'"),
        ({**MMSEG, "quirk": {"name": "Upside"}}, "'Upside'; there are"),
        ({**MMSEG, "quirk": "x"}, "has 'x' where a part is described"),
        ({**MMSEG, "quirk": {"name": "Resized", "window": 0, "resized": 8}}, "options .*window.*: division by zero"),
        ({**MMSEG, "neck_channels": -5}, "options .*neck_channels.*negative dimension"),
        ({"family": ["mmseg"]}, "family"),
        ({**UNET, "necks": "SelectIndices"}, "necks is 'SelectIndices'; it must be a list"),
        ({**UNET, "necks": ["SelectIndices"]}, "has 'SelectIndices' where a part is described"),
        ({**UNET, "necks": [{"name": "AggregateTokens", "index": 99}]}, "options .*index.*out of range"),
        ({**UNET, "decoder": ["UNetDecoder"]}, "where a part is described"),
        ({**UNET, "head": "none"}, "options none of its architecture"),
        ({**UNET, "head": {"dropout": 5}}, "options .*dropout.*between 0 and 1"),
        ({**FCN, "decoder": {"name": "FCNDecoder", "num_convs": 60000}}, "num_convs is 60000; .* from 1 to 16"),
    ],
)
def test_unknown_parts_and_options_are_refused(architecture: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        build_task(task(architecture))


def test_refusal_is_one_line() -> None:
    wide = task({**FCN, "necks": [FCN["necks"][0], *[FCN["necks"][1]] * 60]})  # 3 ** 60 channels
    with pytest.raises(TaskError, match=r"options .* of its architecture") as caught:
        build_task(wide)
    assert "\n" not in str(caught.value)


def test_upscaling_of_a_regression_is_bounded() -> None:
    with pytest.raises(TaskError, match=r"learned_upscale_layers is 60000; .* from 0 to 16"):
        build_task(task({**FCN, "head": {"learned_upscale_layers": 60000}}, kind="regression", classes=()))


def test_seed_fixes_the_weights() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        states.append(build_task(task()).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
