"""Exports of Label Studio: what was brushed and drawn on images, as features on the ground.

In: the tasks of a JSON export, and where each image lies: a sidecar, or the image's own georeference. Out: `Features`
in the CRS of each image. Shapes come in percent of the image, brushes as packed run lengths (thi.ng/rle-pack) of an
RGBA picture; a brushed mask becomes the polygons round its pixels, so that nothing is lost.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from odc.geo.crs import CRS

from xgfm.errors import LabelError
from xgfm.train.labels.files import Features, crs_of, objects

COLUMN = "label"
"""Attribute that holds the label."""
SHAPES = ("polygonlabels", "rectanglelabels", "ellipselabels", "keypointlabels", "brushlabels")
"""Kinds of results that are read."""
_UNNAMED = ("polygon", "rectangle", "ellipse", "keypoint", "brush")
_SIDE = 32
"""Corners of a drawn ellipse."""


@dataclass(frozen=True, slots=True)
class Georeference:
    """Where an image lies."""

    transform: Affine
    """From (column, row) to (x, y)."""
    crs: CRS
    size: tuple[int, int]
    """Width and height in pixels."""


def is_export(document: Any) -> bool:
    """Return whether a JSON value is a Label Studio export."""
    return (
        isinstance(document, Sequence)
        and not isinstance(document, str)
        and bool(document)
        and all(isinstance(task, Mapping) and ("annotations" in task or "completions" in task) for task in document)
    )


def read_export(
    tasks: Sequence[Mapping[str, Any]], name: str, folder: Path, *, georeference: Any = None
) -> list[Features]:
    """Return the features of an export, one `Features` for each image.

    Parameters
    ----------
    tasks : sequence of mapping
        Of the export format JSON. Of several annotations of a task the last one counts; cancelled ones do not.
    name : str
        Of the file, for errors.
    folder : Path
        Where images are looked for.
    georeference : mapping or path, optional
        ``{image: {"transform": [a, b, c, d, e, f], "crs": "EPSG:...", "size": [width, height]}}``, or a JSON file of
        it; the image's name without folders. None: each image's own georeference.

    Raises
    ------
    LabelError
        An image without a place, another size, a broken brush.
    """
    places = _sidecar(georeference)
    found = []
    for task in tasks:
        results = _results(task)
        if results:
            image = _image(task, name)
            place = _place(image, places, folder, name)
            found.append(_features(results, place, f"{image} of {name}"))
    if not found:
        raise LabelError(f"{name} holds no finished annotation; export it as JSON after submitting")
    return found


def decode_rle(packed: Sequence[int]) -> NDArray[np.uint8]:
    """Return the values of packed run lengths, as Label Studio's brush writes them.

    Parameters
    ----------
    packed : sequence of int
        Bytes. 32 bits: how many values; 5 bits: width of a value less one; four times 4 bits: widths of run lengths
        less one. Then blocks: 1 bit whether it is a run, 2 bits which width, the length less one, and one value for a
        run, or so many values.

    Returns
    -------
    ndarray
        Flat; for a brush ``height * width * 4``, RGBA.

    Raises
    ------
    LabelError
        Where the bytes end too soon.
    """
    bits = np.unpackbits(np.asarray(packed, "uint8"))
    place = 0

    def take(width: int) -> int:
        nonlocal place
        if place + width > bits.size:
            raise LabelError(f"a brush of {len(packed)} bytes ends in the middle of a run; export it again")
        number = int("".join(map(str, bits[place : place + width].tolist())), 2)
        place += width
        return number

    count, word = take(32), take(5) + 1
    widths = [take(4) + 1 for _ in range(4)]
    out = np.zeros(count, "uint8")
    done = 0
    while done < count:
        run = take(1)
        length = take(widths[take(2)]) + 1
        values = take(word) if run else [take(word) for _ in range(length)]
        out[done : done + length] = values
        done += length
    return out


def _results(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    annotations = [a for a in task.get("annotations") or task.get("completions") or [] if not a.get("was_cancelled")]
    return list(annotations[-1].get("result") or []) if annotations else []


def _image(task: Mapping[str, Any], name: str) -> str:
    """The file name of the task's image, without folders and Label Studio's own storage prefix."""
    data = task.get("data") or {}
    href = data.get("image") or next((v for v in data.values() if isinstance(v, str)), None)
    if href is None:
        raise LabelError(f"a task of {name} names no image (data.image); export it in the format JSON")
    parts = urlsplit(str(href))
    local = parse_qs(parts.query).get("d")  # /data/local-files/?d=folder/image.tif
    return Path(unquote(local[0] if local else parts.path)).name


def _sidecar(value: Any) -> dict[str, Georeference] | None:
    if value is None:
        return None
    if isinstance(value, str | Path):
        path = Path(value)
        if not path.is_file():
            raise LabelError(f"there is no file {str(path)!r}; correct georeference=")
        value = json.loads(path.read_text(encoding="utf-8"))
    places = {}
    for image, entry in dict(value).items():
        try:
            transform = Affine(*[float(v) for v in list(entry["transform"])[:6]])
            size = (int(entry["size"][0]), int(entry["size"][1]))
            places[image] = Georeference(transform, crs_of(entry["crs"], image), size)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            if isinstance(error, LabelError):
                raise
            raise LabelError(
                f"georeference of {image!r} is {entry!r}; expected transform (six numbers), crs and "
                "size (width, height)"
            ) from error
    return places


def _place(image: str, places: Mapping[str, Georeference] | None, folder: Path, name: str) -> Georeference:
    # Uploads get eight hexadecimal digits and a dash before their names.
    names = (image, image.partition("-")[2]) if len(image.partition("-")[0]) == 8 else (image,)
    if places is not None:
        found = next((places[n] for n in names if n in places), None)
        if found is None:
            raise LabelError(
                f"georeference= has no {image!r}, which {name} labels; it has {', '.join(list(places)[:8])}"
            )
        return found
    path = next((folder / n for n in names if (folder / n).is_file()), None)
    if path is None:
        raise LabelError(
            f"image {image!r} of {name} is not in {folder.name or '.'!r}; say where it lies, georeference="
        )
    return _of_file(path)


def _of_file(path: Path) -> Georeference:
    import rasterio

    with rasterio.open(path) as file:
        if file.crs is None:
            raise LabelError(f"image {path.name!r} has no CRS; say where it lies, georeference=")
        return Georeference(Affine(*file.transform[:6]), crs_of(file.crs, path.name), (file.width, file.height))


def _features(results: Sequence[Mapping[str, Any]], place: Georeference, name: str) -> Features:
    geometry: list[Any] = []
    labels: list[str] = []
    for result in results:
        kind, value = str(result.get("type")), result.get("value") or {}
        if kind in _UNNAMED:
            raise LabelError(f"{name} holds a {kind} without a label; draw it with <{kind.title()}Labels>")
        if kind not in SHAPES:  # choices, texts, ratings: they say nothing of the ground
            continue
        _check_size(result, place, name)
        for shape in _drawn(kind, value, place, name):
            for label in value.get(kind) or []:
                geometry.append(shape)
                labels.append(str(label))
    to_ground = place.transform.to_shapely()
    moved = [shapely.affinity.affine_transform(shape, to_ground) for shape in geometry]
    return Features(objects(moved), {COLUMN: objects(labels)}, place.crs, name)


def _check_size(result: Mapping[str, Any], place: Georeference, name: str) -> None:
    size = (result.get("original_width"), result.get("original_height"))
    if size != place.size:
        raise LabelError(
            f"{name} was labelled at {size[0]} x {size[1]} pixels, but lies as {place.size[0]} x {place.size[1]}"
        )


def _drawn(kind: str, value: Mapping[str, Any], place: Georeference, name: str) -> list[Any]:
    """Shapes of one result in pixels of the image."""
    width, height = place.size
    if kind == "brushlabels":
        return _brushed(value, place.size, name)
    if kind == "polygonlabels":
        corners = np.asarray(value["points"], "float64")
    elif kind == "keypointlabels":
        return [shapely.Point(value["x"] * width / 100, value["y"] * height / 100)]
    elif kind == "ellipselabels":
        around = np.linspace(0, 2 * np.pi, _SIDE, endpoint=False)
        corners = np.column_stack([value["radiusX"] * np.cos(around), value["radiusY"] * np.sin(around)])
        corners += (value["x"], value["y"])
    else:
        right, below = value["x"] + value["width"], value["y"] + value["height"]
        corners = np.array([(value["x"], value["y"]), (right, value["y"]), (right, below), (value["x"], below)])
    shape = shapely.Polygon(corners * (width / 100, height / 100))
    # Clockwise on the screen, round the corner or centre that x and y name; percent of unlike sides cannot be turned.
    turn, pivot = float(value.get("rotation") or 0), (value.get("x", 0) * width / 100, value.get("y", 0) * height / 100)
    return [shapely.affinity.rotate(shape, turn, origin=pivot) if turn else shape]


def _brushed(value: Mapping[str, Any], size: tuple[int, int], name: str) -> list[Any]:
    from rasterio.features import shapes

    width, height = size
    values = decode_rle(value["rle"])
    if values.size != width * height * 4:
        raise LabelError(f"a brush of {name} holds {values.size} values; expected {width} x {height} x 4")
    mask = values.reshape(height, width, 4)[..., 3] > 0
    # The mask is held in a byte each: rasterio takes no bool here.
    return [shapely.geometry.shape(each) for each, _ in shapes(mask.astype("uint8"), mask=mask)]
