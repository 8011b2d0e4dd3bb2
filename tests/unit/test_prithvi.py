"""The encoder, against torch's own convolution and attention, and its refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import model
from torch import nn
from torch.nn import functional as F

from xgfm.errors import TaskError
from xgfm.models.build import build_model
from xgfm.models.prithvi import Attention, PatchEmbed, PrithviEncoder


@given(
    st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    st.integers(1, 7),
)
@settings(max_examples=40, deadline=None)
def test_patch_embedding_is_a_convolution(patch: tuple[int, int, int], grid: tuple[int, int, int], bands: int) -> None:
    torch.manual_seed(0)
    embed = PatchEmbed(bands, 10, patch).double()
    nn.init.normal_(embed.proj.bias)
    x = torch.randn(2, bands, *(g * p for g, p in zip(grid, patch, strict=True)), dtype=torch.float64)
    expected = F.conv3d(x, embed.proj.weight, embed.proj.bias, stride=patch).flatten(2).transpose(1, 2)
    assert torch.allclose(embed(x), expected)


def test_attention_is_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(24, 3), nn.MultiheadAttention(24, 3, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.proj.weight,
            "out_proj.bias": ours.proj.bias,
        }
    )
    x = torch.randn(2, 7, 24)
    assert torch.allclose(ours(x), theirs(x, x, x)[0], atol=1e-6)


def test_layers_are_those_of_the_whole_list() -> None:
    encoder, x = PrithviEncoder(model()).eval(), torch.randn(1, 6, 3, 16, 24)
    whole = encoder.forward_features(x)
    some = encoder.forward_features(x, layers=[0, 2])
    assert [f.shape for f in whole] == [(1, 1 + 3 * 2 * 3, 32)] * 4
    assert torch.equal(some[0], whole[0])
    assert torch.equal(some[1], whole[2])
    assert torch.equal(encoder(x), whole[-1])


def test_only_the_last_block_is_normalised() -> None:
    features = PrithviEncoder(model()).eval().forward_features(torch.randn(1, 6, 1, 16, 16))
    spread = [f.var(dim=-1, correction=0) for f in features]
    assert torch.allclose(spread[-1], torch.ones_like(spread[-1]), atol=1e-3)
    assert all((s - 1).abs().max() > 1e-2 for s in spread[:-1])


def test_every_norm_has_the_epsilon_of_the_record() -> None:
    norms = [m for m in build_model(model(norm_eps=1e-3)).modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 2 * 4 + 1 + 2 * 1 + 1
    assert {norm.eps for norm in norms} == {1e-3}


def test_rows_and_columns_are_not_exchanged() -> None:
    encoder, x = PrithviEncoder(model()).eval(), torch.randn(1, 6, 1, 16, 40)
    tall = encoder(x.transpose(-1, -2))
    wide = encoder(x)
    assert tall.shape == wide.shape
    assert not torch.allclose(tall, wide, atol=1e-2)


def test_initial_values_are_those_of_pre_training() -> None:
    torch.manual_seed(0)
    encoder = PrithviEncoder(model(embed_dim=256))
    weight = encoder.patch_embed.proj.weight.flatten(1)
    assert weight.abs().max() <= (6 / (256 + 6 * 64)) ** 0.5
    assert weight.std().item() == pytest.approx((2 / (256 + 6 * 64)) ** 0.5, rel=0.02)
    qkv = encoder.blocks[0].attn.qkv
    assert qkv.weight.std().item() == pytest.approx((2 / (256 + 768)) ** 0.5, rel=0.02)
    assert not qkv.bias.any()
    assert encoder.cls_token.std().item() == pytest.approx(0.02, rel=0.15)


def test_border_that_fills_no_patch_is_dropped_with_a_warning() -> None:
    encoder, x = PrithviEncoder(model()).eval(), torch.randn(1, 6, 1, 16, 19)
    with pytest.warns(UserWarning, match="the border is dropped"):
        cut = encoder(x)
    assert torch.equal(cut, encoder(x[..., :16]))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((6, 1, 16, 16), r"frame even if 1"), ((1, 6, 1, 7, 16), r"smaller than one patch \(1, 8, 8\)")],
)
def test_what_is_no_batch_of_images_is_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        PrithviEncoder(model())(torch.zeros(shape))


def test_time_and_location_of_the_wrong_shape_are_refused() -> None:
    encoder, x = PrithviEncoder(model(coords=("time", "location"))), torch.zeros(2, 6, 3, 16, 16)
    with pytest.raises(TaskError, match=r"\(B, 3, 2\) is needed"):
        encoder(x, time=torch.zeros(2, 2, 2))
    with pytest.raises(TaskError, match="latitude, longitude"):
        encoder(x, location=torch.zeros(2, 3))


def test_another_number_of_frames_than_built_gets_its_own_dates() -> None:
    encoder = PrithviEncoder(model(coords=("time",))).eval()
    x, time = torch.randn(1, 6, 2, 16, 16), torch.tensor([[[2024.0, 10.0], [2024.0, 200.0]]])
    with torch.no_grad():
        added = encoder.embed(x, time) - encoder.embed(x)
        expected = encoder.temporal_embed_enc(time).repeat_interleave(4, dim=1)
    assert torch.allclose(added, expected, atol=1e-6)
    assert not torch.allclose(added[:, 0], added[:, 4])


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"num_heads": 5}, "no multiple of num_heads 5"), ({"patch_size": (2, 8, 8), "coords": ("time",)}, "it needs 1")],
)
def test_impossible_sizes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        PrithviEncoder(model(**changes))
