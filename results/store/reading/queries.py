"""Reading studies, trials, attempts and rankings."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Text, cast, func, select, true
from sqlalchemy.orm import Session

from sparsearch.errors import NotFoundError
from sparsearch.results.answers import (
    FinishedTrial,
    Placement,
    Placements,
    StudyProgress,
    TrialScore,
)
from sparsearch.results.records import (
    FINISHED,
    UNFINISHED,
    Attempt,
    StudyRecord,
    Trial,
    TrialRecord,
)
from sparsearch.results.store.tables import (
    PlacementRow,
    RankingRow,
    StudyRow,
    TrialRow,
    WeightsRow,
)
from sparsearch.results.store.writing import lease
from sparsearch.results.store.writing.attempts import of_study
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.ranking import AlphaTrace, Ranking

__all__ = [
    "BEST_FIRST",
    "attempts",
    "find_study",
    "front_placements",
    "mean_seconds",
    "models",
    "names_listed",
    "no_study",
    "no_trial",
    "queued",
    "progress",
    "ranking",
    "scores",
    "stop_asked",
    "studies",
    "study_names",
    "study_records",
    "study_row",
    "trials",
    "weights",
]

BEST_FIRST = (
    TrialRow.score.desc(),
    TrialRow.trainable_params,
    TrialRow.stored_bytes,
    TrialRow.study_id,
    TrialRow.number,
)
"""Where ``max_bytes`` is asked for, bytes come before parameters."""


_SHOWN = 10


def names_listed(names: Sequence[str]) -> str:
    """Names with commas between them; where there are many, how many more."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def no_study(session: Session, name: str) -> NotFoundError:
    """The error for a study that is not there; it lists those that are."""
    names = session.scalars(select(StudyRow.name).order_by(StudyRow.name)).all()
    there = f"there are: {names_listed(names)}" if names else "the database has no study yet"
    return NotFoundError(f"there is no study {name!r}; {there}", "`sparsearch studies` lists them")


def no_trial(session: Session, study: str, number: int) -> NotFoundError:
    """The error for a trial that is not there, be it for want of its study."""
    if session.scalar(select(StudyRow.id).where(StudyRow.name == study)) is None:
        return no_study(session, study)
    return NotFoundError(
        f"study {study!r} has no trial {number}", f"`sparsearch trials {study}` lists them"
    )


def study_row(session: Session, prefix: str) -> StudyRow:
    """The row of a study, by its name or the beginning of one name alone.

    Raises:
        NotFoundError: If there is none, or several begin like that.
    """
    exact = session.scalar(select(StudyRow).where(StudyRow.name == prefix))
    if exact is not None:
        return exact
    names = session.scalars(select(StudyRow.name).order_by(StudyRow.name)).all()
    fitting = [name for name in names if prefix and name.startswith(prefix)]
    if not fitting:
        raise no_study(session, prefix)
    if len(fitting) > 1:
        raise NotFoundError(
            f"{prefix!r} fits {len(fitting)} studies: {names_listed(fitting)}",
            "type more of the name",
        )
    return session.scalars(select(StudyRow).where(StudyRow.name == fitting[0])).one()


def study_records(session: Session, only: Sequence[int] | None = None) -> tuple[StudyRecord, ...]:
    """All studies, or those.

    Trials are numbered from 0, so the last one tells how many there are. None is counted but those that have not
    finished: the rest is at one end of an index.
    """
    of_study = TrialRow.study_id == StudyRow.id
    best = (TrialRow.state == "ok", TrialRow.recommendable == true())
    query = select(
        StudyRow,
        select(func.coalesce(func.max(TrialRow.number) + 1, 0)).where(of_study).scalar_subquery(),
        select(func.count()).where(of_study, TrialRow.state.in_(UNFINISHED)).scalar_subquery(),
        select(func.max(TrialRow.score)).where(of_study, *best).scalar_subquery(),
    )
    if only is not None:
        query = query.where(StudyRow.id.in_(only))
    return tuple(
        StudyRecord(
            name=row.name,
            model=row.model,
            task=row.task,
            metric=row.metric,
            backbone_params=row.backbone_params,
            config=row.config,
            created_at=row.created_at,
            owner=str(owner) if (owner := lease.holder(row)) is not None else None,
            trials=total,
            finished=total - unfinished,
            best_score=score,
            task_fingerprint=row.task_fingerprint,
            backbone=row.backbone_id,
        )
        for row, total, unfinished, score in session.execute(query.order_by(StudyRow.id))
    )


def studies(
    session: Session,
    after: str | None = None,
    limit: int | None = None,
    *,
    youngest_first: bool = False,
) -> tuple[StudyRecord, ...]:
    """The studies that come after that one, or all, at most ``limit``."""
    order = StudyRow.id.desc() if youngest_first else StudyRow.id
    page = select(StudyRow.id).order_by(order).limit(limit)
    if after is not None:
        last = study_row(session, after).id
        page = page.where(StudyRow.id < last if youngest_first else StudyRow.id > last)
    everything = after is None and limit is None
    found = study_records(session, None if everything else session.scalars(page).all())
    return found[::-1] if youngest_first else found


def find_study(session: Session, prefix: str) -> StudyRecord:
    """The study of that name, or the only one whose name starts with it.

    Raises:
        NotFoundError: If there is none, or more than one.
    """
    return study_records(session, [study_row(session, prefix).id])[0]


def trials(
    session: Session, study: str, after: int = -1, limit: int | None = None
) -> tuple[TrialRecord, ...]:
    """The trials of a study with a number above ``after``, in order, at most ``limit``."""
    row = study_row(session, study)
    query = select(TrialRow).where(TrialRow.study_id == row.id, TrialRow.number > after)
    query = query.order_by(TrialRow.number).limit(limit)
    return tuple(
        TrialRecord(
            study=row.name,
            number=t.number,
            strategy=t.strategy,
            seed=t.seed,
            budget=t.budget,
            state=t.state,
            message=t.message,
            score=t.score,
            test_score=t.test_score,
            structure=t.structure_hash,
            ranking_key=t.ranking_key,
            trainable_params=t.trainable_params,
            head_params=t.head_params,
            inference_flops_ratio=t.inference_flops_ratio,
            weight_sparsity=t.weight_sparsity,
            stored_bytes=t.stored_bytes,
            seconds=t.seconds,
            peak_bytes=t.peak_bytes,
            attempts=t.attempts,
            settings=t.settings or {},
            history=_history(t.history),
            started_at=t.started_at,
            finished_at=t.finished_at,
            environment=t.environment,
        )
        for t in session.scalars(query)
    )


def scores(
    session: Session, study: str, numbers: Sequence[int] | None = None
) -> tuple[TrialScore, ...]:
    """The trials of a study as columns: each budget and each history is read once, however many have it."""
    study_id = study_row(session, study).id
    row = TrialRow
    query = (
        select(
            row.number, row.strategy, row.seed, row.state, row.message, row.score, row.test_score,
            row.structure_hash, row.trainable_params, row.stored_bytes, row.inference_flops_ratio,
            row.weight_sparsity, row.seconds, cast(row.budget, Text), cast(row.settings, Text), cast(row.history, Text),
        )
        .where(row.study_id == study_id)
        .order_by(row.number)
    )  # fmt: skip
    if numbers is not None:
        query = query.where(row.number.in_(numbers))
    read = functools.cache(lambda text: None if text is None else json.loads(text))
    found = []
    for values in session.execute(query).all():
        budget, settings, history = map(read, values[-3:])
        all_values: list[Any] = [*values[:-3], budget, settings or {}, _history(history)]
        found.append(TrialScore(*all_values))
    return tuple(found)


def _history(scores: Sequence[float | None] | None) -> tuple[float, ...]:
    return tuple(math.nan if score is None else score for score in scores or ())


def study_names(session: Session, limit: int) -> tuple[str, ...]:
    """The names of the youngest studies; none of their trials is counted."""
    query = select(StudyRow.name).order_by(StudyRow.id.desc()).limit(limit)
    return tuple(session.scalars(query))


def models(session: Session) -> dict[str, tuple[str, ...]]:
    """The backbones of all studies with their tasks, the youngest study's first."""
    query = (
        select(StudyRow.model, StudyRow.task)
        .group_by(StudyRow.model, StudyRow.task)
        .order_by(func.max(StudyRow.id).desc())
    )
    found: dict[str, tuple[str, ...]] = {}
    for model, task in session.execute(query):
        found[model] = (*found.get(model, ()), task)
    return found


def front_placements(session: Session, model: str, task: str | None) -> Placements:
    """What the structures on the fronts of a backbone's studies put where, see ``Store.front_placements``."""
    chosen = select(TrialRow.structure_hash).where(TrialRow.model == model, TrialRow.on_front)
    if task is not None:
        chosen = chosen.join(StudyRow).where(StudyRow.task == task)
    hashes = chosen.distinct().subquery()
    row = PlacementRow
    query = (
        select(row.position, row.kind, func.count(), func.min(row.size), func.max(row.size))
        .join(hashes, hashes.c.structure_hash == row.structure_hash)
        .group_by(row.position, row.kind)
        .order_by(row.position, row.kind)
    )
    counts = tuple(Placement(*found) for found in session.execute(query))
    return Placements(session.scalar(select(func.count()).select_from(hashes)) or 0, counts)


def progress(session: Session, study: str, above: int) -> StudyProgress:
    """Who holds a study, and those of its trials with a number above that one that have finished."""
    row = session.scalar(select(StudyRow).where(StudyRow.name == study))
    if row is None:
        raise no_study(session, study)
    t = TrialRow
    brief = (t.number, t.state, t.message, t.score, t.trainable_params, t.structure_hash)
    query = select(*brief, t.seconds, t.finished_at).where(
        t.study_id == row.id, t.number > above, t.state.in_(FINISHED)
    )
    finished = session.execute(query.order_by(t.number)).tuples()
    running = lease.holder(row) is not None
    return StudyProgress(row.id, running, tuple(FinishedTrial(*values) for values in finished))


def mean_seconds(session: Session, model: str) -> dict[str, float]:
    """By strategy, the mean time of the successful trials on a backbone."""
    query = (
        select(TrialRow.strategy, func.avg(TrialRow.seconds))
        .join(StudyRow)
        .where(StudyRow.model == model, TrialRow.state == "ok")
        .group_by(TrialRow.strategy)
    )
    return {strategy: float(mean) for strategy, mean in session.execute(query) if mean is not None}


def attempts(session: Session, study: str, trials: range | None = None) -> tuple[Attempt, ...]:
    """The attempts at the trials of a study, or at those numbers alone."""
    return of_study(session, study_row(session, study).id, trials)


def stop_asked(session: Session, study: str) -> bool:
    """Whether the driver of a study was asked to end."""
    asked = select(StudyRow.stop_asked_at).where(StudyRow.name == study)
    return session.scalar(asked) is not None


def queued(session: Session, study: str) -> tuple[Trial, ...]:
    """The trials of a study that are still to run, in order of number."""
    study_id = session.scalar(select(StudyRow.id).where(StudyRow.name == study))
    if study_id is None:
        raise no_study(session, study)
    query = select(TrialRow).where(TrialRow.study_id == study_id, TrialRow.state == "queued")
    return tuple(
        Trial(
            t.number,
            t.strategy,
            None if t.budget is None else Budget(**t.budget),
            t.seed,
            tuple((t.settings or {}).items()),
        )
        for t in session.scalars(query.order_by(TrialRow.number))
    )


def ranking(session: Session, key: str) -> Ranking | None:
    """The ranking stored under a key."""
    row = session.get(RankingRow, key)
    if row is None:
        return None
    return Ranking(
        tuple(row.scores), row.strategy, row.seed, row.steps, row.seconds,
        row.backbone, row.space, row.task, None if row.trace is None else _trace(row.trace),
    )  # fmt: skip


def _trace(stored: dict[str, Any]) -> AlphaTrace:
    alpha = tuple(map(tuple, stored["alpha"]))
    return AlphaTrace(tuple(stored["candidates"]), tuple(stored["steps"]), alpha)


def weights(session: Session, study: str, number: int) -> bytes | None:
    """The safetensors bytes of a trial, None if none were stored."""
    found = session.execute(
        select(WeightsRow.data)
        .select_from(TrialRow)
        .join(StudyRow)
        .outerjoin(WeightsRow)
        .where(StudyRow.name == study, TrialRow.number == number)
    ).one_or_none()
    if found is None:
        raise no_trial(session, study, number)
    data: bytes | None = found[0]
    return data
