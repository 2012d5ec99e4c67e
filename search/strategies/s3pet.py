"""S3PET: bi-level search with a shifted global sigmoid (Hu et al., 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from sparsearch.config.registry import StrategyFamily
from sparsearch.config.study import SearchConfig
from sparsearch.search.bilevel.early_stopping import SelectionMonitor
from sparsearch.search.bilevel.local_search import hard_gates, swap
from sparsearch.search.bilevel.search import BilevelSearch
from sparsearch.search.gates.gates import Gates
from sparsearch.search.gates.mask_costs import mask_costs
from sparsearch.search.selection.limits import Limits
from sparsearch.search.selection.masks import weights_to_remove
from sparsearch.search.selection.selector import Selector
from sparsearch.search.strategies.base import RankingContext, Strategy
from sparsearch.search.strategies.supernet_start import open_supernet, probed, start_alpha
from sparsearch.search.training.train import Observer
from sparsearch.spaces.budget import Budget, served_limits
from sparsearch.spaces.costs import merge_same_position, overlaps
from sparsearch.spaces.ranking import Ranking
from sparsearch.spaces.space import Space

__all__ = ["S3PET", "make_gates"]


class S3PET(Strategy):
    """Bi-level search with a shifted global sigmoid; scores are the gates' alpha."""

    name: ClassVar[str] = "s3pet"
    family: ClassVar[StrategyFamily] = "search"

    def selection_rule(self, search: SearchConfig) -> str:
        """As the study says."""
        return search.cut

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
        supernet = open_supernet(context, seed, search.start == "probe")
        device = next(context.model.parameters()).device
        gates = make_gates(space, search, task.max_length, device)
        served = (budget,) if search.budget_schedule != "sampled" else context.budgets
        targets = [_parameters(space, b) for b in served]
        priced = search.start == "probe" and all(
            c.compensates for c in space.candidates if c.which
        )
        to_save = [0.0 if priced else _flops_to_save(space, b, task.max_length) for b in served]
        to_prune = [float(weights_to_remove(space, b)) for b in served]
        selector = Selector(space, budget, search.cut, task.max_length)
        watch = SelectionMonitor(
            [Selector(space, b, search.cut, task.max_length) for b in served],
            search.stop_distance,
            search.stop_length,
        )
        try:
            if search.start == "probe":
                start = probed(context, supernet, seed)
                with torch.no_grad():
                    gates.alpha.copy_(start_alpha(space, start, task.max_length))
            bilevel = BilevelSearch(
                supernet, gates, task, search, context.train, min(targets), seed,
                max(targets), (min(to_save), max(to_save)), (min(to_prune), max(to_prune)),
                lambda alpha: watch.settled(alpha.tolist()),
                lambda alpha: hard_gates(selector, alpha),
            )  # fmt: skip
            alpha = bilevel.run(observe)
            if search.swaps:
                alpha = swap(supernet, task, selector, alpha, search.swaps)
        finally:
            supernet.close()
        scores = tuple(alpha.tolist())
        return Ranking(scores, self.name, seed, bilevel.taken)


def make_gates(space: Space, search: SearchConfig, tokens: int, device: torch.device) -> Gates:
    """Gates of a space, with further budgets where it has something to cut or to mask."""
    n = len(space.candidates)
    cost = torch.tensor([c.params for c in space.candidates], device=device)
    saving = overlap = None
    if space.removals:
        flops = [-c.inference_flops(tokens) if c.which else 0 for c in space.candidates]
        saving = torch.tensor(flops, dtype=torch.float64, device=device)
        rows = torch.tensor([*overlaps(space)], dtype=torch.float64).reshape(-1, 4)
        overlap = torch.sparse_coo_tensor(
            rows[:, :2].T.long(), rows[:, 2], (n, n), check_invariants=True
        ).to(device)
    return Gates(
        cost,
        control=search.control,
        gradient=search.budget_gradient,
        relaxation=search.relaxation,
        temperature=search.temperature,
        saving=saving,
        overlap=overlap,
        masks=mask_costs(space, device),
    )


def _parameters(space: Space, budget: Budget) -> float:
    """The budget as a number of parameters, the one that gates are held to.

    Bytes, of which some are frozen, as the parameters that have the same share of the space.
    """
    caps = [float(space.trainable_params)]
    if budget.max_trainable_params is not None:
        caps.append(float(budget.max_trainable_params))
    if budget.max_bytes is not None:
        attached = merge_same_position(space, [c for c in space.candidates if not c.which])
        whole = max(1, sum(c.bytes for c in attached))
        caps.append(budget.max_bytes * space.trainable_params / whole)
    return max(1.0, min(caps))


def _flops_to_save(space: Space, budget: Budget, tokens: int) -> float:
    """FLOPs per token that the gates save, as expected; never more than there are."""
    flops = Limits(space, budget, tokens).flops
    most = -sum(space.candidates[i].inference_flops(tokens) for i in space.removals)
    return float(min(most, max(0, -flops))) if flops is not None else 0.0
