"""Structures are named by the options that differ from their defaults; the names before are kept beside."""

import hashlib
import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_STRUCTURES = sa.table("structures", *map(sa.column, ("hash", "document", "trainable_params")))
_PLACEMENTS = sa.table("placements", sa.column("structure_hash"))
_TRIALS = sa.table("trials", sa.column("structure_hash"))
_DEFAULTS: dict[str, dict[str, Any]] = {
    "spectral": {"block": 16, "max_blocks": 8},
    "lora": {"max_rank": 4, "alpha": 16.0},
    "sparse_delta": {"smallest": 16, "factor": 4, "steps": 4, "support": "residual", "scale": 1.0},
    "low_rank_adapter": {"reduction": 32},
    "adapter": {"bottleneck": 24, "parallel": False},
    "heads": {"compensate": "none"},
    "neurons": {"compensate": "none", "block": 64},
    "weight_mask": {
        "rank": 8,
        "structured": True,
        "alpha_low_rank": 1.0,
        "alpha_structured": 1.0,
        "every": 50,
        "pattern": "",
        "bands": 20,
        "importance": "magnitude",
    },
}
"""Defaults of all options that a structure of revision 6 may hold."""


def upgrade() -> None:
    connection = op.get_bind()
    former = op.create_table(
        "former_hashes",
        sa.Column("former", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("former", name="pk_former_hashes"),
        sa.ForeignKeyConstraint(["hash"], ["structures.hash"], name="fk_former_hashes_hash"),
    )
    for old in connection.scalars(sa.select(_STRUCTURES.c.hash)).all():
        document = sa.select(_STRUCTURES.c.document).where(_STRUCTURES.c.hash == old)
        new = _hash(json.loads(str(connection.scalar(document))))
        if new != old:
            _rename(old, new)
            connection.execute(former.insert().values(former=old, hash=new))


def downgrade() -> None:
    former = sa.table("former_hashes", sa.column("former"), sa.column("hash"))
    names = op.get_bind().execute(sa.select(former.c.hash, former.c.former)).all()
    op.drop_table("former_hashes")
    for new, old in dict(map(tuple, names)).items():
        _rename(new, old)


def _rename(old: str, new: str) -> None:
    """Give a structure another hash; where one has it already, they are one structure."""
    connection = op.get_bind()
    row = connection.execute(sa.select(_STRUCTURES).where(_STRUCTURES.c.hash == old)).one()
    there = sa.select(_STRUCTURES.c.hash).where(_STRUCTURES.c.hash == new)
    if connection.scalar(there) is None:
        connection.execute(_STRUCTURES.insert().values({**row._mapping, "hash": new}))
        _point(_PLACEMENTS, old, new)
    else:
        placed = _PLACEMENTS.c.structure_hash == old
        connection.execute(_PLACEMENTS.delete().where(placed))
    _point(_TRIALS, old, new)
    connection.execute(_STRUCTURES.delete().where(_STRUCTURES.c.hash == old))


def _point(table: sa.TableClause, old: str, new: str) -> None:
    """Let rows that refer to one structure refer to another."""
    changed = table.update().where(table.c.structure_hash == old).values(structure_hash=new)
    op.get_bind().execute(changed)


def _hash(document: dict[str, Any]) -> str:
    """The hash of a structure, without the options at their defaults."""
    backbone = document["backbone"]
    content = {
        "backbone": [backbone["config_hash"], backbone["weight_fingerprint"]],
        "task_type": document["task_type"],
        "candidates": [
            [c["position"], c["kind"], c["size"], *([c["which"]] if c.get("which") else [])]
            for c in document["candidates"]
        ],
        "kinds": {
            kind: {
                name: value
                for name, value in options.items()
                if name not in _DEFAULTS.get(kind, {}) or value != _DEFAULTS[kind][name]
            }
            for kind, options in document["kinds"].items()
        },
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
