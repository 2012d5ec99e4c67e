"""Attempts at trials: who tries, until when it is believed, and how it ended."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from sparsearch.results.tables import AttemptRow, TrialRow
from sparsearch.results.values import Attempt, Outcome

__all__ = ["add_late", "begin", "end", "extend", "interrupt", "of_study"]

_RUNNING = AttemptRow.state == "running"


def begin(session: Session, trial: TrialRow, worker: str, seconds: float) -> None:
    """A further attempt at a trial, believed in for some seconds."""
    now = datetime.now(UTC)
    _add(
        session,
        trial,
        worker,
        "running",
        started_at=now,
        deadline=now + timedelta(seconds=seconds),
    )


def extend(session: Session, study_id: int, numbers: Collection[int], seconds: float) -> None:
    """The running attempts at some trials of a study have made progress."""
    chosen = select(TrialRow.id).where(TrialRow.study_id == study_id, TrialRow.number.in_(numbers))
    session.execute(
        update(AttemptRow)
        .where(AttemptRow.trial_id.in_(chosen), _RUNNING)
        .values(deadline=datetime.now(UTC) + timedelta(seconds=seconds))
    )


def end(session: Session, trial: TrialRow, state: str, message: str) -> None:
    """The running attempt at a trial, if there is one, ends."""
    session.execute(
        update(AttemptRow)
        .where(AttemptRow.trial_id == trial.id, _RUNNING)
        .values(state=state, message=message, ended_at=datetime.now(UTC))
    )


def interrupt(session: Session, study_id: int) -> None:
    """Whatever ran in a study had its driver end before it."""
    trials = select(TrialRow.id).where(TrialRow.study_id == study_id)
    session.execute(
        update(AttemptRow)
        .where(AttemptRow.trial_id.in_(trials), _RUNNING)
        .values(state="interrupted", message="its driver ended", ended_at=datetime.now(UTC))
    )


def add_late(session: Session, trial: TrialRow, worker: str, outcome: Outcome) -> None:
    """What came of an attempt that had been given up; the trial stays as it is."""
    now = datetime.now(UTC)
    score = outcome.score("validation")
    message = f"{outcome.state}, after it was given up"
    message += "" if score is None else f": validation {score:.4f}"
    _add(session, trial, worker, "late", message, started_at=now, deadline=now, ended_at=now)


def of_study(session: Session, study_id: int) -> tuple[Attempt, ...]:
    """All attempts at a study's trials, trial by trial, in order."""
    query = (
        select(TrialRow.number, AttemptRow)
        .join(AttemptRow, AttemptRow.trial_id == TrialRow.id)
        .where(TrialRow.study_id == study_id)
        .order_by(TrialRow.number, AttemptRow.number)
    )
    return tuple(
        Attempt(
            trial, a.number, a.worker, a.state, a.message, a.started_at, a.deadline, a.ended_at
        )
        for trial, a in session.execute(query).tuples()
    )


def _add(
    session: Session,
    trial: TrialRow,
    worker: str,
    state: str,
    message: str = "",
    **times: datetime,
) -> None:
    trial.attempts += 1
    values = {"trial_id": trial.id, "number": trial.attempts, "worker": worker}
    values |= {"state": state, "message": message}
    session.execute(insert(AttemptRow).values(values | times))
