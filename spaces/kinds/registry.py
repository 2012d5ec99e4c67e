"""Kinds that are known, and making one from its options."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from sparsearch.config import registry
from sparsearch.errors import ConfigError
from sparsearch.spaces.kinds.base import Kind
from sparsearch.spaces.kinds.options import check_options

__all__ = ["KINDS", "make_kind"]

KINDS: Mapping[str, type[Kind]] = registry.KINDS
"""By name: those that ship, then those of the entry point group ``sparsearch.kinds``."""


def make_kind(name: str, options: Mapping[str, object]) -> Kind:
    """A kind with its options.

    >>> make_kind("lora", {"max_rank": 2, "alpha": 16})
    Lora(max_rank=2, alpha=16.0)

    Raises:
        ConfigError: If the kind is unknown, or an option is unknown or wrong.
    """
    if name not in KINDS:
        near = difflib.get_close_matches(name, KINDS, n=1)
        raise ConfigError(
            [f"unknown kind {name!r}; known: {', '.join(KINDS)}"],
            f"did you mean {near[0]}?" if near else "",
        )
    kind = KINDS[name]
    try:
        checked = check_options(kind, options)
    except ValueError as error:
        raise ConfigError([str(problem) for problem in error.args]) from error
    return kind(**checked)
