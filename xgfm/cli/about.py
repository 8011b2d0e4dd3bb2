"""What a store, a task folder or a weights file is, in words.

In: a path, or the name of a task or a model. Out: pairs of a word and what there is to say. Only metadata is read,
except that a weights file is opened as `load_task` opens it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xarray as xr

from xgfm.errors import CheckpointError, XgfmError
from xgfm.grid import geobox_of, pixel_size_m
from xgfm.models import registry
from xgfm.models.fetch import sha256_of
from xgfm.models.spec import ModelSpec, TaskSpec

Pairs = list[tuple[str, str]]


def about(path: str) -> Pairs:
    """Return what is to be said about a path or a name.

    Raises
    ------
    XgfmError
        For what is neither, or a folder that holds neither a store nor a task.
    """
    place = Path(path).expanduser()
    names = [spec.name for spec in registry.tasks()] + [spec.name for spec in registry.models()]
    if "://" in path or any((place / mark).exists() for mark in ("zarr.json", ".zgroup")):
        return _about_store(path)
    if place.is_file():
        return _about_weights(place)
    if place.is_dir() or path in names:
        return about_record(registry.spec_of(path))
    raise XgfmError(f"{path!r} is neither a path that exists nor one of the names {names}")


def source_of(spec: TaskSpec | ModelSpec) -> str:
    """Return where the weights of a task or a model come from."""
    weights = spec.weights
    if weights is None:
        return "comes with xgfm"
    return f"{weights.repo} ({weights.size})" if weights.size else str(weights.repo)


def about_record(spec: TaskSpec | ModelSpec) -> Pairs:
    """Return what a task's or a model's record says."""
    pairs = [("name", spec.name), ("title", spec.title), ("bands", " ".join(spec.bands)), ("frames", str(spec.frames))]
    if isinstance(spec, TaskSpec):
        pairs += [
            ("gives", "classes" if spec.classes else f"a number ({spec.units})"),
            *((f"  {number}", f"{c.name} {c.color}") for number, c in enumerate(spec.classes)),
            ("window", f"{spec.window} pixels, halo {spec.halo}"),
            ("model", f"{spec.model.name}, {spec.model.depth} blocks of {spec.model.embed_dim}"),
        ]
        pairs += [("note", quirk) for quirk in spec.quirks]
        pairs += [("note", "a demonstration: a map of nothing")] if spec.demonstration else []
    return [
        *pairs,
        ("pixel size", f"{spec.pixel_size:g} m"),
        ("licence", spec.licence),
        ("paper", spec.paper or "-"),
        ("weights", source_of(spec)),
        ("SHA-256", (spec.weights.sha256 if spec.weights else None) or "not known beforehand"),
    ]


def _about_store(path: str) -> Pairs:
    """What a Zarr store holds, from its metadata."""
    try:
        stored = xr.open_zarr(path, mask_and_scale=False, decode_coords="all")
    except FileNotFoundError as error:
        raise XgfmError(f"there is no Zarr store at {path}") from error
    box = geobox_of(stored)
    rows, columns = box.shape
    # What the grid says, where it is in metres; a degree has to be measured.
    metres = abs(box.affine.a) if box.crs is not None and box.crs.projected else pixel_size_m(box)
    pairs = [
        ("Zarr store", path),
        ("CRS", f"EPSG:{box.crs.epsg}" if box.crs is not None and box.crs.epsg else str(box.crs)[:80]),
        (
            "size",
            f"{rows} x {columns} pixels of {metres:.4g} m, {rows * metres / 1e3:.4g} x {columns * metres / 1e3:.4g} km",
        ),
        ("upper left", f"{box.affine.c:.10g}, {box.affine.f:.10g}"),
    ]
    for name, variable in stored.data_vars.items():
        shards = variable.encoding.get("shards")
        pairs.append(
            (
                str(name),
                f"{variable.dtype} {dict(variable.sizes)}, chunks {variable.encoding.get('chunks')}"
                + (f" in shards {shards}" if shards else ""),
            )
        )
        if "class_names" in variable.attrs and variable.ndim > 1:
            pairs.append(("  classes", ", ".join(variable.attrs["class_names"])))
    return pairs + [(str(key), _fact(str(key), value)) for key, value in stored.attrs.items()]


def _fact(key: str, value: Any) -> str:
    if key == "frames" and all("window" in frame for frame in value):
        return ", ".join(" to ".join(frame["window"]) for frame in value)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _about_weights(path: Path) -> Pairs:
    """What is in a weights file; it is opened as `load_task` opens it, so a hostile file is refused."""
    from xgfm.models.checkpoint import read_state

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


def _holds(entry: registry.Entry | None, digest: str) -> str:
    if entry is None:
        return "unknown: it has no published name; load it with spec="
    known = {None: "is not known beforehand", digest: "agrees"}
    return f"{entry.spec.name}: {entry.spec.title}; the digest {known.get(entry.sha256, 'is ANOTHER than published')}"
