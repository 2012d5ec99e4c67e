"""Writing: what happens inside the store's transactions."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from sparsearch.errors import StoreError
from sparsearch.results import attempts, lease, queries
from sparsearch.results.tables import (
    MeasurementRow,
    PlacementRow,
    RankingRow,
    StructureRow,
    StudyRow,
    TrialRow,
    WeightsRow,
)
from sparsearch.results.values import FINISHED, Measurement, Outcome, StudySpec, Trial
from sparsearch.spaces.ranking import Ranking

if TYPE_CHECKING:
    from sparsearch.spaces.structure import Structure

__all__ = [
    "acquire",
    "add_late",
    "add_ranking",
    "ask_to_stop",
    "begin_study",
    "finish",
    "release",
    "renew",
    "retry",
    "start",
]

_ABSENT = object()
_SHOWN = 5


def begin_study(session: Session, spec: StudySpec) -> None:
    """Create a study, or check that the one of that name has an equal config.

    Raises:
        StoreError: If its config differs.
    """
    row = session.scalar(select(StudyRow).where(StudyRow.name == spec.name))
    if row is None:
        _insert_study(session, spec)
    elif differences := _differences(json.loads(row.config), json.loads(spec.config)):
        more = f", and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise StoreError(
            f"study {spec.name!r} exists with another config: "
            f"{', '.join(differences[:_SHOWN])}{more}",
            "choose another name, or restore the config to continue the study",
        )


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
    study: str,
    owner: lease.Owner,
    seconds: float,
    progressed: Collection[int],
    attempt_seconds: float,
) -> None:
    """Extend the lease of a study, and the deadlines of attempts at some of its trials.

    Raises:
        LeaseError: If it was lost.
    """
    row = _locked_study(session, study)
    lease.renew(row, owner, seconds)
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


def start(session: Session, study: str, number: int, worker: str, attempt_seconds: float) -> None:
    """Mark a trial as running, by a further attempt.

    Raises:
        StoreError: If it is finished.
    """
    row = _unfinished_trial(session, study, number)
    row.state = "running"
    row.started_at = datetime.now(UTC)
    attempts.begin(session, row, worker, attempt_seconds)


def retry(session: Session, study: str, number: int, state: str, message: str) -> None:
    """The attempt at a trial came to nothing; the trial is queued again.

    Raises:
        StoreError: If it is finished.
    """
    row = _unfinished_trial(session, study, number)
    row.state = "queued"
    attempts.end(session, row, state, message)


def add_late(session: Session, study: str, number: int, worker: str, outcome: Outcome) -> None:
    """Keep what came of an attempt that had been given up, as a further attempt."""
    attempts.add_late(session, _trial(session, study, number), worker, outcome)


def add_ranking(session: Session, key: str, ranking: Ranking) -> None:
    """Keep a ranking; the first under a key stays."""
    _insert_ranking(session, key, ranking)


def finish(session: Session, study: str, number: int, outcome: Outcome) -> None:
    """Store an outcome with all that belongs to it.

    Raises:
        StoreError: If the trial is finished already.
    """
    row = _unfinished_trial(session, study, number)
    metric = session.scalars(select(StudyRow.metric).where(StudyRow.id == row.study_id)).one()
    if outcome.structure is not None:
        _insert_structure(session, outcome.structure)
    _fill(row, outcome, metric)
    attempts.end(session, row, outcome.state, outcome.message)
    session.flush()
    if outcome.measurements:
        measured = [_measurement(row.id, m) for m in outcome.measurements]
        session.execute(insert(MeasurementRow), measured)
    if outcome.weights is not None:
        session.execute(insert(WeightsRow).values(trial_id=row.id, data=outcome.weights))
    if outcome.ranking is not None:
        _insert_ranking(session, *outcome.ranking)


def _insert_study(session: Session, spec: StudySpec) -> None:
    shared = {
        "model": spec.model,
        "task": spec.task,
        "backbone_params": spec.backbone_params,
    }
    row = StudyRow(
        name=spec.name,
        config=spec.config,
        metric=spec.metric,
        created_at=datetime.now(UTC),
        **shared,
    )
    session.add(row)
    session.flush()
    if spec.trials:
        session.execute(insert(TrialRow), [_queued(row.id, t) | shared for t in spec.trials])


def _queued(study_id: int, trial: Trial) -> dict[str, Any]:
    return {
        "study_id": study_id,
        "number": trial.number,
        "strategy": trial.strategy,
        "seed": trial.seed,
        "budget": trial.budget.as_dict() if trial.budget is not None else None,
        "state": "queued",
        "feasible": False,
        "recommendable": False,
        "message": "",
        "attempts": 0,
    }


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
    shown = ["(absent)" if value is _ABSENT else json.dumps(value) for value in (old, new)]
    return [f"{path}: {shown[0]} -> {shown[1]}"]


def _locked_study(session: Session, name: str) -> StudyRow:
    # SQLite has the whole database locked already; other backends lock the row.
    query = select(StudyRow).where(StudyRow.name == name).with_for_update()
    row = session.scalar(query)
    if row is None:
        raise queries.no_study(session, name)
    return row


def _unfinished_trial(session: Session, study: str, number: int) -> TrialRow:
    row = _trial(session, study, number)
    if row.state in FINISHED:
        raise StoreError(
            f"trial {number} of study {study!r} is finished already ({row.state})",
            f"its outcome is kept; see `sparsearch trials {study}`",
        )
    return row


def _trial(session: Session, study: str, number: int) -> TrialRow:
    row = session.scalar(
        select(TrialRow)
        .join(StudyRow)
        .where(StudyRow.name == study, TrialRow.number == number)
        .with_for_update(of=TrialRow)
    )
    if row is None:
        raise queries.no_trial(session, study, number)
    return row


def _fill(row: TrialRow, outcome: Outcome, metric: str) -> None:
    scores = {m.split: m.value for m in outcome.measurements if m.metric == metric}
    row.state = outcome.state
    row.feasible = outcome.state == "ok"
    row.message = outcome.message
    row.score = _finite(scores.get("validation"))
    row.test_score = _finite(scores.get("test"))
    row.structure_hash = outcome.structure.hash if outcome.structure is not None else None
    row.recommendable = row.feasible and outcome.structure is not None and row.score is not None
    row.trainable_params = outcome.trainable_params
    row.head_params = outcome.head_params
    row.inference_flops_ratio = outcome.inference_flops_ratio
    row.seconds = outcome.seconds
    row.peak_bytes = outcome.peak_bytes
    row.finished_at = datetime.now(UTC)
    if outcome.environment is not None:
        row.environment = asdict(outcome.environment)


def _finite(value: float | None) -> float | None:
    """A correlation of constants is NaN, which SQLite cannot hold and PostgreSQL sorts on top."""
    return value if value is not None and math.isfinite(value) else None


def _measurement(trial_id: int, m: Measurement) -> dict[str, Any]:
    return {
        "trial_id": trial_id,
        "metric": m.metric,
        "split": m.split,
        "value": _finite(m.value),
    }


def _insert_structure(session: Session, structure: Structure) -> None:
    if session.get(StructureRow, structure.hash) is not None:
        return
    session.execute(
        insert(StructureRow).values(
            hash=structure.hash,
            document=structure.to_json(),
            trainable_params=structure.trainable_params,
        )
    )
    placements = [
        {
            "structure_hash": structure.hash,
            "position": c.position,
            "kind": c.kind,
            "size": c.size,
            "params": c.params,
        }
        for c in structure.candidates
    ]
    if placements:
        session.execute(insert(PlacementRow), placements)


def _insert_ranking(session: Session, key: str, ranking: Ranking) -> None:
    if session.get(RankingRow, key) is not None:
        return
    session.execute(
        insert(RankingRow).values(
            key=key,
            strategy=ranking.strategy,
            seed=ranking.seed,
            steps=ranking.steps,
            seconds=ranking.seconds,
            scores=list(ranking.scores),
            created_at=datetime.now(UTC),
        )
    )
