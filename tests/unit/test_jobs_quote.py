"""Quotes: what they count is what is computed, read and paid; and how they are told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import catalogue
import numpy as np
import pytest
import rasterio
import torch
import toys
from rasterio.warp import transform as moved
from torch.utils.flop_counter import FlopCounterMode

from xgfm.cube.items import normalise
from xgfm.cube.simulate import simulate_season
from xgfm.grid import tile_geobox
from xgfm.jobs.block import read_frames
from xgfm.jobs.plan import Plan, make_plan
from xgfm.jobs.quote import quote
from xgfm.jobs.rate import flops_of_window, measure_rate
from xgfm.jobs.reading import Tally
from xgfm.jobs.spec import JobSpec, Options, Price
from xgfm.models.build import build_task
from xgfm.models.published import MODELS
from xgfm.models.spec import ClassInfo, TaskSpec
from xgfm.store.ledger import Entry
from xgfm.store.objects import Objects

UTM = {"crs": "EPSG:32615", "resolution": 30}
ALBERS = {"crs": "EPSG:5070", "resolution": 30}


def make(folder: Path, items: Any, handle: Any = None, **changes: Any) -> Plan:
    handle = toys.Handle(toys.task_spec()) if handle is None else handle
    spec = {"region": [-93.6, 45.4, -93.4, 45.5], "period": "2024-04-01/2024-09-30", "task": "toy-task",
            "store": str(folder / "out.zarr"), "grid": UTM, "block": 128, "chunk": 64}  # fmt: skip
    return make_plan(JobSpec(**{**spec, **changes}), items=items, objects=Objects(folder / "job"), handle=handle)


def quoted(plan: Plan, **options: Any) -> Any:
    return quote(plan, handle=toys.Handle(plan.task.spec), **options)


@pytest.mark.parametrize("grid", [UTM, ALBERS])
@pytest.mark.parametrize("blend", [None, "hann"])
def test_windows_are_those_that_the_engine_computes(tmp_path: Path, grid: Any, blend: str | None) -> None:
    items = catalogue.season(["15TVL", "15TVM"])
    plan = make(tmp_path, items, grid=grid, options={"blend": blend, "precision": "fp32"})
    (area,) = plan.areas
    counted = 0
    for block in plan.blocks():
        handle = toys.Handle(plan.task.spec)
        rows, columns = plan.reads(block)
        cube = toys.cube(box=area.geobox[rows.start : rows.stop, columns.start : columns.stop], times=3, chunks=-1)
        plan.predict(cube, handle).compute(scheduler="synchronous")
        counted += sum(shape[0] for shape in handle.module.seen if shape[-1] == plan.task.spec.window)
    assert counted == quoted(plan).windows > 1000


def test_pixels_and_square_kilometres(tmp_path: Path) -> None:
    plan = make(tmp_path, catalogue.season(["15TVL", "15TVM"]), grid=ALBERS)
    said = quoted(plan)
    assert said.pixels == sum(np.prod(b.shape) for b in plan.blocks())
    assert said.km2 == pytest.approx(said.pixels * 0.0009, rel=1e-3)  # Albers keeps areas
    assert said.bytes_written == said.pixels
    assert said.blocks == plan.states()["work"]
    seasons = make(
        tmp_path / "b", catalogue.season(["15TVL", "15TVM"]), grid=ALBERS, period="2024", periods=["2024-04/2024-09"],
        options={"return": ["class", "probability"]},
    )  # fmt: skip
    assert quoted(seasons).bytes_written == said.pixels * (1 + 4 * 3)


def test_two_seasons_are_twice_the_windows_where_both_have_dates(tmp_path: Path) -> None:
    tiles, dates = ["15TVL", "15TVM"], ["2023-04-10", "2023-06-20", "2023-09-01"]
    both = [*catalogue.season(tiles, dates), *catalogue.season(tiles)]
    one, two = (
        make(tmp_path / name, both, period="2023/2024", periods=periods)
        for name, periods in (("a", ["2024-04/2024-09"]), ("b", ["2023-04/2023-09", "2024-04/2024-09"]))
    )
    assert quoted(two).windows == 2 * quoted(one).windows
    assert quoted(two).bytes_read == pytest.approx(2 * quoted(one).bytes_read)


def with_sizes(item: dict[str, Any]) -> dict[str, Any]:
    """An item that says what the file and projection extensions say of its files."""
    for asset in item["assets"].values():
        asset["file:size"] = Path(asset["href"]).stat().st_size
    with rasterio.open(item["assets"]["B04"]["href"]) as file:
        item["properties"]["proj:transform"], item["properties"]["proj:shape"] = list(file.transform)[:6], file.shape
    return item


def needed_bytes(plan: Plan) -> int:
    """Bytes of the COGs' tiles that blocks need, each once to a block, asked of GDAL for every pixel's place."""
    (area,), total = plan.areas, 0
    for block in plan.blocks():
        rows, columns = plan.reads(block)
        grid = area.geobox[rows.start : rows.stop, columns.start : columns.stop]
        ys, xs = np.mgrid[: grid.shape[0], : grid.shape[1]] + 0.5
        x, y = grid.transform.c + xs * grid.transform.a, grid.transform.f + ys * grid.transform.e
        x, y = (np.array(each) for each in moved(str(grid.crs), "EPSG:32615", x.ravel(), y.ravel()))
        for item in plan.items_of(block):
            for href in normalise(item, fmask=True).hrefs.values():
                with rasterio.open(href) as file:
                    column, row = ((v // 256).astype(int) for v in ~file.transform * (x, y))
                    shape = -(-file.height // 256), -(-file.width // 256)
                    inside = (row >= 0) & (column >= 0) & (row < shape[0]) & (column < shape[1])
                    places = set(zip(row[inside].tolist(), column[inside].tolist(), strict=True))
                    total += sum(file.block_size(1, *place) for place in places)
    return total


@pytest.fixture(scope="module")
def season(tmp_path_factory: Any) -> tuple[list[float], list[dict[str, Any]]]:
    made = simulate_season(tmp_path_factory.mktemp("season"), seed=3, shape=(900, 800), granules=2)
    return list(made.bbox), [with_sizes(item) for item in json.loads(made.items.read_text())["features"]]


@pytest.mark.parametrize(("grid", "block"), [(UTM, 512), (UTM, 256), ("native", 1024), (ALBERS, 768)])
def test_bytes_are_those_that_blocks_read(tmp_path: Path, season: Any, grid: Any, block: int) -> None:
    region, items = season
    plan = make(
        tmp_path, items, toys.Handle(toys.task_spec(frames=1)), region=region, period="2024", grid=grid,
        block=block, chunk=block // 2,
    )  # fmt: skip
    read = 0
    for each in plan.blocks():
        tally = Tally()
        read_frames(plan, each, tally)
        read += tally.bytes
    assert quoted(plan).bytes_read == pytest.approx(read, rel=0.2)
    if grid != ALBERS:  # where pixels are copied and not warped, only what is needed is read
        assert quoted(plan).bytes_read == pytest.approx(needed_bytes(plan), rel=0.2)


def test_where_tiles_overlap_a_pixel_is_read_once(tmp_path: Path) -> None:
    """Of two tiles over all of a block, the second has nothing to add; where one ends, it adds the rest."""
    whole = tile_geobox("15TVM")
    x, y = whole.transform.c + 400 * 30, whole.transform.f - 100 * 30  # in the overlap with 15TVN
    lon, lat = moved("EPSG:32615", "EPSG:4326", [x, x + 300], [y, y - 300])
    region = [min(lon), min(lat), max(lon), max(lat)]
    one, two = (
        make(tmp_path / str(len(tiles)), catalogue.season(tiles), region=region, block=64, chunk=32)
        for tiles in (["15TVM"], ["15TVM", "15TVN"])
    )
    assert {plan.tiles_of(next(plan.blocks())) for plan in (one, two)} == {("15TVM",), ("15TVM", "15TVN")}
    assert quoted(one).bytes_read == quoted(two).bytes_read > 0


def formula(spec: TaskSpec) -> int:
    """Operations of a vision transformer's encoder for one window, two for each multiplication and addition.

    Per block and token: 4 products of width by width (query, key, value, output), the two of the MLP, and attention's
    two products with every token (Vaswani et al. 2017, table 1; Hoffmann et al. 2022, appendix F).
    """
    model, (pt, ph, pw) = spec.model, spec.model.patch_size
    patches = spec.frames // pt * -(-spec.window // ph) * -(-spec.window // pw)
    tokens, width = patches + 1, model.embed_dim
    block = 8 * tokens * width**2 + 4 * tokens * width * int(width * model.mlp_ratio) + 4 * tokens**2 * width
    return 2 * patches * len(model.bands) * pt * ph * pw * width + model.depth * block


def linear(name: str, frames: int) -> TaskSpec:
    """A task of published size whose decoder is a single convolution."""
    model = replace(MODELS[name], frames=frames)
    return TaskSpec(
        name=f"linear-{name}",
        title="random weights",
        model=model,
        statistics=model.statistics,
        classes=tuple(ClassInfo(f"class {i}", "#000000") for i in range(3)),
        frames=frames,
        architecture={
            "family": "pixelwise",
            "necks": [{"name": "SelectIndices", "indices": [model.depth - 1]}, {"name": "ReshapeTokensToImage"}],
            "decoder": {"name": "LinearDecoder", "upsampling_size": model.patch_size[1]},
        },
    )


class Unread:
    """A handle whose weights nobody needs."""

    def __init__(self, spec: TaskSpec) -> None:
        self.spec, self.build, self.digest = spec, None, "0" * 64

    def load(self, device: str) -> None:
        raise AssertionError("weights are not needed to count")


@pytest.mark.parametrize(("name", "frames"), [("prithvi-eo-2.0-tiny-tl", 4), ("prithvi-eo-1.0-100m", 3)])
def test_operations_follow_the_transformers_formula(name: str, frames: int) -> None:
    spec = linear(name, frames)

    side = -(-spec.window // spec.model.patch_size[1])
    head = 2 * side**2 * spec.model.embed_dim * frames * 3 * spec.model.patch_size[1] ** 2
    assert flops_of_window(Unread(spec)) == formula(spec) + head  # type: ignore[arg-type]


def test_operations_are_those_of_a_real_run() -> None:
    """Torch does not count attention on a CPU, so it is the products and convolutions that must agree."""
    spec = linear("prithvi-eo-2.0-tiny-tl", 1)
    module, x = build_task(spec).eval(), torch.zeros(1, 6, 1, spec.window, spec.window)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        module(x)
    tokens = (spec.window // 16) ** 2 + 1
    attention = spec.model.depth * 4 * tokens**2 * spec.model.embed_dim
    assert flops_of_window(Unread(spec)) == counter.get_total_flops() + attention


def test_a_module_of_ones_own_is_counted_without_its_numbers() -> None:
    class Own(Unread):
        def load(self, device: str) -> torch.nn.Module:
            return torch.nn.Sequential(torch.nn.Flatten(1, 2), torch.nn.Conv2d(18, 3, 1))

    spec = toys.task_spec()
    handle = Own(spec)
    handle.build = handle.load  # type: ignore[assignment]
    assert flops_of_window(handle) == 2 * 18 * 3 * spec.window**2  # type: ignore[arg-type]


def test_a_module_that_looks_at_values_has_no_count() -> None:
    assert flops_of_window(toys.Handle(toys.task_spec())) is None  # type: ignore[arg-type]


def test_operations_of_all_windows(tmp_path: Path) -> None:
    spec = linear("prithvi-eo-2.0-tiny-tl", 3)
    handle, items = Unread(spec), catalogue.season(["15TVL", "15TVM"])
    plain, augmented = (
        quote(make(tmp_path / str(tta), items, handle, task=spec.name, options={"tta": tta}), handle=handle)
        for tta in (False, True)
    )
    assert plain.flops == pytest.approx(flops_of_window(handle) * plain.windows)
    assert augmented.flops == 8 * plain.flops


def test_prices_and_seconds(tmp_path: Path) -> None:
    price = Price(currency="EUR", device_hour=3.6, gb_read=0.1, gb_month_stored=1)
    plan = make(tmp_path, catalogue.season(["15TVL", "15TVM"]), price=price)
    said = quoted(plan, rate=10.0)
    assert said.device_seconds == said.windows / 10
    assert said.price["devices"] == pytest.approx(said.windows / 10 * 0.001)
    assert said.price["reading"] == pytest.approx(said.bytes_read * 1e-10)
    assert said.total == pytest.approx(sum(said.price.values()))
    assert set(quoted(plan).price) == {"reading", "a month of storage"}  # no rate, so no device's time
    assert quoted(plan, price=Price(device_hour=1)).total is None


def test_how_it_is_told(tmp_path: Path) -> None:
    items = [*catalogue.season(["15TVL", "15TVM"]), catalogue.item("15TVM", "2024-08-01")]
    del items[-1]["assets"]["B02"]
    plan = make(tmp_path / "<b>", items, price=Price(currency="EUR", gb_read=1))
    said = quoted(plan, rate=3.0)
    for part in (f"{said.windows:,}", "1 left out", "windows/s", "EUR", "before compression", "km2"):
        assert part in str(said)
    assert "<b>" not in said._repr_html_()
    assert json.loads(said.to_json())["bytes_read"] == said.bytes_read


def entry(block: str, windows: int, read: int, seconds: float, outcome: Any = "done") -> Entry:
    return Entry(
        block, outcome, digest="0", reason=None, item=None, attempts=1, seconds={"read": 2.0, "predict": seconds},
        bytes_read=read, windows=windows, valid_pixels=1, worker="w", finished="2024-01-01T00:00:00+00:00", facts={},
    )  # fmt: skip


def test_a_quote_beside_what_was_taken(tmp_path: Path) -> None:
    plan = make(tmp_path, catalogue.season(["15TVL", "15TVM"]))
    said = quoted(plan, rate=10.0)
    blocks = [b.id for b in plan.blocks()]
    half = blocks[: len(blocks) // 2]
    each = said.windows / said.blocks, said.bytes_read / said.blocks
    taken = said.against(
        [
            *(entry(b, round(each[0]), round(each[1] * 1.1), each[0] / 20) for b in half),
            entry(blocks[-1], 0, 0, 9, "failed"),
        ]
    )
    assert taken.blocks == len(half)
    assert taken.failed == 1
    assert taken.ratios["windows"] == pytest.approx(1, abs=0.01)
    assert taken.ratios["bytes_read"] == pytest.approx(1.1, abs=0.01)
    assert taken.ratios["device_seconds"] == pytest.approx(0.5, abs=0.01)
    assert "1.10" in str(taken)
    assert json.loads(taken.to_json())["failed"] == 1
    assert said.against([]).ratios == {}


@pytest.mark.parametrize("changes", [{}, {"window": 224, "halo": 16}, {"pixel_size": 1000.0}])
def test_a_rate_is_windows_by_seconds(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    from xgfm.jobs import rate

    handle, sizes = toys.Handle(toys.task_spec(**changes)), []
    real = rate._predicted

    def timed(handle: Any, cube: Any, device: Any, options: Any) -> float:
        handle.module.seen.clear()
        real(handle, cube, device, options)
        sizes.append(sum(shape[0] for shape in handle.module.seen if shape[-1] == handle.spec.window))
        return sizes[-1] / 200.0

    monkeypatch.setattr(rate, "_predicted", timed)
    measured = measure_rate(handle, seconds=1.0, options=Options(batch_size=9, precision="fp32"), device="cpu")  # type: ignore[arg-type]
    assert measured == pytest.approx(200.0)
    assert sizes[:2] == [9, 9]
    assert 81 <= sizes[-1] <= 200


def test_a_real_rate() -> None:
    handle = toys.Handle(toys.task_spec())
    assert measure_rate(handle, seconds=0.05, device="cpu") > 0  # type: ignore[arg-type]
