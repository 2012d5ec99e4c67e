"""Budgets: hard limits, resolved once against a backbone, kept in both forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparsearch.config.registry import LIMITS
from sparsearch.config.study import BudgetConfig

__all__ = ["Budget", "resolve", "resolve_all", "served_limits"]


@dataclass(frozen=True, init=False)
class Budget:
    """Limits that a structure never exceeds. The task head is counted apart.

    >>> budget = Budget(max_trainable_params=2271, text="0.01%")
    >>> budget.get("max_trainable_params"), budget.get("max_bytes")
    (2271, None)

    Args:
        text: The limits as the user wrote them ("0.01%").
        limits: Resolved values by name, see ``spaces.limits``; None is no limit.

    Attributes:
        limits: Names and values of the limits that are set, in the order of their table, however they were written.
        text: As the user wrote them.
    """

    limits: tuple[tuple[str, int | float], ...]
    text: str

    def __init__(self, *, text: str = "", **limits: float | None) -> None:
        order = dict.fromkeys((*LIMITS, *limits))  # one of a plug-in that is gone comes last
        given = tuple((n, v) for n in order if (v := limits.get(n)) is not None)
        object.__setattr__(self, "limits", given)
        object.__setattr__(self, "text", text)

    def get(self, name: str) -> int | float | None:
        """The value of a limit; None if it is not set."""
        return dict(self.limits).get(name)

    @property
    def takes_away(self) -> tuple[str, ...]:
        """The limits that only a search which had them has weighed: they are met by what is removed or masked."""
        return tuple(name for name, _ in self.limits if LIMITS.load(name).takes_away)

    def without(self, name: str) -> Budget:
        """The same budget, one limit aside."""
        return Budget(text=self.text, **{n: v for n, v in self.limits if n != name})

    def as_dict(self) -> dict[str, int | float | str]:
        """The limits that are set, and the user's text: the keywords that make it anew."""
        return {**dict(self.limits), "text": self.text}


def resolve_all(budgets: Sequence[BudgetConfig], backbone_params: int) -> tuple[Budget, ...]:
    """A study's budgets, resolved against its backbone.

    Equal limits are one budget, however they were written: the first one's text stays.

    >>> texts = ("3%", "3.0%", 30)
    >>> resolve_all([BudgetConfig(max_trainable_params=text) for text in texts], 1000)[0].text
    '3%'
    """
    first: dict[object, Budget] = {}
    for budget in (resolve(backbone_params, **b.model_dump()) for b in budgets):
        first.setdefault(budget.limits, budget)
    return tuple(first.values())


def served_limits(budgets: Sequence[Budget], *, every: bool) -> list[dict[str, int | float]]:
    """The limits that a search serves which draws budgets: of each one, or the two ends of their range.

    >>> served_limits([Budget(max_bytes=n) for n in (300, 100, 200)], every=False)
    [{'max_bytes': 100}, {'max_bytes': 300}]
    """
    limits = [dict(budget.limits) for budget in budgets]
    if every:
        return limits
    names = dict.fromkeys(name for of_one in limits for name in of_one)
    values = {name: [of_one[name] for of_one in limits if name in of_one] for name in names}
    return [{name: end(listed) for name, listed in values.items()} for end in (min, max)]


def resolve(backbone_params: int, **limits: Any) -> Budget:
    """Resolve limits, as a study file writes them, against a backbone.

    >>> resolve(22_713_216, max_trainable_params="0.01%").get("max_trainable_params")
    2271

    Args:
        backbone_params: Parameters of the backbone.
        limits: By name; None is no limit.

    Raises:
        ConfigError: If a limit is unknown or cannot be read.
    """
    written = {n: v for n in (*LIMITS, *limits) if (v := limits.get(n)) is not None}
    table = {name: LIMITS.load(name)() for name in written}
    values = {name: table[name].resolve(v, backbone_params) for name, v in written.items()}
    return Budget(text=", ".join(table[n].text(v) for n, v in written.items()), **values)
