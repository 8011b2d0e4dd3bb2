"""The store's metadata, written once: what blocks fill it equals what `to_zarr` writes at once."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from results import result, spec
from stores import blocks, contents, template

from xgfm import cf
from xgfm.errors import WriteError
from xgfm.grid import with_grid
from xgfm.store.objects import Objects, zarr_store
from xgfm.store.region import write_block
from xgfm.store.template import create_store, template_differences
from xgfm.store.write import to_zarr


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, Any]:
    """A result's shape and layers, and how it is cut."""
    chunk = draw(st.sampled_from([4, 8]))
    shard = chunk * draw(st.integers(1, 3))
    return {
        "shape": (draw(st.integers(2, 60)), draw(st.integers(2, 60))),
        "chunk": chunk,
        "shard": shard,
        "block": shard * draw(st.integers(1, 2)),
        "layers": {"times": draw(st.integers(0, 2)), "probability": draw(st.booleans())},
    }


@given(jobs(), st.randoms())
@settings(max_examples=12, deadline=None)
def test_blocks_in_any_order_equal_one_write(tmp_path_factory: pytest.TempPathFactory, job: dict, random: Any) -> None:
    folder = tmp_path_factory.mktemp("store")
    lazy = template(job["shape"], job["shard"], **job["layers"])
    to_zarr(lazy, folder / "once.zarr", chunk=job["chunk"], shard=job["shard"])
    create_store(folder / "blocks.zarr", {"": lazy}, chunk=job["chunk"], shard=job["shard"])
    store = zarr_store(folder / "blocks.zarr")
    made = list(blocks(lazy.compute(), job["block"]))
    random.shuffle(made)
    for arrays, rows, columns in made + made[:2]:  # two of them twice
        write_block(store, "", arrays, rows, columns)
    once, written = contents(folder / "once.zarr"), contents(folder / "blocks.zarr")
    assert written.keys() == once.keys()
    assert {name: written[name] == once[name] for name in once} == dict.fromkeys(once, True)


def test_groups_of_their_own(tmp_path: Path) -> None:
    areas = {"15TVM": template((40, 30), 16), "15TWM": template((20, 50), 16, probability=True)}
    create_store(tmp_path / "a.zarr", areas, chunk=8, shard=16)
    store = zarr_store(tmp_path / "a.zarr")
    for group, lazy in areas.items():
        for arrays, rows, columns in blocks(lazy.compute(), 16):
            write_block(store, group, arrays, rows, columns)
    for group, lazy in areas.items():
        found = xr.open_zarr(tmp_path / "a.zarr", group=group, mask_and_scale=False, decode_coords="all")
        xr.testing.assert_equal(found.compute(), lazy.compute())
        assert found.odc.geobox == lazy.odc.geobox
    root = zarr.open_group(store, mode="r")
    assert root.metadata.consolidated_metadata is not None
    assert set(root.group_keys()) == set(areas)


def test_nothing_is_computed_and_no_block_is_listed(tmp_path: Path) -> None:
    side = 100_000

    def refuse(block: np.ndarray) -> np.ndarray:
        raise AssertionError("computed")

    box = GeoBox((side, side), Affine(30, 0, -1.5e6, 0, -30, 1.5e6), "EPSG:5070")
    pixels = da.map_blocks(refuse, da.empty((side, side), dtype="uint8", chunks=4096), dtype="uint8")
    lazy = with_grid(xr.Dataset({"crop_v1_0": (("y", "x"), pixels)}), box)
    lazy = cf.like(lazy, lazy, spec(), {})
    create_store(tmp_path / "warm-up.zarr", {"": template((20, 20), 16)}, chunk=16, shard=16)
    tracemalloc.start()
    create_store(tmp_path / "a.zarr", {"": lazy}, chunk=16, shard=16)  # 39 million blocks
    assert template_differences(zarr_store(tmp_path / "a.zarr"), {"": lazy}, chunk=16, shard=16) == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
    assert zarr.open_array(tmp_path / "a.zarr", path="crop_v1_0", mode="r").shape == (side, side)


def test_the_same_again_is_left_as_it_is(tmp_path: Path) -> None:
    lazy = template((40, 30), 16, times=2, probability=True)
    for _ in range(2):
        create_store(tmp_path / "a.zarr", {"": lazy}, chunk=8, shard=16)
        arrays, rows, columns = next(blocks(lazy.compute(), 16))
        write_block(zarr_store(tmp_path / "a.zarr"), "", arrays, rows, columns)
        before = contents(tmp_path / "a.zarr")
    create_store(tmp_path / "a.zarr", {"": lazy.assign_attrs(xgfm_version="another")}, chunk=8, shard=16)
    assert contents(tmp_path / "a.zarr") == before


DIFFERING = {
    "chunk": (lambda r: r, {"chunk": 4, "shard": 16}, "crop_v1_0: chunks is .*16, 16.*|chunks"),
    "shard": (lambda r: r, {"chunk": 8, "shard": 32}, "shards"),
    "shape": (lambda r: r.isel(y=slice(0, 30)), {}, r"crop_v1_0: shape is \(2, 40, 30\), expected \(2, 30, 30\)"),
    "place": (lambda r: r.isel(y=slice(1, 31)), {}, "shape|spatial:transform"),
    "moved": (lambda r: template((40, 31), 16, times=2).isel(x=slice(1, 31)), {}, "spatial:transform"),
    "dtype": (lambda r: r.assign(crop_v1_0=r.crop_v1_0.astype("float32")), {}, "dtype is uint8, expected float32"),
    "time": (lambda r: r.assign_coords(time=r.time + np.timedelta64(1, "D")), {}, "time"),
    "task": (lambda r: r.assign_attrs(task="flood"), {}, "group '' attributes: task is crop-v1.0, expected flood"),
    "layer": (lambda r: r.assign(confidence=r.crop_v1_0.astype("float32")), {}, "confidence is missing"),
    "classes": (
        lambda r: r.assign(crop_v1_0=r.crop_v1_0.assign_attrs(flag_values=[1, 2, 3])),
        {},
        "flag_values",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DIFFERING)
def test_another_store_is_refused(tmp_path: Path, what: str) -> None:
    change, layout, message = DIFFERING[what]
    lazy = template((40, 30), 16, times=2)
    create_store(tmp_path / "a.zarr", {"": lazy}, chunk=8, shard=16)
    before = contents(tmp_path / "a.zarr")
    with pytest.raises(WriteError, match=f"holds another store: .*({message})"):
        create_store(tmp_path / "a.zarr", {"": change(lazy)}, **{"chunk": 8, "shard": 16, **layout})
    assert contents(tmp_path / "a.zarr") == before


def test_no_store_is_no_difference(tmp_path: Path) -> None:
    assert template_differences(zarr_store(tmp_path / "a.zarr"), {"": result()}, chunk=8, shard=16) is None
    assert not (tmp_path / "a.zarr").exists()


def test_what_was_added_since_is_no_difference(tmp_path: Path) -> None:
    create_store(tmp_path / "a.zarr", {"": result()}, chunk=8, shard=16)
    group = zarr.open_group(tmp_path / "a.zarr", mode="r+")
    group.attrs["report"] = "added"
    group.create_group("overviews")
    assert template_differences(zarr_store(tmp_path / "a.zarr"), {"": result()}, chunk=8, shard=16) == []


@pytest.mark.parametrize("stop_after", range(0, 12, 2))
def test_an_interrupted_beginning_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    areas = {"a": template((40, 30), 16), "b": template((40, 30), 16)}
    create_store(tmp_path / "whole.zarr", areas, chunk=8, shard=16)
    put, left = Objects.put, stop_after

    def failing(self: Objects, name: str, data: bytes) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError("disk full")
        put(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Objects, "put", failing)
        with pytest.raises(OSError, match="disk full"):
            create_store(tmp_path / "a.zarr", areas, chunk=8, shard=16)
    with pytest.raises(FileNotFoundError):
        zarr.open_group(tmp_path / "a.zarr", mode="r")
    create_store(tmp_path / "a.zarr", areas, chunk=8, shard=16)
    assert contents(tmp_path / "a.zarr") == contents(tmp_path / "whole.zarr")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("do not lose this")
    with pytest.raises(WriteError, match=r"not empty and no Zarr store: it holds 'thesis.tex'; give another path"):
        create_store(tmp_path, {"": result()}, chunk=8, shard=16)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_credentials_in_the_url_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WriteError) as caught:
        create_store("nowhere://user:secret@host/a.zarr", {"": result()}, chunk=8, shard=16)
    assert "secret" not in json.dumps(str(caught.value))
