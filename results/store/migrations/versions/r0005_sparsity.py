"""Weight sparsity as a column of trials, and as one of what a front weighs."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_BEFORE = ["trainable_params", "study_id", "number", "inference_flops_ratio", "on_front"]
_AFTER = [*_BEFORE[:-1], "weight_sparsity", "on_front"]


def upgrade() -> None:
    op.add_column(
        "trials", sa.Column("weight_sparsity", sa.Double(), server_default="0", nullable=False)
    )
    op.execute(
        "UPDATE trials SET weight_sparsity = (SELECT m.value FROM measurements m WHERE m.trial_id = trials.id "
        "AND m.metric = 'weight_sparsity') WHERE EXISTS (SELECT 1 FROM measurements m "
        "WHERE m.trial_id = trials.id AND m.metric = 'weight_sparsity' AND m.value IS NOT NULL)"
    )
    _mark_fronts(op.get_bind())
    _indexes(_AFTER)


def downgrade() -> None:
    _indexes(_BEFORE)
    op.drop_column("trials", "weight_sparsity")


def _indexes(order: list[str]) -> None:
    """The two that ``best`` walks down, anew."""
    score: sa.ColumnElement[float] = sa.column("score").desc()
    wholes: dict[str, list[Any]] = {
        "ix_trials_front": ["model", "task", "backbone_params", score, *order],
        "ix_trials_study_front": ["study_id", score, *(n for n in order if n != "study_id")],
    }
    for name, columns in wholes.items():
        op.drop_index(name, "trials")
        op.create_index(
            name,
            "trials",
            columns,
            sqlite_where=sa.text("on_front = 1"),
            postgresql_where=sa.text("on_front"),
        )


def _mark_fronts(connection: sa.Connection) -> None:
    """Fronts of studies in which something is sparse gain trials; none leaves one."""
    trials = sa.table(
        "trials",
        *map(sa.column, ("id", "study_id", "number", "score", "trainable_params")),
        *map(sa.column, ("inference_flops_ratio", "weight_sparsity", "recommendable", "on_front")),
    )
    c = trials.c
    sparse = sa.select(c.study_id).where(c.weight_sparsity > 0)
    rows = connection.execute(
        sa.select(c.study_id, c.id, c.trainable_params, c.inference_flops_ratio, c.weight_sparsity)
        .where(c.recommendable == sa.true(), c.study_id.in_(sparse))
        .order_by(c.study_id, c.score.desc(), c.trainable_params, c.number)
    )
    front = [
        {"found": number}
        for _, study in groupby(rows, key=lambda row: row.study_id)
        for number in _front(study)
    ]
    if front:
        mark = sa.update(trials).where(c.id == sa.bindparam("found")).values(on_front=sa.true())
        connection.execute(mark, front)


def _front(rows: Any) -> Iterator[int]:
    """Ids of the rows, in the order of ``best``, that no row before them beats."""
    before: list[tuple[int, float, float]] = []
    for row in rows:
        point = (row.trainable_params, row.inference_flops_ratio, -row.weight_sparsity)
        if not any(all(a <= b for a, b in zip(p, point, strict=True)) for p in before):
            before.append(point)
            yield row.id
