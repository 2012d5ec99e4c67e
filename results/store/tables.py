"""The tables. A change here needs a new revision in ``migrations/versions``; a test compares."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = [
    "AttemptRow",
    "Base",
    "FormerHashRow",
    "FiniteJson",
    "MeasurementRow",
    "PlacementRow",
    "RankingRow",
    "StructureRow",
    "StudyRow",
    "TrialRow",
    "UtcDateTime",
    "WeightsRow",
]


class FiniteJson(TypeDecorator[Any]):
    """JSON; one number that is not finite would break every JSON query of its table. None is NULL."""

    impl = JSON(none_as_null=True)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """The value as it is.

        Raises:
            ValueError: If a number in it is not finite.
        """
        try:
            json.dumps(value, allow_nan=False)
        except ValueError as error:
            raise ValueError(f"{value!r:.200} has a number that is not finite") from error
        return value


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC; SQLite would forget the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """As UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Root of the tables. Constraints have names, so that later revisions can change them."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own form
        # SQLite numbers rows by itself only in a column declared INTEGER.
        int: BigInteger().with_variant(Integer, "sqlite"),
        str: Text,
        datetime: UtcDateTime,
        dict[str, Any]: FiniteJson,
        float: Double,
        list[float]: FiniteJson,
        list[float | None]: FiniteJson,
        bytes: LargeBinary,
    }


_CLUSTERED = {"sqlite_with_rowid": False}
"""Small rows under a key of several columns: SQLite keeps them in its order, without an index beside the table."""


class StudyRow(Base):
    """A study, and which driver holds it.

    ``task`` is what the user calls the task, ``task_fingerprint`` what it is; ``backbone`` is the fingerprint of the
    weights that ``model`` had, ``backbone_id`` all that identifies them; both are empty until the first outcome.
    """

    __tablename__ = "studies"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    config: Mapped[str]
    model: Mapped[str] = mapped_column(String(500))
    task: Mapped[str] = mapped_column(String(200))
    task_fingerprint: Mapped[str] = mapped_column(String(64), server_default="")
    backbone: Mapped[str] = mapped_column(String(64), server_default="")
    backbone_id: Mapped[dict[str, Any] | None]
    metric: Mapped[str] = mapped_column(String(200))
    backbone_params: Mapped[int]
    created_at: Mapped[datetime]
    owner_host: Mapped[str | None]
    owner_pid: Mapped[int | None]
    owner_started: Mapped[float | None]
    lease_until: Mapped[datetime | None]
    stop_asked_at: Mapped[datetime | None]

    __table_args__ = (
        Index("ix_studies_question", "model", "task", "backbone_params"),
        {"sqlite_autoincrement": True},
    )


class TrialRow(Base):
    """A trial.

    ``recommendable`` says that it is feasible and has a structure and a score, ``on_front`` that it
    is one of those of its study that ``best`` or ``pareto`` can answer with, see ``pareto_front``. ``model``,
    ``task_fingerprint`` and ``backbone_params`` repeat its study's: so one index holds all that ``best`` asks for.
    ``offered`` counts the candidates of the space from which its structure was chosen.
    """

    __tablename__ = "trials"

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id"))
    number: Mapped[int]
    strategy: Mapped[str] = mapped_column(String(200))
    seed: Mapped[int]
    budget: Mapped[dict[str, Any] | None]
    settings: Mapped[dict[str, Any] | None]
    state: Mapped[str] = mapped_column(String(20))
    feasible: Mapped[bool]
    recommendable: Mapped[bool]
    on_front: Mapped[bool] = mapped_column(server_default=false())
    message: Mapped[str]
    attempts: Mapped[int]
    model: Mapped[str] = mapped_column(String(500))
    task_fingerprint: Mapped[str] = mapped_column(String(64), server_default="")
    backbone_params: Mapped[int]
    score: Mapped[float | None]
    history: Mapped[list[float | None] | None]
    test_score: Mapped[float | None]
    structure_hash: Mapped[str | None] = mapped_column(String(64), ForeignKey("structures.hash"))
    offered: Mapped[int | None]
    ranking_key: Mapped[str | None] = mapped_column(String(200), ForeignKey("rankings.key"))
    trainable_params: Mapped[int | None]
    stored_bytes: Mapped[int | None]
    head_params: Mapped[int | None]
    inference_flops_ratio: Mapped[float | None]
    weight_sparsity: Mapped[float] = mapped_column(server_default=text("0"))
    seconds: Mapped[float | None]
    peak_bytes: Mapped[int | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    environment: Mapped[dict[str, Any] | None]
    __table_args__ = (
        UniqueConstraint("study_id", "number"),
        Index("ix_trials_structure_hash", "structure_hash"),
        Index("ix_trials_state", "study_id", "state", "recommendable", "score"),
        {"sqlite_autoincrement": True},
    )


# The best trial is the first entry within the limits, and no entry needs a look at its row: SQLite
# wants to see ``on_front`` even where it is the index's own condition.
Index(
    "ix_trials_front",
    TrialRow.model,
    TrialRow.task_fingerprint,
    TrialRow.backbone_params,
    TrialRow.score.desc(),
    TrialRow.trainable_params,
    TrialRow.stored_bytes,
    TrialRow.study_id,
    TrialRow.number,
    TrialRow.inference_flops_ratio,
    TrialRow.weight_sparsity,
    TrialRow.on_front,
    sqlite_where=text("on_front = 1"),
    postgresql_where=text("on_front"),
)
Index(
    "ix_trials_study_front",
    TrialRow.study_id,
    TrialRow.score.desc(),
    TrialRow.trainable_params,
    TrialRow.stored_bytes,
    TrialRow.number,
    TrialRow.inference_flops_ratio,
    TrialRow.weight_sparsity,
    TrialRow.on_front,
    sqlite_where=text("on_front = 1"),
    postgresql_where=text("on_front"),
)


class AttemptRow(Base):
    """One attempt at a trial; after its deadline, unless progress renews it, it is given up."""

    __tablename__ = "attempts"

    trial_id: Mapped[int] = mapped_column(
        ForeignKey("trials.id"), primary_key=True, autoincrement=False
    )
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    worker: Mapped[str] = mapped_column(String(200))
    state: Mapped[str] = mapped_column(String(20))
    message: Mapped[str]
    started_at: Mapped[datetime]
    deadline: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    __table_args__ = _CLUSTERED


class StructureRow(Base):
    """A structure file, once per hash."""

    __tablename__ = "structures"

    hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    document: Mapped[str]
    trainable_params: Mapped[int]


class FormerHashRow(Base):
    """A hash that an earlier version gave a structure; commands still find it by this one."""

    __tablename__ = "former_hashes"

    former: Mapped[str] = mapped_column(String(64), primary_key=True)
    hash: Mapped[str] = mapped_column(String(64), ForeignKey("structures.hash"))


class PlacementRow(Base):
    """One candidate of a structure."""

    __tablename__ = "placements"

    structure_hash: Mapped[str] = mapped_column(
        String(64), ForeignKey("structures.hash"), primary_key=True
    )
    position: Mapped[str] = mapped_column(String(200), primary_key=True)
    kind: Mapped[str] = mapped_column(String(200), primary_key=True)
    size: Mapped[int]
    params: Mapped[int]
    __table_args__ = _CLUSTERED


class MeasurementRow(Base):
    """A measurement; NULL where the metric is undefined (a correlation of constants)."""

    __tablename__ = "measurements"

    trial_id: Mapped[int] = mapped_column(ForeignKey("trials.id"), primary_key=True)
    metric: Mapped[str] = mapped_column(String(200), primary_key=True)
    split: Mapped[str] = mapped_column(String(20), primary_key=True)
    value: Mapped[float | None]
    __table_args__ = _CLUSTERED


class WeightsRow(Base):
    """Attached modules and head of a trial, as the bytes of a safetensors file."""

    __tablename__ = "weights"

    trial_id: Mapped[int] = mapped_column(ForeignKey("trials.id"), primary_key=True)
    data: Mapped[bytes]


class RankingRow(Base):
    """A ranking that other trials may reuse, on other tasks too: same ``backbone`` and ``space``, another ``task``."""

    __tablename__ = "rankings"

    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    strategy: Mapped[str] = mapped_column(String(200))
    seed: Mapped[int]
    steps: Mapped[int]
    seconds: Mapped[float]
    scores: Mapped[list[float]]
    backbone: Mapped[str] = mapped_column(String(64), server_default="")
    space: Mapped[str] = mapped_column(String(64), server_default="")
    task: Mapped[str] = mapped_column(String(200), server_default="")
    trace: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]
    __table_args__ = (Index("ix_rankings_transfer", "space", "backbone"),)
