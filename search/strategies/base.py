"""What a strategy is: a way to choose candidates for a budget. Baselines are strategies like any other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sparsearch.config.registry import StrategyFamily
from sparsearch.config.search import SearchConfig
from sparsearch.config.study import StudyConfig
from sparsearch.config.train import TrainConfig
from sparsearch.search.selection.selector import Selector
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.candidate import Candidate
from sparsearch.spaces.ranking import Ranking
from sparsearch.spaces.space import Space

if TYPE_CHECKING:
    from torch import nn

    from sparsearch.search.tasks.task import Task
    from sparsearch.search.training.train import Observer
    from sparsearch.search.training.warm_start import WarmStart

__all__ = ["RankingContext", "Strategy"]


@dataclass(frozen=True)
class RankingContext:
    """What a ranking is made for.

    Attributes:
        model: A model with a head; nothing attached. It is the only copy of the backbone.
        space: What may be chosen.
        task: A search sees its training split (and validation, with ``checkpoint: best``), never its test split.
        search: How to search.
        train: Learning rates and precision, the same as in training.
        budgets: All that the study asks for; a search that draws budgets serves them all.
        start: Gives the warm start of the seed, with the bases that the space needs.
    """

    model: nn.Module
    space: Space
    task: Task
    search: SearchConfig
    train: TrainConfig
    budgets: tuple[Budget, ...]
    start: Callable[[], WarmStart]


class Strategy:
    """A way to choose candidates for a budget.

    Most strategies only score candidates: they override ``rank``, and the selection does the rest. One that scores
    nothing overrides ``select`` and sets ``ranks`` to False.

    Attributes:
        name: As users write it.
        family: How reports group it.
        ranks: Whether it makes a ranking.
        train_settings: Names of training settings that change its ranking, beyond rates, precision and warm start.
        whole_model: Whether a trial of it trains the whole model (a reference without a budget).
    """

    name: ClassVar[str]
    family: ClassVar[StrategyFamily] = "other"
    ranks: ClassVar[bool] = True
    train_settings: ClassVar[frozenset[str]] = frozenset()
    whole_model: ClassVar[bool] = False

    def check(self, space: Space) -> list[str]:
        """Why it cannot choose from a space; empty if it can."""
        return []

    def check_study(self, study: StudyConfig, space: Space) -> list[str]:
        """Why it cannot serve a study over a space, as its settings and its task are; empty if it can."""
        return []

    def space(self, space: Space) -> Space:
        """The space that it chooses from."""
        return space

    def selection_rule(self, search: SearchConfig) -> str:
        """How the selection walks down its ranking: ``greedy``, ``density`` or ``knapsack``."""
        return "greedy"

    def aims(
        self, search: SearchConfig, budgets: Sequence[Budget], budget: Budget
    ) -> list[dict[str, Any]]:
        """The limits that a ranking is made for; rankings of equal aims are shared.

        Args:
            search: How to search.
            budgets: All that the study asks for.
            budget: The trial's.
        """
        return [dict(budget.limits)]

    def rank(
        self, context: RankingContext, budget: Budget, seed: int, observe: Observer
    ) -> Ranking:
        """A score for each candidate, the highest for what is selected first.

        Args:
            context: Model, space, task and settings.
            budget: The trial's.
            seed: Of everything random in it.
            observe: Told of every step.

        Raises:
            TrainingDiverged: If a loss is NaN or infinite.
        """
        raise NotImplementedError(f"strategy {self.name!r} makes no ranking")

    def select(
        self,
        space: Space,
        ranking: Ranking | None,
        budget: Budget,
        search: SearchConfig,
        tokens: int,
    ) -> tuple[Space, tuple[Candidate, ...]]:
        """What it chooses within a budget, and the space that this belongs to.

        Args:
            space: The study's.
            ranking: Its own, None if it makes none.
            budget: The limits.
            search: How to search.
            tokens: Sequence length at which FLOPs are counted.

        Raises:
            InfeasibleError: If nothing fits.
        """
        assert ranking is not None, "it ranks"
        chosen_from = self.space(space)
        return chosen_from, Selector(
            chosen_from, budget, self.selection_rule(search), tokens
        ).select(ranking.scores)
