"""A limit: how many rank units a structure may attach."""

from __future__ import annotations

from sparsearch.spaces.candidate import Candidate
from sparsearch.spaces.limits import Limit

__all__ = ["MaxRankUnits"]


class MaxRankUnits(Limit):
    """Ranks, blocks and vectors that are attached: a rank-4 LoRA counts four, as its four candidates do."""

    name = "max_rank_units"
    unit = "rank units"

    def cost(self, candidate: Candidate, tokens: int) -> int:
        """Its size, if it is attached."""
        return candidate.size if candidate.role == "attach" else 0
