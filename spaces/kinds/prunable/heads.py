"""Attention heads that may be cut (EarlyBERT; DSEE's structured route)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparsearch.spaces.families.position import Position
from sparsearch.spaces.kinds.prunable.spec import Removal

__all__ = ["Heads"]


@dataclass(frozen=True)
class Heads(Removal):
    """One candidate per head; where queries are grouped, per group that shares keys and values."""

    name: ClassVar[str] = "heads"

    def sizes(self, position: Position) -> tuple[int, ...]:
        """One by one."""
        return (1,) * position.units

    def flops_per_pair(self, position: Position, size: int) -> int:
        """Minus its scores and its mixing."""
        return -4 * size * position.in_features // position.units
