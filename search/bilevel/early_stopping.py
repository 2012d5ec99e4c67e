"""Early stopping of a search: stop when the cut at the target budgets has stopped changing.

EarlyBERT stops when pruning masks drawn at successive checks agree. An absolute distance is ill-posed
there: random masks that prune a share p differ in 2 p (1 - p) of the entries, so small p always look
converged. Here the distance is divided by what random structures of that size would give.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence

from sparsearch.search.selection.selector import Selector

__all__ = ["SelectionMonitor", "distance"]


def distance(a: frozenset[int], b: frozenset[int], candidates: int) -> float:
    """Share of disagreement between two structures, 1.0 for what random ones of these sizes give.

    With sizes m and n of N candidates, m + n - 2 m n / N candidates are expected in one of two
    random structures only. Above 1.0 they avoid each other.

    >>> distance(frozenset({0, 1}), frozenset({0, 2}), candidates=4)
    1.0
    """
    expected = len(a) + len(b) - 2 * len(a) * len(b) / candidates
    return len(a ^ b) / expected if expected > 0 else 0.0


class SelectionMonitor:
    """Remembers the last selections at each target budget.

    Args:
        selectors: One per target; one that nothing fits is an InfeasibleError at the first look.
        threshold: Largest normalised distance, as ``furthest`` measures it, at which the remembered
            selections count as equal.
        length: How many are remembered.
    """

    def __init__(self, selectors: Sequence[Selector], threshold: float, length: int) -> None:
        self.selectors, self.threshold = selectors, threshold
        self.selections: deque[tuple[frozenset[int], ...]] = deque(maxlen=length)

    def settled(self, scores: Sequence[float]) -> bool:
        """Select anew; whether all remembered selections agree."""
        self.selections.append(tuple(frozenset(s.indices(scores)) for s in self.selectors))
        full = len(self.selections) == self.selections.maxlen
        return full and self.furthest() <= self.threshold

    def furthest(self) -> float:
        """Largest distance of the newest selection to a remembered one, mean over the budgets.

        The mean, since one large candidate that crosses the edge of one selection changes much of that one and
        none of the others.
        """
        count = len(self.selectors[0].space.candidates)
        return statistics.fmean(
            max(distance(old, found[-1], count) for old in found)
            for found in zip(*self.selections, strict=True)
        )
