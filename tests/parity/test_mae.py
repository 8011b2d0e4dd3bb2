"""The autoencoder, its encoder and its encodings against the reference outputs of EO 2.0 and 1.0."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from xgfm.models.checkpoint import load_into, rename
from xgfm.models.encodings import position_table
from xgfm.models.mae import PrithviMAE, reconstruction_loss
from xgfm.models.spec import ModelSpec, Statistics

FILES = (
    "mae_p16_t1",
    "mae_p16_t1_tl",
    "mae_p16_t3",
    "mae_p16_t3_tl",
    "mae_p8_t1",
    "mae_p8_t1_tl",
    "mae_p8_t3",
    "mae_p8_t3_tl",
    "mae_p8_t3_tl_eps1e-6",
    "mae_p8_t1_tl_fixedscale",
    "mae_p8_t2_rect_time",
    "mae_tub2_p8_t4",
)


def spec_of(config: dict[str, Any], *, eps: float) -> ModelSpec:
    patch = config["patch_size"]
    size = config["img_size"]
    return ModelSpec(
        name="fixture",
        title="",
        patch_size=(config.get("tubelet_size", 1), patch, patch) if isinstance(patch, int) else tuple(patch),
        frames=config["num_frames"],
        embed_dim=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        statistics=Statistics((0.0,) * 6, (1.0,) * 6),
        image_size=size if isinstance(size, int) else max(size),
        decoder_embed_dim=config.get("decoder_embed_dim", 16),
        decoder_depth=config.get("decoder_depth", 1),
        decoder_num_heads=config.get("decoder_num_heads", 2),
        coords=tuple(config.get("coords_encoding", ())),
        coords_scale_learned=config.get("coords_scale_learn", False),
        norm_eps=eps,
    )


def autoencoder(reference: Any, layout: str = "v2") -> PrithviMAE:
    config = reference.json("config")
    spec = spec_of(config, eps=float(reference.facts["layernorm_eps"]))
    size = config["img_size"]
    model = PrithviMAE(spec, image_size=tuple(size) if isinstance(size, list) else None)
    load_into(model, rename(reference.under("state/"), layout), "fixture")
    return model.eval()


def coordinates(reference: Any, batch: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    return reference["in/temporal_coords"][:batch], reference["in/location_coords"][:batch]


@pytest.mark.parametrize("file", FILES)
def test_encoder_features_match(reference: Any, same: Any, file: str) -> None:
    model, x = autoencoder(reference), reference["in/x"]
    same("features, latent", model.encoder.patch_embed(x), reference["out/patch_embed"])
    for index, features in enumerate(model.encoder.forward_features(x)):
        same("features, latent", features, reference[f"out/plain/features/{index}"])
    same("features, latent", model.encoder(x), reference["out/plain/features/1"])


@pytest.mark.parametrize("file", FILES)
def test_masked_pass_matches(reference: Any, same: Any, file: str) -> None:
    model, x, noise = autoencoder(reference), reference["in/x"], reference["in/noise"]
    ratio = float(reference.facts["mask_ratio"])
    out = model(x, mask_ratio=ratio, noise=noise)
    same("exact", out.mask, reference["out/plain/mae/mask"])
    same("exact", out.ids_restore, reference["out/plain/mae/ids_restore"])
    same("features, latent", out.latent, reference["out/plain/mae/latent"])
    same("MAE prediction", out.prediction, reference["out/plain/mae/pred"])
    same("loss", out.loss, reference["out/plain/mae/loss"])
    normalised = reconstruction_loss(model.patchify(x), out.prediction, out.mask, normalise_target=True)
    same("loss", normalised, reference["out/plain/mae/loss_norm_pix"])
    half = model(x, mask_ratio=0.5, noise=noise)
    same("exact", half.mask, reference["out/plain/mae50/mask"])
    same("loss", half.loss, reference["out/plain/mae50/loss"])
    if "out/plain/mae/pred_image" in reference:
        same("MAE prediction", model.unpatchify(out.prediction, out.grid), reference["out/plain/mae/pred_image"])
        same("exact", model.mask_image(out.mask, out.grid), reference["out/plain/mae/mask_image"])
    if "out/patchify" in reference:
        same("exact", model.patchify(x), reference["out/patchify"])
        same("exact", model.unpatchify(model.patchify(x), out.grid), x)


@pytest.mark.parametrize("file", [name for name in FILES if "tl" in name or "time" in name])
def test_time_and_location_match(reference: Any, same: Any, file: str) -> None:
    model, x, (time, location) = autoencoder(reference), reference["in/x"], coordinates(reference)
    encoder = model.encoder
    for index, features in enumerate(encoder.forward_features(x, time, location)):
        same("features, latent", features, reference[f"out/coords/features/{index}"])
    same("features, latent", encoder(x, time=time), reference["out/coords/features_time_only_last"])
    same("features, latent", encoder(x, location=location), reference["out/coords/features_location_only_last"])
    same("time and location", encoder.temporal_embed_enc(time), reference["out/coords/temporal_embedding"])
    if encoder.location_embed_enc is not None:
        ours = encoder.location_embed_enc(location)[:, None]
        same("time and location", ours, reference["out/coords/location_embedding"])
    out = model(x, time, location, mask_ratio=float(reference.facts["mask_ratio"]), noise=reference["in/noise"])
    same("features, latent", out.latent, reference["out/coords/mae/latent"])
    same("MAE prediction", out.prediction, reference["out/coords/mae/pred"])
    same("loss", out.loss, reference["out/coords/mae/loss"])


@pytest.mark.parametrize("file", FILES)
def test_other_sizes_and_frames_match(reference: Any, same: Any, file: str) -> None:
    model = autoencoder(reference)
    device = torch.device("cpu")
    built = model.encoder.grid(reference["in/x"])
    for prefix, part in (("encoder.pos_embed", model.encoder), ("decoder.decoder_pos_embed", model.decoder)):
        table = position_table(part.width, part.built, built, device)
        same("pos_embed, built size", table, reference[f"state/{prefix}"])
    for size in reference.json("alts"):
        alt = reference.under(f"alt/{size}/")
        grid = model.encoder.grid(alt["x"])
        for name, part in (("pos_embed", model.encoder), ("decoder_pos_embed", model.decoder)):
            same("pos_embed, other size", position_table(part.width, part.built, grid, device), alt[name])
        same("features, latent", model.encoder(alt["x"]), alt["features_last"])
        out = model(alt["x"], mask_ratio=float(reference.facts["mask_ratio"]), noise=alt["noise"])
        same("loss", out.loss, alt["mae_loss"])
        if "mae_pred" in alt:
            same("MAE prediction", out.prediction, alt["mae_pred"])
        if "features_last_coords" in alt:
            same("features, latent", model.encoder(alt["x"], *coordinates(reference, 1)), alt["features_last_coords"])


@pytest.mark.parametrize("file", FILES)
def test_gradients_match(reference: Any, same: Any, file: str) -> None:
    model, theirs = autoencoder(reference), reference.under("grad/")
    given = coordinates(reference) if reference.facts["grad_uses_coords"] == "True" else ()
    model(
        reference["in/x"], *given, mask_ratio=float(reference.facts["mask_ratio"]), noise=reference["in/noise"]
    ).loss.backward()
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert theirs
    for name, gradient in theirs.items():
        same("gradient (relative)", ours[name], gradient)


@pytest.mark.parametrize("file", ["v1_mae_flat_p16_t3"])
def test_v1_flat_layout_matches(reference: Any, same: Any, file: str) -> None:
    model, x = autoencoder(reference, "v1"), reference["in/x"]
    tokens = model.encoder.prepend_cls(model.encoder.embed(x))
    for index, block in enumerate(model.encoder.blocks):
        tokens = block(tokens)
        same("features, latent", tokens, reference[f"out/layer/{index}"])
    same("features, latent", model.encoder(x), reference["out/normed_last"])
    out = model(x, mask_ratio=float(reference.facts["mask_ratio"]), noise=reference["in/noise"])
    same("exact", out.mask, reference["out/mask"])
    same("exact", out.ids_restore, reference["out/ids_restore"])
    same("features, latent", out.latent, reference["out/latent"])
    same("MAE prediction", out.prediction, reference["out/pred"])
    same("loss", out.loss, reference["out/loss"])
