"""Neurons of feed-forward layers that may be cut, in blocks (EarlyBERT)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparsearch.spaces.families.position import Position
from sparsearch.spaces.kinds.options import Count
from sparsearch.spaces.kinds.prunable.spec import Removal

__all__ = ["LEAST_NEURONS", "Neurons"]

LEAST_NEURONS = 64
"""Neurons that a feed-forward keeps (all, where it has fewer), so that a global ranking empties none."""


@dataclass(frozen=True)
class Neurons(Removal):
    """One candidate per block of neighbouring neurons.

    Attributes:
        block: Neurons of a candidate; 1 for single ones. Blocks keep matrix widths aligned.
    """

    name: ClassVar[str] = "neurons"
    block: Count = 64

    def least(self, position: Position) -> int:
        """64, or all of a narrower layer."""
        return min(LEAST_NEURONS, position.units)

    def sizes(self, position: Position) -> tuple[int, ...]:
        """Whole blocks, and what is left over."""
        whole, rest = divmod(position.units, self.block)
        return (self.block,) * whole + ((rest,) if rest else ())
