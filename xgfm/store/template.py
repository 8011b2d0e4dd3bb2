"""The whole store's metadata, written once before the first block: arrays without pixels, coordinates, attributes.

In: lazy results of whole areas, as `predict` returns them. Out: a Zarr store in which every block has its place. No
pixel is computed, and neither time nor memory grow with the number of chunks.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xgfm.cube.hrefs import redacted
from xgfm.errors import WriteError
from xgfm.store.layout import as_dataset, prepared
from xgfm.store.objects import Objects, zarr_store

if TYPE_CHECKING:
    import zarr
    from zarr.abc.store import Store

ROOT = "zarr.json"
_WRITERS = 16
_VERSION = "xgfm_version"
"""The attribute that may change between a run and its resumption."""


def create_store(url: str | PathLike[str], templates: Mapping[str, xr.Dataset], *, chunk: int, shard: int) -> None:
    """Write the metadata of a whole store, once; nothing happens where it is there already.

    The root's metadata is written last: a store that opens is complete, and one that was interrupted is begun again.

    Parameters
    ----------
    url : str or path
        Folder or URL.
    templates : mapping of str to Dataset
        By group, ``""`` for the root: the lazy result of the whole area. Its pixels are not looked at.
    chunk, shard : int
        Rows and columns of an inner chunk and of a shard, a whole number of chunks.

    Raises
    ------
    WriteError
        Where something else stands there, or a store that differs.
    """
    if refuse_differing(url, zarr_store(url), templates, chunk=chunk, shard=shard):
        return
    documents = _documents(templates, chunk=chunk, shard=shard)
    objects = Objects(url)
    _refuse_strangers(objects, documents)
    root = documents.pop(ROOT)
    with ThreadPoolExecutor(_WRITERS) as pool:
        list(pool.map(lambda key: objects.put(key, documents[key]), documents))
    objects.put(ROOT, root)


def refuse_differing(
    url: str | PathLike[str], store: Store, templates: Mapping[str, xr.Dataset], *, chunk: int, shard: int
) -> bool:
    """Return whether a store is there already; WriteError where it is another one."""
    differing = template_differences(store, templates, chunk=chunk, shard=shard)
    if differing:
        raise WriteError(
            f"{redacted(str(url))} holds another store: {'; '.join(differing[:3])}; give another path, or the job it "
            "belongs to"
        )
    return differing is not None


def template_differences(
    store: Store, templates: Mapping[str, xr.Dataset], *, chunk: int, shard: int
) -> list[str] | None:
    """Return in words how a store differs from a template; None where there is no store.

    What was added since, such as overviews, is no difference, and neither is the version of this package.
    """
    import zarr
    from zarr.storage import MemoryStore

    try:
        zarr.open_group(store, mode="r", zarr_format=3)
    except FileNotFoundError:
        return None
    expected = MemoryStore({})
    write_metadata(expected, templates, chunk=chunk, shard=shard)
    with ThreadPoolExecutor(_WRITERS) as pool:
        found = pool.map(lambda group: list(_differences(group, expected, store)), templates)
        return [difference for differences in found for difference in differences]


def write_metadata(
    store: Store,
    templates: Mapping[str, xr.Dataset],
    *,
    chunk: int,
    shard: int,
    consolidated: bool = True,
    overwrite: bool = False,
) -> None:
    """Write the metadata of whole areas into a store that is already open; parameters as of `create_store`.

    With ``overwrite`` what stands in their groups is deleted before.
    """
    with _quiet():
        for group, result in templates.items():
            dataset = _without_pixels(result, chunk=chunk, shard=shard)
            dataset.to_zarr(
                store,
                group=group or None,
                mode="w" if overwrite else "w-",
                zarr_format=3,
                consolidated=consolidated,
                compute=False,
            )
    if consolidated:
        consolidate(store)


def consolidate(store: Store, group: str = "") -> None:
    """Gather the metadata of everything below a group in the group's own, so that opening it is one read."""
    import zarr

    with _quiet():
        zarr.consolidate_metadata(store, path=group or None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warning that consolidated metadata is an extension of Zarr v3: nothing needs it to read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        yield


def _without_pixels(result: xr.Dataset, *, chunk: int, shard: int) -> xr.Dataset:
    """Return a result as it is to be stored, each gridded variable one lazy chunk: no graph lists its blocks."""
    dataset = as_dataset(result)
    gridded = [name for name, variable in dataset.data_vars.items() if variable.dims[-2:] == ("y", "x")]
    for name in gridded:
        variable = dataset[name].variable
        lead = variable.chunksizes and [variable.chunksizes[d] for d in variable.dims[:-2]]
        dataset[name] = _empty(dataset[name], (*(lead or variable.shape[:-2]), shard, shard))
    dataset = prepared(dataset, chunk=chunk, shard=shard)
    for name in gridded:
        encoding = dataset[name].encoding
        dataset[name] = _empty(dataset[name], dataset[name].shape)
        dataset[name].encoding = encoding
    return dataset


def _empty(variable: xr.DataArray, chunks: Any) -> xr.DataArray:
    import dask.array as da

    return variable.copy(data=da.empty(variable.shape, dtype=variable.dtype, chunks=chunks))


def _documents(templates: Mapping[str, xr.Dataset], *, chunk: int, shard: int) -> dict[str, bytes]:
    """Return every object of the store, by key."""
    from zarr.storage import MemoryStore

    made: dict[str, Any] = {}
    write_metadata(MemoryStore(made), templates, chunk=chunk, shard=shard)
    return {key: buffer.to_bytes() for key, buffer in made.items()}


def _refuse_strangers(objects: Objects, documents: Mapping[str, bytes]) -> None:
    """Refuse a place that holds what no interrupted `create_store` of this template can have left there."""
    stranger = next((name for name in objects.names() if name not in documents), None)
    if stranger is not None:
        raise WriteError(
            f"{redacted(objects.url)} is not empty and no Zarr store: it holds {stranger!r}; give another path"
        )


def _differences(group: str, expected: Store, found: Store) -> Iterator[str]:
    """Yield how a group differs; what it holds beside the template is not looked at."""
    import zarr

    ours = zarr.open_group(expected, path=group, mode="r", zarr_format=3)
    try:
        theirs = zarr.open_group(found, path=group, mode="r", zarr_format=3)
    except FileNotFoundError:
        yield f"group {group!r} is missing"
        return
    yield from _unlike(f"group {group!r} attributes", _attrs(ours), _attrs(theirs))
    there = dict(theirs.arrays())
    for name, array in ours.arrays():
        if name not in there:
            yield f"{array.path} is missing"
        else:
            yield from _unlike(array.path, _facts(array), _facts(there[name]))


def _unlike(owner: str, expected: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    for fact, value in expected.items():
        if isinstance(value, dict):
            yield from _unlike(f"{owner} {fact}", value, found.get(fact, {}))
        elif fact not in found or not _same(found[fact], value):
            yield f"{owner}: {fact} is {found.get(fact, 'missing')!s:.80}, expected {value!s:.80}"


def _facts(array: zarr.Array[Any]) -> dict[str, Any]:
    """What must not differ: layout and attributes; the values of coordinates, less what the transform says already."""
    layout = {n: getattr(array, n) for n in ("shape", "chunks", "shards", "dtype", "fill_value")}
    facts = {**layout, "dims": getattr(array.metadata, "dimension_names", None), "attributes": _attrs(array)}
    coordinate = "spatial:transform" not in array.attrs and array.basename not in ("y", "x")
    return {**facts, "values": array[...]} if coordinate else facts


def _attrs(node: zarr.Array[Any] | zarr.Group) -> dict[str, Any]:
    return {key: value for key, value in node.attrs.asdict().items() if key != _VERSION}


def _same(one: Any, other: Any) -> bool:
    """Equality in which NaN equals NaN, for scalars, arrays and JSON values."""
    if isinstance(one, np.ndarray | np.generic) and isinstance(other, np.ndarray | np.generic):
        return bool(np.array_equal(one, other, equal_nan=np.asarray(one).dtype.kind == "f"))
    return bool(one == other)
