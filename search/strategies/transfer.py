"""Transfer: selects by a ranking that another study made."""

from __future__ import annotations

from typing import ClassVar

from sparsearch.config.registry import StrategyFamily
from sparsearch.config.search import SearchConfig
from sparsearch.search.strategies.base import Strategy

__all__ = ["Transfer"]


class Transfer(Strategy):
    """Selects by the ranking that its trial names; it makes none."""

    name: ClassVar[str] = "transfer"
    family: ClassVar[StrategyFamily] = "transfer"
    ranks: ClassVar[bool] = False

    def selection_rule(self, search: SearchConfig) -> str:
        """As the study says: the ranking is one of a search."""
        return search.cut
