"""What is known of a study before it runs, as a value that is shown elsewhere: nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparsearch.spaces.budget import Budget

__all__ = ["Feasibility", "PreflightSummary"]


@dataclass(frozen=True)
class Feasibility:
    """What a budget buys.

    Attributes:
        budget: The budget.
        fitting: Candidates that could be attached alone.
        most: The most that could be attached together, after what must be cut is.
    """

    budget: Budget
    fitting: int
    most: int


@dataclass(frozen=True)
class PreflightSummary:
    """What a study may choose from, and what each budget buys of it.

    Attributes:
        study: Its name.
        backbone_params: Parameters of the backbone.
        candidates: How many the space has.
        trainable_params: Of all of them together.
        smallest: The smallest candidate in words, empty where none could be attached.
        budgets: In order.
        unreached: What of the backbone no position reaches, and why, a place each.
        guessed: What was guessed of a family that is not in the table, empty for others.
    """

    study: str
    backbone_params: int
    candidates: int
    trainable_params: int
    smallest: str
    budgets: tuple[Feasibility, ...]
    unreached: tuple[str, ...] = ()
    guessed: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        budgets = [{**vars(row), "budget": row.budget.as_dict()} for row in self.budgets]
        return {**vars(self), "budgets": budgets, "unreached": list(self.unreached)}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> PreflightSummary:
        """What ``as_dict`` was made of."""
        budgets = (
            Feasibility(**{**row, "budget": Budget(**row["budget"])}) for row in facts["budgets"]
        )
        unreached = tuple(facts.get("unreached", ()))
        return cls(**{**facts, "budgets": tuple(budgets), "unreached": unreached})
