"""The store: the one door through which a driver writes and everybody reads."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from sparsearch.errors import LeaseError
from sparsearch.results.records import (
    Outcome,
    StudySpec,
    Trial,
)
from sparsearch.results.store.connection.database import Database, open_database
from sparsearch.results.store.connection.urls import to_paste
from sparsearch.results.store.reader import StoreReader
from sparsearch.results.store.writing import deletion, outcomes
from sparsearch.results.store.writing import studies as writes
from sparsearch.results.store.writing.lease import LEASE_SECONDS, Claim, Owner
from sparsearch.spaces.ranking import Ranking

__all__ = ["DEFAULT_URL", "Store", "open_store"]

DEFAULT_URL = "sqlite:///sparsearch.db"
"""A file in the folder one works in."""


class Store(StoreReader):
    """Studies, trials and outcomes in one database.

    The contract, which ``testing.store_conformance.StoreConformance`` checks for any backend:

    - One driver at a time works on a study; it holds the study's lease, and one that lost it writes nothing more:
      ``start``, ``retry``, ``add_late`` and ``finish`` then raise LeaseError.
    - A trial goes from queued to running to one of ``FINISHED``, and a finished one never changes; but one that was not
      run (``NOT_RUN``) may be queued again.
    - An outcome is stored whole or not at all.
    - Values go in and come out; none keeps a link to the database.

    Every method raises StoreError where the database fails (full, locked, damaged).

    Example:
        >>> import tempfile
        >>> with Store.open(f"{tempfile.mkdtemp()}/sparsearch.db", create=True) as store:
        ...     store.studies()
        ()
    """

    def __init__(self, database: Database, owner: Owner) -> None:
        """Use ``Store.open``, which checks the database first."""
        self._database = database
        self._owner = owner

    @classmethod
    def open(
        cls,
        url: str | Path = DEFAULT_URL,
        *,
        create: bool,
        owner: Owner | None = None,
    ) -> Store:
        """Open a database.

        Args:
            url: An SQLAlchemy URL, or the path of an SQLite file.
            create: True to write: the database is created or migrated where needed. False to
                read: an SQLite file is then opened read-only.
            owner: Who acquires studies; this process if not given.

        Raises:
            StoreError: If it is missing, damaged, not writable, not ours, or of another revision.
        """
        return cls(open_database(url, create=create), owner or Owner.current())

    def _claim(self, study: str) -> Claim:
        return Claim(study, self._owner)

    @property
    def label(self) -> str:
        """Which database it is, without a password."""
        return self._database.label

    def close(self) -> None:
        """Close all connections. Leases stay."""
        self._database.engine.dispose()

    def __enter__(self) -> Store:
        """For ``with``."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Close all connections."""
        self.close()

    # Studies

    def begin_study(self, spec: StudySpec) -> None:
        """Create a study with all its trials queued; one that exists is kept, and gets the trials that it lacks.

        Seeds, budgets and baselines may differ from those it has: further ones are added to its config. New trials
        are numbered after the others.

        Raises:
            StoreError: If the study exists with another config, or further budgets would change trials of it.
        """
        with self._database.transaction() as connection:
            writes.begin_study(connection, spec)

    def check_config(self, spec: StudySpec) -> None:
        """Refuse a config with which the stored study of that name cannot go on; nothing is written.

        Raises:
            StoreError: As from ``begin_study``, for its config.
        """
        with self._database.reading() as session:
            writes.check_config(session, spec)

    def acquire(self, study: str, lease_seconds: float = LEASE_SECONDS) -> None:
        """Take the lease of a study and queue again what a dead driver left running.

        A lease that is over, or whose owner is a dead process on this machine, is free.

        Raises:
            LeaseError: If another live driver holds the study; it says which, and until when.
            StoreError: If there is no such study.
        """
        try:
            with self._database.writing() as session:
                writes.acquire(session, study, self._owner, lease_seconds)
        except LeaseError as error:
            where = shlex.quote(to_paste(self.label))
            raise LeaseError(error.message, f"{error.hint} --db {where}") from error

    def renew(
        self,
        study: str,
        lease_seconds: float = LEASE_SECONDS,
        progressed: Collection[int] = (),
        attempt_seconds: float = LEASE_SECONDS,
    ) -> None:
        """Extend the lease from now.

        Args:
            study: Name of the study.
            lease_seconds: How long it is held.
            progressed: Trials whose running attempts have made progress since the last time.
            attempt_seconds: How long those are believed in.

        Raises:
            LeaseError: If another driver took it.
            StoreError: If there is no such study.
        """
        with self._database.writing() as session:
            writes.renew(session, self._claim(study), lease_seconds, progressed, attempt_seconds)

    def release(self, study: str) -> None:
        """Give the lease back; nothing happens if another driver holds it by now.

        Raises:
            StoreError: If there is no such study.
        """
        with self._database.writing() as session:
            writes.release(session, study, self._owner)

    def ask_to_stop(self, study: str) -> str | None:
        """Ask the driver of a study to end; where no live one holds it, free the study.

        Returns:
            Who was asked, None if nobody holds the study.

        Raises:
            StoreError: If there is no such study.
        """
        with self._database.writing() as session:
            owner = writes.ask_to_stop(session, study)
            return None if owner is None else str(owner)

    def delete_study(self, study: str) -> None:
        """Delete a study, its trials and weights, and structures and rankings that no other study has.

        Args:
            study: Its whole name.

        Raises:
            NotFoundError: If there is no study of exactly that name.
            LeaseError: If a driver runs it.
        """
        with self._database.writing() as session:
            deletion.delete_study(session, study)

    # Trials

    def add_trial(self, study: str, trial: Trial) -> None:
        """Queue one more trial of a study, as an outer loop proposes it.

        Raises:
            StoreError: If there is no such study, or it has a trial of that number.
        """
        with self._database.transaction() as connection:
            writes.add_trial(connection, study, trial)

    def start(
        self,
        study: str,
        number: int,
        worker: str = "",
        attempt_seconds: float = LEASE_SECONDS,
    ) -> None:
        """Mark a trial as running, by a further attempt.

        Args:
            study: Name of the study.
            number: Of the trial.
            worker: Who tries.
            attempt_seconds: How long the attempt is believed in without progress.

        Raises:
            StoreError: If there is no such trial, or it is finished.
        """
        with self._database.transaction() as connection:
            writes.start(connection, self._claim(study), number, worker, attempt_seconds)

    def retry(self, study: str, number: int, state: Literal["lost", "oom"], message: str) -> None:
        """End the running attempt at a trial, and queue the trial again.

        Raises:
            StoreError: If there is no such trial, or it is finished.
        """
        with self._database.transaction() as connection:
            writes.retry(connection, self._claim(study), number, state, message)

    def requeue(self, study: str, numbers: Collection[int]) -> None:
        """Queue trials again that were left out (``NOT_RUN``); others stay as they are.

        Raises:
            StoreError: If there is no such trial.
            LeaseError: If another driver took the study over.
        """
        with self._database.transaction() as connection:
            writes.requeue(connection, self._claim(study), numbers)

    def add_late(self, study: str, number: int, worker: str, outcome: Outcome) -> None:
        """Keep what came of an attempt that had been given up; the trial stays as it is.

        Raises:
            StoreError: If there is no such trial.
        """
        with self._database.transaction() as connection:
            writes.add_late(connection, self._claim(study), number, worker, outcome)

    def add_ranking(self, key: str, ranking: Ranking) -> None:
        """Keep a ranking for other trials; the first under a key stays."""
        with self._database.transaction() as connection:
            outcomes.add_ranking(connection, key, ranking)

    def finish(self, study: str, number: int, outcome: Outcome) -> None:
        """Store how a trial ended, with all that belongs to it, in one transaction.

        A trial that is still queued may finish too: it may have been cancelled.

        Raises:
            StoreError: If there is no such trial, or it is finished; then nothing is stored.
        """
        with self._database.transaction() as connection:
            outcomes.finish(connection, self._claim(study), number, outcome)


def open_store(url: str | Path = DEFAULT_URL) -> Store:
    """Open a database to read it, see ``Store.open``.

    Raises:
        StoreError: If it is missing, damaged, not ours, or of another revision.
    """
    return Store.open(url, create=False)
