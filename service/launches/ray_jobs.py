"""Drivers as jobs of a Ray cluster, which outlive the server and its login."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sparsearch.errors import WorkersError
from sparsearch.service.launches.driver_runner import driver_environment
from sparsearch.service.launches.folder import Launch

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

__all__ = ["RayJobs"]

_HANDED_ON = ("SPARSEARCH_", "PG", "HF_", "OMP_NUM_THREADS")
"""Beginnings of the names of variables that a job has from the server; all others are the cluster's."""


class RayJobs:
    """Submits a job for each driver; jobs run on the head, where the server must run too: they share folders and locks.

    The submission id names the launch and the start: Ray refuses the second of two equal ones, so that a server
    that was killed between submitting and counting does not start a second driver.

    Args:
        address: Of Ray's dashboard, like ``http://127.0.0.1:8265``.
        db: The database; it reaches jobs by a file, since Ray shows the environment of jobs to everybody.
    """

    def __init__(self, address: str, db: str) -> None:
        self.address, self.db = address, db

    def start(self, launch: Launch) -> None:
        """Submit a job.

        Raises:
            WorkersError: If the head does not take it.
        """
        environment = driver_environment(self.db)
        command = [sys.executable, "-m", "sparsearch.service.launches.job", str(launch.folder)]
        submission = _submission(launch, launch.starts + 1)
        with self._connected() as jobs:
            if submission in _statuses(jobs):
                return
            launch.hand_over({k: v for k, v in environment.items() if k.startswith(_HANDED_ON)})
            jobs.submit_job(
                entrypoint=shlex.join(command),  # Ray takes a line of a shell
                submission_id=submission,
                metadata={"study": launch.name},
            )

    def is_starting(self, launch: Launch) -> bool:
        """Whether the job that was submitted last waits or runs.

        Raises:
            WorkersError: If the head does not answer.
        """
        if launch.starts == 0:
            return False
        with self._connected() as jobs:
            status = _statuses(jobs).get(_submission(launch, launch.starts))
        return status in ("PENDING", "RUNNING")

    @contextmanager
    def _connected(self) -> Iterator[JobSubmissionClient]:
        from ray.exceptions import RayError
        from ray.job_submission import JobSubmissionClient

        try:
            yield JobSubmissionClient(self.address)  # which asks the head for its version
        except (OSError, RuntimeError, RayError) as error:
            first, *_, last = (str(error).strip() or type(error).__name__).splitlines() * 2
            reason = first[:200] if first == last else f"{first[:200]} ... {last[:200]}"
            raise WorkersError(
                f"Ray's head at {self.address} takes no jobs now: {reason}",
                "start it again with `ray start --head`; where it asks for a token, set RAY_AUTH_MODE=token for "
                "the service too; studies wait for it",
            ) from error


def _submission(launch: Launch, start: int) -> str:
    return f"sparsearch-{launch.id}-{start}"


def _statuses(jobs: JobSubmissionClient) -> dict[str | None, str]:
    """By submission id, how far each job is."""
    return {job.submission_id: job.status.value for job in jobs.list_jobs()}
