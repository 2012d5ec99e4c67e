"""What a user may write about budgets: limits, ranges of them, and their combinations."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, model_validator

from sparsearch.config.fields import Positive, Section
from sparsearch.config.outer import points_of

__all__ = ["SHARE", "BudgetConfig", "each_once", "spread_budgets"]

SHARE = re.compile(r"^\s*(\d+(?:\.\d*)?|\.\d+)\s*%\s*$")
"""A percentage: digits, perhaps a point, and the sign."""


def _share(value: Any) -> float | None:
    """The number before the sign of a percentage."""
    match = SHARE.match(value) if isinstance(value, str) else None
    return float(match[1]) if match else None


def _limit(value: Any) -> Any:
    """A limit: a whole number above 0, or a percentage above 0% and up to 100%."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 1e4
    share = _share(value)
    if isinstance(value, str) and "%" in value and not 0 < (share or 0) <= 100:
        raise ValueError(f"{value!r} is no share: write a percentage above 0% and up to 100%")
    whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
    if value is not None and share is None and not whole:
        raise ValueError(
            f"{value!r} is no limit: write a whole number above 0, or like '0.01%', or a range of "
            "either, {from: '0.01%', to: '1%', points: 3}"
        )
    return value


def _flops(value: Any) -> Any:
    """A FLOPs limit: a percentage of the dense backbone."""
    if value is not None and not _share(value):
        raise ValueError(f"{value!r} is no share of the dense backbone's FLOPs: write like '75%'")
    return value


def _sparsity(value: Any) -> Any:
    """A limit on sparsity: a percentage of the backbone's weights, not all of them."""
    if value is not None and not 0 < (_share(value) or 0) < 100:
        raise ValueError(
            f"{value!r} is no share of the backbone's weights: write a percentage above 0% and below 100%"
        )
    return value


class BudgetConfig(Section):
    """One budget; several limits hold together."""

    max_trainable_params: Annotated[int | str | None, BeforeValidator(_limit)] = None
    max_bytes: Positive | None = None
    max_inference_flops: Annotated[str | None, BeforeValidator(_flops)] = None
    min_weight_sparsity: Annotated[str | None, BeforeValidator(_sparsity)] = None

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
