"""The record of a study: what it comes to, its way through YAML, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from xgfm.errors import TrainError
from xgfm.train.study.spec import Run, StudySpec, digest_of

UNET = {
    "kind": "task",
    "spec": {},
}


def study(**changes: Any) -> StudySpec:
    return StudySpec(**{"chips": "chips.zarr", "folder": "study", "base": "prithvi-eo-2.0-tiny-tl", **changes})


def test_every_method_share_and_seed_is_a_run() -> None:
    runs = list(study(methods=("full", "forest"), fractions=(0.1, 1.0), seeds=(3, 4)).runs())
    assert runs == [
        Run("full", 1.0, 3), Run("forest", 1.0, 3), Run("full", 1.0, 4), Run("forest", 1.0, 4),
        Run("full", 0.1, 3), Run("forest", 0.1, 3), Run("full", 0.1, 4), Run("forest", 0.1, 4),
    ]  # fmt: skip
    assert len({run.name for run in runs}) == 8


def test_it_goes_through_yaml() -> None:
    spec = study(train={"steps": 40, "lr": 1e-3, "task": {"window": 64}}, only={"frozen": {"lr": 0.01}}, seeds=5)
    assert StudySpec.from_yaml(spec.to_yaml()) == spec
    assert spec.seeds == (5,)


def test_settings_are_the_common_ones_and_the_methods_own() -> None:
    spec = study(train={"steps": 40, "lr": 1e-3}, only={"frozen": {"lr": 0.01}})
    full, frozen = (spec.settings(Run(method, 0.5, 2)) for method in ("full", "frozen"))
    assert (full.lr, frozen.lr) == (1e-3, 0.01)
    assert (full.steps, full.seed, full.fraction, full.method) == (40, 2, 0.5, "full")
    assert full.folder != frozen.folder
    assert full.base == frozen.base == "prithvi-eo-2.0-tiny-tl"
    scratch = spec.settings(Run("scratch", 1.0, 0))
    assert scratch.from_scratch
    assert scratch.base == full.base  # its shape


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": None}, "base: is missing"),
        ({"methods": ("full", "full")}, "twice"),
        ({"methods": ("fulll",)}, "methods"),
        ({"methods": ()}, "methods"),
        ({"fractions": (0.0,)}, "fractions"),
        ({"fractions": (1.5,)}, "fractions"),
        ({"seeds": (-1,)}, "seeds"),
        ({"train": {"seed": 3}}, "'seed'"),
        ({"only": {"full": {"chips": "x"}}}, "'chips'"),
        ({"only": {"fulll": {}}}, "only"),
        ({"fraction": 0.5}, "did you mean 'fractions'"),
    ],
)
def test_what_makes_no_study_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(TrainError, match=said):
        study(**changes)


def test_a_line_of_the_file_is_named() -> None:
    text = "chips: a\nfolder: b\nbase: c\nmethods: [full]\nfractions: [1, 2]\n"
    with pytest.raises(TrainError, match=r"mine\.yaml, line 5: fractions"):
        StudySpec.from_yaml(text, name="mine.yaml")


def test_keys_of_no_training_run_are_refused() -> None:
    with pytest.raises(TrainError, match="did you mean 'lr'"):
        study(train={"lrr": 1}).settings(Run("full", 1.0, 0))


def test_digests_tell_settings_apart_and_not_their_order() -> None:
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})
