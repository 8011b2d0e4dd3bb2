"""The Item of a trained model: against the published rules, and PySTAC's own reader."""

from __future__ import annotations

import copy
import datetime as dt
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pystac
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import ValidationError
from pystac.extensions.mlm import MLMExtension
from small import CLASSES, task
from stac_checks import check_model

from xgfm.describe.mlm import Trained, model_item
from xgfm.describe.sources import Source

DAY = dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC)


def trained(**changes: Any) -> Trained:
    kept: dict[str, Any] = {
        "task": task(licence="Apache-2.0", temperature=1.5, coords=("time", "location")),
        "digest": "ab" * 32,
        "size": 12_345,
        "parameters": 678,
        "created": DAY,
        "software": {"xgfm": "0.1.0", "torch": "2.13.0+cpu"},
        "base": "owner/base",
        "hyperparameters": {"lr": 1e-4, "loss of it": "dice"},
        "scores": {"accuracy": 0.9, "kappa": None},
        "bbox": [-94.0, 41.0, -93.5, 41.5],
        "period": (DAY - dt.timedelta(days=100), DAY),
        "sources": [Source("https://catalog.example/items/one", "one")],
        "files": {"README.md": ("text/markdown", "card"), "config.json": ("application/json", "record")},
    }
    return Trained(**{**kept, **changes})


@pytest.mark.parametrize(
    "given",
    [
        trained(),
        trained(task=task(kind="regression", classes=(), units="t ha-1"), base=None),
        trained(bbox=None, period=None, sources=(), hyperparameters={}, files={}),
        trained(task=task(name="a"), scores={}),
        trained(task=task(name="ab-"), software={"xgfm": "0.1.0", "torch": "2.6.0"}),
        trained(task=task(nodata_units="input", demonstration=True)),
    ],
    ids=["all", "regression", "nothing known", "name of one letter", "name with an end", "demonstration"],
)
def test_item_is_valid(given: Trained) -> None:
    item = model_item(given)
    check_model(item)
    assert json.loads(json.dumps(item, allow_nan=False)) == item


@settings(deadline=None)
@given(st.from_regex(r"[A-Za-z][A-Za-z0-9_.\-]{0,30}", fullmatch=True))
def test_every_name_of_a_task_is_one_of_the_extension(name: str) -> None:
    check_model(model_item(replace(trained(), task=task(name=f"t{name}"))))


def without(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(item: dict[str, Any]) -> None:
        for key in path[:-1]:
            item = item[key]
        del item[path[-1]]

    return change


@pytest.mark.parametrize(
    "spoil",
    [
        without("properties", "mlm:name"),
        without("properties", "mlm:architecture"),
        without("properties", "mlm:input"),
        without("properties", "mlm:output"),
        without("properties", "bands"),
        without("assets", "model", "mlm:artifact_type"),
        lambda item: [item["assets"]["model"].update(roles=["data"]), item["assets"]["model"].pop("mlm:artifact_type")],
        lambda item: item["assets"]["readme"].update({"mlm:artifact_type": "torch.save"}),
        lambda item: item["properties"].update({"mlm:accuracy": 0.9}),
        lambda item: item["properties"]["mlm:input"][0]["input"].update({"dim_order": ["Batch"]}),
        lambda item: item["properties"]["mlm:input"][0]["value_scaling"][0].pop("stddev"),
        lambda item: item["properties"]["mlm:output"][0]["classification:classes"][0].pop("value"),
        lambda item: item["properties"].update({"mlm:framework_version": "2.13"}),
    ],
)
def test_check_finds_what_is_wrong(spoil: Callable[[dict[str, Any]], None]) -> None:
    item = copy.deepcopy(model_item(trained()))
    spoil(item)
    with pytest.raises((ValidationError, KeyError)):
        check_model(item)


def test_item_says_what_goes_in_and_out() -> None:
    properties = model_item(trained())["properties"]
    images, time, location = properties["mlm:input"]
    assert images["bands"] == [band["name"] for band in properties["bands"]]
    assert images["input"]["shape"] == [-1, 6, 3, 32, 32]
    assert images["value_scaling"][0] == {"type": "z-score", "mean": 1000.0, "stddev": 500.0}
    assert (time["input"]["shape"], location["input"]["shape"]) == ([-1, 3, 2], [-1, 2])
    output = properties["mlm:output"][0]
    assert output["result"]["shape"] == [-1, 3, 32, 32]
    assert [c["description"] for c in output["classification:classes"]] == [c.name for c in CLASSES]
    assert "divided by 1.5" in output["description"]
    assert properties["mlm:pretrained_source"] == "owner/base"
    assert properties["license"] == "Apache-2.0"
    assert properties["mlm:hyperparameters"] == {"lr": 1e-4, "loss_of_it": "dice"}
    assert model_item(trained(base=None))["properties"]["mlm:pretrained"] is False


def test_item_leads_to_inputs_and_base() -> None:
    links = {link["href"]: link["rel"] for link in model_item(trained())["links"]}
    assert links == {
        "https://catalog.example/items/one": "derived_from",
        "https://huggingface.co/owner/base": "derived_from",
    }
    assert model_item(trained())["geometry"]["coordinates"][0][2] == [-93.5, 41.5]


def test_pystac_reads_its_fields() -> None:
    """The package knows v1.4, whose fields are these."""
    written = model_item(trained())
    known = "https://stac-extensions.github.io/mlm/v1.4.0/schema.json"
    item = pystac.Item.from_dict({**written, "stac_extensions": [known, *written["stac_extensions"][1:]]})
    read = MLMExtension.ext(item)
    assert read.mlm_name == "small-task"
    assert read.total_parameters == 678
    assert [str(i.name) for i in read.input] == ["images", "time", "location"]
    assert read.output[0].result.shape == [-1, 3, 32, 32]
    assert item.assets["model"].extra_fields["file:checksum"] == "1220" + "ab" * 32
