"""Proposals: what an outer loop may turn, as points in a search space, and as trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sparsearch.config.outer import Choice, RangeConfig
from sparsearch.config.registry import LIMITS, STRATEGIES
from sparsearch.config.study import StudyConfig
from sparsearch.results.records import Outcome, Setting, TrialRecord
from sparsearch.search.training.seeds import derive
from sparsearch.spaces.budget import Budget, resolve

__all__ = ["Axis", "Params", "SearchSpace", "spent_of"]

Params: TypeAlias = Mapping[str, Choice]
"""A point: limits of the budget and tuned settings by name."""

STRATEGY = "search.strategy"


@dataclass(frozen=True)
class Axis:
    """A limit that lies between two ends, on a log scale; a share on a plain one."""

    name: str
    low: float
    high: float

    @property
    def log(self) -> bool:
        """Whether equal ratios are equally likely."""
        return not LIMITS.load(self.name).is_fraction

    def place(self, value: float) -> float:
        """Where a value lies between the ends, 0 to 1."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def at(self, place: float) -> float:
        """The value at a place from 0 to 1."""
        if self.log:
            return round(self.low * math.pow(self.high / self.low, place))
        return round(self.low + (self.high - self.low) * place, 4)


class SearchSpace:
    """The search space of an outer loop: between the study's budgets, and the settings that it tunes.

    Args:
        config: With ``outer``.
        budgets: The study's, resolved.
        backbone_params: To resolve others.
    """

    def __init__(
        self, config: StudyConfig, budgets: Sequence[Budget], backbone_params: int
    ) -> None:
        assert config.outer is not None, "there is an outer loop"
        self.config, self.backbone_params = config, backbone_params
        self.tune = config.outer.tune
        self.axes: list[Axis] = []
        self.fixed: dict[str, float] = {}
        for name in LIMITS:
            values = [v for b in budgets if (v := b.get(name)) is not None]
            if values and min(values) < max(values):
                self.axes.append(Axis(name, min(values), max(values)))
            elif values:
                self.fixed[name] = values[0]
        self._offset = derive(config.seeds[0], "budgets") / 2**63

    @property
    def most_epochs(self) -> int:
        """The longest training."""
        tuned = self.tune.get("train.epochs")
        if tuned is None:
            return self.config.train.epochs
        ends = tuned if isinstance(tuned, list) else [tuned.high]
        return max(int(end) for end in ends)

    def spread(self, index: int) -> dict[str, float]:
        """Limits that fill the range evenly as the index grows: the additive recurrence R_d.

        Martin Roberts, "The unreasonable effectiveness of quasirandom sequences" (2018).
        """
        d, root = len(self.axes), 2.0
        for _ in range(30):
            root = (1 + root) ** (1 / (d + 1))
        places = [(self._offset + (index + 1) / root ** (k + 1)) % 1 for k in range(d)]
        return {a.name: a.at(u) for a, u in zip(self.axes, places, strict=True)}

    def place(self, params: Params) -> tuple[float, ...]:
        """Where a point's budget lies in the unit cube of limits."""
        return tuple(axis.place(float(params[axis.name])) for axis in self.axes)

    def budget(self, params: Params) -> Budget:
        """The budget of a point."""
        limits: dict[str, Any] = self.fixed | {a.name: params[a.name] for a in self.axes}
        for name, value in limits.items():
            fraction = LIMITS.load(name).is_fraction
            limits[name] = f"{100 * value:.6g}%" if fraction else int(value)
        return resolve(self.backbone_params, **limits)

    def costs(self, place: Sequence[float], ended: Outcome | TrialRecord) -> tuple[float, ...]:
        """What a trial spent by each limit, 0 to 1 from strictest to loosest; the limit where nothing was counted.

        A structure may leave part of its budget unused: objectives are what it has, not what it was allowed.
        """
        feasible = ended.state == "ok"
        found = []
        for axis, u in zip(self.axes, place, strict=True):
            spent = spent_of(ended, axis.name) if feasible else None
            u = u if not spent else axis.place(float(spent))
            found.append(1 - u if axis.name.startswith("min_") else u)
        return tuple(found)

    def strategy(self, params: Params) -> str:
        """The strategy of a point."""
        return str(params.get(STRATEGY, self.config.search.strategy))

    def settings(self, params: Params) -> tuple[Setting, ...]:
        """The tuned settings of a point; the strategy is not among them."""
        return tuple((path, params[path]) for path in self.tune if path != STRATEGY)

    def params(
        self, strategy: str, budget: Mapping[str, Any] | None, settings: Mapping[str, Any]
    ) -> Params | None:
        """The point that a trial is, None if it lies outside the search space."""
        if budget is None or STRATEGIES.family(strategy) == "reference":
            return None
        found: dict[str, Choice] = {}
        for axis in self.axes:
            value = budget.get(axis.name)
            if value is None or not axis.low <= value <= axis.high:
                return None
            found[axis.name] = value
        if STRATEGY not in self.tune and strategy != self.config.search.strategy:
            return None
        for path, allowed in self.tune.items():
            value = strategy if path == STRATEGY else settings.get(path, self._default(path))
            if not _within(allowed, value):
                return None
            found[path] = value
        return found

    def _default(self, path: str) -> Any:
        place: Any = self.config
        for part in path.split("."):
            place = place.get(part) if isinstance(place, Mapping) else getattr(place, part)
        return place


def spent_of(ended: Outcome | TrialRecord, limit: str) -> float | None:
    """What a trial has of what a limit bounds from above; None where nothing was counted."""
    bound = LIMITS.load(limit)()
    spent: float | None = getattr(ended, bound.column) if bound.is_most and bound.column else None
    return spent


def _within(allowed: RangeConfig | list[Choice], value: Any) -> bool:
    if isinstance(allowed, list):
        return value in allowed
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    whole = isinstance(allowed.low, int) and isinstance(allowed.high, int)
    return allowed.low <= value <= allowed.high and (not whole or value == int(value))
