"""Kinds: what can be attached at a position. One file each, one line each in the registry."""

from sparsearch.spaces.kinds.base import (
    Basis,
    Fold,
    Kind,
    LowRankUnit,
    Stage,
    Unit,
    add_low_rank,
)
from sparsearch.spaces.kinds.registry import KINDS, make_kind
from sparsearch.spaces.kinds.removal import Removal, RemovalUnit
from sparsearch.spaces.kinds.weight_mask import WeightMask, WeightMaskUnit

__all__ = [
    "KINDS",
    "Basis",
    "Fold",
    "Kind",
    "LowRankUnit",
    "Removal",
    "RemovalUnit",
    "Stage",
    "Unit",
    "WeightMask",
    "WeightMaskUnit",
    "add_low_rank",
    "make_kind",
]
