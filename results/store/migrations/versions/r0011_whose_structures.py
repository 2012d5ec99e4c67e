"""What equal structures of several studies differ in; of equal scores and parameters the fewest bytes come first."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_SHARES = ["inference_flops_ratio", "weight_sparsity"]


def upgrade() -> None:
    whole = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.add_column("trials", sa.Column("offered", whole))
    op.add_column("studies", sa.Column("backbone_id", sa.JSON()))
    _indexes(["stored_bytes"], _SHARES)


def downgrade() -> None:
    _indexes([], [*_SHARES, "stored_bytes"])
    op.drop_column("studies", "backbone_id")
    op.drop_column("trials", "offered")


def _indexes(ties: list[str], rest: list[str]) -> None:
    """The two that ``best`` walks down, anew."""
    order: list[Any] = [sa.column("score").desc(), "trainable_params", *ties]
    group = ["model", "task_fingerprint", "backbone_params"]
    wholes = {
        "ix_trials_front": [*group, *order, "study_id", "number", *rest, "on_front"],
        "ix_trials_study_front": ["study_id", *order, "number", *rest, "on_front"],
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
