"""Uniform patterns: one kind at fixed places, the largest that fits."""

from __future__ import annotations

import functools
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
from sparsearch.spaces.kinds.ia3.spec import IA3 as IA3Kind
from sparsearch.spaces.kinds.precision import kind_in_bits, split_bits
from sparsearch.spaces.ranking import Ranking
from sparsearch.spaces.space import Space

__all__ = [
    "Adapter",
    "BitFit",
    "IA3",
    "LNFit",
    "LoRA",
    "LoRAOnFeedForward",
    "LoRAOnQueryAndValue",
    "LoRAXS",
    "Spectral",
    "Uniform",
    "Vera",
    "largest_uniform",
    "uniform_levels",
]


class Uniform(Strategy):
    """One kind at fixed places, the largest that fits.

    Attributes:
        kind: Its name.
        on: Patterns of positions.
        bits: In which its values are stored; None for the first that the space offers.
    """

    family: ClassVar[StrategyFamily] = "uniform"
    ranks: ClassVar[bool] = False
    kind: ClassVar[str]
    on: ClassVar[tuple[str, ...]] = ("*",)
    bits: ClassVar[int | None] = None

    @classmethod
    @functools.cache
    def in_bits(cls, bits: int) -> type[Uniform]:
        """The same pattern with its values in so many bits, as ``lora-qv@4`` names it."""
        return type(f"{cls.__name__}{bits}", (cls,), {"name": f"{cls.name}@{bits}", "bits": bits})

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


class LoRAOnFeedForward(Uniform):
    """Low-rank updates of the feed-forward layers alone."""

    name, kind = "lora-mlp", "lora"
    on = ("*.ffn.*",)


class LoRAXS(Uniform):
    """A core of one rank at every linear (Bałazy et al., 2024)."""

    name, kind = "lora-xs", "lora_xs"


class Vera(Uniform):
    """Scalings at queries and values, as published (Kopiczko et al., 2024)."""

    name = kind = "vera"
    on = LoRAOnQueryAndValue.on


class IA3(Uniform):
    """Rescaled keys, values and inputs of the last feed-forward linears (Liu et al., 2022)."""

    name = kind = "ia3"
    on = IA3Kind.default_on


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
    """The largest uniform structure of a pattern that fits, and its kind: in its bits, or the space's first.

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
    kind = kind if pattern.bits is None else kind_in_bits(kind, pattern.bits)
    positions = [p for p in matching(space.positions, patterns) if kind.accepts(p)]
    largest: tuple[Candidate, ...] = ()
    for level in uniform_levels(kind, positions):
        if not caps.fits(level):
            break
        largest = level
    if not largest:
        units = tuple(make_candidate(kind, p, next(iter(kind.levels(p)))) for p in positions)
        own = Space(units, {kind.name: kind}, space.positions, space.backbone_params)
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
