"""A strategy: candidates of higher layers first."""

from __future__ import annotations

from typing import ClassVar

from sparsearch.search.strategies.base import RankingContext, Strategy
from sparsearch.search.training.train import Observer
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.ranking import Ranking

__all__ = ["TopLayers"]


class TopLayers(Strategy):
    """Fills the budget from the top layer downwards."""

    name: ClassVar[str] = "top-layers"

    def rank(
        self, context: RankingContext, budget: Budget, seed: int, observe: Observer
    ) -> Ranking:
        """The number of the layer; what lies outside the layers comes last."""
        layers = {p.name: -1 if p.layer is None else p.layer for p in context.space.positions}
        scores = tuple(float(layers[c.position]) for c in context.space.candidates)
        return Ranking(scores, self.name, seed)
