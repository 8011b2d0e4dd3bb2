"""PROV records: what another implementation of W3C PROV reads in them, and the published schema."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from xgfm.describe.provenance import Run, record
from xgfm.describe.sources import Source

prov = pytest.importorskip("prov", reason="prov, another implementation of W3C PROV, is not installed")

START, END = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)


def made(**changes: Any) -> dict[str, Any]:
    kept: dict[str, Any] = {
        "store": "../map.zarr",
        "ledger": "d1",
        "started": START,
        "ended": END,
        "blocks": 12,
        "workers": 3,
        "task": "crop",
        "weights": {"abc": 12},
        "software": {"xgfm": "1.0", "torch": "2.6"},
        "sources": [Source("https://host/one", "one"), Source("./items/15TVM.json.gz", "7 items", count=7)],
        "spec": "d2",
    }
    return record(Run(**{**kept, **changes}))


def test_another_implementation_reads_the_whole_chain() -> None:
    from prov.model import (
        ProvAssociation,
        ProvDerivation,
        ProvDocument,
        ProvGeneration,
        ProvUsage,
    )

    document = ProvDocument.deserialize(content=json.dumps(made()), format="json")

    def relations(kind: Any) -> set[tuple[str, ...]]:
        return {tuple(str(value) for _, value in found.formal_attributes[:2]) for found in document.get_records(kind)}

    inputs = {"job:input-0", "job:input-1", "job:weights-abc"}
    assert relations(ProvGeneration) == {("job:store", "job:run")}
    assert relations(ProvUsage) == {("job:run", name) for name in (*inputs, "job:spec")}
    assert relations(ProvDerivation) == {("job:store", name) for name in inputs}
    (association,) = document.get_records(ProvAssociation)
    assert str(dict(association.formal_attributes)[prov.constants.PROV_ATTR_PLAN]) == "job:spec"
    (run,) = document.get_record("job:run")
    assert (run.get_startTime(), run.get_endTime()) == (START, END)
    (store,) = document.get_record("job:store")
    assert {str(value) for value in store.get_attribute("prov:location")} == {"../map.zarr"}
    assert json.loads(document.serialize(format="json"))["entity"].keys() == made()["entity"].keys()


def test_records_are_valid_by_the_published_schema() -> None:
    path = Path(prov.__file__).parent / "tests" / "schemas" / "prov-json.schema.json"
    if not path.exists():
        pytest.skip(f"prov comes without {path.name}")
    schema = json.loads(path.read_text())
    check = jsonschema.validators.validator_for(schema)(schema)
    check.validate(made())
    check.validate(made(sources=[]))
    damaged = made()
    del damaged["used"]["_:used-0"]["prov:entity"]
    damaged["wasGeneratedBy"]["_:generated"]["prov:entity"] = 3
    with pytest.raises(jsonschema.ValidationError):
        check.validate(damaged)
