"""Early stopping of a search: stop when the cut at the target budgets has stopped changing.

EarlyBERT stops when pruning masks drawn at successive checks agree. An absolute distance is ill-posed
there: random masks that prune a share p differ in 2 p (1 - p) of the entries, so small p always look
converged. Here the distance is divided by what random structures of that size would give.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence

from sparsearch.search.cut import kept
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.space import Space

__all__ = ["CutWatch", "distance"]


def distance(a: frozenset[int], b: frozenset[int], candidates: int) -> float:
    """Share of disagreement between two structures, 1.0 for what random ones of these sizes give.

    With sizes m and n of N candidates, m + n - 2 m n / N candidates are expected in one of two
    random structures only. Above 1.0 they avoid each other.

    >>> distance(frozenset({0, 1}), frozenset({0, 2}), candidates=4)
    1.0
    """
    expected = len(a) + len(b) - 2 * len(a) * len(b) / candidates
    return len(a ^ b) / expected if expected > 0 else 0.0


class CutWatch:
    """Remembers the last cuts at each target budget.

    Args:
        space: What is cut.
        budgets: Targets; one that nothing fits is an InfeasibleError at the first look.
        rule: Of the cut.
        threshold: Largest normalised distance, as ``furthest`` measures it, at which the remembered
            cuts count as equal.
        length: How many cuts are remembered.
        tokens: Sequence length at which FLOPs are counted.
    """

    def __init__(
        self,
        space: Space,
        budgets: Sequence[Budget],
        rule: str,
        threshold: float,
        length: int,
        tokens: int = 128,
    ) -> None:
        self.tokens = tokens
        self.space, self.budgets, self.rule, self.threshold = space, budgets, rule, threshold
        self.cuts: deque[tuple[frozenset[int], ...]] = deque(maxlen=length)

    def settled(self, scores: Sequence[float]) -> bool:
        """Cut anew; whether all remembered cuts agree."""
        cuts = (kept(self.space, scores, b, self.rule, self.tokens) for b in self.budgets)
        self.cuts.append(tuple(frozenset(found) for found in cuts))
        return len(self.cuts) == self.cuts.maxlen and self.furthest() <= self.threshold

    def furthest(self) -> float:
        """Largest distance of the newest cut to a remembered one, mean over the budgets.

        The mean, since one large candidate that crosses the edge of one cut changes much of that cut and
        none of the others.
        """
        count = len(self.space.candidates)
        return statistics.fmean(
            max(distance(old, cuts[-1], count) for old in cuts)
            for cuts in zip(*self.cuts, strict=True)
        )
