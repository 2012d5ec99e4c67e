"""How alpha went during a search."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("rankings", sa.Column("trace", sa.JSON()))


def downgrade() -> None:
    op.drop_column("rankings", "trace")
