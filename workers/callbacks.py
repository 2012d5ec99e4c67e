"""Listeners: told how a study goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparsearch.results.records import Outcome, Trial, TrialRecord
from sparsearch.search.tasks.data_summary import DataSummary

if TYPE_CHECKING:
    from sparsearch.workers.preflight import Preflight

__all__ = ["StudyCallbacks"]


class StudyCallbacks:
    """Told how a study goes, and decides nothing; override what you want to hear."""

    def checked(self, preflight: Preflight) -> None:
        """The study is valid."""

    def loaded(self, data: DataSummary) -> None:
        """The task's data is read; nothing is told where all trials are finished already."""

    def opened(
        self, study: str, queued: Sequence[Trial], finished: int, to_propose: int = 0
    ) -> None:
        """The trials still to run are known, or how many more an outer loop will propose."""

    def also_stored(self, study: str, trials: Sequence[TrialRecord]) -> None:
        """The study has these trials too, which were asked for before and are not this time."""

    def started(self, trial: Trial) -> None:
        """A trial begins."""

    def progressed(
        self, trial: Trial, phase: str, done: int, total: int, score: float | None
    ) -> None:
        """A trial made a step."""

    def retried(self, trial: Trial, attempt: int, state: str, reason: str) -> None:
        """An attempt came to nothing (``lost`` or ``oom``); the trial will be tried again."""

    def finished(self, trial: Trial, outcome: Outcome) -> None:
        """A trial's outcome is stored."""
