"""What a path or a name is, in words: stores, GeoTIFFs, files of items, task folders, weights files.

In: what was typed. Out: pairs of a word and what there is to say, for people. Pixels are not read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from xgfm.errors import CheckpointError, XgfmError

if TYPE_CHECKING:
    from xgfm.models.registry import Entry
    from xgfm.models.spec import ModelSpec, TaskSpec

Pairs = list[tuple[str, str]]
"""A word, and what there is to say."""


def about(path: str) -> Pairs:
    """Return what there is to say about a path, or about the name of a task or a model.

    Parameters
    ----------
    path : str
        Zarr store (folder or URL), store of chips, GeoTIFF, file of items, task folder, weights file, or name.

    Raises
    ------
    XgfmError
        Where it is none of them, or cannot be read.
    """
    from xgfm.models import registry
    from xgfm.store.about import about_store

    place = Path(path).expanduser()
    names = [spec.name for spec in registry.tasks()] + [spec.name for spec in registry.models()]
    if "://" in path or any((place / mark).exists() for mark in ("zarr.json", ".zgroup")):
        return _about_chips(path) or about_store(path)
    if place.is_file():
        return _file_reader(place)(place)
    if place.is_dir() or path in names:
        return _about_folder(path) if place.is_dir() else about_record(registry.spec_of(path))
    raise XgfmError(f"{path!r} is neither a path that exists nor one of the names {names}")


def _about_chips(path: str) -> Pairs | None:
    """Say what chips are; None for another store."""
    from xgfm.errors import TrainError
    from xgfm.train.chips.store import SPLITS, open_chips

    try:
        chips = open_chips(path)
    except TrainError:
        return None
    facts = chips.facts
    return [
        ("chips", path),
        *((split, f"{len(chips.indexes(split))} chips") for split in SPLITS),
        ("each", f"{facts.frames} frames of {', '.join(facts.bands)}, {facts.size} x {facts.size} pixels"),
        ("pixels", f"{facts.pixel_size:g} m, {facts.reflectance_scale:g} of reflectance a unit"),
        ("labels", ", ".join(c.name for c in facts.classes) or f"a number, in {facts.units}"),
        ("left out", f"{len(facts.failed)} chips that could not be read"),
        ("digest", facts.digest),
    ]


def _file_reader(path: Path) -> Callable[[Path], Pairs]:
    """Choose by suffix who says what a file is."""
    from xgfm.cube.catalogs import ITEM_FILES
    from xgfm.store.about import about_geotiff

    name = path.name.lower()
    if name.endswith((".tif", ".tiff")):
        return about_geotiff
    return _about_items if name.endswith(ITEM_FILES) else _about_weights


def _about_items(path: Path) -> Pairs:
    from xgfm.cube.catalogs import load_items
    from xgfm.cube.items import sensor_of, tile_of

    items = load_items(path)
    said = [item["properties"] for item in items]
    days = sorted(str(p.get("datetime") or p.get("start_datetime"))[:10] for p in said)
    sensors = Counter(sensor_of(item) or "not HLS" for item in items)
    return [
        ("file of items", str(path)),
        ("items", str(len(items))),
        ("dates", f"{days[0]} to {days[-1]}" if days else "-"),
        ("sensors", ", ".join(f"{sensor} ({count})" for sensor, count in sorted(sensors.items())) or "-"),
        ("tiles", ", ".join(sorted({f"T{tile}" for item in items if (tile := tile_of(item))})) or "-"),
    ]


def source_of(spec: TaskSpec | ModelSpec) -> str:
    """Return where the weights of a task or a model come from."""
    weights = spec.weights
    if weights is None:
        return "comes with xgfm"
    return f"{weights.repo} ({weights.size})" if weights.size else str(weights.repo)


def about_record(spec: TaskSpec | ModelSpec) -> Pairs:
    """Return what the record of a task or a model says."""
    from xgfm.models.spec import TaskSpec

    pairs = [("name", spec.name), ("title", spec.title), ("bands", " ".join(spec.bands)), ("frames", str(spec.frames))]
    if isinstance(spec, TaskSpec):
        pairs += [
            ("gives", "classes" if spec.classes else f"a number ({spec.units})"),
            *((f"  {number}", f"{c.name} {c.color}") for number, c in enumerate(spec.classes)),
            ("window", f"{spec.window} pixels, halo {spec.halo}"),
            ("model", f"{spec.model.name}, {spec.model.depth} blocks of {spec.model.embed_dim}"),
        ]
        pairs += [("note", quirk) for quirk in spec.quirks]
        pairs += [("note", "a demonstration: a map of nothing real")] if spec.demonstration else []
    return [
        *pairs,
        ("pixel size", f"{spec.pixel_size:g} m"),
        ("licence", spec.licence or "nobody has said"),
        ("paper", spec.paper or "-"),
        ("weights", source_of(spec)),
        ("SHA-256", (spec.weights.sha256 if spec.weights else None) or "not known beforehand"),
    ]


def _about_folder(path: str) -> Pairs:
    """What the record in a folder says; its weights lie beside it."""
    from xgfm.models import registry

    entry = registry.find(path)
    here = {"weights": path, "SHA-256": entry.sha256 or "not known"}
    return [(word, here.get(word, said)) for word, said in about_record(entry.spec)]


def _about_weights(path: Path) -> Pairs:
    """What is in a weights file; it is opened as `load_task` opens it, so a hostile file is refused."""
    from xgfm.models import registry
    from xgfm.models.checkpoint import read_state
    from xgfm.models.fetch import sha256_of

    digest = sha256_of(path)
    try:
        entry = registry.find(path.parent if (path.parent / registry.CONFIG_FILE).is_file() else path)
    except CheckpointError:
        entry = None
    state = read_state(path, entry.layout if entry else "xgfm")
    return [
        ("weights file", str(path)),
        ("holds", _holds(entry, digest)),
        ("size", f"{path.stat().st_size / 1e6:.1f} MB"),
        ("tensors", f"{len(state)}, {sum(t.numel() for t in state.values()):,} parameters"),
        ("SHA-256", digest),
    ]


def _holds(entry: Entry | None, digest: str) -> str:
    if entry is None:
        return "unknown: it has no published name; load it with spec="
    known = {None: "is not known beforehand", digest: "agrees"}
    return f"{entry.spec.name}: {entry.spec.title}; the digest {known.get(entry.sha256, 'is ANOTHER than published')}"
