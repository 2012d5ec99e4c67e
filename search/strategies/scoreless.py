"""Scores without a look at the model: random ones, and equal shares everywhere."""

from __future__ import annotations

import random
from typing import ClassVar

from sparsearch.config.registry import StrategyFamily
from sparsearch.search.selection.masks import equal_shares, without_scores
from sparsearch.search.strategies.base import RankingContext, Strategy
from sparsearch.search.training.train import Observer
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.ranking import Ranking
from sparsearch.spaces.space import Space

__all__ = ["Even", "Magnitude", "Random"]


class Random(Strategy):
    """Uniform scores: with the greedy rule, draws among the candidates that still fit until none does."""

    name: ClassVar[str] = "random"
    family: ClassVar[StrategyFamily] = "random"

    def rank(
        self, context: RankingContext, budget: Budget, seed: int, observe: Observer
    ) -> Ranking:
        """Uniform scores: with the greedy cut, draws among the candidates that still fit until none does."""
        stream = random.Random(seed)
        return Ranking(tuple(stream.random() for _ in context.space.candidates), self.name, seed)


class Even(Strategy):
    """The same share of rank units, heads, bands everywhere."""

    name: ClassVar[str] = "even"

    def rank(
        self, context: RankingContext, budget: Budget, seed: int, observe: Observer
    ) -> Ranking:
        """The same share of rank units, heads, bands everywhere."""
        return Ranking(equal_shares(context.space), self.name, seed)


class Magnitude(Even):
    """As ``even``, with masks that have no scores: weights of the smallest magnitude go."""

    name: ClassVar[str] = "magnitude"

    def space(self, space: Space) -> Space:
        """Without the masks' scores."""
        return without_scores(space)
