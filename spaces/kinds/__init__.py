"""Kinds: what can be attached at a position, and what it costs. One folder each, one line each in the registry.

In a kind's folder ``spec`` holds options and costs, ``module`` what it computes. No ``spec`` imports torch until it
builds a module: a stored structure is read without.
"""

from sparsearch.spaces.kinds.base import Kind, Stage
from sparsearch.spaces.kinds.registry import KINDS, make_kind, stored_kind

__all__ = ["KINDS", "Kind", "Stage", "make_kind", "stored_kind"]
