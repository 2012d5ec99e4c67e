"""Attempts at trials: who tries, until when it is believed, and how it ended."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, bindparam, insert, select, update
from sqlalchemy.orm import Session

from sparsearch.results.records import Attempt, Outcome
from sparsearch.results.store.tables import AttemptRow, Base, TrialRow

__all__ = ["add_late", "begin", "end", "extend", "interrupt", "of_study"]

_RUNNING = AttemptRow.state == "running"
_TABLES = Base.metadata.tables
_trials, _attempts = _TABLES["trials"].c, _TABLES["attempts"].c
_COUNT = (
    update(_TABLES["trials"])
    .where(_trials.id == bindparam("trial"))
    .values(attempts=_trials.attempts + 1)
    .returning(_trials.attempts)
)
_ADD = insert(_TABLES["attempts"])
_END = (
    update(_TABLES["attempts"])
    .where(_attempts.trial_id == bindparam("trial"), _attempts.state == "running")
    .values(
        state=bindparam("end_state"),
        message=bindparam("end_message"),
        ended_at=bindparam("end_time"),
    )
)


def begin(connection: Connection, trial_id: int, worker: str, seconds: float) -> None:
    """A further attempt at a trial, believed in for some seconds."""
    now = datetime.now(UTC)
    deadline = now + timedelta(seconds=seconds)
    _add(connection, trial_id, worker, "running", started_at=now, deadline=deadline)


def extend(session: Session, study_id: int, numbers: Collection[int], seconds: float) -> None:
    """The running attempts at some trials of a study have made progress."""
    chosen = select(TrialRow.id).where(TrialRow.study_id == study_id, TrialRow.number.in_(numbers))
    session.execute(
        update(AttemptRow)
        .where(AttemptRow.trial_id.in_(chosen), _RUNNING)
        .values(deadline=datetime.now(UTC) + timedelta(seconds=seconds))
    )


def end(connection: Connection, trial_id: int, state: str, message: str) -> None:
    """The running attempt at a trial, if there is one, ends."""
    ended = {"end_state": state, "end_message": message, "end_time": datetime.now(UTC)}
    connection.execute(_END, ended | {"trial": trial_id})


def interrupt(session: Session, study_id: int) -> None:
    """Whatever ran in a study had its driver end before it."""
    trials = select(TrialRow.id).where(TrialRow.study_id == study_id)
    session.execute(
        update(AttemptRow)
        .where(AttemptRow.trial_id.in_(trials), _RUNNING)
        .values(state="interrupted", message="its driver ended", ended_at=datetime.now(UTC))
    )


def add_late(connection: Connection, trial_id: int, worker: str, outcome: Outcome) -> None:
    """What came of an attempt that had been given up; the trial stays as it is."""
    now = datetime.now(UTC)
    score = outcome.score("validation")
    message = f"{outcome.state}, after it was given up"
    message += "" if score is None else f": validation {score:.4f}"
    times = {"started_at": now, "deadline": now, "ended_at": now}
    _add(connection, trial_id, worker, "late", message, **times)


def of_study(session: Session, study_id: int, trials: range | None = None) -> tuple[Attempt, ...]:
    """The attempts at a study's trials, or at those numbers alone, trial by trial, in order."""
    query = (
        select(TrialRow.number, AttemptRow)
        .join(AttemptRow, AttemptRow.trial_id == TrialRow.id)
        .where(TrialRow.study_id == study_id)
        .order_by(TrialRow.number, AttemptRow.number)
    )
    if trials is not None:
        query = query.where(TrialRow.number >= trials.start, TrialRow.number < trials.stop)
    return tuple(
        Attempt(
            trial, a.number, a.worker, a.state, a.message, a.started_at, a.deadline, a.ended_at
        )
        for trial, a in session.execute(query).tuples()
    )


def _add(
    connection: Connection,
    trial_id: int,
    worker: str,
    state: str,
    message: str = "",
    **times: datetime,
) -> None:
    number = connection.execute(_COUNT, {"trial": trial_id}).scalar_one()
    values = {"trial_id": trial_id, "number": number, "worker": worker}
    connection.execute(_ADD, values | {"state": state, "message": message} | times)
