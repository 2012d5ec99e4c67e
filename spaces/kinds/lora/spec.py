"""LoRA (Hu et al. 2022, section 4.1) in rank-1 units: delta = scale * B diag(gate) A x."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsearch.spaces.families.position import MATRICES, Position
from sparsearch.spaces.kinds.base import Kind, Stage
from sparsearch.spaces.kinds.options import Count, Scale

if TYPE_CHECKING:
    from torch import nn

    from sparsearch.spaces.kinds.lora.module import LoraUnit

__all__ = ["Lora"]


@dataclass(frozen=True)
class Lora(Kind):
    """Low-rank update of a linear, one candidate per rank, so that a search finds the rank too.

    Attributes:
        max_rank: Rank-1 candidates per position.
        alpha: Scale of each rank-1 unit (S3PET: alpha 16 at rank 1).
    """

    name: ClassVar[str] = "lora"
    tensors: ClassVar[int] = 2
    not_on_quantised: ClassVar[str] = ""
    not_in_peft: ClassVar[str] = ""
    max_rank: Count = 4
    alpha: Scale = 16.0

    def accepts(self, position: Position) -> bool:
        """Any linear, expert or router."""
        return position.role in MATRICES

    def stage(self, position: Position) -> Stage:
        """Fed with the linear's input."""
        return "parallel"

    def sizes(self, position: Position) -> tuple[int, ...]:
        """One rank-1 candidate per rank; a rank above the matrix's own buys nothing."""
        return (1,) * min(self.max_rank, position.in_features, position.out_features)

    def largest(self, position: Position) -> int:
        """Uniform structures have the same rank everywhere, above ``max_rank`` too."""
        return max(position.in_features, position.out_features)

    def largest_useful(self, position: Position) -> int:
        """The full rank of a matrix."""
        return min(position.in_features, position.out_features)

    def params(self, position: Position, size: int) -> int:
        """Rank x (in + out)."""
        return size * (position.in_features + position.out_features)

    def flops_per_token(self, position: Position, size: int) -> int:
        """Two thin products."""
        return 2 * size * (position.in_features + position.out_features)

    def build(self, position: Position, size: int, host: nn.Module) -> LoraUnit:
        """A kaiming-uniform, B zero."""
        from sparsearch.spaces.kinds.lora.module import LoraUnit

        return LoraUnit(position.in_features, position.out_features, size, self.alpha)
