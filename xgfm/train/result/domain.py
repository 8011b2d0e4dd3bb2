"""The training set of a task as its encoder sees it, fitted from chips.

In: a task and the chips that it was trained on. Out: a `Domain` beside the task's weights, with which `predict` tells
how far each patch is from the training set (``return_="out_of_domain"``). A normal distribution is fitted to the
features of training patches, and what is far is learned from patches of the validation split. Nothing is lazy.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xgfm.errors import TaskError, TrainError
from xgfm.infer.device import pick
from xgfm.models.domain import Domain, encoder_in, patch_of_pixels, watched
from xgfm.models.folder import add_domain, save_task
from xgfm.models.handle import ModelHandle, load_task
from xgfm.models.registry import CONFIG_FILE
from xgfm.train.chips.chips import Chips, open_chips
from xgfm.train.loop.passes import Passes, tensors, window
from xgfm.train.loop.validate import windows
from xgfm.train.start.new_task import check_bands

if TYPE_CHECKING:
    from torch import nn

    from xgfm.models.spec import TaskSpec
    from xgfm.train.chips.chips import Sample

Floats = NDArray[np.float64]

_DEPTH = 3 / 4
"""How deep in the encoder the features are taken: measured, see ``benchmarks/uncertainty.py``."""
_CHIPS = 256
"""Of each split, drawn at random: neighbouring patches say much the same."""
_PATCHES = 10_000
"""Of each split; of three frames of the 300M encoders 120 MB."""
_FEWEST = 2
"""Patches of a split: no spread is known of one."""
_LEVELS = 1001
"""Distances of held-out patches that are kept, evenly spaced from the nearest to the farthest."""
_AT_ONCE = 8
"""Chips that go through the model together."""


def fit_domain(
    task: str | os.PathLike[str] | ModelHandle,
    chips: Chips | str | os.PathLike[str],
    *,
    folder: str | os.PathLike[str] | None = None,
    seed: int = 0,
    device: str | None = None,
) -> ModelHandle:
    """Teach a task what its training set looks like, for ``predict(..., return_=["class", "out_of_domain"])``.

    `fit` does so for the tasks that it makes; this is for others, and for another training set.

    Parameters
    ----------
    task
        Folder of a task, which the domain is written into; or any other task with an encoder, with ``folder``.
    chips
        What the task was trained on. The distribution is that of the training split; the validation split tells which
        distances are usual. Without one, a quarter of the training chips is held out for that.
    folder
        Where a task that has no folder of its own is written, with its domain: a published one, a registered one.
    seed
        Of the draw, where there are more than 256 chips or 10,000 patches in a split.
    device
        As torch names it.

    Returns
    -------
    ModelHandle
        Of the task with its domain.

    Raises
    ------
    TaskError
        A task without an encoder, or without a folder.
    TrainError
        Chips of other bands or frames, or too few of them.
    """
    handle = load_task(task) if isinstance(task, str | os.PathLike) else task
    own = _folder_of(handle)
    if folder is None and own is None:
        raise TaskError(
            f"task {handle.spec.name!r} has no folder that a domain could be written into; give folder=, where the "
            "task is written with it"
        )
    data = chips if isinstance(chips, Chips) else open_chips(chips)
    where = pick(device)
    _check(handle.spec, data)
    module = handle.load(where)
    if encoder_in(module) is None:
        raise TaskError(
            f"task {handle.spec.name!r} has no Prithvi-shaped encoder whose features could be compared (it is a U-Net "
            "or a module of your own); fine-tune an encoder: xgfm.fit(chips, base=...)"
        )
    domain = domain_of(Passes(module, handle.spec, data, where), seed)
    if domain is None:
        raise TrainError(
            f"{data} hold too few patches with data, or of one place only; cut more chips, with a validation split: "
            "write_chips(..., shares=)"
        )
    if folder is not None:
        return load_task(save_task(handle.load(), handle.spec, folder, domain=domain))
    assert own is not None
    add_domain(domain, own)
    return load_task(own)


def domain_of(passes: Passes, seed: int = 0) -> Domain | None:
    """Return the domain of a module and its chips; None without an encoder, or with too few patches to compare."""
    training, held_out = _splits(passes.chips, seed)
    if encoder_in(passes.module) is None or not len(training) or not len(held_out):
        return None
    layer = _layer(passes, training[:1])
    known, others = (_features(passes, layer, indexes, seed) for indexes in (training, held_out))
    if min(len(known), len(others)) < _FEWEST:
        return None
    means, whitens = zip(*(_normal(known[:, frame]) for frame in range(known.shape[1])), strict=True)
    mean, whiten = (torch.from_numpy(np.stack(part)).float() for part in (means, whitens))
    domain = Domain(layer, mean, whiten, torch.zeros(2))
    distances = domain.distance(torch.from_numpy(others)[:, :, None, None]).flatten().double().numpy()
    nearer = np.quantile(distances, np.linspace(0, 1, _LEVELS))
    return Domain(layer, mean, whiten, torch.from_numpy(nearer).float())


def _folder_of(handle: ModelHandle) -> Path | None:
    source = handle.source or ""
    folder = Path(source.removeprefix("file:")).parent
    return folder if source.startswith("file:") and (folder / CONFIG_FILE).is_file() else None


def _check(spec: TaskSpec, chips: Chips) -> None:
    check_bands(spec.name, spec.bands, chips.facts.bands)
    if spec.frames != chips.facts.frames:
        raise TrainError(
            f"task {spec.name!r} takes {spec.frames} frames, the chips have {chips.facts.frames}; give the chips that "
            "it was trained on"
        )


def _splits(chips: Chips, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the chips that the distribution is fitted to, and those that tell how far is far."""
    rng = np.random.default_rng([seed, 0xD0])
    training, held_out = (rng.permutation(chips.indexes(split)) for split in ("train", "val"))
    if not len(held_out):
        groups = chips.groups(training)
        few = rng.permutation(np.unique(groups))[: max(len(np.unique(groups)) // 4, 1)]
        held_out, training = training[np.isin(groups, few)], training[~np.isin(groups, few)]
    return training[:_CHIPS], held_out[:_CHIPS]


def _layer(passes: Passes, chip: NDArray[np.int64]) -> int:
    """Return the block at three quarters of the encoder's depth, or the last that the module runs before it."""
    encoder = encoder_in(passes.module)
    assert encoder is not None
    ran: list[int] = []
    hooks = [
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, block in enumerate(encoder.blocks)
    ]
    for _ in _tokens(passes, chip, None):
        pass
    for hook in hooks:
        hook.remove()
    return min(math.ceil(_DEPTH * len(encoder.blocks)) - 1, max(ran))


def _features(passes: Passes, layer: int, chips: NDArray[np.int64], seed: int) -> NDArray[np.float32]:
    """Return the features of some chips' patches, ``(patch, T, D)``: all, or as many as are kept, drawn at random."""
    rng = np.random.default_rng([seed, 0xD1])
    parts: list[NDArray[np.float32]] = []
    keys = np.empty(0)
    for tokens, used in _tokens(passes, chips, layer):
        parts.append(tokens.movedim(1, 3)[used].float().cpu().numpy())  # (B, h, w, T, D) to (patch, T, D)
        keys = np.append(keys, rng.random(len(parts[-1])))
        if len(keys) > 2 * _PATCHES:
            parts, keys = _smallest(parts, keys)
    parts, _ = _smallest(parts, keys)
    return parts[0]


def _smallest(parts: list[NDArray[np.float32]], keys: Floats) -> tuple[list[NDArray[np.float32]], Floats]:
    """Join parts and keep those of the smallest random numbers."""
    kept = np.sort(np.argsort(keys, kind="stable")[:_PATCHES])
    return [np.concatenate(parts)[kept]], keys[kept]


def _tokens(passes: Passes, chips: NDArray[np.int64], layer: int | None) -> Any:
    """Yield a block's tokens ``(B, T, h, w, D)`` of every window of chips, and the patches to use ``(B, h, w)``."""
    module = passes.module.eval()
    for start in range(0, len(chips), _AT_ONCE):
        sample = tensors(passes.chips.read(chips[start : start + _AT_ONCE]))
        cuts = [windows(size, passes.spec.window) for size in sample.image.shape[-2:]]
        for rows, _ in cuts[0]:
            for columns, _ in cuts[1]:
                cut = window(sample, rows, columns)
                with torch.no_grad():
                    if layer is None:
                        passes.logits(cut)
                        continue
                    with watched(module, layer) as seen:
                        passes.logits(cut)
                yield seen[0], _used(module, cut, seen[0], passes.spec.halo)


def _used(module: nn.Module, cut: Sample, tokens: Tensor, halo: int) -> Tensor:
    """Return which patches `predict` would show something of, ``(B, h, w)``: valid, and inside of the halo."""
    shown = cut.valid.to(tokens.device, torch.float32)
    sizes = shown.shape[-2:]
    within = [min(halo, (size - 1) // 2) for size in sizes]
    inner = torch.zeros_like(shown)
    inner[:, within[0] : sizes[0] - within[0], within[1] : sizes[1] - within[1]] = 1
    grid = tokens.shape[2:4]
    rows, columns = (
        torch.nn.functional.one_hot(patch_of_pixels(module, sizes[axis], grid[axis], axis), grid[axis]).to(shown)
        for axis in (0, 1)
    )
    used: Tensor = rows.T @ (shown * inner) @ columns > 0
    return used


def _normal(features: NDArray[np.float32]) -> tuple[Floats, Floats]:
    """Return mean ``(D,)`` of features ``(n, D)`` and what whitens them, ``(D, D)``."""
    values = features.astype("float64")
    mean, spread = values.mean(0), values.std(0)
    spread = np.where(spread > 0, spread, 1)
    variances, axes = np.linalg.eigh(shrunk_covariance((values - mean) / spread))
    return mean, axes / np.sqrt(variances) / spread[:, None]


def shrunk_covariance(values: Floats) -> Floats:
    """Return the covariance of centred values ``(n, D)``, shrunk to a multiple of the unit matrix.

    By how much follows from the values: Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional
    covariance matrices", Journal of Multivariate Analysis 88, 365-411.
    """
    count, width = values.shape
    covariance = values.T @ values / count
    mean = np.trace(covariance) / width
    away = ((covariance - mean * np.eye(width)) ** 2).sum()
    noise = ((values**2).sum(1) ** 2).sum() / count**2 - (covariance**2).sum() / count
    share = min(max(noise / away, 0.0), 1.0) if away > 0 else 1.0
    out: Floats = (1 - share) * covariance + share * mean * np.eye(width)
    return out
