"""Writing: what happens to studies and queued trials inside the store's transactions."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Executable, bindparam, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from sparsearch.config.registry import STRATEGIES
from sparsearch.errors import StoreError
from sparsearch.results.records import FINISHED, NOT_RUN, Outcome, StudySpec, Trial
from sparsearch.results.store.reading import queries
from sparsearch.results.store.tables import Base, StudyRow, TrialRow
from sparsearch.results.store.writing import attempts, growth, lease

__all__ = [
    "acquire",
    "add_late",
    "add_trial",
    "ask_to_stop",
    "begin_study",
    "insert_once",
    "release",
    "renew",
    "requeue",
    "retry",
    "start",
    "unfinished_trial",
]

_ABSENT = object()
_SHOWN = 5
_TABLES = Base.metadata.tables
_NAMES = {"studies": ["name"], "structures": ["hash"], "rankings": ["key"]}
"""What there is only one of."""

# Whoever writes to a trial holds its study first: no two writers wait for each other, and a front
# changes by one trial at a time. SQLite has the whole database locked already.
_trials, _studies = _TABLES["trials"].c, _TABLES["studies"].c
_TRIAL_TO_WRITE = (
    select(
        _trials.id,
        _trials.state,
        _trials.study_id,
        _studies.metric,
        _studies.backbone,
        _studies.owner_host,
        _studies.owner_pid,
        _studies.owner_started,
    )
    .select_from(_TABLES["studies"].join(_TABLES["trials"]))
    .where(_studies.name == bindparam("study"), _trials.number == bindparam("trial"))
    .with_for_update()
)
_SHARED = ("model", "task_fingerprint", "backbone_params")
"""What a trial's row repeats of its study's."""
_STUDY = select(_studies.id, *(_studies[name] for name in _SHARED)).where(
    _studies.name == bindparam("study")
)
_QUEUE = insert(_TABLES["trials"])


def begin_study(connection: Connection, spec: StudySpec) -> None:
    """Create a study, or add to the one of that name the trials that it lacks, numbered after those it has.

    Raises:
        StoreError: If its config differs in more than what a study grows by, or growing would change trials that
            have begun.
    """
    if _insert_study(connection, spec):
        return
    query = select(StudyRow.id, StudyRow.config).where(StudyRow.name == spec.name)
    study_id, config = connection.execute(query.with_for_update()).one()
    old, new = json.loads(config), json.loads(spec.config)
    _check_growth(spec.name, old, new)
    columns = (_trials.number, _trials.state, _trials.strategy, _trials.budget, _trials.seed)
    stored = connection.execute(select(*columns).where(_trials.study_id == study_id)).all()
    keys = {growth.trial_key(row.strategy, row.budget, row.seed) for row in stored}
    missing = [trial for trial in spec.trials if growth.key_of(trial) not in keys]
    if not missing:
        return
    searches = STRATEGIES.of_family("search")
    searched = any(row.strategy in searches and row.state != "queued" for row in stored)
    problem = growth.range_problem(old, new, spec.backbone_params) if searched else ""
    if problem:
        raise StoreError(
            f"study {spec.name!r} cannot take these budgets: {problem}",
            "choose budgets for which that stays the same, or another name",
        )
    first = max((row.number for row in stored), default=-1) + 1
    _queue(
        connection, study_id, spec, [replace(t, number=n) for n, t in enumerate(missing, first)]
    )
    united = json.dumps(growth.united(old, new), sort_keys=True)
    connection.execute(update(StudyRow).where(StudyRow.id == study_id).values(config=united))


def check_config(session: Session, spec: StudySpec) -> None:
    """Refuse what ``begin_study`` would for its config, and write nothing.

    Raises:
        StoreError: If a study of that name differs in more than what a study grows by.
    """
    config = session.scalar(select(StudyRow.config).where(StudyRow.name == spec.name))
    if config is not None:
        _check_growth(spec.name, json.loads(config), json.loads(spec.config))


def _check_growth(study: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuse a configuration that differs from the stored one in more than what a study grows by."""
    grows = growth.growing(old, new)
    unknown = {_DATA, _READER} - old.keys()  # to earlier versions
    new = {name: value for name, value in new.items() if name not in unknown}
    kept, wanted = ({k: v for k, v in c.items() if k not in grows} for c in (old, new))
    fixed = _differences(kept, wanted)
    if not fixed:
        return
    more = f", and {len(fixed) - _SHOWN} more" if len(fixed) > _SHOWN else ""
    reason = "" if grows else "; one with an outer loop grows by outer.trials alone"
    raise StoreError(
        f"study {study!r} exists with another config: {', '.join(fixed[:_SHOWN])}{more}{reason}",
        "choose another name, or restore the config to continue the study",
    )


def add_trial(connection: Connection, study: str, trial: Trial) -> None:
    """Queue one more trial of a study."""
    row = connection.execute(_STUDY, {"study": study}).one_or_none()
    if row is None:
        raise queries.no_study(Session(connection), study)
    shared = {name: getattr(row, name) for name in _SHARED}
    connection.execute(_QUEUE, _queued(row.id, trial) | shared)


def acquire(session: Session, study: str, owner: lease.Owner, seconds: float) -> None:
    """Take the lease of a study and queue again what its last driver left running.

    Raises:
        LeaseError: If another live driver holds it.
    """
    row = _locked_study(session, study)
    lease.acquire(row, owner, seconds)
    _queue_running(session, row)
    row.stop_asked_at = None


def _queue_running(session: Session, study: StudyRow) -> None:
    left = (TrialRow.study_id == study.id, TrialRow.state == "running")
    session.execute(update(TrialRow).where(*left).values(state="queued"))
    attempts.interrupt(session, study.id)


def renew(
    session: Session,
    claim: lease.Claim,
    seconds: float,
    progressed: Collection[int],
    attempt_seconds: float,
) -> None:
    """Extend the lease of a study, and the deadlines of attempts at some of its trials.

    Raises:
        LeaseError: If it was lost.
    """
    row = _locked_study(session, claim.study)
    lease.renew(row, claim.owner, seconds)
    if progressed:
        attempts.extend(session, row.id, progressed, attempt_seconds)


def release(session: Session, study: str, owner: lease.Owner) -> None:
    """Give the lease of a study back; what this driver was running is queued again."""
    row = _locked_study(session, study)
    if lease.release(row, owner):
        _queue_running(session, row)
        row.stop_asked_at = None


def ask_to_stop(session: Session, study: str) -> lease.Owner | None:
    """Leave word for the driver of a study; where there is none any more, free the study."""
    row = _locked_study(session, study)
    owner = lease.holder(row)
    if owner is None:
        lease.clear(row)
        _queue_running(session, row)
    row.stop_asked_at = None if owner is None else datetime.now(UTC)
    return owner


def start(
    connection: Connection,
    claim: lease.Claim,
    number: int,
    worker: str,
    attempt_seconds: float,
) -> None:
    """Mark a trial as running, by a further attempt.

    Raises:
        StoreError: If it is finished.
        LeaseError: If another driver took the study over; so from all that writes to trials.
    """
    trial = unfinished_trial(connection, claim, number)
    changes = {"state": "running", "started_at": datetime.now(UTC)}
    connection.execute(update(TrialRow).where(TrialRow.id == trial.id).values(changes))
    attempts.begin(connection, trial.id, worker, attempt_seconds)


def retry(
    connection: Connection, claim: lease.Claim, number: int, state: str, message: str
) -> None:
    """The attempt at a trial came to nothing; the trial is queued again.

    Raises:
        StoreError: If it is finished.
    """
    trial = unfinished_trial(connection, claim, number)
    connection.execute(update(TrialRow).where(TrialRow.id == trial.id).values(state="queued"))
    attempts.end(connection, trial.id, state, message)


def requeue(connection: Connection, claim: lease.Claim, numbers: Collection[int]) -> None:
    """Queue trials again that a race left out."""
    for number in numbers:
        trial = _trial(connection, claim, number)
        if trial.state in NOT_RUN:
            row = update(TrialRow).where(TrialRow.id == trial.id)
            connection.execute(row.values(state="queued", message="", finished_at=None))


def add_late(
    connection: Connection,
    claim: lease.Claim,
    number: int,
    worker: str,
    outcome: Outcome,
) -> None:
    """Keep what came of an attempt that had been given up, as a further attempt."""
    attempts.add_late(connection, _trial(connection, claim, number).id, worker, outcome)


def insert_once(connection: Connection, table: str, row: dict[str, Any]) -> Any:
    """Insert a row and return its primary key, or None, and insert nothing, if there is one of its name.

    A question first would not do: two writers would both be told that there is none.
    """
    return connection.execute(_insertion(connection.dialect.name, table), row).scalar()


@functools.cache
def _insertion(dialect: str, name: str) -> Executable:
    table = _TABLES[name]
    insertion = postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)
    once = insertion.on_conflict_do_nothing(index_elements=_NAMES[name])
    return once.returning(*table.primary_key)


def _insert_study(connection: Connection, spec: StudySpec) -> bool:
    shared = {name: getattr(spec, name) for name in _SHARED}
    study = {"name": spec.name, "config": spec.config, "task": spec.task, "metric": spec.metric}
    created = {"created_at": datetime.now(UTC)}
    study_id = insert_once(connection, "studies", study | shared | created)
    if study_id is not None:
        _queue(connection, study_id, spec, spec.trials)
    return study_id is not None


def _queue(
    connection: Connection, study_id: int, spec: StudySpec, trials: Sequence[Trial]
) -> None:
    shared = {name: getattr(spec, name) for name in _SHARED}
    if trials:
        connection.execute(insert(TrialRow), [_queued(study_id, t) | shared for t in trials])


def _queued(study_id: int, trial: Trial) -> dict[str, Any]:
    return {
        "study_id": study_id,
        "number": trial.number,
        "strategy": trial.strategy,
        "seed": trial.seed,
        "budget": trial.budget.as_dict() if trial.budget is not None else None,
        "settings": dict(trial.settings) or None,
        "state": "queued",
        "feasible": False,
        "recommendable": False,
        "message": "",
        "attempts": 0,
    }


_DATA, _READER = "data_sha256", "reader_sha256"
"""What a configuration says of the content of files: of the data, and of the tokenizer or image processor."""


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two JSON values differ: dotted path, old and new value."""
    if isinstance(old, list) and isinstance(new, list):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in old | new:
            inner = f"{path}.{key}" if path else str(key)
            found += _differences(old.get(key, _ABSENT), new.get(key, _ABSENT), inner)
        return found
    if old == new:
        return []
    if path.startswith(f"{_DATA}."):
        return [f"the content of the data file(s) {path.removeprefix(f'{_DATA}.')!r} changed"]
    if path == _READER:
        return ["the files of the model's tokenizer or image processor changed"]
    shown = ["(not set)" if value is _ABSENT else json.dumps(value) for value in (old, new)]
    return [f"{path}: {shown[0]} -> {shown[1]}"]


def _locked_study(session: Session, name: str) -> StudyRow:
    # SQLite has the whole database locked already; other backends lock the row.
    query = select(StudyRow).where(StudyRow.name == name).with_for_update()
    row = session.scalar(query)
    if row is None:
        raise queries.no_study(session, name)
    return row


def unfinished_trial(connection: Connection, claim: lease.Claim, number: int) -> Any:
    """A trial that may still change: id, state, study_id, and metric and backbone of its study.

    Raises:
        StoreError: If there is none, or it is finished.
        LeaseError: If another driver took the study over.
    """
    trial = _trial(connection, claim, number)
    if trial.state in FINISHED:
        raise StoreError(
            f"trial {number} of study {claim.study!r} is finished already ({trial.state})",
            f"its outcome is kept; see `sparsearch trials {claim.study}`",
        )
    return trial


def _trial(connection: Connection, claim: lease.Claim, number: int) -> Any:
    asked = {"study": claim.study, "trial": number}
    trial = connection.execute(_TRIAL_TO_WRITE, asked).one_or_none()
    if trial is None:
        raise queries.no_trial(Session(connection), claim.study, number)
    lease.check(claim.study, trial, claim.owner)
    return trial
