"""What to use at a budget: the cheapest strategy that no other one beats, by what the budget limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparsearch.results.answers import ScoredTrial
from sparsearch.results.records import NOT_RUN
from sparsearch.results.report.comparison import compare

if TYPE_CHECKING:
    from sparsearch.results.report.summary import StrategySummary

__all__ = ["PAID", "RACE_ERROR", "in_the_race", "not_run", "recommend"]

PAID = {"max_bytes": "stored_bytes", "max_trainable_params": "trainable_params"}
"""Limit of a budget -> what of a strategy's row it counts."""

RACE_ERROR = 0.05
"""Probability, over a whole study, that leaving trials out of a race changes a recommendation."""

_WORDS = {"stored_bytes": "stored bytes", "trainable_params": "trained parameters"}


def recommend(
    trials: Sequence[ScoredTrial], rows: Sequence[StrategySummary], budget: Mapping[str, Any]
) -> Iterator[str]:
    """A line for each limit of a budget that counts what is paid.

    A strategy is beaten where the best one by mean validation score is better over the seeds that both have, and the
    95% interval of that excludes zero; with one seed in common, or none, where its mean is lower. Where seeds differ,
    as where some failed, a best mean that another strategy so beats is passed over. What a race has left behind is out,
    and what it has decided for is recommended.

    Args:
        trials: Those of the budget.
        rows: Its strategies, the best mean validation score first.
        budget: As it was set.
    """
    if len(rows) < 2:
        return
    rows = in_the_race(trials, rows)
    best = next((row for row in rows if not _is_clearly_beaten(trials, rows, row)), rows[0])
    others = (row for row in rows if row is not best)
    unbeaten = [best, *(row for row in others if not _is_beaten(trials, best, row))]
    for limit, paid in PAID.items():
        if limit in budget:
            least = min(unbeaten, key=lambda row: (getattr(row, paid), -row.validation.mean))
            sizes = f"{getattr(least, paid):,.0f} {_WORDS[paid]}, validation {least.validation.mean:.4f}"
            line = f"cheapest that is not beaten: {least.strategy} ({sizes}"
            if least is not best:
                leads = "mean" if best is rows[0] else "over the seeds that both have"
                line += (
                    f"; the best {leads} is {best.strategy}'s, {best.validation.mean:.4f} for "
                    f"{getattr(best, paid):,.0f}"
                )
            yield f"{line})"


def in_the_race(
    trials: Sequence[ScoredTrial], rows: Sequence[StrategySummary]
) -> Sequence[StrategySummary]:
    """The strategies of a budget that a race has not left behind: the one it has decided for, if there is one."""
    states = {t.strategy: t.state for t in trials if t.state in NOT_RUN}
    decided = [row for row in rows if states.get(row.strategy) == "decided"]
    return decided or [row for row in rows if row.strategy not in states] or rows


def not_run(trials: Sequence[ScoredTrial]) -> str:
    """What a race left out at a budget, and why the recommendation stands without it; empty where nothing was."""
    out = [t for t in trials if t.state in NOT_RUN]
    if not out:
        return ""
    names = ", ".join(dict.fromkeys(t.strategy for t in out if t.state == "outraced"))
    decided = ", ".join(dict.fromkeys(t.strategy for t in out if t.state == "decided"))
    said = [f"{names}: further seeds would not make a difference"] if names else []
    said += [f"{decided}: recommended already"] if decided else []
    return (
        f"not run: {len(out)} of {len(trials)} trials ({'; '.join(said)}); over the whole study that changes a "
        f"recommendation with a probability of {RACE_ERROR:.0%} at most (run --exhaustive runs them)"
    )


def _is_clearly_beaten(
    trials: Sequence[ScoredTrial], rows: Sequence[StrategySummary], row: StrategySummary
) -> bool:
    others = [other.strategy for other in rows if other is not row]
    return any(
        paired.is_better for other in others for paired in compare(trials, other, [row.strategy])
    )


def _is_beaten(trials: Sequence[ScoredTrial], best: StrategySummary, row: StrategySummary) -> bool:
    paired = next(iter(compare(trials, best.strategy, [row.strategy])), None)
    if paired is None or paired.low is None:
        return row.validation.mean < best.validation.mean
    return paired.low > 0
