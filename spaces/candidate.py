"""Candidates: what a structure may choose, and what each costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from sparsearch.spaces.families.position import Position
from sparsearch.spaces.kinds import Kind
from sparsearch.spaces.kinds.base import FULL_BITS, KindRole
from sparsearch.spaces.kinds.precision import split_bits

__all__ = [
    "BYTES_PER_PARAM",
    "Candidate",
    "count_bytes",
    "count_trainable",
    "make_candidate",
]

BYTES_PER_PARAM = FULL_BITS // 8


@dataclass(frozen=True)
class Candidate:
    """One thing that may be attached or cut at one position.

    Attributes:
        position: Canonical name.
        kind: Name of the kind.
        size: Rank, bottleneck width, heads or neurons; 1 for a kind that has no size.
        params: Trainable parameters.
        flops_per_token: FLOPs per token as attached.
        merged_flops_per_token: FLOPs per token that remain at inference after merging; negative for what is cut.
        frozen_bytes: Bytes of what is stored with it but not trained, also of what has no gradient beside a cut.
        flops_per_pair: The same per token and token of the sequence.
        which: Numbers of the heads or of the blocks of neurons that are cut; empty for what is attached.
        bits: In which each trained value is stored; those of several are packed.
        scales: Tensors whose values are rounded, and have a scale.
        pruned_weights: Weights of the backbone that it sets to zero; FLOPs count them all the same. Where heads or
            neurons are cut too, those of what is left of the matrix, as expected.
    """

    position: str
    kind: str
    size: int
    params: int
    flops_per_token: int
    merged_flops_per_token: int
    frozen_bytes: int = 0
    flops_per_pair: int = 0
    which: tuple[int, ...] = ()
    pruned_weights: int = 0
    bits: int = FULL_BITS
    scales: int = 0

    @property
    def role(self) -> KindRole:
        """What it does: ``attach`` a module, ``remove`` heads or neurons, or ``mask`` weights."""
        if self.which:
            return "remove"
        return "mask" if self.pruned_weights > 0 else "attach"

    @property
    def compensates(self) -> bool:
        """Whether something stored stands in for what it cuts."""
        return bool(self.which) and self.frozen_bytes > 0

    def inference_flops(self, tokens: int) -> int:
        """FLOPs per token after merging, in sequences of so many tokens."""
        return self.merged_flops_per_token + tokens * self.flops_per_pair

    @property
    def base_kind(self) -> str:
        """Name of the kind, whatever the bits of its values."""
        return split_bits(self.kind)[0]

    @property
    def value_bytes(self) -> int:
        """Stored size of the trained values, with their scales."""
        return -(-self.params * self.bits // 8) + BYTES_PER_PARAM * self.scales

    @property
    def bytes(self) -> int:
        """Stored size in bytes."""
        return self.value_bytes + self.frozen_bytes


def make_candidate(
    kind: Kind, position: Position, size: int, which: tuple[int, ...] = ()
) -> Candidate:
    """A candidate with its costs; FLOPs at an expert are those of an average token, rounded up."""
    flops = ceil(position.repeats * kind.flops_per_token(position, size))
    return Candidate(
        position.name,
        kind.name,
        size,
        kind.params(position, size),
        flops,
        0 if kind.mergeable else flops,
        kind.frozen_bytes(position, size),
        ceil(position.repeats * kind.flops_per_pair(position, size)),
        which,
        kind.pruned_weights(position, size),
        kind.bits,
        kind.tensors if kind.bits < FULL_BITS else 0,
    )


def count_trainable(candidates: Sequence[Candidate]) -> int:
    """Trainable parameters of candidates together: the scores of a masked matrix count once."""
    return sum(c.params for c in _once_a_mask(candidates))


def count_bytes(candidates: Sequence[Candidate]) -> int:
    """Stored bytes of candidates together: a masked matrix has one mask, however many of its bands are chosen."""
    return sum(c.bytes for c in _once_a_mask(candidates))


def _once_a_mask(candidates: Sequence[Candidate]) -> list[Candidate]:
    masks = {c.position: c for c in candidates if c.role == "mask"}
    return [*masks.values(), *(c for c in candidates if c.role != "mask")]
