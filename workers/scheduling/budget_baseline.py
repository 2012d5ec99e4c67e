"""Bands: what scores are usual at about a budget, so that trials of unequal budgets can be compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["BudgetBaseline", "nearest"]

WIDTH = 0.12
"""Standard deviation of the kernel, as a share of each limit's range."""


class BudgetBaseline:
    """Scores by place, and for each of them its residual: what it has above the average of its neighbours."""

    def __init__(self) -> None:
        self._places: list[Sequence[float]] = []
        self._scores: list[float] = []

    def __len__(self) -> int:
        return len(self._scores)

    def add(self, place: Sequence[float], score: float) -> None:
        """A score that was measured.

        Args:
            place: In the unit cube of limits.
            score: Higher is better.
        """
        self._places.append(place)
        self._scores.append(score)

    def usual(self, places: Sequence[Sequence[float]]) -> list[float]:
        """The average score at each place, weighted by a Gaussian kernel; nothing may be asked of an empty band."""
        here, there = np.array(places, dtype=float), np.array(self._places, dtype=float)
        away = ((here[:, None, :] - there[None, :, :]) ** 2).sum(-1) / (2 * WIDTH**2)
        weights = np.exp(away.min(1, keepdims=True) - away)
        return [float(v) for v in weights @ np.array(self._scores) / weights.sum(1)]


def nearest(places: Sequence[Sequence[float]], place: Sequence[float], count: int) -> list[int]:
    """Indices of the places nearest to one, in order."""
    if len(places) <= count:
        return list(range(len(places)))
    away = ((np.array(places, dtype=float) - np.array(place)) ** 2).sum(-1)
    return sorted(np.argsort(away, kind="stable")[:count].tolist())
