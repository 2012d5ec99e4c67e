"""Trials in this process, one after the other."""

from __future__ import annotations

import time
from collections import deque
from typing import Self

from sparsearch.errors import Cancelled
from sparsearch.results.store.writing.lease import Owner
from sparsearch.workers.execution.events import (
    Ended,
    Event,
    Handler,
    Job,
    Progressed,
    Ranked,
    Started,
)
from sparsearch.workers.trials.execute import FindRanking, Rankings, execute
from sparsearch.workers.trials.session import Session

__all__ = [
    "InProcessRunner",
]


class InProcessRunner:
    """One job after the other in this process, on one session; a job runs within ``wait``."""

    def __init__(self, session: Session, find_ranking: FindRanking) -> None:
        self.bench, self.find_ranking = session, find_ranking
        self._taken: deque[Job] = deque()
        self._cancelled: set[Job] = set()

    def __enter__(self) -> Self:
        """Nothing to do: the session is open."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Forget what has not begun."""
        self._taken.clear()

    def free(self) -> int:
        """One at a time."""
        return 1 - len(self._taken)

    def submit(self, job: Job) -> None:
        """It runs at the next ``wait``."""
        self._taken.append(job)

    def cancel(self, job: Job) -> None:
        """It ends at its next step."""
        if job in self._taken:
            self._cancelled.add(job)

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def wait(self, handle: Handler) -> None:
        """Run a job from its start to its end.

        What the driver or its listener raises underway ends the job, but is not its outcome.
        """
        job, raised = self._taken[0], list[Exception]()

        def tell(event: Event) -> None:
            try:
                handle(event)
            except Exception as error:
                raised.append(error)
                raise Cancelled("its driver failed") from error

        def observe(phase: str, done: int, total: int, score: float | None = None) -> None:
            tell(Progressed(job, phase, done, total, score))
            if job in self._cancelled:
                raise Cancelled("stopped early")

        handle(Started(job, str(Owner.current())))
        outcome = execute(
            self.bench,
            job.trial,
            Rankings(self.find_ranking, lambda key, made: tell(Ranked(job, key, made))),
            observe,
        )
        self._taken.popleft()
        self._cancelled.discard(job)
        if raised:
            raise raised[0]
        handle(Ended(job, outcome))
