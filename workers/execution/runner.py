"""What any runner can do."""

from __future__ import annotations

from typing import Protocol, Self

from sparsearch.workers.execution.events import Handler, Job

__all__ = [
    "Runner",
]


class Runner(Protocol):
    """Executes jobs, in whatever order and place: each starts, progresses, and ends or is lost."""

    def free(self) -> int:
        """Jobs that it would take now."""

    def submit(self, job: Job) -> None:
        """Take a job."""

    def cancel(self, job: Job) -> None:
        """End a job soon, with the outcome ``cancelled``; nothing happens if it has ended."""

    def wait(self, handle: Handler) -> None:
        """Until something happens, at most some seconds; tell of each event in order."""

    def now(self) -> float:
        """Seconds on the clock that its jobs run by."""

    def __enter__(self) -> Self:
        """Be ready for jobs."""

    def __exit__(self, *raised: object) -> None:
        """Give back everything; jobs under way are abandoned."""
