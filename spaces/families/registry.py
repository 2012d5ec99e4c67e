"""Families that are known: those that ship, and those of the entry point group ``sparsearch.families``."""

from __future__ import annotations

from collections.abc import Mapping

from sparsearch.config import registry
from sparsearch.spaces.families.family import Family

__all__ = ["FAMILIES", "family_of"]

FAMILIES: Mapping[str, Family] = registry.FAMILIES
"""By ``config.model_type``."""

_UNKNOWN = Family(
    stacks=(), outside={}, tokens=frozenset({"decoder_start_token_id", "pad_token_id"})
)
"""What is assumed of a family that is not in the table: any special token may change what it computes."""


def family_of(model_type: str) -> Family:
    """What is declared of a family; of one that is not in the table, as little as possible is assumed."""
    return FAMILIES.get(model_type, _UNKNOWN)
