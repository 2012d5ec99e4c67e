"""Costs that candidates change for each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from sparsearch.spaces.candidate import Candidate, make_candidate
from sparsearch.spaces.families.position import PRUNABLE, Position, find
from sparsearch.spaces.kinds import Kind
from sparsearch.spaces.space import Space

__all__ = [
    "linear_weights",
    "narrowed_positions",
    "overlaps",
    "recompute_costs",
    "merge_same_position",
]


def narrowed_positions(
    positions: Sequence[Position], candidates: Iterable[Candidate], *, trained: bool = False
) -> tuple[Position, ...]:
    """The positions of a backbone from which some candidates have been cut.

    Linears that feed a head or a neuron lose outputs, and the one that reads it inputs.

    Args:
        positions: Those of the whole backbone.
        candidates: Those that cut, among any others.
        trained: While units train under the cut: where something stands in for what is cut, they read it too.
    """
    narrower: Counter[tuple[str, int]] = Counter()
    shorter: Counter[str] = Counter()
    for candidate in candidates:
        if candidate.which:
            cut = find(positions, candidate.position)
            for feed in cut.feeds:
                narrower[feed.module, feed.start] += candidate.size * feed.rows // cut.units
            if not (trained and candidate.compensates):
                shorter[cut.module] += candidate.size * cut.in_features // cut.units
    return tuple(
        replace(
            p,
            in_features=p.in_features - shorter[p.module],
            out_features=p.out_features - narrower[p.module, p.start],
        )
        if p.role == "linear"
        else p
        for p in positions
    )


def linear_weights(positions: Iterable[Position]) -> int:
    """Weights of the linears and of experts: what can be pruned."""
    return sum(p.in_features * p.out_features for p in positions if p.role in PRUNABLE)


def overlaps(space: Space) -> Iterator[tuple[int, int, float, float]]:
    """(i, j, parameters and pruned weights that candidate i loses where j is cut), for all pairs that meet."""
    at: dict[str, list[int]] = {}
    for i, c in enumerate(space.candidates):
        at.setdefault(c.position, []).append(i)
    for name in dict.fromkeys(space.candidates[j].position for j in space.removals):
        cut = [j for j in at[name] if space.candidates[j].which]
        first = space.candidates[cut[0]]
        narrowed = narrowed_positions(space.positions, [first], trained=True)
        for old, new in zip(space.positions, narrowed, strict=True):
            for i in at.get(old.name, ()) if old != new else ():
                c = space.candidates[i]
                left = recompute_costs(c, space.kinds[c.kind], narrowed)
                lost = c.params - left.params, c.pruned_weights - left.pruned_weights
                for j in cut if any(lost) else ():
                    share = space.candidates[j].size / first.size
                    yield i, j, lost[0] * share, lost[1] * share


def recompute_costs(candidate: Candidate, kind: Kind, narrowed: Sequence[Position]) -> Candidate:
    """A whole candidate's costs on a backbone from which something was cut; what is cut costs what it did.

    It is stored whole: what no longer trains of it becomes frozen bytes.
    """
    if candidate.which:
        return candidate
    left = make_candidate(kind, find(narrowed, candidate.position), candidate.size)
    return replace(left, frozen_bytes=candidate.bytes - left.value_bytes)


def merge_same_position(space: Space, chosen: Iterable[Candidate]) -> list[Candidate]:
    """What candidates add up to: one for each position and kind, with its own costs."""
    parts: dict[tuple[str, str], list[Candidate]] = {}
    for c in chosen:
        parts.setdefault((c.position, c.kind), []).append(c)
    found = []
    for (position, kind), group in parts.items():
        which = tuple(sorted(i for c in group for i in c.which))
        size = sum(c.size for c in group)
        found.append(make_candidate(space.kinds[kind], space.position(position), size, which))
    return found
