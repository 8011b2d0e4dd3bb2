"""Probes: from embeddings and labels to a task, against scikit-learn on the same features and the encoder itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import small
import torch
import toys
import xarray as xr

import xgfm
from xgfm import cf
from xgfm.errors import CubeError, GridError, LabelError, TaskError
from xgfm.grid import geobox_of, with_grid
from xgfm.models.build import build_model
from xgfm.models.folder import save_model
from xgfm.models.handle import ModelHandle, load_model, load_task
from xgfm.models.spec import ClassInfo
from xgfm.train.probe import _examples, _interpolated, probe

CLASSES = (ClassInfo("Dark", "#000000"), ClassInfo("Bright", "#ffffff"), ClassInfo("Red", "#ff0000"))
FP32: dict[str, Any] = {"precision": "fp32", "device": "cpu"}


@pytest.fixture(scope="module")
def handle(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    torch.manual_seed(0)
    spec = small.model()
    return load_model(save_model(build_model(spec), spec, tmp_path_factory.mktemp("model") / "encoder"))


def striped(rows: int = 64, columns: int = 96, *, missing: bool = False) -> tuple[xr.DataArray, xr.DataArray]:
    """Return a cube of three kinds of land in vertical bands of 32 pixels, and their classes."""
    box = toys.geobox(rows, columns, row=-160_000, column=14_688)  # on whole patches
    rng = np.random.default_rng(0)
    codes = np.broadcast_to(np.arange(columns) // 32, (rows, columns)).astype("uint8")
    spectra = np.array([[400] * 6, [3000] * 6, [300, 300, 3500, 300, 300, 300]])
    values = spectra[codes].transpose(2, 0, 1)[None] + rng.normal(0, 60, (3, 6, rows, columns))
    values = values.astype("int16")
    if missing:
        values[:, :, :16, :16] = -9999
    times = np.array(toys.DATES[:3], "datetime64[ns]")
    cube = xr.DataArray(
        da.from_array(values, chunks=(1, 6, 32, 32)), {"time": times, "band": list(small.model().bands)},
        ("time", "band", "y", "x"), attrs={"nodata": -9999, "reflectance_scale": 1e-4},
    )  # fmt: skip
    flags = {
        "flag_values": [0, 1, 2],
        "flag_meanings": "dark bright red",
        "flag_colors": " ".join(c.color for c in CLASSES),
        "class_names": [c.name for c in CLASSES],
    }
    label = with_grid(xr.DataArray(codes.copy(), dims=("y", "x"), name="label", attrs=flags), box)
    return with_grid(cube, box), label


def sparse(label: xr.DataArray, each: int = 6, seed: int = 0) -> xr.DataArray:
    """Keep some pixels of every class."""
    rng = np.random.default_rng(seed)
    kept = np.full(label.shape, cf.NODATA, "uint8")
    for code in range(3):
        rows, columns = np.nonzero(label.values == code)
        drawn = rng.choice(len(rows), each, replace=False)
        kept[rows[drawn], columns[drawn]] = code
    return label.copy(data=kept)


@pytest.mark.parametrize("kind", ["linear", "knn"])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_handful_of_points_maps_the_land(handle: ModelHandle, kind: Any, dtype: Any) -> None:
    cube, label = striped()
    emb = xgfm.embed(cube, handle, dtype=dtype, **FP32)
    task = probe(emb, sparse(label), kind=kind, model=handle, name=f"land-{kind}", neighbours=3)
    maps = xgfm.predict(cube, task, **FP32)[f"land_{kind}"]
    assert task.spec.classes == CLASSES
    assert float((maps.values == label.values).mean()) > 0.9
    inner = np.s_[:, 8:24]  # away from the borders of the bands
    assert float((maps.values[inner] == label.values[inner]).mean()) > 0.98


def test_the_map_is_the_head_on_the_embeddings(handle: ModelHandle) -> None:
    """The middle of a patch lies between four pixels: their logits average to those of the patch's own features."""
    cube, label = striped()
    emb = xgfm.embed(cube, handle, **FP32)
    task = probe(emb, sparse(label), model=handle)
    logits = xgfm.predict(cube, task, return_="logits", **FP32)["logits"].values
    head = task.load().head.linear
    wanted = np.einsum("dyx,kd->kyx", emb.values, head.weight.numpy()) + head.bias.numpy()[:, None, None]
    blocks = logits.reshape(3, 8, 8, 12, 8)[:, :, 3:5, :, 3:5].mean((2, 4))
    # Bilinear weights of the four pixels: 15/16 squared of the patch itself, the rest of its neighbours in equal parts.
    padded = np.pad(wanted, ((0, 0), (1, 1), (1, 1)), mode="edge")
    along = padded[:, 1:-1] * 15 / 16 + (padded[:, :-2] + padded[:, 2:]) / 32
    both = along[:, :, 1:-1] * 15 / 16 + (along[:, :, :-2] + along[:, :, 2:]) / 32
    inside = np.s_[:, 1:-1, 1:-1]
    np.testing.assert_allclose(blocks[inside], both[inside], atol=0.02 * np.ptp(wanted))


def test_a_linear_probe_is_scikit_learns(handle: ModelHandle) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    cube, label = striped()
    emb, points = xgfm.embed(cube, handle, **FP32), sparse(label, 20)
    found = _examples(emb, points, 10_000, 0)
    scaled = (found.features - found.features.mean(0)) / found.features.std(0)
    theirs = linear_model.LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(scaled, found.targets)
    head = probe(emb, points, model=handle).load().head.linear
    mine = found.features @ head.weight.numpy().T + head.bias.numpy()
    said = theirs.decision_function(scaled)
    np.testing.assert_allclose(mine - mine.mean(1, keepdims=True), said - said.mean(1, keepdims=True), atol=0.02)


def test_features_at_a_pixel_are_torchs_bilinear_ones() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(4, 5, 6)).astype("float32")
    array = with_grid(xr.DataArray(values, dims=("feature", "y", "x")), toys.geobox(5, 6).zoom_to((5, 6)))
    enlarged = torch.nn.functional.interpolate(torch.tensor(values)[None], scale_factor=4, mode="bilinear")[0].numpy()
    rows, columns = np.mgrid[:20, :24]
    found = _interpolated(array, (rows.ravel() + 0.5) / 4 - 0.5, (columns.ravel() + 0.5) / 4 - 0.5)
    np.testing.assert_allclose(found, enlarged.reshape(4, -1).T, atol=1e-5)


def test_a_label_is_given_what_lies_under_it() -> None:
    """Features that are the patch's own row and column; a pixel in the middle of four patches has their mean."""
    box = toys.geobox(40, 48, row=-160_000, column=14_688)
    places = np.stack(np.mgrid[:5, :6]).astype("float32")
    array = with_grid(xr.DataArray(places, dims=("feature", "y", "x")), box.zoom_out(8))
    labels = np.full((40, 48), 255, "uint8")
    pixels = [(12, 20), (15, 16), (0, 47), (39, 0)]
    for row, column in pixels:
        labels[row, column] = 1
    found = _examples(array, with_grid(xr.DataArray(labels, dims=("y", "x")), box), 100, 0)
    order = sorted(pixels)
    wanted = np.clip([[(r + 0.5) / 8 - 0.5, (c + 0.5) / 8 - 0.5] for r, c in order], 0, [4, 5])
    np.testing.assert_allclose(found.features, wanted, atol=1e-5)


def test_missing_patches_lend_nothing() -> None:
    values = np.ones((2, 2, 3), "float32")
    values[:, :, 0] = np.nan
    array = with_grid(xr.DataArray(values, dims=("feature", "y", "x")), toys.geobox(2, 3))
    found = _interpolated(array, np.array([0.0, 0.0, 0.0]), np.array([0.2, 0.8, 1.4]))
    assert np.isnan(found[0]).all()
    np.testing.assert_allclose(found[1:], 1.0)


def test_a_store_of_int8_embeddings_reopened_gives_the_same_task(handle: ModelHandle, tmp_path: Path) -> None:
    cube, label = striped(missing=True)
    emb = xgfm.embed(cube, handle, dtype="int8", **FP32)
    emb.to_dataset().to_zarr(tmp_path / "emb.zarr")
    points, x = sparse(label, 15), torch.randn(1, 6, 3, 32, 32)
    stored = xr.open_zarr(tmp_path / "emb.zarr", decode_coords="all")
    assert probe(emb, points, model=handle).load()(x).equal(probe(stored, points, model=handle).load()(x))


def test_labels_of_another_pixel_size_are_placed_by_their_coordinates(handle: ModelHandle) -> None:
    cube, label = striped()
    emb = xgfm.embed(cube, handle, **FP32)
    finer = geobox_of(label).zoom_out(0.5)
    fine = with_grid(xr.DataArray(np.full(finer.shape, 255, "uint8"), dims=("y", "x"), attrs=label.attrs), finer)
    fine.values[10:20:3, 8::48] = label.values[5:10, 4::24][:, : fine.values[10:20:3, 8::48].shape[1]][:4]
    assert set(np.unique(fine)) == {0, 1, 2, 255}
    task = probe(emb, fine, model=handle, name="fine")
    maps = xgfm.predict(cube, task, **FP32)["fine"].values
    assert float((maps == label.values).mean()) > 0.85


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_a_regression(handle: ModelHandle, kind: Any) -> None:
    cube, label = striped()
    truth = np.array([10.0, 20.0, 50.0], "float32")[label.values]
    kept = np.where(sparse(label, 12).values == 255, np.nan, truth).astype("float32")
    target = with_grid(xr.DataArray(kept, dims=("y", "x"), name="label", attrs={"units": "t ha-1"}), geobox_of(label))
    task = probe(xgfm.embed(cube, handle, **FP32), target, kind=kind, model=handle, name="biomass", neighbours=3)
    maps = xgfm.predict(cube, task, **FP32)["biomass"]
    assert maps.attrs["units"] == "t ha-1"
    assert float(np.abs(maps.values - truth).mean()) < 5


def test_a_folder_of_it_predicts_the_same(handle: ModelHandle, tmp_path: Path) -> None:
    cube, label = striped()
    emb, points = xgfm.embed(cube, handle, **FP32), sparse(label)
    known = probe(emb, points, model=handle)
    stored = probe(emb, points, model=handle, folder=tmp_path / "task")
    x = torch.randn(1, 6, 3, 32, 32)
    assert load_task(tmp_path / "task").load()(x).equal(known.load()(x))
    assert stored.source is not None
    assert stored.source.startswith("file:")


def test_only_patches_under_labels_are_computed(handle: ModelHandle) -> None:
    _, label = striped()
    emb = xgfm.embed(striped()[0], handle, **FP32)
    computed: list[tuple[int, ...]] = []

    def watched(block: np.ndarray) -> np.ndarray:
        computed.append(block.shape)
        return block

    lazy = emb.copy(data=da.from_array(emb.values, chunks=(-1, 2, 2)).map_blocks(watched, dtype="float32"))
    points = label.copy(data=np.full(label.shape, 255, "uint8"))
    points.values[4, 4], points.values[4, 44] = 0, 1
    probe(lazy, points, model=handle)
    assert 0 < len(computed) <= 2 * 4  # of 24 blocks


def test_a_class_without_labels_is_never_mapped(handle: ModelHandle) -> None:
    cube, label = striped()
    points = sparse(label)
    points = points.copy(data=np.where(points == 2, 255, points).astype("uint8"))
    task = probe(xgfm.embed(cube, handle, **FP32), points, model=handle)
    assert len(task.spec.classes) == 3
    assert set(np.unique(xgfm.predict(cube, task, **FP32)["probe"])) == {0, 1}


def test_labels_and_embeddings_that_do_not_meet_are_refused(handle: ModelHandle) -> None:
    cube, label = striped()
    emb = xgfm.embed(cube, handle, **FP32)
    far = with_grid(label.drop_vars("spatial_ref"), toys.geobox(64, 96, row=-150_000, column=14_688))
    with pytest.raises(LabelError, match="lies on a patch with data"):
        probe(emb, far, model=handle)
    elsewhere = with_grid(label.drop_vars("spatial_ref"), toys.geobox(64, 96, crs="EPSG:32616"))
    with pytest.raises(GridError, match="32616"):
        probe(emb, elsewhere, model=handle)
    with pytest.raises(LabelError, match="no pixel is labelled"):
        probe(emb, label.copy(data=np.full(label.shape, 255, "uint8")), model=handle)
    with pytest.raises(LabelError, match="alone; a probe needs two"):
        probe(emb, label.copy(data=np.where(label == 1, 1, 255).astype("uint8")), model=handle)
    with pytest.raises(LabelError, match=r"isel\(time"):
        probe(emb, xr.concat([label, label], "time"), model=handle)
    with pytest.raises(LabelError, match="neighbours=50"):
        probe(emb, sparse(label), kind="knn", neighbours=50, model=handle)
    with pytest.raises(TaskError, match="kind='tree'"):
        probe(emb, sparse(label), kind="tree", model=handle)  # type: ignore[arg-type]


def test_another_encoder_is_refused(handle: ModelHandle, tmp_path: Path) -> None:
    cube, label = striped()
    emb = xgfm.embed(cube, handle, **FP32)
    torch.manual_seed(9)
    other = load_model(save_model(build_model(small.model()), small.model(), tmp_path / "other"))
    with pytest.raises(TaskError, match="digest"):
        probe(emb, sparse(label), model=other)
    with pytest.raises(TaskError, match="give model="):
        probe(emb, sparse(label))
    with pytest.raises(CubeError, match="lack"):
        probe(emb.drop_attrs(), sparse(label), model=handle)
    with pytest.raises(CubeError, match="feature"):
        probe(label, label, model=handle)
