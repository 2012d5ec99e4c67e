"""Uniform patterns: one kind at fixed places, the largest that fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

from sparsearch.config.registry import StrategyFamily
from sparsearch.config.study import SearchConfig
from sparsearch.errors import InfeasibleError
from sparsearch.search.selection.caps import Caps
from sparsearch.search.selection.infeasible import infeasible
from sparsearch.search.strategies.base import Strategy
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.candidate import Candidate, make_candidate
from sparsearch.spaces.families.position import Position, matching
from sparsearch.spaces.kinds import Kind, make_kind
from sparsearch.spaces.kinds.precision import split_bits
from sparsearch.spaces.ranking import Ranking
from sparsearch.spaces.space import Space

__all__ = [
    "Adapter",
    "BitFit",
    "LNFit",
    "LoRA",
    "LoRAOnQueryAndValue",
    "Spectral",
    "Uniform",
    "largest_uniform",
    "uniform_levels",
]


class Uniform(Strategy):
    """One kind at fixed places, the largest that fits.

    Attributes:
        kind: Its name.
        on: Patterns of positions.
    """

    family: ClassVar[StrategyFamily] = "uniform"
    ranks: ClassVar[bool] = False
    kind: ClassVar[str]
    on: ClassVar[tuple[str, ...]] = ("*",)

    def select(
        self,
        space: Space,
        ranking: Ranking | None,
        budget: Budget,
        search: SearchConfig,
        tokens: int,
    ) -> tuple[Space, tuple[Candidate, ...]]:
        """The largest structure of the pattern that fits, see ``largest_uniform``."""
        chosen, kind = largest_uniform(self, space, budget, tokens)
        return replace(space, kinds={**space.kinds, kind.name: kind}), chosen


class LoRA(Uniform):
    """Low-rank updates of every linear."""

    name = kind = "lora"


class LoRAOnQueryAndValue(Uniform):
    """Low-rank updates of queries and values, the usual place (Hu et al., 2022)."""

    name, kind = "lora-qv", "lora"
    on = ("*.attn.q", "*.attn.v", "*.cross.q", "*.cross.v")


class Spectral(Uniform):
    """Spectral updates of every linear."""

    name = kind = "spectral"


class BitFit(Uniform):
    """Every bias."""

    name = kind = "bitfit"


class LNFit(Uniform):
    """Every norm."""

    name = kind = "lnfit"


class Adapter(Uniform):
    """An adapter after every sub-layer."""

    name = kind = "adapter"
    on = ("*.attn", "*.cross", "*.ffn")


def largest_uniform(
    pattern: Uniform, space: Space, budget: Budget, tokens: int = 128
) -> tuple[tuple[Candidate, ...], Kind]:
    """The largest uniform structure of a pattern that fits, and its kind: in the first precision that a space offers.

    First the largest equal size on all positions; where size one does not fit on all, size one
    on as many of the top layers as fit; where not even one layer fits, on the top layer's first
    positions.

    Raises:
        InfeasibleError: If no position fits, naming the smallest unit of the pattern; or if the budget asks for
            sparsity or cuts, of which these patterns have none.
    """
    caps = Caps(space, budget, tokens)
    if caps.weights_to_remove:
        raise InfeasibleError(
            f"budget {budget.text}: {pattern.name} sets no weights to zero",
            "compare with `even` and `magnitude`",
        )
    flops = caps.get("max_inference_flops")
    if flops is not None and flops < 0:
        raise InfeasibleError(
            f"budget {budget.text}: {pattern.name} cuts nothing, so that all FLOPs of the backbone stay",
            "compare with `even` and `random`",
        )
    name, patterns = pattern.kind, pattern.on
    offered = (k for k in space.kinds.values() if split_bits(k.name)[0] == name)
    kind = next(offered, None) or make_kind(name, {})
    positions = [p for p in matching(space.positions, patterns) if kind.accepts(p)]
    largest: tuple[Candidate, ...] = ()
    for level in uniform_levels(kind, positions):
        if not caps.fits(level):
            break
        largest = level
    if not largest:
        units = tuple(make_candidate(kind, p, next(iter(kind.levels(p)))) for p in positions)
        own = Space(units, {name: kind}, space.positions, space.backbone_params)
        raise infeasible(Caps(own, budget, tokens))
    return largest, kind


def uniform_levels(kind: Kind, positions: Sequence[Position]) -> Iterator[tuple[Candidate, ...]]:
    """Uniform structures from the smallest to the largest."""
    layers: dict[str, list[Position]] = {}
    for position in positions:
        if position.layer is not None:
            stack = position.name.partition("layers.")[0]
            layers.setdefault(f"{stack}{position.layer}", []).append(position)
    from_top = list(layers.values())[::-1]
    top = from_top[0] if from_top else []
    least = {p: next(iter(kind.levels(p))) for p in positions}
    for count in range(1, len(top)):
        yield tuple(make_candidate(kind, p, least[p]) for p in top[:count])
    for count in range(1, len(from_top)):
        yield tuple(
            make_candidate(kind, p, least[p]) for layer in from_top[count - 1 :: -1] for p in layer
        )
    for size in sorted({size for p in positions for size in kind.levels(p)}):
        yield tuple(make_candidate(kind, p, min(size, kind.largest(p))) for p in positions)
