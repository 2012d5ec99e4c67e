"""The store: the one door through which a driver writes and everybody reads."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from sparsearch.errors import LeaseError
from sparsearch.results import outcomes, queries, writes
from sparsearch.results.database import Database, open_database
from sparsearch.results.lease import LEASE_SECONDS, Owner
from sparsearch.results.urls import to_paste
from sparsearch.results.values import (
    Attempt,
    Best,
    BestQuery,
    Outcome,
    StudyRecord,
    StudySpec,
    Trial,
    TrialRecord,
)
from sparsearch.spaces.ranking import Ranking
from sparsearch.spaces.structure import Structure

__all__ = ["DEFAULT_URL", "Store", "open_store"]

DEFAULT_URL = "sqlite:///sparsearch.db"
"""A file in the folder one works in."""


class Store:
    """Studies, trials and outcomes in one database.

    The contract, which ``conformance.StoreConformance`` checks for any backend:

    - One driver at a time works on a study; it holds the study's lease, and one that lost it writes nothing more:
      ``start``, ``retry``, ``add_late`` and ``finish`` then raise LeaseError.
    - A trial goes from queued to running to one of ``FINISHED``, and a finished one never changes.
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
            writes.renew(session, study, self._owner, lease_seconds, progressed, attempt_seconds)

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

    def stop_asked(self, study: str) -> bool:
        """Whether the driver of a study was asked to end."""
        with self._database.reading() as session:
            return queries.stop_asked(session, study)

    # Trials

    def queued(self, study: str) -> tuple[Trial, ...]:
        """The trials still to run, in order of number.

        Raises:
            StoreError: If there is no such study.
        """
        with self._database.reading() as session:
            return queries.queued(session, study)

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
            writes.start(connection, self._owner, study, number, worker, attempt_seconds)

    def retry(self, study: str, number: int, state: Literal["lost", "oom"], message: str) -> None:
        """End the running attempt at a trial, and queue the trial again.

        Raises:
            StoreError: If there is no such trial, or it is finished.
        """
        with self._database.transaction() as connection:
            writes.retry(connection, self._owner, study, number, state, message)

    def add_late(self, study: str, number: int, worker: str, outcome: Outcome) -> None:
        """Keep what came of an attempt that had been given up; the trial stays as it is.

        Raises:
            StoreError: If there is no such trial.
        """
        with self._database.transaction() as connection:
            writes.add_late(connection, self._owner, study, number, worker, outcome)

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
            outcomes.finish(connection, self._owner, study, number, outcome)

    # Reading

    def ranking(self, key: str) -> Ranking | None:
        """The ranking stored under a key, None if there is none."""
        with self._database.reading() as session:
            return queries.ranking(session, key)

    def transferable(
        self,
        space: str,
        task: str,
        *,
        backbone: str | None = None,
        study: str | None = None,
        max_trainable_params: int | None = None,
    ) -> str | None:
        """The key of the searched ranking whose structure has the best validation score on another task.

        One whose structure keeps within a limit comes before one that does not.

        Args:
            space: Fingerprint of the space that it ranks.
            task: Fingerprint of the task that it is to serve, see ``StudySpec.task_fingerprint``.
            backbone: Weight fingerprint of the backbone that it was made on; None for any.
            study: Take it from this study (a unique prefix of its name), whatever its task.
            max_trainable_params: The budget that it is to be cut at.

        Returns:
            None if there is none.

        Raises:
            StoreError: If there is no such study.
        """
        with self._database.reading() as session:
            return queries.transferable(
                session, space, task, backbone, study, max_trainable_params
            )

    def weights(self, study: str, number: int) -> bytes | None:
        """Attached modules and head of a trial as safetensors bytes, None if none were stored.

        Raises:
            StoreError: If there is no such trial.
        """
        with self._database.reading() as session:
            return queries.weights(session, study, number)

    def studies(self) -> tuple[StudyRecord, ...]:
        """All studies, oldest first."""
        with self._database.reading() as session:
            return queries.studies(session)

    def find_study(self, prefix: str) -> StudyRecord:
        """The study of that name, or the only one whose name starts with it.

        Raises:
            StoreError: If there is none, or more than one.
        """
        with self._database.reading() as session:
            return queries.find_study(session, prefix)

    def trials(self, study: str) -> tuple[TrialRecord, ...]:
        """All trials of a study, in order of number.

        Args:
            study: Name of the study, or a unique prefix of it.

        Raises:
            StoreError: If there is none, or more than one.
        """
        with self._database.reading() as session:
            return queries.trials(session, study)

    def attempts(self, study: str) -> tuple[Attempt, ...]:
        """All attempts at the trials of a study, trial by trial, in order.

        Raises:
            StoreError: If there is no such study.
        """
        with self._database.reading() as session:
            return queries.attempts(session, study)

    def best(
        self,
        *,
        study: str | None = None,
        model: str | None = None,
        task: str | None = None,
        max_trainable_params: int | str | None = None,
        max_inference_flops: float | str | None = None,
        min_weight_sparsity: float | str | None = None,
    ) -> Best | None:
        """The feasible trial with the highest validation score whose structure fits the limits.

        Of equal scores the one with fewer trainable parameters wins, then the earlier trial.
        References without a structure (``head``, ``full``) are never the best.

        Scores of different tasks or metrics do not compare: where several have a trial that fits, name the study
        or the task, or ask ``best_of_each_task``.

        Args:
            study: Name of a study, or a unique prefix of it.
            model: The backbone, as the user wrote it.
            task: Name of the task, or the beginning of its fingerprint (4 characters or more).
            max_trainable_params: A number of parameters, or a share of each study's backbone
                ("0.01%"), rounded down. The task head is not counted.
            max_inference_flops: A share of the dense backbone's, "75%" or 0.75.
            min_weight_sparsity: A share of its linears' weights that are zero or gone, likewise.

        Returns:
            None if no trial fits.

        Raises:
            ConfigError: If a limit cannot be read, if several tasks have a trial that fits, or if the model had
                different weights in the studies that fit.
            StoreError: If there is no such study.
        """
        question = BestQuery(
            study, model, task, max_trainable_params, max_inference_flops, min_weight_sparsity
        )
        with self._database.reading() as session:
            return queries.best(session, question)

    def best_of_each_task(self, question: BestQuery) -> tuple[Best, ...]:
        """What ``best`` answers for each task that has a trial that fits; the task of the oldest study first.

        Raises:
            ConfigError: If a limit cannot be read, or if the model had different weights in the studies that fit.
            StoreError: If there is no such study.
        """
        with self._database.reading() as session:
            return queries.best_of_each_task(session, question)

    def pareto(self, study: str) -> tuple[Best, ...]:
        """Feasible trials with a structure that no other one beats, by trainable parameters.

        One beats another if it is as good in validation score, trainable parameters, inference
        FLOPs and weight sparsity (both to hundredths of a percent), and better in one of them. Of equal
        ones the earliest is kept.

        Args:
            study: Name of the study, or a unique prefix of it.

        Raises:
            StoreError: If there is no such study.
        """
        with self._database.reading() as session:
            return queries.pareto(session, study)

    def find_structure(self, prefix: str, study: str | None = None) -> Best:
        """The best trial whose structure's hash starts with a prefix of 4 characters or more.

        Args:
            prefix: Of the hash.
            study: Name of a study, or a unique prefix of it: only its trials count.

        Raises:
            StoreError: If the prefix is too short, fits none, or fits more than one structure; or if the structure
                was trained on several tasks, whose scores do not compare, and no study is given.
        """
        with self._database.reading() as session:
            return queries.find_structure(session, prefix, study)

    def load_structure(self, prefix: str) -> Structure:
        """The structure whose hash starts with a prefix of 4 characters or more, whatever it was trained on.

        Raises:
            StoreError: If the prefix is too short, fits none, or fits more than one structure.
        """
        with self._database.reading() as session:
            return queries.load_structure(session, prefix)


def open_store(url: str | Path = DEFAULT_URL) -> Store:
    """Open a database to read it, see ``Store.open``.

    Raises:
        StoreError: If it is missing, damaged, not ours, or of another revision.
    """
    return Store.open(url, create=False)
