"""Answers of the store in brief: what reports, pages and streams need of many trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, TypeAlias

from sparsearch.errors import InfeasibleError, SparsearchError
from sparsearch.results.records import TrialRecord

__all__ = [
    "FinishedTrial",
    "Placement",
    "Placements",
    "ScoredTrial",
    "StudyProgress",
    "FAILURES",
    "TrialScore",
    "failure_of",
]


@dataclass(frozen=True)
class TrialScore:
    """Of a stored trial what summaries and pictures need: a study of 10,000 of them is read in a fraction of a second.

    The attributes are those of ``TrialRecord``.
    """

    number: int
    strategy: str
    seed: int
    state: str
    message: str
    score: float | None
    test_score: float | None
    structure: str | None
    trainable_params: int | None
    stored_bytes: int | None
    inference_flops_ratio: float | None
    weight_sparsity: float
    seconds: float | None
    budget: Mapping[str, Any] | None
    settings: Mapping[str, Any]
    history: tuple[float, ...]

    @classmethod
    def of(cls, trial: TrialRecord) -> TrialScore:
        """The same of a whole record."""
        return cls(**{field.name: getattr(trial, field.name) for field in fields(cls)})


ScoredTrial: TypeAlias = TrialRecord | TrialScore


@dataclass(frozen=True)
class Placement:
    """How many of several structures put a kind at a position, and in which sizes.

    Attributes:
        position: Canonical name.
        kind: Name of the kind.
        structures: That have it.
        smallest: Size.
        largest: Size.
    """

    position: str
    kind: str
    structures: int
    smallest: int
    largest: int


@dataclass(frozen=True)
class Placements:
    """What several structures put where.

    Attributes:
        structures: How many there are.
        counts: For each position and kind that one of them has.
    """

    structures: int
    counts: tuple[Placement, ...]


@dataclass(frozen=True)
class FinishedTrial:
    """How a trial ended, in brief."""

    number: int
    state: str
    message: str
    score: float | None
    trainable_params: int | None
    structure: str | None
    seconds: float | None
    finished_at: datetime | None


@dataclass(frozen=True)
class StudyProgress:
    """How far a study is.

    Attributes:
        id: Of its row; one of the same name that comes later has another.
        running: Whether a driver holds it.
        finished: Trials that have ended.
    """

    id: int
    running: bool
    finished: tuple[FinishedTrial, ...]


FAILURES = ("no budget of study {} is feasible", "no trial of study {} succeeded")
"""How a study fails that ran to its end; with its name."""


def failure_of(study: str, trials: Sequence[TrialRecord]) -> SparsearchError | None:
    """How a study failed that ran to its end: no budget was feasible, or no trial succeeded; None where it did not."""
    budgeted = [t for t in trials if t.budget is not None]
    if budgeted and all(t.state == "infeasible" for t in budgeted):
        return InfeasibleError(
            FAILURES[0].format(study),
            "allow more in budgets, or change the space; the messages of its trials say what is needed",
        )
    if trials and not any(t.state == "ok" for t in trials):
        return SparsearchError(FAILURES[1].format(study), f"sparsearch trials {study} says why")
    return None
