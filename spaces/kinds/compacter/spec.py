"""Compacter (Karimi Mahabadi et al. 2021, arXiv 2106.04647, section 4.3): adapters of Kronecker products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsearch.spaces.families.position import Position
from sparsearch.spaces.kinds.base import Kind, Stage
from sparsearch.spaces.kinds.options import Count

if TYPE_CHECKING:
    from torch import nn

    from sparsearch.spaces.kinds.compacter.module import CompacterUnit

__all__ = ["Compacter"]


@dataclass(frozen=True)
class Compacter(Kind):
    """delta = up(gelu(down(x))) after a whole sub-layer; each matrix is a sum of n products A_i x (t_i s_i).

    The small matrices A_i (n, n) belong to one matrix of one position, as in OpenDelta. (The paper shares them over
    all layers; a candidate's costs would then depend on the others that are chosen.)

    Attributes:
        bottleneck: Width; rounded up to a multiple of ``division``.
        division: n, which must divide the features of a block: others are no positions of the kind.
        rank: Of t_i s_i.
    """

    name: ClassVar[str] = "compacter"
    tensors: ClassVar[int] = 8
    not_on_quantised: ClassVar[str] = ""
    mergeable: ClassVar[bool] = False
    default_on: ClassVar[tuple[str, ...]] = ("*.attn", "*.ffn")
    bottleneck: Count = 24
    division: Count = 4
    rank: Count = 1

    def accepts(self, position: Position) -> bool:
        """Any attention or feed-forward block of a width that n divides."""
        return position.role == "block" and position.out_features % self.division == 0

    def stage(self, position: Position) -> Stage:
        """Fed with the block's output."""
        return "sequential"

    def sizes(self, position: Position) -> tuple[int, ...]:
        """One candidate."""
        return (-(-self.bottleneck // self.division) * self.division,)

    def params(self, position: Position, size: int) -> int:
        """For each of two matrices n^3 + rank x (in + out), and a bias."""
        d = position.out_features
        return 2 * (self.division**3 + self.rank * (d + size)) + size + d

    def flops_per_token(self, position: Position, size: int) -> int:
        """For each of two matrices: n times the vectors, and the small matrices between them."""
        n, d = self.division, position.out_features
        return 4 * self.rank * (n * (d + size) + n**3)

    def build(self, position: Position, size: int, host: nn.Module) -> CompacterUnit:
        """Glorot, but the last factor is zero; A_i normal with a variance of 1/n, which keeps the size of x."""
        from sparsearch.spaces.kinds.compacter.module import CompacterUnit

        return CompacterUnit(position.out_features, size, self.division, self.rank)
