"""What each trial costs to keep, as a column and as one of what a front weighs."""

import json
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_BEFORE = ["inference_flops_ratio", "weight_sparsity", "on_front"]
_AFTER = [*_BEFORE[:-1], "stored_bytes", "on_front"]
_NAMES = (
    "id study_id number score trainable_params stored_bytes inference_flops_ratio weight_sparsity state recommendable "
    "on_front structure_hash ranking_key"
)
_TRIALS = sa.table("trials", *map(sa.column, _NAMES.split()))
_STRUCTURES = sa.table("structures", sa.column("hash"), sa.column("document"))
_RANKINGS = sa.table("rankings", sa.column("key"), sa.column("scores", sa.JSON()))


def upgrade() -> None:
    whole = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.add_column("trials", sa.Column("stored_bytes", whole))
    connection = op.get_bind()
    _count_bytes(connection)
    _mark_fronts(connection)
    _indexes(_AFTER)


def downgrade() -> None:
    _indexes(_BEFORE)
    op.drop_column("trials", "stored_bytes")


def _indexes(order: list[str]) -> None:
    """The two that ``best`` walks down, anew."""
    score: sa.ColumnElement[float] = sa.column("score").desc()
    group = ["model", "task_fingerprint", "backbone_params"]
    wholes: dict[str, list[Any]] = {
        "ix_trials_front": [*group, score, "trainable_params", "study_id", "number", *order],
        "ix_trials_study_front": ["study_id", score, "trainable_params", "number", *order],
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


def _count_bytes(connection: sa.Connection) -> None:
    """Of what succeeded: tensors and the choice of candidates; four bytes a parameter where a whole model trained."""
    c = _TRIALS.c
    ok = (
        sa.select(c.id, c.study_id, c.trainable_params, c.structure_hash, c.ranking_key)
        .where(c.state == "ok", c.trainable_params.is_not(None))
        .order_by(c.study_id)
    )
    stored = dict(_structures(connection))
    lengths = {key: len(scores) for key, scores in connection.execute(sa.select(_RANKINGS))}
    counts = []
    for _, rows in groupby(connection.execute(ok).all(), key=lambda row: row.study_id):
        trials = list(rows)
        offered = max((lengths.get(t.ranking_key, 0) for t in trials), default=0)
        for t in trials:
            params, tensors, chosen = stored.get(t.structure_hash, (0, 0, 0))
            if (
                t.trainable_params != params
            ):  # a reference, or what a structure left of its backbone
                tensors = 4 * t.trainable_params
            choice = -(-max(offered, chosen) // 8) if t.structure_hash is not None else 0
            counts.append({"trial": t.id, "bytes": tensors + choice})
    if counts:
        count = sa.update(_TRIALS).where(c.id == sa.bindparam("trial"))
        connection.execute(count.values(stored_bytes=sa.bindparam("bytes")), counts)


def _structures(connection: sa.Connection) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """Hash, and trainable parameters, bytes and candidates."""
    for row in connection.execute(sa.select(_STRUCTURES)):
        document = json.loads(row.document)
        costs = document["costs"]
        sizes = costs["trainable_params"], costs["bytes"], len(document["candidates"])
        yield row.hash, sizes


def _mark_fronts(connection: sa.Connection) -> None:
    """Fronts gain trials that store less; none leaves one."""
    c = _TRIALS.c
    costs = (c.trainable_params, c.stored_bytes, c.inference_flops_ratio, c.weight_sparsity)
    rows = connection.execute(
        sa.select(c.study_id, c.id, *costs)
        .where(c.recommendable == sa.true())
        .order_by(c.study_id, c.score.desc(), c.trainable_params, c.number)
    )
    front = [
        {"found": number}
        for _, study in groupby(rows, key=lambda row: row.study_id)
        for number in _front(study)
    ]
    if front:
        mark = sa.update(_TRIALS).where(c.id == sa.bindparam("found")).values(on_front=sa.true())
        connection.execute(mark, front)


def _front(rows: Any) -> Iterator[int]:
    """Ids of the rows, in the order of ``best``, that no row of the front before them beats."""
    before: list[tuple[float, ...]] = []
    for row in rows:
        costs = row.trainable_params, row.stored_bytes, row.inference_flops_ratio
        point = (*costs, -row.weight_sparsity)
        if not any(all(a <= b for a, b in zip(p, point, strict=True)) for p in before):
            before.append(point)
            yield row.id
