"""Layers of doubt from end to end: trained, stored, passed on, and against simulated truth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small
import xarray as xr
from field_chips import FRAMES, field, write_small_chips
from sklearn.metrics import roc_auc_score

import xgfm
from xgfm.cube.climates import CLIMATES
from xgfm.cube.phenology import CLASSES
from xgfm.cube.simulate import simulate_cube
from xgfm.errors import CubeError
from xgfm.infer.predict import predict
from xgfm.models.handle import load_task
from xgfm.models.spec import to_json
from xgfm.train.fit import fit
from xgfm.train.scores.calibration import Reliability, confidence_of, fit_temperature

SIZE = 192
UNSEEN = (21, 22)  # the recipe trains on seeds from 1000
Season = Callable[..., tuple[xr.DataArray, np.ndarray]]


@pytest.fixture(scope="module")
def season() -> Season:
    kept: dict[tuple[int, str], tuple[xr.DataArray, np.ndarray]] = {}

    def made(seed: int, climate: str = "continental") -> tuple[xr.DataArray, np.ndarray]:
        if (seed, climate) not in kept:
            cube, truth = simulate_cube(seed=seed, shape=(SIZE, SIZE), climate=climate)
            kept[seed, climate] = xgfm.composite(xgfm.mask(cube), 3).compute(), truth.values
        return kept[seed, climate]

    return made


def scores(frames: list[xr.DataArray]) -> np.ndarray:
    """One for each patch of the demonstration task that has data."""
    results = [predict(f, "crop-demo", return_="out_of_domain", precision="fp32", allow=["values"]) for f in frames]
    values = np.concatenate([r.out_of_domain.values[4::8, 4::8].ravel() for r in results])
    return values[np.isfinite(values)]


def area_under_curve(inside: np.ndarray, outside: np.ndarray) -> float:
    truth = np.r_[np.zeros(len(inside)), np.ones(len(outside))]
    return float(roc_auc_score(truth, np.r_[inside, outside]))


# ---- the demonstration task knows what it was trained on


def test_held_out_seasons_are_spread_evenly_over_the_shares(season: Season) -> None:
    values = scores([season(seed)[0] for seed in UNSEEN])
    assert 0.35 < np.median(values) < 0.65
    assert 0.01 < (values > 0.95).mean() < 0.12


def test_shuffled_bands_and_another_climate_are_told_from_them(season: Season) -> None:
    held_out = [season(seed)[0] for seed in UNSEEN]
    inside = scores(held_out)
    shuffled = [f.copy(data=f.values[:, [3, 4, 0, 5, 1, 2]]) for f in held_out]
    assert area_under_curve(inside, scores(shuffled)) > 0.99
    dates = [f.copy(data=f.values[[1, 2, 0]]) for f in held_out]
    assert area_under_curve(inside, scores(dates)) > 0.65  # each frame is compared with its own
    dry = [season(seed, "semi-arid")[0] for seed in UNSEEN]
    assert area_under_curve(inside, scores(dry)) > 0.75


def test_bf16_says_the_same_within_its_precision(season: Season) -> None:
    frames = season(UNSEEN[0])[0]
    exact, rough = (
        predict(frames, "crop-demo", return_="out_of_domain", precision=p).out_of_domain.values
        for p in ("fp32", "bf16")
    )
    assert np.nanmean(np.abs(exact - rough)) < 0.03
    np.testing.assert_array_equal(np.isnan(exact), np.isnan(rough))


def test_layers_come_back_from_a_store(season: Season, tmp_path: Path) -> None:
    frames = season(UNSEEN[0])[0].chunk(y=96, x=96)
    result = predict(frames, "crop-demo", return_=["class", "confidence", "out_of_domain"])
    result.gfm.to_zarr(tmp_path / "map.zarr")
    again = xr.open_zarr(tmp_path / "map.zarr", decode_coords="all", mask_and_scale=False)
    np.testing.assert_array_equal(again.out_of_domain.values, result.out_of_domain.values)
    assert again.out_of_domain.attrs["long_name"] == result.out_of_domain.attrs["long_name"]
    assert again.attrs["domain_digest"] == load_task("crop-demo").domain


def test_temperature_of_other_seasons_makes_it_as_sure_as_right(season: Season) -> None:
    def said(seed: int) -> tuple[np.ndarray, np.ndarray]:
        frames, truth = season(seed)
        logits = predict(frames, "crop-demo", return_="logits", precision="fp32").logits.values
        known = np.isfinite(logits[0])
        return np.moveaxis(logits, 0, -1)[known], truth[known]

    temperature = fit_temperature(*said(UNSEEN[0]))
    errors = []
    for used in (1.0, temperature):
        counted = Reliability()
        for logits, truth in map(said, UNSEEN[1:]):
            counted.add(truth, *confidence_of(logits, used))
        errors.append(counted.error)
    assert errors[1] < errors[0]
    assert errors[1] < 0.02


def test_climates_are_of_the_same_land_and_only_the_plants_differ() -> None:
    seasons = {name: simulate_cube(seed=5, shape=(64, 64), climate=name) for name in CLIMATES}
    first, truth = seasons["continental"]
    for name, (cube, other) in seasons.items():
        np.testing.assert_array_equal(other.values, truth.values)
        np.testing.assert_array_equal(cube.fmask.values, first.fmask.values)
        assert np.array_equal(cube.values, first.values) == (name == "continental")
    with pytest.raises(CubeError, match=r"climate='boreall' is none of .*the nearest name is 'boreal'"):
        simulate_cube(seed=5, shape=(64, 64), climate="boreall")


# ---- fit


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fit")
    chips = write_small_chips(folder / "chips.zarr")
    record = small.task(model=small.model(frames=FRAMES), frames=FRAMES)
    base = {"kind": "task", "spec": to_json(record)}
    return fit(chips, folder=folder / "run", base=base, task="fields", epochs=1, batch_size=4, device="cpu").task


def test_fit_leaves_a_task_that_knows_its_training_set(trained: Path) -> None:
    handle = load_task(trained)
    assert handle.domain
    cube, _ = field(seed=1)
    usual = predict(cube, handle, return_="out_of_domain").out_of_domain.values
    strange = predict(cube.where(cube < 0, cube + 3000), handle, return_="out_of_domain").out_of_domain.values
    assert np.nanmean(strange) > np.nanmean(usual) + 0.2


def test_fit_of_a_task_without_an_encoder_leaves_none(tmp_path: Path) -> None:
    chips = write_small_chips(tmp_path / "chips.zarr")
    record = small.task({"family": "unet", "widths": [4, 8]}, model=small.model(frames=FRAMES), frames=FRAMES)
    base = {"kind": "task", "spec": to_json(record)}
    result = fit(chips, folder=tmp_path / "run", base=base, task="plain", epochs=1, batch_size=4, device="cpu")
    assert load_task(result.task).domain == ""


# ---- areas


def test_intervals_of_areas_hold_the_truth_about_as_often_as_they_say(season: Season) -> None:
    """Of classes of which a sample holds five places or more where map and reference differ."""
    frames, truth = season(UNSEEN[0])
    codes = predict(frames, "crop-demo", precision="fp32").crop_demo.compute()
    known = codes.values != 255
    rng = np.random.default_rng(0)  # a worse map than the demonstration's: samples are small here
    worse = np.where(known & (rng.random(known.shape) < 0.2), rng.permutation(codes.values[known])[0], codes.values)
    codes = codes.copy(data=worse)
    mapped, true = (np.bincount(v[known], minlength=len(CLASSES)) for v in (codes.values, truth))
    held, wrong = [], np.zeros(len(CLASSES))
    for seed in range(150):
        table = xgfm.stratified_sample(codes, 600, seed)
        counts = np.zeros((len(CLASSES),) * 2)
        np.add.at(counts, (table["code"].to_numpy(), truth[table["row"], table["column"]]), 1)
        bounds = xgfm.estimate_areas(counts, mapped).interval
        wrong += (counts.sum(0) + counts.sum(1) - 2 * np.diag(counts)) / 150
        held.append((bounds[:, 0] <= true) & (true <= bounds[:, 1]))
    often = np.array(held)[:, wrong >= 5]
    assert often.shape[1] >= 3
    assert 0.92 < often.mean() < 0.98
