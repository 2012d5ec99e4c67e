"""Attempts at trials, and the wish that a study's driver stops."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("studies", sa.Column("stop_asked_at", _TIME))
    op.create_table(
        "attempts",
        sa.Column("trial_id", _INT, nullable=False),
        sa.Column("number", _INT, nullable=False),
        sa.Column("worker", sa.String(200), nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("started_at", _TIME, nullable=False),
        sa.Column("deadline", _TIME, nullable=False),
        sa.Column("ended_at", _TIME),
        sa.PrimaryKeyConstraint("trial_id", "number", name=op.f("pk_attempts")),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.id"], name=op.f("fk_attempts_trial_id")),
    )


def downgrade() -> None:
    op.drop_table("attempts")
    op.drop_column("studies", "stop_asked_at")
