"""A study as its pages see it: read and summarised once for all who look at it."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass

from sparsearch.errors import SparsearchError
from sparsearch.results.answers import TrialScore
from sparsearch.results.records import FINISHED, NOT_RUN, StudyRecord
from sparsearch.results.report.summary import StudySummary, summarise
from sparsearch.results.store.reader import StoreReader

__all__ = ["StudyView", "StudyViews"]

_MOST = 16
_WARM = 4
_MANY = 1000
"""Trials that have finished since: then all are read again, which takes about as long."""


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
            if kept is not None and _unchanged(kept, study):
                view = StudyView(study, kept.trials, kept.summary)
            else:
                trials = self._trials(study, kept)
                if kept is not None and _content(kept.study, kept.trials) == _content(
                    study, trials
                ):
                    summary = kept.summary
                else:
                    summary = summarise(study, trials)
                view = StudyView(study, trials, summary)
            self._kept[study.name] = view
            self._kept.move_to_end(study.name)
            while len(self._kept) > _MOST:
                self._kept.popitem(last=False)
            return view

    def warm(self) -> None:
        """Read the youngest studies before anybody asks, and import what that takes: in a thread of its own."""
        with suppress(SparsearchError):  # whoever asks is told
            for study in self.store.studies(limit=_WARM, youngest_first=True):
                self.of(study.name)

    def _trials(self, study: StudyRecord, kept: StudyView | None) -> tuple[TrialScore, ...]:
        """The trials of a study; of one that was read before only what has finished or came since."""
        if kept is None or kept.study.created_at != study.created_at:
            return self.store.scores(study.name)
        finished = {
            t.number for t in kept.trials if t.state in FINISHED and t.state not in NOT_RUN
        }
        all_below = next(n for n in itertools.count() if n not in finished)
        told = self.store.progress(study.name, all_below - 1).finished
        new = {t.number for t in told} - finished
        new |= {*range(len(kept.trials), study.trials)} | _left_out(kept)
        if len(new) > _MANY:
            return self.store.scores(study.name)
        found = {t.number: t for t in kept.trials}
        found |= {t.number: t for t in self.store.scores(study.name, sorted(new))}
        return tuple(found[number] for number in sorted(found))


def _unchanged(kept: StudyView, study: StudyRecord) -> bool:
    """Whether no trial was added or finished. What a race has left out may run after all, so it is read again."""
    return not _left_out(kept) and _progress(kept.study) == _progress(study)


def _left_out(kept: StudyView) -> set[int]:
    return {t.number for t in kept.trials if t.state in NOT_RUN}


def _content(study: StudyRecord, trials: tuple[TrialScore, ...]) -> tuple[object, ...]:
    """What a summary is made of. A study of the same name may have been deleted, and another made."""
    return study.config, study.metric, trials


def _progress(study: StudyRecord) -> tuple[object, ...]:
    """What changes when a trial is added or finished."""
    return study.created_at, study.trials, study.finished, study.best_score
