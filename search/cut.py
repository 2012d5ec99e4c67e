"""The cut: from a ranking to a set of candidates that fits a budget."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from sparsearch.errors import InfeasibleError
from sparsearch.search.masking import bands_to_prune
from sparsearch.spaces.backbone import dense_flops_per_token
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.kinds import Removal
from sparsearch.spaces.ranking import Ranking
from sparsearch.spaces.space import Candidate, Space, narrow, recount, together

__all__ = ["Limits", "cut", "kept", "smallest"]


class Limits:
    """A budget as integer caps on what candidates add up to.

    Args:
        space: For the dense FLOPs that a FLOPs share refers to.
        budget: The limits.
        tokens: Sequence length at which FLOPs are counted.
    """

    def __init__(self, space: Space, budget: Budget, tokens: int = 128) -> None:
        self.tokens = tokens
        self.params = budget.max_trainable_params
        self.bytes = budget.max_bytes
        self.flops: int | None = None
        if budget.max_inference_flops is not None:
            dense = dense_flops_per_token(space.positions, tokens)
            share = Fraction(str(budget.max_inference_flops))  # as the user wrote it
            self.flops = math.floor((share - 1) * dense)

    def fits(self, candidates: Sequence[Candidate]) -> bool:
        """Whether the candidates together stay within every cap."""
        return self.fit(
            sum(c.params for c in candidates),
            sum(c.bytes for c in candidates),
            sum(c.inference_flops(self.tokens) for c in candidates),
        )

    def fit(self, params: int, size: int, flops: int) -> bool:
        """Whether these totals stay within every cap."""
        caps = ((params, self.params), (size, self.bytes), (flops, self.flops))
        return all(cap is None or value <= cap for value, cap in caps)

    def fill(self, candidates: Sequence[Candidate], given: Sequence[Candidate] = ()) -> list[int]:
        """Indices of what is kept when each candidate in turn is taken if it still fits beside what is given."""
        params, size = sum(c.params for c in given), sum(c.bytes for c in given)
        flops = sum(c.inference_flops(self.tokens) for c in given)
        kept = []
        for i, c in enumerate(candidates):
            total = (params + c.params, size + c.bytes, flops + c.inference_flops(self.tokens))
            if self.fit(*total):
                params, size, flops = total
                kept.append(i)
        return kept


def smallest(space: Space) -> Candidate:
    """What can be attached with the fewest parameters."""
    return min((c for c in space.candidates if not c.removes), key=lambda c: c.params)


def cut(
    space: Space, ranking: Ranking, budget: Budget, rule: str = "greedy", tokens: int = 128
) -> tuple[Candidate, ...]:
    """The candidates that a ranking buys with a budget, see ``kept``."""
    return tuple(space.candidates[i] for i in kept(space, ranking.scores, budget, rule, tokens))


def kept(
    space: Space,
    scores: Sequence[float],
    budget: Budget,
    rule: str = "greedy",
    tokens: int = 128,
) -> list[int]:
    """Walk down the ranking and keep what still fits (S3PET section 3.4); never above the budget.

    Args:
        space: The candidates that the ranking scores.
        scores: One per candidate.
        budget: The limits.
        rule: ``greedy`` walks by score; ``density`` by score above the lowest per parameter,
            which fills small budgets better; ``knapsack`` takes the set with the largest sum of
            scores above the lowest, exactly (for a limit on parameters alone).
        tokens: Sequence length at which FLOPs are counted.

    Returns:
        Their indices, in the space's order; ties go to the earlier one.

    Raises:
        InfeasibleError: If not even the smallest candidate fits (it names that one), or nothing is left to choose.
    """
    assert len(scores) == len(space.candidates), "the ranking belongs to another space"
    limits = Limits(space, budget, tokens)
    removed = _removed(space, scores, limits, rule, budget)
    cuts = together(space, [space.candidates[i] for i in removed])
    if limits.bytes is not None and sum(c.bytes for c in cuts) > limits.bytes:
        raise _stand_ins_too_large(budget, cuts)
    bands, masks = _masked(space, scores, limits, rule, budget, cuts)
    attaches = any(not c.removes for c in space.candidates)
    if not attaches and not removed and not bands:
        raise InfeasibleError(
            f"budget {budget.text}: this space only removes, and nothing has to go",
            "set max_inference_flops below 100%, or add kinds that attach something",
        )
    found = _attached(space, scores, limits, rule, [*cuts, *masks])
    if attaches and not found and not bands:
        raise infeasible(space, budget, tokens, cuts)
    return sorted(removed + bands + found)


def _masked(
    space: Space,
    scores: Sequence[float],
    limits: Limits,
    rule: str,
    budget: Budget,
    cuts: Sequence[Candidate],
) -> tuple[list[int], list[Candidate]]:
    """What is masked, see ``bands_to_prune``.

    Where bands lie in so many matrices that the matrices' scores exceed the budget, whole matrices go, those of the
    highest scores first; where even these are too many, those whose scores cost least.
    """
    means = {n: statistics.fmean(scores[i] for i in group) for n, group in space.bands.items()}
    by_matrix = [means[c.position] if c.masks else 0.0 for c in space.candidates]
    cheapest = [-float(c.params) for c in space.candidates]
    for order, by in ((scores, rule), (by_matrix, rule), (cheapest, "greedy")):
        bands, masks = bands_to_prune(space, order, budget, by, cuts)
        if limits.fits([*cuts, *masks]):
            return bands, masks
    raise _scores_too_large(budget, masks)


def _attached(
    space: Space, scores: Sequence[float], limits: Limits, rule: str, given: Sequence[Candidate]
) -> list[int]:
    """What is attached beside what is cut and masked, in the order of the ranking."""
    candidates = list(space.candidates)
    if any(c.which for c in given):
        narrowed = narrow(space.positions, given, trained=True)
        candidates = [recount(c, space.kinds[c.kind], narrowed) for c in candidates]
    offered = [i for i, c in enumerate(candidates) if not c.removes]
    if not offered:
        return []
    low = min(scores[i] for i in offered)
    value = [scores[i] - low for i in offered]
    if rule == "knapsack" and limits.params is not None:
        room = limits.params - sum(c.params for c in given)
        value = _knapsack(value, [candidates[i].params for i in offered], room)
    elif rule == "density":
        value = [v / max(1, candidates[i].params) for v, i in zip(value, offered, strict=True)]
    order = [offered[k] for k in sorted(range(len(value)), key=lambda k: -value[k])]
    return [order[k] for k in limits.fill([candidates[i] for i in order], given)]


def _flops_added(
    space: Space, scores: Sequence[float], budget: Budget, rule: str, tokens: int
) -> int:
    """FLOPs per token of what a ranking attaches where they have no limit; 0 for what can be merged."""
    if not any(c.inference_flops(tokens) > 0 for c in space.candidates):
        return 0
    found = _attached(space, scores, _without_flops(space, budget, tokens), rule, ())
    return sum(space.candidates[i].inference_flops(tokens) for i in found)


def _without_flops(space: Space, budget: Budget, tokens: int) -> Limits:
    return Limits(space, replace(budget, max_inference_flops=None), tokens)


def _removed(
    space: Space, scores: Sequence[float], limits: Limits, rule: str, budget: Budget
) -> list[int]:
    """What is cut to meet a limit on FLOPs: the highest scores, never the last head or 64 neurons of a layer.

    With ``density``, those whose loss (the highest score minus theirs) is smallest per FLOP saved.
    Cuts also make room for what is attached and cannot be merged, as far as they can. What turns out
    not to be needed stays.
    """
    if limits.flops is None or limits.flops >= 0:
        return []
    flops = {i: space.candidates[i].inference_flops(limits.tokens) for i in space.removals}
    high = max((scores[i] for i in flops), default=0.0)
    price = {i: (high - scores[i]) / (-f if rule == "density" else 1) for i, f in flops.items()}
    left: dict[str, int] = {}
    found, total = [], 0
    target = limits.flops - _flops_added(space, scores, budget, rule, limits.tokens)
    for i in sorted(flops, key=lambda i: price[i]):
        if total <= target:
            break
        c = space.candidates[i]
        kind, position = space.kinds[c.kind], space.position(c.position)
        assert isinstance(kind, Removal), "only removals name what they cut"
        stays = left.setdefault(c.position, position.units) - c.size
        if stays >= kind.least(position):
            left[c.position] = stays
            found.append(i)
            total += flops[i]
    if total > limits.flops:
        raise _not_that_few(space, budget, limits.tokens, total)
    for i in reversed(found[:-1]):
        if total - flops[i] <= target:
            found.remove(i)
            total -= flops[i]
    return sorted(found)


def _knapsack(value: Sequence[float], cost: Sequence[int], capacity: int) -> list[float]:
    """The exact 0-1 knapsack by dynamic programming: its items' values, raised above all others'.

    Costs are divided by what divides them all, so that the table stays small.
    """
    unit = math.gcd(*cost) or 1
    room = min(capacity, sum(cost)) // unit
    best = np.zeros(room + 1)
    taken = np.zeros((len(cost), room + 1), dtype=bool)
    for i, (v, c) in enumerate(zip(value, (c // unit for c in cost), strict=True)):
        if c <= room:
            better = best[: room + 1 - c] + v
            taken[i, c:] = better > best[c:]
            best[c:] = np.maximum(best[c:], better)
    chosen = set()
    for i in reversed(range(len(cost))):
        if taken[i, room]:
            chosen.add(i)
            room -= cost[i] // unit
    above = max(value) + 1.0
    return [v + above if i in chosen else v for i, v in enumerate(value)]


def infeasible(
    space: Space, budget: Budget, tokens: int = 128, cuts: Sequence[Candidate] = ()
) -> InfeasibleError:
    """The error of a budget under which nothing can be attached beside what is cut."""
    free = _without_flops(space, budget, tokens)
    fitting = [c for c in space.candidates if not c.removes and free.fits([*cuts, c])]
    limits = Limits(space, budget, tokens)
    if fitting and not any(limits.fits([*cuts, c]) for c in fitting):
        return _no_flops_left(space, budget, tokens, cuts, fitting)
    if budget.max_bytes is not None:
        stored = min(c.bytes for c in space.candidates if not c.removes)
        if stored > budget.max_bytes:
            return InfeasibleError(
                f"budget {budget.text} = {budget.max_bytes:,} bytes: the smallest candidate takes {stored:,}",
                f"allow at least {stored} bytes, or add smaller kinds to the space",
            )
    least = smallest(space)
    have = f" = {budget.max_trainable_params:,} parameters" if budget.max_trainable_params else ""
    share = 100 * least.params / space.backbone_params
    return InfeasibleError(
        f"budget {budget.text}{have} is too small for any candidate; the smallest is {least.kind} at "
        f"{least.position} with {least.params:,} parameters ({share:.4g}% of the backbone, {least.bytes:,} bytes)",
        f"allow at least {least.params} parameters, or add smaller kinds to the space",
        least_params=least.params,
    )


def _no_flops_left(
    space: Space,
    budget: Budget,
    tokens: int,
    cuts: Sequence[Candidate],
    fitting: Sequence[Candidate],
) -> InfeasibleError:
    """The error of a limit on FLOPs under which nothing can be attached that the other limits allow."""
    dense = dense_flops_per_token(space.positions, tokens)
    left = dense + sum(c.inference_flops(tokens) for c in cuts)
    least = min(fitting, key=lambda c: c.inference_flops(tokens))
    needed = (left + least.inference_flops(tokens)) / dense
    return InfeasibleError(
        f"budget {budget.text}: {left / dense:.4%} of the FLOPs are left after all cuts, and the least that can be "
        f"attached, {least.kind} at {least.position}, makes them {needed:.4%}",
        "allow more FLOPs, or add kinds that merge into the backbone (lora, bitfit) to the space",
        least_flops=needed,
    )


def _scores_too_large(budget: Budget, masks: Sequence[Candidate]) -> InfeasibleError:
    """The error of masks whose scores alone exceed a budget."""
    params, stored = sum(c.params for c in masks), sum(c.bytes for c in masks)
    return InfeasibleError(
        f"budget {budget.text}: masks of {len(masks)} matrices reach that sparsity, but their scores have {params:,} "
        f"trainable parameters and with the masks take {stored:,} bytes",
        f"allow at least {params} parameters, or lower weight_mask's rank",
    )


def _not_that_few(space: Space, budget: Budget, tokens: int, total: int) -> InfeasibleError:
    """The error of a limit on FLOPs that cutting everything but the guarded rest does not meet."""
    reached = 100 * (1 + total / dense_flops_per_token(space.positions, tokens))
    if not space.removals:
        return InfeasibleError(
            f"budget {budget.text}: nothing in this space removes FLOPs; the least it can reach is 100%",
            "leave max_inference_flops out, or add the kinds heads and neurons to the space",
        )
    return InfeasibleError(
        f"budget {budget.text}: one head and 64 neurons stay in each layer, so that the least it can reach "
        f"is {math.ceil(10 * reached) / 10:.1f}%",
        "allow more FLOPs",
        least_flops=reached / 100,
    )


def _stand_ins_too_large(budget: Budget, cuts: Sequence[Candidate]) -> InfeasibleError:
    """The error of what stands in for what is cut, where that alone exceeds a budget."""
    return InfeasibleError(
        f"budget {budget.text}: what stands in for what is cut takes {sum(c.bytes for c in cuts):,} bytes alone",
        "allow more bytes, or leave `compensate: linear` out",
    )
