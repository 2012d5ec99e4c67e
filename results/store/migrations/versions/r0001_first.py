"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    _studies()
    _structures()
    _trials()
    _outcomes()


def downgrade() -> None:
    for table in ("rankings", "weights", "measurements", "placements"):
        op.drop_table(table)
    for table in ("trials", "structures", "studies"):
        op.drop_table(table)


def _studies() -> None:
    op.create_table(
        "studies",
        sa.Column("id", _INT, nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("config", sa.Text(), nullable=False),
        sa.Column("model", sa.String(500), nullable=False),
        sa.Column("task", sa.String(200), nullable=False),
        sa.Column("metric", sa.String(200), nullable=False),
        sa.Column("backbone_params", _INT, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("owner_host", sa.Text()),
        sa.Column("owner_pid", _INT),
        sa.Column("owner_started", sa.Double()),
        sa.Column("lease_until", _TIME),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_studies")),
        sa.UniqueConstraint("name", name=op.f("uq_studies_name")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_studies_question", "studies", ["model", "task", "backbone_params"])


def _structures() -> None:
    op.create_table(
        "structures",
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("trainable_params", _INT, nullable=False),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_structures")),
    )
    op.create_table(
        "placements",
        sa.Column("structure_hash", sa.String(64), nullable=False),
        sa.Column("position", sa.String(200), nullable=False),
        sa.Column("kind", sa.String(200), nullable=False),
        sa.Column("size", _INT, nullable=False),
        sa.Column("params", _INT, nullable=False),
        sa.PrimaryKeyConstraint("structure_hash", "position", "kind", name=op.f("pk_placements")),
        sa.ForeignKeyConstraint(
            ["structure_hash"], ["structures.hash"], name=op.f("fk_placements_structure_hash")
        ),
    )


def _trials() -> None:
    op.create_table(
        "trials",
        sa.Column("id", _INT, nullable=False),
        sa.Column("study_id", _INT, nullable=False),
        sa.Column("number", _INT, nullable=False),
        sa.Column("strategy", sa.String(200), nullable=False),
        sa.Column("seed", _INT, nullable=False),
        sa.Column("budget", sa.JSON()),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("feasible", sa.Boolean(), nullable=False),
        sa.Column("recommendable", sa.Boolean(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("attempts", _INT, nullable=False),
        sa.Column("model", sa.String(500), nullable=False),
        sa.Column("task", sa.String(200), nullable=False),
        sa.Column("backbone_params", _INT, nullable=False),
        sa.Column("score", sa.Double()),
        sa.Column("test_score", sa.Double()),
        sa.Column("structure_hash", sa.String(64)),
        sa.Column("trainable_params", _INT),
        sa.Column("head_params", _INT),
        sa.Column("inference_flops_ratio", sa.Double()),
        sa.Column("seconds", sa.Double()),
        sa.Column("peak_bytes", _INT),
        sa.Column("started_at", _TIME),
        sa.Column("finished_at", _TIME),
        sa.Column("environment", sa.JSON()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_trials")),
        sa.UniqueConstraint("study_id", "number", name=op.f("uq_trials_study_id")),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name=op.f("fk_trials_study_id")),
        sa.ForeignKeyConstraint(
            ["structure_hash"], ["structures.hash"], name=op.f("fk_trials_structure_hash")
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_trials_structure_hash", "trials", ["structure_hash"])
    op.create_index("ix_trials_state", "trials", ["study_id", "state", "recommendable", "score"])
    op.create_index(
        "ix_trials_best",
        "trials",
        [
            "model",
            "task",
            "backbone_params",
            "recommendable",
            sa.column("score").desc(),
            "trainable_params",
            "study_id",
            "number",
            "inference_flops_ratio",
        ],
    )


def _outcomes() -> None:
    op.create_table(
        "measurements",
        sa.Column("trial_id", _INT, nullable=False),
        sa.Column("metric", sa.String(200), nullable=False),
        sa.Column("split", sa.String(20), nullable=False),
        sa.Column("value", sa.Double()),
        sa.PrimaryKeyConstraint("trial_id", "metric", "split", name=op.f("pk_measurements")),
        sa.ForeignKeyConstraint(
            ["trial_id"], ["trials.id"], name=op.f("fk_measurements_trial_id")
        ),
    )
    op.create_table(
        "weights",
        sa.Column("trial_id", _INT, nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("trial_id", name=op.f("pk_weights")),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.id"], name=op.f("fk_weights_trial_id")),
    )
    op.create_table(
        "rankings",
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("strategy", sa.String(200), nullable=False),
        sa.Column("seed", _INT, nullable=False),
        sa.Column("steps", _INT, nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("scores", sa.JSON(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_rankings")),
    )
