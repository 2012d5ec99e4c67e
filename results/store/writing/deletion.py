"""Deleting a study, with all that belongs to it alone."""

from __future__ import annotations

from sqlalchemy import ColumnElement, delete, select
from sqlalchemy.orm import Session

from sparsearch.errors import LeaseError
from sparsearch.results.store.reading.queries import no_study
from sparsearch.results.store.tables import (
    AttemptRow,
    FormerHashRow,
    MeasurementRow,
    PlacementRow,
    RankingRow,
    StructureRow,
    StudyRow,
    TrialRow,
    WeightsRow,
)
from sparsearch.results.store.writing import lease

__all__ = ["delete_study"]


def delete_study(session: Session, name: str) -> None:
    """Delete a study, its trials and weights, and structures and rankings that no other study has.

    Raises:
        NotFoundError: If there is no study of exactly that name.
        LeaseError: If a driver runs it.
    """
    study = session.scalar(select(StudyRow).where(StudyRow.name == name).with_for_update())
    if study is None:
        raise no_study(session, name)
    if (owner := lease.holder(study)) is not None:
        raise LeaseError(
            f"study {name!r} is being run by {owner}", f"end it first: sparsearch stop {name}"
        )
    own = TrialRow.study_id == study.id
    hashes = session.scalars(select(TrialRow.structure_hash).where(own).distinct()).all()
    keys = session.scalars(select(TrialRow.ranking_key).where(own).distinct()).all()
    trials = select(TrialRow.id).where(own)
    for table in (MeasurementRow, WeightsRow, AttemptRow):
        session.execute(delete(table).where(table.trial_id.in_(trials)))
    session.execute(delete(TrialRow).where(own))
    session.delete(study)
    session.flush()
    for gone in filter(None, hashes):
        _delete_structure(session, gone)
    for key in filter(None, keys):
        _unless_used(session, TrialRow.ranking_key == key, RankingRow, RankingRow.key == key)


def _delete_structure(session: Session, gone: str) -> None:
    used = TrialRow.structure_hash == gone
    _unless_used(session, used, PlacementRow, PlacementRow.structure_hash == gone)
    _unless_used(session, used, FormerHashRow, FormerHashRow.hash == gone)
    _unless_used(session, used, StructureRow, StructureRow.hash == gone)


def _unless_used(
    session: Session, used: ColumnElement[bool], table: type, where: ColumnElement[bool]
) -> None:
    """Delete rows of a table, unless a trial still uses them."""
    session.execute(delete(table).where(where, ~select(TrialRow.id).where(used).exists()))
