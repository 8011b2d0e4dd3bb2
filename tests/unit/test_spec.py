"""Records: what they refuse, and that they come back from JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import model, task

from xgfm.errors import TaskError
from xgfm.models.published import MODELS, TASKS
from xgfm.models.spec import ClassInfo, Statistics, WeightsSource, model_from_json, task_from_json, to_json

NAN, INF = float("nan"), float("inf")
NO_NUMBERS = st.one_of(st.text(), st.none(), st.booleans(), st.sampled_from([NAN, INF, -INF, 10**400]))


def test_published_records_come_back_from_json() -> None:
    for spec in TASKS.values():
        assert json.dumps(to_json(task_from_json(json.loads(json.dumps(to_json(spec)))))) == json.dumps(to_json(spec))
    for spec in MODELS.values():
        assert model_from_json(json.loads(json.dumps(to_json(spec)))) == spec


@given(bad=NO_NUMBERS, name=st.sampled_from(["mean", "std"]))
def test_statistics_are_finite_numbers(bad: Any, name: str) -> None:
    kept: dict[str, Any] = {"mean": (1.0, 2.0), "std": (1.0, 2.0)}
    with pytest.raises(TaskError, match=f"^{name} is .* must be finite numbers"):
        Statistics(**{**kept, name: (1.0, bad)})


@pytest.mark.parametrize("mean", ["12", 5.0, None])
def test_statistics_are_lists(mean: Any) -> None:
    with pytest.raises(TaskError, match=r"mean is .*; it must be a list of numbers"):
        Statistics(mean, (1.0,))


@pytest.mark.parametrize("scale", [0.0, -1e-4, NAN, INF, "1e-4", None])
def test_reflectance_scale_is_finite_and_positive(scale: Any) -> None:
    with pytest.raises(TaskError, match=r"reflectance_scale is .* finite number above 0"):
        Statistics((1.0,), (1.0,), scale)


def test_statistics_of_numpy_can_be_written() -> None:
    statistics = Statistics(np.float32([1, 2]), [np.float64(3), 4])  # type: ignore[arg-type]
    assert json.dumps([statistics.mean, statistics.std]) == "[[1.0, 2.0], [3.0, 4.0]]"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("kind", v) for v in ("detection", "", None, [])),
        ("composite", "mean"),
        ("nodata_units", "dn"),
        ("coords", ("place",)),
        ("quirks", (3,)),
        ("demonstration", "yes"),
        ("title", None),
        *(("frames", v) for v in (0, -1, 3.0, "3", True, 10**9)),
        *(("window", v) for v in (0, 32.5, "32", 10**9)),
        *(("halo", v) for v in (-1, 1.5, None)),
        *(("pixel_size", v) for v in (0, -30, NAN, INF, "30")),
        ("nodata_fill", NAN),
        *(("architecture", v) for v in ("unet", None, [1])),
        *(("architecture", {"decoder": v}) for v in (NAN, 10**9, b"x", {1, 2}, [0] * 600)),
    ],
)
def test_task_names_the_field_that_it_refuses(field: str, value: Any) -> None:
    with pytest.raises(TaskError, match=rf"^{field}\b"):
        replace(task(), **{field: value})


def test_architecture_is_of_bounded_depth() -> None:
    nested: Any = {}
    for _ in range(50):
        nested = {"a": nested}
    with pytest.raises(TaskError, match="nested more than 16 deep"):
        task(nested)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("patch_size", v) for v in ((1, 0, 16), (1, 16), (1, 16, 10**6), (1, 16.0, 16), 16)),
        *(("embed_dim", v) for v in (10**9, -1, "96", 96.0)),
        *(("depth", v) for v in (10**8, None)),
        ("num_heads", 10**6),
        ("image_size", 10**6),
        ("decoder_embed_dim", 10**9),
        ("decoder_depth", 10**8),
        ("decoder_num_heads", 0),
        ("frames", "3"),
        ("mlp_ratio", 1e9),
        ("norm_eps", NAN),
        ("mask_ratio", "0.75"),
        ("pixel_size", 0),
        ("coords", ("time", "place")),
        ("coords_scale_learned", 1),
        ("bands", (1, 2, 3, 4, 5, 6)),
        ("name", 3),
    ],
)
def test_model_names_the_field_that_it_refuses(field: str, value: Any) -> None:
    with pytest.raises(TaskError, match=f"^{field} "):
        model(**{field: value})


@pytest.mark.parametrize(
    "name",
    [
        *("probability", "confidence", "entropy", "logits", "out_of_domain", "embedding"),
        *("feature", "class", "band", "time", "x", "y"),
        *("spatial_ref", "spatial-ref", "spatial.ref"),
    ],
)
def test_task_cannot_have_the_name_of_another_variable(name: str) -> None:
    with pytest.raises(TaskError, match=f"'{name}' is that of another variable"):
        task(name=name)


def test_layout_is_one_that_can_be_read() -> None:
    with pytest.raises(TaskError, match="layout is 'evil'; it can be 'v1', 'v2'"):
        WeightsSource("evil")  # type: ignore[arg-type]


def test_class_has_a_name_and_a_colour() -> None:
    with pytest.raises(TaskError, match="name is 3; it must be text"):
        ClassInfo(3, "#000000")  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="color is None"):
        ClassInfo("Water", None)  # type: ignore[arg-type]
