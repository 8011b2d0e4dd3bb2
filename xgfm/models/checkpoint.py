"""Weights files to state dicts with this package's names, and state dicts to modules.

In: a file in one of the published layouts. Out: a module with every parameter filled, or a `CheckpointError` that says
what is wrong. No file can run code: pickles are read with ``weights_only=True``, and everything else is refused.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from xgfm.errors import CheckpointError
from xgfm.models.quirks import published_part
from xgfm.models.spec import Layout

_POSITION_TABLES = ("pos_embed", "decoder_pos_embed")
_NOT_WEIGHTS = (
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with `git lfs pull`"),
    (b"<", "a web page: download the file again, from its 'raw' or 'resolve' address"),
    (b"\x80", "a bare pickle, which can run code when opened"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"", "none of the formats that hold weights"),
)


def read_state(path: Path, layout: Layout) -> dict[str, Tensor]:
    """Read a weights file and give its tensors this package's names.

    Parameters
    ----------
    path
        A safetensors file, or a zip checkpoint as ``torch.save`` writes it. Its pages are mapped, not read.
    layout
        How the file names its tensors.

    Returns
    -------
    dict of str to Tensor
        On the CPU. Position tables are left out: they are computed.

    Raises
    ------
    CheckpointError
        For anything that is neither format, corrupt, or holds more than tensors and plain values.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if head[:4] == b"PK\x03\x04":
        return rename(_tensors(_read_zip(path, layout), path), layout)
    if head[8:9] == b"{":
        return rename(_read_safetensors(path), layout)
    kind = next(words for start, words in _NOT_WEIGHTS if head.startswith(start))
    raise CheckpointError(
        f"{path.name} is {kind}. Weights are read from .safetensors and from what torch.save writes (a zip archive)"
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except Exception as error:  # what a corrupt file raises is not documented
        raise CheckpointError(f"{path.name} is not a whole safetensors file ({error}); fetch it again") from error
    return tensors


def _read_zip(path: Path, layout: Layout) -> Any:
    try:
        _require_checkpoint(path)
        with _allowed(layout):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except Exception as error:  # a corrupt or hostile pickle can raise anything
        raise CheckpointError(_why_refused(path, str(error))) from error


def _require_checkpoint(path: Path) -> None:
    """Refuse a zip archive that torch.save did not write; only the archive's directory is read."""
    with zipfile.ZipFile(path) as archive:
        members = {name.rpartition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in members:
        raise CheckpointError(
            f"{path.name} is a TorchScript program, not weights; save its state_dict() with torch.save"
        )
    if "data.pkl" not in members:
        raise CheckpointError(f"{path.name} is a zip archive without weights; unpack it, and give the file inside")


def _why_refused(path: Path, reason: str) -> str:
    objects = sorted(set(re.findall(r"GLOBAL (\S+)", reason)))
    if objects:
        return (
            f"{path.name} holds {', '.join(objects)} besides tensors; opening such a file can run code, so it is "
            "refused. If you trust where it came from, save its 'state_dict' alone, elsewhere, with torch.save"
        )
    if "weights_only" in reason:  # torch goes on to say how to run the file's code: no advice for a file like this
        first = "its pickle cannot be read"
    else:
        first = reason.splitlines()[0] if reason else "no reason given"
    return f"{path.name} is cut off or corrupt ({first}); fetch it again"


def _allowed(layout: Layout) -> AbstractContextManager[object]:
    """Allow NumPy numbers in the layout whose published files hold some; nothing else in any."""
    if layout != "mmseg":
        return nullcontext()
    dtypes = {type(np.dtype(name)) for name in ("bool", "uint8", "int32", "int64", "float32", "float64")}
    scalar: Any = np.float64(0).__reduce__()[0]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return torch.serialization.safe_globals([np.dtype, *dtypes, *names])


def _tensors(loaded: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not loaded:
        raise CheckpointError(f"{path.name} holds a {type(loaded).__name__}; a dict of tensors is needed")
    others = [str(key) for key, value in loaded.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(f"{path.name}: {_listed(others)} are no tensors; a dict of tensors is needed")
    hollow = [str(key) for key, value in loaded.items() if value.is_meta or value.is_nested]
    if hollow:
        raise CheckpointError(
            f"{path.name}: {_listed(hollow)} have no values or no shape (meta or nested tensors); save ordinary tensors"
        )
    return {str(key): value for key, value in loaded.items()}


def rename(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Give tensors the names of this package's modules, and leave out what is computed or only used in training.

    Parameters
    ----------
    state
        Tensors under the names of the file.
    layout
        ``v1`` flat names; ``v2`` and ``xgfm`` names as they are; ``terratorch`` names under ``model.``, with auxiliary
        heads and loss weights, which are left out; ``mmseg`` names as they are.

    Returns
    -------
    dict of str to Tensor
    """
    renamed = {_NAMES[layout](key): tensor for key, tensor in state.items()}
    return {name: tensor for name, tensor in renamed.items() if name and name.split(".")[-1] not in _POSITION_TABLES}


def _v1_name(key: str) -> str:
    decoder = "decoder" in key or "_dec" in key or key == "mask_token"
    return f"{'decoder' if decoder else 'encoder'}.{key}"


def _v2_name(key: str) -> str:
    return key.replace("_timm_module.", "")


def _terratorch_name(key: str) -> str:
    if key.startswith(("criterion.", "model.aux_heads.")):
        return ""
    return _v2_name(key).removeprefix("model.")


def _same_name(key: str) -> str:
    return key


_NAMES: dict[Layout, Callable[[str], str]] = {
    "v1": _v1_name,
    "v2": _v2_name,
    "terratorch": _terratorch_name,
    "mmseg": _same_name,
    "xgfm": _same_name,
}


def load_into(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Fill a module with weights, all of them and nothing else.

    Parameters
    ----------
    module
        May lie on the meta device; it then comes to the CPU.
    state
        Tensors under this package's names; copied, and converted to the module's dtype.
    source
        Name of the file, for errors.

    Raises
    ------
    CheckpointError
        When keys are missing or unexpected, a shape differs, or a number is not finite. The module is then as it was.
    """
    part = published_part(module)
    wanted = part.state_dict()
    faults = _faults(wanted, state)
    if faults:
        raise CheckpointError(f"{source} is not the weights of this architecture: {'; '.join(faults)}")
    broken = [key for key, needed in wanted.items() if not _is_finite(state[key], needed.dtype)]
    if broken:
        raise CheckpointError(
            f"{source} holds NaN or infinite numbers in {_listed(broken)}: its training failed, or it is damaged; "
            "give the weights of an earlier step, or fetch it again"
        )
    if any(tensor.is_meta for tensor in wanted.values()):
        module.to_empty(device="cpu")
    part.load_state_dict(state)


def _faults(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    missing = [key for key in wanted if key not in given]
    unexpected = [key for key in given if key not in wanted]
    both = [(key, given[key], tensor) for key, tensor in wanted.items() if key in given]
    reshaped = [
        f"{key} is {tuple(ours.shape)} where {tuple(needed.shape)} is needed"
        for key, ours, needed in both
        if ours.shape != needed.shape
    ]
    retyped = [
        f"{key} is {_kind(ours)} where {_kind(needed)} is needed"
        for key, ours, needed in both
        if _kind(ours) != _kind(needed)
    ]
    counted = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": reshaped,
        "of another kind": retyped,
    }
    return [f"{len(keys)} {what} ({_listed(keys)})" for what, keys in counted.items() if keys]


def _is_finite(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Tell whether all numbers are finite in the module's dtype, which may be narrower than the file's."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor.to(dtype)).all())


def _kind(tensor: Tensor) -> str:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        return f"{tensor.dtype} {tensor.layout}".replace("torch.", "")
    return "real" if tensor.is_floating_point() else "whole"


def _listed(keys: Iterable[str], most: int = 12) -> str:
    keys = list(keys)
    rest = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + rest
