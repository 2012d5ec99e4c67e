"""The outer loop over budgets and search settings, with Optuna's samplers and pruners.

The Optuna study lives in memory and is made anew for every proposal, from what is known of finished and running
trials; its sampler's seed derives from the study's seed and the trial's number. So a proposal depends on nothing that
our database does not hold, and a study that goes on proposes what an uninterrupted one would.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import (
    BaseSampler,
    GPSampler,
    NSGAIISampler,
    PartialFixedSampler,
    RandomSampler,
    TPESampler,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from sparsearch.config.registry import TRANSFER
from sparsearch.config.study import StudyConfig
from sparsearch.results.records import UNFINISHED, Outcome, Trial, TrialRecord
from sparsearch.search.training.seeds import derive
from sparsearch.spaces.budget import Budget
from sparsearch.workers.scheduling.budget_baseline import BudgetBaseline, nearest
from sparsearch.workers.scheduling.early_stopper import EarlyStopper
from sparsearch.workers.scheduling.scheduler import take
from sparsearch.workers.scheduling.search_space import Params, SearchSpace, spent_of
from sparsearch.workers.scheduling.transfer import FindSource, with_source

__all__ = [
    "OptunaScheduler",
]

optuna.logging.set_verbosity(optuna.logging.ERROR)


_STARTUP = 10


_POPULATION = 20


_LEAST_SHOWN, _MOST_SHOWN = 25, 500
"""A sampler is shown a third of the trials, those of the nearest budgets: the best settings move with the budget, and
it takes longer the more it sees."""


_SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed, n_startup_trials=_STARTUP, constant_liar=True),
    "gp": lambda seed: GPSampler(seed=seed, n_startup_trials=_STARTUP),
    "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=_POPULATION),
    "random": lambda seed: RandomSampler(seed=seed),
}


@dataclass(frozen=True)
class Result:
    """What a sampler learns of a finished trial.

    Attributes:
        params: The point that it is.
        place: Of its budget in the unit cube of limits.
        score: On validation, None where there is none.
        epochs: Validation scores that it gave before it was cancelled; 0 where it ran to its end.
        violation: How far beyond the limits it is, as a share; above 0 where it is not feasible, None where it failed
            and nobody knows its size.
        costs: What it spent by each limit that varies, as far as it was counted.
    """

    params: Params
    place: tuple[float, ...]
    score: float | None
    epochs: int
    violation: float | None
    costs: tuple[float, ...]


@dataclass(frozen=True)
class StudyState:
    """What is stored of a study when its driver begins.

    Attributes:
        planned: How many trials are planned; proposals are numbered from here.
        known: All trials as stored, in order.
        queued: Those of them that are still to run.
        feared: Numbers of those that come after everything else, proposals too.
    """

    planned: int
    known: Sequence[TrialRecord] = ()
    queued: Sequence[Trial] = ()
    feared: Collection[int] = ()


@dataclass(frozen=True)
class Priors:
    """Rankings of other tasks.

    Attributes:
        find: What may be transferred to a budget.
        budgets: Those that the first proposals transfer to.
    """

    find: FindSource
    budgets: Sequence[Budget] = ()


class OptunaScheduler:
    """Planned trials first, then proposals; whatever lies in the search space teaches the sampler.

    Args:
        config: With ``outer``.
        proposals: Its search space.
        state: What is stored of the study.
        remember: Stores a proposal.
        priors: What may be transferred, and to which budgets.
    """

    def __init__(
        self,
        config: StudyConfig,
        proposals: SearchSpace,
        state: StudyState,
        remember: Callable[[Trial], None],
        priors: Priors,
    ) -> None:
        assert config.outer is not None, "there is an outer loop"
        self.config, self.outer, self.proposals = config, config.outer, proposals
        self._planned, self._next = state.planned, len(state.known)
        self._end = state.planned + self.outer.trials
        self._queued = [t for t in state.queued if t.number not in state.feared]
        self._feared = [t for t in state.queued if t.number in state.feared]
        self._remember, self._find = remember, priors.find
        self._priors = list(priors.budgets)
        self._distributions = _distributions(proposals)
        self._evenly = self.outer.sampler in ("tpe", "gp")
        self._results: list[Result] = []
        self._final, self._race = BudgetBaseline(), EarlyStopper(self.outer.early_stop, proposals)
        self._running: dict[int, Params] = {}
        for record in state.known:
            if record.state not in UNFINISHED:
                self._learn(record)

    def ask(self, may_start: Callable[[Trial], bool]) -> Trial | None:
        """A queued trial that may start, else a new proposal.

        While some wait for a ranking that is being made, one is proposed ahead per seed of the study.
        """
        trial = take(self._queued, may_start)
        while trial is None and self._next < self._end:
            ahead = sum(t.number >= self._planned for t in self._queued)
            if ahead >= len(self.config.seeds):
                return None
            proposal = self._propose()
            self._remember(proposal)
            if may_start(proposal):
                trial = proposal
            else:
                self._queued.append(proposal)
        if trial is None and not self._queued:
            trial = take(self._feared, may_start)
        if trial is not None and (params := self._params(trial)) is not None:
            self._running[trial.number] = params
        return trial

    def goes_on(self, trial: Trial, done: int, total: int, score: float) -> bool:
        """Whether a proposal keeps up with others of about its budget; planned trials always go on.

        One whose score is NaN or infinite is behind all others. Optuna's pruners would let it go on.
        """
        params = self._params(trial)
        if params is None:
            return True
        if math.isfinite(score):
            keeps_up = self._race.keeps_up(trial.number, params, done, score)
        else:
            keeps_up = self.outer.early_stop == "none"
        return keeps_up or done >= total or trial.number < self._planned

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """Learn how a trial ended."""
        self._running.pop(trial.number, None)
        score = outcome.score("validation")
        if score is not None and not math.isfinite(score):
            score = None  # as it is stored: a correlation of constants is NaN
        self._note(self._params(trial), trial.budget, outcome, score)

    def _learn(self, record: TrialRecord) -> None:
        """Learn of a trial that ended before, as if it was told now."""
        budget = None if record.budget is None else Budget(**record.budget)
        params = self.proposals.params(record.strategy, record.budget, record.settings)
        if params is not None:
            for epoch, score in enumerate(record.history, 1):
                self._race.keeps_up(record.number, params, epoch, score)
        self._note(params, budget, record, record.score)

    def _note(
        self,
        params: Params | None,
        budget: Budget | None,
        ended: Outcome | TrialRecord,
        score: float | None,
    ) -> None:
        if params is None or budget is None:
            return
        place, epochs = self.proposals.place(params), 0
        if ended.state == "cancelled" and ended.history:
            score, epochs = ended.history[-1], len(ended.history)
        elif score is not None:
            self._final.add(place, score)
        costs, violation = self.proposals.costs(place, ended), _violation(ended, budget)
        self._results.append(Result(params, place, score, epochs, violation, costs))

    def _params(self, trial: Trial) -> Params | None:
        budget = None if trial.budget is None else trial.budget.as_dict()
        return self.proposals.params(trial.strategy, budget, dict(trial.settings))

    def _propose(self) -> Trial:
        number, index = self._next, self._next - self._planned
        seed = self.config.seeds[index % len(self.config.seeds)]
        self._next += 1
        if index < len(self._priors):
            return with_source(Trial(number, TRANSFER, self._priors[index], seed), self._find)
        params = self._suggest(number, index)
        strategy, budget = self.proposals.strategy(params), self.proposals.budget(params)
        trial = Trial(number, strategy, budget, seed, self.proposals.settings(params))
        return with_source(trial, self._find) if strategy == TRANSFER else trial

    def _suggest(self, number: int, index: int) -> Params:
        """Ask a sampler that knows what this loop knows."""
        seed = derive(self.config.seeds[0], number, "sampler") % 2**32
        sampler = _SAMPLERS[self.outer.sampler.removesuffix("-front")](seed)
        fixed = self.proposals.spread(index) if self._evenly else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if fixed:
                sampler = PartialFixedSampler(fixed, sampler)
            costs = [] if self._evenly else self.proposals.axes
            directions = [StudyDirection.MAXIMIZE, *(StudyDirection.MINIMIZE for _ in costs)]
            study = optuna.create_study(directions=directions, sampler=sampler)
            if self.outer.sampler != "random":
                study.add_trials(self._frozen(self.proposals.place(fixed) if fixed else None))
            return study.ask(self._distributions).params

    def _frozen(self, place: tuple[float, ...] | None) -> list[FrozenTrial]:
        """What is known as Optuna's trials: finished ones nearest to a budget, those that failed, those under way.

        Optuna takes a finished trial without a constraint for feasible, so what failed must not be a finished one.
        """
        results = [r for r in self._results if r.score is not None or r.violation]
        if place is not None:
            shown = min(max(_LEAST_SHOWN, len(results) // 3), _MOST_SHOWN)
            results = [results[i] for i in nearest([r.place for r in results], place, shown)]
        gains = self._gains(results)
        values = [[gain] for gain in gains]
        if not self._evenly and results:
            usual = (
                self._final.usual([r.place for r in results])
                if len(self._final)
                else [0.0] * len(gains)
            )
            values = [[u + g, *r.costs] for u, g, r in zip(usual, gains, results, strict=True)]
        violated = any(r.violation for r in results)
        generation = NSGAIISampler._get_generation_key()
        finished = [
            create_trial(
                params=dict(result.params),
                distributions=self._distributions,
                values=values[i],
                constraints={"limits": result.violation or 0.0} if violated else None,
                system_attrs={generation: i // _POPULATION},
            )
            for i, result in enumerate(results)
        ]
        failed = [r.params for r in self._results if r.violation is None]
        others = {TrialState.FAIL: failed, TrialState.RUNNING: list(self._running.values())}
        return finished + [
            create_trial(params=dict(params), distributions=self._distributions, state=state)
            for state, points in others.items()
            for params in points[-_MOST_SHOWN:]
        ]

    def _gains(self, results: Sequence[Result]) -> list[float]:
        """What each has above what is usual at its budget; the least of all where it has no score."""
        gains: list[float | None] = [None] * len(results)
        for epochs in {r.epochs for r in results}:
            band = self._race.bands[epochs - 1] if epochs else self._final
            chosen = [
                i for i, r in enumerate(results) if r.epochs == epochs and r.score is not None
            ]
            usual = band.usual([results[i].place for i in chosen]) if chosen else []
            for i, expected in zip(chosen, usual, strict=True):
                gains[i] = (results[i].score or 0.0) - expected
        least = min((g for g in gains if g is not None), default=0.0)
        return [least if gain is None else gain for gain in gains]


def _violation(ended: Outcome | TrialRecord, budget: Budget) -> float | None:
    """How far beyond the limits the least is that would do: 0 for what is feasible, None for what failed."""
    if ended.state in ("ok", "cancelled"):
        return 0.0
    if ended.state != "infeasible":
        return None
    beyond = 0.0
    for name, value in budget.limits:
        if spent := spent_of(ended, name):
            beyond = max(beyond, spent / value - 1)
    return beyond if beyond > 0 else 1.0


def _distributions(proposals: SearchSpace) -> dict[str, BaseDistribution]:
    """The search space in Optuna's words."""
    found: dict[str, BaseDistribution] = {}
    for axis in proposals.axes:
        if axis.log:
            found[axis.name] = IntDistribution(int(axis.low), int(axis.high), log=True)
        else:
            found[axis.name] = FloatDistribution(axis.low, axis.high)
    for path, allowed in proposals.tune.items():
        if isinstance(allowed, list):
            found[path] = CategoricalDistribution(allowed)
        elif isinstance(allowed.low, int) and isinstance(allowed.high, int):
            found[path] = IntDistribution(allowed.low, allowed.high, log=allowed.log)
        else:
            found[path] = FloatDistribution(allowed.low, allowed.high, log=allowed.log)
    return found
