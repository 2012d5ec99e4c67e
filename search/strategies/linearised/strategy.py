"""Joint selection under a linear model as a strategy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from sparsearch.config.search import SearchConfig
from sparsearch.config.study import StudyConfig
from sparsearch.search.strategies.base import RankingContext, Strategy
from sparsearch.search.strategies.linearised.joint import joint_scores, misfits
from sparsearch.search.strategies.supernet_start import open_supernet
from sparsearch.search.tasks.types.registry import find_task_type
from sparsearch.search.training.train import Observer
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.ranking import Ranking
from sparsearch.spaces.space import Space

__all__ = ["Linearised"]


class Linearised(Strategy):
    """Forward selection of candidates by the drop of held-out loss, per stored byte, that a ridge fit predicts."""

    name: ClassVar[str] = "linearised"

    def check_study(self, study: StudyConfig, space: Space) -> list[str]:
        """Nothing may be removed; each row has one vector of outputs."""
        return misfits(space, find_task_type(study.task.type))

    def aims(
        self, search: SearchConfig, budgets: Sequence[Budget], budget: Budget
    ) -> list[dict[str, Any]]:
        """None: one order serves all budgets."""
        return []

    def rank(
        self, context: RankingContext, budget: Budget, seed: int, observe: Observer
    ) -> Ranking:
        """Scores fall from the first candidate selected to the last."""
        supernet = open_supernet(context, seed, warm=True)
        try:
            scores = joint_scores(context, supernet, seed)
        finally:
            supernet.close()
        return Ranking(tuple(scores.tolist()), self.name, seed)
