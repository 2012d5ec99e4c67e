"""Kinds: what can be attached at a position. One file each, one line each in the registry."""

from sparsearch.spaces.kinds.base import Kind, Stage, Unit
from sparsearch.spaces.kinds.registry import KINDS, make_kind

__all__ = ["KINDS", "Kind", "Stage", "Unit", "make_kind"]
