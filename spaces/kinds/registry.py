"""Kinds that are known, and making one from its options."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from sparsearch.config import registry
from sparsearch.errors import ConfigError
from sparsearch.spaces.kinds.base import Kind
from sparsearch.spaces.kinds.options import check_options
from sparsearch.spaces.kinds.precision import in_bits, split_bits

__all__ = ["KINDS", "make_kind", "stored_kind"]

KINDS: Mapping[str, type[Kind]] = registry.KINDS
"""By name: those that ship, then those of the entry point group ``sparsearch.kinds``."""


def make_kind(name: str, options: Mapping[str, object]) -> Kind:
    """A kind with its options.

    >>> make_kind("lora", {"max_rank": 2, "alpha": 16})
    Lora(max_rank=2, alpha=16.0)
    >>> make_kind("lora@4", {}).bits
    4

    Raises:
        ConfigError: If the kind is unknown or cannot have so many bits, or an option is unknown or wrong.
    """
    base, bits = split_bits(name)
    if base not in KINDS or name not in (base, f"{base}@{bits}"):
        near = difflib.get_close_matches(base, KINDS, n=1)
        raise ConfigError(
            [f"unknown kind {name!r}; known: {', '.join(KINDS)}"],
            f"did you mean {near[0]}?" if near else "",
        )
    kind = in_bits(KINDS[base], bits)  # type: ignore[arg-type]  # classes are hashable
    try:
        checked = check_options(kind, options)
    except ValueError as error:
        raise ConfigError([str(problem) for problem in error.args]) from error
    return kind(**checked)


def stored_kind(name: str, options: Mapping[str, object]) -> Kind:
    """A kind with the options that a structure file lists; one that it lacks means what it did when it was written.

    Raises:
        ConfigError: As ``make_kind`` does.
    """
    base, _ = split_bits(name)
    earlier = KINDS[base].earlier if base in KINDS else {}
    return make_kind(name, {**earlier, **options})
