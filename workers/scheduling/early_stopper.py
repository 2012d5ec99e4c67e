"""Early stopping of proposals that do not keep up."""

from __future__ import annotations

from collections.abc import Callable

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import (
    RandomSampler,
)

from sparsearch.workers.scheduling.budget_baseline import BudgetBaseline
from sparsearch.workers.scheduling.search_space import Params, SearchSpace

__all__ = [
    "EarlyStopper",
]

_PRUNERS: dict[str, Callable[[int], BasePruner]] = {
    "none": lambda epochs: NopPruner(),
    "asha": lambda epochs: SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
    "hyperband": lambda epochs: HyperbandPruner(1, max(2, epochs), reduction_factor=2),
}


class EarlyStopper:
    """Early stopping: a single-objective shadow study over what is above the usual at a budget, epoch by epoch.

    Optuna prunes no study of several objectives, and scores of unequal budgets are not to be compared.
    """

    def __init__(self, rule: str, proposals: SearchSpace) -> None:
        self.proposals = proposals
        self.bands: list[BudgetBaseline] = []
        self._shadow = optuna.create_study(
            study_name="race",
            direction="maximize",
            sampler=RandomSampler(seed=0),  # nothing is asked of it
            pruner=_PRUNERS[rule](proposals.most_epochs),
        )
        self._entered: dict[int, tuple[optuna.Trial, int, int]] = {}

    def keeps_up(self, number: int, params: Params, done: int, score: float) -> bool:
        """Take a trial's next validation score; whether it is worth going on.

        Args:
            number: The trial's.
            params: The point that it is.
            done: Steps of training so far; those of a trial that begins anew are passed over until they are new.
            score: The validation score there.
        """
        trial, epoch, last = self._entered.get(number) or (self._shadow.ask(), 0, 0)
        if done <= last:
            return True
        epoch += 1
        self._entered[number] = trial, epoch, done
        place = self.proposals.place(params)
        while len(self.bands) < epoch:
            self.bands.append(BudgetBaseline())
        self.bands[epoch - 1].add(place, score)
        (usual,) = self.bands[epoch - 1].usual([place])
        trial.report(score - usual, epoch)
        return not trial.should_prune()
