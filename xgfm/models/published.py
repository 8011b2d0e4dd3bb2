"""The published Prithvi models and fine-tunes, as records.

In: model cards, configurations and file layouts. Out: `MODELS` and `TASKS` by name. Nothing is downloaded or imported.
"""

from __future__ import annotations

from dataclasses import replace

from xgfm.models.spec import ClassInfo, ModelSpec, Statistics, TaskSpec, WeightsSource

_OWNER = "ibm-nasa-geospatial/"
_LICENCE = "Apache-2.0"
_V1_PAPER = "https://arxiv.org/abs/2310.18660"
_V2_PAPER = "https://arxiv.org/abs/2412.02732"

_V1_STATISTICS = Statistics(
    mean=(
        775.2290211032589,
        1080.992780391705,
        1228.5855250417867,
        2497.2022620507532,
        2204.2139147975554,
        1610.8324823273745,
    ),
    std=(
        1281.526139861424,
        1270.0297974547493,
        1399.4802505642526,
        1368.3446143747644,
        1291.6764008585435,
        1154.505683480695,
    ),
)
_V2_STATISTICS = Statistics(
    mean=(1087.0, 1342.0, 1433.0, 2734.0, 1958.0, 1363.0), std=(2248.0, 2179.0, 2178.0, 1850.0, 1242.0, 1049.0)
)

_V1 = ModelSpec(
    name="prithvi-eo-1.0-100m",
    title="Prithvi EO 1.0, 100M: HLS L30 of the United States, three dates",
    patch_size=(1, 16, 16),
    frames=3,
    embed_dim=768,
    depth=12,
    num_heads=12,
    statistics=_V1_STATISTICS,
    norm_eps=1e-6,  # of the model card's own script; its fine-tunes have 1e-5
    weights=WeightsSource("v1", _OWNER + "Prithvi-EO-1.0-100M", "Prithvi_EO_V1_100M.pt", size="454 MB"),
    licence=_LICENCE,
    paper=_V1_PAPER,
)


def _v2(
    size: str, embed_dim: int, depth: int, num_heads: int, *, patch: int, bytes_: str, sha256: str = ""
) -> ModelSpec:
    stem = size.replace("-", "_")
    return ModelSpec(
        name=f"prithvi-eo-2.0-{size.lower()}",
        title=f"Prithvi EO 2.0, {size}: HLS of the world, four dates",
        patch_size=(1, patch, patch),
        frames=4,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        statistics=_V2_STATISTICS,
        coords=("time", "location") if size.endswith("TL") else (),
        coords_scale_learned=size.endswith("TL"),
        weights=WeightsSource(
            "v2",
            f"{_OWNER}Prithvi-EO-2.0-{size}",
            f"Prithvi_EO_V2_{stem}.pt",
            sha256=sha256 or None,
            size=bytes_,
        ),
        licence=_LICENCE,
        paper=_V2_PAPER,
    )


_300M_SHA256 = "faab2c8b776f0723f93431747603a7ec586a54fc45473613b4322c29752486e7"

MODELS: dict[str, ModelSpec] = {
    model.name: model
    for model in (
        _V1,
        # The stored position table of the tiny model may be that of one frame; the cards' example gives it four, and
        # the table is computed for as many as there are.
        _v2("tiny-TL", 192, 12, 3, patch=16, bytes_="127 MB"),
        _v2("100M-TL", 768, 12, 12, patch=16, bytes_="450 MB"),
        _v2("300M", 1024, 24, 16, patch=16, bytes_="1.3 GB", sha256=_300M_SHA256),
        _v2("300M-TL", 1024, 24, 16, patch=16, bytes_="1.3 GB"),
        _v2("600M", 1280, 32, 16, patch=14, bytes_="2.6 GB"),
        _v2("600M-TL", 1280, 32, 16, patch=14, bytes_="2.6 GB"),
    )
}

_LAND_AND_WATER = ("#d9c8a0", "#2b6cb0")
_LAND_AND_SCAR = ("#b5c99a", "#9b2226")

_CROP_CLASSES = (
    ClassInfo("Natural Vegetation", "#e8ffbf"),
    ClassInfo("Forest", "#95ce93"),
    ClassInfo("Corn", "#ffd300"),
    ClassInfo("Soybeans", "#267000"),
    ClassInfo("Wetlands", "#7fafaf"),
    ClassInfo("Developed/Barren", "#9c9c9c"),
    ClassInfo("Open Water", "#4d70a3"),
    ClassInfo("Winter Wheat", "#a87000"),
    ClassInfo("Alfalfa", "#ffa5e2"),
    ClassInfo("Fallow/Idle Cropland", "#bfbf77"),
    ClassInfo("Cotton", "#ff2626"),
    ClassInfo("Sorghum", "#ff9e0c"),
    ClassInfo("Other", "#00af4d"),
)
"""In the order of the logits, in the colours of the USDA Cropland Data Layer that the labels were made from."""

_BURN_STATISTICS = Statistics(
    mean=(
        0.033349706741586264,
        0.05701185520536176,
        0.05889748132001316,
        0.2323245113436119,
        0.1972854853760658,
        0.11944914225186566,
    ),
    std=(
        0.02269135568823774,
        0.026807560223070237,
        0.04004109844362779,
        0.07791732423672691,
        0.08708738838140137,
        0.07241979477437814,
    ),
    reflectance_scale=1.0,
)

_TOP_OF_ATMOSPHERE = (
    "Trained on Sentinel-2 L1C, top-of-atmosphere reflectance at 10 m; surface reflectance at 30 m is another input.",
)
_NOTHING_REPLACED = (
    "Its published code feeds missing pixels to the model as -9999; here they are fed as the band's mean.",
)
_V1_BLOCKS = ("Twelve encoder blocks of 12 heads; the number of heads cannot be seen in the weights file.",)


def _v1_task(spec: TaskSpec, repo: str, stem: str, size: str) -> TaskSpec:
    weights = WeightsSource("mmseg", _OWNER + repo, f"{stem}_Prithvi_100M.pth", size=size)
    return replace(spec, weights=weights, licence=_LICENCE, paper=_V1_PAPER)


_FLOOD_V1 = TaskSpec(
    name="flood-v1",
    title="Flood water, one Sentinel-2 image (Prithvi EO 1.0, Sen1Floods11)",
    model=replace(_V1, frames=1, norm_eps=1e-5),
    statistics=Statistics(
        mean=(0.14245495, 0.13921481, 0.12434631, 0.31420089, 0.20743526, 0.12046503),
        std=(0.04036231, 0.04186983, 0.05267646, 0.0822221, 0.06834774, 0.05294205),
        reflectance_scale=1.0,
    ),
    classes=(ClassInfo("No water", _LAND_AND_WATER[0]), ClassInfo("Water", _LAND_AND_WATER[1])),
    architecture={"family": "mmseg", "neck_channels": 768},
    pixel_size=10.0,
    nodata_units="input",
    quirks=_TOP_OF_ATMOSPHERE + _V1_BLOCKS,
)

_BURN_V1 = TaskSpec(
    name="burn-v1",
    title="Burn scars, one HLS image (Prithvi EO 1.0)",
    model=replace(_V1, frames=1, norm_eps=1e-5),
    statistics=_BURN_STATISTICS,
    classes=(ClassInfo("Unburnt land", _LAND_AND_SCAR[0]), ClassInfo("Burn scar", _LAND_AND_SCAR[1])),
    architecture={"family": "mmseg", "neck_channels": 768},
    quirks=_NOTHING_REPLACED + _V1_BLOCKS,
)

_CROP = TaskSpec(
    name="crop",
    title="Thirteen land covers and crops of the United States, three HLS dates (Prithvi EO 1.0)",
    model=replace(
        _V1,
        name="prithvi-eo-1.0-6-blocks",
        title="The first six blocks of Prithvi EO 1.0, with 8 heads",
        depth=6,
        num_heads=8,
        norm_eps=1e-5,
        weights=None,
    ),
    statistics=Statistics(
        mean=(494.905781, 815.239594, 924.335066, 2968.881459, 2634.621962, 1739.579917),
        std=(284.925432, 357.84876, 575.566823, 896.601013, 951.900334, 921.407808),
    ),
    classes=_CROP_CLASSES,
    architecture={"family": "mmseg", "neck_channels": 2304, "quirk": {"name": "PlanesDateByDate"}},
    frames=3,
    quirks=(
        "Six encoder blocks of 8 heads, not 12 of 12; the number of heads cannot be seen in the weights file.",
        "Trained with bands and dates of its 18 planes exchanged; that order is made here from the true one.",
        *_NOTHING_REPLACED,
    ),
)

_LEARNED_PYRAMID = (
    {"name": "SelectIndices", "indices": [5, 11, 17, 23]},
    {"name": "ReshapeTokensToImage"},
    {"name": "LearnedInterpolateToPyramidal"},
)

_FLOOD = TaskSpec(
    name="flood",
    title="Flood water, one Sentinel-2 image (Prithvi EO 2.0 300M-TL, Sen1Floods11)",
    model=replace(MODELS["prithvi-eo-2.0-300m-tl"], frames=1),
    statistics=Statistics(
        mean=(0.1412956, 0.13795798, 0.12353792, 0.30902815, 0.2044958, 0.11912015),
        std=(0.07406382, 0.07370365, 0.08692279, 0.11798815, 0.09772074, 0.07659938),
        reflectance_scale=1.0,
    ),
    classes=(ClassInfo("No water", _LAND_AND_WATER[0]), ClassInfo("Water", _LAND_AND_WATER[1])),
    architecture={
        "family": "pixelwise",
        "necks": list(_LEARNED_PYRAMID[:2]),
        "decoder": {"name": "UperNetDecoder", "channels": 256, "scale_modules": True},
        "head": {"dropout": 0.1},
        "quirk": {"name": "Resized", "window": 256, "resized": 448},
    },
    window=256,
    pixel_size=10.0,
    nodata_units="input",
    quirks=(
        *_TOP_OF_ATMOSPHERE,
        "Windows of 256 pixels are enlarged to 448 for the model, and its classes brought back by nearest neighbour.",
        "A TL encoder that was fine-tuned without time and location.",
    ),
    weights=WeightsSource(
        "terratorch",
        _OWNER + "Prithvi-EO-2.0-300M-TL-Sen1Floods11",
        "Prithvi-EO-V2-300M-TL-Sen1Floods11.pt",
        size="1.3 GB",
    ),
    licence=_LICENCE,
    paper=_V2_PAPER,
)

_BURN = TaskSpec(
    name="burn",
    title="Burn scars, one HLS image (Prithvi EO 2.0 300M)",
    model=replace(MODELS["prithvi-eo-2.0-300m"], frames=1),
    statistics=_BURN_STATISTICS,
    classes=(ClassInfo("Not burned", _LAND_AND_SCAR[0]), ClassInfo("Burn scar", _LAND_AND_SCAR[1])),
    architecture={
        "family": "pixelwise",
        "necks": list(_LEARNED_PYRAMID),
        "decoder": {"name": "UNetDecoder", "channels": [512, 256, 128, 64], "last_enlarges": True},
        "head": {},
    },
    window=512,
    halo=32,
    nodata_fill=0.0001,
    quirks=("The last UNet block doubles the size, as in the library's version of the time it was trained.",),
    weights=WeightsSource(
        "terratorch", _OWNER + "Prithvi-EO-2.0-300M-BurnScars", "Prithvi_EO_V2_300M_BurnScars.pt", size="1.3 GB"
    ),
    licence=_LICENCE,
    paper=_V2_PAPER,
)

TASKS: dict[str, TaskSpec] = {
    task.name: task
    for task in (
        _v1_task(
            _CROP,
            "Prithvi-EO-1.0-100M-multi-temporal-crop-classification",
            "multi_temporal_crop_classification",
            "1.7 GB",
        ),
        _FLOOD,
        _v1_task(_FLOOD_V1, "Prithvi-EO-1.0-100M-sen1floods11", "sen1floods11", "1.2 GB"),
        _BURN,
        _v1_task(_BURN_V1, "Prithvi-EO-1.0-100M-burn-scar", "burn_scars", "1.2 GB"),
    )
}
