"""Masks under a limit on weight sparsity: how much is left to prune, which bands go, and prices for the gates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from sparsearch.errors import InfeasibleError
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.kinds import WeightMask
from sparsearch.spaces.space import (
    Candidate,
    Space,
    linear_weights,
    make_candidate,
    narrow,
    overlaps,
    recount,
    together,
)

__all__ = [
    "MaskPrices",
    "bands_to_prune",
    "even",
    "mask_prices",
    "weights_to_remove",
    "without_scores",
]


def weights_to_remove(space: Space, budget: Budget) -> int:
    """Weights of linears that are zero or gone at the least; 0 where sparsity has no limit."""
    share = Fraction(budget.min_weight_sparsity or 0.0).limit_denominator(10**6)
    return math.ceil(share * linear_weights(space.positions))


def bands_to_prune(
    space: Space,
    scores: Sequence[float],
    budget: Budget,
    rule: str,
    removed: Sequence[Candidate] = (),
) -> tuple[list[int], list[Candidate]]:
    """What is masked to meet a limit on sparsity: the bands of highest score, counted exactly, matrix by matrix.

    With ``density``, those whose loss (the highest score minus theirs) is smallest per weight. Scores say how many
    bands of a matrix go; those of its smallest weights do. What turns out not to be needed stays.

    Args:
        space: The candidates that the scores are of.
        scores: One per candidate.
        budget: The limits.
        rule: Of the cut.
        removed: The heads and neurons that are cut: their weights are gone.

    Returns:
        Indices of the bands, and for each matrix the mask that they add up to.

    Raises:
        InfeasibleError: If masking all that can be masked does not suffice; it names what it reaches.
    """
    narrowed = narrow(space.positions, removed)
    gone = linear_weights(space.positions) - linear_weights(narrowed)
    need = weights_to_remove(space, budget) - gone
    if need <= 0:
        return [], []
    left = {p.name: p for p in narrowed}

    def mask(name: str, bands: int) -> Candidate:
        first = space.candidates[space.bands[name][0]]
        return make_candidate(space.kinds[first.kind], left[name], bands * first.size)

    def pruned(name: str, bands: int) -> int:
        return mask(name, bands).pruned_weights if bands else 0

    bands = [i for group in space.bands.values() for i in group]
    high = max((scores[i] for i in bands), default=0.0)
    weights = {i: space.candidates[i].pruned_weights for i in bands}
    price = {i: (high - scores[i]) / (weights[i] if rule == "density" else 1) for i in bands}
    counts, total, order = dict.fromkeys(space.bands, 0), 0, []
    for i in sorted(bands, key=lambda i: price[i]):
        if total >= need:
            break
        name = space.candidates[i].position
        total += pruned(name, counts[name] + 1) - pruned(name, counts[name])
        counts[name] += 1
        order.append(name)
    if total < need:
        raise _not_that_sparse(space, budget, gone + total)
    for name in reversed(order[:-1]):
        less = total - pruned(name, counts[name]) + pruned(name, counts[name] - 1)
        if less >= need:
            counts[name] -= 1
            total = less
    chosen = [i for name, count in counts.items() for i in space.bands[name][:count]]
    masks = together(space, [space.candidates[i] for i in chosen])
    return chosen, [recount(c, space.kinds[c.kind], narrowed) for c in masks]


def _not_that_sparse(space: Space, budget: Budget, total: int) -> InfeasibleError:
    """The error of a sparsity that masking everything does not reach."""
    reached = 100 * total / linear_weights(space.positions)
    if not space.bands:
        return InfeasibleError(
            f"budget {budget.text}: nothing in this space masks weights; the most it reaches is "
            f"{math.floor(10 * reached) / 10:.1f}%",
            "leave min_weight_sparsity out, or add the kind weight_mask to the space",
        )
    return InfeasibleError(
        f"budget {budget.text}: the most that this space reaches is {math.floor(10 * reached) / 10:.1f}%; the "
        "largest weights of each matrix stay",
        "ask for less sparsity, let weight_mask go to more positions, or give it more bands",
    )


def even(space: Space) -> tuple[float, ...]:
    """Scores that give every position the same share of its rank units, heads or bands (PST: one density for all)."""
    totals = Counter((c.position, c.kind) for c in space.candidates)
    seen: Counter[tuple[str, str]] = Counter()
    scores = []
    for c in space.candidates:
        key = c.position, c.kind
        scores.append(-seen[key] / totals[key])
        seen[key] += 1
    return tuple(scores)


def without_scores(space: Space) -> Space:
    """The space with masks by magnitude alone: nothing about them is trained."""
    kinds = {
        name: replace(kind, rank=0, structured=False, importance="magnitude")
        if isinstance(kind, WeightMask)
        else kind
        for name, kind in space.kinds.items()
    }
    recounted = (
        make_candidate(kinds[c.kind], space.position(c.position), c.size, c.which)
        for c in space.candidates
    )
    return replace(space, candidates=tuple(recounted), kinds=kinds)


@dataclass(frozen=True)
class MaskPrices:
    """What gates of bands prune and cost.

    Attributes:
        weights: (gates,) weights that a band prunes, 0 for all else.
        gone: (gates,) weights that are gone with a head or a block of neurons, 0 for all else.
        overlap: (gates, gates) sparse: weights that band i no longer has to prune where j is cut.
        bands: (bands,) the gates of bands.
        matrix: (bands,) number of each one's matrix.
        first: (matrices,) the gate of each one's first band.
    """

    weights: Tensor
    gone: Tensor
    overlap: Tensor
    bands: Tensor
    matrix: Tensor
    first: Tensor

    def left(self, cut: Tensor) -> Tensor:
        """Weights that each band prunes where cuts are made with such probability: (gates,)."""
        return (self.weights - self.overlap @ cut).clamp_min(0.0)

    def expected(self, p: Tensor, cut: Tensor) -> Tensor:
        """Weights that are zero or gone: masks with probability p, cuts with ``cut``, 0 for all else in either."""
        return (self.left(cut) * p).sum() + self.gone @ cut

    def paid_once(self, p: Tensor, cost: Tensor) -> Tensor:
        """Expected parameters of scores at gates p, (gates,): a matrix pays once if any of its bands goes.

        Args:
            p: (gates,) probabilities.
            cost: (gates,) parameters of each band's matrix.
        """
        untouched = p.new_ones(len(self.first))
        untouched = untouched.scatter_reduce(0, self.matrix, 1 - p[self.bands], "prod")
        return (cost[self.first] * (1 - untouched)).sum()


def mask_prices(space: Space, device: torch.device) -> MaskPrices | None:
    """Prices of a space's masks; None where it has none."""
    if not space.bands:
        return None
    n = len(space.candidates)
    dense = linear_weights(space.positions)
    gone = [
        dense - linear_weights(narrow(space.positions, [c])) if c.which else 0
        for c in space.candidates
    ]
    rows = torch.tensor([[i, j, w] for i, j, _, w in overlaps(space) if w], dtype=torch.float64)
    rows = rows.reshape(-1, 3)
    groups = list(space.bands.values())

    def column(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=device)

    def indices(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, device=device)

    return MaskPrices(
        weights=column([c.pruned_weights for c in space.candidates]),
        gone=column(gone),
        overlap=torch.sparse_coo_tensor(
            rows[:, :2].T.long(), rows[:, 2], (n, n), check_invariants=True
        ).to(device),
        bands=indices([i for group in groups for i in group]),
        matrix=indices([k for k, group in enumerate(groups) for _ in group]),
        first=indices([group[0] for group in groups]),
    )
