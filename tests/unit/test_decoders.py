"""Decoders on maps that are not square; their numbers are compared in tests/parity."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from xgfm.errors import TaskError
from xgfm.models.decoders import ChannelNorm, FCNDecoder, LinearDecoder, UNetDecoder, UperNetDecoder


def pyramid(rows: int = 4, columns: int = 6) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [
        torch.randn(1, c, int(rows * s), int(columns * s)) for c, s in zip((4, 8, 16, 16), (4, 2, 1, 0.5), strict=True)
    ]


CHANNELS = [4, 8, 16, 16]


@pytest.mark.parametrize(("last_enlarges", "size"), [(True, (32, 48)), (False, (16, 24))])
def test_unet_size_depends_on_the_last_block(last_enlarges: bool, size: tuple[int, int]) -> None:
    decoder = UNetDecoder(CHANNELS, channels=[8, 8, 8, 4], last_enlarges=last_enlarges).eval()
    assert decoder(pyramid()).shape == (1, 4, *size)


def test_unet_must_be_told_how_its_last_block_scales() -> None:
    with pytest.raises(TypeError, match="last_enlarges"):
        UNetDecoder(CHANNELS, channels=[8, 8, 8, 4])  # type: ignore[call-arg]


def test_unet_takes_a_width_for_each_map() -> None:
    with pytest.raises(TaskError, match="one width for each of 4 feature maps"):
        UNetDecoder(CHANNELS, channels=[8, 8, 8], last_enlarges=True)


def test_upernet_decodes_to_the_largest_map() -> None:
    assert UperNetDecoder(CHANNELS, channels=6).eval()(pyramid()).shape == (1, 6, 16, 24)


def test_upernet_takes_maps_of_one_size() -> None:
    same = [torch.randn(1, 8, 4, 6) for _ in range(4)]
    assert UperNetDecoder([8] * 4, channels=6).eval()(same).shape == (1, 6, 4, 6)
    assert UperNetDecoder([8] * 4, channels=6, scale_modules=True).eval()(same).shape == (1, 6, 16, 24)


def test_fcn_and_linear_take_the_last_map() -> None:
    maps = pyramid()
    fcn, linear = FCNDecoder(CHANNELS, channels=5, num_convs=3), LinearDecoder(CHANNELS, classes=3, upsampling_size=7)
    for decoder, shape in ((fcn.eval(), (1, 5, 16, 24)), (linear.eval(), (1, 3, 14, 21))):
        out = decoder(maps)
        assert out.shape == shape
        assert torch.equal(out, decoder([torch.zeros(1), maps[-1]]))


def test_channel_norm_is_a_layer_norm_over_channels() -> None:
    norm, x = ChannelNorm(5), torch.randn(2, 5, 3, 4)
    expected = F.layer_norm(x.movedim(1, -1), (5,), eps=1e-6).movedim(-1, 1)
    assert torch.allclose(norm(x), expected, atol=1e-6)


def test_the_linear_decoder_is_a_transposed_convolution() -> None:
    """Values and gradients are those of torch's own, on a batch of maps that are not square."""
    linear = LinearDecoder(CHANNELS, classes=3, upsampling_size=7)
    x = torch.randn(2, 16, 4, 6, requires_grad=True)
    inputs = (x, *linear.parameters())
    ours, theirs = linear([x]), linear.conv(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(ours)
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), inputs) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)
