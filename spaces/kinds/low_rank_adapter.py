"""Low-rank adapter (Compacter's LRA, Karimi Mahabadi et al. 2021; S3PET's fourth kind)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsearch.spaces.kinds.base import Kind, Stage, Unit
from sparsearch.spaces.positions import Position

__all__ = ["LowRankAdapter", "LowRankAdapterUnit"]


@dataclass(frozen=True)
class LowRankAdapter(Kind):
    """An adapter whose two matrices are each an outer product, with biases.

    Attributes:
        reduction: Features per bottleneck unit (S3PET: 32, so 32 units at width 1,024).
    """

    name: ClassVar[str] = "low_rank_adapter"
    mergeable: ClassVar[bool] = False
    default_on: ClassVar[tuple[str, ...]] = ("*.attn", "*.ffn")
    reduction: int = 32

    def accepts(self, position: Position) -> bool:
        """Any attention or feed-forward block."""
        return position.role == "block"

    def stage(self, position: Position) -> Stage:
        """Fed with the block's output."""
        return "sequential"

    def sizes(self, position: Position) -> tuple[int, ...]:
        """One candidate."""
        return (max(1, position.out_features // self.reduction),)

    def params(self, position: Position, size: int) -> int:
        """Down: d + m, bias m; up: m + d, bias d."""
        d = position.out_features
        return (d + size + size) + (size + d + d)

    def flops_per_token(self, position: Position, size: int) -> int:
        """Two products with a vector, and two outer products with a bias."""
        return 2 * (position.out_features + size)

    def build(self, position: Position, size: int, host: nn.Module) -> LowRankAdapterUnit:
        """Glorot, but the last factor is zero: the published code starts off the identity."""
        return LowRankAdapterUnit(position.out_features, size)


class LowRankAdapterUnit(Unit):
    """down = down_out down_in^T + bias, up = up_out up_in^T + bias; all factors are rank one."""

    def __init__(self, features: int, bottleneck: int) -> None:
        super().__init__()
        self.down_in = nn.Parameter(torch.empty(1, features))
        self.down_out = nn.Parameter(torch.empty(bottleneck, 1))
        self.down_bias = nn.Parameter(torch.zeros(bottleneck))
        self.up_in = nn.Parameter(torch.empty(1, bottleneck))
        self.up_out = nn.Parameter(torch.zeros(features, 1))
        self.up_bias = nn.Parameter(torch.zeros(features))
        for factor in (self.down_in, self.down_out, self.up_in):
            nn.init.xavier_normal_(factor)

    def forward(self, x: Tensor, gate: Tensor | None) -> Tensor:
        """X (..., features) -> the same shape."""
        # An outer product plus a bias is one pointwise operation, not a product with inner size one.
        s = F.linear(x, self.down_in)
        h = F.gelu(torch.addcmul(self.down_bias.to(s), s, self.down_out.to(s).T))
        t = F.linear(h, self.up_in)
        delta = torch.addcmul(self.up_bias.to(t), t, self.up_out.to(t).T)
        return delta if gate is None else delta * gate.to(delta.dtype)
