"""STAC Items against the published schemas, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyproj
import pystac
import pystac.validation
from jsonschema import Draft7Validator
from referencing import Registry, Resource

FOLDER = Path(__file__).parent / "schemas"
CORE = Path(pystac.__file__).parent / "validation" / "jsonschemas"
PROCESSING = {
    "processing:level": {"type": "string"},
    "processing:lineage": {"type": "string"},
    "processing:software": {"type": "object", "additionalProperties": {"type": "string"}},
}
"""The fields that we write, as the text of the processing extension v1.2.0 describes them."""


def _schema(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(path.read_text())
    return read


def check(item: dict[str, Any]) -> None:
    """Fail unless an Item is valid: the core, and the extensions that it names."""
    pystac.validation.validate_dict({**item, "stac_extensions": []})
    outside = {
        "https://proj.org/schemas/v0.7/projjson.schema.json": Path(
            pyproj.datadir.get_data_dir(), "projjson.schema.json"
        ),
        "https://geojson.org/schema/Geometry.json": CORE / "geojson" / "Geometry.json",
    }
    registry: Any = Registry().with_resources(
        [(uri, Resource.from_contents(_schema(path))) for uri, path in outside.items()]
    )
    for name in ("projection", "classification"):
        assert any(f"/{name}/" in uri for uri in item["stac_extensions"])
        schema = Draft7Validator(_schema(FOLDER / f"{name}-v2.0.0.json"), registry=registry)
        schema.validate(item)
        # The schemas do not look into bands, whose fields are those of assets.
        bands = [band for asset in item["assets"].values() for band in asset.get("bands", [])]
        schema.validate({**item, "assets": {f"{number}": band for number, band in enumerate(bands)}})
    assert "https://stac-extensions.github.io/processing/v1.2.0/schema.json" in item["stac_extensions"]
    Draft7Validator({"required": list(PROCESSING), "properties": PROCESSING}).validate(item["properties"])


def check_model(item: dict[str, Any]) -> None:
    """Fail unless an Item of a trained model is valid: the core, and what `schemas/README.md` has of the extension."""
    pystac.validation.validate_dict({**item, "stac_extensions": []})
    schema = _schema(FOLDER / "mlm-v1.4.0-items.json")
    classification = _schema(FOLDER / "classification-v2.0.0.json")
    registry: Any = Registry().with_resources(
        [(s["$id"].rstrip("#"), Resource.from_contents(s)) for s in (schema, classification)]
    )
    assert any("/mlm/v1.5" in uri for uri in item["stac_extensions"])
    Draft7Validator(schema, registry=registry).validate({**item, "stac_extensions": [schema["$id"]]})
    declared = {band["name"] for band in item["properties"]["bands"]}
    for entry in item["properties"]["mlm:input"]:
        dims = dict(zip(entry["input"]["dim_order"], entry["input"]["shape"], strict=True))
        assert ("bands" in dims) == bool(entry["bands"])
        assert dims.get("bands", 0) == len(entry["bands"])
        assert set(entry["bands"]) <= declared
