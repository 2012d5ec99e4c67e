"""Low-rank adapter (Compacter's LRA, Karimi Mahabadi et al. 2021; S3PET's fourth kind)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsearch.spaces.families.position import Position
from sparsearch.spaces.kinds.base import Kind, Stage
from sparsearch.spaces.kinds.options import Count

if TYPE_CHECKING:
    from torch import nn

    from sparsearch.spaces.kinds.low_rank_adapter.module import LowRankAdapterUnit

__all__ = ["LowRankAdapter"]


@dataclass(frozen=True)
class LowRankAdapter(Kind):
    """An adapter whose two matrices are each an outer product, with biases.

    Attributes:
        reduction: Features per bottleneck unit (S3PET: 32, so 32 units at width 1,024).
    """

    name: ClassVar[str] = "low_rank_adapter"
    tensors: ClassVar[int] = 6
    not_on_quantised: ClassVar[str] = ""
    mergeable: ClassVar[bool] = False
    default_on: ClassVar[tuple[str, ...]] = ("*.attn", "*.ffn")
    reduction: Count = 32

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
        from sparsearch.spaces.kinds.low_rank_adapter.module import LowRankAdapterUnit

        return LowRankAdapterUnit(position.out_features, size)
