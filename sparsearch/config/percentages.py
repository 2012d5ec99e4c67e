"""Percentages as users write them: digits, perhaps a point, and the sign."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from sparsearch.errors import ConfigError

__all__ = ["parse_percentage", "percent"]

_PERCENTAGE = re.compile(r"^\s*(\d+(?:\.\d*)?|\.\d+)\s*%\s*$")


def parse_percentage(text: str) -> Fraction:
    """The exact fraction that a percentage names.

    >>> parse_percentage("0.01%")
    Fraction(1, 10000)

    Raises:
        ConfigError: If the text is no percentage.
    """
    match = _PERCENTAGE.match(text)
    if match is None:
        raise ConfigError([f"{text!r} is neither a whole number nor a percentage like '0.01%'"])
    return Fraction(match[1]) / 100


def percent(value: Any) -> float | None:
    """The number before the sign of a percentage; None for what is none.

    >>> percent("0.01%"), percent(0.01)
    (0.01, None)
    """
    match = _PERCENTAGE.match(value) if isinstance(value, str) else None
    return float(match[1]) if match else None
