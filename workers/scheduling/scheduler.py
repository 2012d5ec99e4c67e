"""Outer loops: which trial is next, and which one is not worth finishing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from sparsearch.results.records import Outcome, Trial

__all__ = ["FixedPlan", "Scheduler", "take"]


class Scheduler(Protocol):
    """Proposes trials and learns from their outcomes. It sees no runner and no clock."""

    def ask(self, may_start: Callable[[Trial], bool]) -> Trial | None:
        """The next trial that may start now; None if there is none, for now or for good."""

    def goes_on(self, trial: Trial, done: int, total: int, score: float) -> bool:
        """Whether a trial with this validation score, ``done`` of ``total`` training steps on, is worth finishing."""

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """How a trial ended."""


def take(queued: list[Trial], may_start: Callable[[Trial], bool]) -> Trial | None:
    """Take the first that may start out of a queue; None if there is none."""
    trial = next((t for t in queued if may_start(t)), None)
    if trial is not None:
        queued.remove(trial)
    return trial


class FixedPlan:
    """Trials known from the start, in order, all of them to the end."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self._queued = list(trials)

    def ask(self, may_start: Callable[[Trial], bool]) -> Trial | None:
        """The first that may start."""
        return take(self._queued, may_start)

    def goes_on(self, trial: Trial, done: int, total: int, score: float) -> bool:
        """Always."""
        return True

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """Nothing to learn."""
