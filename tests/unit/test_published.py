"""The records of published models, against counts from their cards, and every architecture in bfloat16."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from xgfm.infer.products import OtherKernels
from xgfm.models.build import build_model, build_task
from xgfm.models.prithvi import PatchEmbed
from xgfm.models.published import MODELS, TASKS
from xgfm.models.spec import PRITHVI_BANDS, model_from_json, task_from_json, to_json

LEARNED = {
    "prithvi-eo-1.0-100m": (86_237_184, 26_402_304),
    "prithvi-eo-2.0-tiny-tl": (5_634_050, 26_107_394),
    "prithvi-eo-2.0-100m-tl": (86_237_186, 26_402_306),
    "prithvi-eo-2.0-300m": (303_886_336, 26_533_376),
    "prithvi-eo-2.0-300m-tl": (303_886_338, 26_533_378),
    "prithvi-eo-2.0-600m": (631_188_480, 26_479_768),
    "prithvi-eo-2.0-600m-tl": (631_188_482, 26_479_770),
}
LEARNED_OF_TASKS = {
    "crop": 139_877_914,
    "flood": 318_968_580,
    "flood-v1": 99_811_844,
    "burn": 324_204_674,
    "burn-v1": 99_811_844,
}


def learned(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_models_have_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = build_model(MODELS[name])
    assert (learned(model.encoder), learned(model.decoder)) == LEARNED[name]


@pytest.mark.parametrize("name", TASKS)
def test_tasks_have_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        assert learned(build_task(TASKS[name])) == LEARNED_OF_TASKS[name]


def test_the_crop_model_has_six_blocks_of_eight_heads() -> None:
    model = TASKS["crop"].model
    assert (model.depth, model.num_heads) == (6, 8)
    assert "Six encoder blocks of 8 heads" in TASKS["crop"].quirks[0]


def test_epsilons_are_those_of_the_code_that_trained_them() -> None:
    assert MODELS["prithvi-eo-1.0-100m"].norm_eps == 1e-6
    assert {spec.norm_eps for name, spec in MODELS.items() if "2.0" in name} == {1e-5}
    assert {spec.model.norm_eps for spec in TASKS.values()} == {1e-5}


def test_burn_decoder_doubles_four_times() -> None:
    """As the library of that time did: half the size of the image for patches of 16, not a quarter."""
    with torch.device("meta"):
        module = build_task(TASKS["burn"])
        maps = [torch.zeros(1, c, n, n) for c, n in ((256, 56), (512, 28), (1024, 14), (1024, 7))]
        assert module.decoder(maps).shape[-1] == 112


@pytest.mark.parametrize("spec", [*MODELS.values(), *TASKS.values()], ids=lambda s: s.name)
def test_records_survive_json(spec: Any) -> None:
    read = task_from_json if spec.name in TASKS else model_from_json
    assert read(to_json(spec)) == spec


@pytest.mark.parametrize("spec", TASKS.values(), ids=lambda s: s.name)
def test_task_records_are_complete(spec: Any) -> None:
    assert spec.bands == PRITHVI_BANDS
    assert len({c.color for c in spec.classes}) == len(spec.classes)
    assert spec.weights.repo.startswith("ibm-nasa-geospatial/")
    assert spec.licence == "Apache-2.0"
    assert spec.paper.startswith("https://")
    assert spec.quirks
    statistics = spec.statistics
    in_reflectance = [m * statistics.reflectance_scale for m in statistics.mean]
    assert all(0.01 < m < 0.5 for m in in_reflectance)


# Wrong kernels show as relative errors of 0.5 and more; rounding to bfloat16 as one or two hundredths.
ALLOWED = 0.05


def error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return ((ours.float() - exact).square().mean().sqrt() / exact.std()).item()


def in_two_precisions(module: nn.Module, *given: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the output in float32; and under autocast, with bfloat16 weights, and with these by other kernels."""
    with torch.inference_mode():
        exact = module(*given)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = module(*given)
        with OtherKernels():
            torch.testing.assert_close(module(*given), exact, rtol=1e-4, atol=1e-5 * float(exact.std()))
        cast = module.to(torch.bfloat16), given[0].bfloat16(), *given[1:]
        rough = cast[0](*cast[1:])
        with OtherKernels():
            return exact, [mixed, rough, cast[0](*cast[1:])]


@pytest.mark.parametrize("bands", [6, 8, 10])
@pytest.mark.parametrize("patch", [(1, 16, 16), (1, 14, 14), (1, 8, 8), (2, 16, 16)])
def test_patch_embedding_is_right_in_bfloat16(patch: tuple[int, int, int], bands: int) -> None:
    torch.manual_seed(0)
    embed, x = PatchEmbed(bands, 1024, patch), torch.randn(2, bands, *(4 * p for p in patch))
    exact, roughs = in_two_precisions(embed, x)
    assert all(error(rough, exact) < 0.01 for rough in roughs)


@pytest.mark.parametrize("name", MODELS)
def test_encoders_are_right_in_bfloat16(name: str) -> None:
    torch.manual_seed(0)
    spec = replace(MODELS[name], depth=2, decoder_depth=1)
    time = torch.tensor([[[2024.0, 100.0]] * spec.frames])
    x = torch.randn(1, 6, spec.frames, 2 * spec.patch_size[1], 3 * spec.patch_size[2])
    exact, roughs = in_two_precisions(build_model(spec).encoder.eval(), x, time, torch.tensor([[41.0, -93.0]]))
    assert all(error(rough, exact) < ALLOWED for rough in roughs)


@pytest.mark.parametrize("name", TASKS)
def test_tasks_are_right_in_bfloat16(name: str) -> None:
    """Full widths, so that the kernels are the real ones; few blocks and a small image."""
    torch.manual_seed(0)
    spec = TASKS[name]
    architecture = dict(spec.architecture)
    if spec.model.depth == 24:
        chosen = {"name": "SelectIndices", "indices": [0, 1, 2, 3]}
        architecture["necks"] = [chosen, *architecture["necks"][1:]]
    spec = replace(spec, model=replace(spec.model, depth=4), architecture=architecture)
    with torch.device("meta"):
        module = build_task(spec)
    module = with_plain_weights(module.to_empty(device="cpu")).eval()
    exact, roughs = in_two_precisions(module, torch.randn(1, 6, spec.frames, 32, 32))
    assert exact.shape == (1, len(spec.classes), 32, 32)
    assert all(error(rough, exact) < ALLOWED for rough in roughs)


def with_plain_weights(module: nn.Module) -> nn.Module:
    """Fill parameters so that signals keep their size; quicker than each layer's own initialisation."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith(("running_mean", "bias")):
                tensor.zero_()
            elif tensor.ndim > 1:
                tensor.normal_(std=(tensor[0].numel()) ** -0.5)
            else:
                tensor.fill_(1)
    return module
