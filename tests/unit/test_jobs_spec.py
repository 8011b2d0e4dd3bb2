"""The record of a job: YAML and back, and what is said of what is wrong."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from xgfm.errors import JobError, WriteError
from xgfm.jobs.spec import GridSpec, JobSpec, Limits, Options, Price

UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""What else the machine does is not ours."""

GOOD: dict[str, Any] = {"region": [-95.0, 44.0, -94.0, 45.0], "period": "2024", "task": "crop", "store": "out.zarr"}

POLYGON = {"type": "Polygon", "coordinates": [[[-95.0, 44.0], [-94.0, 44.0], [-94.0, 45.0], [-95.0, 44.0]]]}

# What a file system, a catalogue and a user may call things; a URL's query and user are refused elsewhere.
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="?#@"), min_size=1).filter(str.strip)
AMOUNTS = st.floats(0, 1e6)


@st.composite
def specs(draw: st.DrawFn) -> JobSpec:
    chunk = draw(st.integers(16, 600))
    shard = draw(st.none() | st.integers(1, 4).map(lambda n: n * chunk))
    block = (shard or chunk) * draw(st.integers(1, 4))
    west, south = draw(st.floats(-180, 178)), draw(st.floats(-90, 88))
    box = [west, south, draw(st.floats(west + 0.5, 180)), draw(st.floats(south + 0.5, 90))]
    years = draw(st.lists(st.integers(2014, 2026), min_size=1, max_size=4, unique=True).map(sorted))
    return JobSpec(
        region=draw(st.sampled_from([box, POLYGON, "county.gpkg"])),
        period=f"{years[0]}-01-01/{years[-1]}-12-31",
        task=draw(WORDS),
        store=draw(WORDS),
        grid=draw(
            st.just("native")
            | st.builds(GridSpec, crs=st.just("EPSG:5070"), resolution=st.floats(1e-4, 1e4))
        ),
        catalog=draw(WORDS),
        collections=draw(st.none() | st.lists(WORDS, min_size=1, max_size=3).map(tuple)),
        max_cloud_cover=draw(st.none() | st.floats(0, 100)),
        periods=draw(st.none() | st.just(tuple(map(str, years)))),
        composite=draw(st.sampled_from([None, "median", "medoid", "clearest"])),
        mask=draw(st.lists(st.sampled_from(["cloud", "snow", "aerosol-high"]), unique=True).map(tuple)),
        options=Options(
            return_=draw(st.sampled_from([("class",), ("class", "probability"), ("entropy",)])),
            halo=draw(st.none() | st.integers(0, 50)),
            tta=draw(st.booleans()),
            min_valid=draw(st.floats(0, 1)),
            device=draw(st.none() | WORDS),
        ),
        block=block,
        shard=shard,
        chunk=chunk,
        overviews=draw(st.booleans()),
        limits=Limits(attempts=draw(st.integers(1, 9)), in_flight=draw(st.none() | st.integers(1, 500))),
        price=draw(st.none() | st.builds(Price, currency=WORDS, device_hour=AMOUNTS, gb_read=AMOUNTS)),
    )  # fmt: skip


@settings(UNTIMED)
@given(specs())
def test_yaml_there_and_back_is_the_same_record(spec: JobSpec) -> None:
    assert JobSpec.from_yaml(spec.to_yaml()) == spec


@settings(UNTIMED)
@given(specs())
def test_any_yaml_reader_reads_it(spec: JobSpec) -> None:
    assert JobSpec(**yaml.safe_load(spec.to_yaml())) == spec  # of YAML 1.1, where more texts need quotes


@pytest.mark.parametrize("text", ["=", "<<", "no", "2024-04-01", "1e3", "~", "08", "8:30", "0_0."])
def test_texts_stay_texts(text: str) -> None:
    written = JobSpec(**{**GOOD, "options": {"device": text}}).to_yaml()
    assert JobSpec.from_yaml(written).options.device == text
    assert yaml.safe_load(written)["options"]["device"] == text


def test_whole_numbers_are_decimal() -> None:
    for text, number in (("064", 64), ("+080", 80)):
        assert JobSpec.from_yaml(_with_block(text)).block == number


def _with_block(text: str) -> str:
    lines = JobSpec(**{**GOOD, "block": 96, "chunk": 16}).to_yaml().splitlines()
    return "\n".join(f"block: {text}" if line.startswith("block:") else line for line in lines)


def test_a_file_is_written_and_read(tmp_path: Path) -> None:
    spec = JobSpec(**GOOD, grid={"crs": "EPSG:5070", "resolution": 30})
    spec.write(tmp_path / "job.yaml")
    assert JobSpec.read(tmp_path / "job.yaml") == spec
    assert pickle.loads(pickle.dumps(spec)) == spec
    with pytest.raises(WriteError, match=r"nowhere"):
        spec.write(tmp_path / "nowhere" / "job.yaml")
    with pytest.raises(JobError, match=r"cannot be read.*give the path"):
        JobSpec.read(tmp_path / "other.yaml")


def test_a_record_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        JobSpec(**GOOD).task = "flood"  # type: ignore[misc]


def document(**changes: Any) -> str:
    """The good job with some keys changed, one key to a line, in the order of GOOD."""
    return "".join(f"{key}: {value}\n" for key, value in {**GOOD, **changes}.items())


# Each wrong document, the line that is wrong, and what must be said.
WRONG: dict[str, tuple[str, int, list[str]]] = {
    "no number": (document(block="big"), 5, ["block", "'big'", "from 16 to 32768"]),
    "a number as text": (document(block="'2048'"), 5, ["'2048'"]),
    "a fraction": (document(chunk="512.5"), 5, ["512.5", "whole number"]),
    "too small": (document(chunk="8"), 5, ["8 is wrong", "from 16"]),
    "no whole shards": (document(block="1000"), 5, ["block: 1000", "chunk 512", "give block: 1024"]),
    "no whole chunks": (document(shard="700"), 5, ["shard: 700", "chunk 512", "give shard: 1024"]),
    "yes is no truth": (document(overviews="yes"), 5, ["overviews", "'yes'", "true or false"]),
    "a choice": (document(composite="mean"), 5, ["'mean'", "median, medoid or clearest"]),
    "a word for a grid": (document(grid="natve"), 5, ["grid: 'natve'", "native, or a mapping with crs and resolution"]),
    "a grid without resolution": (document(grid="\n  crs: EPSG:5070"), 5, ["grid.resolution", "missing"]),
    "a negative resolution": (
        document(grid="\n  crs: EPSG:5070\n  resolution: -30"), 7, ["grid.resolution: -30", "above 0"],
    ),
    "no such CRS": (document(grid="\n  crs: EPSG:999999\n  resolution: 30"), 6, ["EPSG:999999", "EPSG:32615"]),
    "a layer": (document(options="\n  return: clas"), 6, ["options.return", "'clas'", "class, probability"]),
    "a layer of several": (document(options="\n  return:\n  - class\n  - clas"), 8, ["'clas'"]),
    "a mask bit": (document(mask="[clouds]"), 5, ["clouds", "cloud, adjacent, shadow"]),
    "percent": (document(max_cloud_cover="120"), 5, ["120", "0 to 100"]),
    "not finite": (document(max_cloud_cover=".nan"), 5, ["nan", "0 to 100"]),
    "an unknown key": (document(resoltion="30"), 5, ["'resoltion'", "Allowed", "region, period, task, store"]),
    "a key nearly right": (document(perid="2024"), 5, ["did you mean 'period'"]),
    "an unknown option": (document(options="\n  halo: 3\n  halos: 4"), 7, ["options.halos", "did you mean 'halo'"]),
    "a period that is none": (document(period="soon"), 2, ["soon", "2024-05"]),
    "an open period": (document(period="2024-05-01/.."), 2, ["open", "both ends"]),
    "a period backwards": (document(period="2024-06/2024-05"), 2, ["ends before it starts"]),
    "seasons out of order": (document(periods="['2024-06', '2024-04']"), 5, ["order"]),
    "seasons that overlap": (document(periods="[2024-04/2024-06, 2024-06/2024-08]"), 5, ["begins before"]),
    "a season outside": (document(periods="[2023-04/2023-06]"), 5, ["reaches out of period", "widen period"]),
    "three numbers": (document(region="[1, 2, 3]"), 1, ["no region", "west, south, east, north"]),
    "metres": (document(region="[400000, 5000000, 500000, 5100000]"), 1, ["degrees"]),
    "over the antimeridian": (document(region="[170, 50, -170, 60]"), 1, ["antimeridian", "two sides one by one"]),
    "no vector file": (document(region="county.shp.zip"), 1, ["county.shp.zip", ".gpkg"]),
    "a point": (document(region="{type: Point, coordinates: [1, 2]}"), 1, ["Point", "polygons"]),
    "an empty store": (document(store="' '"), 4, ["store: is empty"]),
    "a task that is no text": (document(task="[crop]"), 3, ["task", "name of a task"]),
    "attempts": (document(limits="{attempts: 0}"), 5, ["limits.attempts: 0", "from 1 on"]),
    "on_error": (document(limits="\n\n  on_error: ignore"), 7, ["'ignore'", "record or raise"]),
    "a price": (document(price="{device_hour: -1}"), 5, ["price.device_hour: -1", "from 0 on"]),
    "a key twice": (document() + "task: flood\n", 5, ["'task' is there twice"]),
    "an alias": (document(region="&a [1, 2, 3, 4]", mask="*a"), 1, ["anchor", "write the value out"]),
    "no YAML": (document() + "options: [1\n", 6, ["expected"]),
    "a list for a mapping": (document(options="[class]"), 5, ["options", "a mapping of options"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_with_its_line(name: str) -> None:
    text, line, said = WRONG[name]
    with pytest.raises(JobError) as raised:
        JobSpec.from_yaml(text, name="county.yaml")
    message = str(raised.value)
    assert f"county.yaml, line {line}:" in message
    for part in said:
        assert part in message


def test_the_good_document_is_good() -> None:
    assert JobSpec.from_yaml(document()) == JobSpec(**GOOD)
    assert JobSpec.from_yaml(document(period="2024-04-01")).period == "2024-04-01"  # no date, but a text


@pytest.mark.parametrize("missing", GOOD)
def test_what_is_missing_is_told(missing: str) -> None:
    text = "".join(f"{key}: {value}\n" for key, value in GOOD.items() if key != missing)
    with pytest.raises(JobError, match=f"line 1: key '{missing}' is missing; expected"):
        JobSpec.from_yaml(text)


def test_everything_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(JobError) as raised:
        JobSpec.from_yaml(document(block="big", overviews="yes", period="soon"))
    assert [line.split(":")[0] for line in str(raised.value).splitlines()] == [
        f"job.yaml, line {n}" for n in (2, 5, 6)
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "# nothing", "- 1", "just words"])
def test_a_document_without_keys(text: str) -> None:
    with pytest.raises(JobError, match=r"job\.yaml holds no keys; expected at least region, period, task, store"):
        JobSpec.from_yaml(text)


SECRETS = {
    "a password": {"store": "s3://me:hunter2@host/out.zarr"},
    "a signature": {"catalog": "https://host/items.json?sig=hunter2"},
    "a fragment": {"task": "https://host/weights.pt#hunter2"},
    "a key that is not known": {"aws_secret_access_key": "hunter2"},
    "a value of the wrong kind": {"store": ["s3://me:hunter2@host/out.zarr"]},
    "an option that is not known": {"options": {"token": "hunter2"}},
}


@pytest.mark.parametrize("name", SECRETS)
def test_no_secret_is_kept_or_repeated(name: str) -> None:
    for make in (lambda values: JobSpec(**values), lambda values: JobSpec.from_yaml(yaml.safe_dump(values))):
        with pytest.raises(JobError) as raised:
            make({**GOOD, **SECRETS[name]})
        assert "hunter2" not in str(raised.value)
        assert raised.value.__cause__ is None


def test_a_record_from_python_is_refused_in_the_same_words() -> None:
    with pytest.raises(JobError, match=r"^block: 1000 is not a whole number of times chunk 512"):
        JobSpec(**GOOD, block=1000)
    with pytest.raises(JobError) as raised:
        JobSpec(**GOOD, blocks=1000)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


@settings(UNTIMED)
@given(st.text(max_size=300))
def test_no_text_breaks_the_reader(text: str) -> None:
    with pytest.raises(JobError):
        JobSpec.from_yaml(text)


def test_a_deep_document_is_refused() -> None:
    with pytest.raises(JobError, match=r"nested|no YAML"):
        JobSpec.from_yaml("region: " + "[" * 5000 + "]" * 5000)


def test_spans_and_seasons() -> None:
    spec = JobSpec(**{**GOOD, "period": "2023-04/2024-09", "periods": ["2023-04/2023-09", "2024-04/2024-09"]})
    assert spec.span.bounds == ["2023-04-01", "2024-09-30"]
    assert [season.bounds for season in spec.seasons] == [["2023-04-01", "2023-09-30"], ["2024-04-01", "2024-09-30"]]
    assert [season.bounds for season in JobSpec(**GOOD).seasons] == [["2024-01-01", "2024-12-31"]]
