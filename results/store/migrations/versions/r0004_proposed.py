"""Trials that an outer loop proposes, their learning curves, and what a ranking may be transferred to."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("trials", sa.Column("settings", sa.JSON()))
    op.add_column("trials", sa.Column("history", sa.JSON()))
    for name, length in (("backbone", 64), ("space", 64), ("task", 200)):
        op.add_column(
            "rankings", sa.Column(name, sa.String(length), server_default="", nullable=False)
        )
    op.create_index("ix_rankings_transfer", "rankings", ["space", "backbone"])


def downgrade() -> None:
    op.drop_index("ix_rankings_transfer", "rankings")
    for name in ("backbone", "space", "task"):
        op.drop_column("rankings", name)
    for name in ("settings", "history"):
        op.drop_column("trials", name)
