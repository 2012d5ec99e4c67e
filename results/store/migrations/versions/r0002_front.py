"""Which trials are on their study's front, and from which ranking a trial was cut."""

from bisect import bisect_right
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ORDER = ["trainable_params", "study_id", "number", "inference_flops_ratio", "on_front"]


def upgrade() -> None:
    op.add_column(
        "trials", sa.Column("on_front", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    # Written out, since SQLite adds a foreign key only together with its column.
    op.execute(
        "ALTER TABLE trials ADD COLUMN ranking_key VARCHAR(200) "
        "CONSTRAINT fk_trials_ranking_key REFERENCES rankings (key)"
    )
    op.drop_index("ix_trials_best", "trials")
    _mark_fronts(op.get_bind())
    score: sa.ColumnElement[float] = sa.column("score").desc()
    _front_index("ix_trials_front", ["model", "task", "backbone_params", score, *_ORDER])
    within = [name for name in _ORDER if name != "study_id"]
    _front_index("ix_trials_study_front", ["study_id", score, *within])


def _front_index(name: str, columns: list[Any]) -> None:
    op.create_index(
        name,
        "trials",
        columns,
        sqlite_where=sa.text("on_front = 1"),
        postgresql_where=sa.text("on_front"),
    )


def _mark_fronts(connection: sa.Connection) -> None:
    """Study by study, in the order in which ``best`` prefers trials.

    A trial is off the front where one before it has no more parameters and saves no less. Of those
    on it, ``parameters`` and ``savings`` keep a staircase, both ascending.
    """
    trials = sa.table(
        "trials",
        *map(sa.column, ("id", "study_id", "number", "score", "trainable_params")),
        *map(sa.column, ("inference_flops_ratio", "recommendable", "on_front")),
    )
    c = trials.c
    order = (c.study_id, c.score.desc(), c.trainable_params, c.number)
    columns = (c.study_id, c.id, c.trainable_params, c.inference_flops_ratio)
    recommendable = sa.select(*columns).where(c.recommendable == sa.true()).order_by(*order)
    front: list[int] = []
    for _, rows in groupby(connection.execute(recommendable), key=lambda row: row.study_id):
        parameters: list[int] = []
        savings: list[float] = []
        for row in rows:
            i = bisect_right(parameters, row.trainable_params)
            saving = -row.inference_flops_ratio
            if i and savings[i - 1] >= saving:
                continue
            front.append(row.id)
            end = bisect_right(savings, saving, i)
            parameters[i:end] = [row.trainable_params]
            savings[i:end] = [saving]
    if front:
        mark = sa.update(trials).where(c.id == sa.bindparam("found")).values(on_front=sa.true())
        connection.execute(mark, [{"found": number} for number in front])
