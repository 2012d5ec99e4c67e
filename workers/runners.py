"""Runners: they execute jobs where they can and decide nothing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self, TypeAlias

from sparsearch.errors import Cancelled
from sparsearch.results.lease import Owner
from sparsearch.results.values import Outcome, Trial
from sparsearch.spaces.ranking import Ranking
from sparsearch.workers.trial import FindRanking, execute
from sparsearch.workers.workbench import Workbench

__all__ = [
    "Ended",
    "Event",
    "InProcessRunner",
    "Job",
    "Lost",
    "Progressed",
    "Ranked",
    "Runner",
    "Started",
]


@dataclass(frozen=True)
class Job:
    """One attempt at a trial, 1 for the first."""

    trial: Trial
    attempt: int = 1


@dataclass(frozen=True)
class Started:
    """A worker took a job."""

    job: Job
    worker: str


@dataclass(frozen=True)
class Progressed:
    """A job is ``done`` of ``total`` steps into a phase; ``score`` is a new validation score, if there is one."""

    job: Job
    phase: str
    done: int
    total: int
    score: float | None = None


@dataclass(frozen=True)
class Ranked:
    """A job made a ranking that other trials may reuse from now on, however the job ends."""

    job: Job
    key: str
    ranking: Ranking


@dataclass(frozen=True)
class Ended:
    """A job came to an outcome."""

    job: Job
    outcome: Outcome


@dataclass(frozen=True)
class Lost:
    """A job's worker is gone; nobody knows how it would have ended."""

    job: Job
    reason: str


Event: TypeAlias = Started | Progressed | Ranked | Ended | Lost
Handler: TypeAlias = Callable[[Event], None]


class Runner(Protocol):
    """Executes jobs, in whatever order and place: each starts, progresses, and ends or is lost."""

    def free(self) -> int:
        """Jobs that it would take now."""

    def submit(self, job: Job) -> None:
        """Take a job."""

    def cancel(self, job: Job) -> None:
        """End a job soon, with the outcome ``cancelled``; nothing happens if it has ended."""

    def wait(self, handle: Handler) -> None:
        """Until something happens, at most some seconds; tell of each event in order."""

    def now(self) -> float:
        """Seconds on the clock that its jobs run by."""

    def __enter__(self) -> Self:
        """Be ready for jobs."""

    def __exit__(self, *raised: object) -> None:
        """Give back everything; jobs under way are abandoned."""


class InProcessRunner:
    """One job after the other in this process, on one workbench; a job runs within ``wait``."""

    def __init__(self, bench: Workbench, find_ranking: FindRanking) -> None:
        self.bench, self.find_ranking = bench, find_ranking
        self._taken: deque[Job] = deque()
        self._cancelled: set[Job] = set()

    def __enter__(self) -> Self:
        """Nothing to do: the workbench is open."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Forget what has not begun."""
        self._taken.clear()

    def free(self) -> int:
        """One at a time."""
        return 1 - len(self._taken)

    def submit(self, job: Job) -> None:
        """It runs at the next ``wait``."""
        self._taken.append(job)

    def cancel(self, job: Job) -> None:
        """It ends at its next step."""
        if job in self._taken:
            self._cancelled.add(job)

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def wait(self, handle: Handler) -> None:
        """Run a job from its start to its end.

        What the driver or its listener raises underway ends the job, but is not its outcome.
        """
        job, raised = self._taken[0], list[Exception]()

        def tell(event: Event) -> None:
            try:
                handle(event)
            except Exception as error:
                raised.append(error)
                raise Cancelled("its driver failed") from error

        def observe(phase: str, done: int, total: int, score: float | None = None) -> None:
            tell(Progressed(job, phase, done, total, score))
            if job in self._cancelled:
                raise Cancelled("stopped early")

        handle(Started(job, str(Owner.current())))
        outcome = execute(
            self.bench,
            job.trial,
            self.find_ranking,
            observe,
            lambda key, ranking: tell(Ranked(job, key, ranking)),
        )
        self._taken.popleft()
        self._cancelled.discard(job)
        if raised:
            raise raised[0]
        handle(Ended(job, outcome))
