"""A runner without work: a virtual clock, workers of given speeds, failures by given rates, scores by a formula.

With it the driver, an outer loop and the store run through thousands of trials in seconds.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

from sparsearch.results.records import Measurement, Outcome, Trial
from sparsearch.search.training.seeds import derive
from sparsearch.workers.execution.events import (
    Ended,
    Event,
    Handler,
    Job,
    Lost,
    Progressed,
    Started,
)

__all__ = ["Course", "Failures", "SimulatedRunner", "SyntheticFront", "World"]


@dataclass(frozen=True)
class Course:
    """How a trial goes when nothing happens to it.

    Attributes:
        epoch_seconds: Of one epoch on a worker of speed 1.
        scores: Validation score after each epoch.
        outcome: At the end; its seconds are filled in.
    """

    epoch_seconds: float
    scores: tuple[float, ...]
    outcome: Outcome


class World(Protocol):
    """What trials find."""

    def course(self, trial: Trial) -> Course:
        """How this trial goes; equal for equal trials."""


@dataclass(frozen=True)
class Failures:
    """Probabilities per attempt; what is left ends well.

    Attributes:
        oom: Out of memory after the first epoch.
        nan: NaN after the first epoch.
        killed: The worker dies at a random moment and comes back after ``restart`` seconds.
        late: The worker is silent from a random moment on and given up; its result comes when it would have come.
        slow: The attempt runs ``slowness`` times as long.
        restart: Seconds.
        slowness: A factor.
    """

    oom: float = 0.0
    nan: float = 0.0
    killed: float = 0.0
    late: float = 0.0
    slow: float = 0.0
    restart: float = 60.0
    slowness: float = 5.0


class SimulatedRunner:
    """Runs jobs on a virtual clock, which leaps from event to event.

    Args:
        world: What trials find.
        speeds: One per worker, 1.0 is normal.
        failures: What goes wrong.
        seed: Of the failures; which job fails how depends on its trial and attempt alone.
    """

    def __init__(
        self,
        world: World,
        speeds: Sequence[float] = (1.0,),
        failures: Failures = Failures(),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        self.world, self.failures, self.seed = world, failures, seed
        self.speeds = tuple(speeds)
        self._idle = list(range(len(self.speeds)))
        self._at: dict[Job, _Run] = {}
        self._pending: list[tuple[float, int, Callable[[], Event | None]]] = []
        self._clock = 0.0
        self._count = 0

    def __enter__(self) -> Self:
        """Nothing to do."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Forget what was to come."""
        self._pending.clear()

    def free(self) -> int:
        """Idle workers."""
        return len(self._idle)

    def now(self) -> float:
        """Virtual seconds."""
        return self._clock

    def cancel(self, job: Job) -> None:
        """It ends at once."""
        if job in self._at:
            self._at[job].cancelled = True
            self._later(0.0, lambda: self._end(job, Outcome("cancelled", "stopped early")))

    def submit(self, job: Job) -> None:
        """Put it on the first idle worker and write its course into the calendar."""
        worker = self._idle.pop(0)
        self._at[job] = _Run(worker, self._clock)
        stream = random.Random(derive(self.seed, job.trial.number, job.attempt))
        course, failures, draw = self.world.course(job.trial), self.failures, stream.random()
        pace = course.epoch_seconds / self.speeds[worker]
        if stream.random() < failures.slow:
            pace *= failures.slowness
        total = len(course.scores)
        self._later(0.0, lambda: Started(job, f"simulated-{worker}"))
        if draw < failures.killed:
            self._later(stream.random() * pace * total, lambda: self._lose(job))
        elif draw < failures.killed + failures.oom:
            self._later(pace, lambda: self._end(job, Outcome("oom", "out of memory (simulated)")))
        elif draw < failures.killed + failures.oom + failures.nan:
            self._later(pace, lambda: self._end(job, Outcome("failed", "NaN (simulated)")))
        elif draw < failures.killed + failures.oom + failures.nan + failures.late:
            silent = stream.random() * pace * total
            left = pace * total - silent
            self._later(silent, lambda: self._give_up(job, left, course.outcome))
        else:
            for epoch, score in enumerate(course.scores, 1):
                self._later(
                    epoch * pace,
                    lambda epoch=epoch, score=score: self._step(job, epoch, total, score),  # type: ignore[misc]
                )
            self._later(total * pace, lambda: self._end(job, course.outcome))

    def wait(self, handle: Handler) -> None:
        """Leap to the next event, and tell of all that happen at that moment."""
        if not self._pending:
            return
        self._clock = self._pending[0][0]
        while self._pending and self._pending[0][0] <= self._clock:
            event = heapq.heappop(self._pending)[2]()
            if event is not None:
                handle(event)

    def _later(self, seconds: float, event: Callable[[], Event | None]) -> None:
        self._count += 1
        heapq.heappush(self._pending, (self._clock + seconds, self._count, event))

    def _step(self, job: Job, epoch: int, total: int, score: float) -> Event | None:
        run = self._at.get(job)
        if run is None or run.cancelled:
            return None
        if math.isfinite(score):
            run.scores.append(score)
        return Progressed(job, "train", epoch, total, score)

    def _end(self, job: Job, outcome: Outcome) -> Event | None:
        run = self._at.get(job)
        if run is None or (run.cancelled and outcome.state != "cancelled"):
            return None
        del self._at[job]
        self._idle.append(run.worker)
        seconds = self._clock - run.started
        return Ended(job, replace(outcome, history=tuple(run.scores), seconds=seconds))

    def _lose(self, job: Job) -> Event | None:
        run = self._at.pop(job, None)
        if run is None:
            return None
        self._later(self.failures.restart, lambda: self._idle.append(run.worker))
        return Lost(job, "worker killed (simulated)")

    def _give_up(self, job: Job, left: float, outcome: Outcome) -> Event | None:
        run = self._at.pop(job, None)
        if run is None:
            return None
        self._later(left, lambda: self._come_back(job, run.worker, outcome))
        return Lost(job, "no progress (simulated)")

    def _come_back(self, job: Job, worker: int, outcome: Outcome) -> Event:
        self._idle.append(worker)
        return Ended(job, outcome)


@dataclass
class _Run:
    """A job on a worker."""

    worker: int
    started: float
    scores: list[float] = field(default_factory=list)
    cancelled: bool = False


def _params_of(trial: Trial) -> int:
    """The parameters that a trial may train."""
    params = trial.budget.get("max_trainable_params") if trial.budget is not None else None
    assert params is not None, "its world has one limit"
    return int(params)


@dataclass(frozen=True)
class SyntheticFront:
    """A world whose best scores are known: a ceiling by budget, less what badly set settings cost.

    The figures are in the range of MiniLM on TREC: 90.5 points at the lowest budget, 94.7 at the highest, noise of
    0.7 points between seeds, rates that are ten times off cost 3 to 4 points, and the best rate falls as budgets grow.

    Attributes:
        low: Trainable parameters of the lowest budget.
        high: Of the highest.
        noise: Standard deviation of a score between seeds, in points.
        seconds: Of an epoch.
        epochs: Of a training.
        seed: Of the noise.
    """

    low: int = 795
    high: int = 113_566
    noise: float = 0.7
    seconds: float = 60.0
    epochs: int = 3
    seed: int = 0

    def place(self, params: int) -> float:
        """Where a budget lies between the lowest and the highest on a log scale, 0 to 1."""
        return math.log(params / self.low) / math.log(self.high / self.low)

    def ceiling(self, params: int) -> float:
        """The best score that a budget allows, in points."""
        return 95.5 - 5.0 * math.pow(params / self.low, -0.4)

    def best(self, params: int) -> float:
        """What the best settings reach there: 300 steps still cost a little."""
        return self.ceiling(params) - 2.0 * math.exp(-300 / 70)

    def score(self, trial: Trial) -> float:
        """The score of a trial without noise, in points."""
        params = _params_of(trial)
        place, found = self.place(params), dict(trial.settings)
        lr, alpha_lr = (
            float(found.get(f"{path}lr") or 0.02) for path in ("train.", "search.alpha_")
        )
        cost = 4.0 * math.pow(math.log10(lr / 0.03) + 0.5 * place, 2)
        cost += 3.0 * math.pow(math.log10(alpha_lr / 0.1), 2)
        cost += 2.0 * math.exp(-float(found.get("search.steps") or 100) / 70)
        cost += 0.0 if found.get("search.start") == "probe" else 1.0 - place
        return self.ceiling(params) - cost

    def course(self, trial: Trial) -> Course:
        """Scores rise to the last one as training goes on."""
        noise = random.Random(derive(self.seed, trial.number, trial.seed, "noise"))
        if trial.budget is None:
            last, params = 95.0 + noise.gauss(0.0, self.noise), 22_713_216
        else:
            last = self.score(trial) + noise.gauss(0.0, self.noise)
            params = _params_of(trial)
        scores = tuple(
            (last - 12.0 * math.exp(-1.5 * epoch) + 12.0 * math.exp(-1.5 * self.epochs)) / 100
            for epoch in range(1, self.epochs + 1)
        )
        outcome = Outcome(
            "ok",
            measurements=tuple(
                Measurement("accuracy", split, scores[-1]) for split in ("validation", "test")
            ),
            trainable_params=params,
            stored_bytes=4 * params,
            head_params=2310,
        )
        return Course(self.seconds, scores, outcome)
