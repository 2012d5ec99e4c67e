"""Where studies are read from: a database, or a service over one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sparsearch.results.answers import TrialScore
    from sparsearch.results.records import Attempt, Best, BestQuery, StudyRecord, TrialRecord
    from sparsearch.spaces.structure import Structure

__all__ = ["StudySource"]


class StudySource(Protocol):
    """The questions of those who read, as ``store.reader.StoreReader`` answers them."""

    def studies(self) -> tuple[StudyRecord, ...]:
        """All studies, oldest first."""

    def find_study(self, prefix: str) -> StudyRecord:
        """A study."""

    def trials(self, study: str) -> tuple[TrialRecord, ...]:
        """Its trials."""

    def scores(self, study: str) -> tuple[TrialScore, ...]:
        """What summaries need of its trials."""

    def attempts(self, study: str) -> tuple[Attempt, ...]:
        """The attempts at them."""

    def best(
        self,
        *,
        study: str | None = None,
        model: str | None = None,
        task: str | None = None,
        **limits: int | float | str | None,
    ) -> Best | None:
        """The best structure within limits."""

    def best_of_each_task(self, question: BestQuery) -> tuple[Best, ...]:
        """The best structure of each task."""

    def pareto(self, study: str) -> tuple[Best, ...]:
        """The structures of a study that no other one beats."""

    def find_structure(self, prefix: str, study: str | None = None) -> Best:
        """The best trial of a structure."""

    def structures_of(self, study: str, numbers: Sequence[int]) -> tuple[Best, ...]:
        """The structures of some trials of a study."""

    def load_structure(self, prefix: str) -> Structure:
        """A structure, whatever it was trained on."""
