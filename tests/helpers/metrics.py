"""Metrics as a user would write them, to be named by import path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

calls: list[tuple[Sequence[Any], Sequence[Any]]] = []


def wrong(predictions: Sequence[Any], references: Sequence[Any]) -> int:
    """How many predictions are wrong; remembers what it was asked."""
    calls.append((predictions, references))
    return sum(p != r for p, r in zip(predictions, references, strict=True))


def undefined(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """No number."""
    return float("nan")


def broken(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """Fails."""
    raise KeyError("no such label")


word = "no function"
