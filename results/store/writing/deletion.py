"""Deleting a study, with all that belongs to it alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import ColumnElement, delete, select
from sqlalchemy.orm import InstrumentedAttribute, Session

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

_NAMED = 500
_SOURCE = "search.transfer_from"
"""Setting of a trial that names the ranking it takes over."""


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
    hashes = _of_this_study_alone(session, TrialRow.structure_hash, own)
    keys = _of_this_study_alone(session, TrialRow.ranking_key, own)
    transferred = _to_transfer(session, own)
    keys = [key for key in keys if key not in transferred]
    trials = select(TrialRow.id).where(own)
    for table in (MeasurementRow, WeightsRow, AttemptRow):
        session.execute(delete(table).where(table.trial_id.in_(trials)))
    session.execute(delete(TrialRow).where(own))
    session.delete(study)
    session.flush()
    for part in _parts(hashes):
        session.execute(delete(PlacementRow).where(PlacementRow.structure_hash.in_(part)))
        session.execute(delete(FormerHashRow).where(FormerHashRow.hash.in_(part)))
        session.execute(delete(StructureRow).where(StructureRow.hash.in_(part)))
    for part in _parts(keys):
        session.execute(delete(RankingRow).where(RankingRow.key.in_(part)))


def _of_this_study_alone(
    session: Session, column: InstrumentedAttribute[str | None], own: ColumnElement[bool]
) -> list[str]:
    """The values of a column of the study's trials that no other study's trial has."""
    mine = select(column).where(own, column.is_not(None))
    others = select(column).where(~own, column.in_(mine))
    found = session.scalars(mine.where(column.not_in(others)).distinct())
    return [value for value in found if value is not None]


def _to_transfer(session: Session, own: ColumnElement[bool]) -> set[str]:
    """The rankings that trials of other studies take over, which may not have run yet."""
    settings = session.scalars(
        select(TrialRow.settings).where(~own, TrialRow.settings.is_not(None))
    )
    return {str(each[_SOURCE]) for each in settings if each and _SOURCE in each}


def _parts(values: Sequence[str]) -> Iterator[Sequence[str]]:
    """So many at a time as a statement may name."""
    for first in range(0, len(values), _NAMED):
        yield values[first : first + _NAMED]
