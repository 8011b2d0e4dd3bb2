"""An encoder with something simple on top of its features: a linear layer, or the nearest labelled examples.

In: normalised images ``(B, C, T, H, W)``. Out: logits ``(B, K, H, W)``. The head answers for each patch, from the
features that `xgfm.embed` gives, and its answers are enlarged to pixels.
"""

from __future__ import annotations

from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xgfm.errors import TaskError
from xgfm.models.fields import require_choice, require_flag, require_whole
from xgfm.models.prithvi import PrithviEncoder
from xgfm.models.unet import repeat_edges

Head = Literal["linear", "knn"]

_LEAST_SHARE = 1e-4
"""Share of the neighbours that a class without any is given: its logarithm is finite."""


class LinearHead(nn.Module):
    """One linear layer."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(B, rows, columns, K)`` of features ``(B, rows, columns, D)``."""
        return cast(Tensor, self.linear(features))

    def finish(self, answers: Tensor) -> Tensor:
        """Return what the enlarged answers ``(B, K, H, W)`` mean: logits already."""
        return answers


class NeighbourHead(nn.Module):
    """The ``neighbours`` examples whose features point most nearly the same way vote, each with one voice.

    Of a regression their values are averaged.
    """

    def __init__(self, width: int, outputs: int, *, examples: int, neighbours: int, regression: bool) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.regression = regression
        self.register_buffer("directions", torch.zeros(examples, width))
        self.register_buffer("targets", torch.zeros(examples, outputs))

    def forward(self, features: Tensor) -> Tensor:
        """Return shares of votes, or means, ``(B, rows, columns, K)`` of features ``(B, rows, columns, D)``."""
        directions, targets = cast(Tensor, self.directions), cast(Tensor, self.targets)
        nearness = F.normalize(features, dim=-1) @ directions.T
        nearest = nearness.topk(self.neighbours, dim=-1).indices
        return targets[nearest].mean(dim=-2)

    def finish(self, answers: Tensor) -> Tensor:
        """Return logits whose softmax are the enlarged shares ``(B, K, H, W)``, or the means as they are."""
        return answers if self.regression else answers.clamp_min(_LEAST_SHARE).log()


class ProbedEncoder(nn.Module):
    """An encoder and the head that was fitted to its features.

    Parameters
    ----------
    encoder
        Gives the tokens.
    outputs
        Classes, or 1 for a regression.
    head
        ``"linear"`` or ``"knn"``.
    layer
        Block whose tokens are taken, counted from 0.
    unit
        Bring each patch's features to length 1 first, as the int8 embeddings are.
    examples, neighbours
        Labelled examples that are kept, and how many of them vote; of ``"knn"``.
    regression
        Of ``"knn"``: average values rather than count votes.
    """

    def __init__(
        self,
        encoder: PrithviEncoder,
        outputs: int,
        *,
        head: Head,
        layer: int,
        unit: bool = False,
        examples: int = 0,
        neighbours: int = 5,
        regression: bool = False,
    ) -> None:
        super().__init__()
        require_choice("head", head, get_args(Head))
        require_whole("layer", layer, 0, len(encoder.blocks) - 1)
        require_flag(unit=unit, regression=regression)
        self.encoder = encoder
        self.layer = layer
        self.unit = unit
        if head == "linear":
            self.head: LinearHead | NeighbourHead = LinearHead(encoder.width, outputs)
            return
        require_whole("examples", examples, 1, 1 << 24)
        require_whole("neighbours", neighbours, 1, examples)
        self.head = NeighbourHead(
            encoder.width, outputs, examples=examples, neighbours=neighbours, regression=regression
        )

    def forward(self, x: Tensor, time: Tensor | None = None, location: Tensor | None = None) -> Tensor:
        """Predict a map ``(B, K, H, W)``; `time` and `location` as the encoder takes them."""
        answers = self.head(self.features(x, time, location)).movedim(-1, 1)
        rows, columns = (size * p for size, p in zip(answers.shape[-2:], self.encoder.patch_size[1:], strict=True))
        # Bilinear, and linear in the features: a pixel gets what the features interpolated to it would get.
        enlarged = F.interpolate(answers, size=(rows, columns), mode="bilinear", align_corners=False)
        return self.head.finish(enlarged[..., : x.shape[-2], : x.shape[-1]])

    def features(self, x: Tensor, time: Tensor | None = None, location: Tensor | None = None) -> Tensor:
        """Return the features of each patch, averaged over frames, ``(B, rows, columns, D)``."""
        if x.ndim != 5:
            raise TaskError(f"images have shape {tuple(x.shape)}; (batch, band, frame, row, column) is needed")
        planes = repeat_edges(x.flatten(1, 2), *self.encoder.patch_size[1:])
        whole = planes.reshape(*x.shape[:3], *planes.shape[-2:])
        (tokens,) = self.encoder.forward_features(whole, time, location, layers=[self.layer])
        features = tokens[:, 1:].reshape(len(x), *self.encoder.grid(whole), -1).mean(dim=1)
        return F.normalize(features, dim=-1) if self.unit else features
