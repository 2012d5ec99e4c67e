"""A limit: how many modules a structure may attach."""

from __future__ import annotations

from sparsearch.spaces.candidate import Candidate
from sparsearch.spaces.limits import Limit

__all__ = ["MaxModules"]


class MaxModules(Limit):
    """Candidates that are attached; each counts once, however large."""

    name = "max_modules"
    unit = "modules"

    def cost(self, candidate: Candidate, tokens: int) -> int:
        """One for what is attached."""
        return int(candidate.role == "attach")
