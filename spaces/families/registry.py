"""Families that are known: those that ship, and those of the entry point group ``sparsearch.families``."""

from __future__ import annotations

from collections.abc import Mapping

from sparsearch.config import registry
from sparsearch.spaces.families.family import Family

__all__ = ["FAMILIES"]

FAMILIES: Mapping[str, Family] = registry.FAMILIES
"""By ``config.model_type``."""
