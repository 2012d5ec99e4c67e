"""The questions to a database, put to a service: the same records come back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from sparsearch.results.answers import TrialScore
from sparsearch.results.records import Attempt, Best, BestQuery, StudyRecord, TrialRecord
from sparsearch.results.store.reading.advice import of_one_task
from sparsearch.service.client.connection import Connection, segment, understood
from sparsearch.spaces.structure import Structure

__all__ = ["RemoteReader"]

_PAGE = 500


class RemoteReader:
    """A ``results.source.StudySource`` over HTTP; it answers one command, and asks for no trial twice.

    Args:
        connection: To the service.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._trials: dict[str, list[dict[str, Any]]] = {}

    def __enter__(self) -> Self:
        """For ``with``."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Close the connection."""
        self.connection.__exit__(*raised)

    @understood()
    def studies(self) -> tuple[StudyRecord, ...]:
        """The studies, oldest first, without their configuration, of which the list of a service says nothing."""
        return tuple(StudyRecord.from_dict(row) for row in self._rows("/studies"))

    @understood()
    def find_study(self, prefix: str) -> StudyRecord:
        """The study of that name, or the only one whose name starts with it."""
        return StudyRecord.from_dict(self.connection.get(f"/studies/{segment(prefix)}"))

    @understood()
    def trials(self, study: str) -> tuple[TrialRecord, ...]:
        """The trials of a study, in order of number."""
        return tuple(TrialRecord.from_dict(row) for row in self._trials_of(study))

    def scores(self, study: str) -> tuple[TrialScore, ...]:
        """The trials of a study, in order of number, with what summaries need of them."""
        return tuple(map(TrialScore.of, self.trials(study)))

    @understood()
    def attempts(self, study: str) -> tuple[Attempt, ...]:
        """The attempts at the trials of a study, trial by trial, in order."""
        rows = self._trials_of(study)
        return tuple(Attempt.from_dict(row["number"], a) for row in rows for a in row["tries"])

    def best(
        self,
        *,
        study: str | None = None,
        model: str | None = None,
        task: str | None = None,
        **limits: int | float | str | None,
    ) -> Best | None:
        """The best structure within limits, see ``StoreReader.best``."""
        return of_one_task(self.best_of_each_task(BestQuery(study, model, task, limits)))

    @understood()
    def best_of_each_task(self, question: BestQuery) -> tuple[Best, ...]:
        """The best structure of each task, see ``StoreReader.best_of_each_task``.

        Raises:
            InfeasibleError: If there is none, with what to ask instead.
        """
        limits = [
            f"{name}={value}" for name, value in question.limits.items() if value is not None
        ]
        names = {"study": question.study, "model": question.model, "task": question.task}
        return tuple(map(self._best, self.connection.get("/best", **names, limit=limits or None)))

    @understood()
    def pareto(self, study: str) -> tuple[Best, ...]:
        """The structures of a study that no other one beats."""
        return tuple(map(self._best, self.connection.get(f"/studies/{segment(study)}/pareto")))

    @understood()
    def find_structure(self, prefix: str, study: str | None = None) -> Best:
        """The best trial whose structure's hash starts with a prefix."""
        row = self.connection.get(f"/structures/{segment(prefix)}", study=study)
        return self._best({key: value for key, value in row.items() if key != "candidates"})

    @understood()
    def structures_of(self, study: str, numbers: Sequence[int]) -> tuple[Best, ...]:
        """The structures of some trials of a study, see ``StoreReader.structures_of``."""
        of, trials = self.find_study(study), {row["number"]: row for row in self._trials_of(study)}
        return tuple(self._best_of(of, trials[number]) for number in numbers)

    def load_structure(self, prefix: str, study: str | None = None) -> Structure:
        """The structure whose hash starts with a prefix, of any study or as a study has it."""
        text = self.connection.text(f"/structures/{segment(prefix)}/document", study=study)
        return Structure.from_json(text)

    def _best(self, row: Mapping[str, Any]) -> Best:
        return Best.of(row, self.load_structure(row["structure"], row["study"]))

    def _best_of(self, study: StudyRecord, trial: Mapping[str, Any]) -> Best:
        known = {**study.as_dict(), **trial, "trial": trial["number"]}
        fields = {f.name: known[f.name] for f in dataclasses.fields(Best) if f.name in known}
        return Best.of(
            fields | {"study": study.name}, self.load_structure(trial["structure"], study.name)
        )

    def _trials_of(self, study: str) -> list[dict[str, Any]]:
        if study not in self._trials:
            self._trials[study] = [*self._rows(f"/studies/{segment(study)}/trials")]
        return self._trials[study]

    def _rows(self, path: str) -> Iterator[dict[str, Any]]:
        """The rows of all pages."""
        cursor: str | None = None
        while True:
            page = self.connection.get(path, limit=_PAGE, cursor=cursor)
            yield from page["items"]
            cursor = page["next"]
            if cursor is None:
                return
