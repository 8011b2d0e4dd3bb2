"""How far an image is from what a task was trained on, as its encoder sees it.

In: tokens of one block of a task's encoder, while the task predicts. Out: for each patch the distance to the training
set, and the share of training patches, held out when the distance was fitted, that lie nearer. A `Domain` stands in the
task's folder beside the weights, as ``domain.safetensors``. Nothing is lazy.

A training set is described by a normal distribution for each frame of tokens (Lee et al. 2018, "A simple unified
framework for detecting out-of-distribution samples and adversarial attacks", without the classes).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from xgfm.errors import CheckpointError
from xgfm.models import fetch
from xgfm.models.prithvi import PrithviEncoder
from xgfm.models.quirks import Resized

_ABOUT = "xgfm"
"""Name of the entry of a file's header that says of which block and of which weights it is, as JSON."""
_LOADED: dict[tuple[str, str], Domain] = {}
_LOCK = threading.Lock()


@dataclass(frozen=True, eq=False)
class Domain:
    """A training set, as the tokens of one block."""

    layer: int
    """Block of the encoder, counted from 0."""
    mean: Tensor
    """``(T, D)``, of each frame's tokens."""
    whiten: Tensor
    """``(T, D, D)``: what brings tokens, less their mean, to unit variance without correlation, from the right."""
    nearer: Tensor
    """``(Q,)`` distances of held-out patches in rising order, at evenly spaced shares from 0 to 1."""

    def distance(self, tokens: Tensor) -> Tensor:
        """Return the distance of patches from the training set, ``(B, h, w)`` of tokens ``(B, T, h, w, D)``.

        It is Mahalanobis' distance, as the root of the mean over frames and features: near 1 for what is as in
        training.
        """
        centred = tokens.float() - self.mean[:, None, None]
        whitened = torch.einsum("bthwd,tde->bthwe", centred, self.whiten)
        return whitened.square().mean(dim=(1, 4)).sqrt()

    def share(self, distance: Tensor) -> Tensor:
        """Return the share of held-out patches that lie nearer than a distance; 1 beyond the farthest of them."""
        last = len(self.nearer) - 1
        above = torch.searchsorted(self.nearer, distance.contiguous()).clamp(1, last)
        low, high = self.nearer[above - 1], self.nearer[above]
        tiny = torch.finfo(torch.float32).tiny
        return ((above - 1 + ((distance - low) / (high - low).clamp_min(tiny)).clamp(0, 1)) / last).float()

    def to(self, device: str) -> Domain:
        """Return it on a device."""
        return Domain(self.layer, *(getattr(self, name).to(device) for name in _TENSORS))


_TENSORS = tuple(field.name for field in fields(Domain) if field.name != "layer")


def encoder_in(module: nn.Module) -> PrithviEncoder | None:
    """Return the encoder of a task's module, None where it has none."""
    return next((part for part in module.modules() if isinstance(part, PrithviEncoder)), None)


@contextmanager
def watched(module: nn.Module, layer: int) -> Iterator[list[Tensor]]:
    """Give the tokens ``(B, T, h, w, D)`` that a block makes when the module is first called in this context.

    The list has one element then: test-time augmentation calls a module more than once, first with the image as it is.
    Tokens are those of `PrithviEncoder.forward_features`, without cls. One thread at a time may call the module.
    """
    encoder = cast(PrithviEncoder, encoder_in(module))
    seen: list[Tensor] = []
    grids: list[list[int]] = []

    def note_grid(_: nn.Module, given: tuple[Tensor, ...], __: Tensor) -> None:
        sizes = zip(given[0].shape[-3:], encoder.patch_size, strict=True)
        grids.append([size // patch for size, patch in sizes])

    def note_tokens(_: nn.Module, __: tuple[Tensor, ...], tokens: Tensor) -> None:
        if not seen:
            last = encoder.norm(tokens) if layer == len(encoder.blocks) - 1 else tokens
            seen.append(last[:, 1:].unflatten(1, grids[-1]))

    with ExitStack() as hooks:
        for part, note in ((encoder.patch_embed, note_grid), (encoder.blocks[layer], note_tokens)):
            hooks.enter_context(part.register_forward_hook(note))
        yield seen


def patch_of_pixels(module: nn.Module, pixels: int, patches: int, axis: int) -> Tensor:
    """Return the patch that each pixel of a window lies in, along rows (axis 0) or columns (1), ``(pixels,)``.

    A window may be padded below and on the right, cut there, or enlarged before the encoder sees it.
    """
    encoder, factor = cast(PrithviEncoder, encoder_in(module)), module.factor if isinstance(module, Resized) else 1
    return (torch.arange(pixels) * factor / encoder.patch_size[1 + axis]).long().clamp_max(patches - 1)


def enlarged(module: nn.Module, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return values of patches ``(B, h, w)`` for the pixels of a window ``(B, *shape)``: each has that of its patch."""
    rows, columns = (
        patch_of_pixels(module, pixels, patches, axis).to(values.device)
        for axis, (pixels, patches) in enumerate(zip(shape, values.shape[1:], strict=True))
    )
    return values[:, rows[:, None], columns]


def save_domain(domain: Domain, path: Path, weights: str) -> None:
    """Write a domain; ``weights`` is the digest of the weights that it belongs to."""
    from safetensors.torch import save_file

    tensors = {name: getattr(domain, name).detach().cpu().contiguous() for name in _TENSORS}
    # One entry: safetensors writes several in any order, and the same domain would have many digests.
    save_file(tensors, path, metadata={_ABOUT: json.dumps({"layer": domain.layer, "weights": weights})})


def load_domain(source: str, digest: str, weights: str, device: str) -> Domain:
    """Return the domain that lies beside the weights of a source; read once in each process and for each device.

    Parameters
    ----------
    source
        Of the weights: see `fetch.local_file`.
    digest, weights
        SHA-256 of the domain's file, and of the weights.
    device
        As torch names it.

    Raises
    ------
    CheckpointError
        When the file is another one, or was fitted to other weights.
    """
    with _LOCK:
        if (digest, device) not in _LOADED:
            path = fetch.beside(source, fetch.DOMAIN_FILE)
            fetch.require_digest(path, digest)
            _LOADED[digest, device] = _read(path, weights).to(device)
        return _LOADED[digest, device]


def _read(path: Path, weights: str) -> Domain:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {})[_ABOUT])
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
            domain = Domain(int(about["layer"]), **tensors)
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path.name} is no readable domain ({error}); fit it again: xgfm.fit_domain") from error
    if about.get("weights") != weights:
        raise CheckpointError(
            f"{path.name} was fitted to weights {str(about.get('weights'))[:12]}..., these are {weights[:12]}...; fit "
            "it again: xgfm.fit_domain(task, chips)"
        )
    return domain
