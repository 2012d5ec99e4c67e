"""S3PET: bi-level search with a shifted global sigmoid (Hu et al., 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch

from sparsearch.config.registry import StrategyFamily
from sparsearch.config.study import SearchConfig, StudyConfig
from sparsearch.search.bilevel.early_stopping import SelectionMonitor
from sparsearch.search.bilevel.local_search import swap
from sparsearch.search.bilevel.search import BilevelSearch, SearchProblem
from sparsearch.search.bilevel.supernet import Supernet
from sparsearch.search.gates.gates import Gates, GateSettings, RemovalCosts
from sparsearch.search.gates.mask_costs import mask_costs
from sparsearch.search.gates.targets import BudgetSchedule, Targets
from sparsearch.search.selection.caps import Caps
from sparsearch.search.selection.selector import Selector
from sparsearch.search.strategies.base import RankingContext, Strategy
from sparsearch.search.strategies.linearised.joint import joint_scores, misfits
from sparsearch.search.strategies.supernet_start import (
    open_supernet,
    probed,
    standardised,
    start_alpha,
)
from sparsearch.search.tasks.types.registry import find_task_type
from sparsearch.search.training.train import Observer
from sparsearch.spaces.budget import Budget, served_limits
from sparsearch.spaces.costs import merge_same_position, overlaps
from sparsearch.spaces.ranking import AlphaTrace, Ranking
from sparsearch.spaces.space import Space

__all__ = ["S3PET", "make_gates"]

_TRACED = 300
"""Candidates of which the ranking says how alpha went."""


class S3PET(Strategy):
    """Bi-level search with a shifted global sigmoid; scores are the gates' alpha."""

    name: ClassVar[str] = "s3pet"
    family: ClassVar[StrategyFamily] = "search"

    def selection_rule(self, search: SearchConfig) -> str:
        """As the study says."""
        return search.cut

    def check_study(self, study: StudyConfig, space: Space) -> list[str]:
        """Its start may be one that not every space and task has."""
        if study.search.start != "linearised":
            return []
        return misfits(space, find_task_type(study.task.type))

    def aims(
        self, search: SearchConfig, budgets: Sequence[Budget], budget: Budget
    ) -> list[dict[str, int | float]]:
        """The trial's budget, the ends of the study's range, or both.

        A search that draws budgets sees the ends of their range alone, so that its ranking serves all between them,
        in other studies too. One that may stop early looks at what each budget selects.
        """
        own = [dict(budget.limits)]
        if search.budget_schedule != "sampled":
            return own
        served = served_limits(budgets, every=search.early_stop)
        judged = search.checkpoint == "hard" or search.swaps > 0  # at the trial's budget
        return served + (own if judged else [])

    def rank(
        self, context: RankingContext, budget: Budget, seed: int, observe: Observer
    ) -> Ranking:
        """Bi-level search with a shifted global sigmoid (S3PET); scores are the gates' alpha.

        Gates close without what stands in for a cut, so that they would tell of another, worse model. Where something
        stands in for all cuts, a search that starts at prices leaves these where their prices put them, and places
        modules on the dense model, which the compensated one is close to.
        """
        search, space = context.search, context.space
        task = context.task
        supernet = open_supernet(context, seed, search.start != "zero")
        device = next(context.model.parameters()).device
        gates = make_gates(space, search, task.max_length, device)
        served = (budget,) if search.budget_schedule != "sampled" else context.budgets
        schedule = _schedule(context, served, seed, float(gates.cost[gates.attached].sum()))
        selector = Selector(space, budget, search.cut, task.max_length)
        monitor = SelectionMonitor(
            [Selector(space, b, search.cut, task.max_length) for b in served],
            search.stop_distance,
            search.stop_length,
        )
        try:
            start = _start(context, supernet, seed)
            with torch.no_grad():
                gates.alpha.copy_(start)
            problem = SearchProblem(task, search, context.train)
            bilevel = BilevelSearch(supernet, gates, problem, schedule, seed, monitor, selector)
            alpha = bilevel.run(observe)
            if search.swaps:
                alpha = swap(supernet, task, selector, alpha, search.swaps)
        finally:
            supernet.close()
        scores = tuple(alpha.tolist())
        trace = _trace(space, bilevel.noted)
        return Ranking(scores, self.name, seed, bilevel.taken, trace=trace)


def _start(context: RankingContext, supernet: Supernet, seed: int) -> torch.Tensor:
    """Alpha before the first step: (candidates,) zeros, or with mean 0 and standard deviation 1."""
    space, start = context.space, context.search.start
    if start == "linearised":
        return standardised(joint_scores(context, supernet, seed))
    if start == "probe":
        return start_alpha(space, probed(context, supernet, seed), context.task.max_length)
    return torch.zeros(len(space.candidates))


def _trace(space: Space, noted: Mapping[int, torch.Tensor]) -> AlphaTrace | None:
    """What was noted, of the candidates that ended highest."""
    if not noted:
        return None
    highest = noted[max(noted)].argsort(descending=True, stable=True)[:_TRACED].tolist()
    named = [space.candidates[i] for i in highest]
    return AlphaTrace(
        tuple(f"{c.position} {c.kind} {c.size}" for c in named),
        tuple(noted),
        tuple(tuple(round(a, 4) for a in alpha[highest].tolist()) for alpha in noted.values()),
    )


def make_gates(space: Space, search: SearchConfig, tokens: int, device: torch.device) -> Gates:
    """Gates of a space, with further targets where it has something to remove or to mask.

    Args:
        space: What the gates are of.
        search: How alpha becomes gates.
        tokens: Sequence length at which FLOPs are counted.
        device: Of the gates.
    """
    cost = torch.tensor([c.params for c in space.candidates], device=device)
    settings = GateSettings(
        search.control, search.budget_gradient, search.relaxation, search.temperature
    )
    removals = _removal_costs(space, tokens, device) if space.removals else None
    return Gates(cost, settings, removals, mask_costs(space, device))


def _removal_costs(space: Space, tokens: int, device: torch.device) -> RemovalCosts:
    n = len(space.candidates)
    flops = [-c.inference_flops(tokens) if c.which else 0 for c in space.candidates]
    rows = torch.tensor([*overlaps(space)], dtype=torch.float64).reshape(-1, 4)
    overlap = torch.sparse_coo_tensor(
        rows[:, :2].T.long(), rows[:, 2], (n, n), check_invariants=True
    )
    saving = torch.tensor(flops, dtype=torch.float64, device=device)
    return RemovalCosts(saving, overlap.to(device))


def _schedule(
    context: RankingContext, served: Sequence[Budget], seed: int, whole: float
) -> BudgetSchedule:
    """From the smallest to the largest of the budgets that a search serves.

    Where all removals are reconstructed, and their alpha starts at their prices, the gates save nothing: they would
    close without the reconstruction.
    """
    search, space, tokens = context.search, context.space, context.task.max_length
    left_open = search.start == "probe" and all(c.compensates for c in space.candidates if c.which)
    caps = [Caps(space, budget, tokens) for budget in served]
    params = [_parameters(c) for c in caps]
    saved = [0.0 if left_open else _flops_to_save(c) for c in caps]
    removed = [float(c.weights_to_remove) for c in caps]
    low, high = (Targets(*map(end, (params, saved, removed))) for end in (min, max))
    return BudgetSchedule(low, high, search.budget_schedule, seed, whole)


def _parameters(caps: Caps) -> float:
    """The budget as a number of parameters, the one that gates are held to.

    Bytes, of which some are frozen, and limits of plug-ins as the parameters that have the same share of the space.
    FLOPs have a target of their own.
    """
    space, params = caps.space, [float(caps.space.trainable_params)]
    attached = merge_same_position(space, [c for c in space.candidates if not c.which])
    for limit in caps.limits:
        most = caps.get(limit.name) or 0
        if limit.name == "max_trainable_params":
            params.append(float(most))
        elif limit.name != "max_inference_flops":
            whole = max(1, sum(limit.cost(c, caps.tokens) for c in attached))
            params.append(most * space.trainable_params / whole)
    return max(1.0, min(params))


def _flops_to_save(caps: Caps) -> float:
    """FLOPs per token that the gates save, as expected; never more than there are."""
    space, flops = caps.space, caps.get("max_inference_flops")
    most = -sum(space.candidates[i].inference_flops(caps.tokens) for i in space.removals)
    return float(min(most, max(0, -flops))) if flops is not None else 0.0
