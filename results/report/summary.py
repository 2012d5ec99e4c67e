"""The summary of a study: per budget and strategy the mean and spread over seeds, and who wins."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, NamedTuple

from sparsearch.config.registry import HEAD_ALONE, STRATEGIES
from sparsearch.config.study import SearchConfig, TaskConfig
from sparsearch.config.tasks.types import TypeFacts, facts_of
from sparsearch.results.answers import ScoredTrial
from sparsearch.results.records import FINISHED, NOT_RUN, StudyRecord
from sparsearch.results.report.comparison import (
    ALONE,
    RACED,
    Comparison,
    compare,
    comparison_text,
    has_score,
)
from sparsearch.results.report.recommendation import in_the_race, not_run, recommend
from sparsearch.results.store.writing.growth import GROWING
from sparsearch.results.stored_size import is_swollen, swollen_text
from sparsearch.spaces.budget import resolve

__all__ = [
    "BudgetSummary",
    "Spread",
    "StrategySummary",
    "StudySummary",
    "budget_name",
    "spread",
    "summarise",
]

_PRICES = {"probe": ", and costs seconds", "search": ""}
"""What a rival costs, where it is not nothing."""


@dataclass(frozen=True)
class Spread:
    """A value over seeds.

    Attributes:
        mean: Arithmetic mean.
        std: Sample standard deviation; None where there is one value only.
        n: Number of seeds.
    """

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class StrategySummary:
    """What a strategy reached at one budget, over the seeds that succeeded.

    Attributes:
        strategy: Name of the strategy.
        validation: The study's metric on validation.
        test: The study's metric on test; None where it was not measured.
        trainable_params: Mean over the seeds; the head is not counted.
        stored_bytes: Likewise: what the task costs to keep.
        inference_flops_ratio: Likewise; 1.0 = dense.
        weight_sparsity: Likewise.
    """

    strategy: str
    validation: Spread
    test: Spread | None
    trainable_params: float
    stored_bytes: float
    inference_flops_ratio: float
    weight_sparsity: float


@dataclass(frozen=True)
class BudgetSummary:
    """What one budget bought.

    Attributes:
        budget: As the user set it.
        strategies: Best mean validation score first.
        best: The trial with the best validation score that has a structure.
        comparisons: The searched strategy against the best of each family of rivals.
        verdict: Whether the searched strategy beats the others; empty where none is searched.
        recommended: For each limit that counts what is paid, the cheapest strategy that is not beaten, in words.
        not_run: What a race left out, and why the recommendation stands without it, in words; empty where nothing was.
    """

    budget: Mapping[str, Any]
    strategies: tuple[StrategySummary, ...]
    best: ScoredTrial | None
    comparisons: tuple[Comparison, ...]
    verdict: str
    recommended: tuple[str, ...] = ()
    not_run: str = ""

    @property
    def name(self) -> str:
        """The budget in words."""
        return budget_name(self.budget)


@dataclass(frozen=True)
class StudySummary:
    """A study in figures.

    Attributes:
        study: Its name.
        metric: Name of the metric.
        searched: The strategy that the study searches with.
        budgets: In the study's order.
        references: Strategies without a budget: the head alone, and full fine-tuning.
        unsuccessful: Finished trials that are neither ok nor cancelled.
        front: With an outer loop, the trials that score more than all with as few parameters, fewest first.
        warnings: What makes the scores worth less than they look, as far as the database knows.
    """

    study: str
    metric: str
    searched: str
    budgets: tuple[BudgetSummary, ...]
    references: tuple[StrategySummary, ...]
    unsuccessful: tuple[ScoredTrial, ...]
    front: tuple[ScoredTrial, ...] = ()
    warnings: tuple[str, ...] = ()

    def findings(self, budget: BudgetSummary) -> tuple[str, ...]:
        """What a report says of a budget: a line for each family of rivals, the verdict, and what to use."""
        why = RACED if budget.not_run else ALONE
        lines = (comparison_text(c, self.searched, budget.name, why) for c in budget.comparisons)
        verdict = (*lines, budget.verdict) if budget.verdict else ()
        return (*verdict, *budget.recommended, *filter(None, [budget.not_run]))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def budget_name(budget: Mapping[str, Any] | None) -> str:
    """A stored budget in words; the user's own where there are any.

    >>> budget_name({"max_trainable_params": 2271, "text": "0.01%"})
    '0.01%'
    >>> budget_name({"max_trainable_params": 2271})
    'max_trainable_params 2271'
    """
    if budget is None:
        return "none"
    limits = (f"{limit} {value}" for limit, value in budget.items() if limit != "text")
    return str(budget.get("text") or ", ".join(limits))


def spread(values: Iterable[float]) -> Spread:
    """Mean and sample standard deviation of one value or more."""
    listed = list(values)
    std = statistics.stdev(listed) if len(listed) > 1 else None
    return Spread(statistics.fmean(listed), std, len(listed))


class _HeadAlone(NamedTuple):
    """Trials of the head alone, and the type of the task: a language model has no head to train."""

    trials: Sequence[ScoredTrial]
    facts: TypeFacts


def summarise(study: StudyRecord, trials: Sequence[ScoredTrial]) -> StudySummary:
    """Summarise a study, finished or not, from its trials.

    Args:
        study: As ``Store.find_study`` gives it.
        trials: All of its trials, as ``Store.trials`` gives them.
    """
    default = SearchConfig.model_fields["strategy"].default
    config = study.settings
    searched = str(config.get("search", {}).get("strategy", default))
    planned = _planned(study, searched) if "outer" in config else math.inf
    groups: dict[str, list[ScoredTrial]] = {}
    keys: dict[int, str] = {}  # many trials share one object
    for trial in trials:
        if trial.budget is None or trial.number >= planned:
            continue
        if (key := keys.get(id(trial.budget))) is None:
            key = keys[id(trial.budget)] = json.dumps(trial.budget, sort_keys=True)
        groups.setdefault(key, []).append(trial)
    heads = _HeadAlone(
        [t for t in trials if t.budget is None and t.strategy == HEAD_ALONE and has_score(t)],
        facts_of(config.get("task", {}).get("type", TaskConfig.model_fields["type"].default)),
    )
    budgets = tuple(_budget(group, searched, heads) for group in groups.values())
    return StudySummary(
        study=study.name,
        metric=study.metric,
        searched=searched,
        budgets=budgets,
        references=_strategies(t for t in trials if t.budget is None),
        unsuccessful=tuple(
            t
            for t in trials
            if t.state in FINISHED and t.state not in ("ok", "cancelled", *NOT_RUN)
        ),
        front=_front(trials) if "outer" in config else (),
        warnings=(*_same_files(config), *_swollen(budgets)),
    )


def _same_files(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Splits whose files have the same content."""
    if "splits" in config.get("task", {}).get("data", {}):
        return ()
    digests = config.get("data_sha256", {})
    return tuple(
        f"splits {one!r} and {other!r} are the same file"
        for one, other in combinations(digests, 2)
        if digests[one] == digests[other]
    )


def _swollen(budgets: Iterable[BudgetSummary]) -> Iterator[str]:
    """Budgets whose strategies store far more than they train."""
    for budget in budgets:
        rows = [r for r in budget.strategies if is_swollen(r.stored_bytes, r.trainable_params)]
        if rows:
            largest = max(rows, key=lambda row: row.stored_bytes)
            sizes = swollen_text(largest.stored_bytes, largest.trainable_params)
            yield f"at {budget.name} {', '.join(r.strategy for r in rows)} store far more than they train: {sizes}"


def _planned(study: StudyRecord, searched: str) -> int:
    """How many trials the study lists, which come first; an outer loop proposes the others, perhaps at its budgets."""
    config = study.settings
    strategies = {searched, *config.get("baselines", GROWING["baselines"])}
    references = sum(STRATEGIES.family(strategy) == "reference" for strategy in strategies)
    budgets = {resolve(study.backbone_params, **budget).limits for budget in config["budgets"]}
    seeds = config.get("seeds", GROWING["seeds"])
    return len(seeds) * (references + len(budgets) * (len(strategies) - references))


def _front(trials: Iterable[ScoredTrial]) -> tuple[ScoredTrial, ...]:
    """The trials with a structure that score more than all before them, by parameters."""
    front: list[ScoredTrial] = []
    ranked = [t for t in trials if has_score(t) and t.structure is not None]
    for t in sorted(ranked, key=lambda t: (t.trainable_params or 0, -(t.score or 0.0), t.number)):
        if not front or (t.score or 0.0) > (front[-1].score or 0.0):
            front.append(t)
    return tuple(front)


def _budget(trials: Sequence[ScoredTrial], searched: str, heads: _HeadAlone) -> BudgetSummary:
    """Summary of the trials of one budget."""
    budget = trials[0].budget or {}
    strategies = _strategies(trials, budget)
    structures = [t for t in trials if has_score(t) and t.structure is not None]
    best = min(
        structures,
        key=lambda t: (-(t.score or 0.0), *_paid(t, budget), t.number),
        default=None,
    )
    planned = any(t.strategy == searched for t in trials)
    rivals = compare(trials, searched, [row.strategy for row in strategies])
    left, out = in_the_race(trials, strategies), not_run(trials)
    if not planned:
        verdict = ""
    elif searched in {row.strategy for row in strategies} - {row.strategy for row in left}:
        verdict = f"{searched} is out of the race at {budget_name(budget)}: use {left[0].strategy}"
    else:
        alone = RACED if out else ALONE
        verdict = _verdict(strategies, rivals, searched, budget_name(budget), alone)
        verdict += _head_alone(trials, heads, searched)
    advice = tuple(recommend(trials, strategies, budget))
    return BudgetSummary(budget, strategies, best, rivals, verdict, advice, out)


def _strategies(
    trials: Iterable[ScoredTrial], budget: Mapping[str, Any] | None = None
) -> tuple[StrategySummary, ...]:
    """One row per strategy with a score, the best first; of equal ones that which costs less of the budget."""
    groups: dict[str, list[ScoredTrial]] = {}
    for trial in filter(has_score, trials):
        groups.setdefault(trial.strategy, []).append(trial)
    rows = []
    for strategy, group in groups.items():
        tests = [t.test_score for t in group if t.test_score is not None]
        rows.append(
            StrategySummary(
                strategy=strategy,
                validation=spread(t.score for t in group if t.score is not None),
                test=spread(tests) if tests else None,
                trainable_params=statistics.fmean(t.trainable_params or 0 for t in group),
                stored_bytes=statistics.fmean(t.stored_bytes or 0 for t in group),
                inference_flops_ratio=statistics.fmean(
                    1.0 if t.inference_flops_ratio is None else t.inference_flops_ratio
                    for t in group
                ),
                weight_sparsity=statistics.fmean(t.weight_sparsity for t in group),
            )
        )
    return tuple(sorted(rows, key=lambda row: (-row.validation.mean, *_paid(row, budget))))


def _paid(
    row: StrategySummary | ScoredTrial, budget: Mapping[str, Any] | None
) -> tuple[float, float]:
    """What a budget counts first: stored bytes or parameters."""
    params, stored = row.trainable_params or 0, row.stored_bytes or 0
    return (stored, params) if "max_bytes" in (budget or {}) else (params, stored)


def _verdict(
    strategies: Sequence[StrategySummary],
    comparisons: Sequence[Comparison],
    searched: str,
    budget: str,
    alone: str,
) -> str:
    """Whether the searched strategy earned its time at a budget, with the figures."""
    ours = next((s for s in strategies if s.strategy == searched), None)
    other = next((s for s in strategies if s.strategy != searched), None)
    if ours is None:
        return f"{searched} has no successful trial at {budget}"
    if other is None:
        return f"nothing to compare {searched} with at {budget}: no other strategy succeeded there"
    a, b = ours.validation, other.validation
    digits = _digits(a.mean, b.mean)
    mine, theirs = f"{a.mean:.{digits}f}", f"{b.mean:.{digits}f}"
    paired = next((c for c in comparisons if c.rival == other.strategy), None)
    evidence = _evidence(a, b, paired, alone)
    if a.mean <= b.mean and paired is not None and paired.is_better:
        return (
            f"{searched} beats {other.strategy}, the best other strategy, at {budget} by "
            f"{paired.difference:.4f} over the {paired.n} seeds that both have; means over all seeds, {a.n} and {b.n}, "
            f"are {mine} and {theirs}"
        )
    if a.mean <= b.mean:
        return (
            f"{searched} {mine} does not beat {other.strategy} {theirs} at {budget}: "
            f"use {other.strategy} ({evidence})"
        )
    return (
        f"{searched} {mine} beats {other.strategy} {theirs}, the best other strategy, "
        f"at {budget} by {a.mean - b.mean:.{digits}f} ({evidence}){_doubt(paired)}"
    )


def _head_alone(trials: Sequence[ScoredTrial], heads: _HeadAlone, searched: str) -> str:
    """That the head alone does as well, with no parameter of the budget; empty where it does not."""
    ours = [t.score for t in trials if t.strategy == searched and t.score is not None]
    alone = [t.score for t in heads.trials if t.score is not None]
    if not ours or not alone:
        return ""
    mean = statistics.fmean(alone)
    paired = next(iter(compare([*trials, *heads.trials], searched, [HEAD_ALONE])), None)
    what = "training the head alone" if heads.facts.has_head else "the model as it is"
    said = f"; {what} ({mean:.4f}, 0 parameters) is as good"
    if paired is not None and paired.is_better:
        return ""
    if mean >= statistics.fmean(ours):
        return said
    if paired is not None and paired.low is not None and paired.low <= 0:
        return f"{said} for all that these seeds show"
    return ""


def _digits(a: float, b: float) -> int:
    """Decimals that tell two scores apart, at least four."""
    return next((d for d in range(4, 8) if f"{a:.{d}f}" != f"{b:.{d}f}"), 4)


def _evidence(a: Spread, b: Spread, paired: Comparison | None, alone: str) -> str:
    """What a difference of means rests on."""
    counts = f"{a.n} seeds" if a.n == b.n else f"{a.n} and {b.n} seeds"
    if paired is None:
        return "no seed in common: add seeds"
    if paired.n > 1:
        return f"mean validation over {counts}"
    return alone if a.n == b.n == 1 else f"mean validation over {counts}; {alone}"


def _doubt(paired: Comparison | None) -> str:
    """Why a higher mean may be no better; empty where the interval lies above zero."""
    if paired is None or paired.low is None or paired.low > 0:
        return ""
    if paired.difference <= 0:
        return f"; over the {paired.n} seeds that both have it is no better: use {paired.rival}"
    price = _PRICES.get(STRATEGIES.family(paired.rival), ", and needs no search")
    return (
        f"; the interval includes zero: {paired.rival} is as good for all that these seeds "
        f"show{price}"
    )
