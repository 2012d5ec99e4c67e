"""What heads and neurons share: units of the backbone that can be cut out, by a factor on what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsearch.spaces.kinds.base import Kind, Stage, Unit
from sparsearch.spaces.positions import Position

__all__ = ["Removal", "RemovalUnit"]


class Removal(Kind):
    """A candidate is something that may be cut; what it costs is negative.

    The gate multiplies the input of the linear that reads the units, so that any attention kernel
    stays in use; EarlyBERT's factor on the attention's probabilities is the same map.
    """

    mergeable: ClassVar[bool] = False
    removes: ClassVar[bool] = True

    def accepts(self, position: Position) -> bool:
        """The places that can be cut in this way."""
        return position.role == self.name

    def stage(self, position: Position) -> Stage:
        """On the input of what reads the units, after all that is added to it."""
        return "cut"

    def least(self, position: Position) -> int:
        """Units that always stay."""
        return 1

    def params(self, position: Position, size: int) -> int:
        """Nothing is trained."""
        return 0

    def flops_per_token(self, position: Position, size: int) -> int:
        """Minus the rows of what feeds the units and the columns of what reads them."""
        feeds = [feed for feed in position.feeds if feed.per_token]
        rows = sum(feed.rows * feed.in_features for feed in feeds)
        columns = position.in_features * position.out_features
        return -2 * (rows + columns) * size // position.units

    def build(self, position: Position, size: int, host: nn.Module) -> RemovalUnit:
        """Cuts nothing until it is gated, or told what to cut."""
        width = position.in_features // position.units
        return RemovalUnit([part * width for part in self.sizes(position)])


class RemovalUnit(Unit):
    """One factor per candidate on its features.

    Attributes:
        which: Numbers of the candidates that are cut where there are no gates.
        removed: (features) 1 where that cuts.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.removed: Tensor
        self.widths: Tensor
        self.register_buffer("widths", torch.tensor(widths), persistent=False)
        self.register_buffer("removed", torch.zeros(sum(widths)), persistent=False)
        self.which: tuple[int, ...] = ()

    def cut(self, which: Sequence[int]) -> None:
        """Cut these candidates."""
        self.which = tuple(which)
        gate = torch.zeros(len(self.widths), device=self.removed.device)
        gate[list(which)] = 1.0
        self.removed.copy_(self.spread(gate))

    def spread(self, gate: Tensor) -> Tensor:
        """One entry per candidate -> one per feature."""
        return torch.repeat_interleave(gate, self.widths, output_size=self.removed.shape[0])

    def forward(self, x: Tensor, gate: Tensor | None) -> Tensor:
        """X (..., features) -> what is left of it, the same shape."""
        removed = self.removed if gate is None else self.spread(gate)
        return x * (1 - removed).to(x.dtype)
