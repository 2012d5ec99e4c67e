"""References without a budget: the head alone, and full fine-tuning."""

from __future__ import annotations

from typing import ClassVar

from sparsearch.config.registry import StrategyFamily
from sparsearch.search.strategies.base import Strategy

__all__ = ["Full", "Head"]


class Head(Strategy):
    """Trains the task's head alone."""

    name: ClassVar[str] = "head"
    family: ClassVar[StrategyFamily] = "reference"
    ranks: ClassVar[bool] = False


class Full(Head):
    """Trains every weight."""

    name: ClassVar[str] = "full"
    whole_model: ClassVar[bool] = True
