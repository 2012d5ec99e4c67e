"""A study as its pages see it: read and summarised once for all who look at it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from sparsearch.results.answers import TrialScore
from sparsearch.results.records import StudyRecord
from sparsearch.results.report.summary import StudySummary, summarise
from sparsearch.results.store.reader import StoreReader

__all__ = ["StudyView", "StudyViews"]

_MOST = 16


@dataclass(frozen=True)
class StudyView:
    """A study, its trials, and what they show.

    Attributes:
        study: As it was read last.
        trials: All of it, as far as pages need them.
        summary: Of these.
    """

    study: StudyRecord
    trials: tuple[TrialScore, ...]
    summary: StudySummary

    def place_of(self, number: int) -> int | str | None:
        """The place of a trial's budget among those of the summary, or ``references``; None where it has none there."""
        found = next((t for t in self.trials if t.number == number), None)
        if found is None:
            return None
        if found.budget is None:
            return "references"
        budgets = [budget.budget for budget in self.summary.budgets]
        return budgets.index(found.budget) if found.budget in budgets else None


class StudyViews:
    """The studies that pages show, kept until a trial of them finishes.

    Args:
        store: Where they are.
    """

    def __init__(self, store: StoreReader) -> None:
        self.store = store
        self._kept: OrderedDict[str, StudyView] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, name: str) -> StudyView:
        """A study as it is now.

        Raises:
            NotFoundError: If there is no such study.
        """
        with self._lock:  # many ask at once, one reads
            study = self.store.find_study(name)
            kept = self._kept.get(study.name)
            if kept is None or _progress(kept.study) != _progress(study):
                trials = self.store.scores(study.name)
                kept = StudyView(study, trials, summarise(study, trials))
            view = StudyView(study, kept.trials, kept.summary)
            self._kept[study.name] = view
            self._kept.move_to_end(study.name)
            while len(self._kept) > _MOST:
                self._kept.popitem(last=False)
            return view


def _progress(study: StudyRecord) -> tuple[object, ...]:
    """What changes when a trial is added or finished."""
    return study.created_at, study.trials, study.finished, study.best_score
