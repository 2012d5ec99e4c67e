"""What the exchange tells the driver. It imports nothing of ours: the exchange's process stays small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

__all__ = [
    "DataLoaded",
    "JobKey",
    "JobLost",
    "JobTold",
    "News",
    "RankingAsked",
    "WorkerBroken",
    "WorkerDied",
    "WorkerReady",
    "WorkerSilent",
]


class JobKey(NamedTuple):
    """Number of a trial, and of the attempt at it."""

    trial: int
    attempt: int


@dataclass(frozen=True)
class DataLoaded:
    """A worker has loaded model and data; ``data`` is a summary of them, sealed."""

    data: bytes


@dataclass(frozen=True)
class WorkerReady:
    """A worker would take jobs; ``handle`` is its actor's."""

    slot: str
    handle: Any


@dataclass(frozen=True)
class WorkerBroken:
    """A worker cannot load what it needs; ``error`` is sealed."""

    slot: str
    error: bytes


@dataclass(frozen=True)
class WorkerDied:
    """A worker is gone."""

    slot: str
    reason: str


@dataclass(frozen=True)
class WorkerSilent:
    """A worker shows no progress."""

    slot: str


@dataclass(frozen=True)
class JobTold:
    """An event of a job, sealed."""

    key: JobKey
    event: bytes


@dataclass(frozen=True)
class JobLost:
    """A worker is gone, and this job with it."""

    key: JobKey
    reason: str


@dataclass(frozen=True)
class RankingAsked:
    """A worker asks for the ranking of a key; the answer goes to that number."""

    number: int
    key: str


News: TypeAlias = (
    DataLoaded
    | WorkerReady
    | WorkerBroken
    | WorkerDied
    | WorkerSilent
    | JobTold
    | JobLost
    | RankingAsked
)
