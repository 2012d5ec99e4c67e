"""Kinds: what can be attached at a position. One file each, one line each in the registry."""

from sparsearch.spaces.kinds.base import Kind, LowRankUnit, Stage, Unit, add_low_rank
from sparsearch.spaces.kinds.registry import KINDS, make_kind
from sparsearch.spaces.kinds.spectral import leading_directions

__all__ = [
    "KINDS",
    "Kind",
    "LowRankUnit",
    "Stage",
    "Unit",
    "add_low_rank",
    "leading_directions",
    "make_kind",
]
