"""The gradient probe as a strategy: no search, a few backward passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from sparsearch.config.registry import StrategyFamily
from sparsearch.config.study import SearchConfig
from sparsearch.search.strategies.base import RankingContext, Strategy
from sparsearch.search.strategies.supernet_start import open_supernet, probed
from sparsearch.search.training.train import Observer
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.ranking import Ranking

__all__ = ["Probe"]


class Probe(Strategy):
    """Gradients of all candidates' parameters at the identity point, over a warm head."""

    name: ClassVar[str] = "probe"
    family: ClassVar[StrategyFamily] = "probe"

    def selection_rule(self, search: SearchConfig) -> str:
        """As the study says of its probe."""
        return search.probe.cut

    def aims(
        self, search: SearchConfig, budgets: Sequence[Budget], budget: Budget
    ) -> list[dict[str, int | float]]:
        """None: the budget does not change gradients."""
        return []

    def rank(
        self, context: RankingContext, budget: Budget, seed: int, observe: Observer
    ) -> Ranking:
        """Gradients of all candidates' parameters at the identity point, over a warm head."""
        supernet = open_supernet(context, seed, warm=True)
        try:
            scores = probed(context, supernet, seed)
        finally:
            supernet.close()
        return Ranking(tuple(map(float, scores)), self.name, seed)
