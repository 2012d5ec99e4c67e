"""How a stored study grows: further seeds, budgets and baselines add trials, and change none that there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from sparsearch.config.study import BudgetConfig, StudyConfig
from sparsearch.results.records import Trial, TrialRecord
from sparsearch.spaces.budget import Budget, resolve_all, served_limits

__all__ = ["GROWING", "TrialKey", "growing", "key_of", "range_problem", "trial_key", "united"]

GROWING = {
    "seeds": StudyConfig.model_fields["seeds"].get_default(),
    "budgets": [],
    "baselines": StudyConfig.model_fields["baselines"].get_default(),
}
"""Lists of a configuration that may differ from the stored one's, and what they hold where they are left out."""

TrialKey: TypeAlias = tuple[str, frozenset[tuple[str, Any]] | None, int]


def trial_key(strategy: str, budget: Mapping[str, Any] | None, seed: int) -> TrialKey:
    """What a planned trial is in its study, whatever its number is and however its budget was written."""
    limits = (
        None if budget is None else frozenset((k, v) for k, v in budget.items() if k != "text")
    )
    return strategy, limits, seed


def key_of(trial: Trial | TrialRecord) -> TrialKey:
    """The key of a trial."""
    budget = trial.budget.as_dict() if isinstance(trial.budget, Budget) else trial.budget
    return trial_key(trial.strategy, budget, trial.seed)


def growing(old: Mapping[str, Any], new: Mapping[str, Any]) -> Mapping[str, list[Any]]:
    """The lists that may grow: none of a study with an outer loop, whose proposals depend on all three."""
    return {} if "outer" in old or "outer" in new else GROWING


def united(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that lists what either of two does, the old one's first.

    >>> united({"seeds": [1, 0], "name": "a"}, {"seeds": [0, 2], "name": "a"})
    {'seeds': [1, 0, 2], 'name': 'a'}
    """
    lists = {}
    for name in GROWING:
        first, second = _list(old, name), _list(new, name)
        lists[name] = first + [value for value in second if value not in first]
    return {**old, **{name: values for name, values in lists.items() if values != GROWING[name]}}


def range_problem(old: Mapping[str, Any], new: Mapping[str, Any], backbone_params: int) -> str:
    """Why further budgets would change what searches of the old configuration were made for; empty if they do not.

    Only a search that draws budgets is made for all of them.
    """
    search = new.get("search", {})
    if search.get("budget_schedule") != "sampled":
        return ""
    every = bool(search.get("early_stop"))
    before, after = (
        served_limits(_resolved(config, backbone_params), every=every)
        for config in (old, united(old, new))
    )
    if before == after:
        return ""
    made_for = "each of its budgets (search.early_stop)" if every else "the range of its budgets"
    return (
        f"search.budget_schedule sampled made its rankings for {made_for}, {_shown(before)}; "
        f"with these budgets it would be {_shown(after)}"
    )


def _list(config: Mapping[str, Any], name: str) -> list[Any]:
    return list(config.get(name, GROWING[name]))


def _resolved(config: Mapping[str, Any], backbone_params: int) -> tuple[Budget, ...]:
    budgets = [BudgetConfig.model_validate(b) for b in _list(config, "budgets")]
    return resolve_all(budgets, backbone_params)


def _shown(served: Sequence[Mapping[str, Any]]) -> str:
    names = dict.fromkeys(name for limits in served for name in limits)
    return ", ".join(
        f"{name} {' to '.join(f'{limits[name]:,}' for limits in served if name in limits)}"
        for name in names
    )
