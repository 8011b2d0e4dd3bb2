"""The U-Net: shapes for any size and sensor, what it cannot see, and its way through a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small
import torch
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

import xgfm
from xgfm.errors import TaskError
from xgfm.models.build import build_task
from xgfm.models.folder import save_task
from xgfm.models.handle import load_task
from xgfm.models.spec import ModelSpec, Statistics, TaskSpec
from xgfm.models.unet import UNet, repeat_edges

UNET = {"family": "unet", "widths": [4, 8, 8]}


def goes() -> TaskSpec:
    """16 bands of one frame, as a geostationary imager has."""
    statistics = Statistics((0.2,) * 16, (0.1,) * 16, 1.0)
    model = ModelSpec("goes", "GOES", statistics, tuple(f"C{k:02d}" for k in range(1, 17)), (1, 1, 1), image_size=32)
    return TaskSpec("smoke", "Smoke", model, statistics, small.CLASSES, UNET, window=32, halo=4)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    frames=st.integers(1, 3),
    bands=st.integers(1, 4),
    outputs=st.integers(1, 5),
    levels=st.integers(2, 4),
)
def test_every_size_keeps_its_size(rows: int, columns: int, frames: int, bands: int, outputs: int, levels: int) -> None:
    module = UNet(bands * frames, outputs, widths=(3,) * levels).eval()
    assert module(torch.randn(2, bands, frames, rows, columns)).shape == (2, outputs, rows, columns)


def test_padding_does_not_change_what_is_whole() -> None:
    x = torch.randn(1, 2, 8, 12)
    assert repeat_edges(x, 4, 4) is not None
    torch.testing.assert_close(repeat_edges(x, 4, 4), x)
    padded = repeat_edges(x, 5, 5)
    assert padded.shape[-2:] == (10, 15)
    torch.testing.assert_close(padded[..., -1, :12], x[..., -1, :])


def test_what_it_computes_is_that_of_its_parts() -> None:
    """Two levels, written out with torch's own functions."""
    torch.manual_seed(0)
    module = UNet(3, 2, widths=(4, 6)).eval()
    x = torch.randn(2, 3, 1, 8, 8)
    state = module.state_dict()

    def unit(value: torch.Tensor, name: str) -> torch.Tensor:
        for k in (0, 1):
            norm = [state[f"{name}.{k}.norm.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
            convolved = torch.conv2d(value, state[f"{name}.{k}.conv.weight"], padding=1)
            value = torch.relu(torch.batch_norm(convolved, norm[2], norm[3], norm[0], norm[1], False, 0, 1e-5, False))
        return value

    skip = unit(x[:, :, 0], "down.0")
    deep = unit(torch.max_pool2d(skip, 2), "down.1")
    enlarged = deep.repeat_interleave(2, -1).repeat_interleave(2, -2)
    wanted = torch.conv2d(unit(torch.cat([skip, enlarged], 1), "up.0"), state["head.weight"], state["head.bias"])
    torch.testing.assert_close(module(x), wanted, atol=1e-5, rtol=1e-5)


def test_a_pixel_is_seen_as_far_as_the_deepest_level_reaches() -> None:
    module = UNet(1, 1, widths=(2, 2)).eval()
    x = torch.randn(1, 1, 1, 64, 64, requires_grad=True)
    module(x)[0, 0, 32, 32].backward()
    assert x.grad is not None
    seen = x.grad[0, 0, 0].abs() > 0
    rows = seen.any(1).nonzero()
    assert seen[32, 32]
    assert 0 < int(rows.max() - rows.min()) < 24


def test_other_bands_or_frames_are_refused() -> None:
    with pytest.raises(TaskError, match=r"6 bands x 2 frames; this U-Net takes 18 planes"):
        UNet(18, 3)(torch.zeros(1, 6, 2, 32, 32))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"widths": [8]}, "2 to 8 levels"),
        ({"widths": [8, 0]}, "widths is 0"),
        ({"widths": [8, 8], "depth": 3}, "depth"),
        ({"widths": 8}, "must be a list"),
        ({"dropout": "much"}, "dropout is 'much'"),
        ({"dropout": 2.0}, "dropout"),
    ],
)
def test_wrong_architectures_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(TaskError, match=said):
        build_task(small.task({"family": "unet", **options}))


def test_it_goes_through_a_folder_and_maps_a_cube(tmp_path: Path) -> None:
    torch.manual_seed(1)
    spec = small.task(UNET)
    module = build_task(spec).eval()
    handle = load_task(save_task(module, spec, tmp_path / "unet"))
    assert handle.spec.architecture["widths"] == [4, 8, 8]
    x = torch.randn(1, 6, 3, 32, 32)
    torch.testing.assert_close(handle.load()(x), module(x), atol=0, rtol=0)
    maps = xgfm.predict(toys.cube(48, 48), handle, device="cpu", precision="fp32")
    assert set(np.unique(maps["small_task"])) <= {0, 1, 2}


def test_a_sensor_of_sixteen_bands_and_one_frame() -> None:
    assert build_task(goes()).eval()(torch.randn(2, 16, 1, 32, 32)).shape == (2, 3, 32, 32)


def test_it_has_no_features_to_embed(tmp_path: Path) -> None:
    handle = load_task(save_task(build_task(small.task(UNET)), small.task(UNET), tmp_path / "unet"))
    with pytest.raises(TaskError, match="a U-Net, or"):
        xgfm.embed(toys.cube(32, 32), handle)
