"""On SQLite, rows under a key of several columns stand in the key's own order, once, and not beside an index of it."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_TABLES = ("placements", "measurements", "attempts")


def upgrade() -> None:
    _rebuild(with_rowid=False)


def downgrade() -> None:
    _rebuild(with_rowid=True)


def _rebuild(*, with_rowid: bool) -> None:
    """The tables anew, with the same rows; nothing refers to them."""
    connection = op.get_bind()
    if connection.dialect.name != "sqlite":
        return
    for name in _TABLES:
        metadata = sa.MetaData()
        old = sa.Table(name, metadata, autoload_with=connection)
        new = old.to_metadata(metadata, name=f"new_{name}")
        new.dialect_options["sqlite"]["with_rowid"] = with_rowid
        new.create(connection)
        # In the order of the key: each row then goes to the end of the new table.
        rows = sa.select(old).order_by(*old.primary_key)
        connection.execute(new.insert().from_select(list(old.c.keys()), rows))
        op.drop_table(name)
        op.rename_table(new.name, name)
