"""A plan whose strategies race: seed by seed, until those that will not be recommended get no more."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Literal, TypeAlias

from sparsearch.config.study import StudyConfig
from sparsearch.results.records import NOT_RUN, UNFINISHED, Outcome, Trial, TrialRecord
from sparsearch.results.report.recommendation import PAID
from sparsearch.results.store.writing.growth import TrialKey, key_of, trial_key
from sparsearch.search.strategies.registry import find_strategy
from sparsearch.workers.scheduling.race import Contest, Standing, standing
from sparsearch.workers.scheduling.scheduler import take

__all__ = ["RacedPlan", "Verdict", "is_raced", "wanted_again"]

Verdict: TypeAlias = Literal["run", "wait", "outraced", "decided"]

_NEAR = 3 * math.sqrt(2)
"""A reference this many standard deviations below all strategies says nothing that further seeds would change."""

_WHY = {
    "outraced": "further seeds would not make it what is recommended at this budget",
    "decided": "what is recommended does not depend on it any more",
}

_Score: TypeAlias = tuple[float, TrialRecord | Outcome]


def is_raced(config: StudyConfig) -> bool:
    """Whether a study's planned trials race; an outer loop learns from all of them."""
    return config.race and len(config.seeds) > 1 and config.outer is None


def wanted_again(config: StudyConfig, trials: Sequence[TrialRecord]) -> list[int]:
    """Numbers of trials that a race left out before, and that are asked for now.

    Args:
        config: As it is now: with more seeds, further strategies, or without a race.
        trials: Those of its plan, as they are stored.
    """
    out = [t for t in trials if t.state in NOT_RUN]
    if not out or not is_raced(config):
        return [t.number for t in out]
    table = _Table(config, trials)
    return [t.number for t in out if table.verdict(key_of(t)) not in NOT_RUN]


class RacedPlan:
    """Planned trials in order; a seed's begin when all that its look asks for have ended (``race.standing``).

    Nothing but scores decides, so a study that goes on leaves out what it left out before.

    Args:
        config: Of the study.
        trials: Those of its plan, as they are stored.
        queued: Those of them that are still to run.
        leave_out: Stores that a trial is not run.
        feared: Numbers of those that no look waits for, and that come last.
    """

    def __init__(
        self,
        config: StudyConfig,
        trials: Sequence[TrialRecord],
        queued: Sequence[Trial],
        leave_out: Callable[[Trial, Outcome], None],
        feared: Collection[int] = (),
    ) -> None:
        self._table = _Table(config, trials, feared)
        self._queued = sorted(queued, key=lambda trial: trial.number in feared)
        self._leave_out, self._is_settled = leave_out, False

    def ask(self, may_start: Callable[[Trial], bool]) -> Trial | None:
        """The first that may start, and that the race asks for by now."""
        if not self._is_settled:
            self._settle()
        return take(
            self._queued, lambda t: self._table.verdict(key_of(t)) == "run" and may_start(t)
        )

    def goes_on(self, trial: Trial, done: int, total: int, score: float) -> bool:
        """Always: a trial that has begun ends."""
        return True

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """Learn a score."""
        self._table.learn(key_of(trial), outcome.score("validation"), outcome)
        self._is_settled = False

    def _settle(self) -> None:
        """Leave out what the race does not ask for any more."""
        for trial in list(self._queued):
            verdict = self._table.verdict(key_of(trial))
            if verdict == "outraced" or verdict == "decided":
                self._queued.remove(trial)
                self._leave_out(trial, Outcome(verdict, _WHY[verdict]))
        self._is_settled = True


class _Table:
    """The scores of a plan's trials, and what the race makes of them."""

    def __init__(
        self, config: StudyConfig, trials: Sequence[TrialRecord], feared: Collection[int] = ()
    ) -> None:
        self._seeds = list(config.seeds)
        self._budgets: dict[object, list[str]] = {}
        self._limits: dict[object, list[str]] = {}
        self._known: dict[TrialKey, _Score] = {}
        self._after: dict[int, Standing] = {}
        for record in trials:
            strategy, limits, _ = key_of(record)
            if limits is not None and strategy not in self._budgets.setdefault(limits, []):
                self._budgets[limits].append(strategy)
                self._limits[limits] = [name for name in PAID if name in (record.budget or {})]
            if record.state not in (*UNFINISHED, *NOT_RUN):
                self.learn(key_of(record), record.score, record)
            elif record.number in feared:
                self.learn(key_of(record), None, record)

    def learn(self, key: TrialKey, score: float | None, ended: TrialRecord | Outcome) -> None:
        """Take a trial's score on validation; None if it has none."""
        self._known[key] = math.nan if score is None else score, ended
        self._after.clear()

    def verdict(self, key: TrialKey) -> Verdict:
        """Whether a trial that has not ended is to run."""
        strategy, limits, seed = key
        place = self._seeds.index(seed)
        if place == 0:
            return "run"
        if limits is None:
            return self._of_reference(strategy, place)
        now = self._standing(len(self._seeds) - 1)
        budget = list(self._budgets).index(limits)
        if strategy in now.running[budget]:
            return "run" if now.seeds >= place else "wait"
        return "decided" if now.answers[budget] == strategy else "outraced"

    def _of_reference(self, strategy: str, place: int) -> Verdict:
        """References are recommended nowhere: one seed says what they reach, unless the head alone comes near.

        A further seed is decided by its own look, whatever later ones find.
        """
        score, _ = self._known.get(trial_key(strategy, None, self._seeds[0]), (math.nan, None))
        bests = [max(map(_first, c.scores.values())) for c in self._contests()]
        for look in range(1, place + 1):
            now = self._standing(look)
            if now.seeds < look:
                return "wait"
            near = now.deviation is None or score > min(bests) - _NEAR * now.deviation
            if find_strategy(strategy).whole_model or not near or not any(now.running):
                return "decided"
        return "run"

    def _standing(self, looks: int) -> Standing:
        if looks not in self._after:
            self._after[looks] = standing(self._contests(), len(self._seeds), looks=looks)
        return self._after[looks]

    def _contests(self) -> list[Contest]:
        return [
            Contest(
                {s: self._scores(s, limits) for s in strategies},
                [
                    {s: self._cost(s, limits, PAID[limit]) for s in strategies}
                    for limit in self._limits[limits]
                ],
            )
            for limits, strategies in self._budgets.items()
        ]

    def _scores(self, strategy: str, limits: object) -> list[float]:
        """A strategy's scores, seed by seed, up to the first that is not known."""
        found = []
        for seed in self._seeds:
            known = self._known.get((strategy, limits, seed))  # type: ignore[arg-type]
            if known is None:
                break
            found.append(known[0])
        return found

    def _cost(self, strategy: str, limits: object, paid: str) -> float:
        """What a strategy pays, by the first seed that succeeded."""
        for seed in self._seeds:
            known = self._known.get((strategy, limits, seed))  # type: ignore[arg-type]
            if known is not None and not math.isnan(known[0]):
                return float(getattr(known[1], paid) or 0)
        return 0.0


def _first(scores: Sequence[float]) -> float:
    return scores[0] if scores and not math.isnan(scores[0]) else -math.inf
