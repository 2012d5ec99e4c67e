"""Bottleneck adapter: sequential (Houlsby et al. 2019) or parallel (He et al. 2022, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsearch.spaces.families.position import Position
from sparsearch.spaces.kinds.base import Kind, Stage
from sparsearch.spaces.kinds.options import Count

if TYPE_CHECKING:
    from torch import nn

    from sparsearch.spaces.kinds.adapter.module import AdapterUnit

__all__ = ["Adapter"]


@dataclass(frozen=True)
class Adapter(Kind):
    """delta = up(gelu(down(x))) around a whole sub-layer.

    Attributes:
        bottleneck: Width of the candidate that a space offers (S3PET: 24).
        parallel: Fed with the sub-layer's input instead of its output.
    """

    name: ClassVar[str] = "adapter"
    tensors: ClassVar[int] = 4
    not_on_quantised: ClassVar[str] = ""
    mergeable: ClassVar[bool] = False
    default_on: ClassVar[tuple[str, ...]] = ("*.attn", "*.ffn")
    bottleneck: Count = 24
    parallel: bool = False

    def accepts(self, position: Position) -> bool:
        """Any attention or feed-forward block."""
        return position.role == "block"

    def stage(self, position: Position) -> Stage:
        """After the block, or beside it."""
        return "parallel" if self.parallel else "sequential"

    def sizes(self, position: Position) -> tuple[int, ...]:
        """One candidate of the chosen width."""
        return (self.bottleneck,)

    def largest(self, position: Position) -> int:
        """Uniform structures have any width up to the block's."""
        return max(self.bottleneck, position.out_features)

    def largest_useful(self, position: Position) -> int:
        """The full rank of a matrix."""
        return min(position.in_features, position.out_features)

    def params(self, position: Position, size: int) -> int:
        """Two matrices and two biases."""
        d = position.out_features
        return 2 * d * size + size + d

    def flops_per_token(self, position: Position, size: int) -> int:
        """Two products."""
        return 4 * position.out_features * size

    def build(self, position: Position, size: int, host: nn.Module) -> AdapterUnit:
        """Down N(0, 0.01), up zero."""
        from sparsearch.spaces.kinds.adapter.module import AdapterUnit

        return AdapterUnit(position.out_features, size)
