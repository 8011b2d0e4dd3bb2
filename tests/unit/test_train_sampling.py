from __future__ import annotations

import warnings

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import toys
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Geod

from xgfm.cf import class_flags
from xgfm.errors import LabelError
from xgfm.grid import geobox_of, with_grid
from xgfm.models.spec import ClassInfo
from xgfm.train.sampling.autocorrelation import GONE, correlogram
from xgfm.train.sampling.counts import candidates
from xgfm.train.sampling.places import Places, block_ids
from xgfm.train.sampling.plan import LeakageWarning, count_columns, draw_splits, leakage, plan_chips, split_table
from xgfm.train.sampling.splits import Deal, deal

INFOS = tuple(ClassInfo(name, f"#{n:06x}") for n, name in enumerate(("Corn", "Winter wheat", "Water")))


def label_array(values: np.ndarray, box: GeoBox | None = None, **coords: object) -> xr.DataArray:
    """Return a label array of these values."""
    box = toys.geobox(*values.shape[-2:]) if box is None else box
    attrs = class_flags(INFOS) if values.dtype == np.uint8 else {"units": "1"}
    dims = ("time", "y", "x")[-values.ndim :]
    return with_grid(xr.DataArray(values, dims=dims, name="label", attrs=attrs, coords=coords), box)


def mosaic(cell: int = 8, shape: tuple[int, int] = (256, 256), seed: int = 0, missing: float = 0.0) -> np.ndarray:
    """Return squares of one class each, drawn independently; a share of them unlabelled."""
    rng = np.random.default_rng(seed)
    squares = rng.integers(0, 3, tuple(n // cell + 2 for n in shape)).astype("uint8")
    squares[rng.random(squares.shape) < missing] = 255
    top, left = rng.integers(0, cell, 2)
    return squares.repeat(cell, 0).repeat(cell, 1)[top : top + shape[0], left : left + shape[1]]


LABELS = label_array(mosaic())


def quiet(*args: object, **options: object) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LeakageWarning)
        return plan_chips(*args, **options)


def gaps(plan: pd.DataFrame, size: int, one: str, other: str) -> np.ndarray:
    """Distances in pixels between the nearest pixels of chips of two splits, of one source; by brute force."""
    a, b = (plan.loc[plan["split"] == name, ["row", "column"]].to_numpy() for name in (one, other))
    apart = np.maximum(np.abs(a[:, None] - b[None]) - (size - 1), 0)
    return np.hypot(apart[..., 0], apart[..., 1])


def parted(plan: pd.DataFrame, *keys: str) -> bool:
    """Return whether rows that are alike in these columns lie in several splits."""
    return bool(plan.drop_duplicates([*keys, "split"]).duplicated(list(keys)).any())


# ---- counts


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(20, 50), st.integers(20, 50), st.booleans())
def test_counts_are_those_of_the_pixels(size: int, stride: int, high: int, wide: int, lazy: bool) -> None:
    labels = label_array(mosaic(5, (high, wide), missing=0.3))
    expected = set()
    for row in range(0, high - size + 1, stride):
        for column in range(0, wide - size + 1, stride):
            chip = labels.values[row : row + size, column : column + size]
            counts = tuple(int((chip == k).sum()) for k in range(3))
            if sum(counts):
                expected.add((row, column, *counts))
    given_labels = [labels.chunk(y=13, x=11) if lazy else labels]
    if not expected:
        with pytest.raises(LabelError, match="no pixel is labelled"):
            candidates(given_labels, size, stride)
        return
    plan = candidates(given_labels, size, stride)
    found = plan[["row", "column", *count_columns(INFOS)]].itertuples(index=False, name=None)
    assert set(found) == expected


def test_places_are_the_centres_of_chips() -> None:
    plan = quiet(LABELS, size=32, split="random")
    assert list(plan.columns[:8]) == ["source", "row", "column", "step", "x", "y", "group", "split"]
    for chip in plan.sample(5, random_state=0).itertuples():
        there = LABELS.isel(y=slice(chip.row, chip.row + 32), x=slice(chip.column, chip.column + 32))
        assert (float(there.x.mean()), float(there.y.mean())) == pytest.approx((chip.x, chip.y))


def test_regression_targets_are_counted_where_they_are_numbers() -> None:
    values = np.where(mosaic(missing=0.5) == 255, np.nan, mosaic()).astype("float32")
    plan = quiet(label_array(values), size=32, buffer=0.0)
    assert int(plan["n_labelled"].sum()) == int((~np.isnan(values)).sum())


def test_chips_with_too_few_labels_are_left_out() -> None:
    labels = label_array(mosaic(missing=0.4))
    plan = quiet(labels, size=16, min_labelled=0.6, buffer=0.0)
    assert plan[count_columns(INFOS)].sum(axis=1).min() >= 0.6 * 256
    assert 0 < len(plan) < len(quiet(labels, size=16, buffer=0.0))
    with pytest.raises(LabelError, match=r"no chip has 256 labelled pixels, the best has .*lower min_labelled="):
        quiet(label_array(np.where(np.arange(256) % 5, mosaic(), 255).astype("uint8")), size=16, min_labelled=1.0)


def test_lazy_labels_are_counted_without_being_held() -> None:
    values = da.from_array(mosaic(16, (640, 640)), chunks=(64, 64))
    held = []
    labels = label_array(np.zeros((640, 640), "uint8")).copy(data=values)

    class Watch(dask.callbacks.Callback):
        def _posttask(self, key, result, dsk, state, worker_id):
            held.append(sum(getattr(v, "nbytes", 0) for v in state["cache"].values()))

    with dask.config.set(scheduler="sync"), Watch():
        lazy = quiet(labels, size=32)
    pd.testing.assert_frame_equal(lazy, quiet(labels.compute(), size=32))
    assert held


# ---- splits


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 1000), st.sampled_from([16, 24, 32]), st.sampled_from([16, 32]),
    st.floats(0, 1500), st.sampled_from([1000.0, 2000.0, 2600.0]),
)  # fmt: skip
def test_no_evaluated_pixel_lies_nearer_to_a_train_pixel_than_the_buffer(seed, size, stride, buffer, block) -> None:
    plan = quiet(
        LABELS,
        size=size,
        stride=stride,
        block=block,
        buffer=buffer,
        seed=seed,
        allow_missing=True,
        shares=(0.6, 0.2, 0.2),
    )
    for name in ("val", "test"):
        apart = gaps(plan, size, "train", name)
        assert apart.size
        assert apart.min() * 30 >= buffer - 1e-6
        assert apart.min() >= 1  # never one on the other
    kept = plan[plan["split"] != "none"]
    assert not parted(kept, "group")


def test_the_same_seed_gives_the_same_plan_and_another_another() -> None:
    first, again, other = (quiet(LABELS, size=32, seed=s) for s in (3, 3, 4))
    pd.testing.assert_frame_equal(first, again)
    assert (first["split"] != other["split"]).any()


def test_shares_are_of_every_class() -> None:
    plan = quiet(label_array(mosaic(8, (512, 512))), size=16, block=1500.0, buffer=0.0, shares=(0.6, 0.1, 0.3))
    table = split_table(plan)
    assert list(table.index) == ["train", "val", "test"]
    shares = table[count_columns(INFOS)] / table[count_columns(INFOS)].sum()
    for name, share in zip(table.index, (0.6, 0.1, 0.3), strict=True):
        assert shares.loc[name].to_numpy() == pytest.approx(share, abs=0.06)
    assert int(table["chips"].sum()) == len(plan) == 32 * 32
    assert (table["groups"] >= 2).all()


@pytest.mark.parametrize("seed", range(4))
def test_a_rare_class_comes_into_every_split(seed: int) -> None:
    # Forty groups of a common class, three of them with rare ones: one has to lie in each split.
    counts = np.zeros((40, 11), "int64")
    counts[:, 0] = 1000
    counts[[3, 17, 30], 1:] = 1
    split = deal(Deal(np.arange(40), counts, np.empty((0, 2), "int64"), (0.8, 0.1, 0.1)), seed)
    assert sorted(split[[3, 17, 30]]) == [0, 1, 2]


def test_a_split_may_have_no_share() -> None:
    plan = quiet(LABELS, size=32, shares=(0.8, 0.2, 0.0))
    assert set(plan["split"]) <= {"train", "val", "none"}


def test_blocks_are_those_of_the_ground_whatever_the_grid() -> None:
    lon, lat = np.random.default_rng(0).uniform([-180, -85], [180, 85], (2000, 2)).T
    ids = block_ids(lon, lat, 10_000.0)
    shuffled = np.random.default_rng(1).permutation(2000)
    np.testing.assert_array_equal(block_ids(lon[shuffled], lat[shuffled], 10_000.0), ids[shuffled])
    np.testing.assert_array_equal(block_ids(lon + 360, lat, 10_000.0), ids)
    # The zone of a chip does not matter: one place, two zones.
    west, east = toys.geobox(64, 64), toys.geobox(64, 64, crs="EPSG:32614", column=31_000)
    for box in (west, east):
        table = pd.DataFrame({"source": [0], "row": [0], "column": [0]})
        places = Places.of(table, [box], 64)
        x, y = places.corners.mean(axis=1).T
        assert x[0] == pytest.approx(box.boundingbox.left + 30 * 32)
        assert y[0] == pytest.approx(box.boundingbox.top - 30 * 32)


@pytest.mark.parametrize("lat", [0.0, 23.0, 47.0, 68.0, -80.0])
@pytest.mark.parametrize("side", [2_000.0, 50_000.0])
def test_blocks_are_squares_of_one_area(lat: float, side: float) -> None:
    geod = Geod(ellps="sphere")
    steps = np.arange(0, 4 * side, side / 200)
    east, _, _ = geod.fwd(np.full(len(steps), 12.3), np.full(len(steps), lat), np.full(len(steps), 90.0), steps)
    _, north, _ = geod.fwd(np.full(len(steps), 12.3), np.full(len(steps), lat), np.zeros(len(steps)), steps)
    for ids in (block_ids(east, np.full(len(steps), lat), side), block_ids(np.full(len(steps), 12.3), north, side)):
        lengths = np.diff(np.flatnonzero(np.diff(ids)))[:2] * side / 200
        assert lengths == pytest.approx(side, rel=0.06)


def test_dates_of_one_place_are_never_parted() -> None:
    values = np.stack([mosaic(seed=s) for s in range(3)])
    times = np.array(["2022-07-01", "2023-07-01", "2024-07-01"], "datetime64[ns]")
    labels = label_array(values, time=times)
    plan = quiet(labels, size=32)
    assert set(plan["step"]) == {0, 1, 2}
    assert not parted(plan, "row", "column")
    years = quiet(labels, size=32, split="year", shares=(1 / 3, 1 / 3, 1 / 3))
    assert set(years["group"]) == {2022, 2023, 2024}
    assert not parted(years, "step")
    assert "none" not in set(years["split"])
    found = leakage(years, labels)
    assert not found.leaks
    assert found.same_places == 1.0
    assert "says nothing about other places" in str(found)


def neighbours(seed: int = 0) -> list[xr.DataArray]:
    """Return label arrays of three pieces of ground side by side, each a little over the next."""
    whole = label_array(mosaic(8, (96, 400), seed))
    return [whole[:, start : start + 144] for start in (0, 128, 256)]


def test_tiles_are_groups_and_what_they_share_is_left_out() -> None:
    tiles = neighbours()
    plan = quiet(tiles, size=16, split="tile", buffer=0.0, shares=(0.4, 0.3, 0.3))
    assert set(plan["group"]) == {0, 1, 2}
    columns = plan["column"] + plan["source"] * 128
    plan = plan.assign(column=columns)
    for name in ("val", "test"):
        assert gaps(plan, 16, "train", name).min() >= 1
    assert (plan["split"] == "none").any()


def test_chips_of_two_zones_are_compared_on_the_ground() -> None:
    box = GeoBox.from_bbox((-93.05, 45.0, -92.95, 45.05), "EPSG:4326", resolution=0.0003)
    degrees = label_array(mosaic(8, tuple(box.shape)), box)
    metres = GeoBox.from_bbox(box.extent.to_crs("EPSG:32615").boundingbox.bbox, "EPSG:32615", resolution=30)
    tiles = [degrees, label_array(mosaic(8, tuple(metres.shape)), metres)]
    options = {"size": 16, "split": "tile", "shares": (0.5, 0.0, 0.5), "allow_missing": True}
    # Both cover the same ground: one of them is left out.
    with pytest.raises(LabelError, match=r"split '(train|test)' is empty"):
        quiet(tiles, **options)
    # Only half of it: what is left lies a buffer away.
    plan = quiet([degrees[:, :160], tiles[1]], buffer=900.0, **options)
    lon, lat = Places.of(plan, [geobox_of(degrees[:, :160]), metres], 1).lonlat()
    train, test = (np.flatnonzero(plan["split"] == name) for name in ("train", "test"))
    first, second = (part.ravel() for part in np.meshgrid(train, test))
    _, _, apart = Geod(ellps="WGS84").inv(lon[first], lat[first], lon[second], lat[second])
    assert train.size
    assert test.size
    # Between the upper left corners of chips of 16 pixels, of 24 and 30 m on the ground.
    assert apart.min() > 900 + 15 * 24
    assert apart.min() < 900 + 3 * 16 * 30


def test_a_coordinate_can_be_the_split_or_the_group() -> None:
    farm = np.kron(np.arange(16).reshape(4, 4), np.ones((64, 64), int))
    labels = LABELS.assign_coords(farm=(("y", "x"), farm))
    plan = quiet(labels, size=32, split="farm", buffer=0.0)
    assert plan["group"].nunique() == 16
    assert not parted(plan, "group")
    fold = np.array(["train", "val", "test"], object)[np.clip(np.arange(256) // 86, 0, 2)]
    given_split = quiet(LABELS.assign_coords(fold=("x", fold)), size=16, split="fold")
    centre = given_split["column"].to_numpy() + 8
    assert (given_split["split"].to_numpy() == fold[centre]).mean() > 0.95
    several = [t.assign_coords(region=n) for t, n in zip(neighbours(), "abc", strict=True)]
    assert quiet(several, size=16, split="region", shares=(0.4, 0.3, 0.3))["group"].nunique() == 3


def test_classes_are_drawn_alike_when_asked() -> None:
    values = np.zeros((256, 256), "uint8")
    values[:, ::32] = 1
    values[::64, 5:9] = 2
    labels = label_array(values)
    options = {"size": 8, "chips": 60, "split": "random", "allow_missing": True}
    drawn = {b: [quiet(labels, balance=b, seed=seed, **options) for seed in range(6)] for b in (0.0, 1.0)}
    water = {b: sum(p.loc[p["split"] == "train", "n_Water"].sum() for p in plans) for b, plans in drawn.items()}
    assert water[1.0] > 5 * water[0.0] > 0
    plain, even = drawn[0.0][0], drawn[1.0][0]
    counts = [(plan["split"] == n).sum() for plan in (plain, even) for n in ("train", "val", "test")]
    assert counts == [42, 9, 9] * 2
    assert not plain.duplicated(["row", "column"]).any()


def test_weights_of_a_draw_are_as_stated() -> None:
    from xgfm.train.sampling.splits import _weights

    counts = np.array([[8, 0], [8, 0], [4, 4]])
    np.testing.assert_allclose(_weights(counts, 1.0), [0.2, 0.2, 0.6])
    np.testing.assert_allclose(_weights(counts, 0.0), [1 / 3] * 3)


def test_a_deal_keeps_groups_together_and_near_chips_apart() -> None:
    rng = np.random.default_rng(0)
    group = rng.integers(0, 30, 300)
    near = rng.integers(0, 300, (40, 2))
    split = deal(Deal(group, rng.integers(1, 50, (300, 4)), near[near[:, 0] != near[:, 1]], (0.6, 0.2, 0.2)), seed=0)
    for number in np.unique(group):
        assert len(set(split[group == number]) - {3}) <= 1
    one, other = split[near[:, 0]], split[near[:, 1]]
    assert not (((one == 0) & np.isin(other, (1, 2))) | ((other == 0) & np.isin(one, (1, 2)))).any()


# ---- autocorrelation and leakage


@pytest.mark.parametrize("cell", [6, 12, 24])
def test_the_range_of_a_mosaic_is_that_of_its_squares(cell: int) -> None:
    curve = correlogram([label_array(mosaic(cell, (600, 600), seed=1))])
    # Two points d apart lie in one square with probability 1 - 4d/(pi L) + d^2/(pi L^2), for d < L.
    lags = np.linspace(0, cell, 2000)
    known = 1 - 4 * lags / (np.pi * cell) + lags**2 / (np.pi * cell**2)
    expected = 30 * lags[np.argmax(known < GONE)]
    assert curve.reached
    assert curve.range == pytest.approx(expected, rel=0.15)
    below = np.array(curve.distance) < 30 * cell
    np.testing.assert_allclose(
        np.array(curve.correlation)[below], np.interp(np.array(curve.distance)[below], 30 * lags, known), atol=0.08
    )


def test_the_range_of_numbers_is_that_of_their_average() -> None:
    noise = np.random.default_rng(0).normal(size=(420, 420))
    width = 20  # a mean over a square of 20: correlation (1 - dx/20)(1 - dy/20)
    total = np.pad(noise.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    mean = (
        total[width:, width:] - total[:-width, width:] - total[width:, :-width] + total[:-width, :-width]
    ) / width**2
    curve = correlogram([label_array(mean.astype("float32"))])
    assert curve.range == pytest.approx(30 * width * 0.64, rel=0.2)


def test_points_have_a_range_too() -> None:
    values = np.full((256, 256), 255, "uint8")
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, 256, (2, 1200))
    values[rows, columns] = mosaic(24)[rows, columns]
    sparse, dense = (correlogram([label_array(v)]).range for v in (values, mosaic(24)))
    assert sparse == pytest.approx(dense, rel=0.3)


def test_labels_that_are_all_alike_have_no_range() -> None:
    assert correlogram([label_array(np.ones((64, 64), "uint8"))]).range == 0.0
    trend = label_array(np.linspace(0, 1, 64 * 64, dtype="float32").reshape(64, 64))
    assert correlogram([trend]).range > 500


def test_a_random_split_leaks_and_blocks_do_not() -> None:
    with pytest.warns(LeakageWarning, match=r"LEAKS: .*split='blocks'"):
        random = plan_chips(LABELS, size=16, split="random")
    with warnings.catch_warnings():
        warnings.simplefilter("error", LeakageWarning)
        blocks = plan_chips(LABELS, size=16)
    found = leakage(random, LABELS), leakage(blocks, LABELS)
    assert [f.leaks for f in found] == [True, False]
    assert found[0].nearest_test == pytest.approx(30)
    assert found[0].near_share > 0.9
    assert found[1].near_share == 0.0
    assert found[1].nearest_test == pytest.approx(30 * gaps(blocks, 16, "train", "test").min())
    assert min(found[1].nearest_test, found[1].nearest_val) >= blocks.attrs["range"]


def test_what_leaks_is_what_position_alone_can_guess() -> None:
    """Labels without any signal: a guess from the nearest train pixel must not beat chance where there is no leak."""
    labels = label_array(mosaic(16, (512, 512), seed=5))
    skill = {}
    for split in ("random", "blocks"):
        plan = quiet(labels, size=8, split=split, seed=1)
        train, test = (plan[plan["split"] == n] for n in ("train", "test"))
        truth = labels.values[test["row"] + 4, test["column"] + 4]
        apart = np.hypot(*(test[d].to_numpy()[:, None] - train[d].to_numpy()[None] for d in ("row", "column")))
        nearest = train.iloc[apart.argmin(axis=1)]
        skill[split] = float((labels.values[nearest["row"] + 4, nearest["column"] + 4] == truth).mean())
    assert skill["random"] > 0.5
    assert skill["blocks"] < 0.42  # chance: one in three


def test_a_buffer_too_small_is_told() -> None:
    with pytest.warns(LeakageWarning, match="too near"):
        plan = plan_chips(label_array(mosaic(32)), size=16, buffer=0.0)
    assert "nearest train and test pixels" in str(leakage(plan, label_array(mosaic(32))))


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"size": 300}, "chips of 300 x 300 pixels do not fit into labels of 256 x 256; choose a smaller size="),
        ({"size": 0}, "size is 0 and stride 0"),
        ({"size": 16, "shares": (0.5, 0.5, 0.5)}, "which sum to 1"),
        ({"size": 16, "shares": (0.0, 0.5, 0.5)}, "which sum to 1"),
        ({"size": 16, "balance": 0.5}, "say how many of them, chips="),
        ({"size": 16, "balance": 2, "chips": 9}, "balance is 2"),
        ({"size": 16, "chips": 0}, "chips is 0"),
        ({"size": 16, "min_labelled": 50}, "min_labelled is 50"),
        ({"size": 16, "block": -1}, "block is -1"),
        ({"size": 16, "buffer": float("nan")}, "buffer nan"),
        ({"size": 16, "split": "farm"}, "split='farm' is none of blocks, tile, year, random, and no coordinate"),
        ({"size": 16, "split": "tile"}, "all chips lie in one label array"),
        ({"size": 16, "split": "year"}, "needs labels with a time"),
        ({"size": 16, "block": 1e6}, "all chips lie in one block of 1e.06 m; give a smaller block="),
        (
            {"size": 128, "buffer": 5000.0},
            "split '(val|test|train)' is empty: .*buffer of 5000 m; give a smaller buffer=",
        ),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict, told: str) -> None:
    with pytest.raises(LabelError, match=told):
        quiet(LABELS, **options)


def test_a_class_with_no_sample_in_a_split_is_refused() -> None:
    values = mosaic()
    values[values == 2] = 0
    values[:20, :20] = 2
    with pytest.raises(
        LabelError, match=r"class 'Water' has no sample in split '(val|test|train)'; .*allow_missing=True"
    ):
        quiet(label_array(values), size=32, block=1000.0, buffer=0.0)
    with pytest.raises(
        LabelError, match=r"class 'Water' has no sample in any split: .*legend.merge\({'Water': None}\)"
    ):
        quiet(label_array(np.where(values == 2, 0, values).astype("uint8")), size=32)
    plan = quiet(label_array(values), size=32, block=1000.0, buffer=0.0, allow_missing=True)
    assert {"train", "val", "test"} <= set(plan["split"])


def test_labels_that_are_none_are_refused() -> None:
    with pytest.raises(LabelError, match="no pixel is labelled in any chip"):
        quiet(label_array(np.full((64, 64), 255, "uint8")), size=16)
    with pytest.raises(LabelError, match=r"hold \[7\], but have 3 classes"):
        quiet(label_array(np.full((64, 64), 7, "uint8")), size=16)
    with pytest.raises(LabelError, match="no labels were given"):
        quiet([], size=16)
    with pytest.raises(LabelError, match="dims"):
        quiet(LABELS.expand_dims("band"), size=16)
    other = LABELS.copy()
    other.attrs = class_flags(INFOS[:2])
    with pytest.raises(LabelError, match="labels 0 and 1 have different classes"):
        quiet([LABELS, other], size=16)


def test_a_report_needs_the_plan_as_it_was_made() -> None:
    plan = quiet(LABELS, size=16)
    bare = pd.DataFrame(plan.to_dict("list"))
    with pytest.raises(LabelError, match="with its attrs"):
        leakage(bare, LABELS)
    with pytest.raises(LabelError, match="of 2 label arrays, 1 were given"):
        leakage(plan.assign(source=1), LABELS)


def test_a_map_shows_every_split(tmp_path) -> None:
    plan = quiet(LABELS, size=32)
    figure = draw_splits(plan, LABELS)
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    counts = split_table(plan)["chips"]
    assert told == [f"{'left out' if n == 'none' else n} ({counts[n]})" for n in counts.index]
    drawn = sum(len(c.get_paths()) for c in figure.axes[0].collections)
    assert drawn == len(plan)
    figure.savefig(tmp_path / "splits.png")
    assert geobox_of(LABELS).boundingbox.left == pytest.approx(figure.axes[0].get_xlim()[0])
    with pytest.raises(LabelError, match="no chip of label array 3"):
        draw_splits(plan, [LABELS] * 4, source=3)
