"""What a notebook shows of a task or a model.

In: the record, and where its weights are. Out: a small table as HTML. No weights are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xgfm.models.spec import ModelSpec, TaskSpec
from xgfm.notebook import card, legend

if TYPE_CHECKING:
    from xgfm.models.handle import ModelHandle

_DEMONSTRATION = ("a demonstration: its maps are of nothing real",)


def shown(handle: ModelHandle) -> str:
    """Return a table of what a task or a model takes, gives and comes from."""
    spec = handle.spec
    about = _task_rows(spec) if isinstance(spec, TaskSpec) else _model_rows(spec)
    weights = {"weights": handle.source or "made by a function", "SHA-256": f"{handle.digest[:16]}..."}
    domain = {"out of domain": "knows its training set"} if handle.domain else {}
    kind = "task" if isinstance(spec, TaskSpec) else "model"
    return card(f"{kind} {spec.name}: {spec.title}", {**about, **weights, **domain})


def _task_rows(spec: TaskSpec) -> dict[str, object]:
    frames = "1 frame" if spec.frames == 1 else f"{spec.frames} frames"
    what = legend((c.name, c.color) for c in spec.classes) if spec.classes else f"{spec.kind}, in {spec.units}"
    return {
        "gives": what,
        "takes": f"{frames} of {', '.join(spec.bands)}, pixels of {spec.pixel_size:g} m",
        "encoder": spec.model.name,
        "windows": f"{spec.window} pixels, of which {spec.halo} at each edge are thrown away",
        "mind": "; ".join([*(_DEMONSTRATION if spec.demonstration else ()), *spec.quirks]),
        "licence": spec.licence,
        "paper": spec.paper,
    }


def _model_rows(spec: ModelSpec) -> dict[str, object]:
    return {
        "takes": f"{spec.frames} frames of {', '.join(spec.bands)}",
        "patches": " x ".join(str(side) for side in spec.patch_size) + " (frames, rows, columns)",
        "encoder": f"{spec.depth} blocks, {spec.embed_dim} features, {spec.num_heads} heads",
    }
