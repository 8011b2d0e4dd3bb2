"""What a job is to do: one frozen record, as YAML and back.

In: a YAML file, or keywords. Out: a `JobSpec` that is complete and consistent in itself: what can be refused without a
search or a read is refused here. It holds no credential; those are looked up when pixels are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from xgfm.cube.hrefs import unsigned
from xgfm.cube.interval import parse_interval
from xgfm.cube.mask import DEFAULT_BITS, FLAGS
from xgfm.cube.periods import Period, named_periods
from xgfm.errors import FramesError, ItemError, JobError, XgfmError
from xgfm.jobs import document
from xgfm.jobs.region import check as check_region

Layer = Literal["class", "probability", "confidence", "entropy", "logits", "out_of_domain"]
Check = Literal["bands", "pixel_size", "dates", "values"]

_LARGEST = 32_768
"""Pixels of a block's side: more does not fit into a worker's memory."""


def _refusing(check: Any) -> Any:
    """Turn an error of xgfm into one that is told with key and line."""

    def checked(value: Any) -> Any:
        try:
            return check(value)
        except XgfmError as error:
            raise ValueError(str(error)) from error

    return checked


def _public(text: str) -> str:
    """Refuse a URL that holds a user, a password, a signature or another query."""
    if not text.strip():
        raise ValueError("is empty")
    try:
        plain = unsigned(text)
    except ItemError:
        plain = ""
    if plain != text:
        raise ValueError(
            "the URL holds a user, a password, a signature or another query (left out here), which would be stored "
            "with the job; give the plain URL, credentials are taken from the environment when it is used"
        )
    return text


def _several(value: Any) -> Any:
    """One text stands for a list of one."""
    return [value] if isinstance(value, str) else value


def _text_of_date(value: Any) -> Any:
    """``2024`` is a year, though YAML takes it for a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _period(text: str) -> str:
    start, end = parse_interval(text)
    if start is None or end is None:
        raise JobError(
            f"{text!r} is open; a job's frames are parts of its period: give both ends, '2024-04-01/2024-10-31'"
        )
    return text


def _crs(value: Any) -> Any:
    from xgfm.cube.target import Target

    if not isinstance(value, str):
        raise JobError(f"{value!r} is no CRS; expected 'EPSG:5070', WKT or PROJJSON as one text")
    Target(crs=value)
    return value


def _grid_kind(value: Any) -> str:
    return "GridSpec" if isinstance(value, Mapping | BaseModel) else "native"


Text = Annotated[str, Field(strict=True)]
Public = Annotated[str, Field(strict=True), AfterValidator(_public)]
Whole = Annotated[int, Field(strict=True, ge=1)]
Side = Annotated[int, Field(strict=True, ge=16, le=_LARGEST)]
Amount = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
PeriodText = Annotated[str, BeforeValidator(_text_of_date), Field(strict=True), AfterValidator(_refusing(_period))]


class _Record(BaseModel):
    """Frozen, with no key that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False, hide_input_in_errors=True)


class GridSpec(_Record):
    """One target grid for the whole region."""

    crs: Annotated[Any, AfterValidator(_refusing(_crs))] = Field(description="a CRS, 'EPSG:5070'")
    """Anything that PROJ knows, as text."""
    resolution: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = Field(
        description="a number above 0, side of a pixel in units of the CRS"
    )
    """Side of a pixel in units of the CRS."""


class Options(_Record):
    """How the task is run: see `xgfm.predict`."""

    return_: Annotated[tuple[Layer, ...], BeforeValidator(_several), Field(min_length=1)] = Field(
        default=("class",),
        validation_alias=AliasChoices("return", "return_"),
        serialization_alias="return",
        description="some of class, probability, confidence, entropy, logits, out_of_domain",
    )
    """Layers of the result."""
    halo: Annotated[int, Field(strict=True, ge=0)] | None = Field(
        default=None, description="a whole number of pixels from 0 on; absent for the task's own"
    )
    """Pixels at each window's edge whose output is thrown away; None for the task's own."""
    blend: Literal["hann"] | None = Field(default=None, description="hann, or absent")
    """Average neighbouring windows over twice the halo."""
    tta: Annotated[bool, Field(strict=True)] = Field(default=False, description="true or false")
    """Average the logits of the eight flips and quarter turns."""
    min_valid: Annotated[float, Field(strict=True, ge=0, le=1)] = Field(default=0.0, description="a share from 0 to 1")
    """Share of valid pixels under which a window is nodata."""
    precision: Literal["auto", "fp32", "bf16"] = Field(default="auto", description="auto, fp32 or bf16")
    """Number format of weights and activations."""
    device: Text | None = Field(
        default=None, description="torch's name of a device, cpu or cuda; absent for the worker's own"
    )
    """Torch's name of the device; None takes CUDA where a worker has it."""
    allow: Annotated[tuple[Check, ...], BeforeValidator(_several)] = Field(
        default=(), description="some of bands, pixel_size, dates, values"
    )
    """Checks to leave out."""
    batch_size: Whole | None = Field(
        default=None, description="a whole number of windows from 1 on; absent for what suits the device"
    )
    """Windows of one call of the model at most; None for what suits the device."""


class Limits(_Record):
    """What a run puts up with."""

    attempts: Whole = Field(default=3, description="a whole number from 1 on")
    """Times that a block is tried."""
    read_seconds: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = Field(
        default=900.0, description="seconds, a number above 0"
    )
    """Seconds after which a block counts as hanging."""
    in_flight: Whole | None = Field(
        default=None, description="a whole number of blocks from 1 on; absent for 4 per thread, 64 at least"
    )
    """Blocks that are submitted at once; None follows the workers."""
    on_error: Literal["record", "raise"] = Field(default="record", description="record or raise")
    """Whether a block that fails for good is listed, or stops the run."""


class Price(_Record):
    """What things cost, in one currency."""

    currency: Text = Field(default="USD", description="the name of a currency")
    """As it is printed."""
    device_hour: Amount = Field(default=0.0, description="a price from 0 on")
    """Of an hour of one device."""
    worker_hour: Amount = Field(default=0.0, description="a price from 0 on")
    """Of an hour of the machine round one device."""
    gb_read: Amount = Field(default=0.0, description="a price from 0 on")
    """Of reading 1e9 bytes."""
    gb_month_stored: Amount = Field(default=0.0, description="a price from 0 on")
    """Of keeping 1e9 bytes for a month."""


class JobSpec(document.Document):
    """A region and a period, a task, a store, and how to get from the one to the other.

    Build one with keywords, or read it from YAML with `JobSpec.read`.
    """

    called = "job"

    region: Annotated[Any, AfterValidator(_refusing(check_region))] = Field(
        description="[west, south, east, north] in degrees, a GeoJSON geometry, or the path of a GeoJSON or GeoPackage "
        "file"
    )
    """Bounding box in degrees, GeoJSON geometry, or path of a vector file. Blocks that it does not touch are left."""
    period: PeriodText = Field(description="a period with two ends, 2024 or 2024-04-01/2024-10-31")
    """First and last day of the search; its parts become the frames."""
    task: Public = Field(description="name of a task, or path of a folder or weights file")
    """What to predict: what `xgfm.load_task` takes."""
    store: Public = Field(description="path or URL of a Zarr store that the job writes")
    """Where the result goes; records of the job lie beside it."""
    sink: Literal["zarr", "icechunk"] = Field(default="zarr", description="zarr or icechunk")
    """A Zarr store as it is, or an Icechunk repository: a snapshot for each batch of blocks, and all earlier ones."""
    grid: Annotated[
        Annotated[Literal["native"], Tag("native")] | Annotated[GridSpec, Tag("GridSpec")], Discriminator(_grid_kind)
    ] = Field(default="native", description="native, or a mapping with crs and resolution")
    """``"native"``: each MGRS tile on its own grid, in a group of its name. Else one grid for the whole region."""
    catalog: Public = Field(
        default="lpcloud", description="lpcloud, planetary-computer, a URL, or the path of a file of items"
    )
    """What `xgfm.search` takes."""
    collections: Annotated[tuple[Text, ...], BeforeValidator(_several), Field(min_length=1)] | None = Field(
        default=None, description="a list of collection ids, or absent for those of HLS v2.0"
    )
    """Collection ids; None for those of HLS v2.0 in the catalogue."""
    max_cloud_cover: Annotated[float, Field(strict=True, ge=0, le=100)] | None = Field(
        default=None, description="percent from 0 to 100, or absent"
    )
    """Percent of the tile, inclusive."""
    periods: Annotated[tuple[PeriodText, ...], Field(min_length=1)] | None = Field(
        default=None, description="a list of periods inside of period, in order, apart from one another"
    )
    """Seasons that are mapped one by one, along ``time`` of the result; None maps the whole period once."""
    composite: Literal["median", "medoid", "clearest"] | None = Field(
        default=None, description="median, medoid or clearest; absent for the task's own"
    )
    """How the dates of a frame become one; None for the task's own way."""
    mask: Annotated[tuple[Text, ...], BeforeValidator(_several)] = Field(
        default=DEFAULT_BITS, description=f"some of {', '.join(FLAGS)}"
    )
    """Fmask bits where pixels are thrown away; an empty list throws away the fill alone."""
    options: Options = Field(default=Options(), description="a mapping of options")
    block: Side = Field(
        default=2048, description=f"a whole number of pixels from 16 to {_LARGEST}, a multiple of shard"
    )
    """Side of a block, in pixels: what a worker does at once."""
    shard: Side | None = Field(
        default=None, description="a whole number of pixels, a multiple of chunk; absent for block"
    )
    """Side of a Zarr shard, in pixels; None for one shard to a block."""
    chunk: Side = Field(default=512, description=f"a whole number of pixels from 16 to {_LARGEST}")
    """Side of a Zarr chunk, in pixels."""
    overviews: Annotated[bool, Field(strict=True)] = Field(default=False, description="true or false")
    """Whether coarser levels are added at the end."""
    limits: Limits = Field(default=Limits(), description="a mapping of limits")
    price: Price | None = Field(default=None, description="a mapping of prices, or absent")

    @model_validator(mode="after")
    def _fits(self) -> JobSpec:
        _check_whole("shard" if self.shard else "block", self.shards, "chunk", self.chunk)
        _check_whole("block", self.block, "shard", self.shards)
        unknown = [bit for bit in self.mask if bit not in FLAGS]
        if unknown:
            raise ValueError(f"mask: Fmask has no bit {unknown}; allowed: {', '.join(FLAGS)}")
        if self.periods is not None:
            try:
                _check_seasons(self.span, self.seasons)
            except FramesError as error:
                raise ValueError(f"periods: {error}") from error
        return self

    @property
    def shards(self) -> int:
        """Side of a shard, in pixels."""
        return self.block if self.shard is None else self.shard

    @property
    def span(self) -> Period:
        """The whole days of the period."""
        import pandas as pd

        start, end = parse_interval(self.period)
        assert start is not None  # an open period is refused
        assert end is not None
        first, last = (pd.Timestamp(t).tz_localize(None).normalize() for t in (start, end))
        return Period(first, last + pd.Timedelta(days=1))

    @property
    def seasons(self) -> tuple[Period, ...]:
        """What is mapped: the periods, or the whole period once."""
        if self.periods is None:
            return (self.span,)
        return tuple(named_periods([tuple(text.split("/")) if "/" in text else text for text in self.periods]))


def _check_whole(larger: str, side: int, smaller: str, part: int) -> None:
    if side % part:
        fits = -(-side // part) * part
        raise ValueError(f"{larger}: {side} is not a whole number of times {smaller} {part}; give {larger}: {fits}")


def _check_seasons(span: Period, seasons: tuple[Period, ...]) -> None:
    for season in seasons:
        if season.start < span.start or season.stop > span.stop:
            raise ValueError(
                f"periods: {' to '.join(season.bounds)} reaches out of period {' to '.join(span.bounds)}; widen period"
            )
    for before, after in pairwise(seasons):
        if after.start < before.stop:
            raise ValueError(
                f"periods: {' to '.join(after.bounds)} begins before {' to '.join(before.bounds)} ends; make them "
                "follow one another, or make a second job"
            )
