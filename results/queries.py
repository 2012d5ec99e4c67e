"""Reading: lists, the best under a budget, the Pareto front. Every recommendation is feasible."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Row, Select, and_, case, func, or_, select, true
from sqlalchemy.orm import Session, aliased

from sparsearch.errors import ConfigError, StoreError
from sparsearch.results import front, lease
from sparsearch.results.attempts import of_study
from sparsearch.results.tables import (
    FormerHashRow,
    RankingRow,
    StructureRow,
    StudyRow,
    TrialRow,
    WeightsRow,
)
from sparsearch.results.values import (
    FINISHED,
    Attempt,
    Best,
    BestQuery,
    StudyRecord,
    Trial,
    TrialRecord,
)
from sparsearch.spaces.budget import Budget, parse_share
from sparsearch.spaces.ranking import Ranking
from sparsearch.spaces.structure import Structure

__all__ = [
    "attempts",
    "best",
    "best_of_each_task",
    "find_structure",
    "find_study",
    "no_study",
    "no_trial",
    "pareto",
    "queued",
    "ranking",
    "stop_asked",
    "studies",
    "transferable",
    "trials",
    "weights",
]

_Winner: TypeAlias = tuple[int, float | None, int | None, int, int]
_Group: TypeAlias = tuple[str, str, int, str, int, str]

_BEST_FIRST = (
    TrialRow.score.desc(),
    TrialRow.trainable_params,
    TrialRow.study_id,
    TrialRow.number,
)
_HASH_PREFIX = re.compile(r"[0-9a-f]{4,64}")
_SHOWN = 10


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def no_study(session: Session, name: str) -> StoreError:
    """The error for a study that is not there; it lists those that are."""
    names = session.scalars(select(StudyRow.name).order_by(StudyRow.name)).all()
    there = f"there are: {_listed(names)}" if names else "the database has no study yet"
    return StoreError(f"there is no study {name!r}; {there}", "`sparsearch studies` lists them")


def no_trial(session: Session, study: str, number: int) -> StoreError:
    """The error for a trial that is not there, be it for want of its study."""
    if session.scalar(select(StudyRow.id).where(StudyRow.name == study)) is None:
        return no_study(session, study)
    return StoreError(
        f"study {study!r} has no trial {number}", f"`sparsearch trials {study}` lists them"
    )


def _study_row(session: Session, prefix: str) -> StudyRow:
    exact = session.scalar(select(StudyRow).where(StudyRow.name == prefix))
    if exact is not None:
        return exact
    names = session.scalars(select(StudyRow.name).order_by(StudyRow.name)).all()
    fitting = [name for name in names if prefix and name.startswith(prefix)]
    if not fitting:
        raise no_study(session, prefix)
    if len(fitting) > 1:
        raise StoreError(
            f"{prefix!r} fits {len(fitting)} studies: {_listed(fitting)}", "type more of the name"
        )
    return session.scalars(select(StudyRow).where(StudyRow.name == fitting[0])).one()


def _study_records(session: Session, only: int | None = None) -> tuple[StudyRecord, ...]:
    """All studies, or one: then the trials of no other one are counted."""
    trials = TrialRow.study_id == only if only is not None else true()
    studies = StudyRow.id == only if only is not None else true()
    counts = (
        select(
            TrialRow.study_id,
            func.count().label("trials"),
            func.sum(case((TrialRow.state.in_(FINISHED), 1), else_=0)).label("finished"),
            func.max(case((TrialRow.recommendable, TrialRow.score))).label("best_score"),
        )
        .where(trials)
        .group_by(TrialRow.study_id)
        .subquery()
    )
    query = select(StudyRow, counts.c.trials, counts.c.finished, counts.c.best_score)
    query = query.outerjoin(counts, counts.c.study_id == StudyRow.id).where(studies)
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
            trials=total or 0,
            finished=finished or 0,
            best_score=score,
            task_fingerprint=row.task_fingerprint,
        )
        for row, total, finished, score in session.execute(query.order_by(StudyRow.id))
    )


def studies(session: Session) -> tuple[StudyRecord, ...]:
    """All studies, oldest first."""
    return _study_records(session)


def find_study(session: Session, prefix: str) -> StudyRecord:
    """The study of that name, or the only one whose name starts with it.

    Raises:
        StoreError: If there is none, or more than one.
    """
    return _study_records(session, _study_row(session, prefix).id)[0]


def trials(session: Session, study: str) -> tuple[TrialRecord, ...]:
    """All trials of a study, in order of number."""
    row = _study_row(session, study)
    query = select(TrialRow).where(TrialRow.study_id == row.id).order_by(TrialRow.number)
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
            seconds=t.seconds,
            peak_bytes=t.peak_bytes,
            attempts=t.attempts,
            settings=t.settings or {},
            history=tuple(math.nan if score is None else score for score in t.history or ()),
        )
        for t in session.scalars(query)
    )


def attempts(session: Session, study: str) -> tuple[Attempt, ...]:
    """All attempts at the trials of a study."""
    return of_study(session, _study_row(session, study).id)


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
        row.backbone, row.space, row.task,
    )  # fmt: skip


def transferable(
    session: Session,
    space: str,
    task: str,
    backbone: str | None,
    study: str | None,
    max_trainable_params: int | None,
) -> str | None:
    """The key of the ranking that served another task best, see ``Store.transferable``."""
    fits = TrialRow.trainable_params <= (max_trainable_params or 0)
    query = (
        select(TrialRow.ranking_key)
        .join(RankingRow, RankingRow.key == TrialRow.ranking_key)
        .where(
            RankingRow.space == space, RankingRow.strategy == "s3pet", TrialRow.strategy == "s3pet"
        )
        .where(TrialRow.recommendable)
    )
    if backbone is not None:
        query = query.where(RankingRow.backbone == backbone)
    if study is None:
        query = query.where(TrialRow.task_fingerprint != task)
    else:
        query = query.where(TrialRow.study_id == _study_row(session, study).id)
    return session.scalar(query.order_by(case((fits, 0), else_=1), *_BEST_FIRST).limit(1))


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


def best(session: Session, question: BestQuery) -> Best | None:
    """The best trial within the limits, see ``Store.best``."""
    found = best_of_each_task(session, question)
    if len(found) > 1:
        tasks = "; ".join(
            f"{b.task} ({b.metric}, study {b.study}), fingerprint {b.task_fingerprint[:8]}"
            for b in found
        )
        raise ConfigError(
            [f"scores of different tasks or metrics do not compare; there are: {tasks}"],
            "name one with --task or --study; --task takes a name or the beginning of a fingerprint",
        )
    return found[0] if found else None


def best_of_each_task(session: Session, question: BestQuery) -> tuple[Best, ...]:
    """The best trial of each task within the limits, see ``Store.best_of_each_task``."""
    limit = _params_limit(question.max_trainable_params)
    ratio = _share_limit("max_inference_flops", question.max_inference_flops)
    sparsity = _share_limit("min_weight_sparsity", question.min_weight_sparsity)
    only = _study_row(session, question.study).id if question.study is not None else None
    found: dict[str, list[Row[*_Winner]]] = {}
    # One walk down the index per group, since a share is another number for each backbone.
    for group in _groups(session, question, only):
        query = _best_first(only, group)
        if limit is not None:
            most = int(limit * group.backbone_params) if isinstance(limit, Fraction) else limit
            query = query.where(TrialRow.trainable_params <= most)
        if ratio is not None:
            query = query.where(TrialRow.inference_flops_ratio <= ratio)
        if sparsity is not None:
            query = query.where(TrialRow.weight_sparsity >= sparsity)
        found.setdefault(group.task_fingerprint, []).extend(session.execute(query.limit(1)))
    winners = (
        min(rows, key=lambda r: (-r.score, r.trainable_params, r.study_id, r.number))
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


def _best_first(only: int | None, group: Row[*_Group]) -> Select[*_Winner]:
    columns = (
        TrialRow.id,
        TrialRow.score,
        TrialRow.trainable_params,
        TrialRow.study_id,
        TrialRow.number,
    )
    query = select(*columns).where(TrialRow.on_front).order_by(*_BEST_FIRST)
    if only is not None:
        return query.where(TrialRow.study_id == only)
    return query.where(
        TrialRow.model == group.model,
        TrialRow.task_fingerprint == group.task_fingerprint,
        TrialRow.backbone_params == group.backbone_params,
    )


def _params_limit(limit: int | str | None) -> int | Fraction | None:
    """A command line gives whole numbers as text too; none is larger than a database counts."""
    if isinstance(limit, str) and not limit.strip().isdecimal():
        return _share("max_trainable_params", limit)
    return None if limit is None else min(int(limit), 2**63 - 1)


def _share_limit(name: str, limit: float | str | None) -> float | None:
    return float(_share(name, limit)) if isinstance(limit, str) else limit


def _share(name: str, limit: str) -> Fraction:
    """The share that a limit names; one that cannot be read is told by its name."""
    whole = name == "max_trainable_params"
    try:
        share = parse_share(limit)
    except ConfigError as error:
        allowed = "neither a whole number nor a percentage" if whole else "no percentage"
        example = "0.01%" if whole else "75%"
        if limit.strip().replace(".", "", 1).isdecimal():
            # The sign was forgotten, or a share of 1 meant.
            meant = 1 if whole or float(limit) > 1 else 100
            example = f"{meant * float(limit):g}%"
        raise ConfigError([f"{name}: {limit!r} is {allowed}"], f"write {example}") from error
    if share > 1 and name != "max_inference_flops":  # units that do not merge add FLOPs
        raise ConfigError([f"{name}: {limit!r} is more than the whole"], "write at most 100%")
    return share


def pareto(session: Session, study: str) -> tuple[Best, ...]:
    """The trials of a study that no other one beats, see ``Store.pareto``."""
    row = _study_row(session, study)
    members = _load(session, and_(TrialRow.study_id == row.id, TrialRow.on_front))
    return tuple(front.pareto(members))


def find_structure(session: Session, prefix: str, study: str | None = None) -> Best:
    """The best trial of the structure whose hash starts with a prefix, see ``Store.find_structure``."""
    among = [] if study is None else [TrialRow.study_id == _study_row(session, study).id]
    found = _hash_of(session, prefix, among)
    trials = and_(TrialRow.recommendable, TrialRow.structure_hash == found, *among)
    rows = session.execute(
        select(StudyRow.task, StudyRow.task_fingerprint, StudyRow.name)
        .where(StudyRow.id.in_(select(TrialRow.study_id).where(trials)))
        .order_by(StudyRow.id)
    ).all()
    if len({row.task_fingerprint for row in rows}) > 1:  # their scores do not compare
        names = ", ".join(f"{row.name} ({row.task})" for row in rows[:_SHOWN])
        raise StoreError(
            f"structure {found[:12]} was trained on several tasks: {names}",
            f"say which: --study {rows[0].name}",
        )
    best = select(TrialRow.id).where(trials).order_by(*_BEST_FIRST).limit(1)
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
        raise StoreError(
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
        raise StoreError(
            f"no successful trial has a structure that starts with {wanted!r}",
            "`sparsearch best` and `sparsearch trials STUDY` show the hashes",
        )
    if len(hashes) > 1:
        candidates = sorted(h[: max(12, len(wanted) + 4)] for h in hashes if h is not None)
        more = " and more" if len(candidates) > _SHOWN else ""
        raise StoreError(
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
            StudyRow.task_fingerprint,
        )
        .join_from(TrialRow, StudyRow)
        .join(StructureRow)
    )
    return [_best(dict(row)) for row in session.execute(query.where(where)).mappings()]


def _best(row: dict[str, Any]) -> Best:
    structure = Structure.from_json(row["structure"])
    # Equal structures are stored once; the provenance has to be this trial's.
    own = {key: row[key] for key in ("study", "trial", "strategy", "seed")}
    provenance = replace(structure.provenance, **own)
    return Best(**row | {"structure": replace(structure, provenance=provenance)})
