"""What a budget leaves for a selection, as whole numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from sparsearch.config.registry import LIMITS
from sparsearch.errors import ConfigError
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.candidate import Candidate
from sparsearch.spaces.costs import linear_weights
from sparsearch.spaces.limits import Limit
from sparsearch.spaces.space import Space

__all__ = ["Caps", "smallest"]


class Caps:
    """A budget resolved against a space: the most that candidates may add up to, limit by limit.

    Args:
        space: For the dense FLOPs and weights that fractions refer to.
        budget: The limits.
        tokens: Sequence length at which FLOPs are counted.

    Attributes:
        limits: Those that have a cap.

    Raises:
        ConfigError: If a limit is not installed any more, or is a least that the selection does not know.
    """

    def __init__(self, space: Space, budget: Budget, tokens: int = 128) -> None:
        self.space, self.budget, self.tokens = space, budget, tokens
        self.limits: list[Limit] = []
        self._most: list[int] = []
        for name, value in budget.limits:
            limit: Limit = LIMITS.load(name)()
            most = limit.cap(value, space, tokens)
            if most is not None and not limit.is_most:
                raise ConfigError(
                    [f"budget {name}: the selection keeps to a most, max_..., alone"]
                )
            if most is not None:
                self.limits.append(limit)
                self._most.append(most)

    def get(self, name: str) -> int | None:
        """The cap of a limit; None if it has none."""
        named = (m for n, m in zip(self.limits, self._most, strict=True) if n.name == name)
        return next(named, None)

    def without(self, name: str) -> Caps:
        """The same caps, one aside."""
        return Caps(self.space, self.budget.without(name), self.tokens)

    @property
    def weights_to_remove(self) -> int:
        """Weights of linears that are zero or gone at the least; 0 where sparsity has no limit."""
        share = Fraction(self.budget.get("min_weight_sparsity") or 0.0).limit_denominator(10**6)
        return math.ceil(share * linear_weights(self.space.positions))

    def fits(self, candidates: Sequence[Candidate]) -> bool:
        """Whether the candidates together stay within every cap."""
        return self._fit(self._total(candidates))

    def fill(self, candidates: Sequence[Candidate], given: Sequence[Candidate] = ()) -> list[int]:
        """Which candidates fit beside what is given, each in turn; their indices.

        The first of a kind at a position decides in how many bits its values are stored there.

        Args:
            candidates: In the order in which they are tried.
            given: What is there already.
        """
        total, fitting = self._total(given), []
        kinds = {(c.position, c.base_kind): c.kind for c in given}
        for i, c in enumerate(candidates):
            if kinds.get((c.position, c.base_kind), c.kind) != c.kind:
                continue
            sums = [t + n.cost(c, self.tokens) for t, n in zip(total, self.limits, strict=True)]
            if self._fit(sums):
                total = sums
                fitting.append(i)
                kinds[c.position, c.base_kind] = c.kind
        return fitting

    def _total(self, candidates: Sequence[Candidate]) -> list[int]:
        return [sum(n.cost(c, self.tokens) for c in candidates) for n in self.limits]

    def _fit(self, sums: Sequence[int]) -> bool:
        return all(value <= most for value, most in zip(sums, self._most, strict=True))


def smallest(space: Space) -> Candidate:
    """What can be attached with the fewest parameters."""
    return min((c for c in space.candidates if c.role == "attach"), key=lambda c: c.params)
