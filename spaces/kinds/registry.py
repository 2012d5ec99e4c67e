"""Kinds that are known, and making one from its options."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping

from sparsearch.config import registry
from sparsearch.errors import ConfigError
from sparsearch.spaces.kinds.base import Kind

__all__ = ["KINDS", "make_kind"]

KINDS: Mapping[str, type[Kind]] = registry.KINDS
"""By name: those that ship, then those of the entry point group ``sparsearch.kinds``."""


def make_kind(name: str, options: Mapping[str, object]) -> Kind:
    """A kind with its options; a whole number stands for a float, so that ``alpha: 16`` is ``alpha: 16.0``.

    Raises:
        ConfigError: If the kind or an option is unknown, or an option has the wrong type, is too small
            (not positive, or below the ``least`` that its field names) or is none of the words to choose from.
    """
    if name not in KINDS:
        near = difflib.get_close_matches(name, KINDS, n=1)
        raise ConfigError(
            [f"unknown kind {name!r}; known: {', '.join(KINDS)}"],
            f"did you mean {near[0]}?" if near else "",
        )
    choices = KINDS[name].choices
    fields = {f.name: f for f in dataclasses.fields(KINDS[name])}  # type: ignore[arg-type]
    problems = []
    for key, value in options.items():
        if key not in fields:
            problems.append(
                f"kind {name} has no option {key!r}; it has: {', '.join(fields) or 'none'}"
            )
            continue
        default = fields[key].default
        expected = (int, float) if isinstance(default, float) else type(default)
        if isinstance(value, bool) != isinstance(default, bool) or not isinstance(value, expected):
            problems.append(f"kind {name}: {key} must be {type(default).__name__}, not {value!r}")
        elif key in choices:
            if value not in choices[key]:
                known = ", ".join(choices[key])
                problems.append(f"kind {name}: {key} must be one of {known}, not {value!r}")
        elif isinstance(value, float) and not math.isfinite(value):
            problems.append(f"kind {name}: {key} must be finite, not {value!r}")
        elif not isinstance(default, bool | str):
            least = fields[key].metadata.get("least")
            if least is None and not value > 0:  # type: ignore[operator]
                problems.append(f"kind {name}: {key} must be positive, not {value!r}")
            elif least is not None and not value >= least:
                problems.append(f"kind {name}: {key} must be at least {least}, not {value!r}")
    if problems:
        raise ConfigError(problems)
    normal = {
        key: float(value) if isinstance(fields[key].default, float) else value  # type: ignore[arg-type]
        for key, value in options.items()
    }
    return KINDS[name](**normal)
