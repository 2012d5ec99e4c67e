"""What a budget leaves for a selection, as whole numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from sparsearch.spaces.backbone.flops import dense_flops_per_token
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.candidate import Candidate
from sparsearch.spaces.space import Space

__all__ = [
    "Limits",
    "smallest",
    "without_flops",
]


class Limits:
    """A budget as integer caps on what candidates add up to.

    Args:
        space: For the dense FLOPs that a FLOPs share refers to.
        budget: The limits.
        tokens: Sequence length at which FLOPs are counted.
    """

    def __init__(self, space: Space, budget: Budget, tokens: int = 128) -> None:
        self.tokens = tokens
        self.params = budget.max_trainable_params
        self.bytes = budget.max_bytes
        self.flops: int | None = None
        if budget.max_inference_flops is not None:
            dense = dense_flops_per_token(space.positions, tokens)
            share = Fraction(str(budget.max_inference_flops))  # as the user wrote it
            self.flops = math.floor((share - 1) * dense)

    def fits(self, candidates: Sequence[Candidate]) -> bool:
        """Whether the candidates together stay within every cap."""
        return self.fit(
            sum(c.params for c in candidates),
            sum(c.bytes for c in candidates),
            sum(c.inference_flops(self.tokens) for c in candidates),
        )

    def fit(self, params: int, size: int, flops: int) -> bool:
        """Whether these totals stay within every cap."""
        caps = ((params, self.params), (size, self.bytes), (flops, self.flops))
        return all(cap is None or value <= cap for value, cap in caps)

    def fill(self, candidates: Sequence[Candidate], given: Sequence[Candidate] = ()) -> list[int]:
        """Indices of what is kept when each candidate in turn is taken if it still fits beside what is given."""
        params, size = sum(c.params for c in given), sum(c.bytes for c in given)
        flops = sum(c.inference_flops(self.tokens) for c in given)
        kept = []
        for i, c in enumerate(candidates):
            total = (params + c.params, size + c.bytes, flops + c.inference_flops(self.tokens))
            if self.fit(*total):
                params, size, flops = total
                kept.append(i)
        return kept


def smallest(space: Space) -> Candidate:
    """What can be attached with the fewest parameters."""
    return min((c for c in space.candidates if c.role == "attach"), key=lambda c: c.params)


def without_flops(space: Space, budget: Budget, tokens: int) -> Limits:
    """The limits of a budget, FLOPs aside."""
    return Limits(space, replace(budget, max_inference_flops=None), tokens)
