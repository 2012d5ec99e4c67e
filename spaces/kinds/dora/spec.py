"""DoRA (Liu et al. 2024, arXiv 2402.09353): a low-rank change of a weight's directions, and one of its magnitudes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsearch.spaces.families.position import Position
from sparsearch.spaces.kinds.base import Kind, Stage
from sparsearch.spaces.kinds.options import Count, Scale

if TYPE_CHECKING:
    from torch import nn

    from sparsearch.spaces.kinds.dora.module import DoraUnit

__all__ = ["Dora"]


@dataclass(frozen=True)
class Dora(Kind):
    """W' = m V / |V| row by row, with V = W + alpha B A (eq. 5 of the paper).

    One candidate per position: the magnitudes are paid for once, so that rank units would not add up.

    Attributes:
        rank: Of B A; in a matrix of a lower rank, that rank.
        alpha: Scale of B A, as in ``lora``.
    """

    name: ClassVar[str] = "dora"
    tensors: ClassVar[int] = 3
    not_on_quantised: ClassVar[str] = ""
    not_in_peft: ClassVar[str] = ""
    rank: Count = 4
    alpha: Scale = 16.0

    def accepts(self, position: Position) -> bool:
        """Any linear."""
        return position.role == "linear"

    def stage(self, position: Position) -> Stage:
        """Beside the linear: the change depends on the linear's weight, not on what others do to it."""
        return "parallel"

    def sizes(self, position: Position) -> tuple[int, ...]:
        """One candidate of the chosen rank."""
        return (min(self.rank, position.in_features, position.out_features),)

    def largest_useful(self, position: Position) -> int:
        """The full rank of a matrix."""
        return min(position.in_features, position.out_features)

    def params(self, position: Position, size: int) -> int:
        """Rank x (in + out), and one magnitude per output feature."""
        return size * (position.in_features + position.out_features) + position.out_features

    def flops_per_token(self, position: Position, size: int) -> int:
        """Two thin products. Lengths of rows are found once in a forward pass, whatever its tokens."""
        return 2 * size * (position.in_features + position.out_features)

    def build(self, position: Position, size: int, host: nn.Module) -> DoraUnit:
        """A kaiming-uniform, B zero, magnitudes those of the weight."""
        from sparsearch.spaces.kinds.dora.module import DoraUnit

        return DoraUnit(position.in_features, position.out_features, size, self.alpha)
