"""Kinds: what can be attached at a position, and what it costs. One file each, one line each in the registry.

What a kind computes is in the file of its name under ``units``. Nothing here imports torch until it builds a unit: a
stored structure is read without.
"""

from sparsearch.spaces.kinds.base import Kind, Stage
from sparsearch.spaces.kinds.registry import KINDS, make_kind
from sparsearch.spaces.kinds.removal import Removal
from sparsearch.spaces.kinds.weight_mask import WeightMask

__all__ = ["KINDS", "Kind", "Removal", "Stage", "WeightMask", "make_kind"]
