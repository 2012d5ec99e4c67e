"""What a user may write about budgets: limits, ranges of them, and their combinations."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, create_model, model_validator

from sparsearch.config.fields import Section
from sparsearch.config.outer import points_of
from sparsearch.config.registry import LIMITS

__all__ = ["BudgetConfig", "each_once", "spread_budgets"]


def _read(name: str, value: Any) -> Any:
    return None if value is None else LIMITS.load(name)().read(value)


_FIELDS: dict[str, Any] = {
    name: (Annotated[Any, BeforeValidator(functools.partial(_read, name))], None)
    for name in LIMITS.names()
}


class BudgetConfig(create_model("_Limits", __base__=Section, **_FIELDS)):  # type: ignore[misc]
    """One budget; several limits hold together. It has a field for each of ``LIMITS``."""

    @model_validator(mode="after")
    def _limits_something(self) -> BudgetConfig:
        if not any(self.model_dump().values()):
            names = list(type(self).model_fields)
            raise ValueError(
                f"a budget limits nothing; give {', '.join(names[:-1])} or {names[-1]}"
            )
        return self


def spread_budgets(value: Any) -> Any:
    """``{limit: [a, b]}`` means one budget per combination; a bare value limits the parameters.

    ``{limit: {from: a, to: c}}`` means a, c and a point between them.
    """
    if isinstance(value, Mapping):
        points = {k: points_of(v) for k, v in value.items()}
        lists = {k: v if isinstance(v, list) else [v] for k, v in points.items()}
        return [dict(zip(lists, row, strict=True)) for row in itertools.product(*lists.values())]
    if isinstance(value, list):
        return [v if isinstance(v, Mapping) else {"max_trainable_params": v} for v in value]
    return value


def each_once(budgets: list[BudgetConfig]) -> list[BudgetConfig]:
    """A budget that an override made equal to another one counts once."""
    return list(dict.fromkeys(budgets))
