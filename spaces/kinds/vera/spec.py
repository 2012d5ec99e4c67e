"""VeRA (Kopiczko et al. 2024, arXiv 2310.11454): delta = diag(b) B diag(d) A x, A and B random."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsearch.spaces.families.position import Position
from sparsearch.spaces.kinds.base import Kind, Stage
from sparsearch.spaces.kinds.options import Count

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sparsearch.spaces.kinds.vera.module import VeraUnit

__all__ = ["Vera"]


@dataclass(frozen=True)
class Vera(Kind):
    """Two vectors that scale a frozen low-rank update. Its matrices are drawn once and shared by all positions.

    One candidate per position: a smaller rank saves little, since d has one number a rank and b one an output.

    Attributes:
        rank: Of the frozen matrices, as wide as one likes.
    """

    name: ClassVar[str] = "vera"
    tensors: ClassVar[int] = 2
    not_on_quantised: ClassVar[str] = ""
    not_in_peft: ClassVar[str] = ""
    rank: Count = 256

    def accepts(self, position: Position) -> bool:
        """Any linear."""
        return position.role == "linear"

    def stage(self, position: Position) -> Stage:
        """Fed with the linear's input."""
        return "parallel"

    def sizes(self, position: Position) -> tuple[int, ...]:
        """The whole rank."""
        return (self.rank,)

    def levels(self, position: Position) -> tuple[int, ...]:
        """The whole rank too: a uniform structure has it at more places, or at fewer."""
        return (self.rank,)

    def params(self, position: Position, size: int) -> int:
        """One per rank, one per output."""
        return size + position.out_features

    def flops_per_token(self, position: Position, size: int) -> int:
        """Two thin products."""
        return 2 * size * (position.in_features + position.out_features)

    def low_rank(self, unit: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The matrices, the second one scaled on both sides."""
        return unit["A"].float(), unit["b"][:, None] * unit["B"].float() * unit["d"]

    def build(self, position: Position, size: int, host: nn.Module) -> VeraUnit:
        """As published: d is 0.1, b zero, so that the unit is the identity."""
        from sparsearch.spaces.kinds.vera.module import VeraUnit

        return VeraUnit(position.in_features, position.out_features, size)
