"""What a job will take, before it runs, and afterwards beside what it took.

In: a plan, a rate and prices. Out: a `Quote`: pixels, bytes, windows, operations, seconds, memory and price. Windows
are exact; what is read follows a stated model (`xgfm.jobs.reads`); seconds are windows by a rate that is given or was
measured. No pixel is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from xgfm.jobs.planned import WORK, Plan
from xgfm.jobs.reads import bytes_of
from xgfm.jobs.spec import Price
from xgfm.models.spec import TaskSpec
from xgfm.notebook import card, table

if TYPE_CHECKING:
    from xgfm.jobs.lattice import Area
    from xgfm.models.handle import ModelHandle
    from xgfm.store.ledger import Entry

_PROCESS = 600_000_000
"""Bytes of a worker that has imported everything and done nothing."""
_STRIP = 1024
"""Rows of a block that are composited at once."""


@dataclass(frozen=True)
class Quote:
    """What a job takes."""

    store: str
    blocks: int
    """With work."""
    outside: int
    """Blocks of the lattice that the region does not touch."""
    without_items: int
    """Blocks of the region without any item."""
    too_few_dates: int
    """Blocks of the region whose items leave a frame of every period without a date."""
    items: int
    tiles: int
    """MGRS tiles that the items lie on."""
    left_out: int
    """Items that cannot be read."""
    pixels: int
    """Of the blocks with work; each period counts."""
    km2: float
    """Of the blocks with work."""
    bytes_read: int
    """Of the files' blocks that are needed, each once in a block of the job: see `xgfm.jobs.reads`."""
    bytes_written: int
    """Before compression, overviews not counted."""
    windows: int
    """That go through the model, if every window has a valid pixel."""
    flops: float | None
    """Floating-point operations of all windows, as torch counts them; None where it cannot."""
    rate: float | None
    """Windows per second and device."""
    device_seconds: float | None
    """Of one device: windows by rate."""
    worker_bytes: int
    """Most memory of a worker that computes one block and reads another."""
    price: Mapping[str, float]
    """By what it is for; empty without prices or without what they are multiplied with."""
    currency: str

    @property
    def total(self) -> float | None:
        """Sum of the prices; None where there are none."""
        return sum(self.price.values()) if self.price else None

    def to_json(self) -> str:
        """Return the quote as JSON."""
        return json.dumps({**asdict(self), "total": self.total}, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> Quote:
        """Return the quote that `to_json` wrote."""
        values = json.loads(text)
        return cls(**{name: value for name, value in values.items() if name != "total"})

    def against(self, entries: Iterable[Entry]) -> Comparison:
        """Return the quote beside what the blocks of a ledger took.

        Parameters
        ----------
        entries
            Of the ledger; those that failed are counted and not compared.
        """
        done = failed = windows = read = 0
        predict = reading = 0.0
        for entry in entries:
            failed += entry.outcome == "failed"
            if entry.outcome == "done":
                done += 1
                windows += entry.windows
                read += entry.bytes_read
                predict += entry.seconds.get("predict", 0.0)
                reading += entry.seconds.get("read", 0.0)
        return Comparison(self, done, failed, windows, read, predict, reading)

    def __str__(self) -> str:
        return _table([("", self.store), *_rows(self)])

    def _repr_html_(self) -> str:
        return card("what a job takes", {"store": self.store, **dict(_rows(self))})


@dataclass(frozen=True)
class Comparison:
    """A quote and what was taken."""

    quote: Quote
    blocks: int
    """Done."""
    failed: int
    windows: int
    bytes_read: int
    device_seconds: float
    """Sum over the blocks."""
    read_seconds: float
    """Sum over the blocks; several are read at once."""

    @property
    def share(self) -> float:
        """Share of the quoted blocks that is done; what is quoted is scaled by it."""
        return self.blocks / self.quote.blocks if self.quote.blocks else 0.0

    @property
    def ratios(self) -> dict[str, float]:
        """What was taken, divided by what was quoted for as many blocks."""
        quoted = {"windows": self.quote.windows, "bytes_read": self.quote.bytes_read}
        if self.quote.device_seconds is not None:
            quoted["device_seconds"] = self.quote.device_seconds  # type: ignore[assignment]
        expected = {name: value * self.share for name, value in quoted.items()}
        return {name: getattr(self, name) / value for name, value in expected.items() if value}

    def to_json(self) -> str:
        """Return quote, truth and ratios as JSON."""
        taken = {name: getattr(self, name) for name in ("blocks", "failed", "windows", "bytes_read")}
        seconds = {"device_seconds": self.device_seconds, "read_seconds": self.read_seconds}
        return json.dumps(
            {"quote": json.loads(self.quote.to_json()), **taken, **seconds, "ratios": self.ratios}, indent=1
        )

    def __str__(self) -> str:
        return _table(self.rows())

    def _repr_html_(self) -> str:
        head, *rows = self.rows()
        return table(rows, head=head, title="what a job took")

    def rows(self) -> list[tuple[str, ...]]:
        """Return the header of a table, and its rows."""
        quote, ratios = self.quote, self.ratios
        rows: list[tuple[str, ...]] = [
            ("", "quoted", "taken", "ratio"),
            ("blocks", f"{quote.blocks:,}", f"{self.blocks:,}", ""),
        ]
        for name, said, show in (
            ("windows", quote.windows, "{:,.0f}".format),
            ("bytes_read", quote.bytes_read, in_bytes),
            ("device_seconds", quote.device_seconds, in_time),
        ):
            ratio = f"{ratios[name]:.2f}" if name in ratios else ""
            rows.append(
                (name.replace("_", " "), "unknown" if said is None else show(said), show(getattr(self, name)), ratio)
            )
        return [*rows, ("failed", "", f"{self.failed:,}", "")]


def quote(
    plan: Plan, *, rate: float | None = None, price: Price | None = None, handle: ModelHandle | None = None
) -> Quote:
    """Say what a job takes.

    Parameters
    ----------
    plan
        The job.
    rate
        Windows per second and device, as `measure_rate` gives it; without it there are no seconds.
    price
        Instead of the prices in the job's record.
    handle
        The task, where it is at hand.
    """
    from xgfm.jobs.rate import flops_of_window

    states = plan.states()
    reads = [bytes_of(plan, area) for area in plan.areas]
    windows = sum(  # where files are only a part of their tile, a block may be without any pixel
        int((np.outer(*_windows(plan, area)) * plan.seasons(area) * (read > 0)).sum())
        for area, read in zip(plan.areas, reads, strict=True)
    )
    pixels = [int((np.outer(*_sizes(area)) * (plan.codes(area) == WORK)).sum()) for area in plan.areas]
    one = flops_of_window(plan.load_task() if handle is None else handle)
    options, seasons = plan.spec.options, len(plan.spec.seasons)
    flops = None if one is None else one * windows * (8 if options.tta else 1)
    device_seconds = None if rate is None else windows / rate
    read = sum(int(each.sum()) for each in reads)
    written = sum(pixels) * seasons * _bytes_of_pixel(plan)
    prices = plan.spec.price if price is None else price
    return Quote(
        store=plan.spec.store,
        blocks=states["work"],
        outside=states["outside"],
        without_items=states["no items"],
        too_few_dates=states["too few dates"],
        items=sum(plan.tiles.values()),
        tiles=len(plan.tiles),
        left_out=plan.left_out_count,
        pixels=sum(pixels) * seasons,
        km2=sum(_km2(plan, area) for area in plan.areas),
        bytes_read=read,
        bytes_written=written,
        windows=windows,
        flops=flops,
        rate=rate,
        device_seconds=device_seconds,
        worker_bytes=_worker_bytes(plan),
        price=_price(prices, device_seconds, read, written),
        currency="" if prices is None else prices.currency,
    )


def _windows(plan: Plan, area: Area) -> tuple[list[int], list[int]]:
    """Windows of each row and of each column of blocks."""
    rows, columns = plan.axis_reads(area)
    return [r.windows for r in rows], [c.windows for c in columns]


def _sizes(area: Area) -> tuple[list[int], list[int]]:
    """Pixels of each row and of each column of blocks."""
    rows, columns = (
        [min(area.block, size - start) for start in range(0, size, area.block)] for size in area.geobox.shape
    )
    return rows, columns


def _km2(plan: Plan, area: Area) -> float:
    """Area of the blocks with work: geodesic, by the pixel in the middle of each row's work."""
    from xgfm.grid import pixel_size_m

    work, (heights, widths) = plan.codes(area) == WORK, _sizes(area)
    total = 0.0
    for row in np.flatnonzero(work.any(axis=1)).tolist():
        columns = np.flatnonzero(work[row])
        middle = area.at(row, int(columns[len(columns) // 2]))
        side = pixel_size_m(area.geobox[middle.rows, middle.columns])
        total += heights[row] * float(np.array(widths)[columns].sum()) * side**2 / 1e6
    return total


def _bytes_of_pixel(plan: Plan) -> int:
    """Bytes of a pixel of the result, for one period."""
    task: TaskSpec = plan.task.spec
    if task.kind == "regression":
        return 4
    planes = {"class": 1, "probability": 4 * len(task.classes), "logits": 4 * len(task.classes)}
    return sum(planes.get(name, 4) for name in plan.spec.options.return_)


def _worker_bytes(plan: Plan) -> int:
    """Memory of a worker: the process, a block in the device's hands, and the next one while it is read.

    A block is its frames; while it is read, all dates of a frame stand beside it for a strip of rows.
    """
    block = plan.spec.block + 2 * plan.task.spec.window
    bands = len(plan.task.spec.bands)
    frames = len(plan.windows) * bands * 2 * block**2
    dates = max((max(tile.dates) for tile in plan.inventory.values()), default=0)
    strip = min(_STRIP, block) * block * dates * (2 * bands + 1)
    floats = 4 * block**2 * (bands * plan.task.spec.frames + max(len(plan.task.spec.classes), 1))
    answer = _bytes_of_pixel(plan) * len(plan.spec.seasons) * block**2
    return _PROCESS + 2 * frames + 2 * strip + floats + 2 * answer


def _price(prices: Price | None, seconds: float | None, read: int, written: int) -> dict[str, float]:
    if prices is None:
        return {}
    found = {"reading": read / 1e9 * prices.gb_read, "a month of storage": written / 1e9 * prices.gb_month_stored}
    if seconds is not None:
        found["devices"] = seconds / 3600 * prices.device_hour
        found["workers"] = seconds / 3600 * prices.worker_hour
    return {name: value for name, value in found.items() if value}


def _rows(quote: Quote) -> list[tuple[str, str]]:
    beside = [
        f"{number:,} {what}"
        for number, what in (
            (quote.without_items, "without items"),
            (quote.too_few_dates, "with too few dates"),
            (quote.outside, "outside of the region"),
        )
        if number
    ]
    rows = [
        ("blocks", f"{quote.blocks:,}" + (f" (and {', '.join(beside)})" if beside else "")),
        ("pixels", f"{quote.pixels:,} ({quote.km2:,.0f} km2)"),
        (
            "items",
            f"{quote.items:,} of {quote.tiles:,} tiles" + (f", {quote.left_out:,} left out" if quote.left_out else ""),
        ),
        ("to read", in_bytes(quote.bytes_read)),
        ("to write", f"{in_bytes(quote.bytes_written)} before compression"),
        ("windows", f"{quote.windows:,}"),
        ("operations", "unknown" if quote.flops is None else f"{quote.flops:.3g} FLOP"),
        ("device time", _told(quote)),
        ("memory of a worker", in_bytes(quote.worker_bytes)),
    ]
    rows += [(f"price, {name}", f"{value:,.2f} {quote.currency}") for name, value in quote.price.items()]
    return [*rows, ("price", "unknown" if quote.total is None else f"{quote.total:,.2f} {quote.currency}")]


def _told(quote: Quote) -> str:
    if quote.device_seconds is None:
        return "unknown without a rate; measure it on the device"
    return f"{in_time(quote.device_seconds)} at {quote.rate:,.3g} windows/s"


def in_bytes(number: float) -> str:
    """Return bytes as people write them."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} PB"


def in_time(number: float) -> str:
    """Return seconds as people write them."""
    if number < 120:
        return f"{number:.1f} s"
    hours, minutes = divmod(round(number / 60), 60)
    return f"{hours:,} h {minutes:02d} min" if hours else f"{minutes} min"


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows)
    return "\n".join(lines)
