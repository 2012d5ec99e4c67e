"""Selection: from scores to the candidates that fit a budget."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sparsearch.errors import InfeasibleError
from sparsearch.search.selection.caps import Caps
from sparsearch.search.selection.infeasible import (
    infeasible,
    not_that_few,
    reconstruction_too_large,
    scores_too_large,
)
from sparsearch.search.selection.masks import bands_to_prune
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.candidate import Candidate
from sparsearch.spaces.costs import merge_same_position, narrowed_positions, recompute_costs
from sparsearch.spaces.space import Space

__all__ = ["Selector"]


@dataclass(frozen=True)
class Selector:
    """Walks down a ranking and keeps what still fits (S3PET section 3.4); never above the budget.

    Attributes:
        space: The candidates that scores are for.
        budget: The limits.
        rule: ``greedy`` walks by score; ``density`` by score above the lowest per parameter,
            which fills small budgets better; ``knapsack`` takes the set with the largest sum of
            scores above the lowest, exactly (for a limit on parameters alone).
        tokens: Sequence length at which FLOPs are counted.
    """

    space: Space
    budget: Budget
    rule: str = "greedy"
    tokens: int = 128

    @cached_property
    def caps(self) -> Caps:
        """The budget as whole numbers."""
        return Caps(self.space, self.budget, self.tokens)

    def select(self, scores: Sequence[float]) -> tuple[Candidate, ...]:
        """The candidates that scores buy, see ``indices``."""
        return tuple(self.space.candidates[i] for i in self.indices(scores))

    def indices(self, scores: Sequence[float]) -> list[int]:
        """Which candidates scores buy: heads and neurons that go first, then masks, then what is attached.

        Args:
            scores: One per candidate.

        Returns:
            Their indices, in the space's order; ties go to the earlier one.

        Raises:
            InfeasibleError: If not even the smallest candidate fits (it names that one), or nothing is left to choose.
        """
        space, budget = self.space, self.budget
        assert len(scores) == len(space.candidates), "the ranking belongs to another space"
        removed = self._removed(scores)
        cuts = merge_same_position(space, [space.candidates[i] for i in removed])
        most_bytes = self.caps.get("max_bytes")
        if most_bytes is not None and sum(c.bytes for c in cuts) > most_bytes:
            raise reconstruction_too_large(budget, cuts)
        bands, masks = self._masked(scores, cuts)
        attaches = any(c.role == "attach" for c in space.candidates)
        if not attaches and not removed and not bands:
            raise InfeasibleError(
                f"budget {budget.text}: this space only removes, and nothing has to go",
                "set max_inference_flops below 100%, or add kinds that attach something",
            )
        found = self._attached(scores, self.caps, [*cuts, *masks])
        if attaches and not found and not bands:
            raise infeasible(self.caps, cuts)
        return sorted(removed + bands + found)

    def _masked(
        self, scores: Sequence[float], cuts: Sequence[Candidate]
    ) -> tuple[list[int], list[Candidate]]:
        """What is masked, see ``bands_to_prune``.

        Where bands lie in so many matrices that the matrices' scores exceed the budget, whole matrices go, those of the
        highest scores first; where even these are too many, those whose scores cost least.
        """
        space = self.space
        means = {n: statistics.fmean(scores[i] for i in group) for n, group in space.bands.items()}
        by_matrix = [means[c.position] if c.role == "mask" else 0.0 for c in space.candidates]
        cheapest = [-float(c.params) for c in space.candidates]
        for order, by in ((scores, self.rule), (by_matrix, self.rule), (cheapest, "greedy")):
            bands, masks = bands_to_prune(self.caps, order, by, cuts)
            if self.caps.fits([*cuts, *masks]):
                return bands, masks
        raise scores_too_large(self.budget, masks)

    def _attached(
        self, scores: Sequence[float], caps: Caps, given: Sequence[Candidate]
    ) -> list[int]:
        """What is attached beside what is cut and masked, in the order of the ranking."""
        space, rule = self.space, self.rule
        candidates = list(space.candidates)
        if any(c.which for c in given):
            narrowed = narrowed_positions(space.positions, given, trained=True)
            candidates = [recompute_costs(c, space.kinds[c.kind], narrowed) for c in candidates]
        offered = [i for i, c in enumerate(candidates) if c.role == "attach"]
        if not offered:
            return []
        low = min(scores[i] for i in offered)
        value = [scores[i] - low for i in offered]
        params = caps.get("max_trainable_params")
        if rule == "knapsack" and params is not None:
            room = params - sum(c.params for c in given)
            value = _knapsack(value, [candidates[i].params for i in offered], room)
        elif rule == "density":
            value = [v / max(1, candidates[i].params) for v, i in zip(value, offered, strict=True)]
        order = [offered[k] for k in sorted(range(len(value)), key=lambda k: -value[k])]
        return [order[k] for k in caps.fill([candidates[i] for i in order], given)]

    def _flops_added(self, scores: Sequence[float]) -> int:
        """FLOPs per token of what a ranking attaches where they have no limit; 0 for what can be merged."""
        space, tokens = self.space, self.tokens
        if not any(c.inference_flops(tokens) > 0 for c in space.candidates):
            return 0
        found = self._attached(scores, self.caps.without("max_inference_flops"), ())
        return sum(space.candidates[i].inference_flops(tokens) for i in found)

    def _removed(self, scores: Sequence[float]) -> list[int]:
        """What is cut to meet a limit on FLOPs: the highest scores, never the last head or 64 neurons of a layer.

        With ``density``, those whose loss (the highest score minus theirs) is smallest per FLOP saved.
        Cuts also make room for what is attached and cannot be merged, as far as they can. What turns out
        not to be needed stays.
        """
        space, most = self.space, self.caps.get("max_inference_flops")
        if most is None or most >= 0:
            return []
        flops = {i: space.candidates[i].inference_flops(self.tokens) for i in space.removals}
        high = max((scores[i] for i in flops), default=0.0)
        price = {
            i: (high - scores[i]) / (-f if self.rule == "density" else 1) for i, f in flops.items()
        }
        left: dict[str, int] = {}
        found, total = [], 0
        target = most - self._flops_added(scores)
        for i in sorted(flops, key=lambda i: price[i]):
            if total <= target:
                break
            c = space.candidates[i]
            kind, position = space.kinds[c.kind], space.position(c.position)
            stays = left.setdefault(c.position, position.units) - c.size
            if stays >= kind.least(position):
                left[c.position] = stays
                found.append(i)
                total += flops[i]
        if total > most:
            raise not_that_few(self.caps, total)
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
