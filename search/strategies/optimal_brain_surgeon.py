"""What the loss rises by when heads and neurons are cut and what stays stands in for them (Optimal Brain Surgeon).

To second order, with the Fisher matrix in place of the Hessian and factored as K-FAC does (Martens & Grosse 2015; for
pruning in groups: van der Ouderaa et al. 2024), cutting the features S of a linear y = W x costs

    tr(Cov(x_S | x_K) W_S' G W_S),    G = E[g g'],  g = dL/dy,

where the features K that stay predict the others by linear regression. Units go one after the other, the cheapest
first, and the weights of those that stay take over before the next is priced. Single weights are priced alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsearch.config.study import SearchConfig
from sparsearch.search.selection.masks import equal_shares
from sparsearch.search.strategies.base import RankingContext, Strategy
from sparsearch.search.training.train import Observer
from sparsearch.spaces.backbone.parameters import base_of
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.calibration.calibrate import Bases
from sparsearch.spaces.families.position import weight_at
from sparsearch.spaces.kinds.prunable.module import ridged
from sparsearch.spaces.ranking import Ranking
from sparsearch.spaces.space import Space

__all__ = ["removal_saliency", "eliminate", "pruning_saliency", "OptimalBrainSurgeon"]

_AT_ONCE = 1 / 16
"""Share of a position's candidates that are cut between two inversions."""


def removal_saliency(
    model: nn.Module, space: Space, bases: Bases, tokens: int
) -> dict[int, float]:
    """What cutting each head or block of neurons costs, once everything cheaper at its position is gone.

    Args:
        model: The backbone.
        space: Only what compensates in it is priced.
        bases: What passes through the linears that read heads and neurons, see ``spaces.calibration.statistics``.
        tokens: Sequence length at which FLOPs are counted.

    Returns:
        Index of the candidate -> rise of the loss per FLOP saved, up to a factor that all share.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for i in space.removals:
        c = space.candidates[i]
        if space.kinds[c.kind].aligns:
            groups.setdefault((c.position, c.kind), []).append(i)
    prices = {}
    for (name, kind), members in groups.items():
        position = space.position(name)
        weight = weight_at(position, base_of(model).get_submodule(position.module)).detach()
        covariance, _, gradient = bases[name, kind]
        width = position.in_features // position.units
        widths = [space.candidates[i].size * width for i in members]
        flops = -space.candidates[members[0]].inference_flops(tokens) / widths[0]
        for number, price in eliminate(weight, covariance, gradient, widths):
            prices[members[number]] = max(price, 0.0) / flops
    return prices


@torch.no_grad()
def pruning_saliency(model: nn.Module, space: Space, bases: Bases) -> dict[int, float]:
    """What pruning each band of a masked matrix costs (Optimal Brain Damage, the Fisher diagonal factored).

    Args:
        model: The backbone.
        space: Only masks by saliency are priced.
        bases: Second moments at the masked linears, see ``spaces.calibration.statistics``.

    Returns:
        Index of the candidate -> rise of the loss per weight pruned, up to a factor that all share.
    """
    prices = {}
    for name, members in space.bands.items():
        kind = space.kinds[space.candidates[members[0]].kind]
        if not kind.aligns:
            continue
        position = space.position(name)
        weight = weight_at(position, base_of(model).get_submodule(position.module))
        gradients, inputs = bases[name, kind.name]
        losses = (weight.float() * torch.outer(gradients, inputs)).square().flatten().sort().values
        start = 0
        for i in members:
            count = space.candidates[i].pruned_weights
            prices[i] = float(losses[start : start + count].mean())
            start += count
    return prices


@torch.no_grad()
def eliminate(
    weight: Tensor, covariance: Tensor, gradient: Tensor, widths: Sequence[int]
) -> Iterator[tuple[int, float]]:
    """Cut the inputs of one linear group by group, the cheapest first, until none is left.

    Args:
        weight: (out, in).
        covariance: (in, in), of the inputs.
        gradient: (out, out), the second moment of the loss's gradient by the outputs.
        widths: Neighbouring features of each group.

    Yields:
        The group's number, and what cutting it costs per feature; never less than those before it.
    """
    # Not by Cholesky: moments of few tokens may be no covariance, by rounding.
    inverse = torch.linalg.inv(ridged(covariance)).float()
    w = weight.to(torch.float32, copy=True)  # changed in place
    gw = gradient.float() @ w
    left, price = list(range(len(widths))), -math.inf
    at_once = math.ceil(len(widths) * _AT_ONCE)
    while left:
        groups = _neighbours([widths[i] for i in left], w.device)
        costs = _costs(w, gw, inverse, groups)
        cheapest = sorted(range(len(left)), key=lambda k: costs[k])[:at_once]
        for k in cheapest:
            price = max(price, costs[k])
            yield left[k], price
        left = [i for k, i in enumerate(left) if k not in cheapest]
        gone = torch.cat([groups[k] for k in cheapest])
        stays = torch.ones(len(inverse), dtype=torch.bool, device=w.device)
        stays[gone] = False
        kept = stays.nonzero().flatten()
        rows = inverse[gone]
        slope = torch.linalg.solve(rows[:, gone], rows)
        w, gw, inverse = (  # in place, then without the columns that are zero now
            matrix.addmm_(columns, slope, alpha=-1).index_select(1, kept)
            for matrix, columns in ((w, w[:, gone]), (gw, gw[:, gone]), (inverse, rows.T))
        )
        inverse = inverse.index_select(0, kept)


def _neighbours(widths: Sequence[int], device: torch.device) -> list[Tensor]:
    """Features of groups that stand side by side."""
    return list(torch.split(torch.arange(sum(widths), device=device), list(widths)))


def _costs(w: Tensor, gw: Tensor, inverse: Tensor, groups: Sequence[Tensor]) -> list[float]:
    """What each group costs alone, per feature; groups of one width in one go."""
    costs = [0.0] * len(groups)
    for width in {len(group) for group in groups}:
        members = [k for k, group in enumerate(groups) if len(group) == width]
        at = torch.stack([groups[k] for k in members])
        conditional = torch.linalg.inv(inverse[at[:, :, None], at[:, None, :]])
        weights = torch.einsum("ogi,ogj->gij", w[:, at], gw[:, at])
        found = (conditional * weights).sum((1, 2)) / width
        for k, cost in zip(members, found.tolist(), strict=True):
            costs[k] = cost
    return costs


class OptimalBrainSurgeon(Strategy):
    """What cutting and pruning cost at the pretrained weights, by the Fisher matrix (Optimal Brain Surgeon)."""

    name: ClassVar[str] = "surgeon"

    def check(self, space: Space) -> list[str]:
        """Whatever is removed or masked has to be weighed on data."""
        operated = {c.kind for c in space.candidates if c.role != "attach"}
        if not all(space.kinds[name].aligns for name in operated):
            return [
                "the surgeon strategy needs what is cut or pruned to be weighed on data: set heads: "
                "{compensate: linear}, neurons: {compensate: linear}, weight_mask: {importance: saliency}"
            ]
        return []

    def aims(
        self, search: SearchConfig, budgets: Sequence[Budget], budget: Budget
    ) -> list[dict[str, int | float]]:
        """None: the budget does not change what a removal costs."""
        return []

    def rank(
        self, context: RankingContext, budget: Budget, seed: int, observe: Observer
    ) -> Ranking:
        """What cutting and pruning cost at the pretrained weights, by the Fisher matrix (Optimal Brain Surgeon).

        What is attached comes evenly.
        """
        space, model = context.space, context.model
        bases = context.start().bases
        prices = removal_saliency(model, space, bases, context.task.max_length)
        prices |= pruning_saliency(model, space, bases)
        scores = [-prices[i] if i in prices else s for i, s in enumerate(equal_shares(space))]
        return Ranking(tuple(scores), self.name, seed)
