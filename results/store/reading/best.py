"""The best structures: within limits, on the front, by their hash."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from operator import attrgetter
from typing import TypeAlias

from sqlalchemy import ColumnElement, Row, Select, and_, func, or_, select, true
from sqlalchemy.orm import Session, aliased

from sparsearch.config.registry import LIMITS
from sparsearch.errors import ConfigError, NotFoundError
from sparsearch.results.records import (
    Best,
    BestQuery,
)
from sparsearch.results.store import pareto_front as front
from sparsearch.results.store.reading.advice import of_one_task
from sparsearch.results.store.reading.queries import (
    _SHOWN,
    BEST_FIRST,
    study_row,
)
from sparsearch.results.store.tables import (
    FormerHashRow,
    MeasurementRow,
    StructureRow,
    StudyRow,
    TrialRow,
)
from sparsearch.spaces.limits import Limit
from sparsearch.spaces.structure import Structure

__all__ = [
    "best",
    "best_of_each_task",
    "find_structure",
    "pareto",
    "structures_of",
]

_Winner: TypeAlias = tuple[int, float | None, int | None, int | None, int, int]


_Group: TypeAlias = tuple[str, str, int, str, int, str]


_PAID = ("stored_bytes", "trainable_params")
"""What decides between equal scores under ``max_bytes``; else the other way round."""

_HASH_PREFIX = re.compile(r"[0-9a-f]{4,64}")


def best(session: Session, question: BestQuery) -> Best | None:
    """The best trial within the limits, see ``Store.best``."""
    return of_one_task(best_of_each_task(session, question))


def best_of_each_task(session: Session, question: BestQuery) -> tuple[Best, ...]:
    """The best trial of each task within the limits, see ``Store.best_of_each_task``."""
    asked = {n: LIMITS.load(n)().asked(v) for n, v in question.limits.items() if v is not None}
    on_front = all(LIMITS.load(name).column for name in asked)
    only = study_row(session, question.study).id if question.study is not None else None
    found: dict[str, list[Row[*_Winner]]] = {}
    # One walk down the index per group, since a share is another number for each backbone.
    for group in _groups(session, question, only):
        query = _best_first(only, group, on_front)
        for name, value in asked.items():
            limit = LIMITS.load(name)()
            if isinstance(value, Fraction):
                value = limit.of_backbone(value, group.backbone_params)
            query = query.where(_within(limit, value))
        rows = session.execute(query.limit(1)).all()
        if rows and "max_bytes" in asked:  # the index has equal scores by parameters
            ties = query.where(TrialRow.score == rows[0].score).order_by(None)
            fewest_bytes = ties.order_by(TrialRow.stored_bytes, *BEST_FIRST)
            rows = session.execute(fewest_bytes.limit(1)).all()
        found.setdefault(group.task_fingerprint, []).extend(rows)
    paid = attrgetter(*(_PAID if "max_bytes" in asked else reversed(_PAID)))
    winners = (
        min(rows, key=lambda r: (-r.score, paid(r), r.study_id, r.number))
        for rows in found.values()
        if rows
    )
    return tuple(_load(session, TrialRow.id == winner.id)[0] for winner in winners)


def _groups(session: Session, question: BestQuery, only: int | None) -> list[Row[*_Group]]:
    """What a question is about, oldest first: a row for each (model, task_fingerprint, backbone_params)."""
    key = (StudyRow.model, StudyRow.task_fingerprint, StudyRow.backbone_params)
    oldest = (func.min(StudyRow.id).label("first"), func.min(StudyRow.name).label("study"))
    query = select(*key, StudyRow.backbone, *oldest).group_by(*key, StudyRow.backbone)
    if only is not None:
        query = query.where(StudyRow.id == only)
    if question.model is not None:
        query = query.where(StudyRow.model == question.model)
    for of_task in _tasks_called(question.task):
        rows = sorted(session.execute(query.where(of_task)), key=lambda row: row.first)
        if rows:
            break
    if question.model is not None:
        _check_one_backbone(question.model, rows)
    groups: dict[tuple[str, str, int], Row[*_Group]] = {}
    for row in rows:
        groups.setdefault((row.model, row.task_fingerprint, row.backbone_params), row)
    return list(groups.values())


def _tasks_called(task: str | None) -> list[ColumnElement[bool]]:
    """Conditions to try in turn: the tasks of that name, those whose fingerprint begins with it."""
    if task is None:
        return [true()]
    column = StudyRow.task_fingerprint
    named = aliased(StudyRow)
    conditions: list[ColumnElement[bool]] = [
        column.in_(select(named.task_fingerprint).where(named.task == task))
    ]
    if _HASH_PREFIX.fullmatch(task) is not None:
        conditions.append(column.between(task, f"{task}g"))
    return conditions


def _check_one_backbone(model: str, groups: Sequence[Row[*_Group]]) -> None:
    """A model's name stands for one backbone: a folder may have changed, or another have its name.

    Fingerprints of two forms, and those of the first one, say nothing about each other.
    """
    forms: dict[str, dict[str, str]] = {}
    for group in groups:
        form, dash, _ = group.backbone.partition("-")
        if dash:
            forms.setdefault(form, {}).setdefault(group.backbone, group.study)
    for studies in forms.values():
        if len(studies) > 1:
            names = ", ".join(f"study {name} ({b[:10]})" for b, name in studies.items())
            raise ConfigError(
                [f"model {model!r} had {len(studies)} different weights: {names}"],
                "name one with --study",
            )


def _within(limit: Limit, value: int | float) -> ColumnElement[bool]:
    """Whether a trial is within a limit, by its column or by its measurement of that name."""
    if limit.column:
        column = getattr(TrialRow, limit.column)
        within: ColumnElement[bool] = column <= value if limit.is_most else column >= value
        return within
    measured = MeasurementRow.value
    ids = select(MeasurementRow.trial_id).where(
        MeasurementRow.metric == limit.name,
        measured <= value if limit.is_most else measured >= value,
    )
    return TrialRow.id.in_(ids)


def _best_first(only: int | None, group: Row[*_Group], on_front: bool) -> Select[*_Winner]:
    """Trials in the order of ``best``; those of the front are enough for limits that the front knows."""
    columns = (
        TrialRow.id,
        TrialRow.score,
        TrialRow.trainable_params,
        TrialRow.stored_bytes,
        TrialRow.study_id,
        TrialRow.number,
    )
    among = TrialRow.on_front if on_front else TrialRow.recommendable
    query = select(*columns).where(among).order_by(*BEST_FIRST)
    if only is not None:
        return query.where(TrialRow.study_id == only)
    return query.where(
        TrialRow.model == group.model,
        TrialRow.task_fingerprint == group.task_fingerprint,
        TrialRow.backbone_params == group.backbone_params,
    )


def pareto(session: Session, study: str) -> tuple[Best, ...]:
    """The trials of a study that no other one beats, see ``Store.pareto``."""
    row = study_row(session, study)
    members = _load(session, and_(TrialRow.study_id == row.id, TrialRow.on_front))
    return tuple(front.pareto(members))


def structures_of(session: Session, study: str, numbers: Sequence[int]) -> tuple[Best, ...]:
    """The structures of some trials of a study, see ``Store.structures_of``."""
    of_study = TrialRow.study_id == study_row(session, study).id
    found = {b.trial: b for b in _load(session, and_(of_study, TrialRow.number.in_(numbers)))}
    return tuple(found[number] for number in numbers)


def find_structure(session: Session, prefix: str, study: str | None = None) -> Best:
    """The best trial of the structure whose hash starts with a prefix, see ``Store.find_structure``."""
    among = [] if study is None else [TrialRow.study_id == study_row(session, study).id]
    found = _hash_of(session, prefix, among)
    trials = and_(TrialRow.recommendable, TrialRow.structure_hash == found, *among)
    rows = session.execute(
        select(StudyRow.task, StudyRow.task_fingerprint, StudyRow.name)
        .where(StudyRow.id.in_(select(TrialRow.study_id).where(trials)))
        .order_by(StudyRow.id)
    ).all()
    if len({row.task_fingerprint for row in rows}) > 1:  # their scores do not compare
        names = ", ".join(f"{row.name} ({row.task})" for row in rows[:_SHOWN])
        raise NotFoundError(
            f"structure {found[:12]} was trained on several tasks: {names}",
            f"say which: --study {rows[0].name}",
        )
    best = select(TrialRow.id).where(trials).order_by(*BEST_FIRST).limit(1)
    return _load(session, TrialRow.id == session.scalars(best).one())[0]


def load_structure(session: Session, prefix: str) -> Structure:
    """The structure whose hash starts with a prefix, whatever it was trained on."""
    found = _hash_of(session, prefix, [])
    query = select(StructureRow.document).where(StructureRow.hash == found)
    return Structure.from_json(session.scalars(query).one())


def _hash_of(session: Session, prefix: str, among: Sequence[ColumnElement[bool]]) -> str:
    """The whole hash of a structure of some successful trials, by its start or that of one it had before."""
    wanted = prefix.strip().lower()
    if _HASH_PREFIX.fullmatch(wanted) is None:
        raise NotFoundError(
            f"{prefix!r} names no structure: give 4 to 64 characters of its hash (0-9, a-f)",
            "`sparsearch best` and `sparsearch trials STUDY` show the hashes",
        )
    # A range, unlike LIKE, uses the index on every backend; "g" follows all hexadecimal digits.
    end = f"{wanted}g"
    former = select(FormerHashRow.hash).where(FormerHashRow.former.between(wanted, end))
    fits = or_(TrialRow.structure_hash.between(wanted, end), TrialRow.structure_hash.in_(former))
    hashes = session.scalars(
        select(TrialRow.structure_hash)
        .where(TrialRow.recommendable, fits, *among)
        .distinct()
        .limit(_SHOWN + 1)
    ).all()
    if not hashes:
        raise NotFoundError(
            f"no successful trial has a structure that starts with {wanted!r}",
            "`sparsearch best` and `sparsearch trials STUDY` show the hashes",
        )
    if len(hashes) > 1:
        candidates = sorted(h[: max(12, len(wanted) + 4)] for h in hashes if h is not None)
        more = " and more" if len(candidates) > _SHOWN else ""
        raise NotFoundError(
            f"{wanted!r} fits more than one structure: {', '.join(candidates[:_SHOWN])}{more}",
            "type more of the hash",
        )
    return str(hashes[0])


def _load(session: Session, where: ColumnElement[bool]) -> list[Best]:
    # Single columns: a mapped trial costs as much as reading its structure.
    query = (
        select(
            StudyRow.name.label("study"),
            TrialRow.number.label("trial"),
            TrialRow.strategy,
            StudyRow.metric,
            TrialRow.score,
            TrialRow.test_score,
            StructureRow.document.label("structure"),
            TrialRow.trainable_params,
            TrialRow.head_params,
            TrialRow.inference_flops_ratio,
            TrialRow.budget,
            TrialRow.seed,
            StudyRow.model,
            StudyRow.task,
            TrialRow.weight_sparsity,
            TrialRow.stored_bytes,
            StudyRow.task_fingerprint,
            StudyRow.backbone_id.label("backbone"),
            TrialRow.offered,
        )
        .join_from(TrialRow, StudyRow)
        .join(StructureRow)
    )
    rows = session.execute(query.where(where)).mappings()
    return [Best.of(dict(row), Structure.from_json(row["structure"])) for row in rows]
