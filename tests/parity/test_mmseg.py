"""The fine-tunes of EO 1.0 against the reference outputs."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from peer_tiling import slide_average

from xgfm.models.checkpoint import load_into, rename
from xgfm.models.mmseg import MmsegModel
from xgfm.models.prithvi import PrithviEncoder

from .test_mae import spec_of


def segmentor(reference: Any) -> MmsegModel:
    config = reference.json("config")
    assert config["decode_num_convs"] == 1
    assert config["aux_num_convs"] == 2
    spec = spec_of(config["backbone"], eps=float(reference.facts["layernorm_eps"]))
    model = MmsegModel(
        PrithviEncoder(spec),
        spec.frames,
        config["num_classes"],
        neck_channels=config["neck_output_embed_dim"],
        head_channels=config["head_channels"],
    )
    load_into(model, rename(reference.under("state/"), "mmseg"), "fixture")
    return model.eval()


@pytest.mark.parametrize("file", ["v1_mmseg_flood_like_t1", "v1_mmseg_crop_like_t3"])
def test_v1_fine_tunes_match(reference: Any, same: Any, file: str) -> None:
    model, config, x = segmentor(reference), reference.json("config"), reference["in/x"]
    same("features, latent", model.backbone(x), reference["out/backbone"])
    shared = model.neck_map(x)
    same("necks, decoders, logits", shared[:, :8], reference["out/neck_first8"])
    same("necks, decoders, logits", model.decode_head(shared), reference["out/logits_decode_head"])
    same("necks, decoders, logits", model.auxiliary_head(shared), reference["out/logits_aux_head"])
    decoded, auxiliary = model.with_auxiliary(x)
    same("necks, decoders, logits", decoded, reference["out/encode_decode"])
    same("necks, decoders, logits", model(x), reference["out/encode_decode"])
    same("necks, decoders, logits", auxiliary, reference["out/logits_aux_head"])
    slid = slide_average(model, reference["in/x_slide"], crop=config["slide_crop"], stride=config["slide_stride"])
    same("necks, decoders, logits", slid, reference["out/slide_logits"])
    same("exact", slid.argmax(1), reference["out/slide_argmax"])


@pytest.mark.parametrize("file", ["v1_mmseg_crop_like_t3"])
def test_head_count_is_not_in_the_shapes(reference: Any, file: str) -> None:
    config = reference.json("config")
    config["backbone"]["num_heads"] = 2
    reference.facts["config"] = json.dumps(config)
    wrong = segmentor(reference)(reference["in/x"])
    assert (wrong - reference["out/encode_decode"]).abs().max() > 1e-3


@pytest.mark.parametrize("file", ["v1_mmseg_crop_like_t3"])
def test_channel_order_is_frame_fastest(reference: Any, file: str) -> None:
    model = segmentor(reference)
    tokens = torch.arange(13 * 32.0).reshape(1, 13, 32)
    image = model.neck.image(tokens, (3, 2, 2))
    assert image[0, 5 * 3 + 1, 0, 1] == tokens[0, 1 + 1 * 4 + 1, 5]
