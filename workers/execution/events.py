"""What a runner is given, and what it tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from sparsearch.results.records import Outcome, Trial
from sparsearch.spaces.ranking import Ranking

__all__ = [
    "Ended",
    "Event",
    "Job",
    "Lost",
    "Progressed",
    "Ranked",
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
