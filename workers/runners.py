"""Runners: they execute trials and decide nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from sparsearch.results.values import Outcome, Trial
from sparsearch.search.train import Observer
from sparsearch.workers.trial import FindRanking, execute
from sparsearch.workers.workbench import Workbench

__all__ = ["InProcessRunner", "Runner"]


class Runner(Protocol):
    """Executes trials, in whatever order and place, each to exactly one outcome."""

    def run(
        self, trials: Sequence[Trial], started: Callable[[Trial], None], observe: Observer
    ) -> Iterator[tuple[Trial, Outcome]]:
        """Yield each trial with its outcome as it ends; ``started`` is called as it begins."""


class InProcessRunner:
    """One trial after the other in this process, on one workbench."""

    def __init__(self, bench: Workbench, find_ranking: FindRanking) -> None:
        self.bench, self.find_ranking = bench, find_ranking

    def run(
        self, trials: Sequence[Trial], started: Callable[[Trial], None], observe: Observer
    ) -> Iterator[tuple[Trial, Outcome]]:
        """Yield each trial with its outcome, in order."""
        for trial in trials:
            started(trial)
            yield trial, execute(self.bench, trial, self.find_ranking, observe)
