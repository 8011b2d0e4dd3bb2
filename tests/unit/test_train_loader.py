"""Batches follow from seed and step alone, and labels follow the pixels."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from field_chips import write_small_chips
from hypothesis import given, settings
from hypothesis import strategies as st

from xgfm.errors import TrainError
from xgfm.models.spec import PRITHVI_BANDS, Statistics
from xgfm.train.chips.loader import Batches, normalised
from xgfm.train.chips.store import BandStatistics, ChipFacts, Chips, Sample

SIZE, FRAMES = 6, 3
NODATA = -9999


@dataclasses.dataclass(frozen=True)
class Written(Chips):
    """Chips in memory, whose every pixel says which chip, row and column it is."""

    count: int = 10

    def indexes(self, split: str) -> np.ndarray:
        return np.arange(self.count)

    def read(self, indexes: np.ndarray) -> Sample:
        row, column = np.mgrid[:SIZE, :SIZE]
        place = (indexes[:, None, None] * 100 + row * 10 + column).astype("int16")
        step = np.arange(FRAMES)[:, None, None, None] * 6 + np.arange(6)[:, None, None]
        image = (place[:, None, None] + 1500 * step).astype("int16")
        label, valid = (place % 3).astype("uint8"), place % 7 != 0
        time = np.broadcast_to(indexes[:, None, None].astype("float32"), (len(indexes), FRAMES, 2)).copy()
        return Sample(image, label, valid, time, indexes[:, None].repeat(2, 1).astype("float32"))


def facts(**changes: Any) -> ChipFacts:
    kept: dict[str, Any] = {
        "bands": PRITHVI_BANDS, "frames": FRAMES, "size": SIZE, "floating": False, "nodata": NODATA,
        "reflectance_scale": 1e-4, "pixel_size": 30.0, "kind": "segmentation", "classes": toys.task_spec().classes,
        "units": "1", "statistics": BandStatistics((0.0,) * 6, (1.0,) * 6), "counts": {}, "lineage": (), "failed": (),
        "digest": "",
    }  # fmt: skip
    return ChipFacts(**{**kept, **changes})


def chips(count: int = 10, **changes: Any) -> Chips:
    return Written("memory", facts(**changes), count)


def same(one: Sample, other: Sample) -> bool:
    return all(
        a.shape == b.shape and torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) for a, b in zip(one, other, strict=True)
    )


AUGMENT = {"d4": True, "crop": 4, "band_dropout": 0.3, "frame_dropout": 0.3}


@given(count=st.integers(1, 40), batch=st.integers(1, 17), seed=st.integers(0, 2**40), epochs=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_every_chip_once_an_epoch(count: int, batch: int, seed: int, epochs: int) -> None:
    batches = Batches(chips(count), "train", batch, seed)
    steps = -(-count * epochs // batch)
    seen = np.concatenate([batches.indexes(step) for step in range(steps)])[: count * epochs]
    for epoch in seen.reshape(epochs, count):
        assert Counter(epoch.tolist()) == Counter(range(count))
    for step in range(steps):
        assert batches.epoch_of(step) == step * batch // count
    assert batches.steps_per_epoch == -(-count // batch)


def test_orders_differ_by_epoch_and_seed() -> None:
    orders = {tuple(Batches(chips(30), "train", 30, seed).indexes(step)) for seed in range(3) for step in range(3)}
    assert len(orders) == 9


@given(
    count=st.integers(1, 20), batch=st.integers(1, 12), world=st.integers(1, 12), step=st.integers(0, 50),
    seed=st.integers(0, 2**40),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_ranks_share_the_batch_of_one_process(count: int, batch: int, world: int, step: int, seed: int) -> None:
    world = min(world, batch)
    whole = Batches(chips(count), "train", batch, seed, AUGMENT).at(step)
    shares = [Batches(chips(count), "train", batch, seed, AUGMENT, rank, world).at(step) for rank in range(world)]
    assert {len(share.image) for share in shares} <= {batch // world, batch // world + 1}
    assert same(Sample(*map(torch.cat, zip(*shares, strict=True))), whole)


@given(start=st.integers(0, 20), count=st.integers(1, 6))
@settings(max_examples=15, deadline=None)
def test_a_stream_goes_on_where_it_is_told(start: int, count: int) -> None:
    batches = Batches(chips(), "train", 4, 7, AUGMENT)
    stream = batches.stream(start)
    try:
        for step, batch in zip(range(start, start + count), stream, strict=False):
            assert same(batch, batches.at(step))
        assert stream.waited >= 0
    finally:
        stream.close()
    with pytest.raises(StopIteration):
        next(stream)


@given(step=st.integers(0, 30), seed=st.integers(0, 1000), crop=st.integers(1, SIZE))
@settings(max_examples=60, deadline=None)
def test_labels_follow_the_pixels(step: int, seed: int, crop: int) -> None:
    batches = Batches(chips(), "train", 8, seed, {"d4": True, "crop": crop})
    sample, order = batches.at(step), batches.indexes(step)
    assert sample.image.shape == (8, FRAMES, 6, crop, crop)
    place = sample.image[:, 0, 0].int()
    assert torch.equal(sample.label.int(), place % 3)
    assert torch.equal(sample.valid, place % 7 != 0)
    for frame, band in itertools.product(range(FRAMES), range(6)):
        assert torch.equal(sample.image[:, frame, band].int(), place + 1500 * (6 * frame + band))
    assert torch.equal(place[:, 0, 0] // 100, torch.from_numpy(order).int())
    assert torch.equal(sample.location[:, 0], torch.from_numpy(order).float())
    row, column = place % 100 // 10, place % 10
    for k in range(8):  # neighbours stay neighbours: a square part, turned and mirrored
        steps = {(int(abs(row[k, i, j] - row[k, a, b])), int(abs(column[k, i, j] - column[k, a, b])))
                 for i, j, a, b in ((i, j, i + 1, j) for i in range(crop - 1) for j in range(crop))}  # fmt: skip
        assert steps <= {(0, 1), (1, 0)}
        assert len(steps) <= 1


def test_all_eight_turns_and_every_crop_are_drawn_alike() -> None:
    batches = Batches(chips(1), "train", 1600, 3)
    image = batches.at(0).image[:, 0, 0]
    seen = Counter((int(a), int(b)) for a, b in zip(image[:, 0, 0], image[:, 0, -1], strict=True))
    assert len(seen) == 8
    assert all(140 <= n <= 260 for n in seen.values())  # 200 expected, 4.5 standard deviations
    whole = Batches(chips(1), "train", 1600, 3, {"d4": False, "crop": 4}).at(0).image[:, 0, 0, 0, 0]
    seen = Counter(whole.tolist())
    assert sorted(seen) == [10 * r + c for r in range(3) for c in range(3)]
    assert all(120 <= n <= 240 for n in seen.values())  # 178 expected


def test_a_chip_is_augmented_anew_in_each_epoch() -> None:
    batches = Batches(chips(), "train", 10, 0)
    first, second = (batches.at(step).image for step in (0, 1))
    order = [
        {int(k): image for k, image in zip(batches.indexes(s), i, strict=True)} for s, i in ((0, first), (1, second))
    ]
    assert sum(not torch.equal(order[0][k], order[1][k]) for k in range(10)) >= 5


def test_nothing_is_changed_without_augmentation() -> None:
    batches = Batches(chips(), "train", 10, 0, augment=False)
    expected = chips().read(batches.indexes(0))
    for mine, theirs in zip(batches.at(0), expected, strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs)


@pytest.mark.parametrize(("option", "axis"), [("frame_dropout", 0), ("band_dropout", 1)])
def test_dropout_takes_whole_frames_and_bands(option: str, axis: int) -> None:
    sample = Batches(chips(), "train", 400, 0, {"d4": False, option: 0.5}).at(0)
    gone = sample.image == NODATA  # (n, T, C, H, W)
    whole = gone.flatten(3).all(-1)
    assert torch.equal(gone, whole[..., None, None].expand_as(gone))
    by_axis = whole.all(2 - axis)
    assert torch.equal(whole, by_axis.unsqueeze(2 - axis).expand_as(whole))
    assert not by_axis.all(1).any()
    count = by_axis.shape[1]
    assert abs(float(by_axis.float().mean()) - 0.5 * (count - 1) / count) < 0.06
    assert torch.equal(
        sample.label.int(), torch.from_numpy(chips().read(Batches(chips(), "train", 400, 0).indexes(0)).label).int()
    )


def test_floats_are_dropped_as_nan() -> None:
    class Floats(Written):
        def read(self, indexes: np.ndarray) -> Sample:
            sample = super().read(indexes)
            return sample._replace(image=sample.image.astype("float32"))

    floating = Floats("memory", facts(floating=True, nodata=None))
    assert Batches(floating, "train", 50, 0, {"band_dropout": 0.5}).at(0).image.isnan().any()


@pytest.mark.parametrize(
    ("augment", "match"),
    [
        ({"flip": True}, r"augment has \['flip'\].*d4.*crop"), ({"crop": 7}, "crop is 7 for chips of 6 pixels"),
        ({"crop": 0}, "crop is 0"), ({"band_dropout": 1.0}, "band_dropout is 1.0"), ({"frame_dropout": -0.1}, "-0.1"),
    ],
)  # fmt: skip
def test_augmentations_that_cannot_be(augment: dict[str, Any], match: str) -> None:
    with pytest.raises(TrainError, match=match):
        Batches(chips(), "train", 4, 0, augment)


def test_batches_that_cannot_be() -> None:
    with pytest.raises(TrainError, match="no nodata value"):
        Batches(chips(nodata=None), "train", 4, 0, {"band_dropout": 0.1})
    with pytest.raises(TrainError, match="no chips of split 'val'"):
        Batches(chips(0), "val", 4, 0)
    for batch, rank, world in ((2, 0, 3), (0, 0, 1), (4, 2, 2), (4, -1, 2)):
        with pytest.raises(TrainError, match="batch_size"):
            Batches(chips(), "train", batch, 0, rank=rank, world=world)


def test_some_chips_alone() -> None:
    batches = Batches(chips(), "train", 3, 0, indexes=np.array([2, 5, 9]))
    assert sorted(batches.indexes(0).tolist()) == [2, 5, 9]


def test_what_goes_wrong_in_the_thread_is_raised_here_each_time() -> None:
    class Torn(Written):
        def read(self, indexes: np.ndarray) -> Sample:
            raise TrainError("shard 3 is not whole")

    stream = Batches(Torn("memory", facts()), "train", 4, 0).stream(0)
    for _ in range(3):
        with pytest.raises(TrainError, match="shard 3"):
            next(stream)
    stream.close()
    with pytest.raises(TrainError, match="shard 3"):
        next(stream)


def test_a_stream_that_nobody_reads_is_closed_at_once() -> None:
    stream = Batches(chips(), "train", 4, 0).stream(0)
    stream.close()
    stream.close()
    assert not stream._thread.is_alive()


# ---- what the model is fed


def test_normalised_is_what_predict_feeds(tmp_path: Path) -> None:
    written = write_small_chips(tmp_path / "chips.zarr")
    sample = Sample(*map(torch.from_numpy, written.read(np.array([0, 5, 3]))))
    spec = toys.task_spec(frames=2, window=32, halo=0, statistics=Statistics((900.0,) * 6, (400.0,) * 6))
    x = normalised(sample, spec, written.facts, "cpu")
    image = sample.image.double().movedim(1, 2)
    expected = torch.where(image == NODATA, 0.0, (image - 900) / 400)
    assert x.shape == (3, 6, 2, 32, 32)
    torch.testing.assert_close(x, expected.float(), rtol=1e-6, atol=1e-6)
    assert (sample.image == NODATA).any()


def test_normalised_takes_bands_by_name_and_units_by_scale() -> None:
    spec = toys.task_spec(
        statistics=Statistics((0.1, 0.2), (0.05, 0.06), reflectance_scale=1.0),
        model=toys.model_spec(bands=("nir08", "red"), statistics=Statistics((0.1, 0.2), (0.05, 0.06), 1.0)),
        nodata_fill=0.3,
        nodata_units="input",
    )
    sample = Sample(*map(torch.from_numpy, chips().read(np.arange(2))))
    sample.image[0, 1, 3, 2, 2] = NODATA
    x = normalised(sample, spec, facts(), "cpu")
    image = sample.image.double()[:, :, [3, 2]].movedim(1, 2) * 1e-4
    image[0, 0, 1, 2, 2] = 0.3
    mean, std = (torch.tensor(v).double()[:, None, None, None] for v in ((0.1, 0.2), (0.05, 0.06)))
    torch.testing.assert_close(x.double(), (image - mean) / std, rtol=1e-5, atol=1e-5)
