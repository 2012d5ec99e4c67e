"""What a study's task and backbone are, beside what they are called; numbers that are not finite leave the JSON."""

import hashlib
import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_JSON = ("budget", "settings", "history", "environment")
_ORDER = ["trainable_params", "study_id", "number", "inference_flops_ratio", "weight_sparsity"]
_LEFT_OUT = {"name", "max_length"}


def upgrade() -> None:
    for table, name in (
        ("studies", "task_fingerprint"),
        ("studies", "backbone"),
        ("trials", "task_fingerprint"),
    ):
        op.add_column(table, sa.Column(name, sa.String(64), server_default="", nullable=False))
    connection = op.get_bind()
    _identify_studies(connection)
    op.drop_index("ix_trials_front", "trials")
    op.execute(
        "UPDATE trials SET task_fingerprint = "
        "(SELECT s.task_fingerprint FROM studies s WHERE s.id = trials.study_id)"
    )
    op.drop_column("trials", "task")
    _front_index("task_fingerprint")
    if connection.dialect.name == "sqlite":  # PostgreSQL has never taken them
        _make_finite(connection)


def downgrade() -> None:
    op.drop_index("ix_trials_front", "trials")
    op.add_column("trials", sa.Column("task", sa.String(200), server_default="", nullable=False))
    op.execute(
        "UPDATE trials SET task = (SELECT s.task FROM studies s WHERE s.id = trials.study_id)"
    )
    _front_index("task")
    for table, name in (
        ("studies", "task_fingerprint"),
        ("studies", "backbone"),
        ("trials", "task_fingerprint"),
    ):
        op.drop_column(table, name)


def _front_index(task: str) -> None:
    score: sa.ColumnElement[float] = sa.column("score").desc()
    op.create_index(
        "ix_trials_front",
        "trials",
        ["model", task, "backbone_params", score, *_ORDER, "on_front"],
        sqlite_where=sa.text("on_front = 1"),
        postgresql_where=sa.text("on_front"),
    )


def _identify_studies(connection: sa.Connection) -> None:
    columns = ("id", "name", "config", "task", "metric", "task_fingerprint", "backbone")
    studies = sa.table("studies", *map(sa.column, columns))
    for row in connection.execute(sa.select(studies).order_by(studies.c.id)).all():
        known = {
            "task_fingerprint": _fingerprint(row),
            "backbone": _backbone(connection, row.id),
        }
        connection.execute(sa.update(studies).where(studies.c.id == row.id).values(known))


def _fingerprint(study: Any) -> str:
    """As ``results.task_identity`` had it in this revision."""
    settings = json.loads(study.config)
    content: dict[str, Any] = {"metric": study.metric}
    section, digests = settings.get("task"), settings.get("data_sha256")
    if section is None:
        content["name"] = study.task
    else:
        content |= {key: value for key, value in section.items() if key not in _LEFT_OUT}
        data = section["data"]
        if digests:
            path = data["path"] if "data_files" in data else "folder"
            content["data"] = {**data, "path": path, "data_files": digests}
        elif "data_files" in data:
            content["study"] = study.name
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _backbone(connection: sa.Connection, study: int) -> str:
    """The fingerprint of the weights on which a study's structures are; empty where it has none."""
    trials = sa.table("trials", sa.column("study_id"), sa.column("structure_hash"))
    structures = sa.table("structures", sa.column("hash"), sa.column("document"))
    query = (
        sa.select(structures.c.document)
        .join_from(structures, trials, structures.c.hash == trials.c.structure_hash)
        .where(trials.c.study_id == study)
        .limit(1)
    )
    document = connection.scalar(query)
    return "" if document is None else str(json.loads(document)["backbone"]["weight_fingerprint"])


def _make_finite(connection: sa.Connection) -> None:
    """NaN and infinities, which are no JSON, become null."""
    trials = sa.table("trials", sa.column("id"), *map(sa.column, _JSON))
    for name in _JSON:
        column = trials.c[name]
        wrong = sa.or_(column.contains("NaN"), column.contains("Infinity"))
        for row in connection.execute(sa.select(trials.c.id, column).where(wrong)).all():
            finite = json.dumps(json.loads(row[1], parse_constant=lambda _: None))
            change = sa.update(trials).where(trials.c.id == row.id).values({name: finite})
            connection.execute(change)
