"""LoRA-XS (Bałazy et al. 2024, arXiv 2405.17604): delta = U R S V^T x, a trained core R between frozen directions.

U, S and V are the weight's own leading singular vectors and values, so that the core alone is stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, ClassVar

from sparsearch.spaces.families.position import Position, weight_at
from sparsearch.spaces.kinds.base import Kind, Stage
from sparsearch.spaces.kinds.options import Count

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sparsearch.spaces.kinds.lora_xs.module import LoraXSUnit

__all__ = ["LoraXS"]


@dataclass(frozen=True)
class LoraXS(Kind):
    """A square core, which grows by shells: of rank r it has r x r entries, and a larger one begins with them.

    A unit's size is the number of its entries. A candidate is what one core has more than the one before it: 16, 48
    and 192 entries for ranks of 4, 8 and 16. Whichever of them are chosen, a structure takes as many entries as they
    count, from the first.

    Attributes:
        smallest: Rank of the smallest core.
        factor: From one rank to the next.
        steps: Cores per position; none is larger than the matrix's own rank.
    """

    name: ClassVar[str] = "lora_xs"
    not_on_quantised: ClassVar[str] = ""
    not_in_peft: ClassVar[str] = ""
    smallest: Count = 4
    factor: Count = 2
    steps: Count = 3

    def accepts(self, position: Position) -> bool:
        """Any linear."""
        return position.role == "linear"

    def stage(self, position: Position) -> Stage:
        """Fed with the linear's input."""
        return "parallel"

    def sizes(self, position: Position) -> tuple[int, ...]:
        """What each core adds to the one before it."""
        most = min(position.in_features, position.out_features)
        ranks = {min(self.smallest * self.factor**step, most) for step in range(self.steps)}
        return _differences([rank * rank for rank in sorted(ranks)])

    def levels(self, position: Position) -> tuple[int, ...]:
        """Whole cores, of any rank."""
        most = min(position.in_features, position.out_features)
        return tuple(rank * rank for rank in range(1, most + 1))

    def largest(self, position: Position) -> int:
        """Uniform structures have the same rank everywhere, above the candidates' too."""
        return min(position.in_features, position.out_features) ** 2

    def params(self, position: Position, size: int) -> int:
        """One per entry of the core, of which there are only so many."""
        return min(size, self.largest(position))

    def flops_per_token(self, position: Position, size: int) -> int:
        """Onto the directions, through the core, and out again."""
        rank = _rank(self.params(position, size))
        return 2 * rank * (position.in_features + rank + position.out_features)

    def low_rank(self, unit: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The right directions, and the left ones times the core."""
        from sparsearch.spaces.kinds.lora_xs.module import core_of

        right = unit["right"].float()
        return right, unit["left"].float() @ core_of(unit["values"].float(), len(right))

    def build(self, position: Position, size: int, host: nn.Module) -> LoraXSUnit:
        """Values zero."""
        from sparsearch.spaces.kinds.lora_xs.module import LoraXSUnit, directions_of
        from sparsearch.spaces.kinds.remembered import remembered

        count, offered = self.params(position, size), sum(self.sizes(position))
        ends = [*(end for end in accumulate(self.sizes(position)) if end < count), count]
        rank = _rank(count)
        unit = LoraXSUnit(position.in_features, position.out_features, rank, _differences(ends))
        weight, most = weight_at(position, host).detach(), max(rank, _rank(offered))
        own, key = host.get_parameter("weight"), (position, "scaled directions", most)
        unit.align(*remembered(own, key, lambda: directions_of(weight, most)))
        return unit


def _rank(entries: int) -> int:
    """Rank of the core whose last shell holds the last of so many entries."""
    return math.isqrt(entries - 1) + 1 if entries else 0


def _differences(ends: list[int]) -> tuple[int, ...]:
    return tuple(end - start for start, end in pairwise((0, *ends)))
