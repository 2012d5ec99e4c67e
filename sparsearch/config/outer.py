"""What a user may write about the outer loop: which settings it turns, by which sampler, for how many trials."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from sparsearch.config.fields import Section
from sparsearch.config.percentages import percent

__all__ = ["Choice", "OuterConfig", "RangeConfig", "points_of"]

Choice: TypeAlias = bool | int | float | str

FIXED = ("search.transfer_from", "train.precision", "train.backbone")
"""Settings that trials of one study share."""


class RangeConfig(Section):
    """Values from one end to the other; only whole ones where both ends are whole.

    Attributes:
        low: In a study file ``from``.
        high: In a study file ``to``.
        log: Whether equal ratios are equally likely, not equal differences.
    """

    low: int | float = Field(alias="from")
    high: int | float = Field(alias="to")
    log: bool = False

    @model_validator(mode="after")
    def _in_order(self) -> RangeConfig:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(
                f"from {self.low} to {self.high} is no range: from must be below to"
                + (", and above 0 on a log scale" if self.log else "")
            )
        return self


def _tuned(value: Any) -> Any:
    """A range or a list of choices; what else it may be is said once, not for each type that a choice may have."""
    if isinstance(value, list) and all(isinstance(v, bool | int | float | str) for v in value):
        return value
    if isinstance(value, Mapping | RangeConfig):
        return value
    raise ValueError(
        f"{value!r} is neither a range, {{from: 1, to: 9}}, nor a list of numbers, words, true or false"
    )


Tuned: TypeAlias = Annotated[
    Annotated[RangeConfig, Tag("range")] | Annotated[list[Choice], Tag("choices")],
    Discriminator(lambda value: "choices" if isinstance(value, list) else "range"),
    BeforeValidator(_tuned),
]


class OuterConfig(Section):
    """The outer loop: after the planned trials it proposes others, between the study's budgets.

    Attributes:
        sampler: ``gp`` (a Gaussian process) and ``tpe`` (for thousands of trials) spread the budgets evenly and
            maximise by how much a trial is better than others of about its budget. ``tpe-front``, ``gp-front``
            and ``nsga2`` maximise the score and minimise the costs, two objectives or more. ``random`` learns
            nothing.
        trials: How many it proposes. May be raised later: the study then goes on.
        tune: Settings of search and training that it turns, by dotted path: a range or a list of choices.
        early_stop: Whether trials that lag behind others of about their budget are cancelled after an epoch:
            by asynchronous successive halving, or by Hyperband.
        priors: Whether its first trials transfer the best rankings that the database has of other tasks.
    """

    sampler: Literal["tpe", "gp", "tpe-front", "gp-front", "nsga2", "random"] = "gp"
    trials: int = Field(default=40, gt=0)
    tune: dict[str, Tuned] = Field(default_factory=dict)
    early_stop: Literal["none", "asha", "hyperband"] = "none"
    priors: bool = True

    @model_validator(mode="after")
    def _choices(self) -> OuterConfig:
        for path, values in self.tune.items():
            if path in FIXED:
                raise ValueError(f"tune.{path}: all trials of a study share this setting")
            if isinstance(values, list) and (len(values) < 2 or len(set(values)) < len(values)):
                raise ValueError(
                    f"tune.{path}: {values} is no choice: name two values or more, each once"
                )
        return self


def points_of(value: Any) -> Any:
    """Limits on a log scale from one end to the other, for ``{from: "0.01%", to: "1%", points: 3}``.

    >>> points_of({"from": "0.01%", "to": "1%"})
    ['0.01%', '0.1%', '1%']
    >>> points_of({"from": 100, "to": 400, "points": 2})
    [100, 400]

    What is no such range is returned as it is.
    """
    if not isinstance(value, Mapping) or not {"from", "to"} <= set(value) <= {
        "from",
        "to",
        "points",
    }:
        return value
    low, high, count = value["from"], value["to"], value.get("points", 3)
    shares = [percent(end) for end in (low, high)]
    whole = all(type(end) is int and end > 0 for end in (low, high))
    a, b = (low, high) if whole else (shares[0] or 0.0, shares[1] or 0.0)
    if type(count) is not int or count < 2 or not 0 < a < b:
        return value
    inner = [
        math.exp(math.log(a) + math.log(b / a) * i / (count - 1)) for i in range(1, count - 1)
    ]
    between = [round(x) if whole else f"{Decimal(f'{x:.3g}'):f}%" for x in inner]
    return [low, *between, high]
