"""Masks under a limit on weight sparsity: how much is left to prune, which bands go, and prices for the gates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from sparsearch.errors import InfeasibleError
from sparsearch.search.selection.caps import Caps
from sparsearch.spaces.candidate import Candidate, make_candidate
from sparsearch.spaces.costs import (
    linear_weights,
    merge_same_position,
    narrowed_positions,
    recompute_costs,
)
from sparsearch.spaces.space import Space

__all__ = [
    "bands_to_prune",
    "equal_shares",
    "without_scores",
]


def bands_to_prune(
    caps: Caps, scores: Sequence[float], rule: str, removed: Sequence[Candidate] = ()
) -> tuple[list[int], list[Candidate]]:
    """What is masked to meet a limit on sparsity: the bands of highest score, counted exactly, matrix by matrix.

    With ``density``, those whose loss (the highest score minus theirs) is smallest per weight. Scores say how many
    bands of a matrix go; those of its smallest weights do. What turns out not to be needed stays.

    Args:
        caps: The budget, for the space that scores are for.
        scores: One per candidate.
        rule: Of the cut.
        removed: The heads and neurons that are cut: their weights are gone.

    Returns:
        Indices of the bands, and for each matrix the mask that they add up to.

    Raises:
        InfeasibleError: If masking all that can be masked does not suffice; it names what it reaches.
    """
    space = caps.space
    narrowed = narrowed_positions(space.positions, removed)
    gone = linear_weights(space.positions) - linear_weights(narrowed)
    need = caps.weights_to_remove - gone
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
        raise _not_that_sparse(caps, gone + total)
    for name in reversed(order[:-1]):
        less = total - pruned(name, counts[name]) + pruned(name, counts[name] - 1)
        if less >= need:
            counts[name] -= 1
            total = less
    chosen = [i for name, count in counts.items() for i in space.bands[name][:count]]
    masks = merge_same_position(space, [space.candidates[i] for i in chosen])
    return chosen, [recompute_costs(c, space.kinds[c.kind], narrowed) for c in masks]


def _not_that_sparse(caps: Caps, total: int) -> InfeasibleError:
    """The error of a sparsity that masking everything does not reach."""
    space, budget = caps.space, caps.budget
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


def equal_shares(space: Space) -> tuple[float, ...]:
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
    kinds = {name: kind.untrained() for name, kind in space.kinds.items()}
    recounted = (
        make_candidate(kinds[c.kind], space.position(c.position), c.size, c.which)
        for c in space.candidates
    )
    return replace(space, candidates=tuple(recounted), kinds=kinds)
