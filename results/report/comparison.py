"""The searched strategy against its rivals, paired over seeds: by how much, and how sure that is."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from sparsearch.config.registry import STRATEGIES
from sparsearch.results.answers import ScoredTrial

__all__ = ["ALONE", "RACED", "Comparison", "compare", "comparison_text", "has_score", "t_interval"]

_FAMILIES = ("random", "uniform", "probe")
"""In the order of the report; a strategy of no family is one of its own and comes after."""

CONFIDENCE = 0.95

ALONE = "one seed decides nothing: add seeds"
RACED = "one seed, after which the race left the others out"
"""Why two strategies have one seed in common."""


@dataclass(frozen=True)
class Comparison:
    """The searched strategy minus a rival on validation, over the seeds that both have.

    Attributes:
        family: What the rival stands for: ``random``, ``uniform``, ``probe``.
        rival: The strategy itself; of a family of several the best by mean validation.
        difference: Mean of the paired differences; above zero where the searched one is better.
        low: Lower end of the 95% interval of that mean; None with one pair.
        high: Upper end of it; None with one pair.
        n: Pairs.
    """

    family: str
    rival: str
    difference: float
    low: float | None
    high: float | None
    n: int

    @property
    def is_better(self) -> bool:
        """Whether the searched strategy is clearly better over these seeds, whatever its mean over others."""
        return self.low is not None and self.low > 0


def has_score(trial: ScoredTrial) -> bool:
    """Whether a trial succeeded and counts."""
    return trial.state == "ok" and trial.score is not None


def compare(
    trials: Sequence[ScoredTrial], searched: str, ranked: Sequence[str]
) -> tuple[Comparison, ...]:
    """Compare the searched strategy with the best rival of each family that shares a seed with it.

    Scores are those on validation: the test split never chooses. Several trials of a strategy
    with one seed count as their mean.

    Args:
        trials: Those of one budget.
        searched: The strategy that the study searches with.
        ranked: Strategies, the best mean validation score first.
    """
    ours = _by_seed(trials, searched)
    found: dict[str, Comparison] = {}
    for rival in ranked:
        theirs = _by_seed(trials, rival)
        shared = sorted(ours.keys() & theirs.keys())
        if rival != searched and shared:
            grouped = STRATEGIES.family(rival)
            family = grouped if grouped in _FAMILIES else rival
            differences = [ours[seed] - theirs[seed] for seed in shared]
            found.setdefault(family, _comparison(family, rival, differences))
    order = {family: place for place, family in enumerate(_FAMILIES)}
    return tuple(sorted(found.values(), key=lambda c: order.get(c.family, len(order))))


def _by_seed(trials: Sequence[ScoredTrial], strategy: str) -> dict[int, float]:
    scores: dict[int, list[float]] = {}
    for trial in trials:
        if trial.strategy == strategy and has_score(trial) and trial.score is not None:
            scores.setdefault(trial.seed, []).append(trial.score)
    return {seed: statistics.fmean(values) for seed, values in scores.items()}


def _comparison(family: str, rival: str, differences: Sequence[float]) -> Comparison:
    low, high = t_interval(differences) if len(differences) > 1 else (None, None)
    mean = statistics.fmean(differences)
    return Comparison(family, rival, mean, low, high, len(differences))


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Student's t interval of the mean of two values or more.

    Not a bootstrap: with the three to five seeds that a study has, resampling sees only those few
    values, and its interval is far too narrow; t pays for not knowing the variance. Equal values
    have an interval of no width.

    >>> low, high = t_interval([0.01, 0.02, 0.03])
    >>> round(low, 4), round(high, 4)
    (-0.0048, 0.0448)
    """
    # Scipy takes half a second, and most of what imports results needs no interval.
    from scipy.special import stdtrit

    mean, freedom = statistics.fmean(values), len(values) - 1
    error = statistics.stdev(values) / len(values) ** 0.5
    reach = float(stdtrit(freedom, (1 + confidence) / 2)) * error
    return mean - reach, mean + reach


def comparison_text(found: Comparison, searched: str, budget: str, alone: str = ALONE) -> str:
    """One line of the report.

    >>> comparison_text(Comparison("uniform", "lora", 0.03, 0.01, 0.05, 3), "s3pet", "0.01%")
    's3pet against uniform (lora) at 0.01%: +0.0300 (95% interval +0.0100 to +0.0500, 3 seeds)'
    """
    rival = found.family if found.rival == found.family else f"{found.family} ({found.rival})"
    if found.low is None or found.high is None:
        sure = alone
    else:
        interval = f"{found.low:+z.4f} to {found.high:+z.4f}"
        sure = f"{CONFIDENCE:.0%} interval {interval}, {found.n} seeds"
    return f"{searched} against {rival} at {budget}: {found.difference:+z.4f} ({sure})"
